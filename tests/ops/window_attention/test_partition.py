"""Test the partition of maps into windows."""

import pytest
import torch

from swinv2_mm.ops.window_attention import WindowPartition

CASES = [
    # size, window, shift
    ((8, 8), (4, 4), (0, 0)),
    ((8, 8), (4, 4), (2, 2)),
    ((10, 7), (4, 3), (2, 1)),
    ((3, 11), (4, 4), (2, 2)),
    ((5, 4), (4, 4), (2, 2)),
    ((1, 1), (7, 5), (3, 2)),
]


@pytest.mark.parametrize(('size', 'window', 'shift'), CASES)
def test_join_undoes_split(size, window, shift):
    partition = WindowPartition.fit(size, window, shift)
    x = torch.randn(2, *size, 3)
    windows = partition.split(x)
    assert windows.shape[1] == partition.window[0] * partition.window[1]
    assert len(windows) == 2 * partition.grid[0] * partition.grid[1]
    assert torch.equal(partition.join(windows), x)


@pytest.mark.parametrize(('size', 'window', 'shift'), CASES)
def test_regions_hold_what_is_one_window_of_the_plane(size, window, shift):
    """Tokens have the same window and label if and only if one window covers both before wrapping."""
    partition = WindowPartition.fit(size, window, shift)
    coords = torch.stack(
        torch.meshgrid(*(torch.arange(1, side + 1) for side in size), indexing='ij'), dim=-1
    )
    windows = partition.split(coords[None].float()).long()  # padding has the value (0, 0)
    regions = partition.regions()
    if regions is None:
        regions = torch.zeros(windows.shape[:2], dtype=torch.long)
    together = set()
    for tokens, labels in zip(windows.tolist(), regions.tolist()):
        for token, label in zip(tokens, labels):
            assert (label < 0) == (token == [0, 0])
            for other, other_label in zip(tokens, labels):
                if label == other_label >= 0:
                    together.add((tuple(token), tuple(other)))
    expected = set()
    places = [(row, col) for row in range(1, size[0] + 1) for col in range(1, size[1] + 1)]
    for a in places:
        for b in places:
            same = all(
                (a[axis] - 1 - partition.shift[axis]) // partition.window[axis]
                == (b[axis] - 1 - partition.shift[axis]) // partition.window[axis]
                for axis in (0, 1)
            )
            if same:
                expected.add((a, b))
    assert together == expected


def test_a_map_within_one_window_shrinks_it_and_never_shifts():
    partition = WindowPartition.fit((3, 12), (8, 8), (4, 4))
    assert partition.window == (3, 8)
    assert partition.shift == (0, 4)
    assert partition.padding == (0, 4)


def test_no_labels_where_every_window_is_whole():
    assert WindowPartition.fit((16, 8), (8, 8), (0, 0)).regions() is None


def windows_of(tile, tokens):
    """Return the windows of a tile in `(B, H, W, 1)`: `(windows, N)`."""
    return tile.view(tokens).reshape(-1, tile.window[0] * tile.window[1])


@pytest.mark.parametrize(('size', 'window', 'shift'), CASES)
@pytest.mark.parametrize('most', [1, 3, 100])
def test_tiles_are_the_windows_that_the_labels_describe(size, window, shift, most):
    partition = WindowPartition.fit(size, window, shift)
    tokens = torch.arange(2 * size[0] * size[1]).view(2, *size, 1)
    windows, regions = partition.split(tokens + 1), partition.regions()
    labels = torch.zeros(windows.shape[:2]) if regions is None else regions.repeat(2, 1)
    masked = set()
    for members, label in zip(windows[..., 0].tolist(), labels.tolist()):
        for one in {one for one in label if one >= 0}:
            masked.add(frozenset(m - 1 for m, other in zip(members, label) if other == one))
    chunks = [chunk for tile in partition.tiles() for chunk in tile.chunks(2, most)]
    cut = [windows_of(chunk, tokens) for chunk in chunks]
    assert {frozenset(row) for piece in cut for row in piece.tolist()} == masked
    assert sum(piece.numel() for piece in cut) == tokens.numel()
    assert len(partition.tiles()) <= 9
    assert all(len(piece) <= most for piece in cut)
    out = torch.empty_like(tokens)
    for chunk, piece in zip(chunks, cut):
        chunk.put(piece, out)
    assert torch.equal(out, tokens)


@pytest.mark.parametrize(('size', 'window', 'shift'), CASES)
@pytest.mark.parametrize('most', [1, 30, 60, 1000])
def test_bands_hold_every_window_once(size, window, shift, most):
    partition = WindowPartition.fit(size, window, shift)
    tokens = torch.arange(3 * size[0] * size[1]).view(3, *size, 1)
    windows = [row for tile in partition.tiles() for row in windows_of(tile, tokens).tolist()]
    found = []
    for band in partition.bands(3, most):
        part = tokens[band.images, band.rows]
        rows_of_windows = {row for tile in band.tiles() for row in range(tile.rows.count)}
        assert part.numel() <= most or len(part) == 1
        assert part.numel() <= most or len(rows_of_windows) == 1
        for tile in band.tiles():
            found += windows_of(tile, part).tolist()
    assert sorted(found) == sorted(windows)
