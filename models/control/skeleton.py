"""Skeletons of 24 joints given a skin of capsules: joints in, followed surface points out.

P people   T frames   J joints (24, SMPL's order)   L limbs   N points a person. World metres, y up.

A bone's direction follows from its joints, its turn about itself does not. A joint with several children (pelvis, upper
spine) gets the rotation that fits them best; every other one turns with its parent, and by the least rotation that
brings its bone where it is. That depends on the pose alone, so the same pose has the same points in every clip, and it
is smooth but for a bone folded back against its parent by 180 degrees, which no joint of a body reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..puppet.body import INDEX, LIMBS, PARENTS, limb_axes, limb_joints, rest_joints, rest_offsets
from ..puppet.skin import anatomy, on_skin
from .body import BodyTrack

JOINTS = len(PARENTS)
_CHILDREN = [[c for c, parent in enumerate(PARENTS) if parent == j] for j in range(JOINTS)]
# Tips that are no joints lie on the line to the joint named, or stand in the frame of their own joint (the head's).
_BESIDE = {"spine3": "neck"}


@dataclass(frozen=True)
class Capsules:
    """The limbs of a body. start, tip: [P, T, L, 3] metres    radius: [P, L]    rotation: [P, T, L, 3, 3]
    known: [P, T, L] bool"""

    start: Tensor
    tip: Tensor
    radius: Tensor
    rotation: Tensor
    known: Tensor


def body_of_joints(joints: Tensor, fps: float, count: int = 512) -> BodyTrack:
    """Surface points of people whose joints are known.

    joints: [P, T, 24, 3] metres, y up; NaN where a joint is not known in a frame: points of its limbs are not known
        there, and the joints of the track are what lies between its neighbours in time
    count: points a person    raises: ValueError for joints of another shape, and when nothing is known of a person
    """
    capsules, joints, places = clothe(joints), filled(joints), anatomy(count)
    axis, _ = limb_axes()
    stretch = (capsules.tip - capsules.start).norm(dim=-1) / axis.norm(dim=1)
    people = [on_skin(places, axis, capsules.radius[p], capsules.rotation[p], capsules.start[p], stretch[p])
              for p in range(len(joints))]  # fmt: skip
    points, normals = (torch.stack(x) for x in zip(*people, strict=True))
    return BodyTrack(points, capsules.known[:, :, places.limb], places.part, fps, normals, joints)


def clothe(joints: Tensor) -> Capsules:
    """The capsules around a skeleton. Radii follow the size of each person. joints: [P, T, 24, 3]; NaN: not known"""
    why = why_not(joints)
    if why:
        raise ValueError(f"Skeleton: {why}")
    heard, joints = joints.isfinite().all(-1), filled(joints)
    scale = size(joints)
    frames = orient(joints)
    axis, radius = limb_axes()
    on = limb_joints()
    tips = [_tip(i, joints, frames, scale) for i in range(len(LIMBS))]
    tip, known = torch.stack([t for t, _ in tips], 2), torch.stack([heard[:, :, need].all(-1) for _, need in tips], 2)
    start = joints[:, :, on]
    base = frames[:, :, on]
    rotation = least_turn((base @ axis.double()[:, :, None])[..., 0], (tip - start).double()) @ base
    return Capsules(start, tip, radius * scale[:, None], rotation.to(joints), known)


def why_not(joints: Tensor) -> str | None:
    """Why joints cannot be clothed; None if they can."""
    if joints.ndim != 4 or joints.shape[2:] != (JOINTS, 3) or not joints.numel():
        return f"joints of shape {list(joints.shape)}, accepted: [people, frames, {JOINTS}, 3]."
    heard = joints.isfinite().all(-1)
    if not heard.flatten(1).any(1).all():
        return "a person has no joint that is a number in any frame. Leave the person out, or repair the track."
    if not heard.any(1).sum(1).gt(JOINTS // 2).all():
        return "more than half of a person's joints are never known. Accepted: tracks of the whole body."
    return None


def filled(joints: Tensor) -> Tensor:
    """Unknown joints put between their neighbours in time; one that is never known at its rest offset.

    joints: [P, T, 24, 3], NaN where unknown
    """
    if joints.isfinite().all():
        return joints
    found, rest = joints.detach().cpu().double().numpy().copy(), rest_offsets().double().numpy()
    times = np.arange(found.shape[1])
    for person in found:
        for j in range(JOINTS):
            heard = np.isfinite(person[:, j]).all(-1)
            if heard.any():
                for axis in range(3):
                    person[:, j, axis] = np.interp(times, times[heard], person[heard, j, axis])
            else:
                person[:, j] = person[:, PARENTS[j]] + rest[j] if j else person[:, _CHILDREN[0]].mean(1)
    return torch.from_numpy(found).to(joints)


def size(joints: Tensor) -> Tensor:
    """How much bigger each person is than the rest pose: bone lengths, the median of each over time, summed.

    returns: [P]
    """
    bones = torch.arange(1, JOINTS)
    lengths = (joints[:, :, bones] - joints[:, :, torch.tensor(PARENTS)[bones]]).norm(dim=-1)
    return lengths.median(1).values.sum(-1) / rest_offsets()[bones].norm(dim=1).sum()


def orient(joints: Tensor) -> Tensor:
    """Rotation of each joint from the rest pose, without the turn that its bones do not show.

    joints: [P, T, 24, 3] without NaN    returns: [P, T, 24, 3, 3] float64
    """
    joints, rest = joints.double(), rest_offsets().double()
    turned: list[Tensor] = []
    for j in range(JOINTS):
        above = turned[PARENTS[j]] if j else torch.eye(3).double().expand(*joints.shape[:2], 3, 3)
        bones = joints[:, :, _CHILDREN[j]] - joints[:, :, j : j + 1]
        if len(_CHILDREN[j]) > 1:
            turned.append(_best_turn(rest[_CHILDREN[j]], bones))
        elif _CHILDREN[j]:
            expected = above @ rest[_CHILDREN[j][0]]
            turned.append(least_turn(expected, bones[:, :, 0]) @ above)
        else:
            turned.append(above)
    return torch.stack(turned, 2)


def least_turn(a: Tensor, b: Tensor) -> Tensor:
    """The smallest rotation that brings the direction of a to that of b; none where one of them is zero.

    a, b: [..., 3] float64    returns: [..., 3, 3]
    """
    none = (a.norm(dim=-1) < 1e-9) | (b.norm(dim=-1) < 1e-9)
    a = torch.where(none[..., None], torch.tensor([1.0, 0.0, 0.0]).to(a), normalize(a, dim=-1))
    b = torch.where(none[..., None], a, normalize(b, dim=-1))
    axis, cosine = torch.linalg.cross(a, b), (a * b).sum(-1)[..., None, None]
    o = torch.zeros_like(axis[..., 0])
    x, y, z = axis.unbind(-1)
    skew = torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))
    eye = torch.eye(3).to(a)
    turned = eye + skew + skew @ skew / (1 + cosine).clamp(min=1e-12)
    # opposite directions: half a turn about anything at right angles
    helper = eye[a.abs().argmin(-1)]
    across = normalize(torch.linalg.cross(a, helper), dim=-1)
    half = 2 * across[..., :, None] * across[..., None, :] - eye
    return torch.where(cosine < -1 + 1e-7, half, turned)


def _best_turn(rest: Tensor, bones: Tensor) -> Tensor:
    """The rotation that fits several bones (Kabsch's). rest: [C, 3]    bones: [P, T, C, 3] -> [P, T, 3, 3]"""
    u, _, v = torch.linalg.svd(bones.transpose(-1, -2) @ rest)
    sign = torch.linalg.det(u @ v).sign()
    flip = torch.diag_embed(torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1))
    return u @ flip @ v


def _tip(limb: int, joints: Tensor, frames: Tensor, scale: Tensor) -> tuple[Tensor, list[int]]:
    """Where a limb ends, and the joints that it hangs on. returns: [P, T, 3]"""
    one = LIMBS[limb]
    start = INDEX[one.joint]
    if isinstance(one.tip, str):
        return joints[:, :, INDEX[one.tip]], [start, INDEX[one.tip]]
    offset = torch.tensor(one.tip).double()
    beside = _BESIDE.get(one.joint)
    if beside:  # a share of the way to a joint that the limb lies on
        toward = joints[:, :, INDEX[beside]] - joints[:, :, start]
        share = float(offset.norm() / (rest_joints()[INDEX[beside]] - rest_joints()[start]).norm())
        return joints[:, :, start] + share * toward, [start, INDEX[beside]]
    moved = (frames[:, :, start] @ offset) * scale[:, None, None].double()
    return joints[:, :, start] + moved.to(joints), [start, PARENTS[start]]
