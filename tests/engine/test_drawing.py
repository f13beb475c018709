"""Pictures land in one folder under the names of their images."""

from pathlib import Path

from swinv2_mm.engine.drawing import SideBySideHook


def test_images_of_one_name_do_not_overwrite_each_other():
    hook = SideBySideHook('vis')
    assert hook._file(Path('berlin/0001.jpg')) == Path('vis/0001.png')
    assert hook._file(Path('bonn/0001.jpg')) == Path('vis/bonn_0001.png')
