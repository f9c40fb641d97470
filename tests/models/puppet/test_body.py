"""The body: a tree of 24 joints, symmetric at rest, that keeps its bone lengths however it is turned."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.puppet.body import (
    INDEX,
    JOINTS,
    LIMBS,
    PARENTS,
    PARTS,
    forward_kinematics,
    limb_axes,
    limb_joints,
    rest_joints,
    rest_offsets,
)


def random_rotations(*shape: int, seed: int = 0) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=torch.Generator().manual_seed(seed)))
    return q * torch.linalg.det(q)[..., None, None]


def test_the_joints_are_a_tree_with_parents_first():
    assert len(JOINTS) == len(set(JOINTS)) == len(PARENTS) == 24
    assert [j for j, parent in enumerate(PARENTS) if parent < 0] == [INDEX["pelvis"]]
    assert all(parent < j for j, parent in enumerate(PARENTS))
    for j, name in enumerate(JOINTS):
        if name.startswith("left_"):
            mirrored = JOINTS[PARENTS[j]].replace("left", "right")
            assert JOINTS[PARENTS[INDEX[name.replace("left", "right")]]] == mirrored


def test_the_rest_pose_is_the_same_in_a_mirror():
    rest = rest_joints()
    for name in JOINTS:
        twin = name.replace("left", "right") if name.startswith("left") else name.replace("right", "left")
        torch.testing.assert_close(rest[INDEX[twin]], rest[INDEX[name]] * torch.tensor([-1.0, 1.0, 1.0]))
    assert rest[INDEX["left_hand"], 0] > 0.7, "the arms of a T-pose reach out, left to +x as the puppet faces +z"


@pytest.mark.parametrize("height", [0.5, 1.0, 1.3])
def test_height_scales_everything(height):
    torch.testing.assert_close(rest_offsets(height), rest_offsets() * height)
    torch.testing.assert_close(rest_joints(height), rest_joints() * height)
    for scaled, plain in zip(limb_axes(height), limb_axes(), strict=True):
        torch.testing.assert_close(scaled, plain * height)


def test_a_standing_puppet_is_as_tall_as_the_docstring_says():
    axis, radius = limb_axes()
    ends = rest_joints()[limb_joints()][:, None] + torch.stack([torch.zeros_like(axis), axis], 1)
    top, bottom = (ends[..., 1] + radius[:, None]).max(), (ends[..., 1] - radius[:, None]).min()
    assert abs(float(top - bottom) - 1.85) < 0.005


@pytest.mark.parametrize("height", [0.9, 1.0])
def test_bones_keep_their_length_and_turn_with_their_parent(height):
    local, root = random_rotations(7, 24), torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    rotations, positions = forward_kinematics(local, root, height)
    assert rotations.shape == (7, 24, 3, 3) and positions.shape == (7, 24, 3)
    torch.testing.assert_close(positions[:, 0], root)
    for j in range(1, 24):
        bone = positions[:, j] - positions[:, PARENTS[j]]
        length = rest_offsets(height)[j].norm().expand(7)
        torch.testing.assert_close(bone.norm(dim=1), length, atol=1e-6, rtol=1e-5)
        seen_from_parent = (rotations[:, PARENTS[j]].transpose(1, 2) @ bone[..., None])[..., 0]
        torch.testing.assert_close(seen_from_parent, rest_offsets(height)[j].expand(7, 3), atol=1e-6, rtol=1e-5)


def test_turning_one_elbow_moves_only_that_forearm():
    local = torch.eye(3).repeat(1, 24, 1, 1)
    local[0, INDEX["left_elbow"]] = random_rotations(1)[0]
    _, moved = forward_kinematics(local, rest_offsets()[:1])
    changed = {JOINTS[j] for j in range(24) if (moved[0, j] - rest_joints()[j]).norm() > 1e-6}
    assert changed == {"left_wrist", "left_hand"}


def test_every_limb_hangs_on_its_joint_and_ends_at_its_tip():
    axis, radius = limb_axes()
    rest, on = rest_joints(), limb_joints()
    for i, limb in enumerate(LIMBS):
        assert JOINTS[on[i]] == limb.joint
        if isinstance(limb.tip, str):
            assert PARENTS[INDEX[limb.tip]] == INDEX[limb.joint]
            torch.testing.assert_close(rest[on[i]] + axis[i], rest[INDEX[limb.tip]])
    assert (radius > 0).all()
    assert {limb.part for limb in LIMBS} == set(PARTS) and len(PARTS) == 14
    left, right = ({p.split("_", 1)[1] for p in PARTS if p.startswith(side)} for side in ("left", "right"))
    assert left == right
