"""Random block attention problems for the tests of the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from interspatial.kernels.block_plan import BlockPlan, kept_lists

B, H = 2, 2
CHANCE = {"none": 0.0, "some": 0.3, "all": 1.1}


def table(blocks: list[list[int]], width: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots [1, K, S], live [1, K]."""
    slots = torch.full((1, len(blocks), max(width, *map(len, blocks), 1)), -1, dtype=torch.int32)
    for i, block in enumerate(blocks):
        slots[0, i, : len(block)] = torch.tensor(block)
    return slots, torch.tensor([[len(block) for block in blocks]], dtype=torch.int32)


@dataclass
class Case:
    """Blocks of random ragged sizes over a random order of the video tokens; text in a full block of its own."""

    tokens: int
    text: str = "absent"  # or "before", "after"
    kept: str = "some"  # or "none", "all"
    dim: int = 16
    dtype: torch.dtype = torch.float32
    size: int = 64
    seed: int = 0
    blocks: list[list[int]] = field(init=False)
    written: list[int] = field(init=False)  # numbers of the text blocks
    keep: torch.Tensor = field(init=False)  # bool [B * H, K, K]
    qkv: list[torch.Tensor] = field(init=False)  # [B, N, H, D] each

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed + self.tokens)
        count = 0 if self.text == "absent" else min(7, self.tokens - 1)
        first = 0 if self.text == "before" else self.tokens - count
        video = [t for t in range(self.tokens) if not first <= t < first + count]
        video = [video[i] for i in torch.randperm(len(video), generator=draw)]
        self.blocks, self.written = [], []
        while video:
            n = int(torch.randint(self.size // 2, self.size + 1, (), generator=draw))
            self.blocks.append(video[:n])
            video = video[n:]
        if count:
            self.written = [0 if self.text == "before" else len(self.blocks)]
            self.blocks.insert(self.written[0], list(range(first, first + count)))
        self.keep = torch.rand(B * H, len(self.blocks), len(self.blocks), generator=draw) < CHANCE[self.kept]
        self.keep[:, self.written] = True
        shape = B, self.tokens, H, self.dim
        self.qkv = [torch.randn(shape, generator=draw).to(self.dtype) for _ in "qkv"]

    @property
    def plan(self) -> BlockPlan:
        slots, live = table(self.blocks)
        cols, counts = kept_lists(self.keep)
        counts[:, self.written] = -1  # lists of full blocks are not read
        return BlockPlan(slots, slots, live, live, cols, counts, tuple((i, i + 1) for i in self.written))

    @property
    def bias(self) -> torch.Tensor:
        """One block gone, some tokens gone, some weighed down; the batch entries differ. [B, N]"""
        bias = torch.zeros(B, self.tokens)
        bias[0, self.blocks[-1]] = -torch.inf
        bias[1, ::3] = -torch.inf
        bias[1, 1::3] = -1.25
        return bias

    def truth(
        self, tail: str | None = None, bias: torch.Tensor | None = None, scale: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and log-sum-exp in float64, one query block after the other, from lists of tokens."""
        bias = torch.zeros(B, self.tokens) if bias is None else bias
        out, lse = torch.zeros(self.qkv[0].shape).double(), torch.zeros(self.qkv[0].shape[:3]).double()
        for g in range(B * H):
            b, h = divmod(g, H)
            q, k, v = (x[b, :, h].double() for x in self.qkv)
            q, weight = q * (self.dim**-0.5 if scale is None else scale), bias[b].double().exp()
            mass = torch.stack([weight[block].sum() for block in self.blocks])
            means = ((weight[block] / weight[block].sum()) @ torch.cat((k, v), 1)[block] for block in self.blocks)
            mean_k, mean_v = torch.stack([*means]).nan_to_num(0).chunk(2, 1)
            for i, rows in enumerate(self.blocks):
                kept = [t for j, block in enumerate(self.blocks) if self.keep[g, i, j] for t in block]
                score, value = (q[rows] @ k[kept].T).exp() * weight[kept], v[kept]
                if tail:
                    rest = [j for j in range(len(self.blocks)) if not self.keep[g, i, j]]
                    query = q[rows] if tail == "row" else q[rows].mean(0).expand(len(rows), -1)
                    score = torch.cat((score, (query @ mean_k[rest].T).exp() * mass[rest]), 1)
                    value = torch.cat((value, mean_v[rest]))
                lse[b, rows, h] = score.sum(1).log()
                out[b, rows, h] = (score / score.sum(1, keepdim=True)).nan_to_num(0) @ value
        return out, lse

    def masses(
        self, lse: torch.Tensor, bias: torch.Tensor | None = None, rows: int | None = None, scale: float | None = None
    ) -> torch.Tensor:
        """Block masses in float64, [B * H, K, K], one pair of blocks after the other, from lists of tokens."""
        weight = torch.ones(B, self.tokens).double() if bias is None else bias.double().exp()
        found = torch.zeros(B * H, len(self.blocks), len(self.blocks)).double()
        for g in range(B * H):
            b, h = divmod(g, H)
            q, k = (x[b, :, h].double() for x in self.qkv[:2])
            for i, block in enumerate(self.blocks):
                n = min(rows or len(block), len(block))
                read = [block[(2 * r + 1) * len(block) // (2 * n)] for r in range(n)]
                score = (self.dim**-0.5 if scale is None else scale) * q[read] @ k.T
                share = (score - lse[b, read, h].double()[:, None]).exp().nan_to_num(0, 0, 0) * weight[b]
                for j, keys in enumerate(self.blocks):
                    found[g, i, j] = share[:, keys].sum() * len(block) / n
        return found


@pytest.fixture(scope="session")
def interpreter() -> None:
    """Triton 3.6's interpreter, mended. Only for a process of its own, with TRITON_INTERPRET=1."""
    import numpy
    from triton.runtime import interpreter as module

    tensor, prepare, dot = module._patch_lang_tensor, module._patch_lang, module.InterpreterBuilder.create_dot
    prepared = {}

    def mend_index(kind, scope) -> None:
        """It converts arrays of one number to int, which numpy 2.4 refuses."""
        tensor(kind, scope)
        scope.set_attr(kind, "__index__", lambda self: int(self.handle.data.item()))

    def prepare_once(fn) -> SimpleNamespace:
        """It replaces all of triton.language at every call of a function: half of the time of these tests."""
        if id(fn.__globals__) not in prepared:
            prepared[id(fn.__globals__)] = prepare(fn)
        return SimpleNamespace(restore=lambda: None)

    def widen(x):
        if x.dtype != module.tl.bfloat16:
            return x
        return module.TensorHandle((x.data.astype(numpy.uint32) << 16).view(numpy.float32), module.tl.float32)

    def mend_dot(self, a, b, *rest):
        """It multiplies the bits of bfloat16 as if they were integers."""
        return dot(self, widen(a), widen(b), *rest)

    module._patch_lang_tensor, module._patch_lang = mend_index, prepare_once
    module.InterpreterBuilder.create_dot = mend_dot


@dataclass(frozen=True)
class Launch:
    """What the Triton backend would have launched."""

    kernel: object  # triton.runtime.jit.JITFunction
    grid: tuple[int, ...]
    arguments: dict

    def compile_time(self, target) -> tuple:
        """What Triton compiles it for: kinds of arguments, constants, options; launches that agree share a binary."""
        from triton.compiler import make_backend
        from triton.runtime.jit import create_function_from_signature

        bind = create_function_from_signature(self.kernel.signature, self.kernel.params, make_backend(target))
        return bind(**self.arguments, debug=False, instrumentation_mode="")

    def compiled(self, target):
        """The binary for a target (`triton.backends.compiler.GPUTarget`); no device needed."""
        import triton
        from triton.compiler import ASTSource, make_backend

        options = {"debug": False, "instrumentation_mode": ""}
        given = self.arguments | options
        packed = self.kernel._pack_args(make_backend(target), given, *self.compile_time(target))
        options, signature, constants, attributes = packed
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=target, options=options.__dict__)


class Recorder:
    """Stands in the place of a kernel: what it would have launched goes into `seen`."""

    def __init__(self, kernel: object, seen: list[Launch]) -> None:
        self.kernel, self.seen, self.arg_names = kernel, seen, kernel.arg_names

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda **arguments: self.seen.append(Launch(self.kernel, grid, arguments))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Launch]]:
    """What the Triton backend launches for a call on some device; nothing runs."""
    pytest.importorskip("triton")
    from interspatial.kernels import triton_attend, triton_attend_kernel, triton_ordered, triton_ordered_kernel

    if triton_attend_kernel.INTERPRETED:
        pytest.skip("TRITON_INTERPRET is set, so there are no kernels to compile")
    seen: list[Launch] = []
    names = ("attend_kernel", "tail_kernel", "words_kernel")
    recorders = {name: Recorder(getattr(triton_attend_kernel, name), seen) for name in names}
    kernels = SimpleNamespace(INTERPRETED=False, **recorders)
    monkeypatch.setattr(triton_attend, "_kernels", lambda: (kernels, ""))
    names = ("lay_out_kernel", "ordered_kernel")
    recorders = {name: Recorder(getattr(triton_ordered_kernel, name), seen) for name in names}
    ordered = SimpleNamespace(TensorDescriptor=triton_ordered_kernel.TensorDescriptor, **recorders)
    monkeypatch.setattr(triton_ordered, "found", lambda: (ordered, ""))
    first = SimpleNamespace(choose=lambda key, offered, launch: offered[0])
    monkeypatch.setattr(triton_attend, "TUNER", first)

    def record(call: object, device: object, tile: object = None) -> list[Launch]:
        monkeypatch.setattr(triton_attend, "device_of", lambda _: device)
        seen.clear()
        triton_attend.attend(call, tile)
        return list(seen)

    return record


@pytest.fixture
def mass_launch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Launch]:
    """What the Triton backend of block mass launches for a call on a device; nothing runs."""
    pytest.importorskip("triton")
    from interspatial.kernels import triton_mass, triton_mass_kernel

    seen: list[Launch] = []
    recorder = Recorder(triton_mass_kernel.mass_kernel, seen)
    monkeypatch.setattr(triton_mass, "_kernels", lambda: SimpleNamespace(mass_kernel=recorder))

    def record(call: object) -> Launch:
        triton_mass.mass(call)
        return seen.pop()

    return record


@pytest.fixture
def sum_launch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Launch]:
    """What the Triton backend of the weighted sum launches for a call on a device; nothing runs."""
    pytest.importorskip("triton")
    from interspatial.kernels import triton_weighted_sum, triton_weighted_sum_kernel

    seen: list[Launch] = []
    recorder = Recorder(triton_weighted_sum_kernel.sum_kernel, seen)
    monkeypatch.setattr(triton_weighted_sum, "_kernels", lambda: (SimpleNamespace(sum_kernel=recorder), ""))

    def record(call: object) -> Launch:
        triton_weighted_sum.weigh(call)
        return seen.pop()

    return record


@pytest.fixture
def quant_launch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Launch]]:
    """What the Triton backends of quantised weights launch in a function on meta or CPU tensors; nothing runs."""
    pytest.importorskip("triton")
    from interspatial.kernels import triton_decode_codes, triton_device, triton_int8, triton_round_rows

    if triton_device.found()[0]:
        pytest.skip("TRITON_INTERPRET is set, so there are no kernels to compile")
    seen: list[Launch] = []
    for module, name in ((triton_decode_codes, "decode"), (triton_round_rows, "round"), (triton_int8, "int8")):
        kernel = Recorder(getattr(module._kernels(), f"{name}_kernel"), seen)
        monkeypatch.setattr(module, "_kernels", lambda name=name, k=kernel: SimpleNamespace(**{f"{name}_kernel": k}))

    def record(run: Callable[[], object]) -> list[Launch]:
        seen.clear()
        run()
        return list(seen)

    return record


@pytest.fixture
def case() -> type[Case]:
    return Case


@pytest.fixture
def slot_table() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    return table


@pytest.fixture
def assert_near() -> Callable[..., None]:
    """Every pair equal up to a tolerance relative to the largest true value; infinities must agree."""

    def check(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...], tolerance: float = 1e-5) -> None:
        for x, y in zip(got, want, strict=True):
            finite = y.isfinite()
            assert torch.equal(x.isfinite(), finite)
            if finite.any():
                error = (x.double() - y.double())[finite].abs().max() / y[finite].abs().max().clamp(min=1e-3)
                assert error < tolerance, f"relative error {error:.2e}"

    return check
