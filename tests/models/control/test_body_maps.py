"""Maps of bodies: the truth of Puppet World at every pixel but edges, and nothing where nobody is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interspatial.models.control.body import NO_PART, together
from interspatial.models.control.body_maps import FARTHEST, KINDS, PALETTE, body_map
from interspatial.models.control.camera_moves import Stand
from interspatial.models.control.from_world import body_of_world, camera_of_world
from interspatial.models.control.key_points import COLOURS, DIMMED, LIMBS, key_points
from interspatial.models.control.seen import NOBODY, Seen, see
from interspatial.models.puppet.body import INDEX, PARTS
from interspatial.models.puppet.camera import Camera
from interspatial.models.puppet.motion import Motion
from interspatial.models.puppet.render import cast
from interspatial.models.puppet.scene import Puppet, SceneSpec, random_scene
from interspatial.models.puppet.views import PART_COLOURS
from interspatial.models.puppet.world import FIRST_LIMB_PART, pose_scene

SIZE = (90, 120)
WORLD = pose_scene(random_scene(5, puppets=2, balls=0, move="orbit"), 4, *SIZE)
BODY, CAMERA = body_of_world(WORLD, 300), camera_of_world(WORLD)
TRUTH = torch.where(WORLD.parts >= FIRST_LIMB_PART, WORLD.parts - FIRST_LIMB_PART, NOBODY)


def seen_of(body, camera, size=SIZE) -> Seen:
    some = list(see(body, camera, *size))
    return Seen(*(torch.cat([getattr(one, name) for one in some]) for name in ("person", "part", "depth", "normal")))


def test_capsules_are_what_puppet_world_shows():
    found = seen_of(BODY, CAMERA)
    same = found.part == TRUTH
    assert (TRUTH >= 0).float().mean() > 0.03
    assert same.float().mean() > 0.999 and same[TRUTH >= 0].float().mean() > 0.99
    assert (found.person == WORLD.owners).float().mean() > 0.999
    both = (found.person >= 0) & (WORLD.owners >= 0)
    away = (found.depth - WORLD.depth)[both].abs()
    assert (away < 2e-3).float().mean() > 0.99
    assert found.depth[found.person == NOBODY].isinf().all()


def test_normals_are_those_of_the_surface():
    """Against finite differences of the depth, seen from the middle of smooth places."""
    found = seen_of(BODY, CAMERA)
    x, y = torch.meshgrid(torch.arange(120) + 0.5, torch.arange(90) + 0.5, indexing="xy")
    K = CAMERA.K[:, None, None]
    right, down = (x - K[..., 0, 2]) / K[..., 0, 0], (y - K[..., 1, 2]) / K[..., 1, 1]
    place = torch.stack([right, down, torch.ones(4, 90, 120)], -1)
    place = place * torch.where(found.depth.isfinite(), found.depth, 0.0)[..., None]
    across = (place[:, 1:-1, 2:] - place[:, 1:-1, :-2]), (place[:, 2:, 1:-1] - place[:, :-2, 1:-1])
    slope = torch.nn.functional.normalize(torch.linalg.cross(across[1], across[0]), dim=-1)
    normal, inner = found.normal[:, 1:-1, 1:-1], (slope * found.normal[:, 1:-1, 1:-1]).sum(-1)
    hits = cast(WORLD.bodies, WORLD.camera, *SIZE).primitive
    one = torch.nn.functional.max_pool2d(hits.float()[:, None], 3, 1, 1)[:, 0] == \
        -torch.nn.functional.max_pool2d(-hits.float()[:, None], 3, 1, 1)[:, 0]  # fmt: skip
    flat = (one & (hits >= 0))[:, 1:-1, 1:-1] & (normal[..., 2] < -0.7)
    assert flat.sum() > 300 and inner[flat].median() > 0.99 and (inner[flat] > 0.9).float().mean() > 0.95
    shown = found.normal[found.person != NOBODY]
    torch.testing.assert_close(shown.norm(dim=-1), torch.ones(len(shown)), atol=1e-4, rtol=0)
    ray = torch.nn.functional.normalize(place[found.person != NOBODY], dim=-1)
    assert ((shown * ray).sum(-1) < 1e-3).all()  # towards the camera


def test_points_alone_cover_the_same_place():
    """Balls behind 1000 points, without joints: the silhouette but for a tenth, parts and depth but for edges."""
    body = replace(body_of_world(WORLD, 1000), joints=None)
    found, truth = seen_of(body, CAMERA), TRUTH >= 0
    there = found.person >= 0
    assert (there & truth).sum() / (there | truth).sum() > 0.9
    both = there & truth
    assert (found.part == TRUTH)[both].float().mean() > 0.9
    assert (found.person == WORLD.owners)[both].float().mean() > 0.98
    assert (found.depth - WORLD.depth)[both].abs().median() < 0.02
    blind = seen_of(replace(body, normals=None), CAMERA)
    assert ((blind.person >= 0) & truth).sum() / ((blind.person >= 0) | truth).sum() > 0.65  # edges grow


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_picture(kind):
    done = []
    found = body_map(kind, BODY, CAMERA, 45, 70, tick=done.append)
    assert found.shape == (4, 45, 70, 3) and found.min() >= 0 and found.max() <= 1 and done[-1] == 4
    lit = found.amax(-1) > 0
    assert 0.005 < lit.float().mean() < 0.5
    if kind not in ("overlay", "skeleton"):
        assert torch.equal(lit, seen_of(BODY, CAMERA, (45, 70)).person >= 0)


def test_colours():
    seen = seen_of(BODY, CAMERA)
    parts, people = (body_map(kind, BODY, CAMERA, *SIZE) for kind in ("parts", "people"))
    for i, name in enumerate(PARTS):
        if (seen.part == i).any():
            shown = parts[seen.part == i].unique(dim=0).flatten().tolist()
            assert shown == pytest.approx(PART_COLOURS[i], abs=1e-6), name
    for i in range(2):
        assert people[seen.person == i].unique(dim=0).tolist() == [list(PALETTE[i])]
    mixed = body_map("people and parts", BODY, CAMERA, *SIZE)
    assert len(mixed[seen.person == 0].unique(dim=0)) == len(seen.part[seen.person == 0].unique())
    unknown = replace(BODY, joints=None, part=torch.full_like(BODY.part, NO_PART))
    assert len(body_map("parts", unknown, CAMERA, *SIZE).view(-1, 3).unique(dim=0)) == 2


def test_depth_is_white_where_it_is_near():
    found, seen = body_map("depth", BODY, CAMERA, *SIZE)[..., 0], seen_of(BODY, CAMERA)
    there = seen.person >= 0
    order = seen.depth[there].argsort()
    assert (found[there][order].diff() <= 1e-6).all()
    assert found[there].min() >= FARTHEST and found[there].max() > 0.9 and not found[~there].any()


def test_a_skeleton_has_openposes_dots_where_the_joints_are():
    body = body_of_world(pose_scene(SceneSpec((Puppet(motion=Motion("wave")),), camera=Camera()), 2, 256, 256), 24)
    camera = camera_of_world(pose_scene(SceneSpec((Puppet(),), camera=Camera()), 2, 256, 256))
    pixel, drawn = key_points(body, camera)
    assert drawn.all()  # it faces the camera
    shoulder = camera.view(body.joints[:, :, [INDEX["right_shoulder"]]])
    want = (shoulder @ camera.K.transpose(1, 2))[0, :, 0]
    torch.testing.assert_close(pixel[0, :, 2], want[:, :2] / want[:, 2:])
    assert (pixel[0, :, 2, 0] < pixel[0, :, 5, 0]).all()  # its right is at the left of the picture
    picture = body_map("skeleton", body, camera, 256, 256)[0]
    for k in (3, 6, 9, 12):  # elbows and knees: nothing is drawn over them
        x, y = (int(v) for v in pixel[0, 0, k])
        torch.testing.assert_close(picture[y, x], torch.tensor(COLOURS[k]) / 255, atol=0.02, rtol=0)
    a, b = pixel[0, 0, 8], pixel[0, 0, 9]
    x, y = (int(v) for v in (a + b) / 2)
    stick = DIMMED * torch.tensor(COLOURS[LIMBS.index((8, 9))]) / 255
    torch.testing.assert_close(picture[y, x], stick, atol=0.02, rtol=0)
    wide = (body_map("skeleton", body, camera, 512, 512)[0] > 0).any(-1).float().mean()
    assert wide == pytest.approx(float((picture > 0).any(-1).float().mean()), rel=0.25)  # lines grow with the picture


def test_faces_that_are_turned_away_are_not_drawn():
    body = body_of_world(pose_scene(SceneSpec((Puppet(motion=Motion("stand", 3.14159)),)), 1, 64, 64), 24)
    _, drawn = key_points(body, Stand(torch.tensor([0.0, 1.0, 4.0]), torch.tensor([0.0, 1.0, 0.0])).path(1, 64, 64))
    assert not drawn[0, 0, [0, 14, 15]].any() and drawn[0, 0, 1:14].all() and drawn[0, 0, 16:].all()
    _, left = key_points(body, Stand(torch.tensor([-4.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])).path(1, 64, 64))
    assert not left[0, 0, 16] and left[0, 0, 17]  # from its left: the left ear only


def test_what_is_not_known_is_not_drawn():
    known = BODY.known.clone()
    known[1] = False
    known[0, 2, (BODY.part == PARTS.index("left_shin")) | (BODY.part == PARTS.index("left_foot"))] = False
    body = replace(BODY, known=known)
    found = seen_of(body, CAMERA)
    assert set(found.person.unique().tolist()) == {NOBODY, 0}
    assert not (found.part[2] == PARTS.index("left_shin")).any() and (found.part[0] == PARTS.index("left_shin")).any()
    _, drawn = key_points(body, CAMERA)
    assert not drawn[1].any() and not drawn[0, 2, 13] and drawn[0, 0, 13]


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_in_view_is_a_black_picture(kind):
    behind = Stand(torch.tensor([0.0, 1.0, -9.0]), torch.tensor([0.0, 1.0, -20.0])).path(1, 40, 40)
    beside = Stand(torch.tensor([0.0, 1.0, 9.0]), torch.tensor([60.0, 1.0, 9.0])).path(1, 40, 40)
    for camera in (behind, beside):
        assert not body_map(kind, BODY, camera, 40, 40).any()
    within = Stand(BODY.points[0, 0, 40], BODY.points[0, 0, 40] + 1.0).path(1, 40, 40)  # in the body itself
    assert body_map(kind, BODY, within, 40, 40).isfinite().all()


def test_images_under_points_and_sticks():
    images = torch.rand(4, 30, 40, 3, generator=torch.Generator().manual_seed(2))
    found = body_map("overlay", BODY, CAMERA, 30, 40, images)
    touched = (found != images).any(-1).float().mean()
    assert 0.002 < touched < 0.2
    one = body_map("skeleton", BODY, CAMERA, 30, 40, images[:1])
    assert ((one == images[:1]).all(-1)).float().mean() > 0.7
    before = images.clone()
    assert torch.equal(images, before)
    assert body_map("overlay", BODY, CAMERA, 60, 80, images).shape == (4, 60, 80, 3)


def test_points_of_the_overlay_face_the_camera():
    camera = Stand(torch.tensor([0.0, 1.0, 6.0]), torch.tensor([0.0, 1.0, 0.0])).path(1, 300, 300)
    body = body_of_world(pose_scene(SceneSpec((Puppet(motion=Motion("stand")),)), 1, 32, 32), 60)
    shown = (body_map("overlay", body, camera, 300, 300) > 0).any(-1).sum()
    every = (body_map("overlay", replace(body, normals=None), camera, 300, 300) > 0).any(-1).sum()
    assert 0.3 < shown / every < 0.8


def test_a_picture_of_another_shape_is_cut_out_of_the_view():
    square = body_map("people", BODY, CAMERA, 90, 90)
    assert torch.equal(square, body_map("people", BODY, CAMERA, *SIZE)[:, :, 15:105])


def test_more_people_than_colours():
    one = {name: getattr(BODY, name)[:1] for name in ("points", "known", "normals", "joints")}
    many = together([replace(BODY, **one) for _ in range(7)])
    assert body_map("people", many, CAMERA, 40, 40).isfinite().all()


@pytest.mark.parametrize(("kind", "change", "said"), [
    ("maps", {}, "the map 'maps' is not known. Accepted: overlay, skeleton"),
    ("skeleton", {"body": replace(BODY, joints=None)}, "a skeleton needs joints"),
    ("depth", {"camera": CAMERA.at(slice(3))}, "a camera of 3 frames before a body of 4"),
    ("overlay", {"images": torch.zeros(3, 8, 8, 3)}, "3 images under a body of 4 frames"),
])
def test_what_is_refused(kind, change, said):
    given = {"body": BODY, "camera": CAMERA, "images": None} | change
    with pytest.raises(ValueError, match=said):
        body_map(kind, given["body"], given["camera"], 40, 40, given["images"])


def test_the_palette_is_that_of_comfyui(comfy):
    from comfy_extras.nodes_scail import DEFAULT_PALETTE

    assert [tuple(colour) for colour in DEFAULT_PALETTE][: len(PALETTE)] == list(PALETTE)
