"""What the compiler makes of the attention kernels for compute capability 9.0. Needs no GPU; nothing is timed.

    python -m bench.gpu.compiled [--json bench/gpu/results/compiled.json]

Each tile of block attention in bfloat16 with head dim 128 and key blocks of 64 tokens, compiled ahead of time by
Triton; registers and shared memory as the compiler reports them, and the instructions of the machine code of the loop
over kept blocks, which is the one with the most matrix instructions. `cycles`: a multiprocessor issues four
instructions a cycle, so a step takes at least instructions x warps / 4 of them; its matrix products take 4 M N D /
4096 at the rate of bf16 (2 M N D / 4096 and half of that where queries and keys are int8). `bound` is the larger, per
64 keys and 64 queries. `flop_a_byte`: floating-point operations for each byte of keys and values that a program reads;
at 600 TFLOP/s and 64 of them the caches have to bring 9.4 TB/s.
"""
# M query slots of a program   N key slots of a step   D head dim

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from interspatial.kernels import triton_attend, triton_attend_kernel, triton_ordered, triton_ordered_kernel
from interspatial.kernels.attend_call import AttendCall
from interspatial.kernels.block_plan import BlockPlan
from interspatial.kernels.triton_tiles import Device, Tile, laid_out, tiles
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TARGET, HOPPER = GPUTarget("cuda", 90, 32), Device("wgmma", 232448)
DIM, KEYS, TOKENS, HEADS = 128, 64, 1024, 2
KERNELS = ("attend_kernel", "tail_kernel", "words_kernel", "lay_out_kernel", "lay_out_int8_kernel", "ordered_kernel")
OPERATION = re.compile(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)")


class Recorder:
    """Takes the launches of a kernel instead of a device."""

    def __init__(self, kernel: object, seen: list) -> None:
        self.kernel, self.seen, self.arg_names = kernel, seen, kernel.arg_names

    def __getitem__(self, grid: tuple) -> object:
        return lambda **arguments: self.seen.append((self.kernel, arguments))


def recorded() -> list:
    """Where launches go from now on."""
    seen: list = []
    every = {name: Recorder(getattr(module, name), seen) for module in (triton_attend_kernel, triton_ordered_kernel)
             for name in KERNELS if hasattr(module, name)}  # fmt: skip
    kernels = SimpleNamespace(INTERPRETED=False, TensorDescriptor=triton_ordered_kernel.TensorDescriptor, **every)
    triton_attend._kernels = triton_ordered.found = lambda: (kernels, "")
    triton_attend.device_of = lambda _: HOPPER
    return seen


def call(rows: int, tail: str | None, whole: bool, int8: bool) -> AttendCall:
    """rows: slots of a query block"""
    tokens = TOKENS if whole else TOKENS - 8  # padding in the last block alone is padding for the compiler
    slots = [torch.arange(TOKENS, dtype=torch.int32).masked_fill_(torch.arange(TOKENS) >= tokens, -1).view(1, -1, size)
             for size in (rows, KEYS)]  # fmt: skip
    live = [(x >= 0).sum(-1).int() for x in slots]
    plan = BlockPlan(*slots, *live, torch.zeros(HEADS, slots[0].shape[1], 4, dtype=torch.int32))
    qkv = (torch.zeros(1, tokens, HEADS, DIM, dtype=torch.bfloat16) for _ in "qkv")
    return AttendCall(*qkv, plan, DIM**-0.5, tail=tail, int8=int8)


def compiled(kernel: object, arguments: dict) -> object:
    backend = make_backend(TARGET)
    given = arguments | {"debug": False, "instrumentation_mode": ""}
    bound = create_function_from_signature(kernel.signature, kernel.params, backend)(**given)
    options, signature, constants, attributes = kernel._pack_args(backend, given, *bound)
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=TARGET, options=options.__dict__)


def tool(name: str, *words: str) -> str:
    return subprocess.run([TOOLS / name, *words], capture_output=True, text=True, check=True).stdout


def loops(code: str) -> list[Counter]:
    """Instructions of every loop of disassembled code: from a label to the last branch back to it."""
    lines, labels, found = [], {}, {}
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            lines.append(line)
    for at, line in enumerate(lines):
        back = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
        if back and labels.get(back[1], len(lines)) < at:
            found[back[1]] = Counter(m[1] for body in lines[labels[back[1]] : at + 1] if (m := OPERATION.search(body)))
    return [*found.values()]


def kept_loop(inner: list[Counter], boxes: int) -> Counter:
    """The loop over kept blocks: it brings keys and values of `boxes` blocks a step, and has no word of the map."""
    own = [loop for loop in inner if loop["UTMALDG"] == 2 * boxes]
    return min(own, key=lambda loop: loop.total())


def row(tile: Tile, tail: str | None, whole: bool = False, int8: bool = False) -> dict:
    """What a table says of one variant."""
    seen = recorded()
    triton_attend.attend(call(tile.M, tail, whole, int8), tile)
    kernel, arguments = next(one for one in reversed(seen) if one[0].__name__ in ("attend_kernel", "ordered_kernel"))
    made = compiled(kernel, arguments)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        used, code = tool("cuobjdump", "-res-usage", file.name), tool("nvdisasm", "-c", file.name)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", used).groups())
    inner = [loop for loop in loops(code) if loop["HGMMA"] + loop["IGMMA"] >= 8]
    body = min(inner, key=lambda loop: loop.total()) if not tile.boxes else kept_loop(inner, tile.boxes)
    steps = tile.N / KEYS * tile.M / 64
    matrix = 4 * tile.M * tile.N * DIM / 4096 * (0.75 if int8 else 1)
    issue = body.total() * tile.warps / 4
    name = f"M {tile.M}, N {tile.N}, warps {tile.warps}, stages {tile.stages}"
    name += f", {tile.registers} registers" if tile.registers else ""
    return {
        "kernel": "laid out" if tile.boxes else "gathered", "tile": name, "tail": tail or "off", "bias": not whole,
        "int8": int8, "registers": registers, "stack": stack, "shared_kb": round(made.metadata.shared / 1024, 1),
        "loop": body.total(), "spilled_in_loop": body["STL"] + body["LDL"],
        "matrix_cycles": round(matrix / steps), "issue_cycles": round(issue / steps),
        "bound": round(max(matrix, issue) / steps), "flop_a_byte": tile.M,
    }  # fmt: skip


def variants() -> list[dict]:
    found = []
    for slots in (64, 128):
        every = [*tiles(2, DIM, slots, HOPPER), *laid_out(2, DIM, slots, KEYS, HOPPER)]
        found += [row(tile, tail) for tile in every for tail in (None, "row")]
        ordered = [tile for tile in every if tile.boxes]
        found += [row(tile, None, whole=True) for tile in ordered] + [row(tile, None, int8=True) for tile in ordered]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = variants()
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for each in rows:
        print("| " + " | ".join(str(value) for value in each.values()) + " |")
    if args.json:
        about = {"triton": triton.__version__, "method": __doc__, "rows": rows}
        args.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
