"""Sparse attention methods, one file each. Importing this package registers them all."""

# The node lists them in this order, but for what one of them imports of another.
# isort: off
from . import draft, svg2, svg1, sparse_vdit, adaspa, rettention, attention_tile, threshold, radial
# isort: on
from .blocks import ORDERS, Blocks
from .error_target import ErrorTarget
from .job import Job
from .registry import METHODS, Method
from .sparse import SparseAttention
from .when import Ramp, When, parse_layers

__all__ = [
    "METHODS", "ORDERS", "Blocks", "ErrorTarget", "Job", "Method", "Ramp", "SparseAttention", "When", "adaspa",
    "attention_tile", "draft", "parse_layers", "radial", "rettention", "sparse_vdit", "svg1", "svg2", "threshold",
]  # fmt: skip
