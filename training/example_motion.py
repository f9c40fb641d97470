"""Writes the motion that ships in checkpoints/bodies: 24 joints of a dancing puppet, as a tracker would give them.

python -m training.example_motion
"""

from __future__ import annotations

import torch

from .package import CHECKPOINTS, prepare

prepare(comfy=False)
from interspatial.models.puppet.motion import Motion, act  # noqa: E402

from .card import save_checkpoint  # noqa: E402

FRAMES, FPS = 33, 16.0

if __name__ == "__main__":
    _, joints = act(Motion("dance", heading=0.3), torch.arange(FRAMES) / FPS, (0.0, 0.0))
    save_checkpoint({"joints": joints, "fps": torch.tensor(FPS)}, CHECKPOINTS / "bodies" / "puppet_dance.safetensors",
                    torch.float32, {
        "what": f"{FRAMES} frames of 24 joints (SMPL's order), metres, y up, {FPS:g} per second",
        "data": "the motion dance of Puppet World",
    })  # fmt: skip
