"""The ray caster against a float64 solver that was written apart from it."""

from __future__ import annotations

import math

import pytest
import torch
from interspatial.models.puppet.camera import Camera, CameraTrack, track
from interspatial.models.puppet.render import NEAR, Bodies, cast, directions
from interspatial.tests.models.puppet.solver import first_hits
from torch import Tensor
from torch.nn.functional import normalize

H, W = 23, 31  # neither square nor a multiple of anything
Capsules = tuple[Tensor, Tensor, Tensor]  # origin [6, 3], axis [6, 3], radius [6]
UNSURE = 1e-3  # metres: how far float32 may misjudge a silhouette or a depth at five metres


def rand(g: torch.Generator, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=g)


def turned(g: torch.Generator, count: int) -> Tensor:
    """Random rotations. returns: [1, C, 3, 3]"""
    q, _ = torch.linalg.qr(torch.randn(count, 3, 3, generator=g))
    return (q * torch.linalg.det(q)[:, None, None])[None]


def in_front(g: torch.Generator, view: CameraTrack) -> Capsules:
    origin = rand(g, 6, 3) * torch.tensor([2.0, 1.5, 1.5])
    return origin, rand(g, 6, 3, low=-0.6, high=0.6), rand(g, 6, low=0.03, high=0.2)


def balls(g: torch.Generator, view: CameraTrack) -> Capsules:
    origin, axis, radius = in_front(g, view)
    return origin, 0 * axis, radius


def short(g: torch.Generator, view: CameraTrack) -> Capsules:
    """Axes of a tenth of a millimetre up to centimetres: almost balls."""
    origin, axis, radius = in_front(g, view)
    return origin, axis * 10 ** rand(g, 6, 1, low=-4.0, high=-1.0), radius


def at_the_border(g: torch.Generator, view: CameraTrack) -> Capsules:
    """Long ones that reach out of the picture on all sides."""
    return rand(g, 6, 3) * 2.5, rand(g, 6, 3, low=-3.0, high=3.0), rand(g, 6, low=0.05, high=0.5)


def beside_the_camera(g: torch.Generator, view: CameraTrack) -> Capsules:
    """From in front of the camera to behind it."""
    start = rand(g, 6, 3) * torch.tensor([2.0, 2.0, 0.2]) + torch.tensor([0.0, 1.0, 3.5])
    tip = view.centre + rand(g, 6, 3) * torch.tensor([1.5, 1.5, 0.5]) + torch.tensor([0.0, 0.0, 0.7])
    return start, tip - start, rand(g, 6, low=0.02, high=0.1)


def along_the_rays(g: torch.Generator, view: CameraTrack) -> Capsules:
    """Pointing at the camera along a pixel's ray or away from it, exactly or by a hair's breadth less."""
    y, x = (torch.randint(n, (6,), generator=g) for n in (H, W))
    ray = normalize(directions(view, H, W)[0, y, x], dim=1)
    off = 10 ** rand(g, 6, 1, low=-8.0, high=-2.0) * rand(g, 6, 3)
    way = torch.where(rand(g, 6, 1) > 0, 0.4, -0.4)
    origin = view.centre + ray * rand(g, 6, 1, low=2.0, high=5.0)
    return origin, way * normalize(ray + off, dim=1), rand(g, 6, low=0.05, high=0.2)


KINDS = (in_front, balls, short, at_the_border, beside_the_camera, along_the_rays)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_agrees_with_the_solver(kind):
    hits = 0
    for seed in range(25):
        g = torch.Generator().manual_seed(seed)
        camera = Camera(distance=5.0, height=1.0 + float(torch.rand(1, generator=g)), angle=float(rand(g, 1)) * 40)
        if kind in (beside_the_camera, along_the_rays):
            camera = Camera(distance=5.0, height=1.0, aim=(0.0, 1.0, 0.0))
        view = track(camera, torch.zeros(1), H, W)
        origin, axis, radius = kind(g, view)
        rotation = turned(g, 6)
        bodies = Bodies(rotation, origin[None], (rotation[0].transpose(1, 2) @ axis[..., None])[..., 0], radius)
        hits += check_against_solver(bodies, view)
    assert hits > 250, "the comparison compared next to nothing"


def check_against_solver(bodies: Bodies, view: CameraTrack) -> int:
    """Every ray but those within UNSURE of a silhouette or of the near plane. returns: rays that hit"""
    got = cast(bodies, view, H, W)
    rays = directions(view, H, W)[0].flatten(0, 1)

    def solved(change: float) -> Tensor:
        return first_hits(bodies.origin[0], bodies.tip[0], bodies.radius + change, view.centre[0], rays)

    exact, fatter, thinner = solved(0.0), solved(UNSURE), solved(-UNSURE)
    unsure = (fatter.isfinite() != thinner.isfinite()) | ((exact - NEAR).abs() < 3 * UNSURE)
    clear = ~unsure.any(0)
    depth, primitive = got.depth[0].flatten()[clear].double(), got.primitive[0].flatten()[clear]
    expected = exact[:, clear].amin(0)
    assert torch.equal(depth.isfinite(), expected.isfinite())
    assert torch.equal(primitive >= 0, expected.isfinite())
    hit = expected.isfinite()
    torch.testing.assert_close(depth[hit], expected[hit], atol=UNSURE, rtol=0)
    own = exact[:, clear][:, hit].gather(0, primitive[hit][None])[0]
    assert (own - expected[hit] < 2 * UNSURE).all(), "the primitive is not the one that lies there"
    return int(hit.sum())


def test_a_limb_that_passes_the_camera_is_whole():
    """Its near end is behind the camera, so its picture reaches further than those of its two ends."""
    view = track(Camera(distance=5.0, height=1.0, aim=(0.0, 1.0, 0.0)), torch.zeros(1), H, W)
    origin = torch.tensor([[[0.3, 0.9, 1.0]]])  # four metres ahead, to the right
    axis = torch.tensor([[-0.35, 0.0, 6.0]])  # ends two metres behind, to the left
    bodies = Bodies(torch.eye(3).expand(1, 1, 3, 3), origin, axis, torch.tensor([0.04]))
    assert check_against_solver(bodies, view) > 20


def test_nothing_behind_the_camera_is_seen():
    view = track(Camera(distance=5.0), torch.zeros(1), H, W)
    bodies = Bodies(torch.eye(3).expand(1, 1, 3, 3), torch.tensor([[[0.0, 1.0, 7.0]]]), torch.tensor([[0.0, 0.0, 3.0]]),
                    torch.tensor([0.5]))  # fmt: skip
    hits = cast(bodies, view, H, W)
    assert (hits.primitive == -1).all() and hits.depth.isinf().all()


def test_no_primitives_no_hits():
    view = track(Camera(), torch.zeros(3), H, W)
    nobody = Bodies(torch.zeros(3, 0, 3, 3), torch.zeros(3, 0, 3), torch.zeros(0, 3), torch.zeros(0))
    hits = cast(nobody, view, H, W)
    assert hits.primitive.shape == hits.depth.shape == (3, H, W)
    assert (hits.primitive == -1).all() and hits.depth.isinf().all()


def test_of_two_equal_limbs_the_last_is_shown():
    """Neighbouring limbs share spheres; which one is shown must not depend on the number of threads."""
    view = track(Camera(), torch.zeros(2), 200, 200)
    origin = torch.tensor([0.0, 0.9, 0.0]).expand(2, 4, 3)
    bodies = Bodies(torch.eye(3).expand(2, 4, 3, 3), origin, torch.zeros(4, 3), torch.full((4,), 0.8))
    shown = cast(bodies, view, 200, 200).primitive
    assert set(shown.unique().tolist()) == {-1, 3}


def test_frames_do_not_mix():
    g = torch.Generator().manual_seed(5)
    view = track(Camera("orbit", 200.0), torch.arange(4) / 4, H, W)
    origin, axis, radius = in_front(g, view)
    path = origin + rand(g, 4, 1, 3)
    bodies = Bodies(turned(g, 6).expand(4, 6, 3, 3), path, axis, radius)
    together = cast(bodies, view, H, W)
    for t in range(4):
        alone = cast(bodies.at(slice(t, t + 1)), view.at(slice(t, t + 1)), H, W)
        assert torch.equal(alone.primitive[0], together.primitive[t])
        torch.testing.assert_close(alone.depth[0], together.depth[t], atol=1e-5, rtol=0)


def test_rays_start_at_the_pixel_centres():
    view = track(Camera("orbit", 50.0), torch.arange(2) / 2, H, W)
    d = directions(view, H, W)
    points = view.centre[:, None, None] + 3.0 * d
    pixel, depth = view.project(points)
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    torch.testing.assert_close(pixel, torch.stack([x, y], -1).expand(2, H, W, 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(depth, torch.full((2, H, W), 3.0))
    assert not math.isnan(float(d.sum()))
