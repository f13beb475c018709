"""What a user may type where a checkpoint is wanted."""

import pytest

from swinv2_mm.engine.checkpoint_files import newest_checkpoint, require_checkpoint
from swinv2_mm.engine.errors import SetupError


@pytest.fixture
def work_dir(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    for name in ('iter_1.pth', 'iter_2.pth'):
        (folder / name).touch()
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_2.pth'))
    return folder


def test_a_file_a_pointer_and_a_work_directory_all_mean_a_checkpoint(work_dir):
    assert require_checkpoint(work_dir / 'iter_1.pth') == str(work_dir / 'iter_1.pth')
    assert require_checkpoint(work_dir / 'last_checkpoint') == str(work_dir / 'iter_2.pth')
    assert require_checkpoint(work_dir) == str(work_dir / 'iter_2.pth')


def test_an_address_is_left_alone():
    assert require_checkpoint('https://example.org/a.pth') == 'https://example.org/a.pth'


def test_a_work_directory_may_have_been_moved(work_dir):
    moved = work_dir.rename(work_dir.parent / 'elsewhere')
    assert newest_checkpoint(moved) == str(moved / 'iter_2.pth')


def test_a_missing_file_is_reported_with_what_is_there(work_dir):
    with pytest.raises(
        SetupError, match=r'iter_3\.pth does not exist; .* holds iter_1\.pth, iter_2\.pth'
    ):
        require_checkpoint(work_dir / 'iter_3.pth')


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(SetupError, match='neither does the folder'):
        require_checkpoint(tmp_path / 'no' / 'iter_3.pth')


def test_a_folder_without_checkpoints(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    with pytest.raises(SetupError, match='holds no checkpoint'):
        require_checkpoint(tmp_path)


def test_a_pointer_to_a_deleted_checkpoint(work_dir):
    (work_dir / 'iter_2.pth').unlink()
    with pytest.raises(
        SetupError, match=r'iter_2\.pth, which does not exist; .* holds iter_1\.pth'
    ):
        newest_checkpoint(work_dir)
