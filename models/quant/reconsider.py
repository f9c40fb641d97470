"""Which vector each group of weights should be, given those of all others in its row.

Groups are taken in turn, each gets the vector of least squared error of the row's output, several times round. Error
feedback does so once, and knows only the groups before.

Source: coordinate descent on the layer's squared output error, as CDQuant (arXiv 2406.17542) has it for single weights.
"""
# N outputs   K inputs   J groups of a row   C vectors of the codebook   D weights of each

from __future__ import annotations

import torch
from torch import Tensor

from .codebook import nearest

DAMP = 0.01  # share of the mean of the gram's diagonal that is added to it, as in error feedback


def reconsidered(weight: Tensor, numbers: Tensor, book: Tensor, scale: Tensor, gram: Tensor, passes: int) -> Tensor:
    """Numbers [N, J] int64 with an error (W - Q) H (W - Q)^T that is no larger than before.

    weight: [N, K] float32 in the coded basis
    numbers: [N, J]    book: [C, D] float32    scale: [N, 1]    so that Q = scale * book[numbers]
    gram: [K, K] of the activations in the coded basis
    """
    width, numbers = book.shape[1], numbers.long().clone()
    level = gram.diagonal().mean().clamp_min(1e-30)
    gram = gram / level + DAMP * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    # in units of the scale, so that one codebook serves all rows
    wrong = weight / scale - book[numbers].flatten(1)
    starts = range(0, weight.shape[1], width)
    own = torch.stack([gram[i : i + width, i : i + width] for i in starts])
    roots, inverses = torch.linalg.cholesky(own), torch.linalg.inv(own)
    for _ in range(passes):
        for j, i in enumerate(starts):
            now = book[numbers[:, j]]
            best = now + (wrong @ gram[:, i : i + width]) @ inverses[j]
            numbers[:, j] = nearest(best @ roots[j], book @ roots[j])
            wrong[:, i : i + width] += now - book[numbers[:, j]]
    return numbers
