"""The SwinV2 backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

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
    check_images,
    check_integer,
    check_out_indices,
    check_rate,
    check_resolution,
    drop_path_schedule,
    layer_depth,
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
from swinv2_mm.ops.execution import check_backend, tidy_memory
from swinv2_mm.ops.window_attention import Pair
from swinv2_mm.registry import register_everywhere

_BatchNorm = nn.modules.batchnorm._BatchNorm
# Layers whose default initialisation is the official one.
_SELF_RESETTING = (nn.Conv2d, nn.LayerNorm, nn.GroupNorm, _BatchNorm, WindowAttention)


@register_everywhere
class SwinTransformerV2(BaseModule):
    """Swin Transformer V2 (arXiv 2111.09883) as a backbone for dense prediction.

    Accepts images of any size and returns the feature maps of the stages in `out_indices`, at strides 4, 8, 16 and 32.
    Parameters have the names of the official implementation. Stages after the last one in `out_indices` are not built,
    so `DistributedDataParallel` does not need `find_unused_parameters`.

    Args:
        arch: `'tiny'`, `'small'`, `'base'`, `'large'`, `'huge'`, `'giant'`, a first letter of these, or a dict with
            `embed_dims`, `depths`, `num_heads` and optionally `extra_norm_every_n_blocks`.
        in_channels: Channels of the image.
        patch_size: Side of a patch in pixels, the stride of the first stage.
        window_size: Attention window in tokens: an int, a pair (height, width), or a list with one of these per stage.
        pretrained_window_sizes: Window that the loaded weights were trained with, in the same forms; 0 for
            `window_size`, `'auto'` for the one in the loaded file.
        mlp_ratio: Ratio of hidden width to input width of the MLPs.
        qkv_bias: Whether queries and values have a bias.
        drop_rate: Dropout after the patch embedding, attention and MLPs.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth rate of the last block; increases linearly from 0 at the first.
        patch_norm: Whether to normalise tokens after the patch embedding.
        out_indices: Stages whose feature maps are returned.
        norm_cfg: Norm of each returned map (`LN`, `BN`, `SyncBN`, `GN`), or `None` for none.
        frozen_stages: As in mmdet: -1 freezes nothing, 0 the patch embedding, n also the first n stages and
            their output norms.
        norm_eval: Whether batch norms among the output norms stay in eval mode.
        with_cp: Whether blocks recompute activations in the backward pass to save memory.
        attn_backend: See `swinv2_mm.ops.window_attention`.
        sequential_self_attention: Whether to process windows one by one: least memory, slowest.
        use_deformable_block: Whether to use `DeformableSwinBlock` in all stages except the first.
        use_checkpoint: Another name of `with_cp`.
        init_cfg: mmengine initialisation config. `dict(type='Pretrained', checkpoint=...)` calls
            `swinv2_mm.checkpoints.load_pretrained` and accepts its arguments.

    Attributes:
        out_channels: Channels of the returned feature maps.
        out_strides: Strides of the returned feature maps, in pixels.
        input_resolution: Height and width of the images as given to `update_resolution`; not a restriction.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of range or contradicts another.
    """

    init_cfg: Any  # mmengine keeps it
    # Overridden by other variants of SwinV2.
    checkpoint_family: ClassVar[str] = 'v2'
    archs: ClassVar[Mapping[str, Arch]] = ARCHS
    coordinates_have_unit: ClassVar[bool] = True  # by the training window, in the position bias
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
        check_integer('in_channels', in_channels)
        check_integer('patch_size', patch_size)
        if not mlp_ratio * self.arch.embed_dims >= 1:
            raise ValueError(f'mlp_ratio is {mlp_ratio!r}: expected a number > 0')
        check_rate('drop_rate', drop_rate)
        check_rate('attn_drop_rate', attn_drop_rate)
        check_rate('drop_path_rate', drop_path_rate)
        self.out_indices = check_out_indices(out_indices, num_stages)
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
                'since dropout of attention weights stores those of all windows'
            )
        self.input_resolution: Pair | None = None
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.out_channels = tuple(self.arch.dims[stage] for stage in self.out_indices)
        self.out_strides = tuple(patch_size * 2**stage for stage in self.out_indices)

        self.patch_embed = PatchEmbed(in_channels, self.arch.dims[0], patch_size, patch_norm)
        self.pos_drop = nn.Dropout(drop_rate)
        drop_paths = drop_path_schedule(drop_path_rate, self.arch.depths)
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
                backend=check_backend(attn_backend),
                sequential=sequential_self_attention,
                **self.stage_options(stage),
            )
            for stage in range(last + 1)
        )
        if norm_cfg is not None:
            for stage in self.out_indices:
                norm = build_output_norm(norm_cfg, self.arch.dims[stage])
                self.add_module(f'norm{stage}', norm)
        self.reset_parameters()
        self._freeze()

    def stage_options(self, stage: int) -> dict[str, Any]:
        """Return the arguments of `SwinStage` that another variant of SwinV2 sets."""
        return {}

    def reset_parameters(self) -> None:
        """Initialise all weights as the official implementation does, with residual branches at zero."""
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
        """Reset the weights, then apply `init_cfg`. Also initialises a model that was built on the meta device."""
        if self.is_init:
            super().init_weights()  # the same warning as mmengine's
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

    def _dump_init_info(self) -> None:
        """Log nothing: mmengine would list every tensor, before `init_weights` loads the weights and reports them."""

    def retarget(self, windows: Sequence[Pair]) -> None:
        """Set the training windows by which the position bias divides its coordinates.

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
        """Change the window size; possible at any time, also between training steps.

        Parameters stay the same objects with the same values, so optimizers, frozen stages and modes are not affected.
        The position bias keeps dividing its coordinates by the window that the weights were trained with.

        Args:
            new_window_size: See `window_size`.
            new_input_resolution: Height and width of the images in pixels. Only stored as `input_resolution`:
                windows are laid out for the size of every batch.

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
            # 0 stands for the previous window.
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
        # Saved with the weights, so that they can be loaded at any window size. Not a buffer: it must not be cast,
        # averaged or lost on the meta device.
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
        """Compute the feature maps of the stages in `out_indices`.

        Args:
            x: Images `(B, in_channels, H, W)`, any H and W >= 1.

        Returns:
            One map per stage, `(B, C_i, ceil(H / s_i), ceil(W / s_i))` with stride s_i.

        Raises:
            TypeError: If `x` is not a floating-point tensor.
            ValueError: If `x` has another shape.
        """
        check_images(x, self.in_channels)
        images, x = x, self.pos_drop(self.patch_embed(x))
        outs = []
        for stage, layer in enumerate(cast(Iterable[SwinStage], self.layers)):
            x = layer(x)
            if stage in self.out_indices:
                outs.append(apply_output_norm(getattr(self, f'norm{stage}', None), x))
            if layer.downsample is not None:
                x = layer.downsample(x)
        tidy_memory(images)
        return tuple(outs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of a parameter's layer, 0 for the patch embedding, and the number of layers."""
        return layer_depth(param_name.removeprefix(prefix), self.arch.depths)

    def train(self, mode: bool = True) -> SwinTransformerV2:
        """Set the training mode; modules under `frozen_stages` and `norm_eval` stay in eval mode."""
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
