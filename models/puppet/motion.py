"""What puppets do: joint rotations over time for each named motion, and the path of the root.

F frames   J joints. Angles in radians, time in seconds. Left and right are the puppet's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .body import FOOT_RADIUS, INDEX, JOINTS, forward_kinematics, rest_offsets
from .choice import check_choice

MOTIONS = ("stand", "walk", "wave", "jump", "turn", "squat", "dance")
HEADINGS = {"toward": 0.0, "right": math.pi / 2, "away": math.pi, "left": -math.pi / 2}  # seen from the camera at +z
HANGING = math.radians(76)  # an arm that hangs beside the body, from the T-pose


@dataclass(frozen=True)
class Motion:
    """What one puppet does.

    name: one of MOTIONS    heading: radians about y, 0 faces +z    speed: m/s (walk), else tempo relative to 1
    phase: radians into the cycle at the first frame
    raises: ValueError for an unknown name
    """

    name: str
    heading: float = 0.0
    speed: float = 1.0
    phase: float = 0.0

    def __post_init__(self) -> None:
        check_choice("motion", self.name, MOTIONS)


def rotation(axis: str, angle: Tensor) -> Tensor:
    """Rotation about a coordinate axis. angle: [...] -> [..., 3, 3]"""
    c, s, o, i = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = {"x": (i, o, o, o, c, -s, o, s, c), "y": (c, o, s, o, i, o, -s, o, c), "z": (c, -s, o, s, c, o, o, o, i)}
    return torch.stack(rows[axis], -1).unflatten(-1, (3, 3))


class _Pose:
    """Joint rotations being put together; what is not set stays at rest, with the arms hanging."""

    def __init__(self, frames: int):
        self.local = torch.eye(3).repeat(frames, len(JOINTS), 1, 1)
        hang = torch.full((frames,), HANGING)
        self.arm("left", hang, 0 * hang, 0.25 + 0 * hang)
        self.arm("right", hang, 0 * hang, 0.25 + 0 * hang)

    def set(self, joint: str, rotations: Tensor) -> None:
        self.local[:, INDEX[joint]] = rotations

    def arm(self, side: str, drop: Tensor, swing: Tensor, bend: Tensor) -> None:
        """drop: below the horizontal; swing: forward; bend: of the elbow, forward."""
        sign = 1.0 if side == "left" else -1.0
        self.set(f"{side}_shoulder", rotation("x", -swing) @ rotation("z", -sign * drop))
        self.set(f"{side}_elbow", rotation("y", -sign * bend))

    def leg(self, side: str, lift: Tensor, bend: Tensor, foot: Tensor) -> None:
        """lift: of the thigh, forward; bend: of the knee; foot: toes up."""
        self.set(f"{side}_hip", rotation("x", -lift))
        self.set(f"{side}_knee", rotation("x", bend))
        self.set(f"{side}_ankle", rotation("x", -foot))


def _walk(pose: _Pose, t: Tensor, m: Motion) -> Tensor:
    cycle = 2 * math.pi * (0.55 + 0.45 * m.speed) * t + m.phase  # faster walkers step more often and reach further
    reach = 0.36 + 0.16 * m.speed
    for side, phase in (("left", cycle), ("right", cycle + math.pi)):
        pose.leg(side, reach * phase.sin(), 0.15 + 0.75 * reach * (1 + phase.cos()) * 0.9, 0.1 * phase.sin())
        pose.arm(side, torch.full_like(t, HANGING), -1.1 * reach * phase.sin(), 0.35 + 0.2 * phase.sin())
    pose.set("spine1", rotation("x", torch.full_like(t, 0.06)))
    return torch.zeros_like(t)


def _wave(pose: _Pose, t: Tensor, m: Motion) -> Tensor:
    swing = (2 * math.pi * 1.6 * m.speed * t + m.phase).sin()
    pose.set("right_shoulder", rotation("z", torch.full_like(t, -0.75)))
    pose.set("right_elbow", rotation("z", -0.75 + 0.65 * swing))
    return torch.zeros_like(t)


def _jump(pose: _Pose, t: Tensor, m: Motion) -> Tensor:
    cycle = (1.25 * m.speed * t + m.phase / (2 * math.pi)) % 1.0
    air = ((cycle - 0.4) / 0.6).clamp(0, 1)  # the last 60 % of a cycle are in the air
    height = 4 * 0.42 * air * (1 - air)
    crouch = (math.pi * (cycle / 0.4).clamp(0, 1)).sin()
    for side in ("left", "right"):
        pose.leg(side, 0.75 * crouch, 1.4 * crouch, 0.65 * crouch)
        pose.arm(side, HANGING - 2.3 * (math.pi * air).sin(), 0.5 * crouch, torch.full_like(t, 0.2))
    return height


def _squat(pose: _Pose, t: Tensor, m: Motion) -> Tensor:
    depth = 0.5 - 0.5 * (2 * math.pi * 0.8 * m.speed * t + m.phase).cos()
    for side in ("left", "right"):
        pose.leg(side, 1.35 * depth, 2.2 * depth, 0.85 * depth)
        pose.arm(side, HANGING + 0 * t, 1.4 * depth, 0.2 + 0 * t)
    pose.set("spine1", rotation("x", 0.35 * depth))
    return torch.zeros_like(t)


def _dance(pose: _Pose, t: Tensor, m: Motion) -> Tensor:
    beat = 2 * math.pi * 1.1 * m.speed * t + m.phase
    pose.set("pelvis", rotation("z", 0.12 * beat.sin()) @ rotation("y", 0.35 * (beat / 2).sin()))
    pose.set("spine2", rotation("z", -0.25 * beat.sin()))
    for side, phase in (("left", beat), ("right", beat + math.pi)):
        pose.arm(side, 0.1 - 0.9 * phase.sin(), 0 * t, 0.9 + 0.5 * phase.cos())
        pose.leg(side, 0.45 * phase.sin().clamp(min=0), 0.9 * phase.sin().clamp(min=0), 0 * t)
    return torch.zeros_like(t)


def _rest(pose: _Pose, t: Tensor, m: Motion) -> Tensor:
    pose.set("spine2", rotation("x", 0.03 * (2 * math.pi * 0.4 * t + m.phase).sin()))  # breathing
    return torch.zeros_like(t)


_ACT = {"stand": _rest, "walk": _walk, "wave": _wave, "jump": _jump, "turn": _rest, "squat": _squat, "dance": _dance}


def act(motion: Motion, t: Tensor, start: tuple[float, float], height: float = 1.0) -> tuple[Tensor, Tensor]:
    """World joints of one puppet over time; the lower foot stands on the floor unless the motion is in the air.

    t: [F] seconds    start: x, z of the pelvis at t = 0, metres
    returns: rotations [F, J, 3, 3], positions [F, J, 3]
    """
    pose = _Pose(len(t))
    lift = _ACT[motion.name](pose, t, motion)
    heading = torch.full_like(t, motion.heading)
    if motion.name == "turn":
        heading = heading + math.pi * motion.speed * t + motion.phase
    pose.local[:, 0] = rotation("y", heading) @ pose.local[:, 0]
    travelled = motion.speed * t if motion.name == "walk" else torch.zeros_like(t)
    root = torch.stack([start[0] + travelled * math.sin(motion.heading), rest_offsets(height)[0, 1].expand_as(t),
                        start[1] + travelled * math.cos(motion.heading)], -1)  # fmt: skip
    rotations, positions = forward_kinematics(pose.local, root, height)
    feet = positions[:, [INDEX[n] for n in ("left_ankle", "right_ankle", "left_foot", "right_foot")], 1]
    up = lift * height + FOOT_RADIUS * height - feet.min(dim=1).values
    positions = positions + up[:, None, None] * torch.tensor([0.0, 1.0, 0.0])
    return rotations, positions
