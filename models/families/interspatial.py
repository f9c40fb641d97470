"""This pack's own model, models/nets/interspatial_dit.py.

Attention over space and time is factorised. What counts as the video's self attention is that within each latent
frame, the one that grows with the square of the picture. Other calls (over time, points, camera, reference) can have
the same sizes; so the network hands them no forward to be explained by, see models/host/interspatial_model.py.
"""

from __future__ import annotations

from ..layout import TokenLayout, arrange
from .family import Family, Inputs, Timed, cropped


def _layout(i: Inputs) -> TokenLayout:
    return arrange([("video", cropped((1, *i.latent[-2:]), i.model.patch_size))])


# Conditioning with a time axis, as models/control/scene.py names it.
TIMED = (
    Timed("frames", 1), Timed("body_place", 1), Timed("body_usable", 1), Timed("body_content", 1), Timed("rays", 2),
    Timed("background", 2),
)  # fmt: skip

# No `modules`: their outputs have frames, or places, as rows of the batch, and a cache keeps rows of prompts.
FAMILIES = (
    Family("interspatial", ("InterspatialDiT",), ("blocks",), 4, 8, _layout, others=lambda i: {}, timed=TIMED,
           streams={"blocks": ("x", "y")}, frames_in_batch=True),
)  # fmt: skip
