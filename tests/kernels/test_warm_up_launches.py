"""Whatever a run of a patched model launches was launched by its warm-up: kernel, constants, kinds of arguments."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from interspatial import kernels
from interspatial.kernels import block_attend
from interspatial.kernels.dispatch import Backend, Dispatch
from interspatial.kernels.triton_tiles import Device, Tuner
from interspatial.models.attention import METHODS, Blocks, ErrorTarget, Ramp, SparseAttention, When
from interspatial.models.cache import CACHES, StepCache
from interspatial.models.call import AttentionCall
from interspatial.models.forward import Branch, Forward
from interspatial.models.layout import arrange
from interspatial.models.quant.format import FORMATS
from interspatial.models.report import Card, Report
from interspatial.models.run import Run
from interspatial.models.schedule import Schedule
from interspatial.models.warm_up import CLIPS, ROWS, Layer, Seen, attention, clips, products, sums
from interspatial.tests.kernels.conftest import Launch
from torch.nn.functional import scaled_dot_product_attention

HEADS, DIM, STEPS = 4, 16, 10  # with fewer heads, rows of one prompt need not begin at 16 bytes; models have 12 or more
CPU = torch.device("cpu")
HOPPER, AMPERE = Device("wgmma", 232448), Device("mma", 166912)
USUAL = {"uneven": (5, 17, 21), "even": (4, 16, 24)}  # in place of real sizes; with fewer frames a plan keeps all
KERNELS = {"attend_kernel", "ordered_kernel"}
FREE = sorted(set(METHODS) - {"sparse_vdit"})  # that one needs a calibration


def parts(name: str) -> list[ModuleType]:
    return [part for part in vars(kernels).values() if isinstance(part, ModuleType) and hasattr(part, name)]


@pytest.fixture
def kinds(request, monkeypatch):
    """What has been launched so far, as {kernel and what it is compiled for}; values come from the other backends."""
    compiler = pytest.importorskip("triton.backends.compiler")
    from interspatial.kernels import triton_device
    from triton.runtime.jit import JITFunction

    if triton_device.found()[0]:
        pytest.skip("TRITON_INTERPRET is set, so there are no kernels to compile")
    seen: set = set()
    target = compiler.GPUTarget("cuda", 90, 32)

    def record(kernel, grid, warmup, **arguments) -> None:
        made = Launch(kernel, grid, arguments).compile_time(target)[1:]
        seen.add((kernel.__name__, str(made)))

    monkeypatch.setattr(JITFunction, "run", record)
    for part in parts("device_of"):
        monkeypatch.setattr(part, "device_of", lambda device: getattr(request, "param", HOPPER))
    for part in parts("TUNER"):
        first = SimpleNamespace(choose=lambda key, offered, launch: (launch(offered[0]), offered[0])[1])
        monkeypatch.setattr(part, "TUNER", first if isinstance(part.TUNER, Tuner) else part.TUNER)
    for part in parts("BACKENDS"):
        if isinstance(part.BACKENDS, Dispatch):
            monkeypatch.setattr(part.BACKENDS, "backends", recorded(part.BACKENDS))
            monkeypatch.setattr(part.BACKENDS, "_remember", unexpected)
    return seen


def unexpected(backend, call, error) -> None:
    raise error


def recorded(operation: Dispatch) -> tuple[Backend, ...]:
    """The Triton backend for tensors of the CPU, and the last one."""
    *_, last = operation.backends
    triton = next((backend for backend in operation.backends if backend.name == "triton"), None)

    def why_not(call) -> str | None:
        plan = getattr(call, "plan", None)
        whole = plan is not None and plan.sees_everything and not getattr(call, "return_lse", True)
        return "dense" if whole else None

    def run(call):
        triton.run(call)
        if operation is block_attend.BACKENDS:  # numbers that are finite will do, and take no time
            return call.q.clone(), call.q.float().logsumexp(-1)
        return last.run(call)

    return (last,) if triton is None else (Backend("triton", why_not, run), last)


def launched_by_run(sparse: SparseAttention, grid, before: int, masked: bool) -> None:
    """A run of two prompts, on another clip and with another text than the warm-up."""
    layout = arrange([("text", before), ("video", grid)])
    run = Run(Schedule([1 - i / STEPS for i in range(STEPS + 1)], lambda percent: 1.0 - percent), Report())
    tally = run.report.tally("m", Card("sparse", "sparse"))
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, layout.tokens, HEADS, DIM, generator=draw).bfloat16() for _ in "qkv")
    mask = None
    if masked:
        mask = torch.zeros(2, 1, 1, layout.tokens)
        mask[1, ..., before - 3 : before] = -torch.inf

    def dense(*given) -> torch.Tensor:
        a, b, c = (q, k, v) if given[0] is None else given[:3]
        return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (a, b, c))).transpose(1, 2)

    for step in range(STEPS):
        run.begin_call(1 - step / STEPS)
        branches = Branch("p", 0, slice(0, 1)), Branch("n", 1, slice(1, 2))
        forward = Forward(None, layout, 2, branches, run.position, stacks={"blocks": 3})
        call = AttentionCall(q, k, v, mask, None, layout, 1, forward, run, "m", tally, dense)
        if sparse.why_not(call) is None:
            sparse.attend(call)
    assert tally.numbers["kept"][1], "some call ran"


def seen_of(text: int = 0) -> Seen:
    layout = arrange([("text", text), ("video", (1, 2, 2))])
    return Seen(layout, False, HEADS, DIM, torch.bfloat16, None, {"blocks": 3})


def check(kinds, sparse: SparseAttention, text: int = 0, masked: bool = False) -> None:
    for task in attention("sparse", sparse, seen_of(text), CPU, USUAL):
        assert task.reason is None
        task.run()
    warm = set(kinds)
    for grid in (5, 19, 18), (4, 24, 16):
        kinds.clear()
        launched_by_run(sparse, grid, text and text + 70, masked)
        assert KERNELS & {name for name, _ in kinds}
        assert kinds <= warm, new(kinds, warm)


@pytest.mark.parametrize("name", FREE)
def test_every_method(name, kinds):
    check(kinds, SparseAttention(METHODS[name](density=0.3), When(first=2, dense_layers=(0,))))


@pytest.mark.parametrize("kinds", [AMPERE], ids=["mma"], indirect=True)
@pytest.mark.parametrize("tail", [None, "row", "block"])
def test_cards_that_gather_keys(tail, kinds):
    check(kinds, SparseAttention(METHODS["draft"](density=0.3), tail=tail), text=9)


@pytest.mark.parametrize("name", FREE)
def test_every_method_with_text_that_is_padded(name, kinds):
    check(kinds, SparseAttention(METHODS[name](density=0.3)), text=40, masked=True)


@pytest.mark.parametrize("tail", [None, "row", "block"])
@pytest.mark.parametrize("order", ["cube 0", "token_major 0", "tile 16", "morton 4"])
def test_tails_and_blocks(tail, order, kinds):
    name, side = order.split()
    check(kinds, SparseAttention(METHODS["draft"](density=0.3), blocks=Blocks(name, int(side)), tail=tail), text=9)


def test_an_error_target_and_a_ramp(kinds):
    check(kinds, SparseAttention(METHODS["draft"](), ramp=Ramp(4), target=ErrorTarget(0.2)))


def test_a_clip_too_short_to_run_is_no_reason_to_stand_aside(kinds):
    """Nor are dense steps and layers: they count for the run."""
    sparse = SparseAttention(METHODS["draft"](density=0.3), When(first=19, dense_layers=(0, 1, 2), min_tokens=10**9))
    attention("sparse", sparse, seen_of(), CPU, USUAL)[0].run()
    assert KERNELS & {name for name, _ in kinds}


def test_a_method_that_would_never_run_says_why():
    (task,) = attention("sparse", SparseAttention(METHODS["sparse_vdit"]()), seen_of(30), CPU, USUAL)
    assert task.reason == "no sparse pattern is connected"


@pytest.mark.parametrize("name", CACHES)
def test_forecasts(name, kinds):
    from interspatial.kernels.weighted_sum import weighted_sum

    cache = StepCache(CACHES[name]())
    sums("cache", cache, torch.bfloat16, CPU).run()
    warm = set(kinds)
    kinds.clear()
    for dtype in (torch.float32, torch.bfloat16):
        for count in range(1, cache.method.keeps + 1):
            weighted_sum([torch.zeros(2, 16, 7, 9, 8, dtype=dtype)] * count, [0.3] * count)
            apart = torch.zeros(2, 3000, 16, dtype=dtype)[:, 5:2900]  # rows with a gap
            weighted_sum([apart] * count, [0.3] * count)
    assert kinds and kinds <= warm


@pytest.mark.parametrize("act_bits", [8, 16])
@pytest.mark.parametrize("name", ["vidit_q", "lrq", "vq4"])
def test_quantised_layers(name, act_bits, kinds):
    from interspatial.models.quant.linear import linear

    form = FORMATS[name]
    bits = form.widths[0]
    coded = form.encode(torch.randn(96, 1024, generator=torch.Generator().manual_seed(0)), bits)
    products("layer", Layer(lambda: coded, True, act_bits), torch.bfloat16, CPU).run()
    warm = set(kinds)
    kinds.clear()
    for tokens in (1, 77, 700, 5000):
        linear(torch.randn(tokens, 1024).bfloat16(), coded, torch.zeros(96, dtype=torch.bfloat16), act_bits)
    assert kinds and kinds <= warm, {name for name, _ in kinds - warm}


@pytest.mark.parametrize("name", ["draft", "svg2"])
def test_a_clip_that_is_known_has_its_own_blocks(name, kinds):
    sparse = SparseAttention(METHODS[name](density=0.5))
    small = (6, 9, 10)  # blocks of 25 tokens
    seen = replace(seen_of(), layout=arrange([("video", small)]), known=True)
    (task,) = attention("sparse", sparse, seen, CPU)
    task.run()
    warm = set(kinds)
    kinds.clear()
    launched_by_run(sparse, small, 0, False)
    assert kinds and kinds <= warm, new(kinds, warm)


def test_the_clips_of_a_warm_up_fill_a_card_and_no_more():
    wan = Seen(arrange([("video", (21, 45, 80))]), True, 40, 128, torch.bfloat16)
    (own,) = clips(wan).values()
    assert own.layout == wan.layout and own.heads == 3
    text = Seen(arrange([("text", 300), ("video", (3, 7, 9)), ("reference", 50)]), False, 24, 128, torch.bfloat16)
    found = clips(text)
    assert set(found) == set(CLIPS)
    for name, clip in found.items():
        assert clip.layout.grid == CLIPS[name] and 0.5 <= clip.heads * clip.layout.tokens / ROWS <= 1
        assert [len(segment) for segment in clip.layout.segments if segment.kind != "video"] == [300, 50]
    assert [clip.heads for clip in clips(replace(text, heads=2)).values()] == [2, 2, 2], "no more than the model has"


def test_a_calibration_gets_all_heads():
    class OfAllHeads(METHODS["draft"]):
        def why_not(self, call):
            return None if call.q.shape[2] == 40 and call.layer == 2 else "calibrated for other heads"

    seen = Seen(arrange([("video", (21, 45, 80))]), True, 40, 128, torch.bfloat16, None, {"blocks": 3})
    sparse, meta = SparseAttention(OfAllHeads(density=0.3)), torch.device("meta")
    (task,) = attention("sparse", sparse, seen, meta)
    assert task.reason is None
    (task,) = attention("sparse", sparse, replace(seen, heads=24), meta)
    assert task.reason == "calibrated for other heads"


def new(kinds: set, warm: set) -> str:
    """What was not warmed up, beside the nearest that was."""
    return "\n".join(f"{name}\n  {made}\n  {[known for other, known in warm if other == name]}"
                     for name, made in kinds - warm)  # fmt: skip
