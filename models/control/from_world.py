"""Bodies and cameras of Puppet World, where both are known exactly.

P people   T pixel frames   N points a person
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..puppet.body import LIMBS, PARTS
from ..puppet.camera import CameraTrack
from ..puppet.surface import skin
from ..puppet.world import World
from .body import BodyTrack
from .camera import CameraPath

_PART_OF_LIMB = torch.tensor([PARTS.index(limb.part) for limb in LIMBS])


def body_of_world(world: World, count: int = 256) -> BodyTrack:
    """Everybody in the scene. Points that are hidden or out of the picture are known too.

    count: points a person
    raises: ValueError for a scene without puppets, or fewer points than limbs
    """
    if not world.spec.puppets:
        raise ValueError("Body of a Puppet World: the scene has no puppets. Accepted: one or more.")
    points, normals, limb = (x.transpose(0, 1) if x.ndim == 4 else x for x in skin(world, count))
    known = torch.ones(points.shape[:3], dtype=torch.bool)
    return BodyTrack(points.contiguous(), known, _PART_OF_LIMB[limb], world.fps, normals.contiguous(),
                     world.joints.transpose(0, 1).contiguous())  # fmt: skip


def seen_by(world: World, camera: CameraPath) -> World:
    """The same scene through another camera, which is scaled to the world's picture.

    raises: ValueError for a camera of another length
    """
    if camera.frames not in (1, world.frames):
        raise ValueError(f"a camera of {camera.frames} frames for a world of {world.frames}. Accepted: as many, or "
                         "one that is held. Set length in Camera Path.")  # fmt: skip
    camera = camera.sized(world.height, world.width)
    frames = torch.zeros(world.frames, dtype=torch.int64) if camera.frames == 1 else slice(None)
    return replace(world, camera=CameraTrack(camera.K[frames], camera.w2c[frames]))


def camera_of_world(world: World) -> CameraPath:
    """The camera that the scene is seen by."""
    return CameraPath(world.camera.K, world.camera.w2c, world.height, world.width)
