"""Bodies from files: shapes, units, axes, unknown points, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from interspatial.models.control.body import NO_PART
from interspatial.models.control.body_file import read_body
from interspatial.models.control.from_world import body_of_world, camera_of_world
from interspatial.models.control.skeleton import body_of_joints
from interspatial.models.control.vertices import choose, nearest_parts, vertex_normals
from interspatial.models.control.world_frame import UPS
from interspatial.models.puppet.motion import Motion
from interspatial.models.puppet.scene import Camera, Puppet, SceneSpec
from interspatial.models.puppet.surface import surface_points
from interspatial.models.puppet.world import pose_scene
from safetensors.torch import save_file

PEOPLE = (Puppet(motion=Motion("walk", 0.4)), Puppet(motion=Motion("wave"), start=(1.1, 0.3), height=0.95))
WORLD = pose_scene(SceneSpec(PEOPLE, camera=Camera("orbit", 40.0)), 6, 48, 64)
JOINTS = WORLD.joints.transpose(0, 1)
TRUTH = body_of_joints(JOINTS, 24.0, 100)


def npz(folder, **arrays):
    path = folder / "body.npz"
    np.savez(path, **{name: np.asarray(x) for name, x in arrays.items()})
    return path


def test_joints_of_one_person_and_of_several(tmp_path):
    several = read_body(npz(tmp_path, joints=JOINTS, fps=24.0), 100)
    torch.testing.assert_close(several.track.points, TRUTH.points, atol=1e-5, rtol=0)
    assert several.track.fps == 24.0 and several.camera is None
    assert several.lines[0] == "2 people, 6 frames at 24 fps, 100 points a person from joints [2, 6, 24, 3]"
    one = read_body(npz(tmp_path, joints3d=JOINTS[1], mocap_framerate=24), 100).track
    torch.testing.assert_close(one.points, TRUTH.points[1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize(("unit", "scale"), [("metres", 1.0), ("centimetres", 100.0), ("millimetres", 1000.0)])
def test_units_and_axes_are_found_or_said(tmp_path, up, unit, scale):
    there = JOINTS.double() @ torch.tensor(UPS[up]).double() * scale  # the inverse of a rotation is its transpose
    path = npz(tmp_path, joints=there)
    for choice in ({}, {"up": up, "unit": unit}):
        found = read_body(path, 100, **choice)
        torch.testing.assert_close(found.track.points, TRUTH.points, atol=1e-5, rtol=0)
    assert any("30 fps are assumed" in line for line in found.lines)


def test_a_camera_is_turned_with_the_body(tmp_path):
    camera = camera_of_world(WORLD)
    turn = torch.eye(4)
    turn[:3, :3] = torch.tensor(UPS["z up"])  # file to ours
    scaled = (camera.w2c @ turn).clone()
    scaled[:, :3, 3] *= 1000
    found = read_body(npz(tmp_path, joints=JOINTS @ turn[:3, :3] * 1000, K=camera.K, w2c=scaled, height=48, width=64))
    torch.testing.assert_close(found.camera.w2c, camera.w2c, atol=1e-5, rtol=0)
    assert (found.camera.height, found.camera.width) == (48, 64)


def test_points_in_the_frame_of_a_camera(tmp_path):
    """Only K: the camera is where the file's origin is, and sees the points where they were seen."""
    camera = camera_of_world(WORLD).at(slice(1))
    seen = camera.view(JOINTS[:, :1])
    found = read_body(npz(tmp_path, joints=seen, K=camera.K[0]), 100)
    torch.testing.assert_close(found.camera.view(found.track.joints), seen, atol=1e-5, rtol=0)
    assert (found.camera.height, found.camera.width) == (48, 64)  # twice the middle


def test_points_with_their_parts_and_normals(tmp_path):
    body = body_of_world(WORLD, 64)
    arrays = {name: getattr(body, name) for name in ("points", "part", "normals", "joints")}
    found = read_body(npz(tmp_path, **arrays), 64).track
    torch.testing.assert_close(found.points, body.points)
    torch.testing.assert_close(found.normals, body.normals)
    torch.testing.assert_close(found.joints, body.joints)
    assert torch.equal(found.part, body.part)
    without = read_body(npz(tmp_path, points=body.points), 64).track
    assert (without.part == NO_PART).all() and without.joints is None and without.normals is None


def test_safetensors_hold_the_same(tmp_path):
    save_file({"joints": JOINTS.contiguous()}, tmp_path / "a.safetensors", {"fps": "24"})
    found = read_body(tmp_path / "a.safetensors", 100).track
    torch.testing.assert_close(found.points, TRUTH.points, atol=1e-5, rtol=0)
    assert found.fps == 24.0


def test_a_mesh_is_followed_by_the_same_vertices(tmp_path):
    ball, faces = sphere()
    away = torch.tensor([0.0, 1.0, 0.0]) * torch.arange(3.0)[:, None, None]
    clip = ball * torch.tensor([0.3, 0.9, 0.3]) + away
    found = read_body(npz(tmp_path, vertices=clip, faces=faces), 40).track
    pick = choose(len(ball), 40)
    torch.testing.assert_close(found.points[0], clip[:, pick])
    want = torch.nn.functional.normalize(ball[pick] / torch.tensor([0.3, 0.9, 0.3]), dim=-1)
    assert (found.normals[0, 1] * want).sum(-1).min() > 0.95  # out of the ellipsoid, up to its facets


def sphere(rows: int = 17, columns: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    polar, turn = torch.meshgrid(torch.linspace(0, torch.pi, rows), torch.arange(columns) * 2 * torch.pi / columns,
                                 indexing="ij")  # fmt: skip
    points = torch.stack([polar.sin() * turn.cos(), polar.cos(), polar.sin() * turn.sin()], -1).view(-1, 3)
    corner = torch.arange(rows * columns).view(rows, columns)
    a, b = corner[:-1], corner[1:]
    c, d = a.roll(-1, 1), b.roll(-1, 1)
    return points, torch.cat([torch.stack([a, c, b], -1).view(-1, 3), torch.stack([c, d, b], -1).view(-1, 3)])


def test_the_choice_of_vertices():
    few, many = choose(6890, 128), choose(6890, 512)
    assert len(few.unique()) == 128 and set(few.tolist()) < set(many.tolist())
    assert len({int(gap) for gap in many.diff()}) <= 3  # steps of the golden ratio: three lengths at most
    assert torch.equal(choose(100, 512), torch.arange(100))


def test_parts_by_the_nearest_skin():
    """Points of a puppet that are seen at some time, so not inside another limb, find their own part."""
    body, seen = body_of_world(WORLD, 512).at(torch.arange(6)), surface_points(WORLD, 512).visible[:, 0].any(0)
    first = replace(body, **{name: getattr(body, name)[:1] for name in ("points", "known", "normals", "joints")})
    found = nearest_parts(first.points, first.joints) == first.part
    assert seen.sum() > 100 and found[seen].float().mean() > 0.97


def test_normals_of_a_flat_mesh():
    flat = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    found = vertex_normals(flat[None, None], torch.tensor([[0, 1, 2], [1, 3, 2]]))
    torch.testing.assert_close(found[0, 0], torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3))


def test_nan_and_doubt_are_not_known(tmp_path):
    body = body_of_world(WORLD, 30)
    points, sure = body.points.clone(), torch.ones(2, 6, 30)
    points[1, 2, 7], sure[0, 4, 3] = torch.nan, 0.1
    found = read_body(npz(tmp_path, points=points, confidence=sure), 30)
    assert (~found.track.known).nonzero().tolist() == [[0, 4, 3], [1, 2, 7]]
    assert found.track.points.isfinite().all()
    assert "0.56 % of the points are not known" in found.lines[-1]


@pytest.mark.parametrize("shape", [(6,), (2, 6), (6, 30), (2, 6, 30)])
def test_known_by_frame_or_point(tmp_path, shape):
    body, known = body_of_world(WORLD, 30), torch.ones(shape, dtype=torch.bool)
    known[(..., 3)] = False
    found = read_body(npz(tmp_path, points=body.points, known=known), 30).track.known
    want = torch.ones(2, 6, 30, dtype=torch.bool)
    want[(..., 3) if shape[-1] == 30 else (slice(None), 3)] = False
    assert torch.equal(found, want)


@pytest.mark.parametrize(("arrays", "said"), [
    ({"poses": np.zeros((5, 156)), "betas": np.zeros(16)}, "pose parameters of a body model.*save its joints or vert"),
    ({"x": np.zeros(3)}, "it holds x. Accepted: an array points, vertices or joints"),
    ({"joints": np.zeros((5, 72))}, r"joints have the shape \[5, 72\]"),
    ({"joints": np.full((5, 24, 3), np.nan)}, "no point of its joints is a number"),
    ({"joints": np.array([None])}, "array joints holds Python objects"),
    ({"joints": np.array([["a"]])}, "array joints holds no numbers"),
    ({"joints": np.zeros((5, 23, 3))}, "23 joints; accepted"),
    ({"points": np.ones((5, 30, 3)), "known": np.ones(7)}, "its known has the shape"),
    ({"points": np.ones((5, 30, 3)), "joints": np.ones((4, 24, 3)), "up": 0}, "up cannot be told|do not belong"),
])  # fmt: skip
def test_what_is_refused(tmp_path, arrays, said):
    with pytest.raises(ValueError, match=f"^body.npz: .*{said}"):
        read_body(npz(tmp_path, **arrays))


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "b.safetensors").write_bytes(b"12")
    (tmp_path / "c.pkl").write_bytes(b"")
    for name, said in (("a.npz", "cannot be read"), ("b.safetensors", "cannot be read"), ("c.pkl", "ends in .pkl")):
        with pytest.raises(ValueError, match=f"^{name}: .*{said}"):
            read_body(tmp_path / name)
