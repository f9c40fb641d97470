"""Pose following: perfect for the truth, exact for known shifts, and every way to get it wrong is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interspatial.models.measure.pose_following import end_distance, fitted, follow, jitter, marks_of
from interspatial.models.measure.pose_picture import draw_following, frames_of
from interspatial.models.puppet.camera import Camera
from interspatial.models.puppet.motion import Motion
from interspatial.models.puppet.scene import Puppet, SceneSpec
from interspatial.models.puppet.suit import COLOURS
from interspatial.models.puppet.world import World, pose_scene

SUITS = tuple(tuple(c for c in COLOURS if min(c) == 0)[i::2] for i in (0, 1))


def crossing(frames: int = 3, size: tuple[int, int] = (64, 64), suits=SUITS, ground: str = "plate") -> World:
    """One person before another, well inside the picture."""
    people = (Puppet(motion=Motion("squat", 0.2, phase=0.5), start=(0.1, 0.4), suit=suits[0]),
              Puppet(motion=Motion("dance", -0.2, phase=1.0), start=(-0.15, -0.4), suit=suits[1]))  # fmt: skip
    camera = Camera(distance=4.0, view=3.4, aim=(0.0, 0.95, 0.0))
    return pose_scene(SceneSpec(people, ground=ground, camera=camera), frames, *size)


@pytest.fixture(scope="module")
def world() -> World:
    return crossing()


@pytest.mark.parametrize("ground", ["plate", "floor"])
def test_the_truth_is_perfect(ground):
    world = crossing(4, (48, 56), ground=ground)
    score = follow(world.rgb, world)
    assert len(score.names) == 12 and score.judged.sum() > 30
    assert (score.part_error, score.joint_error, score.part_recall, score.silhouette_iou) == (0, 0, 1, 1)
    assert (score.right_person, score.overlap_recall) == (1, 1) and score.overlap.min() > 20
    assert score.jitter == score.truth_jitter > 0
    assert not score.notes


@pytest.mark.parametrize("shift", [1, 3, -4])
def test_a_shifted_truth_scores_its_shift(world, shift):
    score = follow(world.rgb.roll(shift, 2), world, token=4)
    judged = score.part_errors[score.judged]
    torch.testing.assert_close(judged, torch.full_like(judged, abs(shift)), atol=1e-4, rtol=0)
    assert score.joint_error == pytest.approx(abs(shift) / 4, abs=1e-4)
    assert score.part_recall < 0.9 and score.silhouette_iou < 0.95


def test_an_empty_clip_is_as_bad_as_can_be(world):
    blank = torch.tensor(world.spec.plate).expand_as(world.rgb)
    score = follow(blank, world, token=8)
    assert score.part_error == 32 and score.joint_error == 4, "half the picture's height"
    assert score.part_recall == 0 and score.overlap_recall == 0
    assert score.silhouette_iou == 0
    assert score.jitter != score.jitter


def test_swapped_people_are_seen(world):
    score = follow(crossing(suits=SUITS[::-1]).rgb, world)
    assert score.right_person < 0.1 and score.part_recall < 0.1 and score.part_error > 5
    assert score.silhouette_iou > 0.95, "the outline alone would not tell"


def test_the_wrong_one_in_front_is_seen():
    front = crossing()
    people = front.spec.puppets
    depths = [p.start[1] for p in people]
    behind = replace(front.spec, puppets=tuple(replace(p, start=(p.start[0], z))
                                               for p, z in zip(people, depths[::-1], strict=True)))  # fmt: skip
    score = follow(pose_scene(behind, *front.size).rgb, front)
    assert score.right_person < 0.35 < 0.5 < follow(front.rgb.roll(1, 2), front).right_person


@pytest.mark.parametrize("heading", [0.0, 3.1416])
def test_left_and_right_are_told_apart(heading):
    """A person seen from the front has the outline of its mirror picture, and so its outline says nothing."""
    spec = SceneSpec((Puppet(motion=Motion("stand", heading), suit=SUITS[0]),), ground="plate")
    world = pose_scene(spec, 1, 96, 96)
    score = follow(world.rgb.flip(2), world)
    assert score.silhouette_iou > 0.97
    error = dict(zip(score.names, score.part_errors[0].tolist(), strict=True))
    assert error["head"] < 0.5 and error["left arm"] > 8 and error["right leg"] > 3
    assert score.part_recall < 0.6


def test_a_motion_at_another_time_is_worse_than_at_its_own():
    spec = SceneSpec((Puppet(motion=Motion("dance"), suit=SUITS[0]),), ground="floor")
    world = pose_scene(spec, 4, 64, 64, fps=8)
    off = [follow(pose_scene(spec, 4 + i, 64, 64, fps=8).rgb[i:], world).part_error for i in range(3)]
    assert off[0] == 0 < 0.5 < off[1] < off[2]


def test_clothes_are_zones_where_there_is_no_suit():
    people = (Puppet("red", motion=Motion("wave"), start=(-0.1, 0.5)),
              Puppet("blue", motion=Motion("stand"), start=(0.1, -0.5)))  # fmt: skip
    world = pose_scene(SceneSpec(people), 3, 64, 64)
    score = follow(world.rgb, world)
    assert set(score.names) == {"shirt of 1", "shirt of 2", "skin of 1 and 2", "trousers of 1 and 2"}
    assert score.part_error == 0 and score.right_person == 1 and score.joint_error != score.joint_error
    assert any("no limb has a colour of its own" in line for line in score.lines())
    swapped = replace(world.spec, puppets=(replace(people[0], shirt="blue"), replace(people[1], shirt="red")))
    assert follow(pose_scene(swapped, 3, 64, 64).rgb, world).right_person < 0.2


def test_centroid_and_ends_of_a_bar_are_where_it_is():
    """A bar of 1 x 20 pixels: its middle is exact, its ends to half a pixel; straight and slanted."""
    zone = torch.full((2, 40, 40), -1)
    zone[0, 7, 5:25] = 0
    zone[1, torch.arange(10, 30), torch.arange(6, 26)] = 1
    marks = marks_of(zone, 2)
    assert marks.count.tolist() == [[20, 0], [0, 20]]
    torch.testing.assert_close(marks.centre[0, 0], torch.tensor([15.0, 7.5]).double())
    torch.testing.assert_close(marks.centre[1, 1], torch.tensor([16.0, 20.0]).double())
    for frame, ends in ((0, [[5.0, 7.5], [25.0, 7.5]]), (1, [[6.0, 10.0], [26.0, 30.0]])):
        wanted = torch.tensor(ends).double()[None, None]
        assert end_distance(marks.ends[frame : frame + 1, frame : frame + 1], wanted) < 0.5
        assert end_distance(wanted.flip(2), wanted) == 0
        assert marks.long[frame, frame] > 15
    assert marks.centre[0, 1].isnan().all()


def test_jitter_is_the_second_difference():
    t = torch.arange(6.0)
    line = torch.stack([3 * t, -t], -1)[:, None].double()
    bent = torch.stack([0.5 * t**2, 0 * t], -1)[:, None].double()
    seen = torch.ones(6, 1, dtype=torch.bool)
    assert jitter(line, seen) == 0
    assert jitter(bent, seen) == pytest.approx((1 / 2) ** 0.5)
    seen[2:4] = False
    assert jitter(bent, seen) != jitter(bent, seen)


def test_other_lengths_and_sizes_are_adapted_and_said(world):
    longer = torch.cat([world.rgb, torch.rand(2, 64, 64, 3)])
    score = follow(longer, world)
    assert score.part_error == 0 and "the first 3 frames; the clip has 5, the world 3" in score.notes[0]
    score = follow(world.rgb[:2], world)
    assert score.part_error == 0 and len(score.judged) == 2
    large = crossing(size=(128, 128))
    clip, *_, notes = fitted(large.rgb, world)
    assert clip.shape == world.rgb.shape and "from 128 x 128 to 64 x 64" in notes[0]
    score = follow(large.rgb, world)
    assert score.part_error < 1.0 and score.part_recall > 0.8
    assert any("from 128 x 128" in line for line in score.lines())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda w: (w.rgb[:, :, :40], w), r"the clip is 40 x 64 pixels and the world 64 x 64.*Crop the clip"),
        (lambda w: (w.rgb[..., 0], w), r"has no colour"),
        (lambda w: (w.rgb * float("nan"), w), r"3 of the 3 frames .* hold NaN"),
        (lambda w: (w.rgb, replace(w, spec=replace(w.spec, puppets=()))), r"the scene has no puppets"),
    ],
)
def test_what_cannot_be_compared_is_said(world, spoil, said):
    with pytest.raises(ValueError, match=said):
        follow(*spoil(world))


def test_people_out_of_the_picture_are_said():
    spec = SceneSpec((Puppet(motion=Motion("stand"), start=(30.0, 0.0), suit=SUITS[0]),))
    world = pose_scene(spec, 2, 32, 32)
    with pytest.raises(ValueError, match="they are out of the picture, or too small"):
        follow(world.rgb, world)


def test_the_picture_begins_with_the_worst_frame(world):
    clip = world.rgb.clone()
    clip[1] = clip[1].roll(6, 1)
    score = follow(clip, world)
    assert score.worst_frame == 1 and frames_of(score, 2)[0] == 1 and frames_of(score, 9) == [1, 0, 2]
    sheet = draw_following(clip, world.rgb, score, "pose following")
    assert sheet.ndim == 3 and sheet.shape[2] == 3 and 0 <= sheet.min() < sheet.max() <= 1
    still = follow(clip[:1], world)
    assert draw_following(clip[:1], world.rgb, still, "a still").shape[0] < sheet.shape[0], "no plots of one frame"
    lost = follow(torch.zeros_like(clip), world)
    assert not torch.equal(draw_following(clip, world.rgb, lost, "pose following"), sheet)
