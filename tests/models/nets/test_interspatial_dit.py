"""The interspatial transformer: what must not change its output, what must, and its sizes."""
# B clips   F latent frames   M points   h w token grid

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interspatial.models.nets.dit_config import CONFIGS, DiTConfig
from interspatial.models.nets.interspatial_dit import (
    PARTS_OF_BLOCK,
    InterspatialDiT,
    frame_rotary,
    patched,
    unpatched,
)
from interspatial.models.nets.point_tokens import Points

TINY = DiTConfig(channels=4, width=24, depth=2, heads=2, points=12, point_heads=2, extra=5, identity=4, reference=4)
SHAPE = (2, 4, 3, 6, 10)  # B C F H W, a ragged grid of 3 x 5 tokens
PEOPLE, EACH = 2, 7


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(config: DiTConfig = TINY) -> InterspatialDiT:
    """Random weights, large enough that every part shows; tables of person and part at zero."""
    model = InterspatialDiT(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        p.normal_(0, 0.3, generator=generator)
        if "norm" in name:
            p.add_(1)
    model.points.start()
    return model


def people(seed: int = 2) -> Points:
    """Two people with every third point not usable, some frames of the second clip without any point."""
    B, F, M = SHAPE[0], SHAPE[2], PEOPLE * EACH
    usable = torch.ones(B, F, M, dtype=torch.bool)
    usable[:, :, ::3] = False
    usable[1, 1] = False
    return Points(drawn(B, F, M, 3, seed=seed).clamp(-1, 1), usable, drawn(B, F, M, 4, 3, seed=seed + 1),
                  torch.arange(PEOPLE).repeat_interleave(EACH).expand(B, M), (torch.arange(M) % 14).expand(B, M),
                  drawn(B, M, 5, seed=seed + 2))  # fmt: skip


def run(model: InterspatialDiT, points: Points | None = None, **changed) -> torch.Tensor:
    B, C, F, H, W = SHAPE
    given = {"x": drawn(*SHAPE), "timestep": torch.tensor([800.0, 300.0]), "points": points,
             "rays": drawn(B, 24, F, H // 2, W // 2, seed=5), "reference": drawn(B, C, 4, 4, seed=6),
             "extra": drawn(B, 5, F, H, W, seed=7)}  # fmt: skip
    return model(**{**given, **changed})


def relative(x: torch.Tensor, truth: torch.Tensor) -> float:
    return float((x - truth).norm() / truth.norm())


def picked(points: Points, order: torch.Tensor) -> Points:
    return Points(points.place[:, :, order], points.usable[:, :, order], points.content[:, :, order],
                  points.person[:, order], points.part[:, order], points.identity[:, order])  # fmt: skip


@pytest.mark.parametrize("position", ("rotary", "additive", "none"))
def test_the_order_of_points_and_people_does_not_matter(position):
    model, points = network(replace(TINY, position=position)), people()
    want = run(model, points)
    shuffled = torch.randperm(PEOPLE * EACH, generator=torch.Generator().manual_seed(3))
    swapped = torch.arange(PEOPLE * EACH).roll(EACH)
    for order in (shuffled, swapped):
        assert relative(run(model, picked(points, order)), want) <= 1e-6
    assert relative(run(model, people(seed=9)), want) > 1e-3, "points show"


def test_points_that_are_not_usable_change_nothing(poisoned):
    """Whatever their places and contents hold, NaN too; and without any usable point it is as if nobody were there."""
    model, points = network(), people()
    want = run(model, points)
    off = ~points.usable[..., None]
    content = points.content.masked_fill(off[..., None], float("nan"))
    torch.testing.assert_close(run(model, replace(points, content=content)), want, atol=0, rtol=0)
    kept = torch.arange(PEOPLE * EACH) % 3 != 0
    assert relative(run(model, picked(points, kept.nonzero()[:, 0])), want) <= 1e-6
    nobody = run(model, replace(points, usable=torch.zeros_like(points.usable)))
    assert relative(nobody, run(model)) <= 1e-6


def still(model: InterspatialDiT) -> InterspatialDiT:
    """Without what mixes frames on purpose: attention over time, of the video and of the points."""
    for block in model.blocks:
        width = model.config.width
        part = slice(5 * width, 6 * width)  # the gate of temporal attention
        assert block.modulation.weight.shape[0] == PARTS_OF_BLOCK * width
        block.modulation.weight[part] = 0
        block.modulation.bias[part] = 0
        block.points_over_time.o.weight.zero_()
        block.points_over_time.o.bias.zero_()
    return model


def test_frames_and_clips_do_not_mix_within_a_frame():
    model, points = still(network()), people()
    want = run(model, points)
    x = drawn(*SHAPE)
    x[0, :, 1] += 1
    place = points.place.clone()
    place[0, 1] *= -1
    out = run(model, replace(points, place=place), x=x)
    changed = (out - want).abs().amax((1, 3, 4))  # B F
    assert changed[0, 1] > 1e-3
    changed[0, 1] = 0
    assert changed.max() == 0
    mixed = run(network(), points, x=x)
    assert (mixed - run(network(), points)).abs().amax((1, 3, 4))[0, 2] > 1e-4, "attention over time does mix frames"


def test_patches_come_back():
    x = drawn(2, 3, 3, 6, 10)
    tokens = patched(x, 2)
    assert tokens.shape == (2, 3 * 3 * 5, 12)
    assert torch.equal(tokens[1, 1 * 15 + 2 * 5 + 4].view(3, 2, 2), x[1, :, 1, 4:6, 8:10])
    assert torch.equal(unpatched(tokens, (3, 3, 5), 2), x)


def test_what_has_just_started_predicts_zero_and_learns():
    model = InterspatialDiT(TINY)
    model.start()
    assert torch.equal(run(model, people()), torch.zeros(SHAPE))
    (run(model, people()) - 1).square().mean().backward()
    assert model.head.weight.grad.abs().max() > 0


def test_every_input_shows():
    model, points = network(), people()
    want = run(model, points)
    for name, other in (("rays", None), ("reference", None), ("extra", None), ("timestep", torch.zeros(2)),
                        ("frames", torch.tensor([0, 5, 9]))):  # fmt: skip
        assert relative(run(model, points, **{name: other}), want) > 1e-3, name
    assert relative(run(model, replace(points, identity=None)), want) > 1e-4


def test_frame_numbers_count_by_their_distance():
    """The rotary code over time: products depend on the difference of two numbers alone."""
    q, k = drawn(2, 8, seed=1), drawn(2, 8, seed=2)

    def product(i: int, j: int) -> torch.Tensor:
        cos, sin = (x[0].double() for x in frame_rotary(torch.tensor([i, j]), 16))
        turned = [torch.stack([a * c - b * s, a * s + b * c]) for (a, b), c, s in
                  ((q.double(), cos[0], sin[0]), (k.double(), cos[1], sin[1]))]  # fmt: skip
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(3, 10), product(40, 47), atol=1e-4, rtol=0)
    assert (product(3, 10) - product(3, 12)).abs() > 1e-2


@pytest.mark.parametrize(("name", "least", "most"), [("tiny", 4.5e6, 5e6), ("small", 4e7, 8e7), ("4b", 3.4e9, 4.1e9)])
def test_sizes(name, least, most):
    model = InterspatialDiT(CONFIGS[name], device="meta")
    assert least <= sum(p.numel() for p in model.parameters()) <= most


def test_configs_are_told_and_read_back():
    for config in CONFIGS.values():
        assert DiTConfig.of(config.told()) == config
    with pytest.raises(ValueError, match=r"settings \['joint'\] are not known"):
        DiTConfig.of({"joint": True})


def test_blocks_compile_whole():
    """One graph without a break serves all blocks and a second forward: nothing in them looks at values."""
    model, points, graphs = network(), people(), []

    def backend(graph: torch.fx.GraphModule, inputs: list):
        graphs.append(graph)
        return graph.forward

    want = run(model, points)
    for block in model.blocks:
        block.forward = torch.compile(block.forward, backend=backend, fullgraph=True)
    assert torch.equal(run(model, points), want)
    assert torch.equal(run(model, people(seed=9)), run(network(), people(seed=9)))
    assert 1 <= len(graphs) <= TINY.depth
