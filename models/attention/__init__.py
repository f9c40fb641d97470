"""Sparse attention methods, one file each. Importing this package registers them all."""

from . import block_topk
from .method import METHODS, Blocks, SparseAttention, When, parse_layers

__all__ = ["METHODS", "Blocks", "SparseAttention", "When", "block_topk", "parse_layers"]
