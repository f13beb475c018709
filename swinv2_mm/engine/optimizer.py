"""Learning rates by layer, and weight decay for what it is meant for."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from swinv2_mm.engine.errors import SetupError
from swinv2_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

NO_DECAY = (
    *('q_bias', 'v_bias', 'cpb_mlp', 'logit_scale', 'meta_mlp', 'tau'),
    *('query_embed', 'query_feat', 'level_embed', 'level_encoding', 'label_embedding'),
)
"""Parts of the names of parameters that do not decay, like all of one dimension: biases and norms."""
KEYS = ('layer_decay_rate', 'custom_keys', 'bias_lr_mult', 'dcn_offset_lr_mult', 'bypass_duplicate')
"""Keys of `paramwise_cfg`; those of the decay of norms and biases may also be 0, as they are here."""


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Build an optimizer whose learning rate decreases from the heads to the input; for detectors and segmentors alike.

    The learning rate of a layer of the backbone is multiplied by `layer_decay_rate` once for each layer after it, see
    `SwinTransformerV2.get_layer_depth`. Heads have the full rate. Biases, norms and what `NO_DECAY` lists do not decay.

    `paramwise_cfg` may have `layer_decay_rate` (default: 1) and the keys of mmengine's constructor, except for those of
    the decay of norms and biases. `lr_mult` of `custom_keys` is a further factor; `decay_mult` of `custom_keys` decides
    about the decay.

    Raises:
        SetupError: A key is unknown or has no effect, the rate is not a positive number, or the backbone has no layers.

    Example:
        >>> optim_wrapper = dict(
        ...     constructor='swinv2_mm.LayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(layer_decay_rate=0.95))
    """

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = '', **options: Any
    ) -> None:
        """Add a group for each parameter; called for the model and by mmengine for each of its modules."""
        super().add_params(params, module, prefix=prefix, **options)
        if prefix:
            return
        names = {parameter: name for name, parameter in module.named_parameters()}
        backbone, rate = (
            getattr(module, 'backbone', None),
            self.paramwise_cfg.get('layer_decay_rate', 1),
        )
        if rate != 1 and not hasattr(backbone, 'get_layer_depth'):
            raise SetupError(
                f'layer_decay_rate={rate} needs a backbone of swinv2_mm, and this is {type(backbone).__name__}.'
            )
        kinds: Counter[tuple[float, float]] = Counter()
        for group in params:
            (parameter,) = group['params']
            name = names[parameter]
            group.setdefault('lr', self.base_lr)
            if name.startswith('backbone.') and rate != 1:
                depth, count = backbone.get_layer_depth(name, 'backbone.')  # type: ignore[union-attr]
                group['lr'] *= rate ** (count - 1 - depth)
            if self.base_wd is not None:
                group.setdefault('weight_decay', self.base_wd)
                exempt = parameter.ndim <= 1 or any(part in name for part in NO_DECAY)
                if exempt and 'decay_mult' not in group:
                    group['weight_decay'] = 0.0
            kinds[group['lr'], group.get('weight_decay', 0.0)] += 1
        listed = [f'{lr:.3g} / {wd:.3g}: {n}' for (lr, wd), n in sorted(kinds.items())]
        print_log(f'learning rate / weight decay: tensors: {"; ".join(listed)}', 'current')

    def _validate_cfg(self) -> None:
        # Without options mmengine's constructor would not call `add_params`.
        rate = self.paramwise_cfg.setdefault('layer_decay_rate', 1)
        for key, value in self.paramwise_cfg.items():
            if key not in KEYS and not (key.endswith('_decay_mult') and value == 0):
                raise SetupError(
                    f'paramwise_cfg of LayerDecayOptimWrapperConstructor has {key}={value!r}: it takes '
                    f'{", ".join(KEYS)}. Norms and biases do not decay; decay_mult of custom_keys changes that.'
                )
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not rate > 0:
            raise SetupError(f'layer_decay_rate={rate!r}: expected a number above 0, such as 0.95.')
        super()._validate_cfg()
