"""The adapter's network beside a host that is nothing but random tokens."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from interspatial.models.control.tokens import body_tokens
from interspatial.models.nets.interspatial_adapter import AdapterConfig
from interspatial.models.nets.point_tokens import Points
from interspatial.tests.models.control.made import config_for, hold, random_body, random_network, untrained_network

F, H, W, D = 3, 4, 6, 128
CONFIG = config_for("wan", (0, 2))
TIME = torch.tensor([300.0])
NUMBERS = torch.arange(F)


def points_of(body=None) -> Points:
    return Points.of(body_tokens(body or random_body(), hold(), 4))


def host_tokens(seed: int = 0, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, F * H * W, D, generator=torch.Generator().manual_seed(seed))


def visits(network, points: Points, x: torch.Tensor, numbers=NUMBERS) -> list[torch.Tensor]:
    """What the video gets behind each layer."""
    fixed = network.fixed(points, H, W)
    found, y = [], fixed.y
    for layer in network.config.layers:
        seen, y = network.visit(layer, x, y, TIME, fixed, numbers)
        found.append(seen)
    return found


@pytest.mark.parametrize("position", ["rotary", "additive", "none"])
def test_3_what_has_learned_nothing_adds_exactly_zero(position):
    network = untrained_network(replace(CONFIG, position=position))
    assert not any(seen.any() for seen in visits(network, points_of(), host_tokens()))


@pytest.mark.parametrize("position", ["rotary", "additive", "none"])
def test_4_points_and_people_in_another_order_change_nothing(position):
    network = random_network(replace(CONFIG, position=position))
    network.points.person.weight.zero_()
    points, x = points_of(), host_tokens()
    order = torch.randperm(points.person.shape[1], generator=torch.Generator().manual_seed(1))
    mixed = Points(points.place[:, :, order], points.usable[:, :, order], points.content[:, :, order],
                   points.person[:, order], points.part[:, order])  # fmt: skip
    for a, b in zip(visits(network, points, x), visits(network, mixed, x), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def test_4_clips_of_a_batch_do_not_see_each_other():
    network = random_network(CONFIG)
    bodies = [points_of(), points_of(random_body(seed=7))]
    both = Points(*(torch.cat([getattr(p, name) for p in bodies]) for name in
                    ("place", "usable", "content", "person", "part")))  # fmt: skip
    x = host_tokens(batch=2)
    together = visits(network, both, x)
    for i, points in enumerate(bodies):
        for a, b in zip(visits(network, points, x[i : i + 1]), together, strict=True):
            torch.testing.assert_close(b[i : i + 1], a, rtol=1e-4, atol=1e-4)


def test_5_a_hundred_points_more_that_nobody_may_use(poisoned):
    body = random_body(2, points=11)
    padded = replace(body, points=torch.cat([body.points, torch.full((2, 9, 100, 3), 0.3)], 2),
                     known=torch.cat([body.known, torch.zeros(2, 9, 100, dtype=torch.bool)], 2),
                     part=torch.cat([body.part, torch.zeros(100, dtype=torch.int64)]))  # fmt: skip
    network, x = random_network(CONFIG), host_tokens()
    for a, b in zip(visits(network, points_of(body), x), visits(network, points_of(padded), x), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def test_one_point_is_seen_in_its_own_frame_alone():
    """Without attention over time nothing of it reaches the tokens of other frames."""
    body = random_body(1, 9, 1)
    known = torch.zeros(1, 9, 1, dtype=torch.bool)
    known[:, 4] = True   # the last pixel frame of latent frame 1
    network, x = random_network(CONFIG), host_tokens()
    points = points_of(replace(body, known=known))
    assert points.usable.flatten().tolist() == [False, True, False]
    for seen in visits(network, points, x):
        frames = seen.view(F, H * W, D)
        assert not frames[0].any()
        assert not frames[2].any()
        assert frames[1].any(-1).all()


def test_a_point_moved_moves_what_its_own_frame_sees_first():
    """The first layer's residual of other frames depends on it through time only; cut there, not at all."""
    network = random_network(CONFIG)
    network.blocks["0"].points_over_time.o.weight.zero_()
    network.blocks["0"].points_over_time.o.bias.zero_()
    body, x = random_body(1, 9, 5), host_tokens()
    moved = body.points.clone()
    moved[:, 7, 2, 0] *= 0.5   # a pixel frame of latent frame 2; sideways, so that the clip's depth stays
    points = (points_of(replace(body, points=p)) for p in (body.points, moved))
    first, second = (visits(network, p, x)[0].view(F, -1) for p in points)
    assert torch.equal(first[:2], second[:2])
    assert not torch.equal(first[2], second[2])


def test_6_numbers_of_frames_are_what_tells_windows_apart():
    """Frames 1 and 2 of a clip, with their numbers, see what the whole clip sees when time is cut."""
    network = random_network(replace(CONFIG, layers=(0,)))
    for part in (network.blocks["0"].points_over_time.o.weight, network.blocks["0"].points_over_time.o.bias):
        part.zero_()
    tokens, x = body_tokens(random_body(), hold(), 4), host_tokens()
    whole = visits(network, Points.of(tokens), x)[0].view(F, -1)
    window = visits(network, Points.of(tokens.window([1, 2])), x.view(1, F, -1, D)[:, 1:].reshape(1, -1, D),
                    torch.tensor([1, 2]))[0].view(2, -1)  # fmt: skip
    torch.testing.assert_close(window, whole[1:], rtol=1e-4, atol=1e-4)
    other = random_network(replace(CONFIG, layers=(0,)))
    at = [visits(other, Points.of(tokens), x, numbers)[0] for numbers in (NUMBERS, NUMBERS * 3)]
    assert not torch.allclose(*at), "numbers matter where time is looked at"


def test_codes_of_depth_tell_front_from_back():
    """Two points in one place of the picture: what the tokens see depends on which is nearer, with depth alone."""
    body = random_body(1, 9, 2)
    points = torch.tensor([[0.0, 0.0, 0.4], [0.0, 0.0, -0.4]]).expand(1, 9, 2, 3)
    near, far = (replace(body, points=p, part=torch.tensor([0, 1])) for p in (points, points.flip(2)))
    x = host_tokens()
    for mode, differs in (("linear", True), ("none", False)):
        network = random_network(replace(CONFIG, depth_mode=mode))
        network.points.mlp[0].weight.zero_()   # contents would tell it too
        network.blocks["0"].points_over_time.o.weight.zero_()
        found = []
        for body_ in (near, far):
            tokens = body_tokens(body_, hold(), 4, mode)
            xy = torch.zeros_like(tokens.place)
            xy[..., 2] = tokens.place[..., 2]   # perspective moves the two apart a little
            found.append(visits(network, Points.of(replace(tokens, place=xy)), x)[0])
        assert torch.allclose(*found, rtol=1e-4, atol=1e-4) != differs


def test_settings_come_back_from_json():
    assert AdapterConfig.of(CONFIG.told()) == CONFIG
    with pytest.raises(ValueError, match="settings \\['sparks'\\] are not known"):
        AdapterConfig.of({**asdict(CONFIG), "sparks": 1})
    with pytest.raises(ValueError, match="\\['layers'\\] are missing"):
        AdapterConfig.of({"family": "wan", "host_width": 128})
    with pytest.raises(ValueError, match="width 50, 4 heads"):
        replace(CONFIG, width=50)


def test_identity_of_the_reference_is_seen():
    network, x = random_network(replace(CONFIG, identity=3)), host_tokens()
    tokens = body_tokens(random_body(), hold(), 4)
    features = torch.randn(22, 4, generator=torch.Generator().manual_seed(0))
    found = [visits(network, Points.of(replace(tokens, identity=f)), x)[0] for f in (features, -features)]
    assert not torch.allclose(*found, atol=1e-3)


@pytest.mark.parametrize("position", ["rotary", "additive", "none"])
def test_a_visit_never_waits_for_the_device(position):
    """No operation in it brings a value to the CPU, or has a result whose size depends on values."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found.add(func.name())
            return func(*args, **(kwargs or {}))

    network, x, found = random_network(replace(CONFIG, position=position)), host_tokens(), set()
    fixed = network.fixed(points_of(), H, W)
    with Names():
        network.visit(0, x, fixed.y, TIME, fixed, NUMBERS)
    assert "aten::mm" in found or "aten::addmm" in found
    assert not found & {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique"}
