"""Skeletons given a skin: points on the capsules, the truth of Puppet World up to the turn that joints do not show."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.control.from_world import body_of_world
from interspatial.models.control.skeleton import body_of_joints, clothe, filled, least_turn, orient, size
from interspatial.models.puppet.body import INDEX, rest_joints
from interspatial.models.puppet.motion import MOTIONS, Motion
from interspatial.models.puppet.scene import Puppet, SceneSpec
from interspatial.models.puppet.skin import anatomy
from interspatial.models.puppet.world import pose_scene
from interspatial.tests.models.puppet.solver import on_segment


def moving(name: str, height: float = 1.03):
    people = (Puppet(motion=Motion(name, 0.4), height=height), Puppet(motion=Motion("walk", -2.0), start=(1.5, 0.3)))
    return pose_scene(SceneSpec(people), 7, 32, 32)


@pytest.mark.parametrize("name", MOTIONS)
def test_points_lie_on_the_capsules(name):
    joints = moving(name).joints.transpose(0, 1)
    track, body = body_of_joints(joints, 16.0, 211), clothe(joints)
    limb = anatomy(211).limb
    for p in range(2):
        start, tip = body.start[p][:, limb].double(), body.tip[p][:, limb].double()
        out = track.points[p].double() - on_segment(start, tip, track.points[p].double())
        torch.testing.assert_close(out.norm(dim=-1), body.radius[p, limb].double().expand(7, 211), atol=1e-5, rtol=0)
        torch.testing.assert_close(out / body.radius[p, limb][:, None], track.normals[p].double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", MOTIONS)
def test_the_truth_comes_back_but_for_turns_of_bones_about_themselves(name):
    """Both ends of its limb are as far from each point as in truth; nothing else is known of a turned bone."""
    world = moving(name)
    truth = body_of_world(world, 256)
    found, body = body_of_joints(truth.joints, 16.0, 256), clothe(truth.joints)
    limb = anatomy(256).limb
    assert torch.equal(found.part, truth.part) and found.known.all() and found.fps == 16.0
    for end in (body.start[:, :, limb], body.tip[:, :, limb]):
        want, got = ((track.points - end).norm(dim=-1) for track in (truth, found))
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    # measured on 33 frames: 0 to 7 mm on average, at most 9 cm around an upper arm that swings forward (squat)
    assert (found.points - truth.points).norm(dim=-1).mean() < 0.01
    still = torch.isin(truth.part, torch.tensor([0, 1]))  # torso and head show their turn
    torch.testing.assert_close(found.points[:, :, still], truth.points[:, :, still], atol=1e-2, rtol=0)


def test_the_same_pose_has_the_same_points_wherever_it_stands_in_a_clip():
    joints = moving("dance").joints.transpose(0, 1)
    whole, alone = body_of_joints(joints, 16.0, 64), body_of_joints(joints[:, 3:4], 16.0, 64)
    torch.testing.assert_close(whole.points[:, 3:4], alone.points, atol=1e-3, rtol=0)  # the size is of the clip


def test_points_follow_a_moved_body():
    joints = moving("wave").joints.transpose(0, 1)
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.7, 0.2], [0.7, 0.0, -1.1], [-0.2, 1.1, 0.0]]))
    plain, moved = (body_of_joints(x, 16.0, 64).points for x in (joints, joints @ turn.T + 2.0))
    torch.testing.assert_close(moved, plain @ turn.T + 2.0, atol=1e-5, rtol=0)


def test_size_is_that_of_the_bones():
    torch.testing.assert_close(size(1.7 * rest_joints()[None, None]), torch.tensor([1.7]))
    assert orient(rest_joints()[None, None]).sub(torch.eye(3)).abs().max() < 1e-6


def test_unknown_joints_take_their_limbs_along_and_lie_between_their_neighbours():
    joints = moving("walk").joints.transpose(0, 1).clone()
    truth = joints.clone()
    joints[0, 3, INDEX["left_wrist"]] = torch.nan
    track = body_of_joints(joints, 16.0, 256)
    parts = {int(p) for p in track.part[~track.known[0, 3]]}
    assert parts == {int(p) for p in track.part[torch.isin(anatomy(256).limb, torch.tensor(limbs("left_wrist")))]}
    assert track.known[1].all() and track.known[0, :3].all() and track.known[0, 4:].all()
    between = (truth[0, 2] + truth[0, 4]) / 2
    torch.testing.assert_close(track.joints[0, 3, INDEX["left_wrist"]], between[INDEX["left_wrist"]])
    assert track.points.isfinite().all()


def limbs(joint: str) -> list[int]:
    from interspatial.models.puppet.body import LIMBS

    return [i for i, one in enumerate(LIMBS) if joint in (one.joint, one.tip)]


def test_a_joint_that_is_never_known_is_left_out():
    joints = moving("walk").joints.transpose(0, 1).clone()
    joints[:, :, INDEX["right_hand"]] = torch.nan
    track = body_of_joints(joints, 16.0, 128)
    assert filled(joints).isfinite().all() and track.points.isfinite().all()
    assert not track.known.all() and track.known[..., anatomy(128).limb == 0].all()


@pytest.mark.parametrize(("joints", "said"), [
    (torch.zeros(1, 2, 23, 3), "joints of shape"), (torch.zeros(2, 24, 3), "joints of shape"),
    (torch.full((1, 2, 24, 3), torch.nan), "no joint that is a number"),
])
def test_what_cannot_be_clothed_is_refused(joints, said):
    with pytest.raises(ValueError, match=f"^Skeleton: .*{said}"):
        body_of_joints(joints, 16.0)


def test_half_a_body_is_refused():
    joints = moving("walk").joints.transpose(0, 1).clone()
    joints[:, :, 5:] = torch.nan
    with pytest.raises(ValueError, match="more than half"):
        body_of_joints(joints, 16.0)


def test_the_least_turn():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, 3, generator=draw, dtype=torch.float64)
    b[0], b[1], b[2], b[3] = -a[0], 3 * a[1], 0.0, -a[3] + 1e-9
    turn = least_turn(a, b)
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(3).double().expand(50, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(turn), torch.ones(50).double(), atol=1e-6, rtol=0)
    unit = torch.nn.functional.normalize
    whole = [i for i in range(50) if i != 2]
    got = (turn @ unit(a, dim=-1)[..., None])[..., 0]
    torch.testing.assert_close(got[whole], unit(b, dim=-1)[whole], atol=1e-6, rtol=0)
    torch.testing.assert_close(turn[2], torch.eye(3).double())
    angle = ((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)
    torch.testing.assert_close(angle[4:], (unit(a, dim=-1) * unit(b, dim=-1)).sum(-1)[4:])  # no more than needed
