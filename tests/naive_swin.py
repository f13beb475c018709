"""SwinV2 spelled out window by window in float64, sharing no code with the package.

Tokens are sorted into windows by plain arithmetic on their coordinates: there is no padding, no cyclic shift
and no mask that could be wrong in the same way as the code under test.
"""

import math
from collections import defaultdict

import torch
import torch.nn.functional as F


def naive_features(state, depths, num_heads, windows, pretrained, image, patch_size=4):
    """Maps of all stages, before the output norms, as a list of `(B, C, H, W)`.

    Args:
        state: State dict with official names; any float dtype.
        depths, num_heads: Per stage.
        windows, pretrained: `(height, width)` per stage; pretrained 0 means the window itself.
        image: `(B, C, H, W)`.
    """
    state = {name: value.double() for name, value in state.items()}
    x = image.double()
    x = F.pad(x, (0, -x.shape[3] % patch_size, 0, -x.shape[2] % patch_size))
    x = F.conv2d(x, state['patch_embed.proj.weight'], state['patch_embed.proj.bias'], patch_size)
    x = x.permute(0, 2, 3, 1)
    if 'patch_embed.norm.weight' in state:
        x = layer_norm(x, state, 'patch_embed.norm')
    maps = []
    for stage, depth in enumerate(depths):
        for index in range(depth):
            x = naive_block(
                x,
                {
                    name.removeprefix(f'layers.{stage}.blocks.{index}.'): value
                    for name, value in state.items()
                    if name.startswith(f'layers.{stage}.blocks.{index}.')
                },
                num_heads[stage],
                windows[stage],
                pretrained[stage],
                shifted=index % 2 == 1,
            )
        maps.append(x.permute(0, 3, 1, 2))
        if f'layers.{stage}.downsample.reduction.weight' in state:
            x = naive_merge(x, state, f'layers.{stage}.downsample')
    return maps


def layer_norm(x, state, name):
    return F.layer_norm(x, x.shape[-1:], state[f'{name}.weight'], state[f'{name}.bias'])


def naive_block(x, state, heads, window, pretrained, shifted):
    batch, height, width, _ = x.shape
    attended = torch.zeros_like(x)
    for tokens in windows_of(height, width, window, shifted):
        rows, cols = zip(*tokens)
        bias = naive_bias(tokens, window, pretrained, state)
        for image in range(batch):
            inside = x[image, list(rows), list(cols)]
            attended[image, list(rows), list(cols)] = naive_attention(inside, state, heads, bias)
    x = x + layer_norm(attended, state, 'norm1')
    hidden = F.gelu(F.linear(x, state['mlp.fc1.weight'], state['mlp.fc1.bias']))
    x = x + layer_norm(
        F.linear(hidden, state['mlp.fc2.weight'], state['mlp.fc2.bias']), state, 'norm2'
    )
    return layer_norm(x, state, 'norm3') if 'norm3.weight' in state else x


def windows_of(height, width, window, shifted):
    """Coordinates of the tokens of every window; a window at the border is simply smaller."""
    groups = defaultdict(list)
    shift = [
        size // 2 if shifted and length > size else 0
        for size, length in zip(window, (height, width))
    ]
    for row in range(height):
        for col in range(width):
            groups[(row - shift[0]) // window[0], (col - shift[1]) // window[1]].append((row, col))
    return list(groups.values())


def naive_bias(tokens, window, pretrained, state):
    """`(nH, n, n)`: equations 3 and 4 of the paper, in the official code's scale."""
    coords = torch.tensor(tokens, dtype=torch.float64)
    offsets = coords[:, None] - coords[None, :]
    for axis in (0, 1):
        reach = (pretrained[axis] or window[axis]) - 1
        offsets[..., axis] *= 8 / max(reach, 1)
    offsets = offsets.sign() * torch.log2(offsets.abs() + 1) / math.log2(8)
    hidden = F.relu(F.linear(offsets, state['attn.cpb_mlp.0.weight'], state['attn.cpb_mlp.0.bias']))
    return 16 * torch.sigmoid(F.linear(hidden, state['attn.cpb_mlp.2.weight'])).permute(2, 0, 1)


def naive_attention(x, state, heads, bias):
    """`(n, C)` to `(n, C)` within one window."""
    q, k, v = F.linear(x, state['attn.qkv.weight']).chunk(3, dim=-1)
    if 'attn.q_bias' in state:
        q, v = q + state['attn.q_bias'], v + state['attn.v_bias']
    out = []
    for head in range(heads):
        part = slice(head * q.shape[1] // heads, (head + 1) * q.shape[1] // heads)
        cosine = F.cosine_similarity(q[:, None, part], k[None, :, part], dim=-1, eps=1e-12)
        scale = min(state['attn.logit_scale'][head].item(), math.log(100))
        out.append((cosine * math.exp(scale) + bias[head]).softmax(-1) @ v[:, part])
    return F.linear(torch.cat(out, -1), state['attn.proj.weight'], state['attn.proj.bias'])


def naive_merge(x, state, name):
    batch, height, width, channels = x.shape
    merged = x.new_zeros(batch, math.ceil(height / 2), math.ceil(width / 2), 4 * channels)
    for row in range(height):
        for col in range(width):
            place = (row % 2) + 2 * (col % 2)
            merged[:, row // 2, col // 2, place * channels : (place + 1) * channels] = x[
                :, row, col
            ]
    return layer_norm(F.linear(merged, state[f'{name}.reduction.weight']), state, f'{name}.norm')
