"""Small backbones of every kind."""

from swinv2_mm import SwinTransformerV2, SwinTransformerV2CR

ARCH = dict(embed_dims=16, depths=(2, 1), num_heads=(2, 2))
IMAGE = (1, 3, 35, 49)
BACKBONES = {
    'plain': (SwinTransformerV2, {}),
    'extra norm': (SwinTransformerV2, dict(arch=dict(**ARCH, extra_norm_every_n_blocks=1))),
    'CR': (SwinTransformerV2CR, dict(stage_norms='all')),
}


def build(kind='plain', **options):
    backbone, more = BACKBONES[kind]
    options = {
        'arch': ARCH,
        'window_size': 4,
        'out_indices': (0, 1),
        'drop_path_rate': 0.0,
        **more,
        **options,
    }
    return backbone(**options)
