"""Step caches: evaluations of the model that are forecast from earlier ones, or the blocks of them.

Importing this package registers the methods, and the paces that say which steps run.
"""

# The node lists them in this order.
# isort: off
from . import taylorseer, spectrum, reuse, delta_dit, first_block, seacache
# isort: on
from .pace import PACES
from .registry import CACHES, CacheMethod
from .sites import SITES
from .step_cache import StepCache

__all__ = [
    "CACHES", "PACES", "SITES", "CacheMethod", "StepCache", "delta_dit", "first_block", "reuse", "seacache", "spectrum",
    "taylorseer",
]  # fmt: skip
