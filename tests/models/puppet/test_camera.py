"""Cameras: rigid, OpenCV's axes, moves at the speeds they are given."""

from __future__ import annotations

import math

import pytest
import torch
from interspatial.models.puppet.camera import MOVES, Camera, track

T = torch.arange(33) / 16.0
AMOUNT = {"hold": 0.0, "orbit": 30.0, "dolly": 0.7, "pan": 10.0}
each_move = pytest.mark.parametrize("move", MOVES)


def camera(move: str, **more: object) -> Camera:
    return Camera(move, AMOUNT[move], **more)


@each_move
def test_extrinsics_are_rigid(move):
    w2c = track(camera(move, angle=25.0), T, 64, 96).w2c
    R = w2c[:, :3, :3]
    torch.testing.assert_close(R @ R.transpose(1, 2), torch.eye(3).expand_as(R), atol=2e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(33), atol=2e-6, rtol=0)
    assert (w2c[:, 3] == torch.tensor([0.0, 0.0, 0.0, 1.0])).all()
    assert R[:, 0, 1].abs().max() < 1e-6, "the horizon is level: the camera's x axis lies in the floor's plane"
    assert (R[:, 1, 1] < 0).all(), "the camera's y axis points down"


@each_move
def test_centre_is_where_the_camera_is(move):
    seen = track(camera(move), T, 64, 64)
    homogeneous = torch.cat([seen.centre, torch.ones(33, 1)], 1)
    torch.testing.assert_close((seen.w2c @ homogeneous[..., None])[:, :3, 0], torch.zeros(33, 3), atol=2e-6, rtol=0)
    torch.testing.assert_close(seen.centre[:, 1], torch.full((33,), 1.35), atol=1e-5, rtol=0)


@pytest.mark.parametrize("move", [m for m in MOVES if m != "pan"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (37, 90), (90, 37)])
def test_the_aim_stays_in_the_middle(move, height, width):
    seen = track(camera(move, aim=(0.2, 1.0, -0.1)), T, height, width)
    pixel, depth = seen.project(torch.tensor([0.2, 1.0, -0.1]).expand(33, 3))
    torch.testing.assert_close(pixel, torch.tensor([width / 2, height / 2]).expand(33, 2), atol=1e-3, rtol=0)
    assert (depth > 1).all()


def test_right_up_and_depth_on_screen():
    seen = track(Camera(distance=5.0, height=1.0, view=4.0, aim=(0.0, 1.0, 0.0)), torch.zeros(1), 64, 128)
    points = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 2.0, 0.0], [1.0, 1.0, 2.5]])
    pixel, depth = seen.project(points[None])
    # the longer side, 128 pixels, spans 4 m at 5 m: 32 pixels a metre
    expected = torch.tensor([[64.0, 32.0], [96.0, 32.0], [64.0, 0.0], [128.0, 32.0]])
    torch.testing.assert_close(pixel[0], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(depth[0], torch.tensor([5.0, 5.0, 5.0, 2.5]))


@pytest.mark.parametrize(("height", "width"), [(128, 64), (64, 128)])
def test_the_longer_side_spans_the_view(height, width):
    seen = track(Camera(distance=5.0, view=4.0), torch.zeros(2), height, width)
    expected = torch.tensor([[160.0, 0.0, width / 2], [0.0, 160.0, height / 2], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(seen.K, expected.expand(2, 3, 3))


def test_project_agrees_with_k_and_w2c_in_float64():
    seen = track(camera("orbit"), T, 50, 70)
    points = torch.randn(33, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    pixel, depth = seen.project(points)
    assert pixel.shape == (33, 2, 5, 2) and depth.shape == (33, 2, 5)
    R, offset = seen.w2c[:, :3, :3].double(), seen.w2c[:, :3, 3].double()
    local = torch.einsum("fij,fpqj->fpqi", R, points.double()) + offset[:, None, None]
    image = torch.einsum("fij,fpqj->fpqi", seen.K.double(), local)
    torch.testing.assert_close(depth.double(), local[..., 2], atol=1e-5, rtol=0)
    torch.testing.assert_close(pixel.double(), image[..., :2] / image[..., 2:], atol=1e-3, rtol=0)


def test_an_orbit_keeps_its_distance_and_turns_towards_x():
    seen = track(Camera("orbit", 90.0, distance=5.0, aim=(1.0, 0.85, 2.0)), T, 64, 64)
    away = seen.centre[:, (0, 2)] - torch.tensor([1.0, 2.0])
    expected = 5.0 * torch.stack([(T * math.pi / 2).sin(), (T * math.pi / 2).cos()], 1)
    torch.testing.assert_close(away, expected, atol=1e-5, rtol=0)


def test_a_dolly_comes_nearer_and_stops_at_a_metre():
    near = track(Camera("dolly", 3.0, distance=5.0), T, 64, 64).centre[:, 2]
    torch.testing.assert_close(near, (5.0 - 3.0 * T).clamp(min=1.0), atol=1e-5, rtol=0)
    assert near[-1] == pytest.approx(1.0, abs=1e-5)


def test_a_pan_turns_to_the_right_on_the_spot():
    seen = track(Camera("pan", 10.0), T, 64, 64)
    torch.testing.assert_close(seen.centre, seen.centre[:1].expand(33, 3), atol=1e-5, rtol=0)
    forward = seen.w2c[:, 2, :3]
    yaw = torch.atan2(forward[:, 0], -forward[:, 2])
    torch.testing.assert_close(torch.rad2deg(yaw), 10.0 * T, atol=1e-3, rtol=0)
    torch.testing.assert_close(forward[:, 1], forward[:1, 1].expand(33), atol=1e-6, rtol=0)


def test_fewer_frames_are_the_same_frames():
    seen = track(camera("orbit"), T, 64, 64)
    part = seen.at(slice(3, 7))
    assert torch.equal(part.K, seen.K[3:7]) and torch.equal(part.w2c, seen.w2c[3:7])


@pytest.mark.parametrize(("wrong", "says"), [
    ({"move": "zoom"}, "camera move 'zoom' is not known. Accepted: hold, orbit, dolly, pan."),
    ({"distance": 0.0}, "above 0 m, got 0.0 and 4.2."),
    ({"view": -1.0}, "above 0 m, got 5.0 and -1.0."),
    ({"distance": math.nan}, "above 0 m, got nan and 4.2."),
])  # fmt: skip
def test_wrong_cameras_are_refused_with_a_sentence(wrong, says):
    with pytest.raises(ValueError) as error:
        Camera(**wrong)
    assert says in str(error.value)
