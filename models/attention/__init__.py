"""Sparse attention methods, one file each. Importing this package registers them all."""

from . import draft
from .blocks import ORDERS, Blocks
from .error_target import ErrorTarget
from .job import Job
from .registry import METHODS, Method
from .sparse import SparseAttention
from .when import Ramp, When, parse_layers

__all__ = [
    "METHODS", "ORDERS", "Blocks", "ErrorTarget", "Job", "Method", "Ramp", "SparseAttention", "When", "draft",
    "parse_layers",
]  # fmt: skip
