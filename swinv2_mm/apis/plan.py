"""The command `plan`: the memory that a training needs on a GPU, and the largest batch that fits."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import OPTIMIZERS
from mmengine.structures import PixelData
from torch import nn

from swinv2_mm.apis.models import build_model
from swinv2_mm.apis.rehearsal import Rehearsal
from swinv2_mm.datasets.checks.configured import ConfiguredData, as_list
from swinv2_mm.datasets.checks.model import check_model
from swinv2_mm.engine.config import dicts_in, load_config
from swinv2_mm.engine.console import say
from swinv2_mm.engine.devices import is_sharded
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.hooks import return_fp32
from swinv2_mm.engine.launch import EXIT_OK, guarded
from swinv2_mm.models.layers import SwinBlock

CARDS = (24, 40, 80, 141)
"""Memory of GPUs in GB, of 1e9 bytes."""
RESERVE, RESERVED_SHARE = 1.5e9, 0.05
"""Bytes, and share of a card, left for the CUDA context, workspaces of convolutions, NCCL and fragmentation."""
OBJECTS = 20
"""Objects in each image of a detector."""
_BATCHES = (2, 3)  # one image cannot pass a batch norm on a map that is pooled to one pixel
_SIZE = (512, 512)  # if the config does not say
_GB, _MOST = 1e9, 10**6
_AUTOCAST = 'swinv2_mm.AutocastOptimWrapper'


@dataclass(frozen=True)
class Plan:
    """Memory of one GPU in a training step, in bytes.

    Args:
        size: Height and width of the images.
        optimizer: Its class.
        parameters: Number of parameters of the model.
        flops: Of the forward pass, for one image.
        weights: Parameters and buffers on this GPU; also `averaged` ones, those `exchanged` with other GPUs at the
            peak, and the `states` of the optimizer.
        gradients: Gradients of the parameters, at the end of the backward pass.
        peaks: For moments of a step, bytes of all other tensors with the gradients that exist by then, of 2 images and
            for each further one, and bytes of these gradients.
    """

    size: tuple[int, int]
    optimizer: str
    parameters: int
    flops: int
    weights: int
    averaged: int
    exchanged: int
    states: int
    gradients: int
    peaks: tuple[tuple[int, int, int], ...]

    def total(self, batch: int) -> int:
        """Return the peak with `batch` images."""
        kept = self.weights + self.averaged + self.exchanged + self.states
        return kept + self._peak(batch)[0]

    def _peak(self, batch: int) -> tuple[int, int]:
        """Return the bytes of gradients, activations and temporaries at the peak, and those of gradients."""
        more = batch - _BATCHES[0]
        step = max((two + more * each, gradients) for two, each, gradients in self.peaks)
        return max(step, (self.gradients + self.weights, self.gradients))  # the optimizer's update

    def largest_batch(self, card: float) -> int:
        """Return the number of images that fit into a card of so many GB, less the reserve."""
        room = card * _GB * (1 - RESERVED_SHARE) - RESERVE
        return bisect_right(range(1, _MOST), room, key=self.total)

    def rows(self, batch: int) -> dict[str, int]:
        """Return what is there at the peak with `batch` images; the sum is `total(batch)`."""
        present = {
            'parameters and buffers': self.weights,
            'averaged parameters': self.averaged,
            'optimizer states': self.states,
            'exchange with other GPUs': self.exchanged,
            'gradients that exist at the peak': self._peak(batch)[1],
        }
        rest = self.total(batch) - sum(present.values())
        return present | {f'activations and temporaries, batch of {batch}': rest}


def plan_training(
    cfg: Config,
    where: str,
    *,
    size: tuple[int, int] | None = None,
    precision: str = 'fp32',
    strategy: str = 'none',
    gpus: int = 1,
) -> Plan:
    """Rehearse training steps of a config; see `Rehearsal`.

    Args:
        cfg: The config, which messages call `where`.
        where: Path or name of the config.
        size: Height and width of the images; by default what the training pipeline gives.
        precision: `'fp32'`, or `'bf16'` or `'fp16'` for autocast, with parameters in fp32.
        strategy: `'none'`, `'ddp'`, or `'fsdp'`, which divides parameters, gradients and optimizer states.
        gpus: Number of GPUs.

    Raises:
        SetupError: If the model cannot be built, or its training step does not run on made-up data.
    """
    rehearsal, used = Rehearsal(), size or train_size(cfg) or _SIZE
    with rehearsal, rehearsal.skipping():
        model: Any = build_model(cfg, where).train()
    if precision != 'fp32':
        return_fp32(model)
        for part in model.modules():
            if isinstance(part, (nn.LayerNorm, nn.GroupNorm)):  # autocast on GPUs, not on CPUs
                part.register_forward_pre_hook(lambda part, inputs: (inputs[0].float(),))
    for name in ('backbone', 'neck'):
        if isinstance(getattr(model, name, None), nn.Module):
            rehearsal.skip_inside(getattr(model, name))
    share = 1 / gpus if strategy == 'fsdp' else 1.0
    for weight in model.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda w: rehearsal.add_gradient(w, share))
    steps = []
    try:
        for batch in _BATCHES:
            flops, padded = _step(model, rehearsal, cfg, batch, used, precision)
            steps.append(rehearsal.peaks)
    except Exception as error:  # of any library
        reason = f'{type(error).__name__}: {(str(error).strip().splitlines() or [""])[0]}'
        raise SetupError(f'A training step of {where} cannot be planned: {reason}') from error
    weights = sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    trained, exchanged = _bytes(model), 0
    if strategy == 'ddp' and gpus > 1:
        exchanged = trained  # the buckets of gradients
    elif strategy == 'fsdp':
        blocks = [_bytes(part) for part in model.modules() if isinstance(part, SwinBlock)]
        # The rest of the model stays gathered, with its gradients; of blocks, there are the current and the next one.
        outside = trained - sum(blocks)
        exchanged = round(2 * outside * (1 - share)) + 4 * max(blocks, default=0)
    full, hooks = rehearsal.gradients, as_list(cfg.get('custom_hooks'))
    if cfg.optim_wrapper.get('accumulative_counts', 1) > 1:
        # The gradients of earlier batches exist all the time.
        steps = [[(peak + full - now, full) for peak, now in step] for step in steps]
    return Plan(
        size=padded,
        optimizer=str(cfg.optim_wrapper.optimizer.type),
        parameters=sum(x.numel() for x in model.parameters()),
        flops=flops // _BATCHES[-1],
        weights=round(weights * share),
        averaged=weights if any('EMA' in str(hook.get('type')) for hook in hooks) else 0,
        exchanged=exchanged,
        states=round(trained * share * _states(cfg)),
        gradients=full,
        peaks=tuple((two, max(0, more - two), now) for (two, _), (more, now) in zip(*steps)),
    )


def _bytes(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters() if weight.requires_grad)


def _states(cfg: Config) -> float:
    """Return the size of the optimizer's states, as a multiple of that of the parameters."""
    weight = nn.Parameter(torch.zeros(64, 64))
    optimizer = OPTIMIZERS.build(dict(cfg.optim_wrapper.optimizer, params=[weight]))
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    kept = (x for x in optimizer.state[weight].values() if isinstance(x, torch.Tensor))
    return sum(x.nbytes for x in kept if x.dim()) / weight.nbytes


def _step(
    model: Any, rehearsal: Rehearsal, cfg: Config, batch: int, size: tuple[int, int], precision: str
) -> tuple[int, tuple[int, int]]:
    """Rehearse the passes of a step; return the FLOPs of the forward pass, and the size of the padded images."""
    channels = getattr(model.backbone, 'in_channels', 3)
    data = dict(
        inputs=[torch.zeros(channels, *size, dtype=torch.uint8) for _ in range(batch)],
        data_samples=_samples(cfg, batch, size),
    )
    half = precision != 'fp32'
    rehearsal.reset()
    with rehearsal:
        with torch.autocast('cpu', torch.bfloat16, enabled=half):
            data = model.data_preprocessor(data, True)
            losses = model(**data, mode='loss')
        loss, _ = model.parse_losses(losses)
        flops, size = rehearsal.flops, tuple(data['inputs'].shape[2:])
        with rehearsal.skipping():
            loss.backward()
    model.zero_grad()
    return flops, size


def _samples(cfg: Config, batch: int, size: tuple[int, int]) -> list[Any]:
    """Return made-up ground truth for images."""
    labels = torch.zeros(1, *size, dtype=torch.long)
    if cfg.default_scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        return [DataSample().set_gt_label(0) for _ in range(batch)]
    if cfg.default_scope == 'mmseg':
        from mmseg.structures import SegDataSample

        about = dict(metainfo=dict(img_shape=size))
        return [SegDataSample(gt_sem_seg=PixelData(data=labels), **about) for _ in range(batch)]
    from mmdet.testing import demo_mm_inputs

    steps = [step for step in dicts_in(cfg.train_dataloader) if 'Load' in str(step.get('type'))]
    parts = {
        f'with_{key}': any(step.get(name) or 'Panoptic' in step.type for step in steps)
        for key, name in (('mask', 'with_mask'), ('semantic', 'with_seg'))
    }
    shape = (3, *size)
    samples = demo_mm_inputs(batch, shape, [OBJECTS] * batch, 2, **parts)['data_samples']
    for sample in samples:
        sample.gt_instances.labels.zero_()
        sample.ignored_instances = sample.ignored_instances[:0]
    return samples


def train_size(cfg: Config) -> tuple[int, int] | None:
    """Return height and width of the largest images of the training pipeline, the height being the shorter side.

    None if the pipeline does not state them.
    """
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    for part in dicts_in(dataset):  # wrappers first
        if found := _last_size(part.get('pipeline') or (), cfg.default_scope):
            return found
    return None


def _last_size(steps: Any, scope: str) -> tuple[int, int] | None:
    """Return the size after the steps of a pipeline."""
    found = None
    for step in steps:
        if inner := step.get('transforms'):
            branches = inner if isinstance(inner[0], (list, tuple)) else [inner]
            sizes = [size for branch in branches if (size := _last_size(branch, scope))]
            found = max(sizes, key=math.prod, default=found)
            continue
        crop = step.get('crop_size')
        scale = crop or step.get('scales') or step.get('scale') or step.get('size')
        if scale and not str(step.get('crop_type')).startswith('relative'):
            several = isinstance(scale, (list, tuple)) and not isinstance(scale[0], int)
            pairs = [
                (s, s) if isinstance(s, int) else tuple(s) for s in (scale if several else [scale])
            ]
            pair = max(pairs, key=math.prod)
            is_height_first = crop and scope != 'mmdet'
            found = pair if is_height_first else pair[::-1]
            if step.get('keep_ratio'):
                found = tuple(sorted(pair))
            largest = max(step.get('ratio_range') or (1.0,)) if not crop else 1.0
            found = int(found[0] * largest), int(found[1] * largest)
        elif found and (divisor := step.get('size_divisor')):
            found = -(-found[0] // divisor) * divisor, -(-found[1] // divisor) * divisor
    return found


def plan(
    config: str,
    *,
    gpus: int = 1,
    precision: str | None = None,
    strategy: str | None = None,
    batch: int | None = None,
    size: tuple[int, int] | None = None,
    cfg_options: Sequence[str] = (),
) -> int:
    """Print what a training of a config needs on each GPU.

    The arguments are the options of `tools/plan.py`; for the exit code, see `swinv2_mm.engine.launch.train`.
    """

    def run() -> int:
        cfg = load_config(config, cfg_options)
        for key in ('train_dataloader', 'optim_wrapper'):
            if not cfg.get(key):
                raise SetupError(f'The config {config} defines no {key}: there is nothing to plan.')
        images = cfg.train_dataloader.get('batch_size', 1) if batch is None else batch
        if not isinstance(images, int) or min(gpus, images) < 1:
            raise SetupError(f'The batch ({images}) and --gpus ({gpus}) are whole numbers from 1.')
        wrapper = cfg.optim_wrapper
        half = 'bf16' if wrapper.get('type') in ('AmpOptimWrapper', _AUTOCAST) else 'fp32'
        used = precision or half
        several = 'fsdp' if is_sharded(cfg.get('model_wrapper_cfg')) else 'ddp'
        how = strategy or (several if gpus > 1 else 'none')
        if how == 'none' and gpus > 1:
            raise SetupError('--strategy none is for one GPU: use ddp or fsdp.')
        if size is None and train_size(cfg) is None:
            say(f'the config does not state the size of the images: {_SIZE} is assumed, see --size')
        try:
            found = plan_training(cfg, config, size=size, precision=used, strategy=how, gpus=gpus)
        except Exception as error:  # settings of the optimizer or the model, by any library
            reason = f'{config} cannot be planned: {type(error).__name__}: {error}'
            if isinstance(error, SetupError):
                reason = str(error)
            if 'Cannot allocate memory' in reason:
                reason += '. Memory that is never touched needs address space: lift the limit with ulimit -v unlimited.'
            raise SetupError('\n'.join(_mistakes(cfg)) or reason) from error
        print(_table(found, images, f'{used}, {how}, {gpus} GPU{"s" * (gpus > 1)}'))
        return EXIT_OK

    return guarded(run)


def _mistakes(cfg: Config) -> list[str]:
    """Return the errors that the checks before a training find in the model."""
    try:
        findings = list(check_model(ConfiguredData(cfg, ())))
    except Exception:  # as in the step that has failed
        return []
    return [str(finding) for finding in findings if finding.severity == 'error']


def _table(found: Plan, batch: int, setting: str) -> str:
    height, width = found.size
    rows = {name: value for name, value in found.rows(batch).items() if value}
    rows['peak'] = found.total(batch)
    rows['gradients after the backward pass'] = found.gradients
    rows['each further image'] = found.total(batch + 1) - found.total(batch)
    lines = [
        f'a training step with images of {height} x {width} pixels (height x width), {setting}, {found.optimizer}',
        f'{found.parameters:,} parameters; forward pass {found.flops / _GB:,.1f} GFLOPs per image',
        '',
        f'{"of each GPU":44}{"GB":>8}',
        *(f'{name:44}{value / _GB:8.3f}' for name, value in rows.items()),
        '',
        f'{"card":44}{"largest batch per GPU":>8}',
        *(f'{f"{card} GB":44}{found.largest_batch(card) or "none":>8}' for card in CARDS),
        f'of each card, {RESERVE / _GB:g} GB and {RESERVED_SHARE:.0%} are left for CUDA, workspaces and fragmentation',
    ]
    return '\n'.join(lines)
