"""Points and pixels in one frame, cameras brought to a clip. Numbers in names are those of section 2.12 of the plan."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from interspatial.models.control.camera import CameraPath
from interspatial.models.control.clip_fit import Clip, Fit, hold_camera, reference_features, tokens_of_clip
from interspatial.models.control.projection import DepthRange, depth_range, ndc, normalised_depth
from interspatial.models.nets import position_code as code
from interspatial.tests.models.control.made import hold, random_body


def seen_at(pixel: torch.Tensor, depth: float, camera: CameraPath) -> torch.Tensor:
    """World points that project to pixels of frame 0 at a depth. pixel: [N, 2] -> [1, 1, N, 3]"""
    flat = torch.cat([pixel, torch.ones(len(pixel), 1)], -1).double() @ camera.K[0].double().inverse().T * depth
    world = (flat - camera.w2c[0, :3, 3].double()) @ camera.w2c[0, :3, :3].double()
    return world.float()[None, None]


def turned_camera(height: int, width: int, centre: tuple[float, float]) -> CameraPath:
    camera, angle = hold(1, height, width, centre=centre), 0.4
    turn = torch.eye(4)
    turn[0, 0] = turn[2, 2] = math.cos(angle)
    turn[0, 2], turn[2, 0] = math.sin(angle), -math.sin(angle)
    return replace(camera, w2c=camera.w2c @ turn)


@pytest.mark.parametrize(("height", "width", "centre"), [
    (48, 80, (40.0, 24.0)), (80, 48, (11.0, 63.0)), (64, 64, (70.0, 5.0))])  # fmt: skip
def test_1_a_point_lies_at_the_token_that_holds_its_pixel(height, width, centre):
    """Tokens of 8 pixels: the NDC of a point at pixel (u, v) is within half a token of its token's middle."""
    camera = turned_camera(height, width, centre)
    pixel = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([width, height])
    h, w = height // 8, width // 8
    place, usable = ndc(seen_at(pixel, 3.0, camera), torch.ones(1, 1, 500, dtype=torch.bool), camera)
    assert usable.all()
    token = (pixel[:, 1] // 8).long() * w + (pixel[:, 0] // 8).long()
    off = (place[0, 0, :, :2] - code.token_centres(h, w)[token, :2]).abs() * torch.tensor([w, h]) / 2
    assert off.max() <= 0.5 + 1e-3
    exact = 2 * pixel.double() / torch.tensor([width, height]) - 1
    torch.testing.assert_close(place[0, 0, :, :2].double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("h", "w"), [(6, 10), (30, 52), (17, 9)])
def test_2_the_code_of_a_point_is_most_like_that_of_its_token(h, w):
    generator = torch.Generator().manual_seed(0)
    xy = torch.rand(2000, 2, generator=generator) * 2 - 1
    place = torch.cat([xy, torch.zeros(2000, 1)], -1)
    like = code.additive(place, 512, h, w).double() @ code.additive(code.token_centres(h, w), 512, h, w).double().T
    token = ((xy[:, 1] + 1) / 2 * h).long() * w + ((xy[:, 0] + 1) / 2 * w).long()
    assert (like.argmax(1) == token).double().mean() >= 0.995


def test_rotary_codes_are_as_alike_as_points_are_near():
    """The product of two turned copies depends on the difference of their places alone."""
    q = torch.randn(1, 1, 2, 48, generator=torch.Generator().manual_seed(0))
    move = torch.tensor([0.3, -0.2, 0.5])

    def product(a, b):
        turned = [code.turn(q, *code.rotary(place[None, None], 48, 8, 12)) for place in (a, b)]
        return (turned[0] * turned[1]).sum(-1)

    a, b = torch.tensor([0.1, 0.2, -0.3]), torch.tensor([-0.4, 0.6, 0.1])
    torch.testing.assert_close(product(a, b), product(a + move, b + move), rtol=1e-4, atol=1e-4)
    assert (product(a, a) > product(a, b)).all()


def test_9_depth_stays_within_the_planes():
    planes = DepthRange(1.5, 40.0)
    depth = torch.linspace(1.5, 40.0, 1001, dtype=torch.float64)
    for mode in ("perspective", "linear"):
        found = normalised_depth(depth, planes, mode)
        torch.testing.assert_close(found[[0, -1]], torch.tensor([-1.0, 1.0], dtype=torch.float64))
        assert (found.diff() > 0).all()
        assert found.abs().max() <= 1 + 1e-9
    steps = normalised_depth(depth, planes, "linear").diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 2 / 1000))  # affine
    assert not normalised_depth(depth, planes, "none").any()


def test_planes_stand_a_fifth_off_and_ignore_what_is_not_usable():
    depth = torch.tensor([[[2.0, 5.0, -3.0, 900.0]]])
    found = depth_range(depth, torch.tensor([[[True, True, True, False]]]))
    assert (found.near, found.far) == pytest.approx((1.6, 6.0))


def test_points_behind_or_far_off_the_picture_are_not_usable(poisoned):
    camera = hold(1, 64, 64, distance=4.0, focal=64.0)  # the picture spans 4 m at the origin
    points = torch.tensor([[0.0, 0, 0], [0, 0, 10], [2.5, 0, 0], [3.2, 0, 0], [float("nan"), 0, 0]])[None, None]
    known = torch.tensor([[[True, True, True, True, False]]])
    place, usable = ndc(points, known, camera)
    assert usable.tolist() == [[[True, False, True, False, False]]], "within 1.5 of the picture's half side"
    assert place.isfinite().all()
    assert not place[~usable].any()
    assert place[0, 0, 2, 0] == pytest.approx(1.25)


def test_a_camera_over_more_frames_keeps_its_ends_and_its_rotations():
    angle = torch.tensor([0.0, 0.5, 1.0])
    w2c = torch.eye(4).repeat(3, 1, 1)
    w2c[:, 0, 0] = w2c[:, 2, 2] = angle.cos()
    w2c[:, 0, 2], w2c[:, 2, 0] = angle.sin(), -angle.sin()
    w2c[:, :3, 3] = -(w2c[:, :3, :3] @ torch.tensor([[1.0, 2, 3], [2, 2, 3], [3, 2, 3]])[..., None])[..., 0]
    camera = replace(hold(3), w2c=w2c)
    found = camera.fitted(5)
    torch.testing.assert_close(found.w2c[::2], w2c, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.centre[:, 0], torch.linspace(1, 3, 5), rtol=0, atol=1e-5)
    between = torch.atan2(found.w2c[:, 0, 2], found.w2c[:, 0, 0])
    torch.testing.assert_close(between, torch.linspace(0, 1, 5), rtol=0, atol=1e-5)  # half way by symmetry
    held = camera.fitted(5, 1.0, "trim")
    torch.testing.assert_close(held.w2c[[0, 1, 2, 3, 4]], w2c[[0, 1, 2, 2, 2]], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (120, 160)])
def test_covering_keeps_shapes_and_the_middle(height, width):
    """A circle before the camera stays a circle, and what was in the middle stays there."""
    camera = hold(1, 60, 80, focal=70.0).covering(height, width)
    K = camera.K[0]
    assert K[0, 0] == K[1, 1]
    assert (K[0, 2], K[1, 2]) == (width / 2, height / 2)
    scale = float(K[0, 0]) / 70
    assert min(80 * scale / width, 60 * scale / height) == pytest.approx(1), "nothing empty, no more than needed cut"


def test_a_camera_that_is_made_sees_everybody_in_all_frames():
    body = random_body(3, 6, 40)
    body = replace(body, points=body.points * 5 + torch.tensor([3.0, 1.0, -20.0]))
    for height, width in ((64, 160), (160, 64)):
        camera = hold_camera(body, height, width)
        place, usable = ndc(body.points, body.known, camera.fitted(6))
        assert usable.all()
        assert place[..., :2].abs().max() == pytest.approx(0.9, abs=0.02), "as large as it may be"


def test_padding_of_the_token_grid_lies_outside_the_picture():
    """A latent of 7 rows makes 4 rows of tokens: the lowest one is half empty, and nothing of the body moves."""
    body = random_body(1, 9, 30)
    even = tokens_of_clip(body, hold(9, 56, 96), Clip(3, 4, 56, 96, 56, 96), Fit(), "linear").tokens
    odd = tokens_of_clip(body, hold(9, 56, 96), Clip(3, 4, 56, 96, 64, 96), Fit(), "linear").tokens
    pixel = [(t.place[..., 1] + 1) / 2 * size for t, size in ((even, 56), (odd, 64))]
    torch.testing.assert_close(pixel[0][even.usable], pixel[1][even.usable], rtol=0, atol=1e-3)


def test_a_reference_tells_of_points_that_it_shows():
    """A latent with a ramp: each point in front takes the value at its own place, one behind it takes nothing."""
    body = random_body(1, 2, 2)
    points = torch.tensor([[0.2, 0.1, 0.3], [0.2, 0.1, -0.9]]).expand(1, 2, 2, 3)
    body = replace(body, points=points)
    ramp = (torch.arange(12) + 0.5).expand(1, 8, 12) / 12
    found = reference_features(ramp, body, hold(1), stride=8)
    x = ndc(body.at(slice(1)).points, body.at(slice(1)).known, hold(1))[0][0, 0, 0, 0]
    torch.testing.assert_close(found, torch.stack([torch.tensor([(x + 1) / 2, 1.0]), torch.zeros(2)]))
