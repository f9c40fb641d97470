"""What the Triton kernels take of a tensor and of a size, so that no stride and no length compiles anything anew."""
# B batch   N tokens   H heads   D head dim

from __future__ import annotations

from torch import Tensor

UNIT = 8  # numbers that strides are counted in: loads of 16 bytes stay possible without knowing a stride


def strided(**tensors: Tensor) -> dict[str, Tensor | int]:
    """Tensors [B, N, H, D] by name, copied where a stride cannot be counted in units, and their strides as name_b,
    name_n and name_h, in units.
    """
    given: dict[str, Tensor | int] = {}
    for name, x in tensors.items():
        if x.stride(-1) != 1 or any(stride % UNIT for stride in x.stride()[:-1]):
            x = x.contiguous()
        given[name] = x
        given |= {f"{name}_{axis}": stride // UNIT for axis, stride in zip("bnh", x.stride()[:-1], strict=True)}
    return given


def padded(size: int) -> int:
    """The next power of two, and no less than a matrix unit takes."""
    return max(16, 1 << (size - 1).bit_length())
