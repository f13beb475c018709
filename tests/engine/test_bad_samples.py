"""A sample that cannot be read costs itself, not the run."""

import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.runner import Runner

from swinv2_mm.engine.bad_samples import BadSampleHook
from swinv2_mm.engine.errors import SetupError


class Numbers(BaseDataset):
    """Samples 0, 1, 2, ..., of which some raise an error."""

    def __init__(self, size, bad, **kwargs):
        self.size, self.bad = size, bad
        super().__init__(pipeline=[self.load], **kwargs)

    def load_data_list(self):
        return [dict(img_path=f'folder/{index}.png', number=index) for index in range(self.size)]

    def load(self, info):
        if info['number'] in self.bad:
            raise KeyError('mask')
        return dict(inputs=torch.tensor([float(info['number'])]))


class Sum(BaseModel):
    """A model that records what it gets."""

    def __init__(self):
        super().__init__()
        self.seen, self.weight = [], torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, mode):
        self.seen += [int(number) for number in torch.stack(list(inputs)).flatten()]
        if mode == 'loss':
            return dict(loss=(torch.stack(list(inputs)) * self.weight).sum())
        return [dict(number=number) for number in inputs]


def run(tmp_path, bad, limit, workers=0, size=40, part='train', loop='epoch'):
    """Train over 40 samples in batches of 4, and return what the model has seen and the log."""
    loader = dict(
        dataset=Numbers(size, bad),
        batch_size=4,
        num_workers=workers,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    settings = dict(
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=1)
        if loop == 'epoch'
        else dict(by_epoch=False, max_iters=10),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
    )
    if part == 'test':
        settings = dict(
            test_dataloader=loader,
            test_cfg=dict(),
            test_evaluator=dict(type='DumpResults', out_file_path=str(tmp_path / 'r.pkl')),
        )
    model = Sum()
    runner = Runner(
        model,
        str(tmp_path),
        custom_hooks=[BadSampleHook(limit)],
        default_hooks=dict(checkpoint=None),
        experiment_name=f'run{torch.seed()}',
        **settings,
    )
    try:
        getattr(runner, part)()
    finally:
        log = next(tmp_path.glob('*/*.log')).read_text()
    return model.seen, log


@pytest.mark.parametrize('loop', ['epoch', 'iterations'])
@pytest.mark.parametrize('workers', [0, 2])
def test_the_next_sample_takes_the_place(tmp_path, workers, loop):
    seen, log = run(tmp_path, {5, 6, 39}, 3, workers, loop=loop)
    assert seen == [*range(5), 7, 7, *range(7, 39), 0]
    assert "folder/5.png (sample 5 of train): KeyError: 'mask'; the next sample takes" in log
    assert '3 samples of train were replaced: folder/5.png, folder/6.png, folder/39.png' in log


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(('limit', 'allowed'), [(0, 0), (2, 2), (0.02, 1)])
def test_too_many_stop_the_run_with_a_name(tmp_path, limit, allowed, workers):
    with pytest.raises(SetupError, match=rf"folder/\d+.png .*: KeyError: 'mask'.*allows {allowed}"):
        run(tmp_path, {5, 6, 9}, limit, workers)


def test_a_share_of_a_small_set_is_at_least_one(tmp_path):
    assert run(tmp_path, {5}, 0.01)[0].count(6) == 2


def test_when_nothing_can_be_read_the_reason_is_given(tmp_path):
    with pytest.raises(RuntimeError, match=r"10 samples of train in a row .*folder/0.png: 'mask'"):
        run(tmp_path, set(range(40)), 1.0 * 40)


def test_a_test_stops_at_the_first(tmp_path):
    with pytest.raises(SetupError, match=r'folder/5.png \(sample 5 of test\).*allows 0'):
        run(tmp_path, {5}, 0.5, part='test')
