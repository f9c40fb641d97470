"""Optical flow: the same point of the same body, found again from the pose of the next frame."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interspatial.models.puppet.body import INDEX, LIMBS
from interspatial.models.puppet.camera import Camera
from interspatial.models.puppet.flow import optical_flow
from interspatial.models.puppet.motion import act
from interspatial.models.puppet.scene import Ball, Puppet, SceneSpec, random_scene
from interspatial.models.puppet.world import FLOOR, World, pose_scene
from interspatial.tests.models.puppet.solver import look

SEEDS = (2, 4, 5, 6, 8)


def centres(world: World) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(world.height) + 0.5, torch.arange(world.width) + 0.5, indexing="ij")
    return torch.stack([x, y], -1)


def projected(world: World, frame: int, points: torch.Tensor) -> torch.Tensor:
    """World points on one frame's picture, in float64. points: [N, 3] -> [N, 2]"""
    w2c, K = world.camera.w2c[frame].double(), world.camera.K[frame].double()
    image = (points.double() @ w2c[:3, :3].T + w2c[:3, 3]) @ K.T
    return image[:, :2] / image[:, 2:]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pixel_goes_where_its_limb_carries_it(seed):
    """The limb's frame is taken from the pose itself, not from the renderer's list of primitives."""
    world, t_seconds = pose_scene(random_scene(seed), 3, 48, 60, fps=10), torch.arange(3) / 10
    flow, _ = optical_flow(world)
    points, compared = world.hit_points().double(), 0
    for p, puppet in enumerate(world.spec.puppets):
        rotations, positions = (x.double() for x in act(puppet.motion, t_seconds, puppet.start, puppet.height))
        for i, limb in enumerate(LIMBS):
            j = INDEX[limb.joint]
            for t in range(2):
                here = world.hits.primitive[t] == p * len(LIMBS) + i
                local = (points[t][here] - positions[t, j]) @ rotations[t, j]
                later = local @ rotations[t + 1, j].T + positions[t + 1, j]
                moved = projected(world, t + 1, later) - centres(world)[here]
                torch.testing.assert_close(flow[t][here].double(), moved, atol=5e-3, rtol=1e-3, msg=f"{limb}")
                compared += int(here.sum())
    assert compared > 100


def test_a_ball_carries_its_pixels_along_its_path():
    ball = Ball(start=(0.0, 0.0), drop=1.2, velocity=(1.0, 0.5))
    world = pose_scene(SceneSpec((), (ball,), camera=Camera("orbit", 20.0)), 2, 64, 64)
    flow, _ = optical_flow(world)
    here = world.hits.primitive[0] == 0
    step = world.bodies.origin[1, 0] - world.bodies.origin[0, 0]
    moved = projected(world, 1, world.hit_points()[0][here] + step) - centres(world)[here]
    torch.testing.assert_close(flow[0][here].double(), moved, atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("move", ["orbit", "dolly", "pan"])
def test_the_floor_moves_with_the_camera_only(move):
    world = pose_scene(replace(random_scene(3, puppets=1, balls=0, move=move), ground="floor"), 3, 48, 48)
    flow, visible = optical_flow(world)
    for t in range(2):
        here = world.parts[t] == FLOOR
        moved = projected(world, t + 1, world.hit_points()[t][here]) - centres(world)[here]
        near = world.depth[t][here] < 20  # float32 loses the far floor's third digit
        torch.testing.assert_close(flow[t][here][near].double(), moved[near], atol=5e-3, rtol=1e-3)
    assert flow.abs().max() > 0.1 and visible.float().mean() > 0.5


def test_with_a_still_camera_floor_and_sky_stand_still():
    world = pose_scene(replace(random_scene(3, puppets=2, balls=1, move="hold"), ground="floor"), 3, 48, 48)
    flow, visible = optical_flow(world)
    backdrop = world.hits.primitive[:-1] < 0
    assert world.parts[:-1][backdrop].unique().tolist() == [0, FLOOR]
    assert flow[backdrop].abs().max() < 1e-2
    assert flow[world.depth[:-1].isinf()].abs().max() < 1e-4
    covered = backdrop & (world.hits.primitive[1:] >= 0)
    assert covered.any()
    assert (visible[backdrop & ~covered]).float().mean() > 0.999
    assert not visible[covered].any(), "a puppet stepped in front"


def test_a_pan_moves_the_sky_by_its_angle():
    world = pose_scene(SceneSpec((), camera=Camera("pan", 16.0, height=0.85)), 2, 65, 65)  # level: one degree a frame
    flow, _ = optical_flow(world)
    sky = flow[0][10, 32]  # above the middle
    focal = float(world.camera.K[0, 0, 0])
    assert world.depth[0, 10, 32].isinf()
    assert float(sky[0]) == pytest.approx(-focal * torch.tan(torch.deg2rad(torch.tensor(1.0))).item(), rel=1e-3)


def test_a_plate_stands_still_whatever_the_camera_does():
    world = pose_scene(replace(random_scene(0, puppets=1, balls=0, move="orbit"), ground="plate"), 3, 40, 40)
    flow, visible = optical_flow(world)
    plate = world.hits.primitive[:-1] < 0
    assert (flow[plate] == 0).all()
    assert torch.equal(visible[plate], (world.hits.primitive[1:] < 0)[plate])


@pytest.mark.parametrize("seed", SEEDS)
def test_visible_is_what_the_solver_sees(seed):
    """Each point is looked for exactly where it moves to; up to 1 cm behind the first surface either is right."""
    world = pose_scene(random_scene(seed), 3, 40, 40, fps=8)
    _, visible = optical_flow(world)
    for t in range(2):
        w2c = world.camera.w2c[t + 1].double()
        later = carried(world, t)
        depth, target = (later @ w2c[:3, :3].T + w2c[:3, 3])[:, 2], projected(world, t + 1, later)
        inside = ((target >= 0) & (target < 40)).all(1)
        first, _ = look(world, t + 1, target)
        near = (world.depth[t] < 20).flatten()
        got = visible[t].flatten()
        assert not got[~inside & near].any()
        hidden, plain = (inside & near & which for which in (first < depth - 0.01, first >= depth - 2e-4))
        assert plain.sum() > 50
        assert got[hidden].sum() <= 1 and got[plain].float().mean() > 0.998, "but rays that just touch or miss a limb"


def carried(world: World, t: int) -> torch.Tensor:
    """Where the point behind each pixel of frame t is in frame t + 1, in float64. returns: [H * W, 3]"""
    bodies, which = world.bodies, world.hits.primitive[t].flatten()
    point = world.hit_points()[t].flatten(0, 1).double()
    if not bodies.origin.shape[1]:
        return point
    R0, R1 = (bodies.rotation[k].double()[which] for k in (t, t + 1))
    o0, o1 = (bodies.origin[k].double()[which] for k in (t, t + 1))
    later = (R1 @ R0.transpose(1, 2) @ (point - o0)[..., None])[..., 0] + o1
    return torch.where(which[:, None] >= 0, later, point)


@pytest.mark.parametrize("seed", (4, 5, 6))
def test_the_next_frame_warped_back_is_this_frame(seed):
    """Where visible, the next frame fetched along the flow looks like this one, far more than the next frame itself.

    What is left is the edge of each limb, blended with what is behind it: 30 to 33 dB at 96 pixels, 33 to 36 at 192.
    """
    world = pose_scene(random_scene(seed), 3, 96, 96)
    flow, visible = optical_flow(world)
    target = (centres(world) + flow) / 96 * 2 - 1
    fetched = torch.nn.functional.grid_sample(world.rgb[1:].movedim(-1, 1), target, "bilinear", "border", False)
    warped, still = psnr(fetched.movedim(1, -1), world.rgb[:-1], visible), psnr(world.rgb[1:], world.rgb[:-1], visible)
    assert warped > 29 and warped > still + 6
    backwards = (centres(world) - flow) / 96 * 2 - 1
    wrong = torch.nn.functional.grid_sample(world.rgb[1:].movedim(-1, 1), backwards, "bilinear", "border", False)
    assert psnr(wrong.movedim(1, -1), world.rgb[:-1], visible) < still, "the sign of the flow matters"


def psnr(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor) -> float:
    return -10 * float((a - b)[where].square().mean().log10())


def test_what_leaves_the_picture_is_not_visible():
    ball = Ball(start=(2.0, 0.0), drop=1.0, velocity=(12.0, 0.0))
    world = pose_scene(SceneSpec((), (ball,), ground="plate"), 2, 64, 64)
    flow, visible = optical_flow(world)
    here = world.hits.primitive[0] == 0
    assert here.any() and (flow[0][here][:, 0] > 5).all()
    assert not visible[0][here].any()


@pytest.mark.parametrize(("frames", "puppets", "balls"), [(1, 1, 0), (1, 0, 0), (3, 0, 0), (3, 0, 1)])
def test_few_frames_and_nobody_there(frames, puppets, balls):
    world = pose_scene(random_scene(2, puppets, balls), frames, 19, 27)
    flow, visible = optical_flow(world)
    assert flow.shape == (frames - 1, 19, 27, 2) and visible.shape == (frames - 1, 19, 27)
    assert flow.isfinite().all()


def test_a_ball_that_rolls_in_front_of_a_puppet_hides_it():
    ball = Ball(radius=0.5, start=(-1.2, 1.0), drop=0.9, velocity=(8.0, 0.0))
    world = pose_scene(SceneSpec((Puppet("red", start=(0.0, -0.8)),), (ball,), ground="plate"), 3, 64, 64)
    _, visible = optical_flow(world)
    for t in range(2):
        covered = (world.owners[t] == 0) & (world.owners[t + 1] == 1)
        assert covered.any() and visible[t][covered].float().mean() < 0.1
