"""Camera moves in closed form, and starts that see the whole body."""

from __future__ import annotations

import math

import pytest
import torch
from interspatial.models.control.camera_moves import (
    MARGIN,
    MOVES,
    NEAREST,
    Stand,
    aim_of,
    default_stand,
    lengthened,
    looking,
    moved,
    stand_before,
)
from interspatial.models.control.from_world import body_of_world, camera_of_world
from interspatial.models.puppet.camera import Camera
from interspatial.models.puppet.motion import Motion
from interspatial.models.puppet.scene import Puppet, SceneSpec
from interspatial.models.puppet.world import pose_scene

AIM = torch.tensor([0.3, 1.0, -0.2])
STAND = Stand(torch.tensor([0.3, 1.0, 3.8]), AIM, 50.0)  # level, 4 m before the aim, looking along -z
START = STAND.path(5, 48, 80)
SHARE = torch.linspace(0, 1, 5)


def test_a_stand_looks_at_its_aim_with_its_field_of_view():
    seen = START.view(AIM.expand(1, 5, 1, 3))
    torch.testing.assert_close(seen[0, :, 0], torch.tensor([0.0, 0.0, 4.0]).expand(5, 3), atol=1e-6, rtol=0)
    assert 24 / START.K[0, 1, 1] == pytest.approx(math.tan(math.radians(25.0)))
    above = START.view((AIM + torch.tensor([0.0, 0.5, 0.0])).expand(1, 5, 1, 3))
    assert (above[..., 1] < 0).all()  # y grows downwards


def test_where_each_move_goes():
    found = {move: moved(START, move, 30.0 if move in ("orbit", "pan", "tilt") else 1.5, AIM) for move in MOVES}
    turn = torch.deg2rad(30.0 * SHARE)
    zero = torch.zeros(5)
    ways = {"hold": (zero, zero, zero), "pan": (zero, zero, zero), "tilt": (zero, zero, zero),
            "zoom": (zero, zero, zero), "dolly": (zero, zero, -1.5 * SHARE), "truck": (1.5 * SHARE, zero, zero),
            "crane": (zero, 1.5 * SHARE, zero), "orbit": (4 * turn.sin(), zero, 4 * turn.cos() - 4)}  # fmt: skip
    for move, way in ways.items():
        torch.testing.assert_close(found[move].centre, STAND.centre + torch.stack(way, -1), atol=1e-5, rtol=0)
    views = {move: path.w2c[:, 2, :3] for move, path in found.items()}  # where the camera looks
    straight = torch.tensor([0.0, 0.0, -1.0]).expand(5, 3)
    for move in ("hold", "dolly", "truck", "crane", "zoom"):
        torch.testing.assert_close(views[move], straight)
    torch.testing.assert_close(views["pan"], torch.stack([turn.sin(), zero, -turn.cos()], -1))
    torch.testing.assert_close(views["tilt"], torch.stack([zero, turn.sin(), -turn.cos()], -1))
    assert found["orbit"].view(AIM.expand(1, 5, 1, 3))[..., :2].abs().max() < 1e-5  # the aim stays in the middle
    torch.testing.assert_close(found["zoom"].K[:, 0, 0], START.K[:, 0, 0] * 1.5**SHARE)
    torch.testing.assert_close(found["zoom"].K[:, :2, 2], START.K[:, :2, 2])


def test_an_orbit_is_that_of_puppet_world():
    camera = Camera("orbit", 24.0, distance=4.0, height=1.6, aim=(0.3, 1.0, -0.2))
    world = pose_scene(SceneSpec((Puppet(),), camera=camera), 9, 48, 80)
    truth = camera_of_world(world)
    found = moved(lengthened(truth.at(slice(1)), 9), "orbit", 24.0 * 8 / 16, AIM)
    torch.testing.assert_close(found.w2c, truth.w2c, atol=1e-5, rtol=0)


def test_moves_are_laid_over_a_start_that_moves():
    both = moved(moved(START, "truck", 1.0, AIM), "crane", 2.0, AIM)
    torch.testing.assert_close(both.centre[-1], STAND.centre + torch.tensor([1.0, 2.0, 0.0]))


def test_easing_rests_at_both_ends():
    found = moved(STAND.path(101, 48, 80), "truck", 1.0, AIM, "ease in and out").centre[:, 0] - STAND.centre[0]
    step = found.diff()
    assert found[0] == 0 and found[-1] == pytest.approx(1) and found[50] == pytest.approx(0.5, abs=1e-5)
    assert step[0] < 0.05 * step[50] and step[-1] < 0.05 * step[50] and (step > -1e-7).all()


def test_a_dolly_stops_before_its_aim():
    found = moved(START, "dolly", 10.0, AIM)
    assert (found.centre[-1] - AIM).norm() == pytest.approx(NEAREST, abs=1e-5)


@pytest.mark.parametrize("height", [48, 200])
@pytest.mark.parametrize("above", [None, 2.6])
@pytest.mark.parametrize("angle", [0.0, 115.0])
def test_a_fitted_stand_sees_the_whole_body_and_is_no_farther_than_needed(height, above, angle):
    body = body_of_world(pose_scene(SceneSpec((Puppet(motion=Motion("walk", 0.5)),)), 9, 32, 32), 200)
    stand = stand_before(body, height, 100, above=above, angle=angle)
    seen = stand.path(9, height, 100)
    cam = seen.view(body.points)
    pixel = (cam @ seen.K.transpose(1, 2))[..., :2] / cam[..., 2:]
    reach = (2 * pixel / torch.tensor([100.0, height]) - 1).abs().max()
    assert MARGIN - 0.02 < reach < MARGIN + 0.02
    around = (stand.centre - stand.aim)[[0, 2]]
    assert math.degrees(math.atan2(around[0], around[1])) == pytest.approx(angle, abs=1e-3)
    assert above is None or stand.centre[1] == pytest.approx(above)


def test_a_start_for_an_orbit_sees_the_body_all_the_way():
    people = (Puppet(motion=Motion("stand")), Puppet(motion=Motion("stand"), start=(0.0, -3.0)))
    body = body_of_world(pose_scene(SceneSpec(people), 5, 32, 32), 64)
    stand = stand_before(body, 64, 64, sweep=90.0)
    path = moved(stand.path(5, 64, 64), "orbit", 90.0, stand.aim)
    cam = path.view(body.points)
    pixel = (cam @ path.K.transpose(1, 2))[..., :2] / cam[..., 2:]
    assert (pixel > 0).all() and (pixel < 64).all()


def test_the_aim_of_a_given_camera_is_as_far_as_the_body():
    world = pose_scene(SceneSpec((Puppet(motion=Motion("stand"), start=(0.4, -0.5)),)), 3, 32, 32)
    body, camera = body_of_world(world, 64), camera_of_world(world)
    aim = aim_of(camera, body)
    middle = (body.points.amin((0, 1, 2)) + body.points.amax((0, 1, 2))) / 2
    deep = camera.view(torch.stack([aim, middle]).expand(1, 3, 2, 3))
    assert deep[0, 0, 0, 2] == pytest.approx(float(deep[0, 0, 1, 2]), abs=1e-4) and deep[0, 0, 0, :2].abs().max() < 1e-5
    assert (aim_of(camera, None) - camera.centre[0]).norm() == pytest.approx(3.0, abs=1e-5)


def test_straight_down_and_on_the_spot():
    down = looking(torch.tensor([0.0, 3.0, 0.0]), torch.zeros(3))
    torch.testing.assert_close(down[:3, :3] @ down[:3, :3].T, torch.eye(3))
    with pytest.raises(ValueError, match="stands on the point"):
        looking(torch.ones(3), torch.ones(3))


def test_lengths():
    path = moved(START, "truck", 1.0, AIM)
    longer = lengthened(path, 8)
    assert torch.equal(longer.w2c[:5], path.w2c) and torch.equal(longer.w2c[7], path.w2c[4])
    assert lengthened(path, 2).frames == 2
    assert torch.equal(moved(START.at(slice(1)), "truck", 1.0, AIM).w2c, START.w2c[:1])  # one frame: no way to go


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"'roll', 'linear' is not known\. Accepted: hold, orbit"):
        moved(START, "roll", 1.0, AIM)
    with pytest.raises(ValueError, match="a zoom of 0 times"):
        moved(START, "zoom", 0.0, AIM)
    body = body_of_world(pose_scene(SceneSpec((Puppet(),)), 1, 32, 32), 32)
    with pytest.raises(ValueError, match="nothing to look at"):
        stand_before(type(body)(body.points, body.known & False, body.part, 16.0), 32, 32)
    assert default_stand().centre[2] == 5.0
