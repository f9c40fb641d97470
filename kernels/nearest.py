"""The nearest centroid of every token, head by head: the step of k-means that reads all tokens and all centroids.

The nearest by x c - |c|^2 / 2, both as seen from the middle of the centroids: numbers of the size of a cluster's spread
remain, however far from the origin the tokens are.
"""
# B batch   N tokens   H heads   D head dim   G = B * H   C centroids

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import triton_nearest
from .dispatch import Backend, Dispatch

# Of products at a time in torch. On one CPU core 0.1 to 8 MB of them ran alike; devices want long launches.
CPU_BYTES, DEVICE_BYTES = 4 << 20, 256 << 20


@dataclass(frozen=True)
class NearestCall:
    """The arguments of `nearest`."""

    x: Tensor
    centroids: Tensor
    max_bytes: int | None

    @property
    def q(self) -> Tensor:
        """What `Dispatch` knows a call by."""
        return self.x

    def why_not(self) -> str | None:
        """Why no backend can take this call, or None. Reads shapes only, never the device."""
        x, centroids = self.x, self.centroids
        if x.ndim != 4 or not x.is_floating_point():
            return f"the tokens are {x.dtype} {list(x.shape)}; they must be floating point [B, N, H, D]"
        wanted = [x.shape[0] * x.shape[2], x.shape[3]]
        if centroids.dtype != torch.float32 or centroids.ndim != 3 or [*centroids.shape[::2]] != wanted:
            return (
                f"the centroids are {centroids.dtype} {list(centroids.shape)}; "
                f"they must be float32 [{wanted[0]}, C, {wanted[1]}]"
            )
        if not centroids.shape[1]:
            return "there are no centroids"
        if centroids.device != x.device:
            return f"the centroids are on {centroids.device} and the tokens on {x.device}"
        return None


def nearest_reference(x: Tensor, centroids: Tensor) -> Tensor:
    """All distances in float64; the contract is that of `nearest`."""
    rows = x.transpose(1, 2).flatten(0, 1).double()
    apart = (rows[:, :, None] - centroids[:, None].double()).square().sum(-1)
    return apart.argmin(-1).int()


def nearest(x: Tensor, centroids: Tensor, max_bytes: int | None = None, *, backend: str | None = None) -> Tensor:
    """Number of the centroid at the least Euclidean distance, the lowest where several are.

    Half precision rounds what is compared. In torch products are of bfloat16: after 10 rounds on queries and keys of
    the tiny model the squared distances are within 0.4 % of those with fp32 products. In Triton only the centroids are
    rounded, to the tokens' precision. Tokens that are not finite get some label.

    x: [B, N, H, D], at any strides
    centroids: fp32 [G, C, D]
    max_bytes: of products at a time in torch
    backend: the name of one of BACKENDS, which then must take the call
    returns: int32 [G, N]
    raises: ValueError with the reason of `NearestCall.why_not`, or of the backend that was asked for
    """
    return BACKENDS.run(NearestCall(x, centroids, max_bytes), backend)


def _in_torch(call: NearestCall) -> Tensor:
    x, centroids = call.x, call.centroids
    (batch, tokens, heads, _), clusters = x.shape, centroids.shape[1]
    max_bytes = call.max_bytes or (CPU_BYTES if x.device.type == "cpu" else DEVICE_BYTES)
    labels = torch.empty(batch, heads, tokens, dtype=torch.int32, device=x.device)
    products = torch.float32 if x.dtype == torch.float32 else torch.bfloat16
    middle = centroids.mean(1, keepdim=True)
    centroids = centroids - middle
    lift = centroids.square().sum(-1).mul_(-0.5).to(products).view(batch, heads, 1, clusters)
    centroids = centroids.to(products).view(batch, heads, clusters, -1).transpose(2, 3)
    middle = middle.view(batch, heads, 1, -1)
    step = max(1, max_bytes // (4 * clusters))  # tokens of one head
    width, span = max(1, step // max(1, tokens)), min(step, max(1, tokens))
    for b in range(batch):
        for head in range(0, heads, width):
            for start in range(0, tokens, span):
                at = b, slice(head, head + width), slice(start, start + span)
                rows = (x[b, at[2], at[1]].transpose(0, 1).float() - middle[at[:2]]).to(products)
                labels[at] = torch.baddbmm(lift[at[:2]], rows, centroids[at[:2]]).argmax(-1)
    return labels.view(batch * heads, tokens)


BACKENDS = Dispatch(
    "The search of the nearest centroid",
    (
        Backend(triton_nearest.NAME, triton_nearest.why_not, triton_nearest.label),
        Backend("torch", lambda call: None, _in_torch),
    ),
)
