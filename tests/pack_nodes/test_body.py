"""Body from File, Body from Pose Data and Body Preview as nodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interspatial.tests.models.control.test_pose_data import BODY, CAMERA, WORLD, pose_data


@pytest.fixture
def nodes(comfy):
    from interspatial.nodes import body

    return body


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch):
    """An own input folder of ComfyUI with a track in it."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    (tmp_path / "takes").mkdir()
    np.savez(tmp_path / "takes" / "two.npz", joints=BODY.joints, K=CAMERA.K, w2c=CAMERA.w2c, height=90, width=160,
             fps=16.0)  # fmt: skip
    (tmp_path / "picture.png").write_bytes(b"")
    return tmp_path


def test_files_of_the_input_folder_are_listed(nodes, folder):
    options = nodes.BodyFromFile.define_schema().inputs[0].options
    assert "takes/two.npz" in options and "picture.png" not in options


def test_a_file_is_read_by_name_and_by_path(nodes, folder):
    track, camera, report = nodes.BodyFromFile.execute("takes/two.npz", points=100).args
    assert track.points.shape == (2, 5, 100, 3) and track.fps == 16.0
    torch.testing.assert_close(track.joints, BODY.joints)
    torch.testing.assert_close(camera.w2c, CAMERA.w2c)
    assert report.splitlines() == ["2 people, 5 frames at 16 fps, 100 points a person from joints [2, 5, 24, 3]",
                                   "read as y up (found), 1 units a metre", "5 frames, as in the source"]  # fmt: skip
    again = nodes.BodyFromFile.execute("gone.npz", path=str(folder / "takes" / "two.npz"), points=100).args[0]
    assert torch.equal(again.points, track.points)


@pytest.mark.parametrize(("fit", "fps", "length", "frames"), [
    ("stretch", 0.0, 9, 9), ("trim", 32.0, 0, 9), ("trim", 32.0, 5, 5), ("as it is", 32.0, 9, 5),
    ("stretch", 8.0, 0, 3),
])
def test_length_and_rate(nodes, folder, fit, fps, length, frames):
    track, camera, report = nodes.BodyFromFile.execute("takes/two.npz", fit=fit, fps=fps, length=length).args
    assert track.frames == camera.frames == frames
    assert report.splitlines()[-1].startswith(fit if fit != "as it is" else "5 frames, as in the source")
    if fit == "trim":
        torch.testing.assert_close(track.joints[:, 2], BODY.joints[:, 1])


@pytest.mark.parametrize(("name", "path", "said"), [
    ("gone.npz", "", "gone.npz is not there. Accepted: a file in models/bodies or in ComfyUI's input"),
    ("gone.npz", "picture.png", "picture.png: its name ends in .png"),
])
def test_files_that_are_refused(nodes, folder, name, path, said):
    with pytest.raises(ValueError, match=rf"^Body from File: .*{said}"):
        nodes.BodyFromFile.execute(name, path=path)


def test_a_file_that_was_written_anew_is_read_anew(nodes, folder):
    before = nodes.BodyFromFile.fingerprint_inputs("takes/two.npz", path="", points=3)
    assert before == nodes.BodyFromFile.fingerprint_inputs("takes/two.npz")
    np.savez(folder / "takes" / "two.npz", joints=BODY.joints[:1])
    assert nodes.BodyFromFile.fingerprint_inputs("takes/two.npz") != before
    assert nodes.BodyFromFile.fingerprint_inputs("gone.npz") == "missing"


def test_pose_data(nodes):
    track, camera, report = nodes.BodyFromPoseData.execute(pose_data(), 24.0, points=64).args
    assert track.points.shape == (2, 5, 64, 3) and track.fps == 24.0 and camera.frames == 5
    assert report.splitlines()[0].endswith("from the mesh")
    longer = nodes.BodyFromPoseData.execute(pose_data(), 24.0, points=64, length=9, fit="stretch").args
    assert longer[0].frames == longer[1].frames == 9
    with pytest.raises(ValueError, match=r"^Body from Pose Data: the pose data has no frames"):
        nodes.BodyFromPoseData.execute({}, 24.0)


def test_preview_sizes(nodes):
    preview = nodes.BodyPreview.execute
    assert preview(BODY, CAMERA, "people").args[0].shape == (5, 90, 160, 3)
    assert preview(BODY, CAMERA, "overlay", WORLD.rgb[:, ::2, ::2]).args[0].shape == (5, 45, 80, 3)
    assert preview(BODY, CAMERA, "overlay", WORLD.rgb, 64, 48).args[0].shape == (5, 48, 64, 3)


def test_preview_says_what_does_not_fit(nodes):
    with pytest.raises(ValueError, match=r"^Body Preview: a camera of 3 frames before a body of 5"):
        nodes.BodyPreview.execute(BODY, CAMERA.at(slice(3)), "depth")


def test_preview_can_be_interrupted(nodes, monkeypatch):
    def stop():
        raise RuntimeError("stopped")

    monkeypatch.setattr(nodes.host, "check_interrupt", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        nodes.BodyPreview.execute(BODY, CAMERA, "depth")
