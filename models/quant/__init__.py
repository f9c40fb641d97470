"""Quantised weights: formats, which layers take which, files, and plans of mixed precision."""
from __future__ import annotations

from . import rtn, vidit_q  # noqa: F401  (registers them)
