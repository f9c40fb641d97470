"""Block attention on the CPU against dense attention, measured in turn in one process.

    python -m bench.attention.speed_cpu [--grids 16x32x32] [--dtypes float32] [--json FILE]

Queries, keys and values are random, [1, N, H, D], blocks are 8x8 tiles, and `top_blocks` lists each head's blocks: of
random queries and keys those are random blocks, one of them the own one. A round runs dense attention
(scaled_dot_product_attention), then block attention with every density and tail; the next round does the same. Rows
reach the JSON file after every size and format, so a run may be stopped, and a later one adds to the file.
"""
# N tokens   H heads   D head dim   Q query blocks   K key blocks   S slots per block

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from interspatial.kernels.block_attend import block_attend
from interspatial.kernels.block_plan import BlockPlan, kept_mask
from interspatial.models.attention.orders import tile
from interspatial.models.attention.select import top_blocks
from interspatial.models.layout import Segment, TokenLayout
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

KEY = ("grid", "dtype", "heads", "dim", "density", "tail", "threads", "clock")
COLUMNS = {
    "tokens": "tokens", "dtype": "format", "density": "density", "tail": "tail", "dense_ms": "dense, ms",
    "sparse_ms": "blocks, ms", "ratio_min": "ratio of minima", "ratio_median": "ratio of medians",
    "select_ms": "selection, ms", "error": "relative L2",
}  # fmt: skip
# on a machine that others use too, one thread's CPU time leaves out the waiting; with more threads it is their sum
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Variant:
    """One density and tail, and the seconds that its calls took."""

    density: float
    tail: str | None
    plan: BlockPlan
    select: float
    seconds: list[float]

    def row(self, dense: list[float], error: float) -> dict:
        """Times in milliseconds: minima, and medians under their own names."""
        return {
            "density": self.density, "tail": self.tail or "off", "select_ms": self.select * 1e3, "error": error,
            "dense_ms": min(dense) * 1e3, "dense_median_ms": median(dense) * 1e3,
            "sparse_ms": min(self.seconds) * 1e3, "sparse_median_ms": median(self.seconds) * 1e3,
            "ratio_min": min(dense) / min(self.seconds), "ratio_median": median(dense) / median(self.seconds),
            "rounds": len(dense),
        }  # fmt: skip


def seconds(clock: str, call: Callable[[], object]) -> float:
    start = CLOCKS[clock]()
    call()
    return CLOCKS[clock]() - start


def attend(q: Tensor, k: Tensor, v: Tensor, variant: Variant) -> Tensor:
    return block_attend(q, k, v, variant.plan, tail=variant.tail, backend="gather")


def sampled_error(got: Tensor, q: Tensor, k: Tensor, v: Tensor, variant: Variant) -> float:
    """Relative L2 of four query blocks of the first head against float64. got, q, k, v: [1, N, H, D]"""
    plan, top, bottom = variant.plan, 0.0, 0.0
    query, key, value = (x[0, :, 0].double() for x in (q, k, v))
    where, live, keep = torch.empty(len(key), dtype=torch.int64), plan.k_slots[0] >= 0, kept_mask(plan)[0]
    where[plan.k_slots[0, live].long()] = live.nonzero()[:, 0]  # block of each key
    size = where.bincount(minlength=keep.shape[1]).double()[:, None]
    mean_key, mean_value = (x.new_zeros(len(size), x.shape[1]).index_add_(0, where, x) / size for x in (key, value))
    for i in torch.linspace(0, len(keep) - 1, 4).long():
        rows = plan.q_slots[0, i][plan.q_slots[0, i] >= 0].long()
        part, seen = query[rows] * q.shape[-1] ** -0.5, keep[i, where]
        score, values = (part @ key[seen].T).exp(), value[seen]
        if variant.tail:
            score = torch.cat((score, (part @ mean_key.T).exp() * size.T * ~keep[i]), 1)
            values = torch.cat((values, mean_value))
        want = score @ values / score.sum(1, keepdim=True)
        top += float((got[0, rows, 0].double() - want).square().sum())
        bottom += float(want.square().sum())
    return (top / bottom) ** 0.5


def measure(grid: tuple[int, int, int], dtype: torch.dtype, args: argparse.Namespace) -> list[dict]:
    """All densities and tails of one size and format."""
    tokens = grid[0] * grid[1] * grid[2]
    draw = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(1, tokens, args.heads, args.dim, generator=draw).to(dtype) for _ in "qkv")
    order = tile(TokenLayout(tokens, (Segment("video", 0, tokens, grid),), grid))
    variants = []
    for density in args.densities:
        top_blocks(q, k, order, density)
        spent = min(seconds(args.clock, lambda d=density: top_blocks(q, k, order, d)) for _ in range(3))
        plan = top_blocks(q, k, order, density)
        variants += [Variant(density, None if tail == "off" else tail, plan, spent, []) for tail in args.tails]
    dense: list[float] = []
    for round_ in range(args.rounds + 1):  # the first one warms up
        took = [seconds(args.clock, lambda: scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))))]
        took += [seconds(args.clock, lambda x=x: attend(q, k, v, x)) for x in variants]
        if round_:
            dense.append(took[0])
            for variant, spent in zip(variants, took[1:], strict=True):
                variant.seconds.append(spent)
    named = {"tokens": tokens, "grid": list(grid), "dtype": str(dtype)[6:], "heads": args.heads, "dim": args.dim}
    named |= {"threads": torch.get_num_threads(), "clock": args.clock}
    errors = [sampled_error(attend(q, k, v, x), q, k, v, x) for x in variants]
    return [named | x.row(dense, error) for x, error in zip(variants, errors, strict=True)]


def machine() -> dict:
    """What the times depend on beside the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {name.strip(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name") or platform.processor(),
        "flags": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_fp16") if flag in flags],
        "torch": torch.__version__,
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
    }


def save(path: Path, rows: list[dict]) -> None:
    """Put the rows in place of earlier ones of the same case, and keep the others of the same machine."""
    old = json.loads(path.read_text()) if path.exists() else {}
    new = [[row[name] for name in KEY] for row in rows]
    kept = [row for row in old.get("rows", []) if [row[name] for name in KEY] not in new]
    method = "times are minima over rounds, dense and blocks in turn; error: four query blocks against float64"
    found = machine()
    rows = sorted((kept if old.get("machine") == found else []) + rows, key=lambda row: (row["tokens"], row["dtype"]))
    path.write_text(json.dumps({"method": method, "machine": found, "rows": rows}, indent=1) + "\n")


def show(row: dict) -> str:
    cells = (f"{x:.3g}" if isinstance(x, float) and abs(x) < 100 else f"{x:.0f}" if isinstance(x, float) else str(x)
             for x in (row[name] for name in COLUMNS))  # fmt: skip
    return f"| {' | '.join(cells)} |"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    grid = lambda text: tuple(int(n) for n in text.split("x"))  # noqa: E731
    parser.add_argument("--grids", type=grid, nargs="+", default=[(n, 32, 32) for n in (4, 8, 16, 32)], metavar="TxHxW")
    parser.add_argument("--densities", type=float, nargs="+", default=(0.125, 0.25, 0.5, 1.0))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16", "float16"),
                        default=("float32", "bfloat16"))  # fmt: skip
    parser.add_argument("--tails", nargs="+", choices=("row", "block", "off"), default=("row", "off"))
    parser.add_argument("--heads", type=int, default=4)  # from 4 on, dense packs bfloat16 for AMX
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{machine()}, {args.threads} threads, {args.heads} heads of {args.dim}")
    print(f"| {' | '.join(COLUMNS.values())} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    for shape in args.grids:
        for dtype in args.dtypes:
            rows = measure(shape, getattr(torch, dtype), args)
            print("\n".join(map(show, rows)), flush=True)
            if args.json:
                save(args.json, rows)


if __name__ == "__main__":
    main()
