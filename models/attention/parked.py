"""Large tensors that wait for later steps, on their device or in RAM, 16-bit ones in 8 bits with a scale a row."""
# B batch   N tokens   H heads   D head dim

from __future__ import annotations

import torch
from torch import Tensor

WHERE = ("auto", "gpu", "cpu")
GPU_SHARE, RAM_SHARE = 0.25, 0.5  # of what is free, that may be filled: both are needed for other things as well
CHUNK_BYTES = 64 << 20  # of fp32 rows at a time

RAM = torch.device("cpu")


def waiting_place(where: str, total: int, device: torch.device) -> torch.device | None:
    """Where `total` bytes that belong to a device may wait, None when they fit nowhere. Asks the system: once a run.

    where: one of WHERE; a device that does not tell its free memory is never chosen
    """
    places = {"gpu": (device,), "cpu": (RAM,), "auto": (device, RAM)}[where]
    return next((place for place in places if total <= _room(place)), None)


def _room(device: torch.device) -> float:
    """Bytes that may be filled."""
    if device.type == "cpu":
        import psutil  # one of ComfyUI's own requirements

        return RAM_SHARE * psutil.virtual_memory().available
    return GPU_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def parked_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """What a tensor takes while it waits; the last axis is a row."""
    count = torch.Size(shape).numel()
    return count * dtype.itemsize if dtype.itemsize > 2 else count + count // shape[-1] * dtype.itemsize


class Parked:
    """One tensor, put again and again."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._dtype = torch.float32

    def put(self, x: Tensor, place: torch.device) -> None:
        """Copies to RAM do not wait: they, and the way back, keep their order on the device's stream.

        x: [B, N, H, D] in any floating dtype
        """
        parts = [x] if x.dtype.itemsize > 2 else [*eight_bits(x)]
        if place != x.device:
            if [(p.shape, p.dtype) for p in self._parts] != [(p.shape, p.dtype) for p in parts]:
                self._parts = [_in_ram(part) for part in parts]
            parts = [kept.copy_(part, non_blocking=True) for kept, part in zip(self._parts, parts, strict=True)]
        self._parts, self._dtype = parts, x.dtype

    def get(self, device: torch.device) -> Tensor:
        """The tensor; what was in 8 bits is off by half a 127th of its row's largest element, and rounded again."""
        first, *scale = (part.to(device, non_blocking=True) for part in self._parts)
        return first.to(self._dtype).mul_(scale[0]) if scale else first


def eight_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as int8 times a scale for each row: off by half a 127th of the row's largest element at most.

    That is how much bfloat16 rounds the largest element, and it was not measured to matter.

    x: [B, N, H, D]
    returns: int8 [B, N, H, D]; [B, N, H, 1] in x's dtype
    """
    numbers, scale = torch.empty_like(x, dtype=torch.int8), x.new_empty(*x.shape[:-1], 1)
    step = max(1, CHUNK_BYTES // (4 * x[:, 0].numel()))
    for start in range(0, x.shape[1], step):
        some = slice(start, start + step)
        rows = x[:, some].float()
        scale[:, some] = rows.abs().amax(-1, keepdim=True) / 127
        unit = scale[:, some].float().clamp(min=1e-30)  # as it was rounded
        numbers[:, some] = (rows / unit).round_().clamp_(-127, 127)
    return numbers, scale


def _in_ram(x: Tensor) -> Tensor:
    """Room for x in RAM, pinned where that can be had: other memory is copied more slowly, and waited for."""
    if x.device.type == "cuda":
        try:
            return torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        except RuntimeError:  # the system limits how much may be pinned
            pass
    return torch.empty(x.shape, dtype=x.dtype)
