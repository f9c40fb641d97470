"""ComfyUI's own pose data, made from a known scene: bodies and camera come back as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interspatial.models.control.body import NO_PART
from interspatial.models.control.from_world import body_of_world, camera_of_world
from interspatial.models.control.joint_orders import _MHR
from interspatial.models.control.pose_data import read_pose_data
from interspatial.models.control.vertices import choose
from interspatial.models.puppet.body import INDEX
from interspatial.models.puppet.camera import Camera
from interspatial.models.puppet.motion import Motion
from interspatial.models.puppet.scene import Puppet, SceneSpec
from interspatial.models.puppet.world import pose_scene

PEOPLE = (Puppet(motion=Motion("walk", 0.3), start=(-0.5, 0.2)), Puppet(motion=Motion("dance"), start=(0.8, -0.4)))
WORLD = pose_scene(SceneSpec(PEOPLE, camera=Camera(height=0.85)), 5, 90, 160)  # level, as the tracker's world is
BODY, CAMERA = body_of_world(WORLD, 400), camera_of_world(WORLD)


def pose_data(without: tuple[str, ...] = ()) -> dict:
    """What the tracker would say if it were right: positions around the pelvis, y down, and where the pelvis is."""
    skin, joints = CAMERA.view(BODY.points), CAMERA.view(BODY.joints)
    frames = []
    for t in range(5):
        people = []
        for p in range(2):
            away = joints[p, t, 0]
            points = torch.full((70, 3), 0.0)
            for name, i in _MHR.items():
                if name in INDEX:
                    points[i] = joints[p, t, INDEX[name]]
            for side in ("left", "right"):
                foot, ankle = (joints[p, t, INDEX[f"{side}_{name}"]] for name in ("foot", "ankle"))
                points[_MHR[f"{side}_toe"]] = ankle + (foot - ankle) / 0.8
            up = torch.nn.functional.normalize(joints[p, t, INDEX["head"]] - joints[p, t, INDEX["neck"]], dim=-1)
            points[3] = points[4] = joints[p, t, INDEX["head"]] + 0.06 * up
            person = {"pred_vertices": (skin[p, t] - away).numpy(), "pred_keypoints_3d": (points - away).numpy(),
                      "pred_cam_t": away.numpy(), "focal_length": np.float32(CAMERA.K[t, 0, 0])}  # fmt: skip
            people.append({name: x for name, x in person.items() if name not in without})
        frames.append(people)
    return {"frames": frames, "image_size": (90, 160)}


def projected(points, camera):
    seen = camera.view(points)
    return (seen @ camera.K.transpose(1, 2))[..., :2] / seen[..., 2:]


def test_a_mesh_and_its_camera_come_back():
    found = read_pose_data(pose_data(), 16.0, 400)
    pick = choose(400, 400)
    torch.testing.assert_close(projected(found.track.points, found.camera), projected(BODY.points[:, :, pick], CAMERA),
                               atol=1e-2, rtol=0)  # fmt: skip
    assert found.track.points[..., 1].min() == pytest.approx(0, abs=1e-5)  # y up, on the floor
    upright = torch.tensor([0.0, 1.0, 0.0])
    assert ((found.track.joints[..., 15, :] - found.track.joints[..., 0, :]) @ upright > 0.5).all()
    shifted = found.track.points - found.track.points[:, :1].mean(2, keepdim=True).mean(0, keepdim=True)
    truth = BODY.points - BODY.points[:, :1].mean(2, keepdim=True).mean(0, keepdim=True)
    torch.testing.assert_close(shifted, truth, atol=1e-3, rtol=0)
    assert (found.track.part == BODY.part).float().mean() > 0.7 and found.track.normals is None
    assert (found.camera.height, found.camera.width, found.camera.frames) == (90, 160, 5)
    assert found.lines == ("2 people, 5 frames at 16 fps, 400 points a person from the mesh",
                           "found in 5 / 5 of 5 frames")  # fmt: skip


@pytest.mark.parametrize("without", [(), ("pred_vertices",)])
def test_capsules_around_the_joints(without):
    found = read_pose_data(pose_data(without), 16.0, 100, skin="capsules" if not without else "mesh")
    torch.testing.assert_close(projected(found.track.joints, found.camera), projected(BODY.joints, CAMERA), atol=1.5,
                               rtol=0)  # fmt: skip
    assert found.track.points.shape == (2, 5, 100, 3) and found.track.known.all()


def test_a_mesh_alone_has_no_parts():
    found = read_pose_data(pose_data(("pred_keypoints_3d",)), 16.0, 50).track
    assert (found.part == NO_PART).all() and found.joints is None


def test_a_person_who_is_not_always_there():
    data = pose_data()
    del data["frames"][1][1], data["frames"][4][1]
    data["frames"][3] = []
    found = read_pose_data(data, 16.0, 50)
    there = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 1, 0, 0]], dtype=torch.bool)
    assert torch.equal(found.track.known, there[..., None].expand(2, 5, 50))
    assert found.track.points.isfinite().all() and found.camera.K[3, 0, 0] == found.camera.K[2, 0, 0]
    assert found.lines[1] == "found in 4 / 2 of 5 frames"


def test_faces_give_normals():
    data = pose_data()
    data["faces"] = np.array([[0, 1, 2], [3, 4, 5]])
    assert read_pose_data(data, 16.0, 50).track.normals.shape == (2, 5, 50, 3)


@pytest.mark.parametrize(("data", "said"), [
    (None, "has no frames or no image_size"), ({"frames": []}, "has no frames or no image_size"),
    ({"frames": [], "image_size": (2, 2)}, "has no frames. Accepted: one or more"),
    ({"frames": [[], []], "image_size": (2, 2)}, "nobody was found"),
    (pose_data(("pred_vertices", "pred_keypoints_3d")), "neither vertices nor key points"),
])
def test_what_is_refused(data, said):
    with pytest.raises(ValueError, match=said):
        read_pose_data(data, 16.0)
