"""The truth of a scene: joints, depth, parts, owners and alpha against each other and against the float64 solver."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from interspatial.models.puppet import world as module
from interspatial.models.puppet.body import INDEX, JOINTS, LIMBS, PARTS
from interspatial.models.puppet.camera import Camera
from interspatial.models.puppet.motion import Motion
from interspatial.models.puppet.scene import Ball, Prompt, Puppet, SceneSpec, random_scene
from interspatial.models.puppet.world import BALL, FIRST_LIMB_PART, FLOOR, World, pose_scene
from interspatial.tests.models.puppet.solver import eye_and_rays, look, on_segment

ARRAYS = ("rgb", "alpha", "depth", "parts", "owners", "joints")
SEEDS = (2, 4, 5, 6, 8)  # between them: every camera move, floor and plate, one to three puppets, balls


def centres(world: World) -> torch.Tensor:
    """returns: [H * W, 2]"""
    y, x = torch.meshgrid(torch.arange(world.height) + 0.5, torch.arange(world.width) + 0.5, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def parts_at(joint: int) -> set[int]:
    """Part codes of the limbs that begin or end at a joint."""
    name = JOINTS[joint]
    return {FIRST_LIMB_PART + PARTS.index(limb.part) for limb in LIMBS if name in (limb.joint, limb.tip)}


@pytest.mark.parametrize("seed", SEEDS)
def test_depth_and_parts_are_what_the_solver_sees(seed):
    world = pose_scene(random_scene(seed, balls=1), 2, 41, 53, fps=4)
    for t in range(2):
        depth, primitive = look(world, t, centres(world))
        got_depth, got_part = world.depth[t].flatten().double(), world.parts[t].flatten()
        sky = depth.isinf()
        wrong = (got_depth.isinf() != sky) | ((got_depth - depth).abs() > 2e-3 + 1e-3 * depth)
        assert wrong.sum() <= 2, "more than the odd ray that just misses a limb or the horizon"
        codes = [FIRST_LIMB_PART + PARTS.index(limb.part) for limb in LIMBS] * len(world.spec.puppets) + [BALL]
        ground = torch.where(sky, module.BACKGROUND, FLOOR)
        expected = torch.where(primitive >= 0, torch.tensor(codes)[primitive.clamp(min=0)], ground)
        assert (got_part == expected).float().mean() > 0.998, "limbs that share a sphere may swap a pixel"


@pytest.mark.parametrize("seed", SEEDS)
def test_depth_is_the_distance_along_the_axis_of_the_hit_point(seed):
    world = pose_scene(random_scene(seed, balls=1), 2, 40, 56, fps=4)
    points, seen = world.hit_points(), world.depth.isfinite()
    for t in range(2):
        eye, rays = eye_and_rays(world, t, centres(world))
        forward = world.camera.w2c[t, 2, :3].double()
        along = (points[t].flatten(0, 1).double() - eye) @ forward
        here = seen[t].flatten()
        torch.testing.assert_close(along[here], world.depth[t].flatten()[here].double(), atol=2e-5, rtol=1e-5)
        on_ray = eye + rays * world.depth[t].flatten()[:, None].double()
        torch.testing.assert_close(on_ray[here], points[t].flatten(0, 1)[here].double(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_hit_points_lie_on_the_surface_of_what_is_hit(seed):
    world = pose_scene(random_scene(seed, balls=2), 2, 40, 56, fps=4)
    bodies, points = world.bodies, world.hit_points().double()
    for t in range(2):
        hit = world.hits.primitive[t] >= 0
        which = world.hits.primitive[t][hit]
        a, b = bodies.origin[t].double()[which], bodies.tip[t].double()[which]
        away = (points[t][hit] - on_segment(a, b, points[t][hit])).norm(dim=1)
        torch.testing.assert_close(away, bodies.radius[which].double(), atol=1e-3, rtol=0)
    on_floor = points[world.parts == FLOOR]
    assert on_floor.numel() == 0 or on_floor[:, 1].abs().max() < 1e-3


@pytest.mark.parametrize("name", ["stand", "walk", "wave", "jump", "squat", "dance"])
def test_a_projected_joint_lies_in_its_limbs_pixels(name):
    """Unless something else is in front: then what is seen there is nearer than the joint's own limbs."""
    spec = SceneSpec((Puppet(motion=Motion(name, 0.4, phase=1.0)),), camera=Camera("orbit", 30.0))
    world = pose_scene(spec, 9, 128, 128, fps=6)
    pixel, depth = (x[:, 0] for x in world.joints_image)
    column, row = (pixel.floor().long().clamp(0, 127)).unbind(-1)
    frame = torch.arange(9)[:, None]
    code, owner, seen = (x[frame, row, column] for x in (world.parts, world.owners, world.depth))
    assert (owner == 0).all(), "a joint is inside the body: its puppet is seen there"
    assert (seen < depth).all(), "and its skin is nearer than the joint"
    own = torch.tensor([[int(c) in parts_at(j) for j, c in enumerate(codes)] for codes in code.tolist()])
    radii = [max(limb.radius for limb in LIMBS if j in (limb.joint, limb.tip)) for j in JOINTS]
    covered = seen < depth - torch.tensor(radii) - 0.01
    ends = [INDEX[n] for n in JOINTS if n.split("_")[-1] in ("knee", "ankle", "foot", "elbow", "hand", "head")]
    assert (own | covered)[:, ends].float().mean() > 0.95, "hands and knees may rest against other limbs"
    assert own[:, ends].float().mean() > 0.6, "most of them are in plain sight"


def test_a_standing_puppets_joints_all_lie_in_their_limbs():
    spec = SceneSpec((Puppet(motion=Motion("stand")),))
    world = pose_scene(spec, 1, 128, 128)
    pixel, _ = world.joints_image
    column, row = pixel[0, 0].floor().long().unbind(-1)
    code = world.parts[0, row, column].tolist()
    inside_torso = {INDEX[n] for n in ("left_hip", "right_hip", "neck", "left_wrist", "right_wrist")}
    for j in set(range(24)) - inside_torso:
        assert code[j] in parts_at(j), JOINTS[j]


@pytest.mark.parametrize("front", [0, 1])
def test_the_nearer_puppet_hides_the_other(front):
    z = (0.8, -0.8) if front == 0 else (-0.8, 0.8)
    people = tuple(Puppet(motion=Motion("stand"), start=(0.0, depth)) for depth in z)
    world = pose_scene(SceneSpec(people), 1, 96, 96)
    alone = [pose_scene(SceneSpec((p,)), 1, 96, 96) for p in people]
    both = (alone[0].owners[0] == 0) & (alone[1].owners[0] == 0)
    assert both.sum() > 200
    assert (world.owners[0][both] == front).all()
    torch.testing.assert_close(world.alpha[front], alone[front].alpha[0])
    assert world.alpha[1 - front].sum() < 0.6 * alone[1 - front].alpha[0].sum()


def test_everywhere_the_nearest_of_the_puppets_is_shown():
    people = tuple(Puppet(motion=Motion("walk", phase=i), start=(0.25 * i - 0.25, 0.5 - 0.4 * i)) for i in range(3))
    world = pose_scene(SceneSpec(people, ground="plate"), 2, 64, 64)
    alone = torch.stack([pose_scene(SceneSpec((p,), ground="plate"), 2, 64, 64).depth for p in people])
    nearest, who = alone.min(0)
    torch.testing.assert_close(world.depth, nearest)
    assert torch.equal(world.owners, torch.where(nearest.isfinite(), who, -1))


@pytest.mark.parametrize("seed", SEEDS)
def test_alpha_is_a_share_and_agrees_with_the_owners(seed):
    world = pose_scene(random_scene(seed, balls=1), 3, 50, 38)
    P = len(world.spec.puppets)
    assert world.alpha.shape == (P, 3, 50, 38)
    assert world.alpha.min() >= 0 and world.alpha.sum(0).max() <= 1
    assert set(world.alpha.unique().tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}, "four rays a pixel"
    for p in range(P):
        own = world.owners == p
        full, none = world.alpha[p] == 1, world.alpha[p] == 0
        assert full.sum() > 20
        assert own[full].float().mean() > 0.99 and own[none].float().mean() < 0.002
        assert abs(world.alpha[p].sum() - own.sum()) < 0.1 * own.sum()


def test_a_plate_has_neither_floor_nor_depth():
    world = pose_scene(replace(random_scene(0, puppets=1, balls=1, move="orbit"), ground="plate"), 3, 40, 40)
    empty = world.hits.primitive < 0
    assert world.depth[empty].isinf().all() and (world.parts[empty] == module.BACKGROUND).all()
    clear = (world.alpha.sum(0) == 0) & (world.parts == module.BACKGROUND)
    clear &= -torch.nn.functional.max_pool2d(-clear.float()[:, None], 3, 1, 1)[:, 0] > 0  # away from the ball's rim
    bare = pose_scene(SceneSpec((), ground="plate", plate=world.spec.plate), 1, 40, 40).rgb[0]
    for t in range(3):
        assert torch.equal(world.rgb[t][clear[t]], bare[clear[t]]), "the plate does not follow the camera"


@pytest.mark.parametrize(("puppets", "balls"), [(0, 0), (0, 2), (1, 0), (3, 1)])
@pytest.mark.parametrize("ground", ["floor", "plate"])
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 37, 51), (3, 8, 90)])
def test_any_number_size_and_length(puppets, balls, ground, frames, height, width):
    world = pose_scene(replace(random_scene(7, puppets, balls), ground=ground), frames, height, width)
    assert world.size == world.depth.shape == world.parts.shape == world.owners.shape == (frames, height, width)
    assert world.rgb.shape == (frames, height, width, 3)
    assert world.alpha.shape == (puppets, frames, height, width)
    assert world.joints.shape == (frames, puppets, 24, 3)
    assert [x.shape for x in world.joints_image] == [(frames, puppets, 24, 2), (frames, puppets, 24)]
    assert world.rgb.isfinite().all() and world.rgb.min() >= 0 and world.rgb.max() <= 1
    assert (world.depth > 0).all() and world.owners.max() < puppets + balls


def test_the_same_seed_gives_the_same_floats():
    for seed in (3, 5):
        one, two = (pose_scene(random_scene(seed), 2, 33, 47) for _ in range(2))
        for name in ARRAYS:
            assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert not torch.equal(one.rgb, pose_scene(random_scene(4), 2, 33, 47).rgb)


def test_chunks_and_spans_of_frames_change_nothing(monkeypatch):
    spec = random_scene(6, balls=1)
    whole = pose_scene(spec, 7, 24, 40)
    for name in ARRAYS:  # computed before the chunks get small
        getattr(whole, name)
    monkeypatch.setattr(module, "CHUNK_RAYS", 3 * 24 * 40)
    chunked = pose_scene(spec, 7, 24, 40)
    part = pose_scene(spec, 7, 24, 40).at(slice(2, 5))
    for name in ARRAYS:
        frames = 1 if name == "alpha" else 0
        same = getattr(chunked, name), getattr(whole, name)
        torch.testing.assert_close(*same, atol=1e-5, rtol=0, msg=name)
        torch.testing.assert_close(getattr(part, name), same[1].narrow(frames, 2, 3), atol=1e-5, rtol=0, msg=name)


def test_tick_counts_the_frames_and_may_end_the_work(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_RAYS", 2 * 4 * 16 * 16)  # two frames at a time
    heard: list[int] = []
    world = pose_scene(random_scene(1), 5, 16, 16, tick=heard.append)
    assert heard == []
    assert world.rgb.shape[0] == 5
    assert heard == [2, 4, 5]

    class StoppedError(Exception):
        pass

    def stop(done: int) -> None:
        heard.append(done)
        raise StoppedError

    heard.clear()
    world = pose_scene(random_scene(1), 5, 16, 16, tick=stop)
    with pytest.raises(StoppedError):
        _ = world.rgb
    assert heard == [2], "it ended after the first frames"


@pytest.mark.parametrize(("frames", "height", "width", "fps", "says"), [
    (0, 32, 32, 16.0, "at least 1 frame of 8x8 pixels, got 0 of 32x32."),
    (1, 7, 32, 16.0, "got 1 of 7x32."),
    (1, 32, 7, 16.0, "got 1 of 32x7."),
    (2, 32, 32, 0.0, "more than 0 frames per second, got 0.0."),
    (2, 32, 32, math.nan, "more than 0 frames per second, got nan."),
])  # fmt: skip
def test_no_frames_no_pixels_no_time(frames, height, width, fps, says):
    with pytest.raises(ValueError) as error:
        pose_scene(SceneSpec(()), frames, height, width, fps)
    assert says in str(error.value)


def test_a_camera_under_the_floor_sees_none():
    world = pose_scene(SceneSpec((), camera=Camera(height=-1.0)), 1, 16, 16)
    assert world.depth.isinf().all() and (world.parts == module.BACKGROUND).all()


def test_depth_is_of_what_the_picture_shows_where_a_heel_sinks_in():
    """A fast walker's heel dips 8 mm under the floor. Picture, parts and depth all take the heel."""
    walker = Puppet(motion=Motion("walk", speed=1.3))
    close = Camera(aim=(0.12, 0.02, 5.2), distance=3.0, height=0.3, view=0.2, angle=180.0)
    world = pose_scene(SceneSpec((walker,), camera=close), 2, 64, 64, fps=1 / 3.82)
    shin = world.parts[1] == FIRST_LIMB_PART + PARTS.index("left_shin")
    under = shin & (world.hit_points()[1, ..., 1] < -1e-3)
    assert under.sum() > 5
    assert torch.equal(world.depth[1][shin], world.hits.depth[1][shin])


# Mean colours of 4 x 4 tiles (red, green, blue planes) of the last of 9 frames of 64 x 64 pixels at 8 frames a second.
LOOKS = [
    (Prompt(2, "green", "right", "floor"), "cfcfcfcfc7c6a6af989a7c8398979b9adad9d9daccccb8c298997b8297969a99"
                                           "e6e6e6e6d2d2aab895977b8295949897"),
    (Prompt(1, "pink", "jump", "plate"), "adaeabada9a597a9a6a299a6a3a3a3a3ada79fada9a181a9a6a299a6a3a3a3a3"
                                         "ada9a1ada9a48fa9a6a39aa6a3a3a3a3"),
    (Prompt(3, "yellow", "dance", "floor"), "d1d1d1d1afaca4b780817999989a989adbdbdbdbaea99fb97f8079989799979a"
                                            "e7e7e7e7999080b87e80799694979597"),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_the_look_is_the_one_the_checkpoints_were_trained_on(seed):
    """Who changes colours, motions, textures, light or the order of the draws has to train the checkpoints again."""
    prompt, tiles = LOOKS[seed]
    world = pose_scene(prompt.scene(random.Random(seed)), 9, 64, 64, fps=8.0)
    mean = torch.nn.functional.avg_pool2d(world.rgb[8].movedim(-1, 0), 16) * 255
    expected = torch.tensor(list(bytes.fromhex(tiles))).view(3, 4, 4)
    assert (mean - expected).abs().max() < 1


def test_a_ball_has_its_size_and_its_own_code():
    ball, camera = Ball(radius=0.3, start=(0.0, 0.0), drop=1.0), Camera(aim=(0.0, 1.0, 0.0), height=1.0)
    world = pose_scene(SceneSpec((), (ball,), camera=camera), 1, 128, 128)
    seen = world.parts[0] == BALL
    assert torch.equal(world.owners[0] == 0, seen)
    # a sphere is seen under asin(r / d), so on the picture its radius is focal * tan of that
    expected = float(world.camera.K[0, 0, 0]) * math.tan(math.asin(0.3 / 5.0))
    assert math.sqrt(float(seen.sum()) / math.pi) == pytest.approx(expected, rel=0.02)
    assert world.depth[0][seen].min() == pytest.approx(4.7, abs=1e-3)
    assert world.alpha.shape[0] == 0, "alpha is for puppets"
