"""The Triton kernels that turn scores and maps into ascending lists. One program takes one row, all of it in registers.

Imported by `triton_keep_top` alone, and only where Triton is there. `bounds_kernel` finds where the kept scores of a
row end, by halving a range until the count above it fits; nothing is sorted. Compared are integers in the order of
the numbers. `lists_kernel` writes what lies above. Between them the rows of a head share out the entries that not all
can have.
"""
# G heads   R rows   V video columns   K columns   C entries of a list   SIZE K padded to a power of two

from __future__ import annotations

import triton
import triton.language as tl

KEEP_INTS = ("R", "V", "K", "first", "own", "each")
# Rows start anywhere, as K may be odd: that a table does would only make a second binary.
KEEP_TABLES = ("score", "forced", "edge", "level")
MOST = tl.constexpr(3.4028234663852886e38)  # infinities and NaN count as the ends of what is finite
LEAST_INT = tl.constexpr(-2147483648)
SIGN = tl.constexpr(0x7FFFFFFF)
VALUES = tl.constexpr(16)


@triton.jit
def _bits(score):
    """Integers in the order of finite numbers."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)  # there is a negative zero
    return tl.where(bits < 0, bits ^ SIGN, bits)


@triton.jit
def _image(score):
    """The same of any numbers; NaN is the least. [SIZE] int32, above LEAST_INT"""
    score = tl.where(score == score, score, -MOST)
    return _bits(tl.minimum(tl.maximum(score, -MOST), MOST))


@triton.jit
def _number(image):
    """The number of an image."""
    return tl.where(image < 0, image ^ SIGN, image).to(tl.float32, bitcast=True)


@triton.jit
def _row(score, forced, i, V, K, first, own, each, FORCED: tl.constexpr, SIZE: tl.constexpr):
    """Of one row: its numbers, the images of what competes, LEAST_INT elsewhere; what is kept in any case, and how many
    may be kept beside it within `each`. Forced columns are kept in any case where there is room, else they alone
    compete. Returns [SIZE] fp32, int32, bool, a number, and whether forced columns compete.
    """
    column = tl.arange(0, SIZE)
    video = (column >= first) & (column < first + V)
    found = tl.load(score + column, mask=column < K, other=float("-inf"))
    kept, competes, room, tight = column == own + i, video & (column != own + i), each, False
    if FORCED:
        set_before = tl.load(forced + column - first, mask=competes, other=0) != 0
        count = tl.sum(set_before.to(tl.int32), 0)
        tight = count > room
        competes = competes & (set_before == tight)
        kept = kept | (set_before & (count <= room))
        room = tl.where(tight, room, room - count)
    kept = kept | ((column < K) & ((column < first) | (column >= first + V)))
    return found, tl.where(competes, _image(found), LEAST_INT), kept, room, tight


@triton.jit
def _end(image, room):
    """The edge of the `room` highest images, and how many of those at the edge belong to them.

    Where removed columns must be taken the edge is theirs, else the search is among the others: halving between the
    least and the greatest number ends after 10 to 13 counts (1260 normal or heavy-tailed scores, 125 or 251 kept),
    between their images after 14 to 16. Past VALUES counts images are halved, 32 times at most.
    """
    top = tl.max(image, 0)
    dead = _bits(-MOST)
    low = tl.min(tl.where(image > dead, image, top), 0)
    alive = tl.sum((image > dead).to(tl.int32), 0)
    high = tl.where(alive >= room, top, dead)
    low = tl.where(alive >= room, low, dead)
    # Of `low` and above there are room or more, above `high` fewer; with room 0 nothing is above the edge or at it.
    low = tl.where(room > 0, low, top + 1)
    counted = 0
    while low < high:
        middle = low + ((high.to(tl.int64) - low + 1) // 2).to(tl.int32)
        by_value = _bits(_number(low) * 0.5 + _number(high) * 0.5)
        middle = tl.where(counted < VALUES, tl.minimum(tl.maximum(by_value, low + 1), high), middle)
        count = tl.sum((image >= middle).to(tl.int32), 0)
        low = tl.where(count >= room, middle, low)
        high = tl.where(count > room, high, tl.where(count == room, middle, middle - 1))
        counted += 1
    return low, room - tl.sum((image > low).to(tl.int32), 0)


@triton.jit(do_not_specialize=KEEP_INTS, do_not_specialize_on_alignment=(*KEEP_TABLES, "worth"))
def bounds_kernel(
    score, forced, edge, level, worth, R, V, K, first, own, each,
    FORCED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Where kept scores end; grid (G * R,).

    score: fp32 [G, R, K]; forced: uint8 [R, V], not read unless FORCED
    own: column of row 0 that is kept in any case, row i keeps own + i; far below 0: none; each: how many beside it
    edge, level: int32 [2, G, R], image of the last score that is kept, how many at it are; the same with one more kept
    worth: fp32 [G, R], share of the softmax of one more; 1 is added where it is forced
    """
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    i = (row % R).to(tl.int32)
    score += row * K
    found, image, _, room, tight = _row(score, forced + i.to(tl.int64) * V, i, V, K, first, own, each, FORCED, SIZE)
    top = tl.max(found, 0)  # here, so that behind it only the images are in registers
    top = tl.where(top > float("-inf"), top, 0.0)
    total = tl.sum(tl.exp(found - top), 0)
    last, at_it = _end(image, room)
    tl.store(edge + row, last)
    tl.store(level + row, at_it)
    behind = tl.max(tl.where(image < last, image, LEAST_INT), 0)
    more = tl.sum((image == last).to(tl.int32), 0) > at_it
    following = tl.where(more, last, behind)
    tl.store(edge + rows + row, following)
    tl.store(level + rows + row, tl.where(more, at_it + 1, 1))
    value = _number(following)
    value = tl.where(value > -MOST, value, float("-inf"))
    share = tl.exp(value - top) / total
    share = tl.where(share == share, share, 0.0)
    if FORCED:
        share += tl.where(tight, 1.0, 0.0)
    tl.store(worth + row, share)


@triton.jit(
    do_not_specialize=(*KEEP_INTS, "C", "extra"),
    do_not_specialize_on_alignment=(*KEEP_TABLES, "granted", "cols", "counts"),
)
def lists_kernel(
    score, forced, edge, level, granted, cols, counts, R, V, K, first, own, each, C, extra,
    FORCED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The columns that are kept, ascending; grid (G * R,).

    score, forced, edge, level: of `bounds_kernel`; granted: uint8 [G, R], who has one more; extra: 1 where C counts it
    cols: int32 [G, R, C], K where a row has one entry less; counts: int32 [G, R]
    """
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    i = (row % R).to(tl.int32)
    _, image, kept, _, _ = _row(score + row * K, forced + i.to(tl.int64) * V, i, V, K, first, own, each, FORCED, SIZE)
    more = tl.load(granted + row).to(tl.int64)
    at = row + rows * more
    tl.store(counts + row, C - extra + more.to(tl.int32))
    last, room = tl.load(edge + at), tl.load(level + at)
    column = tl.arange(0, SIZE)
    above, equal = kept | (image > last), (image == last) & (image > LEAST_INT)
    # One sum along the row counts both: those above in the lower half of each number, those at the edge in the upper.
    passed = tl.cumsum(above.to(tl.int32) + (equal.to(tl.int32) << 16), 0)
    place = (passed & 0xFFFF) + tl.minimum(passed >> 16, room) - 1
    keep = above | (equal & ((passed >> 16) <= room))
    tl.store(cols + row * C + place, column, mask=keep & (place < C))
    tl.store(cols + row * C + C - 1, K, mask=more < extra)


@triton.jit(do_not_specialize=("K", "C"), do_not_specialize_on_alignment=("keep", "cols", "counts"))
def map_kernel(keep, cols, counts, K, C, SIZE: tl.constexpr):
    """Columns of a map that are set, ascending, the first C of them; grid (rows,).

    keep: uint8 [rows, K]; cols: int32 [rows, C]; counts: int32 [rows]
    """
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, SIZE)
    kept = (tl.load(keep + row * K + column, mask=column < K, other=0) != 0).to(tl.int32)
    place = tl.cumsum(kept, 0) - 1
    tl.store(cols + row * C + place, column, mask=(kept != 0) & (place < C))
    tl.store(counts + row, tl.minimum(tl.sum(kept, 0), C))
