"""The SwinV2 backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from swinv2_mm.checkpoints import (
    WINDOWS_KEY,
    adopt_stored_windows,
    load_pretrained,
    split_pretrained,
    stored_windows,
)
from swinv2_mm.models.backbones.arch import (
    ARCHS,
    Arch,
    Pair,
    check_resolution,
    per_stage_windows,
    resolve_arch,
)
from swinv2_mm.models.layers import (
    DeformableSwinBlock,
    PatchEmbed,
    SwinBlock,
    SwinStage,
    WindowAttention,
    apply_output_norm,
    build_output_norm,
)
from swinv2_mm.ops.llvm.runtime import is_plain
from swinv2_mm.ops.memory import keep_freed_memory
from swinv2_mm.ops.window_attention import check_backend
from swinv2_mm.registry import register_everywhere

_BatchNorm = nn.modules.batchnorm._BatchNorm
# Layers whose own defaults are the official initialisation.
_SELF_RESETTING = (nn.Conv2d, nn.LayerNorm, nn.GroupNorm, _BatchNorm, WindowAttention)


@register_everywhere
class SwinTransformerV2(BaseModule):
    """Swin Transformer V2 (arXiv 2111.09883) as a backbone for dense prediction.

    Takes images of any size and returns the maps of the stages asked for, at strides 4, 8, 16 and 32. Parameters
    have the names of the official implementation. Stages behind the last one asked for are not built, so that every
    parameter takes part in training and `DistributedDataParallel` needs no search for unused ones.

    Args:
        arch: `'tiny'`, `'small'`, `'base'`, `'large'`, `'huge'`, `'giant'`, a first letter of these, or a dict with
            `embed_dims`, `depths`, `num_heads` and optionally `extra_norm_every_n_blocks`.
        in_channels: Channels of the image.
        patch_size: Side of a patch in pixels, the stride of the first stage.
        window_size: Attention window in tokens: an int, a pair (height, width), or one of these per stage.
        pretrained_window_sizes: Window at which the loaded weights were trained, in the same forms; 0 for
            `window_size` itself, `'auto'` for what the loaded file says.
        mlp_ratio: Hidden width of the MLPs over their input.
        qkv_bias: Whether queries and values have a bias.
        drop_rate: Dropout after the patch embedding, attention and MLPs.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0 at the first.
        patch_norm: Whether tokens are normalised after the patch embedding.
        out_indices: Stages whose maps are returned.
        norm_cfg: Norm of each returned map (`LN`, `BN`, `SyncBN`, `GN`), or `None` for none.
        frozen_stages: As in mmdet: -1 freezes nothing, 0 the patch embedding, n also the first n stages and
            their output norms.
        norm_eval: Whether batch norms among the output norms stay in eval mode; LayerNorm has no such state.
        with_cp: Whether blocks trade compute for memory by recomputing activations in the backward pass; default no.
        attn_backend: See `swinv2_mm.ops.window_attention`.
        sequential_self_attention: Whether windows are attended one after the other: least memory, slowest.
        use_deformable_block: Whether the blocks of all stages but the first are `DeformableSwinBlock`.
        use_checkpoint: Another name of `with_cp`.
        init_cfg: mmengine initialisation config. `dict(type='Pretrained', checkpoint=...)` goes through
            `swinv2_mm.checkpoints.load_pretrained` and takes its arguments.

    Attributes:
        out_channels: Channels of the returned maps.
        out_strides: Their strides in pixels.
        input_resolution: Height and width of the images, where `update_resolution` was told; images of any other size
            are as welcome.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of range or contradicts another.
    """

    init_cfg: Any  # mmengine keeps it
    # What another family of SwinV2 does in its own way.
    checkpoint_family: ClassVar[str] = 'v2'
    archs: ClassVar[Mapping[str, Arch]] = ARCHS
    coordinates_have_unit: ClassVar[bool] = (
        True  # does the position bias depend on the training window?
    )
    init_values: float | None = 0.0

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 'tiny',
        in_channels: int = 3,
        patch_size: int = 4,
        window_size: int | Sequence[Any] = 8,
        pretrained_window_sizes: int | str | Sequence[Any] = 'auto',
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        norm_cfg: Mapping[str, Any] | None = dict(type='LN'),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool | None = None,
        attn_backend: str = 'auto',
        sequential_self_attention: bool = False,
        use_deformable_block: bool = False,
        use_checkpoint: bool | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = resolve_arch(arch, self.archs)
        num_stages = len(self.arch.depths)
        windows = per_stage_windows(window_size, num_stages, 'window_size', minimum=1)
        auto = pretrained_window_sizes == 'auto'
        pretrained = per_stage_windows(
            0 if auto else pretrained_window_sizes, num_stages, 'pretrained_window_sizes', minimum=0
        )
        self.window_sizes: tuple[Pair, ...] = tuple(windows)
        self.pretrained_window_sizes: tuple[Pair, ...] | Literal['auto'] = (
            'auto' if auto else tuple(pretrained)
        )
        self._position_windows = tuple(
            (given[0] or own[0], given[1] or own[1]) for given, own in zip(pretrained, windows)
        )
        for name, count in (('in_channels', in_channels), ('patch_size', patch_size)):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f'{name} is {count!r}: expected an integer >= 1')
        if not mlp_ratio * self.arch.embed_dims >= 1:
            raise ValueError(f'mlp_ratio is {mlp_ratio!r}: expected a number > 0')
        for name, rate in (
            ('drop_rate', drop_rate),
            ('attn_drop_rate', attn_drop_rate),
            ('drop_path_rate', drop_path_rate),
        ):
            if not 0.0 <= rate < 1.0:
                raise ValueError(f'{name} is {rate!r}: expected a probability in [0, 1)')
        self.out_indices = _check_out_indices(out_indices, num_stages)
        if frozen_stages not in range(-1, num_stages + 1):
            raise ValueError(
                f'frozen_stages is {frozen_stages!r}: expected -1 (nothing) to {num_stages} (all stages)'
            )
        if None not in (with_cp, use_checkpoint) and with_cp != use_checkpoint:
            raise ValueError(
                f'with_cp is {with_cp} and use_checkpoint is {use_checkpoint}: they are two names of one option, '
                'give one of them'
            )
        if sequential_self_attention and (attn_drop_rate or attn_backend == 'reference'):
            raise ValueError(
                f'sequential_self_attention=True with attn_drop_rate={attn_drop_rate} and '
                f"attn_backend={attn_backend!r}: it needs attn_drop_rate=0 and another attn_backend, such as 'auto', "
                'since what drops attention weights keeps those of all windows'
            )
        self.input_resolution: Pair | None = None
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.out_channels = tuple(self.arch.dims[stage] for stage in self.out_indices)
        self.out_strides = tuple(patch_size * 2**stage for stage in self.out_indices)

        self.patch_embed = PatchEmbed(in_channels, self.arch.dims[0], patch_size, patch_norm)
        self.pos_drop = nn.Dropout(drop_rate)
        drop_paths = _drop_path_schedule(drop_path_rate, self.arch.depths)
        last = max(self.out_indices)
        self.layers = nn.ModuleList(
            SwinStage(
                self.arch.dims[stage],
                self.arch.depths[stage],
                drop_path=drop_paths[stage],
                downsample=stage < last,
                extra_norm_every_n_blocks=self.arch.extra_norm_every_n_blocks,
                with_cp=bool(with_cp or use_checkpoint),
                block=DeformableSwinBlock if use_deformable_block and stage else SwinBlock,
                num_heads=self.arch.num_heads[stage],
                window_size=windows[stage],
                pretrained_window_size=pretrained[stage],
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                attn_backend=check_backend(attn_backend),
                sequential=sequential_self_attention,
                **self.stage_options(stage),
            )
            for stage in range(last + 1)
        )
        if norm_cfg is not None:
            for stage in self.out_indices:
                norm = build_output_norm(dict(norm_cfg), self.arch.dims[stage])
                self.add_module(f'norm{stage}', norm)
        self.reset_parameters()
        self._freeze()

    def stage_options(self, stage: int) -> dict[str, Any]:
        """Arguments of `SwinStage` that another family of SwinV2 sets."""
        return {}

    def reset_parameters(self) -> None:
        """Initialise all weights as the official implementation does, the residual branches at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, _SELF_RESETTING):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, SwinBlock):
                module.reset_branches(self.init_values)

    def init_weights(self) -> None:
        """Reset the weights, then apply `init_cfg`. Gives values to a model that was built on the meta device."""
        if self.is_init:
            super().init_weights()  # mmengine's word on a second call
            return
        self.reset_parameters()
        given = self.init_cfg
        self.init_cfg, pretrained = split_pretrained(given)
        try:
            super().init_weights()
        finally:
            self.init_cfg = given
        for options in pretrained:
            load_pretrained(self, **options)

    def retarget(self, windows: Sequence[Pair]) -> None:
        """Divide the coordinates of the position bias by other windows: those of the weights just loaded.

        Args:
            windows: `(height, width)` in tokens, one per stage.
        """
        self._position_windows = tuple(windows)
        for layer, window in zip(cast(Iterable[SwinStage], self.layers), windows):
            for block in cast(Iterable[SwinBlock], layer.blocks):
                block.attn.position_mlp.retarget(window)

    def update_resolution(
        self, new_window_size: int | Sequence[Any], new_input_resolution: Any = None
    ) -> None:
        """Attend in windows of another size from now on: before, between or after steps of a training.

        Parameters stay the same objects with the same values on the same device, so optimizers, frozen stages and modes
        are untouched. The position bias keeps the unit of its coordinates, the window that the weights were trained
        at until now, so they keep their meaning at the new one.

        Args:
            new_window_size: As `window_size`.
            new_input_resolution: Height and width of the images to come, in pixels. Only kept as
                `input_resolution`: windows are laid out anew for the size of every batch.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is out of range.
        """
        windows = per_stage_windows(
            new_window_size, len(self.arch.depths), 'new_window_size', minimum=1
        )
        resolution = None
        if new_input_resolution is not None:
            resolution = check_resolution(new_input_resolution, 'new_input_resolution')
        if self.coordinates_have_unit and self.pretrained_window_sizes != 'auto':
            # 0, the model's own window, meant the one until now.
            self.pretrained_window_sizes = tuple(
                (given[0] or own[0], given[1] or own[1])
                for given, own in zip(self.pretrained_window_sizes, self.window_sizes)
            )
        for layer, window in zip(cast(Iterable[SwinStage], self.layers), windows):
            for block in cast(Iterable[SwinBlock], layer.blocks):
                block.resize(window)
        self.window_sizes = tuple(windows)
        self.input_resolution = resolution

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        # Weights mean nothing without the unit of their coordinates: it travels with them, so that they run at any
        # window. No buffer, since nothing may cast it, average it or lose it on the meta device.
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.coordinates_have_unit:
            destination[prefix + WINDOWS_KEY] = stored_windows(self._position_windows)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        stored = state_dict.get(prefix + WINDOWS_KEY)
        if stored is not None:
            configured, own = self.pretrained_window_sizes, self.window_sizes
            self.retarget(adopt_stored_windows(stored, configured, own, len(self.layers)))
            state_dict = {k: v for k, v in state_dict.items() if k != prefix + WINDOWS_KEY}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the stages in `out_indices`.

        Args:
            x: Images `(B, in_channels, H, W)`, any H and W >= 1.

        Returns:
            Per stage `(B, C_i, ceil(H / s_i), ceil(W / s_i))`, s_i its stride.

        Raises:
            TypeError: If `x` is no floating-point tensor.
            ValueError: If its shape is another.
        """
        self._check_input(x)
        if x.device.type == 'cpu' and is_plain(x):
            keep_freed_memory()
        x = self.pos_drop(self.patch_embed(x))
        outs = []
        for stage, layer in enumerate(cast(Iterable[SwinStage], self.layers)):
            x = layer(x)
            if stage in self.out_indices:
                outs.append(apply_output_norm(getattr(self, f'norm{stage}', None), x))
            if layer.downsample is not None:
                x = layer.downsample(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> SwinTransformerV2:
        """Switch to training mode, except for what `frozen_stages` and `norm_eval` keep in eval mode."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen: list[nn.Module] = [
            self.patch_embed,
            self.pos_drop,
            *self.layers[: self.frozen_stages],
        ]
        norms = (getattr(self, f'norm{stage}', None) for stage in range(self.frozen_stages))
        for module in (*frozen, *(norm for norm in norms if norm is not None)):
            module.eval()
            module.requires_grad_(False)

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not torch.is_floating_point(x):
            got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f'expected a floating-point tensor of images, got {got}: normalise images with a data '
                'preprocessor first'
            )
        if x.dim() != 4:
            raise ValueError(
                f'expected images of shape (B, {self.in_channels}, H, W), got {tuple(x.shape)}: add the batch '
                'axis with x[None]'
            )
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f'expected {self.in_channels} channels, got {x.shape[1]} in {tuple(x.shape)}: set '
                f'in_channels={x.shape[1]} or convert the images'
            )
        if 0 in x.shape:
            raise ValueError(
                f'got an empty batch of shape {tuple(x.shape)}: every side must be >= 1'
            )


def _check_out_indices(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    if isinstance(out_indices, (int, str)):
        raise TypeError(f'out_indices is {out_indices!r}: expected a list of stages')
    indices = tuple(out_indices)
    if (
        not indices
        or list(indices) != sorted(set(indices))
        or set(indices) - set(range(num_stages))
    ):
        raise ValueError(
            f'out_indices is {out_indices!r}: expected different stages in rising order, out of 0 to '
            f'{num_stages - 1}'
        )
    return indices


def _drop_path_schedule(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates per stage and block, rising linearly from 0 to `rate` (plain floats: the meta device has none)."""
    steps = iter(range(sum(depths)))
    last = max(sum(depths) - 1, 1)
    return [[rate * next(steps) / last for _ in range(depth)] for depth in depths]
