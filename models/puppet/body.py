"""The puppet's body: the 24 SMPL joints as a tree of offsets, and the capsules that flesh them out.

J joints   L limbs   F frames. All positions in metres, rest pose with the arms stretched out sideways (T-pose), facing
+z. The joint order and tree are SMPL's (Loper et al., 2015); lengths are our own, of a tall adult with chunky limbs, so
that the figure stays readable on 64 to 128 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

JOINTS = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hand", "right_hand",
)  # fmt: skip
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
INDEX = {name: i for i, name in enumerate(JOINTS)}
FOOT_RADIUS = 0.062  # metres, at height 1.0

_LEFT_OFFSETS = {
    "left_hip": (0.10, -0.07, 0.0), "left_knee": (0.02, -0.40, 0.0), "left_ankle": (0.0, -0.41, 0.0),
    "left_foot": (0.0, -0.04, 0.13), "left_collar": (0.08, 0.12, 0.0), "left_shoulder": (0.12, 0.03, 0.0),
    "left_elbow": (0.27, 0.0, 0.0), "left_wrist": (0.25, 0.0, 0.0), "left_hand": (0.08, 0.0, 0.0),
}  # fmt: skip
_MIDDLE_OFFSETS = {
    "pelvis": (0.0, 0.95, 0.0), "spine1": (0.0, 0.11, 0.0), "spine2": (0.0, 0.13, 0.0), "spine3": (0.0, 0.07, 0.0),
    "neck": (0.0, 0.22, 0.0), "head": (0.0, 0.11, 0.02),
}  # fmt: skip


def _offsets() -> list[tuple[float, float, float]]:
    table = dict(_MIDDLE_OFFSETS)
    for name, (x, y, z) in _LEFT_OFFSETS.items():
        table[name] = (x, y, z)
        table[name.replace("left", "right")] = (-x, y, z)
    return [table[name] for name in JOINTS]


_OFFSETS = _offsets()


@dataclass(frozen=True)
class Limb:
    """One capsule: from `joint` to `tip`, which is another joint or an offset (metres, in the joint's rest frame).

    radius: metres    part: name in the part map    wear: garment that colours it
    """

    joint: str
    tip: tuple[float, float, float] | str
    radius: float
    part: str
    wear: str


def _mirrored(limb: Limb) -> Limb:
    tip = limb.tip.replace("left", "right") if isinstance(limb.tip, str) else (-limb.tip[0], *limb.tip[1:])
    return Limb(limb.joint.replace("left", "right"), tip, limb.radius, limb.part.replace("left", "right"), limb.wear)


_SIDE = (
    Limb("pelvis", "left_hip", 0.115, "left_thigh", "trousers"),
    Limb("left_hip", "left_knee", 0.095, "left_thigh", "trousers"),
    Limb("left_knee", "left_ankle", 0.078, "left_shin", "trousers"),
    Limb("left_ankle", "left_foot", FOOT_RADIUS, "left_foot", "shoes"),
    Limb("spine3", "left_collar", 0.12, "torso", "shirt"),
    Limb("left_collar", "left_shoulder", 0.085, "torso", "shirt"),
    Limb("left_shoulder", "left_elbow", 0.07, "left_upper_arm", "shirt"),
    Limb("left_elbow", "left_wrist", 0.055, "left_forearm", "skin"),
    Limb("left_wrist", "left_hand", 0.058, "left_hand", "skin"),
)
LIMBS: tuple[Limb, ...] = (
    Limb("pelvis", "spine1", 0.15, "torso", "shirt"),
    Limb("spine1", "spine2", 0.15, "torso", "shirt"),
    Limb("spine2", "spine3", 0.16, "torso", "shirt"),
    Limb("spine3", (0.0, 0.14, 0.0), 0.15, "torso", "shirt"),
    Limb("neck", "head", 0.06, "head", "skin"),
    Limb("head", (0.0, 0.10, 0.0), 0.125, "head", "head"),
    *_SIDE,
    *(_mirrored(limb) for limb in _SIDE),
)


def _generations() -> list[tuple[list[int], list[int]]]:
    """Joints equally far from the pelvis, outwards, with their parents."""
    depth = [0]
    for parent in PARENTS[1:]:
        depth.append(depth[parent] + 1)
    levels = [[j for j, d in enumerate(depth) if d == level] for level in range(1, max(depth) + 1)]
    return [(level, [PARENTS[j] for j in level]) for level in levels]


_GENERATIONS = _generations()  # a third of the posing of a short clip went into one joint after another
PARTS: tuple[str, ...] = tuple(dict.fromkeys(limb.part for limb in LIMBS))


def rest_offsets(height: float = 1.0) -> Tensor:
    """Offset of each joint from its parent at rest, scaled by `height` (1.0 stands 1.85 m tall). returns: [J, 3]"""
    return torch.tensor(_OFFSETS) * height


def rest_joints(height: float = 1.0) -> Tensor:
    """Joint positions in the rest pose. returns: [J, 3]"""
    offsets = rest_offsets(height).tolist()
    found = [offsets[0]]
    for j in range(1, len(JOINTS)):
        found.append([a + b for a, b in zip(found[PARENTS[j]], offsets[j], strict=True)])
    return torch.tensor(found)


def forward_kinematics(local: Tensor, root: Tensor, height: float = 1.0) -> tuple[Tensor, Tensor]:
    """World rotation and position of each joint.

    local: [F, J, 3, 3] rotation of each joint relative to its parent    root: [F, 3] pelvis position
    returns: rotations [F, J, 3, 3], positions [F, J, 3]
    """
    offsets = rest_offsets(height)[:, :, None]
    rotations, positions = local.clone(), root[:, None].repeat(1, len(JOINTS), 1)
    for joints, parents in _GENERATIONS:
        turned = rotations[:, parents]
        rotations[:, joints] = turned @ local[:, joints]
        positions[:, joints] = positions[:, parents] + (turned @ offsets[joints])[..., 0]
    return rotations, positions


def limb_axes(height: float = 1.0) -> tuple[Tensor, Tensor]:
    """Capsule axes in their joints' rest frames, and radii. returns: [L, 3], [L]"""
    offsets = rest_offsets(height)
    tips = [limb.tip for limb in LIMBS]
    axes = [offsets[INDEX[tip]] if isinstance(tip, str) else torch.tensor(tip) * height for tip in tips]
    return torch.stack(axes), torch.tensor([limb.radius for limb in LIMBS]) * height


def limb_joints() -> Tensor:
    """Index of the joint each limb hangs on. returns: [L] int64"""
    return torch.tensor([INDEX[limb.joint] for limb in LIMBS])
