"""A quantised layer while a calibration learns its scales, codebook and bias, and which vector each group becomes.

Each group of weights chooses among a few vectors of the codebook that lie near it; while it learns, a group is the mean
of its candidates, weighted by a softmax. Groups that are surest settle first, and at the end all have.

Source: candidates and soft assignments of VQ4DiT (arXiv 2408.17131). Differs from the paper: the vector that the file
has is always a candidate and begins with most of the weight, so that learning starts at what the file is; groups settle
by a schedule, the surest share first, in place of a penalty that is switched on and off.
"""
# N outputs   K inputs   J groups of a row   C vectors of the codebook   D weights of each   M candidates

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from .codebook import nearest_few
from .feedback import gram_in
from .format import FORMATS, Coded, dense
from .reconsider import reconsidered

HEAD = 2.0  # logit of the vector that the file has, others 0: 0.88 of two candidates
SURE = 1e4  # logit of a settled one


@runtime_checkable
class Vectored(Protocol):
    """A format whose weights are vectors of a codebook."""

    def vectors(self, coded: Coded) -> tuple[Tensor, Tensor]:
        """Numbers [N, J] and codebook [C, D] float32, in the unit of the scale."""

    def with_vectors(self, coded: Coded, numbers: Tensor, book: Tensor, scale: Tensor) -> Coded:
        """`coded` with others. numbers: [N, J], book: [C, D] float32, scale: [N, 1] float32"""


class LearnedLayer:
    """Stands for a linear layer. Of a format without a codebook it learns scales and bias alone."""

    def __init__(self, coded: Coded, weight: Tensor, bias: Tensor | None, candidates: int) -> None:
        """weight: [N, K], what `coded` was made of    bias: [N]"""
        self.coded, self._form = coded, FORMATS[coded.format]
        self.gain = torch.zeros_like(coded.scale).requires_grad_()
        self.bias = None if bias is None else bias.detach().float().clone().requires_grad_()
        self.book: Tensor | None = None
        self._held: Tensor | None = None
        self._gram: Tensor | None = None
        self._rotated: Tensor | None = None
        if isinstance(self._form, Vectored):
            self._choose(weight, candidates)
        else:
            self._values = self._form.values(coded)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]"""
        if self._gram is not None:
            rows = x.detach().reshape(-1, x.shape[-1]).float()
            self._gram.addmm_(rows.t(), rows)
        weight = self.weight() if self._held is None else self._held
        return F.linear(x, weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def weight(self) -> Tensor:
        """[N, K] float32 in the original basis, with gradients."""
        if self.book is None:
            values = self._values
        else:
            share = self.logits.softmax(1).unsqueeze(2)  # [NJ, M, 1]
            values = (share * F.embedding(self.choices, self.book * self.unit)).sum(1).reshape(self.coded.shape)
        return self.coded.basis.original(values * (self.coded.scale * self.gain.exp()))

    def rates(self, book: float, scale: float, bias: float, choice: float) -> list[dict]:
        """What is learned, for an optimiser, and how fast. book: over the RMS of its entries; scale: its logarithm"""
        groups = [([self.gain], scale), ([] if self.bias is None else [self.bias], bias)]
        groups += [] if self.book is None else [([self.book], book), ([self.logits], choice)]
        return [{"params": params, "lr": rate, "top": rate} for params, rate in groups if params]

    @torch.no_grad()
    def settle(self, share: float) -> None:
        """The surest share of the groups chooses."""
        if self.book is None or share <= 0:
            return
        sure, first = self.logits.softmax(1).max(1)
        least = sure.kthvalue(max(1, len(sure) - int(share * len(sure)) + 1)).values if share < 1 else sure.min()
        chosen = F.one_hot(first, self.logits.shape[1]).to(self.logits.dtype).mul_(2).sub_(1).mul_(SURE)
        self.logits.copy_(torch.where((sure >= least).unsqueeze(1), chosen, self.logits))

    @torch.no_grad()
    def result(self) -> Coded:
        """The weight as it is kept."""
        scale = self.coded.scale * self.gain.exp()
        if self.book is None:
            return Coded(**{**vars(self.coded), "scale": scale})
        numbers = self.choices.gather(1, self.logits.argmax(1, keepdim=True)).reshape(self.coded.shape[0], -1)
        return self._form.with_vectors(self.coded, numbers, self.book * self.unit, scale)

    def watch(self) -> None:
        """From now on the products of what comes in are summed."""
        if self._rotated is not None:
            columns = self.coded.shape[1]
            self._gram = torch.zeros(columns, columns, device=self._rotated.device)

    @torch.no_grad()
    def reconsider(self, passes: int) -> None:
        """Each group becomes the vector that is best beside all others of its row, for what came in since `watch`."""
        if self._gram is None:
            return
        gram, self._gram = gram_in(self.coded.basis, self._gram), None
        book, scale = self.book * self.unit, self.coded.scale * self.gain.exp()
        numbers = self.choices.gather(1, self.logits.argmax(1, keepdim=True)).reshape(self.coded.shape[0], -1)
        self._offer(reconsidered(self._rotated, numbers, book, scale, gram, passes))

    def hold(self, coded: Coded | None) -> None:
        """Compute with this weight; None: with what is being learned."""
        self._held = None if coded is None else dense(coded)

    def _choose(self, weight: Tensor, candidates: int) -> None:
        numbers, book = self._form.vectors(self.coded)
        self._rotated, self._count = self.coded.basis.weight(weight.float()), candidates
        self.unit = book.square().mean().sqrt()
        self.book = (book / self.unit).requires_grad_()
        self._offer(numbers)

    @torch.no_grad()
    def _offer(self, numbers: Tensor) -> None:
        """Candidates anew, the first of which are these. numbers: [N, J]"""
        book = self.book * self.unit
        vectors = (self._rotated / (self.coded.scale * self.gain.exp())).reshape(-1, book.shape[1])
        first = numbers.reshape(-1, 1).long()
        several = torch.cat((first, nearest_few(vectors, book, self._count)[1]), 1)
        again = several[:, 1:] == first
        order = F.pad(again, (1, 0)).to(torch.uint8).argsort(dim=1, stable=True)[:, : self._count]
        self.choices = several.gather(1, order)
        logits = torch.zeros(self.choices.shape, device=book.device)
        logits[:, 0] = HEAD
        self.logits = logits.requires_grad_()
