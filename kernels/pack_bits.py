"""Codes of 2, 3, 4, 6 and 8 bits in bytes, row by row.

A width is a sum of planes of 4, 2 and 1 bits: 3 is a plane of 2 bits, then one of 1 bit; 6 is 4 and 2. Each plane holds
its part of all codes of a row, low bits first; within a byte the first code lies lowest. A row of K codes takes
K * bits / 8 bytes, so K is a multiple of 8 (of 4 for 2 and 6 bits, of 2 for 4).
"""
# N rows   K codes per row

from __future__ import annotations

import torch
from torch import Tensor

PLANES: dict[int, tuple[int, ...]] = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 6: (4, 2), 8: (8,)}


def why_not(columns: int, bits: int) -> str | None:
    """Why rows of `columns` codes of this width cannot be packed, or None."""
    if bits not in PLANES:
        return f"there are no codes of {bits} bits; there are {', '.join(map(str, PLANES))}"
    least = 8 // min(PLANES[bits])
    if columns % least:
        return f"{columns} codes of {bits} bits fill no whole bytes (a multiple of {least} does)"
    return None


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes: [N, K] uint8, below 2 ** bits -> [N, K * bits / 8] uint8

    raises: ValueError for a width or a row length that cannot be packed
    """
    if reason := why_not(codes.shape[1], bits):
        raise ValueError(f"Packing of {list(codes.shape)} codes: {reason}.")
    parts, low = [], 0
    for width in PLANES[bits]:
        plane = codes.bitwise_right_shift(low).bitwise_and((1 << width) - 1)
        lanes = plane.unflatten(1, (-1, 8 // width))
        packed = torch.zeros_like(lanes[..., 0])
        for lane in range(8 // width):
            packed |= lanes[..., lane] << (lane * width)
        parts.append(packed)
        low += width
    return torch.cat(parts, dim=1)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """packed: [N, K * bits / 8] uint8 -> [N, K] uint8, the inverse of `pack`. columns: K"""
    codes, low, start = None, 0, 0
    for width in PLANES[bits]:
        lanes, size = 8 // width, columns * width // 8
        part = packed[:, start : start + size]
        if lanes > 1:
            shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
            part = (part.unsqueeze(-1) >> shifts).bitwise_and_((1 << width) - 1).flatten(1)
        codes = part if codes is None else codes | (part << low)
        low, start = low + width, start + size
    return codes
