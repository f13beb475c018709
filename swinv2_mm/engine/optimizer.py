"""Learning rates by layer, and weight decay for what it is meant for."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from swinv2_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

NO_DECAY = (
    *('q_bias', 'v_bias', 'cpb_mlp', 'logit_scale', 'meta_mlp', 'tau'),
    *('query_embed', 'query_feat', 'level_embed', 'level_encoding', 'label_embedding'),
)
"""Parts of the names of parameters that do not decay, like all of one dimension: biases and norms."""


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Build an optimizer whose learning rate decreases from the heads to the input; for detectors and segmentors alike.

    The learning rate of a layer of the backbone is multiplied by `layer_decay_rate` once for each layer after it, see
    `SwinTransformerV2.get_layer_depth`. Heads have the full rate. Biases, norms and what `NO_DECAY` lists do not decay.

    `paramwise_cfg` may have `layer_decay_rate` (default: 1) and the keys of mmengine's constructor. `lr_mult` of
    `custom_keys` is a further factor; `decay_mult` of `custom_keys` decides about the decay.

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
        self.paramwise_cfg.setdefault('layer_decay_rate', 1)
        super()._validate_cfg()
