"""Step caches: evaluations of the model that are forecast from earlier ones.

Importing the methods registers them; `CACHES` is what the node offers.
"""
from __future__ import annotations

from . import taylorseer
from .pace import Fixed
from .registry import CACHES, CacheMethod
from .step_cache import StepCache

__all__ = ["CACHES", "CacheMethod", "Fixed", "StepCache", "taylorseer"]
