"""Other orders of joints: SMPL's relatives joint by joint, key points back to the pose they were taken from."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.control.joint_orders import _COCO, _H36M, _MHR, to_smpl
from interspatial.models.puppet.body import INDEX, JOINTS
from interspatial.models.puppet.motion import Motion
from interspatial.models.puppet.scene import Puppet, SceneSpec
from interspatial.models.puppet.world import pose_scene

POSE = pose_scene(SceneSpec((Puppet(motion=Motion("walk", 0.7)),)), 5, 32, 32).joints.transpose(0, 1)


@pytest.mark.parametrize(("count", "hands"), [(24, (22, 23)), (45, (22, 23)), (52, (25, 40)), (55, (28, 43)),
                                              (127, (28, 43))])  # fmt: skip
def test_relatives_of_smpl(count, hands):
    joints = torch.arange(count * 3.0).view(1, 1, count, 3)
    found = to_smpl(joints)
    assert torch.equal(found[:, :, :22], joints[:, :, :22])
    assert torch.equal(found[0, 0, 22:], joints[0, 0, list(hands)])


def test_hands_go_on_from_the_forearm():
    found = to_smpl(POSE[:, :, :22])
    torch.testing.assert_close(found, POSE, atol=1e-5, rtol=0)  # as Puppet World's hands do


@pytest.mark.parametrize(("order", "count", "table"), [("COCO 17", 17, _COCO), ("Human3.6M 17", 17, _H36M),
                                                       ("MHR 70", 70, _MHR)])  # fmt: skip
def test_key_points_of_a_pose_give_the_pose_back(order, count, table):
    points = torch.full((1, 5, count, 3), torch.nan)
    for name, i in table.items():
        if name in INDEX:
            points[:, :, i] = POSE[:, :, INDEX[name]]
    neck, head = POSE[:, :, INDEX["neck"]], POSE[:, :, INDEX["head"]]
    up, side = (head - neck), POSE[:, :, INDEX["left_shoulder"]] - POSE[:, :, INDEX["right_shoulder"]]
    for name, sign in (("left_ear", 1), ("right_ear", -1)):
        if name in table:
            points[:, :, table[name]] = head + 0.06 * torch.nn.functional.normalize(up, dim=-1) + sign * 0.2 * side
    if "head_top" in table:
        points[:, :, table["head_top"]] = neck + 2.5 * up
    for name in ("left", "right"):
        if f"{name}_toe" in table:
            foot, ankle = POSE[:, :, INDEX[f"{name}_foot"]], POSE[:, :, INDEX[f"{name}_ankle"]]
            points[:, :, table[f"{name}_toe"]] = ankle + (foot - ankle) / 0.8
    found = to_smpl(points, order)
    apart = (found - POSE).norm(dim=-1).amax((0, 1))
    feet = [INDEX["left_foot"], INDEX["right_foot"]]
    exact = [i for i, name in enumerate(JOINTS) if name in table and i not in feet]
    assert apart[exact].max() < 1e-6
    # the spine lies on a straight line here and bends by 0.06 rad in the walk; feet without toes point forward
    rest = [i for i in range(24) if i not in exact and (order == "MHR 70" or i not in feet)]
    assert apart[rest].max() < 0.02 and apart.max() < 0.15


def test_what_is_not_known_stays_unknown():
    points = torch.randn(1, 2, 70, 3, generator=torch.Generator().manual_seed(1))
    points[0, 1, 62] = torch.nan
    found = to_smpl(points)
    lost = (~found.isfinite().all(-1)).nonzero().tolist()
    assert lost == [[0, 1, INDEX["left_wrist"]]]


@pytest.mark.parametrize(("count", "order", "said"), [(17, "auto", "COCO's or Human3.6M's"), (23, "auto", "23 joints"),
                                                      (24, "COCO 17", "has 17 joints")])  # fmt: skip
def test_orders_that_do_not_fit(count, order, said):
    with pytest.raises(ValueError, match=said):
        to_smpl(torch.zeros(1, 1, count, 3), order)
