"""Other orders of joints brought to the 24 of SMPL that skeletons have here.

P people   T frames   J joints of the source. The first 22 joints of SMPL, SMPL-H and SMPL-X are the same body; their
hand joints stand at the root of the middle finger. Sets of key points (COCO, Human3.6M, MHR of SAM 3D Body) lie on the
surface or miss joints: what is missing is put where the rest pose has it, between hips and shoulders.

Orders as their publishers document them: smplx's joint names, COCO, Human3.6M, and mhr70 of SAM 3D Body.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..puppet.body import INDEX, JOINTS, rest_joints

# Joints in a file: where SMPL's left_hand and right_hand are; None: extended from the forearm.
_HANDS = {22: None, 24: (22, 23), 45: (22, 23), 52: (25, 40), 55: (28, 43), 73: (25, 40), 118: (28, 43),
          127: (28, 43), 144: (28, 43)}  # fmt: skip
_PAIRS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
_COCO = {"nose": 0, "left_ear": 3, "right_ear": 4} | {
    f"{side}_{name}": 5 + 2 * i + k for i, name in enumerate(_PAIRS) for k, side in enumerate(("left", "right"))}
_MHR = _COCO | {"left_hip": 9, "right_hip": 10, "left_knee": 11, "right_knee": 12, "left_ankle": 13, "right_ankle": 14,
                "left_wrist": 62, "right_wrist": 41, "left_toe": 15, "right_toe": 18, "left_hand": 53,
                "right_hand": 32}  # fmt: skip
_H36M = {"right_hip": 1, "right_knee": 2, "right_ankle": 3, "left_hip": 4, "left_knee": 5, "left_ankle": 6,
         "head_top": 10, "left_shoulder": 11, "left_elbow": 12, "left_wrist": 13, "right_shoulder": 14,
         "right_elbow": 15, "right_wrist": 16}  # fmt: skip
_NAMED = {"COCO 17": (17, _COCO), "Human3.6M 17": (17, _H36M), "MHR 70": (70, _MHR)}
ORDERS = ("auto", "SMPL", *_NAMED)


def to_smpl(joints: Tensor, order: str = "auto") -> Tensor:
    """joints: [P, T, J, 3]; order: one of ORDERS; auto goes by J    returns: [P, T, 24, 3]

    raises: ValueError that says what is accepted
    """
    count = joints.shape[2]
    if order == "auto":
        order = "MHR 70" if count == 70 else "SMPL"
        if count == 17:
            raise ValueError("17 joints can be COCO's or Human3.6M's. Choose the order: COCO 17 or Human3.6M 17.")
    if order == "SMPL":
        if count not in _HANDS:
            known = ", ".join(map(str, _HANDS))
            raise ValueError(f"{count} joints; accepted: {known} in an order of SMPL, SMPL-H or SMPL-X, 70 of MHR, "
                             "and 17 of COCO or Human3.6M.")  # fmt: skip
        return _of_family(joints, _HANDS[count])
    wanted, places = _NAMED[order]
    if count != wanted:
        raise ValueError(f"the order {order} has {wanted} joints, the track {count}. Choose another order.")
    return from_key_points({name: joints[:, :, i] for name, i in places.items()})


def _of_family(joints: Tensor, hands: tuple[int, int] | None) -> Tensor:
    body = joints[:, :, :22]
    if hands:
        return torch.cat([body, joints[:, :, list(hands)]], 2)
    ends = [_beyond(body[:, :, INDEX[f"{side}_elbow"]], body[:, :, INDEX[f"{side}_wrist"]])
            for side in ("left", "right")]  # fmt: skip
    return torch.cat([body, torch.stack(ends, 2)], 2)


def _beyond(elbow: Tensor, wrist: Tensor) -> Tensor:
    """A hand that goes on from the forearm, as long as at rest."""
    rest = rest_joints()
    arm, hand = rest[INDEX["left_wrist"]] - rest[INDEX["left_elbow"]], rest[INDEX["left_hand"]]
    return wrist + (wrist - elbow) * float((hand - rest[INDEX["left_wrist"]]).norm() / arm.norm())


def from_key_points(points: dict[str, Tensor]) -> Tensor:
    """Joints from points with names. Each [P, T, 3], NaN where not known.

    needed: left_ and right_ shoulder, elbow, wrist, hip, knee, ankle
    used where there: left_ear and right_ear, or head_top; left_ and right_ toe and hand
    returns: [P, T, 24, 3]
    """
    rest = {name: rest_joints()[i] for i, name in enumerate(JOINTS)}
    hips = (points["left_hip"] + points["right_hip"]) / 2
    shoulders = (points["left_shoulder"] + points["right_shoulder"]) / 2
    low, high = (float(rest[f"left_{name}"][1]) for name in ("hip", "shoulder"))
    spine, half = shoulders - hips, (points["left_shoulder"] - points["right_shoulder"]) / 2
    metre = spine.norm(dim=-1, keepdim=True) / (high - low)  # of the rest pose, as long as it is here
    up = normalize(spine, dim=-1)
    forward = normalize(torch.linalg.cross(half, up), dim=-1)

    def on_spine(name: str) -> Tensor:
        return hips + spine * ((float(rest[name][1]) - low) / (high - low))

    found = {name: on_spine(name) for name in ("pelvis", "spine1", "spine2", "spine3", "neck")}
    share = float(rest["left_collar"][0] / rest["left_shoulder"][0])
    for side, sign in (("left", 1.0), ("right", -1.0)):
        found[f"{side}_collar"] = on_spine("left_collar") + sign * share * half
        found |= {f"{side}_{name}": points[f"{side}_{name}"] for name in _PAIRS}
        found[f"{side}_foot"] = _foot(points, side, up, forward, metre)
        hand = points.get(f"{side}_hand")
        found[f"{side}_hand"] = _beyond(points[f"{side}_elbow"], points[f"{side}_wrist"]) if hand is None else hand
    found["head"] = _head(points, found["neck"], up, metre)
    return torch.stack([found[name] for name in JOINTS], 2)


def _foot(points: dict[str, Tensor], side: str, up: Tensor, forward: Tensor, metre: Tensor) -> Tensor:
    """The ball of the foot: most of the way to the toe, or before the ankle as at rest."""
    ankle, toe = points[f"{side}_ankle"], points.get(f"{side}_toe")
    return ankle + metre * (0.13 * forward - 0.04 * up) if toe is None else ankle + 0.8 * (toe - ankle)


def _head(points: dict[str, Tensor], neck: Tensor, up: Tensor, metre: Tensor) -> Tensor:
    """The joint below the skull: under the ears, or part of the way to the top of the head, or as at rest."""
    if "left_ear" in points:
        ears = (points["left_ear"] + points["right_ear"]) / 2
        return ears - 0.06 * metre * normalize(ears - neck, dim=-1)
    if "head_top" in points:
        return neck + 0.4 * (points["head_top"] - neck)
    return neck + 0.11 * metre * up
