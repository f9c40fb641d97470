"""What the kernels compute on this card, before anything is timed: every tile against the reference in float32.

A row's error is the relative L2 distance to the reference on the same numbers, of outputs and of log-sum-exps. Memory
is poisoned with NaN first, so what is not written shows. Blocks are ragged, over a random order of the tokens; a block
of text sees all; a bias takes keys away or weighs them down; some lists are empty.
"""
# B batch   N tokens   H heads   D head dim   K blocks

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from interspatial.kernels import triton_attend
from interspatial.kernels.attend_call import AttendCall, Reshape
from interspatial.kernels.block_attend import block_attend_reference
from interspatial.kernels.block_plan import BlockPlan, kept_lists
from interspatial.kernels.triton_tiles import Tile
from torch import Tensor

from .stage import Bench, Stage

BATCH, HEADS, TEXT = 2, 3, 37
BOUND = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}  # of outputs; int8 may be off by 3e-2
INT8_BOUND = 3e-2


@dataclass(frozen=True)
class Kind:
    """size: tokens of a key block, at most; rows: of a query block    whole: no empty slot and no bias"""

    dtype: torch.dtype = torch.bfloat16
    dim: int = 128
    size: int = 64
    rows: int = 64
    tail: str | None = "row"
    whole: bool = False
    int8: bool = False
    reshape: bool = False

    def __str__(self) -> str:
        named = f"{str(self.dtype)[6:]} D {self.dim}, blocks of {self.rows} x {self.size}, tail {self.tail or 'off'}"
        return named + "".join(f", {x}" for x in ("whole", "int8", "reshape") if getattr(self, x))


def kinds() -> Iterator[Kind]:
    for tail in ("row", "block", None):
        for rows in (64, 128):
            yield Kind(tail=tail, rows=rows)
            yield Kind(tail=tail, rows=rows, whole=True)
            yield Kind(tail=tail, rows=rows, int8=True)
    for dtype in (torch.float16, torch.float32):
        yield Kind(dtype, tail="row")
    for dim in (64, 96, 256):
        yield Kind(dim=dim, tail="row", rows=128 if dim < 256 else 64)
    yield Kind(size=32, tail="row")
    yield Kind(size=128, rows=128, tail="row")
    yield Kind(tail=None, reshape=True, rows=128)


def blocks(tokens: int, size: int, whole: bool, draw: torch.Generator) -> Tensor:
    """Slots int32 [K, S] over a random order, blocks between half full and full, the text's last. All full if whole."""
    order, made = torch.randperm(tokens - TEXT, generator=draw).tolist(), []
    if whole:
        return torch.randperm(tokens, generator=draw).view(-1, size).int()
    while order:
        n = int(torch.randint(size // 2, size + 1, (), generator=draw))
        made.append(order[:n])
        order = order[n:]
    text = list(range(tokens - TEXT, tokens))
    made += [text[i : i + size] for i in range(0, TEXT, size)]
    return torch.tensor([block + [-1] * (size - len(block)) for block in made], dtype=torch.int32)


def problem(kind: Kind, tokens: int, device: str) -> AttendCall:
    """One call with lists of random length, some empty."""
    draw = torch.Generator().manual_seed(tokens)
    tokens = tokens // 128 * 128 if kind.whole else tokens
    queries, keys = (blocks(tokens, size, kind.whole, draw) for size in (kind.rows, kind.size))
    share = torch.rand(BATCH * HEADS, len(queries), 1, generator=draw)
    keep = torch.rand(BATCH * HEADS, len(queries), len(keys), generator=draw) < share * (share > 0.1)
    cols, counts = kept_lists(keep)
    first = len(queries) - -(-TEXT // kind.rows)
    full = () if kind.whole else ((first, len(queries)),)
    live = [(x >= 0).sum(-1)[None].int() for x in (queries, keys)]
    tables = (x.to(device) for x in (queries[None], keys[None], *live, cols, counts))
    shape = BATCH, tokens, HEADS, kind.dim
    q, k, v = (torch.randn(shape, generator=draw).to(device, kind.dtype) for _ in "qkv")
    bias = torch.zeros(BATCH, tokens)
    bias[0, ::7], bias[1, 1::3] = -torch.inf, -1.25
    reshape = Reshape(torch.rand(shape[:3], generator=draw).to(device), v) if kind.reshape else None
    return AttendCall(q, k, v, BlockPlan(*tables, full), kind.dim**-0.5, None if kind.whole else bias.to(device),
                      None if kind.reshape else kind.tail, reshape, True, int8=kind.int8)  # fmt: skip


def poison(call: AttendCall) -> None:
    """Leave NaN in the memory that the next allocations get."""
    for _ in range(2):
        held = [torch.full(call.q.shape, torch.nan, device=call.q.device, dtype=call.q.dtype) for _ in range(4)]
        del held


def distance(got: Tensor, want: Tensor) -> float:
    """Relative L2, infinite where what is finite differs."""
    live = want.isfinite()
    if not torch.equal(live, got.isfinite()):
        return float("inf")
    return float((got[live].double() - want[live].double()).norm() / want[live].double().norm().clamp(min=1e-30))


def tiles(call: AttendCall) -> list[Tile | None]:
    """Those of the Triton backend; None, for whatever backend there is, where it stands aside."""
    return triton_attend.offered(call) if triton_attend.why_not(call) is None else [None]


def check(bench: Bench, kind: Kind, tokens: int) -> None:
    call = problem(kind, tokens, bench.device)
    exact = (x.float() for x in (call.q, call.k, call.v))
    want = block_attend_reference(*exact, call.plan, scale=call.scale, key_bias=call.key_bias, tail=call.tail,
                                  reshape=call.reshape, return_lse=True)  # fmt: skip
    bound = INT8_BOUND if kind.int8 else BOUND[kind.dtype]
    for tile in tiles(call):
        what = str(tile or "other backend")
        if bench.has(what=what, setting=str(kind), tokens=tokens) or bench.left() < 0:
            continue
        with bench.attempt(what=what, setting=str(kind), tokens=tokens):
            poison(call)
            got = triton_attend.attend(call, tile) if tile else _other(call)
            error, lse = (distance(x, y) for x, y in zip(got, want, strict=True))
            bench.put(what=what, setting=str(kind), tokens=tokens, error=error, lse_error=lse, bound=bound,
                      right=error < bound and lse < bound)  # fmt: skip


def _other(call: AttendCall) -> tuple[Tensor, Tensor]:
    from interspatial.kernels.block_attend import BACKENDS

    return BACKENDS.run(call)


@torch.inference_mode()
def run(bench: Bench) -> None:
    for tokens in (301,) if bench.smoke else (1003, 4999):
        for kind in kinds():
            check(bench, kind, tokens)


STAGES = (Stage("checks", __doc__.partition("\n\n")[2].replace("\n", " ").strip(), 100, run),)
