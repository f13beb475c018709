"""Patch embedding of images with few patches."""

import pytest
import torch
import torch.nn.functional as F

from swinv2_mm.models.layers.patch import PatchEmbed


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('size', [(17, 1), (28, 4), (5, 30), (4, 4), (40, 9)])
def test_narrow_images_in_bf16(size, autocast, training):
    """With AMX, oneDNN reads beyond images that are one patch wide and five or more high."""
    torch.manual_seed(0)
    embed = PatchEmbed(3, 8, patch_norm=False)
    image = torch.randn(2, 3, *size)
    padded = F.pad(image, (0, -size[1] % 4, 0, -size[0] % 4))
    expected = embed.proj(padded).permute(0, 2, 3, 1)
    freed = [torch.full((2**k,), float('nan'), dtype=torch.bfloat16) for k in range(3, 15)]
    del freed
    if not autocast:
        embed, image = embed.bfloat16(), image.bfloat16()
    with torch.set_grad_enabled(training), torch.autocast('cpu', enabled=autocast):
        tokens = embed(image)
    torch.testing.assert_close(tokens.float(), expected, atol=0.05, rtol=0.05)
