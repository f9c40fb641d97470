"""Times every tile of every kernel that has a choice, on calls of the sizes that people run; and makes the table of it.

    python -m bench.gpu.tuned results.json kernels/tuned_tiles.json

puts what the stage found on a card into the table that ships. Kinds that the table has already are replaced.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from interspatial.kernels.triton_tiles import TIMED
from interspatial.kernels.tuned_tiles import TunedTiles, entry, word
from interspatial.models.attention import METHODS, SparseAttention
from interspatial.models.attention.draft import DOUBLE
from interspatial.models.quant.format import FORMATS, Coded
from interspatial.models.warm_up import Layer, Seen, Task, attention, products
from interspatial.models.warm_up_report import chosen_tiles, tuners

from bench.gpu.calls import STRIPS
from bench.gpu.shapes import shape_of
from bench.gpu.stage import Bench, Stage

NEEDS = 40  # seconds for one kind of attention: six tiles to compile, three runs of each
# What people run most comes first; ComfyUI computes Wan in float16 wherever a card can.
BF16, FP16 = torch.bfloat16, torch.float16
ATTENTION = (
    ("wan720", "draft", {"query_blocks": DOUBLE}, "row", FP16), ("wan720", "draft", {}, "row", FP16),
    ("hunyuan720", "draft", {"query_blocks": DOUBLE}, "row", BF16), ("hunyuan720", "draft", {}, "row", BF16),
    ("wan720", "svg2", {}, "row", FP16), ("wan720", "draft", {"query_blocks": DOUBLE}, "block", FP16),
    ("cogvideox15", "draft", {"query_blocks": DOUBLE}, "row", BF16), ("cogvideox15", "draft", {}, "row", BF16),
)  # fmt: skip
LAYERS = ((5120, 5120), (13824, 5120), (5120, 13824), (3072, 3072), (12288, 3072), (3072, 12288))  # Wan, HunyuanVideo
SMALL_LAYERS = ((96, 64),)


def tasks(bench: Bench) -> Iterator[tuple[str, str, Task]]:
    """Shape, setting and what launches the kernels."""
    device = torch.device(bench.device)
    for name, method, settings, tail, dtype in ATTENTION:
        shape = shape_of(name, bench)
        seen = Seen(shape.layout, True, shape.heads, shape.dim, dtype)
        sparse = SparseAttention(METHODS[method](density=0.2, **settings), blocks=STRIPS, tail=tail)
        words = ", ".join((method, *settings.values(), f"tail {tail}", word(dtype)))
        yield name, words, attention(method, sparse, seen, device)[0]
    for outputs, inputs in SMALL_LAYERS if bench.smoke else LAYERS:
        layer = Layer(partial(_weight, (outputs, inputs), device), False, 8)
        yield f"{outputs} x {inputs}", "int8 layer", products("layer", layer, torch.bfloat16, device)


def _weight(size: tuple[int, int], device: torch.device) -> Coded:
    return FORMATS["rtn"].encode(torch.randn(size, device=device), 8)


@torch.no_grad()
def run(bench: Bench) -> None:
    for tuner in tuners():  # of this process, which ends with the stage
        tuner.known = TunedTiles(Path("no table"))
    for shape, setting, task in tasks(bench):
        key = {"what": "warmed", "shape": shape, "setting": setting}
        if bench.has(**key):
            continue
        if bench.left() < NEEDS and not bench.smoke:
            bench.put(**key, failed="no time was left for it")
            continue
        with bench.attempt(**key):
            before = chosen_tiles()
            task.run()
            new = [(kind, choice) for kind, choice in chosen_tiles() if (kind, choice) not in before]
            for kind, choice in new:
                if choice.source == TIMED:
                    found = entry(choice.tile, choice.times)
                    bench.put(what="tile", shape=shape, setting=kind, card=_card(bench.device),
                              **{name: json.dumps(part) for name, part in found.items()})  # fmt: skip
            bench.put(**key, kinds=len(new))


def _card(device: str) -> str:
    return "cpu" if device == "cpu" else torch.cuda.get_device_name()


def merged(table: dict, rows: list[dict]) -> dict:
    """The table with the tiles of a stage's rows, sorted."""
    found = {card: dict(kinds) for card, kinds in table.items()}
    for row in rows:
        if row["what"] == "tile":
            kinds = found.setdefault(row["card"], {})
            kinds[row["setting"]] = {name: json.loads(row[name]) for name in ("tile", "milliseconds")}
    return {card: dict(sorted(kinds.items())) for card, kinds in sorted(found.items())}


STAGES = (
    Stage(
        "tuned",
        "Every tile that a kernel may run with, once to compile and then the mean of two launches by device events, on "
        "random data: attention at the tokens of the shape with as many heads as make 262,144 query rows, density 0.2; "
        "int8 layers at 4096 and 64 tokens. The row has the fastest, and the milliseconds of all that ran.",
        240,
        run,
    ),
)


if __name__ == "__main__":
    results, path = map(Path, sys.argv[1:])
    rows = json.loads(results.read_text())["stages"]["tuned"]["rows"]
    path.write_text(json.dumps(merged(json.loads(path.read_text()), rows), indent=1) + "\n")
