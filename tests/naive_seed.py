"""The network of ChristophReich1996/Swin-Transformer-V2 from its own state dict, window by window in float64.

Names and shapes are those that the repository documents; no code is shared with it or with the package.
"""

import torch
import torch.nn.functional as F
from naive_swin import layer_norm, windows_of


def seed_shapes(embed_dims, depths, num_heads, hidden=256):
    """Names of all parameters and their shapes."""
    shapes = {
        'patch_embedding.linear_embedding.weight': (embed_dims, 3, 4, 4),
        'patch_embedding.linear_embedding.bias': (embed_dims,),
        'patch_embedding.normalization.weight': (embed_dims,),
        'patch_embedding.normalization.bias': (embed_dims,),
    }
    for stage, (depth, heads) in enumerate(zip(depths, num_heads)):
        dim = embed_dims * 2**stage
        if stage:
            down = f'stages.{stage}.downsample.'
            shapes[down + 'normalization.weight'] = (2 * dim,)
            shapes[down + 'normalization.bias'] = (2 * dim,)
            shapes[down + 'linear_mapping.weight'] = (dim, 2 * dim)
        for block in range(depth):
            name = f'stages.{stage}.blocks.{block}.'
            attention = name + 'window_attention.'
            shapes[attention + 'tau'] = (1, heads, 1, 1)
            for module, out, inner in (
                (attention + 'mapping_qkv', 3 * dim, dim),
                (attention + 'projection', dim, dim),
                (attention + 'meta_network.0', hidden, 2),
                (attention + 'meta_network.2', heads, hidden),
                (name + 'feed_forward_network.0', 4 * dim, dim),
                (name + 'feed_forward_network.3', dim, 4 * dim),
            ):
                shapes[module + '.weight'] = (out, inner)
                shapes[module + '.bias'] = (out,)
            for norm in ('normalization_1', 'normalization_2'):
                shapes[f'{name}{norm}.weight'] = shapes[f'{name}{norm}.bias'] = (dim,)
    return shapes


def seed_state(embed_dims, depths, num_heads, hidden=256, window=4):
    """Random weights of a trained model's size, and the tables that the repository saves along."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, shape in seed_shapes(embed_dims, depths, num_heads, hidden).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith('tau'):
            # From far below its floor of 0.01 to a soft attention.
            state[name] = 10 ** (noise - 1)
        elif 'normalization' in name and name.endswith('weight'):
            state[name] = 1 + 0.3 * noise
        else:
            state[name] = noise / (shape[1] ** 0.5 if len(shape) == 2 else 4)
    for name in list(state):
        if name.endswith('tau'):
            attention = name.removesuffix('tau')
            state[attention + 'relative_coordinates_log'] = torch.zeros(window**4, 2)
            if '.blocks.1.' in name:
                mask = attention.removesuffix('window_attention.') + 'attention_mask'
                state[mask] = torch.zeros(4, window**2, window**2)
    return state


def naive_seed_features(state, depths, num_heads, windows, image):
    """Maps of all stages, a list of `(B, C, H, W)`; windows as `(height, width)` per stage."""
    state = {name: value.double() for name, value in state.items()}
    image = image.double()
    image = F.pad(image, (0, -image.shape[3] % 4, 0, -image.shape[2] % 4))
    embedding = 'patch_embedding.linear_embedding'
    x = F.conv2d(image, state[f'{embedding}.weight'], state[f'{embedding}.bias'], stride=4)
    x = layer_norm(x.permute(0, 2, 3, 1), state, 'patch_embedding.normalization')
    maps = []
    for stage, depth in enumerate(depths):
        if stage:
            x = merge(x, state, f'stages.{stage}.downsample.')
        for index in range(depth):
            name = f'stages.{stage}.blocks.{index}.'
            x = block(x, state, name, num_heads[stage], windows[stage], shifted=index % 2 == 1)
        maps.append(x.permute(0, 3, 1, 2))
    return maps


def merge(x, state, name):
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    size = x.shape[1] // 2, x.shape[2] // 2
    x = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2).unflatten(1, size)
    return F.linear(
        layer_norm(x, state, name + 'normalization'), state[name + 'linear_mapping.weight']
    )


def linear(x, state, name):
    return F.linear(x, state[name + '.weight'], state[name + '.bias'])


def block(x, state, name, heads, window, shifted):
    attended = torch.zeros_like(x)
    for tokens in windows_of(x.shape[1], x.shape[2], window, shifted):
        rows, cols = (list(axis) for axis in zip(*tokens))
        attended[:, rows, cols] = attention(x[:, rows, cols], tokens, state, name, heads)
    x = x + layer_norm(attended, state, name + 'normalization_1')
    hidden = F.gelu(linear(x, state, name + 'feed_forward_network.0'))
    hidden = linear(hidden, state, name + 'feed_forward_network.3')
    return x + layer_norm(hidden, state, name + 'normalization_2')


def attention(x, tokens, state, name, heads):
    name += 'window_attention.'
    coords = torch.tensor(tokens, dtype=torch.float64)
    offsets = coords[:, None] - coords[None, :]
    offsets = offsets.sign() * (1 + offsets.abs()).log()
    bias = linear(
        linear(offsets, state, name + 'meta_network.0').relu(), state, name + 'meta_network.2'
    )
    q, k, v = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2)
        for part in linear(x, state, name + 'mapping_qkv').chunk(3, dim=-1)
    )
    cosines = F.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1, eps=1e-12)
    logits = cosines / state[name + 'tau'].clamp(min=0.01) + bias.permute(2, 0, 1)
    out = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return linear(out, state, name + 'projection')
