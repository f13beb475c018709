"""The notebook of the docs runs from top to bottom."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip('nbclient')
    nbformat = pytest.importorskip('nbformat')
    pytest.importorskip('ipykernel')
    manager = pytest.importorskip('jupyter_client.manager')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    # The kernel of this interpreter, whatever is registered for the user.
    kernel = manager.AsyncKernelManager(kernel_name='python3')
    kernel.kernel_spec.argv[0] = sys.executable
    notebook = nbformat.read(ROOT / 'docs/tutorial.ipynb', as_version=4)
    assert not any(cell.get('outputs') for cell in notebook.cells)
    resources = {'metadata': {'path': str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, km=kernel, timeout=300, resources=resources)
    client.owns_km = True  # to end the kernel with the last cell
    client.execute()
    last = notebook.cells[-1].outputs[-1]['data']['text/plain']
    assert "'stage1'" in last and "'stage4'" in last
    assert any(
        'image/png' in out.get('data', {}) or 'image/jpeg' in out.get('data', {})
        for cell in notebook.cells
        for out in cell.get('outputs', [])
    )
    assert (tmp_path / 'picture.jpg').is_file() and (tmp_path / 'model.onnx').is_file()
