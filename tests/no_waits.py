"""A check, without a GPU, that code never waits for one: `with no_waits(): ...` around calls on meta tensors.

    x = torch.empty(2, 129, 3, 16, device="meta")   # stands for a GPU: code that asks for device.type sees no "cpu"
    first_call(x)                                   # what happens once a run may copy tables to the device
    with no_waits():
        later_call(x)

It fails, naming operation and line, on whatever makes the host wait for the device that its tensors are on: reading a
value (item, int, bool, tolist, equal), shapes that depend on values (nonzero, masks as indices, unique, bincount,
repeat_interleave without output_size), copies to the host, and copies from the host (`to`, torch.tensor, lists as
indices), which from pageable memory wait too. `with no_waits(uploads=True)` lets the last ones pass, for a first call.
Work on CPU tensors alone is the host's own. What a branch for CPU tensors does is not seen, and kernels do not run.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parent.parent
READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "_linalg_check_errors"}
BY_VALUE = {
    *("nonzero", "nonzero_numpy", "argwhere", "masked_select", "bincount", "combinations", "tensor_split"),
    *("unique_dim", "_unique", "_unique2", "unique_consecutive", "unique_dim_consecutive"),
}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
FROM_LISTS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)


@contextmanager
def no_waits(*, uploads: bool = False) -> Iterator[None]:
    """uploads: copies from the host to the device may happen

    raises: AssertionError at the end, with all waits, even where an exception was caught on the way
    """
    mode, failure = _Waits(uploads), None
    try:
        with mode, _Lists(mode):
            yield
    except Exception as error:  # the meta device itself refuses most reads
        failure = error
    if mode.found:
        raise AssertionError("The device was waited for:\n" + "\n".join(mode.found)) from failure
    if failure is not None:
        raise failure


class _Waits(TorchDispatchMode):
    def __init__(self, uploads: bool) -> None:
        super().__init__()
        self.uploads = uploads
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if reason := self._wait(func.overloadpacket.__name__, args, kwargs):
            self.found.append(f"{_caller()}: {func}: {reason}")
        return func(*args, **kwargs)

    def _wait(self, name: str, args: tuple, kwargs: dict) -> str | None:
        """Why the operation waits, or None."""
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        away = any(x.device.type != "cpu" for x in given)
        if name == "_to_copy":
            return self._copy(given[0].device, torch.device(kwargs.get("device") or given[0].device))
        if name in ("copy_", "copy"):
            return self._copy(args[1].device, args[0].device)
        if not away:
            return None
        if name in READS:
            return "reads a value"
        if name in BY_VALUE:
            return "the result's shape depends on values"
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            return "the result's shape depends on values; output_size says it"
        return self._index(args) if name in INDEXED else None

    def _copy(self, source: torch.device, target: torch.device) -> str | None:
        if source.type == target.type:
            return None
        if target.type == "cpu":
            return "copies to the host"
        return None if self.uploads else "copies from the host"

    def _index(self, args: tuple) -> str | None:
        numbers = [x for x in args[1] if x is not None]
        if any(x.dtype in (torch.bool, torch.uint8) for x in numbers):
            filled = len(args) > 2 and args[2].numel() == 1 and len(numbers) == 1  # torch makes a masked fill of it
            return None if filled else "a mask as an index"
        if any(x.device.type == "cpu" for x in numbers) and not self.uploads:
            return "copies its indices from the host"
        return None


class _Lists(TorchFunctionMode):
    """What torch makes of Python numbers on the way to a device, which no dispatch mode sees."""

    def __init__(self, waits: _Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            at = args[1] if isinstance(args[1], tuple) else (args[1],)
            made = args[0].device.type != "cpu" and any(isinstance(x, list) for x in at)
        else:
            made = func in FROM_LISTS and out.device.type != "cpu"
        if made and not self.waits.uploads:
            self.waits.found.append(f"{_caller()}: {func.__name__}: copies numbers from the host")
        return out


def _caller() -> str:
    """The innermost line of the project, outside this file."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.name != "no_waits.py" and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "outside the project"
