"""Skeletons in the colours of OpenPose: what pose ControlNets and pose video models were trained on.

P people   T frames   K key points (18, COCO order of OpenPose)   H W picture
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..puppet.body import INDEX
from .body import BodyTrack
from .camera import CameraPath
from .projection import NEAREST
from .seen import joints_known
from .skeleton import orient, size

# Nose, neck, right arm, left arm, right leg, left leg, eyes, ears: OpenPose's order, right before left.
_JOINTS = {2: "right_shoulder", 3: "right_elbow", 4: "right_wrist", 5: "left_shoulder", 6: "left_elbow",
           7: "left_wrist", 8: "right_hip", 9: "right_knee", 10: "right_ankle", 11: "left_hip", 12: "left_knee",
           13: "left_ankle"}  # fmt: skip
# Of a head of height 1: metres from its joint in the head's frame, and the side that must not be turned away.
_FACE = {0: ((0.0, 0.04, 0.125), (0.0, 0.0, 1.0)), 14: ((-0.035, 0.085, 0.105), (-0.3, 0.0, 0.95)),
         15: ((0.035, 0.085, 0.105), (0.3, 0.0, 0.95)), 16: ((-0.12, 0.06, 0.0), (-1.0, 0.0, 0.0)),
         17: ((0.12, 0.06, 0.0), (1.0, 0.0, 0.0))}  # fmt: skip
TURNED_AWAY = -0.25  # cosine below which a detector no longer finds an eye or an ear
LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
         (0, 14), (14, 16), (0, 15), (15, 17))  # fmt: skip
COLOURS = ((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
           (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255),
           (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85))  # fmt: skip
STICK = 4.0  # pixels of half a stick and of a dot, in a picture whose shorter side is 512
DIMMED = 0.6  # sticks are darker than dots


def key_points(track: BodyTrack, camera: CameraPath) -> tuple[Tensor, Tensor]:
    """The 18 points in the picture. returns: pixels [P, T, K, 2], whether they are drawn [P, T, K] bool

    raises: ValueError for bodies without joints
    """
    if track.joints is None:
        raise ValueError("a skeleton needs joints, and this body has points only. Choose another map, or a source with "
                         "joints.")  # fmt: skip
    joints, known = track.joints, joints_known(track)
    place = torch.zeros(*joints.shape[:2], 18, 3)
    drawn = torch.zeros(*joints.shape[:2], 18, dtype=torch.bool)
    for k, name in _JOINTS.items():
        place[:, :, k], drawn[:, :, k] = joints[:, :, INDEX[name]], known[:, :, INDEX[name]]
    place[:, :, 1], drawn[:, :, 1] = (place[:, :, 2] + place[:, :, 5]) / 2, drawn[:, :, 2] & drawn[:, :, 5]
    turned, scale = orient(joints)[:, :, INDEX["head"]].to(joints), size(joints)
    head = joints[:, :, INDEX["head"]]
    toward = normalize(camera.centre - head, dim=-1)
    for k, (offset, side) in _FACE.items():
        place[:, :, k] = head + scale[:, None, None] * (turned @ torch.tensor(offset))
        faces = ((turned @ torch.tensor(side)) * toward).sum(-1) > TURNED_AWAY
        drawn[:, :, k] = known[:, :, INDEX["head"]] & faces
    seen = camera.view(place)
    depth = seen[..., 2]
    pixel = (seen @ camera.K.transpose(1, 2))[..., :2] / depth.clamp(min=NEAREST)[..., None]
    return pixel, drawn & (depth > NEAREST)


def draw(pixel: Tensor, drawn: Tensor, picture: Tensor) -> None:
    """Draw one frame's skeletons into a picture. pixel: [P, K, 2]    drawn: [P, K]    picture: [H, W, 3] 0..1"""
    half = max(STICK * min(picture.shape[:2]) / 512, 0.75)
    colours = torch.tensor(COLOURS) / 255
    for person, there in zip(pixel, drawn, strict=True):
        for i, (a, b) in enumerate(LIMBS):
            if there[a] and there[b]:
                _blob(picture, person[a], person[b], half, DIMMED * colours[i])
    for person, there in zip(pixel, drawn, strict=True):
        for k in range(len(COLOURS)):
            if there[k]:
                _blob(picture, person[k], person[k], half, colours[k])


def _blob(picture: Tensor, a: Tensor, b: Tensor, half: float, colour: Tensor) -> None:
    """An ellipse from a to b, or a dot where they are one, with soft edges. a, b: [2] pixels"""
    H, W = picture.shape[:2]
    low, high = torch.minimum(a, b) - half - 1, torch.maximum(a, b) + half + 1
    x0, y0 = (max(0, int(v)) for v in low.clamp(-1, max(H, W)).tolist())
    x1, y1 = (min(n, int(v) + 1) for v, n in zip(high.clamp(-1, max(H, W)).tolist(), (W, H), strict=True))
    if x0 >= x1 or y0 >= y1:
        return
    y, x = torch.meshgrid(torch.arange(y0, y1) + 0.5, torch.arange(x0, x1) + 0.5, indexing="ij")
    from_middle = torch.stack([x, y], -1) - (a + b) / 2
    long = float((b - a).norm()) / 2
    along = (b - a) / (2 * long) if long > 0 else torch.tensor([1.0, 0.0])
    u = from_middle @ along / max(long, half)
    v = (from_middle[..., 1] * along[0] - from_middle[..., 0] * along[1]) / half
    cover = (half * (1 - (u * u + v * v).sqrt()) + 0.5).clamp(0, 1)[..., None]
    picture[y0:y1, x0:x1] = picture[y0:y1, x0:x1] * (1 - cover) + cover * colour
