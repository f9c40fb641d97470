"""Placeholder, filled in below."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorTarget:
    error: float = 0.1
    most: float = 0.6
