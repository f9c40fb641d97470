"""Quantised weights: formats, which layers take which, files, and plans of mixed precision."""
from __future__ import annotations

from . import lrq, rtn, vidit_q, vq4  # noqa: F401  (registers them)
