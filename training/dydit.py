"""Trains dynamic routers for the tiny text-to-video model (DyDiT, arXiv 2410.03456; DyDiT++, arXiv 2504.06803).

    python -m training.dydit --minutes 40          # resumes; `training.dydit_file` writes the checkpoint

Each block gets a router over its heads and one over groups of its MLP, both from the time embedding alone, and a router
over its tokens, from the residual stream after attention. The decisions are Gumbel-sigmoid samples, straight through.

    loss = flow loss (dynamic rows) + flow loss (complete rows) + 12 (FLOPs / FLOPs of the base - target)^2
           + distance to the frozen base

What differs from the paper: the last term; 12 in place of 2; noise of the decisions that fades out, so that the end of
the training sees what the executor does; biases that start lower, for some thousand steps, not 200,000; 16 MLP groups
where the paper has as many as heads (this model has 2); and the norm of queries and keys, which in Wan's models spans
all heads and here spans the heads that are kept, so that the others need not be computed.
"""

# B batch   N tokens   C width   H heads   D channels of a head   G groups of the MLP

from __future__ import annotations

import argparse
import copy
import math
import time

import torch
from torch import Tensor, nn

from .package import CHECKPOINTS, RUNS, prepare

prepare()
from comfy.ldm.flux.math import apply_rope1  # noqa: E402
from comfy.ldm.wan.model import sinusoidal_embedding_1d  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from . import dit, text  # noqa: E402
from .log import Curve  # noqa: E402
from .muon import Muon  # noqa: E402
from .state import save  # noqa: E402

GROUPS, TARGET, KEEP = 16, 0.62, 0.998
COMPLETE = 1  # rows of a batch of 6 that take the complete model
START = 3.0  # bias of the routers: 95 % of the decisions are to compute
TEMPERATURE = 5.0  # as in the paper
BUDGET_WEIGHT = 12.0  # with the 2 of the paper the FLOPs stayed at 0.70 to 0.72 after 400 steps
ANNEALED, QUIET = 0.35, 0.75  # shares of the run after which the target, and the absence of noise, is reached
RATE, MUON_RATE, ROUTER_RATE = 2e-4, 4e-3, 4e-3
FOLDER = RUNS / "dydit"


def router(width: int, outputs: int) -> nn.Module:
    layer = nn.Linear(width, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, START)
    return nn.ModuleDict({"router": layer})


class BlockRouters(nn.Module):
    """The three routers of a block. Names are those of DyDiT's checkpoints."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn_rate = router(width, heads - 1)
        self.mlp_rate = router(width, GROUPS - 1)
        head = nn.Sequential(nn.Linear(width, width // 16), nn.ReLU(), nn.Linear(width // 16, 1))
        nn.init.zeros_(head[2].weight)
        nn.init.constant_(head[2].bias, START)
        self.token_selection = nn.ModuleDict({"mlp_head": head})


def decide(logits: Tensor, noise: float) -> Tensor:
    """0 or 1 forward, the gradient of a sigmoid at TEMPERATURE backward. noise: scale of the Gumbel difference"""
    uniform = torch.rand_like(logits, dtype=torch.float32).clamp(1e-6, 1 - 1e-6)
    soft = ((logits.float() + noise * uniform.logit()) / TEMPERATURE).sigmoid()
    return (soft > 0.5).float() + soft - soft.detach()


def with_first(mask: Tensor) -> Tensor:
    """The first head, or group, is always computed."""
    return torch.cat([torch.ones_like(mask[:, :1]), mask], 1)


def kept_norm(x: Tensor, norm: nn.Module, heads: Tensor) -> Tensor:
    """RMS norm over the kept heads. x: [B, N, H * D]   heads: [B, H]"""
    size = x.shape[-1] // heads.shape[1]
    kept = heads.repeat_interleave(size, 1)[:, None]
    mean = (x.float().square() * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True)
    return (x.float() * (mean + norm.eps).rsqrt()).to(x.dtype) * norm.weight.to(x.dtype)


def routed_block(block, x: Tensor, e: Tensor, freqs: Tensor, context: Tensor, heads: Tensor, groups: Tensor,
                 logits_of: nn.Module, full: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A block of Wan with everything computed and the decisions multiplied in.

    heads: [B, H]   groups: [B, G]   full: [B] 1 for rows that keep all tokens
    returns: x, share of tokens [B]
    """
    attention, (b, n, c), h = block.self_attn, x.shape, heads.shape[1]
    shift, scale, gate, shift2, scale2, gate2 = (block.modulation.unsqueeze(0) + e).unbind(2)
    y = block.norm1(x) * (1 + scale) + shift
    q = apply_rope1(kept_norm(attention.q(y), attention.norm_q, heads).view(b, n, h, c // h), freqs)
    k = apply_rope1(kept_norm(attention.k(y), attention.norm_k, heads).view(b, n, h, c // h), freqs)
    v = attention.v(y).view(b, n, h, c // h)
    out = nn.functional.scaled_dot_product_attention(*(z.transpose(1, 2).to(v.dtype) for z in (q, k, v)))
    x = x + attention.o((out.transpose(1, 2) * heads[:, None, :, None]).reshape(b, n, c)) * gate
    x = x + block.cross_attn(block.norm3(x), context)
    tokens = torch.maximum(decide(logits_of(x)[..., 0], noise), full[:, None])
    hidden = block.ffn[0](block.norm2(x) * (1 + scale2) + shift2)
    hidden = (hidden.view(b, n, groups.shape[1], -1) * groups[:, None, :, None]).view_as(hidden)
    y = block.ffn[2](block.ffn[1](hidden))
    return x + y * gate2 * tokens[..., None], tokens.mean(1)


class Routed(nn.Module):
    """A block under training; what the routers decided is set before and read after a forward."""

    def __init__(self, block, routers: BlockRouters, run):
        super().__init__()
        self.inner, self.routers, self.run = [block], routers, run
        self.decisions = self.share = None

    def forward(self, x, e, freqs, context, **kwargs):
        out, self.share = self.run(self.inner[0], x, e, freqs, context, *self.decisions)
        return out


class Costs:
    """Share of a forward's multiplications. n: video tokens   m: text tokens"""

    def __init__(self, model, n: int, m: int):
        c, f = model.dim, model.ffn_dim
        self.attention = 4 * n * c * c + 2 * n * n * c
        self.mlp = 2 * n * c * f
        self.fixed = 2 * (n + m) * c * c + 2 * n * m * c
        self.ends = n * c * (model.in_dim + model.out_dim) * math.prod(model.patch_size)

    def ratio(self, heads: list[Tensor], groups: list[Tensor], tokens: list[Tensor]) -> Tensor:
        """heads, groups, tokens: shares that are kept, one entry a block"""
        parts = zip(heads, groups, tokens, strict=True)
        used = sum(self.attention * h + self.mlp * g * t + self.fixed for h, g, t in parts)
        full = len(heads) * (self.attention + self.mlp + self.fixed)
        return (used + self.ends) / (full + self.ends)


class Trained:
    """The model whose blocks follow their routers, and the base that it is held to."""

    def __init__(self, compiled: bool = True):
        base = load_file(CHECKPOINTS / "diffusion_models" / "tiny_puppet_t2v.safetensors")
        self.model = dit.build("t2v").requires_grad_(False)
        self.model.load_state_dict({k: v.float() for k, v in base.items()})
        self.base = copy.deepcopy(self.model)
        self.routers = nn.ModuleList(BlockRouters(self.model.dim, self.model.num_heads) for _ in self.model.blocks)
        self.blocks = list(self.model.blocks)
        for block in self.blocks:
            for part in (block.self_attn, block.ffn):
                part.requires_grad_(True)
            block.modulation.requires_grad_(True)
        run = torch.compile(routed_block, dynamic=False) if compiled else routed_block
        self.model.blocks = nn.ModuleList(Routed(*pair, run) for pair in zip(self.blocks, self.routers, strict=True))
        if compiled:
            for block in self.base.blocks:
                block.compile()

    def learned(self) -> dict[str, Tensor]:
        """Weights that are trained, by their names in the model; routers by those in the checkpoint."""
        found = {f"blocks.{i}.{k}": p for i, r in enumerate(self.routers) for k, p in r.named_parameters()}
        for i, block in enumerate(self.blocks):
            found |= {f"blocks.{i}.{k}": p for k, p in block.named_parameters() if p.requires_grad}
        return found

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, noise: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
        """full: [B] 1 for rows that take the complete model. returns: flow, FLOPs share of the other rows"""
        e = self.model.time_embedding(sinusoidal_embedding_1d(self.model.freq_dim, t))
        heads, groups = [], []
        for block, own in zip(self.model.blocks, self.routers, strict=True):
            masks = (decide(rate["router"](e), noise) for rate in (own.attn_rate, own.mlp_rate))
            head, group = (torch.maximum(with_first(mask), full[:, None]) for mask in masks)
            block.decisions = (head, group, own.token_selection["mlp_head"], full, noise)
            heads.append(head)
            groups.append(group)
        flow = self.model(x, t, context)
        costs, routed = Costs(self.base, x[0, 0].numel() // 4, context.shape[1]), full < 0.5
        shares = [[z.mean(-1)[routed] if z.ndim > 1 else z[routed] for z in part]
                  for part in (heads, groups, [b.share for b in self.model.blocks])]  # fmt: skip
        return flow, costs.ratio(*shares).mean()


def train(minutes: float, batch: int, total: int) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    both, encoder = Trained(), text.build().requires_grad_(False)
    words = load_file(CHECKPOINTS / "text_encoders" / "tiny_puppet_umt5.safetensors")
    encoder.load_state_dict({k: v.float() for k, v in words.items() if k != "spiece_model"})
    learned = both.learned()
    optimisers = _optimisers(both, learned)
    average = {k: v.detach().clone() for k, v in learned.items()}
    step, spent, state = 0, 0.0, FOLDER / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        with torch.no_grad():
            for k, v in learned.items():
                v.copy_(saved["learned"][k])
        for (optimiser, _), part in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(part)
        average, step, spent = saved["average"], saved["step"], saved["seconds"]
    data, curve, recent = dit.Data("t2v", step), Curve(FOLDER / "curve.csv"), []
    full = (torch.arange(batch) >= batch - COMPLETE).float()
    mark = time.time()
    while (done := max(step / total, (spent + time.time() - mark) / (60 * minutes))) < 1:
        pace = min(1, (step + 1) / 50) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done)))
        for optimiser, rate in optimisers:
            optimiser.param_groups[0]["lr"] = rate * pace
        losses = _losses(both, encoder, data.batch(batch), full, done)
        for parameter in learned.values():
            parameter.grad = None
        sum(losses[:4]).backward()
        for optimiser, _ in optimisers:
            optimiser.step()
        step += 1
        keep = min(KEEP, step / (step + 20))
        with torch.no_grad():
            for k, v in learned.items():
                average[k].lerp_(v, 1 - keep)
        recent.append(torch.stack(losses).detach())
        if step % 25 == 0:
            names = ("dynamic", "complete", "budget", "distance", "ratio")
            means = torch.stack(recent).mean(0).tolist()
            curve.add(step=step, **dict(zip(names, means, strict=True)), seconds=spent + time.time() - mark)
            recent.clear()
        if step % 50 == 0:
            spent, mark = spent + time.time() - mark, time.time()
            _save(learned, average, step, optimisers, spent)
    _save(learned, average, step, optimisers, spent + time.time() - mark)


def _save(learned: dict, average: dict, step: int, optimisers: list, seconds: float) -> None:
    save({"learned": {k: v.detach() for k, v in learned.items()}, "average": average, "step": step,
          "optimisers": [o.state_dict() for o, _ in optimisers], "seconds": seconds}, FOLDER / "state.pt")  # fmt: skip


def _optimisers(both: Trained, learned: dict[str, Tensor]) -> list[tuple[torch.optim.Optimizer, float]]:
    own = {id(p) for p in both.routers.parameters()}
    weights = [p for p in learned.values() if id(p) not in own]
    return [
        (Muon([p for p in weights if p.ndim == 2], MUON_RATE, 0.95, 0.1), MUON_RATE),
        (torch.optim.AdamW([p for p in weights if p.ndim != 2], RATE, betas=(0.9, 0.98), weight_decay=0.0), RATE),
        (torch.optim.AdamW(list(both.routers.parameters()), ROUTER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
         ROUTER_RATE),
    ]  # fmt: skip


def _losses(both: Trained, encoder: nn.Module, batch: tuple, full: Tensor, done: float) -> list[Tensor]:
    """The four terms of the loss, then the FLOPs share."""
    video, _, captions = batch
    count = len(video)
    u = (torch.randperm(count) + torch.rand(count)) / count  # one noise level from each of `count` equal slices
    sigma = dit.SHIFT * u / (1 + (dit.SHIFT - 1) * u)
    gauss, s = torch.randn_like(video), sigma.view(-1, 1, 1, 1, 1)
    x, goal = (1 - s) * video + s * gauss, gauss - video
    noise = torch.tensor(max(0.0, 1 - done / QUIET))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            context = text.encode(encoder, captions)
            want = both.base(x, sigma * 1000, context).float()
        flow, ratio = both(x, sigma * 1000, context, noise, full)
    error = (flow.float() - goal).square().flatten(1).mean(1)
    target = 1 - (1 - TARGET) * min(1, done / ANNEALED)
    return [
        error[full < 0.5].mean(),
        error[full > 0.5].mean(),
        BUDGET_WEIGHT * (ratio - target).square(),
        (flow.float() - want).square().mean(),
        ratio,
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e9, help="in all; rates and targets follow the clock then")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=6)
    args = parser.parse_args()
    train(args.minutes, args.batch, args.steps)
