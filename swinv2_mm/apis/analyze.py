"""The command `analyze`: what a trained model confuses and misses, by class and by image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.apis.analysis import Analysis, analyze_objects
from swinv2_mm.apis.analysis_report import summarize, write_report
from swinv2_mm.apis.models import find_model
from swinv2_mm.apis.side_by_side import categories_of, read_picture
from swinv2_mm.datasets.checks.configured import leaf_datasets
from swinv2_mm.datasets.checks.read_files import find_step
from swinv2_mm.engine.config import complete_config, merge_options, set_work_dir
from swinv2_mm.engine.console import say
from swinv2_mm.engine.devices import describe_device, use_device
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.evaluation import dump_predictions
from swinv2_mm.engine.launch import EXIT_OK, checked_runner, guarded
from swinv2_mm.engine.runner import EvaluationRunner

_NOT_NEEDED = ('curves', 'metrics_file', 'sample_pictures', 'visualization')
"""Hooks of a training and evaluation that this run goes without."""


def analyze(
    model: str,
    *,
    config: str | None = None,
    split: str = 'test',
    results: str | None = None,
    score_thr: float = 0.3,
    out: str = 'analysis',
    worst: int = 12,
    device: str = 'auto',
    trust_checkpoint: bool = False,
    cfg_options: Sequence[str] = (),
) -> int:
    """Run a model on a data set with annotations and write a report.

    Args:
        model: See `swinv2_mm.apis.models.find_model`.
        config: The config file of a checkpoint that has none inside or beside it.
        split: The data: `'test'` or `'val'`, for `test_dataloader` or `val_dataloader` of the config.
        results: COCO results of a detector on these data; the model is not run.
        score_thr: Score from which objects of a detector count.
        out: Folder for the report.
        worst: Number of images to show.

    For the other arguments and the exit code, see `swinv2_mm.engine.launch.train`.
    """

    def run() -> int:
        if not 0 <= score_thr <= 1:
            raise SetupError(f'--score-thr {score_thr}: expected a number from 0 to 1.')
        if worst < 0:
            raise SetupError(f'--worst {worst}: expected 0 or more.')
        cfg, checkpoint = find_model(model, config)
        merge_options(cfg, cfg_options)
        if results and cfg.default_scope != 'mmdet':
            raise SetupError('--results takes the results of a detector, and this is none.')
        _use_split(cfg, split)
        set_work_dir(cfg, out)
        if not results:
            Path(out, 'predictions.json').unlink(missing_ok=True)  # of another model
        found, about = _analyze_model(cfg, checkpoint, device, results, score_thr, worst)
        say(summarize(found))
        say(f'report: {write_report(found, Path(out), f"{checkpoint}, {split} data, {about}")}')
        return EXIT_OK

    return guarded(run, trust=trust_checkpoint)


def _use_split(cfg: Config, split: str) -> None:
    """Let the test run on the data of a split."""
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        raise SetupError(f'The config has no {split}_dataloader: name another --split or --config.')
    cfg.test_dataloader = loader
    cfg.test_cfg = cfg.get('test_cfg') or ConfigDict()


def _analyze_model(
    cfg: Config, checkpoint: str, device: str, results: str | None, score_thr: float, worst: int
) -> tuple[Analysis, str]:
    """Return the analysis of a model, and what it is based on, in words."""
    cfg.test_evaluator, ann_file = [], ''
    if cfg.default_scope == 'mmdet':
        leaves = list(leaf_datasets(cfg.test_dataloader.dataset, 'test'))
        if len(leaves) != 1 or not str(leaves[0].ann_file).endswith('.json'):
            raise SetupError('The analysis of a detector needs one data set with a COCO json.')
        ann_file, leaf = str(leaves[0].ann_file), leaves[0]
        folder = leaf.folders.get('img') or leaf.root or ''
        file = results or str(Path(cfg.work_dir, 'predictions.json'))
        classes = (leaf.cfg.get('metainfo') or {}).get('classes')
        palette = (leaf.cfg.get('metainfo') or {}).get('palette')
        if not results:
            dump_predictions(cfg, file)
            if cfg.test_evaluator[0].type != 'CocoResultsFile':
                raise SetupError(
                    f'{ann_file} has no annotations: there is nothing to compare with.'
                )
            dataset = _run(cfg, checkpoint, device)
            classes, palette = dataset.metainfo['classes'], dataset.metainfo.get('palette')
        meta = {'classes': [classes] if isinstance(classes, str) else classes, 'palette': palette}
        return analyze_objects(ann_file, file, folder, meta, score_thr, worst), (
            f'score from {score_thr}, IoU from 0.5'
        )
    hook = AnalysisHook(worst)
    _run(cfg, checkpoint, device, hook)
    unit = 'pixels' if cfg.default_scope == 'mmseg' else 'images'
    if hook.analysis is None or not hook.analysis.matrix.sum():
        raise SetupError('The data have no ground truth: there is nothing to compare with.')
    return hook.analysis, f'{hook.analysis.matrix.sum()} {unit}'


def _run(cfg: Config, checkpoint: str, device: str, hook: Hook | None = None) -> Any:
    """Test the model with the evaluators of the config, and return the data set."""
    complete_config(cfg)
    for name in _NOT_NEEDED:
        cfg.default_hooks.pop(name, None)
    cfg.launcher, cfg.load_from, cfg.resume = 'none', checkpoint, False
    used = use_device(device, 'none')
    say(f'checkpoint: {checkpoint}; device: {describe_device(used)}')
    runner = checked_runner(cfg, used, EvaluationRunner, ('test',))
    say(f'data: {len(runner.test_dataloader.dataset)} images')
    if hook is not None:
        runner.register_hook(hook)
    runner.test()
    return runner.test_dataloader.dataset


class AnalysisHook(Hook):
    """Collect the analysis of a segmentor or classifier.

    Args:
        worst: Number of images to keep for pictures.
    """

    def __init__(self, worst: int) -> None:
        self.worst = worst
        self.analysis: Analysis | None = None

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Count one batch."""
        dataset = runner.test_dataloader.dataset
        if self.analysis is None:
            self.analysis = Analysis(categories_of(dataset.metainfo), self.worst)
        loader = find_step(dataset, 'LoadMultibandImage')
        rgb = getattr(runner.model.data_preprocessor, 'to_rgb', False)
        for index, sample in enumerate(outputs or ()):
            inputs = data_batch['inputs'][index]
            self.analysis.add_sample(sample, partial(read_picture, sample, loader, inputs, rgb))
