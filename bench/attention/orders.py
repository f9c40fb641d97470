"""Block orders and doubled query blocks: error against what the kernel has to compute, on data as smooth as a video's.

    python -m bench.attention.orders

Relative L2 of one attention call by draft, tail "row", against dense in float32, on structured q, k and v (see
bench/gpu/activations.py). work: slots of queries x slots of keys that are computed, blocks padded to 64 or 128 slots,
over all pairs of tokens. A few minutes on one CPU core.
"""

from __future__ import annotations

from itertools import product

import torch
from interspatial.kernels.block_plan import BlockPlan
from interspatial.models.attention import METHODS, Blocks, Job
from interspatial.models.attention.draft import QUERY_BLOCKS
from interspatial.models.layout import arrange
from torch.nn.functional import scaled_dot_product_attention

from ..gpu.activations import structured
from ..gpu.calls import Sampling

CASES = ((4, 45, 80), 0, 128), ((5, 30, 52), 0, 128), ((5, 30, 45), 226, 64)  # grid, text, head dim
HEADS, DENSITIES = 4, (0.1, 0.2, 0.3)


def work(plan: BlockPlan, tokens: int) -> float:
    width = plan.cols.shape[2] if plan.counts is None else float(plan.counts.float().mean())
    padded = (64 if slots.shape[2] <= 64 else 128 for slots in (plan.q_slots, plan.k_slots))
    return width * plan.q_slots.shape[1] * next(padded) * next(padded) / tokens**2


@torch.inference_mode()
def main() -> None:
    kinds = [*product(("tile", "strip"), QUERY_BLOCKS)]
    heads = " | ".join(f"{order}, {blocks}: error, work" for order, blocks in kinds)
    print(f"| grid, text, head dim | density | {heads} |\n|" + " --- |" * (2 + len(kinds)))
    for seed, (grid, text, dim) in enumerate(CASES):
        layout = arrange([("video", grid), ("text", text)] if text else [("video", grid)])
        q, k, v = structured(layout, HEADS, dim, "cpu", torch.float32, seed)
        want = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
        for density in DENSITIES:
            cells = []
            for order, query_blocks in kinds:
                job = Job(Sampling(q, k, v, layout).call(0), Blocks(order), "row", density)
                out = METHODS["draft"](density=density, query_blocks=query_blocks).attend(job)
                cells.append(f"{float((out - want).norm() / want.norm()):.4f}, {work(job.used, layout.tokens):.3f}")
            print(f"| {grid}, {text}, {dim} | {density} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
