"""Block attention on a GPU against what else runs there, at the sizes of real video models.

    python -m bench.attention.speed_gpu [--shapes wan480 wan720] [--densities 0.1 0.2 0.3] [--json FILE]

Side by side in one process, in turn, median of --rounds after a warm-up: scaled_dot_product_attention with each of its
backends, block attention with and without its tail, FlexAttention with the same blocks (it drops the rest), and
comfy_kitchen's sol_attn where it is installed (it chooses as many blocks of its own). Selection is timed apart.
Queries and keys are smooth over the grid with noise on top, so that attention is as local as a video's; error is that
of --rows rows against float32. Peak memory is what a call allocates above its inputs.

Without a GPU: --device cpu --shapes tiny shows that the script runs; its times mean nothing.
"""
# B batch   N tokens   H heads   D head dim   Q query blocks   K key blocks   S slots per block

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from interspatial.kernels import sol_attend
from interspatial.kernels.block_attend import block_attend
from interspatial.kernels.block_plan import BlockPlan, kept_lists, kept_mask, kept_share
from interspatial.models.attention.orders import tile
from interspatial.models.attention.select import top_blocks
from interspatial.models.layout import TokenLayout, arrange
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

SHAPES = {  # grid, heads, head dim, text tokens
    "tiny": ((2, 16, 16), 2, 64, 7),
    "wan480": ((21, 30, 52), 40, 128, 0),
    "wan720": ((21, 45, 80), 40, 128, 0),
    "hunyuan720": ((33, 45, 80), 24, 128, 256),
    "cogvideox15": ((11, 48, 85), 48, 64, 226),
    "minimax_h3": ((107, 24, 42), 56, 128, 512),
}
DENSE = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def video_like(layout: TokenLayout, heads: int, dim: int, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """q, k, v [1, N, H, D]: waves over the grid that differ by head, noise of the same size, unrelated text."""
    draw = torch.Generator(device).manual_seed(0)
    axes = torch.meshgrid(*(torch.linspace(0, 1, n, device=device) for n in layout.grid), indexing="ij")
    place = torch.stack(axes, -1).flatten(0, 2)  # N 3
    wave = torch.randn(heads, 3, dim // 2, device=device, generator=draw) * 6
    out = torch.randn(3, 1, layout.tokens, heads, dim, device=device, generator=draw, dtype=dtype)
    video = slice(layout.video.start, layout.video.stop)
    for head in range(heads):
        phase = place @ wave[head]
        out[:2, 0, video, head] += torch.cat((phase.sin(), phase.cos()), -1).to(dtype)
    return out.unbind(0)


def timed(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Milliseconds and MB above what was there."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start), 0.0
    torch.cuda.reset_peak_memory_stats()
    before, (start, stop) = torch.cuda.memory_allocated(), (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop), (torch.cuda.max_memory_allocated() - before) / 2**20


def flex(plan: BlockPlan, layout: TokenLayout) -> Callable:
    """FlexAttention over the same kept blocks: tokens laid out block by block, padding masked, nothing for the rest."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    slots, live = plan.q_slots[0].long(), plan.k_live[0]
    blocks, size = slots.shape
    pad = 64 - size
    slots = torch.nn.functional.pad(slots, (0, pad), value=-1)
    cols, counts = kept_lists(kept_mask(plan))

    def inside(b, h, q, k):
        return k % 64 < live[k // 64]

    mask = BlockMask.from_kv_blocks(counts[None], cols[None], BLOCK_SIZE=64, mask_mod=inside)
    run = torch.compile(flex_attention, dynamic=False)
    back = torch.empty(layout.tokens, dtype=torch.long, device=slots.device)
    flat = slots.flatten()
    back[flat[flat >= 0]] = torch.arange(blocks * 64, device=slots.device)[flat >= 0]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x[:, flat.clamp(min=0)].transpose(1, 2) for x in (q, k, v))
        return run(q, k, v, block_mask=mask).transpose(1, 2)[:, back]

    return attend


def contenders(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, density: float) -> dict[str, Callable]:
    """Name -> a call that returns [B, N, H, D]. What cannot run here is left out when it is first tried."""
    order = tile(layout).to(q.device)
    plan = top_blocks(q, k, order, density)
    found: dict[str, Callable] = {"selection": lambda: top_blocks(q, k, order, density)}
    for name, backend in DENSE.items():

        def dense(backend=backend):
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

        found[f"dense {name}"] = dense
    found["dense default"] = lambda: scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)  # fmt: skip
    for tail in ("row", "block", None):
        found[f"blocks, tail {tail or 'off'}"] = lambda tail=tail: block_attend(q, k, v, plan, tail=tail)
    found["gather, tail row"] = lambda: block_attend(q, k, v, plan, tail="row", backend="gather")
    flexible = flex(plan, layout)
    found["flex"] = lambda: flexible(q, k, v)
    if (kitchen := sol_attend.kitchen()[0]) is not None:
        found["sol_attn"] = lambda: kitchen.sol_attn(q, k, v, topk_ratio=density)
    return found


def exact(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    """Dense rows in float32, head by head: [1, R, H, D]"""
    out = torch.empty_like(q[:, rows], dtype=torch.float32)
    for head in range(q.shape[2]):
        part = (x[0, :, head].float() for x in (q[:, rows], k, v))
        query, key, value = part
        out[0, :, head] = (query @ key.T * q.shape[-1] ** -0.5).softmax(-1) @ value
    return out


def measure(name: str, density: float, args: argparse.Namespace) -> list[dict]:
    """One shape and density."""
    grid, heads, dim, text = SHAPES[name]
    layout = arrange([("text", text), ("video", grid)])
    q, k, v = video_like(layout, heads, dim, args.device, getattr(torch, args.dtype))
    rows = torch.linspace(layout.video.start, layout.tokens - 1, args.rows, device=q.device).long()
    want = exact(q, k, v, rows)
    share = float(kept_share(top_blocks(q, k, tile(layout).to(q.device), density)))
    results, failed = {}, {}
    calls = contenders(q, k, v, layout, density)
    for label, call in calls.items():
        try:
            out = call()
            call()
        except Exception as error:  # a backend that this card or torch lacks is a row of the table
            failed[label] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            continue
        lost = float((out[:, rows].float() - want).norm() / want.norm()) if isinstance(out, Tensor) else None
        results[label] = {"ms": [], "mb": 0.0, "error": lost}
        del out
    for _ in range(args.rounds):
        for label, result in results.items():
            spent, memory = timed(calls[label], args.device)
            result["ms"].append(spent)
            result["mb"] = max(result["mb"], memory)
    common = {"shape": name, "tokens": layout.tokens, "heads": heads, "dim": dim, "density": density, "kept": share}
    rows_ = [{**common, "what": x, **r, "ms": median(r["ms"])} for x, r in results.items()]
    return rows_ + [{**common, "what": x, "failed": why} for x, why in failed.items()]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[name for name in SHAPES if name != "tiny"])
    parser.add_argument("--densities", type=float, nargs="+", default=(0.1, 0.2, 0.3))
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    head = {"device": device, "torch": torch.__version__, "method": __doc__.split("\n\n")[2], "rounds": args.rounds}
    found: list[dict] = []
    print("| shape | density | what | ms | times dense | MB | relative L2 |\n|" + " --- |" * 7)
    for shape in args.shapes:
        for density in args.densities:
            rows = measure(shape, density, args)
            best = min((r["ms"] for r in rows if r["what"].startswith("dense") and "ms" in r), default=float("nan"))
            for r in rows:
                cells = (r.get("failed"), "", "", "") if "failed" in r else (
                    f"{r['ms']:.2f}", f"{best / r['ms']:.2f}", f"{r['mb']:.0f}", f"{r['error'] or 0:.3g}")  # fmt: skip
                print(f"| {shape} | {density} | {r['what']} | {' | '.join(cells)} |", flush=True)
            found += rows
            if args.json:
                args.json.write_text(json.dumps({**head, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
