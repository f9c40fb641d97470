"""SeedVR2. Source: comfy/ldm/seedvr/model.py in ComfyUI 0.30.0."""
from __future__ import annotations

from .family import Family

OPAQUE = "SeedVR2 calls its windowed attention without transformer options, so no hook ever sees it"

FAMILIES = (Family("seedvr2", ("NaDiT",), ("blocks",), 4, 8, lambda i: OPAQUE, lambda i: {}, opaque=OPAQUE),)
