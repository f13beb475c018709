"""Test downloads and their cache with a server."""

import hashlib
import http.server
import threading

import pytest
import torch
from mmengine.runner.checkpoint import _load_checkpoint, get_mmcls_models
from safetensors.torch import save_file

from swinv2_mm.checkpoints import (
    CheckpointError,
    CheckpointUnavailableError,
    guard_mmengine,
    load_pretrained,
    trust_checkpoints,
)
from swinv2_mm.checkpoints.sources import cached_file, fetch_checkpoint


def test_a_url_is_downloaded_once(server, torch_home, nano):
    folder, address, asked = server
    backbone = nano(norm_cfg=None)
    state = backbone.state_dict()
    del state['pretrained_window_sizes']
    torch.save({'model': state}, folder / 'swinv2_nano_patch4_window8_64.pth')
    url = f'{address}/swinv2_nano_patch4_window8_64.pth'
    for _ in range(2):
        other = nano(norm_cfg=None)
        report = load_pretrained(other, url)
        assert torch.equal(other.patch_embed.proj.weight, backbone.patch_embed.proj.weight)
    assert report.windows.windows[:3] == ((8, 8), (8, 8), (4, 4))
    assert len(asked) == 1
    assert cached_file(url).is_file() and cached_file(url).is_relative_to(torch_home)


def test_a_url_that_cannot_be_had_says_what_to_put_where(server, torch_home, nano):
    _, address, _ = server
    for url in (f'{address}/missing.pth', 'http://127.0.0.1:9/missing.pth'):
        with pytest.raises(CheckpointUnavailableError) as caught:
            load_pretrained(nano(), url)
        message = str(caught.value)
        assert 'missing.pth' in message and url in message
        assert str(cached_file(url)) in message
        assert '\n' not in message
    assert not list(torch_home.rglob('*missing*'))


def test_a_file_put_there_by_hand_is_found_without_network(torch_home, nano):
    url = 'https://example.invalid/by_hand.pth'
    cached_file(url).parent.mkdir(parents=True)
    backbone = nano()
    torch.save(backbone.state_dict(), cached_file(url))
    other = nano()
    load_pretrained(other, url)
    assert torch.equal(other.patch_embed.proj.weight, backbone.patch_embed.proj.weight)


def test_torchvision_names(torch_home):
    """mmengine's table contains the address; the name of a file in the cache promises another content."""
    target = torch_home / 'hub/checkpoints/swin_v2_t-b137f0e2.pth'
    target.parent.mkdir(parents=True)
    target.touch()
    with pytest.raises(CheckpointError, match='does not begin with b137f0e2') as caught:
        fetch_checkpoint('torchvision://swin_v2_t.imagenet1k_v1')
    assert str(target) in str(caught.value) and target.exists()
    with trust_checkpoints():
        assert fetch_checkpoint('torchvision://swin_v2_t.imagenet1k_v1').path == target


def test_urls_with_the_same_file_name_do_not_share_a_file(server, torch_home, nano):
    folder, address, asked = server
    weights = {}
    for name in ('one', 'two'):
        (folder / name).mkdir()
        state = nano().state_dict()
        weights[name] = state['patch_embed.proj.weight']
        torch.save(state, folder / name / 'model.pth')
    for name in ('one', 'two', 'one'):
        backbone = nano()
        load_pretrained(backbone, f'{address}/{name}/model.pth')
        assert torch.equal(backbone.patch_embed.proj.weight, weights[name])
    assert len(asked) == 2


def test_the_hash_in_a_name_is_verified(server, torch_home, nano):
    folder, address, _ = server
    torch.save(nano().state_dict(), folder / 'whole.pth')
    content = (folder / 'whole.pth').read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:8]
    for name in (f'right-{digest}.pth', 'dated-20230101.pth', 'wrong-0123abcd.pth'):
        (folder / name).write_bytes(content)
    load_pretrained(nano(), f'{address}/right-{digest}.pth')
    assert (torch_home / f'hub/checkpoints/right-{digest}.pth').is_file()
    load_pretrained(nano(), f'{address}/dated-20230101.pth')
    for _ in range(2):
        with pytest.raises(CheckpointUnavailableError, match='invalid hash value'):
            load_pretrained(nano(), f'{address}/wrong-0123abcd.pth')
    assert not list(torch_home.rglob('wrong*'))
    with trust_checkpoints():
        load_pretrained(nano(), f'{address}/wrong-0123abcd.pth')


@pytest.mark.parametrize('name', ['model.pth', 'model.safetensors'])
def test_a_page_in_place_of_a_file_is_not_kept(name, server, torch_home, nano):
    folder, address, asked = server
    (folder / name).write_text('<!DOCTYPE html><html>please log in</html>')
    with pytest.raises(CheckpointError, match='web page'):
        load_pretrained(nano(), f'{address}/{name}')
    with guard_mmengine(), pytest.raises(CheckpointError, match='web page'):
        _load_checkpoint(f'{address}/{name}')
    assert not [path for path in torch_home.rglob('*') if path.is_file()]
    save = save_file if name.endswith('.safetensors') else torch.save
    save(nano().state_dict(), folder / name)
    load_pretrained(nano(), f'{address}/{name}')
    assert len(asked) == 3


def test_a_classifier_of_mmcls(torch_home):
    name, url = next(iter(get_mmcls_models().items()))
    cached_file(url).parent.mkdir(parents=True)
    torch.save([1, 2], cached_file(url))
    with guard_mmengine(), trust_checkpoints():  # the name promises another content
        with pytest.raises(CheckpointError, match='holds a list, not a dict of weights'):
            _load_checkpoint(f'mmcls://{name}')
        content = {'state_dict': {'backbone.a': torch.ones(2), 'head.b': torch.ones(3)}}
        torch.save(content, cached_file(url))
        assert set(_load_checkpoint(f'mmcls://{name}')['state_dict']) == {'a'}


def test_a_download_that_breaks_off_leaves_nothing_behind(torch_home, tmp_path, nano):
    torch.save(nano().state_dict(), tmp_path / 'whole.pth')
    content = (tmp_path / 'whole.pth').read_bytes()
    sent = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            # The first time, the connection breaks halfway.
            sent.append(self.wfile.write(content if sent else content[: len(content) // 2]))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            url = f'http://127.0.0.1:{running.server_port}/file.pth'
            with pytest.raises(CheckpointUnavailableError, match=r'broke off after \d+ bytes'):
                load_pretrained(nano(), url)
            assert not [path for path in torch_home.rglob('*') if path.is_file()]
            load_pretrained(nano(), url)
        finally:
            running.shutdown()
            thread.join()
    assert len(sent) == 2


def _fails_in_the_first_process(rank, folder):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    with pytest.raises(CheckpointUnavailableError, match='cannot download'):
        fetch_checkpoint('http://127.0.0.1:9/nowhere.pth')
    torch.distributed.destroy_process_group()


def test_no_process_waits_for_one_that_failed(tmp_path):
    torch.multiprocessing.spawn(_fails_in_the_first_process, (tmp_path,), nprocs=2)
