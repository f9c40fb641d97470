"""Camera Path and Camera Path to Wan as nodes."""

from __future__ import annotations

import pytest
import torch
from interspatial.tests.models.control.test_pose_data import BODY, CAMERA


@pytest.fixture
def nodes(comfy):
    from interspatial.nodes import camera

    return camera


def test_lengths_and_sizes(nodes):
    execute = nodes.CameraPath.execute
    free = execute("hold", 0.0).args[0]
    assert (free.frames, free.height, free.width) == (nodes.FRAMES, 480, 832)
    assert execute("hold", 0.0, BODY).args[0].frames == 5
    assert execute("hold", 0.0, BODY, length=9, width=64, height=48).args[0].frames == 9
    given = execute("hold", 0.0, camera=CAMERA).args[0]
    assert torch.equal(given.w2c, CAMERA.w2c) and (given.height, given.width) == (90, 160)
    longer = execute("hold", 0.0, camera=CAMERA, length=8, width=90).args[0]
    assert longer.frames == 8 and (longer.height, longer.width) == (90, 90)


def test_a_move_starts_where_the_body_is_seen(nodes):
    path, info = nodes.CameraPath.execute("orbit", 90.0, BODY, width=320, height=240, start_angle=-45.0).args
    pixel = path.view(BODY.points) @ path.K.transpose(1, 2)
    pixel = pixel[..., :2] / pixel[..., 2:]
    assert (pixel > 0).all() and (pixel < torch.tensor([320.0, 240.0])).all()
    middle = (BODY.points.amin((0, 1, 2)) + BODY.points.amax((0, 1, 2))) / 2
    away = path.centre - middle
    torch.testing.assert_close(away[0, 0], -away[-1, 0], atol=1e-4, rtol=0)  # from one side to the other
    assert [info["target"][k] for k in "xyz"] == pytest.approx(middle.tolist(), abs=1e-3)


def test_cameras_to_start_from(nodes):
    _, info = nodes.CameraPath.execute("hold", 0.0, BODY, width=320, height=240).args
    again, same = nodes.CameraPath.execute("hold", 0.0, camera_info=info, width=320, height=240, length=3).args
    assert again.frames == 3 and same["position"] == pytest.approx(info["position"], abs=1e-4)
    lines = "\n".join(["0 0.5 0.6 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0"] * 4)
    told = nodes.CameraPath.execute("truck", 1.0, pose_lines=lines, length=4).args[0]
    assert told.frames == 4 and told.centre[-1, 0] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("inputs", "said"), [
    ({"move": "zoom", "amount": -1.0}, "a zoom of -1 times"),
    ({"move": "hold", "amount": 0.0, "camera": CAMERA, "pose_lines": "0"}, "camera and pose_lines are given"),
    ({"move": "hold", "amount": 0.0, "pose_lines": "0 1 2"}, "camera line 1 has 3 numbers"),
])
def test_what_is_refused(nodes, inputs, said):
    with pytest.raises(ValueError, match=f"^Camera Path: .*{said}"):
        nodes.CameraPath.execute(**inputs)


def test_the_embedding_of_wan(nodes):
    embedding, width, height, length = nodes.CameraPathToWan.execute(CAMERA).args
    assert embedding.shape == (1, 24, 2, 90, 160) and (width, height, length) == (160, 90, 5)
    with pytest.raises(ValueError, match=r"^Camera Path to Wan: a camera of 4 frames.*4 n \+ 1, as 1 or 5"):
        nodes.CameraPathToWan.execute(CAMERA.at(slice(4)))
