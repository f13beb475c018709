"""What the tests of the tools share: configs, fast options, and what the terminal must not show."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

DETECTION = str(next(ROOT.glob('configs/quickstart/mask-rcnn_*.py')))
SEGMENTATION = str(next(ROOT.glob('configs/quickstart/*upernet*.py')))

NO_WORKERS = (
    'train_dataloader.batch_size=2',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
)
"""Options for `--cfg-options`: no processes for four pictures."""

FAST = (*NO_WORKERS, 'default_hooks.curves=None', 'default_hooks.sample_pictures=None')
"""The same, without pictures of the training."""

NOISE = (
    'System environment',
    'Runtime environment',
    'Could not import OneDL',
    'Hooks will be executed',
    'paramwise_options',
    'deprecated',
    'Warning',
    'weights_only',
)
"""What the libraries log in the course of a run, and a user need not see."""


def log_of(work_dir):
    """The text of the newest log file of a work directory."""
    logs = sorted(Path(work_dir).glob('*/*.log'))
    assert logs, f'no log in {work_dir}'
    return logs[-1].read_text()
