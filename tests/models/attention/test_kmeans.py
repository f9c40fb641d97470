"""K-means: what a round may do to the distances, what a centroid is, and clusters cut into blocks."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.attention.kmeans import Clusters, cut, first_centroids, kmeans, nearest

pytestmark = pytest.mark.usefixtures("poisoned")

SHAPES = [(1, 1, 1, 4), (1, 37, 3, 7), (2, 129, 2, 32), (2, 300, 3, 16)]  # B N H D


def tokens(shape, seed: int = 0) -> torch.Tensor:
    """In loose groups, off the origin."""
    draw = torch.Generator().manual_seed(seed)
    batch, count, heads, dim = shape
    groups = 3 * torch.randn(batch, 9, heads, dim, generator=draw) + 5
    return groups[:, torch.randint(9, (count,), generator=draw)] + torch.randn(shape, generator=draw)


def by_head(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(0, 1).double()


def inertia(x: torch.Tensor, found: Clusters) -> torch.Tensor:
    """Sum of squared distances of each head's tokens to the mean of their label."""
    centre = found.centroids.double().gather(1, found.labels[..., None].expand(-1, -1, x.shape[-1]))
    return (by_head(x) - centre).square().sum((1, 2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_round_makes_the_distances_larger(shape):
    x, clusters = tokens(shape), min(11, shape[1])
    start = first_centroids(x, clusters, 0)
    sums = torch.stack([inertia(x, kmeans(x, start, rounds, 8)) for rounds in range(1, 8)])
    assert (sums[1:] <= sums[:-1] * (1 + 1e-6)).all()
    if shape[1] > 100:
        assert sums[-1].sum() < 0.9 * sums[0].sum()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_centroids_are_the_means_of_their_labels(shape):
    x, clusters = tokens(shape), min(11, shape[1])
    found = kmeans(x, first_centroids(x, clusters, 0), 3, 8)
    assert found.labels.shape == (shape[0] * shape[2], shape[1])
    for rows, labels, centroids in zip(by_head(x), found.labels, found.centroids, strict=True):
        assert int(labels.bincount(minlength=clusters).sum()) == shape[1]
        for label in labels.unique():
            torch.testing.assert_close(centroids[label].double(), rows[labels == label].mean(0), atol=1e-5, rtol=1e-5)


def test_a_cluster_without_tokens_keeps_its_centroid():
    x = torch.zeros(1, 30, 2, 4)
    x[:, 10:], x[:, 20:] = 4, 9
    start = torch.tensor([0.0, 100, 5, -100, 8])[None, :, None].expand(2, -1, 4).contiguous()
    found = kmeans(x, start, 4, 8)
    want = torch.tensor([0.0, 100, 4, -100, 9])[None, :, None].expand(2, -1, 4)
    torch.testing.assert_close(found.centroids, want)
    assert sorted(found.labels[0].unique().tolist()) == [0, 2, 4]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_nearest_is_the_nearest(shape):
    x = tokens(shape)
    start = first_centroids(x, min(11, shape[1]), 1)
    apart = torch.cdist(by_head(x), start.double())
    for max_bytes in (None, 1, 400):
        found = nearest(x, start, max_bytes)
        least = apart.gather(2, found[..., None])[..., 0]
        torch.testing.assert_close(least, apart.amin(2), atol=1e-4, rtol=0)


def test_half_precision_finds_nearly_the_nearest():
    x = tokens((2, 300, 3, 64)) + 40  # far from the origin, as keys may be
    start = first_centroids(x, 20, 1)
    apart = torch.cdist(by_head(x), start.double())
    for dtype in (torch.bfloat16, torch.float16):
        least = apart.gather(2, nearest(x.to(dtype), start)[..., None])[..., 0]
        assert float(least.sum() / apart.amin(2).sum()) < 1.002


def test_a_seed_decides_and_nothing_else_does():
    x = tokens((2, 129, 2, 16))
    want = first_centroids(x, 13, 5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = kmeans(x, first_centroids(x, 13, 5), 3, 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first_centroids(x, 13, 5), want) and not torch.equal(first_centroids(x, 13, 6), want)
    other = kmeans(x, want, 3, 8)
    assert torch.equal(again.labels, other.labels) and torch.equal(again.centroids, other.centroids)
    distances = torch.cdist(want, want) + torch.eye(13) * 9
    assert distances.min() > 1e-3  # distinct tokens


@pytest.mark.parametrize("size", [1, 4, 32])
@pytest.mark.parametrize("kind", ["random", "one", "each", "uneven"])
def test_pieces_hold_every_token_once_in_few_even_parts(kind, size):
    count, clusters, draw = 83, 10, torch.Generator().manual_seed(0)
    labels = {
        "random": torch.randint(clusters, (3, count), generator=draw),
        "one": torch.full((3, count), 4),
        "each": torch.arange(count).expand(3, -1) % clusters,
        "uneven": torch.arange(count).expand(3, -1).float().sqrt().long(),
    }[kind]
    pieces = cut(labels, clusters, size)
    assert pieces.slots.shape[1] == (count + clusters * (size - 1)) // size  # the most there can be
    for row, slots, live, owner in zip(labels, pieces.slots, pieces.live, pieces.owner, strict=True):
        filled = slots >= 0
        assert torch.equal(slots[filled].sort().values, torch.arange(count, dtype=torch.int32))
        assert torch.equal(filled, torch.arange(size) < live[:, None])
        for label, tokens_of in enumerate(row.bincount(minlength=clusters).tolist()):
            parts = live[(owner == label) & (live > 0)]
            assert len(parts) == -(-tokens_of // size) and int(parts.sum()) == tokens_of
            assert not tokens_of or parts.max() - parts.min() <= 1
            held = slots[(owner == label) & (live > 0)]
            assert torch.equal(held[held >= 0].long(), (row == label).nonzero()[:, 0])  # ascending throughout


def test_a_device_is_never_waited_for():
    """On the meta device every read of a value raises."""
    x = tokens((2, 129, 2, 16)).to("meta")
    found = kmeans(x, first_centroids(x, 13, 0), 2, 8)
    assert found.centroids.shape == (4, 13, 16) and found.pieces.slots.device.type == "meta"
