"""Random SwinV2 models of other libraries, their stage features and checkpoint files.

transformers and mmpretrain cannot share an environment, and mmdet imports mmpretrain if it is installed. These two are
installed in separate folders (`pip install --target`) below `SWINV2_MM_PEERS`, and run in a separate process with this
file as its program.
"""

import functools
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

SIZES = {
    'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    'base': dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
}
CASES = [(arch, window) for arch in SIZES for window in (8, 16)]
ELSEWHERE = ('transformers', 'mmpretrain')


def stage_windows(library, window):
    """At 256 x 256 the last map has 8 x 8 tokens; only torchvision pads it, so its image is larger."""
    return [16, 16, 16, 8] if window == 16 and library != 'torchvision' else [window] * 4


def image_side(library, window):
    return 512 if library == 'torchvision' and window == 16 else 256


def image_for(library, window):
    side = image_side(library, window)
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))


def give_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Set random non-zero weights with the scale of trained ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if 'logit_scale' in name:
                parameter.copy_(math.log(10.0) + 0.1 * noise)
            elif 'cpb_mlp' in name or 'position_bias_mlp' in name:
                parameter.copy_(noise / (1 if parameter.shape[-1] == 2 else 16))
            elif parameter.dim() == 1 and name.endswith('weight'):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.02 * noise)
    return model.eval()


def timm_model(arch, window, **settings):
    import timm

    return timm.create_model(f'swinv2_{arch}_window{window}_256', **settings)


def timm_features(model, image):
    x = model.patch_embed(image)
    maps = []
    for layer in model.layers:
        x = layer(x)
        maps.append(x.permute(0, 3, 1, 2))
    return maps


def torchvision_model(arch, window):
    from torchvision.models.swin_transformer import (
        PatchMergingV2,
        SwinTransformer,
        SwinTransformerBlockV2,
    )

    size = SIZES[arch]
    return SwinTransformer(
        [4, 4],
        size['embed_dims'],
        list(size['depths']),
        list(size['num_heads']),
        [window, window],
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )


def torchvision_features(model, image):
    maps = []
    x = image
    for index, module in enumerate(model.features):
        x = module(x)
        if index % 2:
            maps.append(x.permute(0, 3, 1, 2))
    return maps


def transformers_config(arch, window):
    from transformers import Swinv2Config

    size = SIZES[arch]
    return Swinv2Config(
        image_size=256,
        embed_dim=size['embed_dims'],
        depths=list(size['depths']),
        num_heads=list(size['num_heads']),
        window_size=window,
        out_features=['stage1', 'stage2', 'stage3', 'stage4'],
    )


def write_transformers(arch, window, folder):
    from transformers import Swinv2Backbone, Swinv2ForImageClassification

    config = transformers_config(arch, window)
    classifier = give_weights(Swinv2ForImageClassification(config))
    backbone = Swinv2Backbone(config).eval()
    lacking = backbone.load_state_dict(classifier.swinv2.state_dict(), strict=False)
    assert not lacking.missing_keys
    classifier.save_pretrained(folder)
    with torch.no_grad():
        maps = backbone(image_for('transformers', window)).feature_maps
    torch.save([item.clone() for item in maps], folder / 'features.pth')


def write_mmpretrain(arch, window, folder):
    from mmpretrain.models.backbones import SwinTransformerV2

    model = SwinTransformerV2(
        arch=arch,
        img_size=256,
        window_size=stage_windows('mmpretrain', window),
        out_indices=(0, 1, 2, 3),
    )
    give_weights(model)
    state = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    state['head.fc.weight'] = torch.zeros(10, state['backbone.norm3.weight'].numel())
    torch.save({'state_dict': state, 'meta': {}}, folder / 'checkpoint.pth')
    with torch.no_grad():
        maps = model(image_for('mmpretrain', window))
    torch.save([item.clone() for item in maps], folder / 'features.pth')


def peer_path(library):
    """Return the folder to add to the path to import `library`; '' if not needed, None if not installed."""
    root = os.environ.get('SWINV2_MM_PEERS')
    if root and (Path(root) / library / library).is_dir():
        return str(Path(root).resolve() / library)
    return '' if importlib.util.find_spec(library) else None


@functools.cache
def why_missing(library):
    """Return why a library that needs a separate process is not available; None if it is."""
    path = peer_path(library)
    if path is None:
        return f'{library} is not installed: pip install --target DIR/{library} ... and set SWINV2_MM_PEERS=DIR'
    return None


def run_peer(library, folder):
    """Write models and features of all cases, in a process with access to the library."""
    paths = [peer_path(library), os.environ.get('PYTHONPATH', '')]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, __file__, library, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f'{library} failed:\n{done.stderr[-2000:]}')


def main(library, folder):
    write = {'transformers': write_transformers, 'mmpretrain': write_mmpretrain}[library]
    for arch, window in CASES:
        target = Path(folder) / f'{arch}-{window}'
        target.mkdir(parents=True)
        write(arch, window, target)


if __name__ == '__main__':
    main(*sys.argv[1:])
