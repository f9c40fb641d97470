"""Pose Following Score as a node."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def node(comfy):
    from interspatial.nodes.pose_following import PoseFollowingScore

    return PoseFollowingScore


@pytest.fixture
def world(comfy):
    from interspatial.models.puppet.control_scenes import control_scene
    from interspatial.models.puppet.world import pose_scene

    return pose_scene(control_scene("cross", 0), 4, 48, 48)


def test_the_truth_scores_perfectly_and_is_shown(node, world):
    out = node.execute(world.rgb, world)
    picture, report, part, recall, iou, right, joint, jitter = out.args
    assert picture.ndim == 4 and picture.shape[0] == 1 and picture.min() >= 0 and picture.max() <= 1
    assert (part, recall, iou, right, joint) == (0, 1, 1, 1, 0) and jitter > 0
    assert report.startswith("part error 0.00 pixels") and "right person in 100.0 %" in report
    assert out.ui["images"][0]["filename"].endswith(".png") and out.ui["text"] == (report,)


def test_a_worse_clip_scores_worse_and_tokens_divide(node, world):
    clip = world.rgb.roll(3, 1)
    coarse, fine = (node.execute(clip, world, token).args for token in (16, 4))
    assert coarse[2] == fine[2] > 1 and fine[6] == pytest.approx(4 * coarse[6])
    assert coarse[3] < 1


def test_alpha_is_left_out(node, world):
    clip = torch.cat([world.rgb, torch.zeros(4, 48, 48, 1)], -1)
    assert node.execute(clip, world).args[2] == 0


def test_what_is_wrong_begins_with_the_name(node, world):
    with pytest.raises(ValueError, match=r"^Pose Following Score: the clip is 24 x 48 pixels"):
        node.execute(world.rgb[:, :, :24], world)


def test_it_can_be_interrupted(node, world):
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        node.execute(world.rgb, world)
