"""ComfyUI's own cameras: the same embedding as its node, the same views as its 3D nodes, and pose lines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from interspatial.models.control.camera import CameraPath
from interspatial.models.control.camera_exchange import of_lines, of_load3d, to_load3d, wan_embedding
from interspatial.models.control.camera_moves import Stand, moved

STAND = Stand(torch.tensor([1.2, 2.0, 3.0]), torch.tensor([-0.2, 0.8, 0.1]), 42.0)


@pytest.fixture
def trajectory(comfy):
    from comfy_extras import nodes_camera_trajectory

    return nodes_camera_trajectory


@pytest.mark.parametrize("pose", ["Static", "Pan Left", "Zoom In", "ClockWise (CW)"])
@pytest.mark.parametrize(("frames", "height", "width"), [(9, 32, 48), (1, 48, 32), (5, 16, 64)])
def test_the_embedding_of_comfyui_itself(trajectory, pose, frames, height, width):
    """Its node's path and lens, given to ours: the same tensor."""
    lens = {"speed": 1.3, "fx": 0.6, "fy": 0.7, "cx": 0.45}
    want = trajectory.WanCameraEmbedding.execute(pose, width, height, frames, **lens).args[0]
    move = trajectory.CAMERA_DICT[pose]
    c2w = torch.eye(4).repeat(frames, 1, 1)
    path = trajectory.get_camera_motion(np.array(move["angle"]), np.array(move["T"]), 1.3, frames)
    c2w[:, :3] = torch.from_numpy(path)
    shape = 1280 / 720  # its lens is that of a picture of this shape
    fx, fy = 0.6 * max(width, height * shape), 0.7 * max(height, width / shape)
    K = torch.tensor([[fx, 0, 0.45 * width], [0, fy, 0.5 * height], [0, 0, 1]]).repeat(frames, 1, 1)
    camera = CameraPath(K, torch.linalg.inv(c2w), height, width)
    found = wan_embedding(camera, height, width)
    assert found.shape == want.shape == (1, 24, (frames + 3) // 4, height, width)
    torch.testing.assert_close(found, want, atol=2e-6, rtol=0)


def test_lines_give_the_embedding_of_comfyui_too(trajectory):
    rt = trajectory.get_camera_motion(np.array([0.0, 0.0, 1.0]), np.array([0.5, 0.0, 2.0]), 1.0, 5)
    rows = [[0, 0.5, 0.6, 0.5, 0.5, 0, 0, *one.flatten(), 0, 0, 0, 1] for one in rt]
    want = trajectory.process_pose_params(np.array(rows), width=48, height=32)  # [T, H, W, 6]
    camera = of_lines("\n".join(" ".join(map(str, row)) for row in rows), 32, 48)
    assert camera.frames == 5
    found = wan_embedding(camera, 32, 48)[0]
    torch.testing.assert_close(found[:, 1].view(6, 4, 32, 48)[:, 3], want[4].permute(2, 0, 1), atol=2e-6, rtol=0)


def test_lines_of_world_to_camera_are_the_same_path():
    path = moved(STAND.path(4, 36, 64), "orbit", 40.0, STAND.aim)
    lens = (path.K[0, 0, 0] / 64, path.K[0, 1, 1] / 36, 0.5, 0.5)
    w2c = "https://video\n" + "\n".join(line([i, *lens, 0, 0], m[:3]) for i, m in enumerate(path.w2c))
    c2w = "\n".join(line([i, *lens, 0, 0], torch.linalg.inv(m)) for i, m in enumerate(path.w2c)) + "\n"
    upright = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    for text in (w2c, c2w):
        found = of_lines(text, 36, 64)
        torch.testing.assert_close(found.K, path.K, atol=1e-3, rtol=0)
        torch.testing.assert_close(found.w2c[0], upright, atol=1e-5, rtol=0)  # the first camera looks along -z
        relative = found.w2c @ torch.linalg.inv(found.w2c[:1])
        torch.testing.assert_close(relative, path.w2c @ torch.linalg.inv(path.w2c[:1]), atol=1e-5, rtol=0)


def line(start: list, matrix: torch.Tensor) -> str:
    return " ".join(f"{float(x):.9g}" for x in [*start, *matrix.flatten()])


@pytest.mark.parametrize(("text", "said"), [
    ("", "no line of numbers"), ("0 1 2", "line 1 has 3 numbers"), ("x\n" + "1 " * 19 + "\nend", "line 3 is not made"),
    (line([0] * 7, torch.eye(4)[:3]) + "\n" + line([0] * 7, torch.eye(4)), "some camera lines have 19"),
])
def test_lines_that_are_none(text, said):
    with pytest.raises(ValueError, match=said):
        of_lines(text, 32, 32)


def test_there_and_back_through_the_viewer():
    path = moved(STAND.path(3, 36, 64), "tilt", 9.0, STAND.aim)
    K, roll = path.K, torch.eye(4)
    roll[:2, :2] = torch.tensor([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]])
    path = CameraPath(K, roll @ path.w2c, 36, 64)  # rolled: the quaternion tells it, position and target do not
    info = to_load3d(path, 2.5, 2)
    back, target = of_load3d(info, 1, 36, 64)
    torch.testing.assert_close(back.w2c[0], path.w2c[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(back.K[0], path.K[2], atol=1e-3, rtol=0)
    assert (target - path.centre[2]).norm() == pytest.approx(2.5, abs=1e-4)


def test_position_and_target_alone():
    info = {"position": {"x": 1.2, "y": 2.0, "z": 3.0}, "target": {"x": -0.2, "y": 0.8, "z": 0.1}, "fov": 42.0,
            "zoom": 2.0, "cameraType": "perspective"}  # fmt: skip
    found, target = of_load3d(info, 2, 36, 64)
    torch.testing.assert_close(found.w2c, STAND.path(2, 36, 64).w2c)
    torch.testing.assert_close(found.K[0, 0, 0], 2 * STAND.path(1, 36, 64).K[0, 0, 0])
    torch.testing.assert_close(target, STAND.aim)


def test_comfyui_makes_the_same_dict(comfy):
    """The camera of its own node (position, target, roll) is the one that we read and write."""
    from comfy_extras.nodes_gaussian_splat import _lookat_camera_info

    info = _lookat_camera_info(STAND.centre.tolist(), STAND.aim.tolist(), 42.0, "cpu", roll=17.0)
    found, _ = of_load3d(info, 1, 36, 64)
    again = to_load3d(found, float((STAND.aim - STAND.centre).norm()))
    for name in ("position", "target", "quaternion"):
        assert again[name] == pytest.approx(info[name], abs=1e-5)
    assert again["fov"] == pytest.approx(42.0, abs=1e-4) and again["cameraType"] == info["cameraType"]


@pytest.mark.parametrize(("info", "said"), [
    ({"cameraType": "orthographic"}, "orthographic"), ({"fov": 190.0, "position": {"x": 1}}, "field of view of 190"),
    ({"position": {}, "target": {}}, "stands on the point"),
])
def test_cameras_that_are_refused(info, said):
    with pytest.raises(ValueError, match=said):
        of_load3d(info, 1, 32, 32)


def test_a_length_that_wan_does_not_know():
    with pytest.raises(ValueError, match=r"of 6 frames.*4 n \+ 1, as 5 or 9"):
        wan_embedding(STAND.path(6, 32, 32), 32, 32)
