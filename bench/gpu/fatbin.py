"""A CUDA library with the code of some cards only. Nothing but its section of GPU code changes, and no address does.

A library made for six architectures carries six times what one card runs. Its section .nv_fatbin is a row of
containers, one per source file: a header (magic, version, own size, size of the rest), then an entry per architecture
(header: kind, own size, payload size, architecture; payload: the code, compressed). Here the wanted entries move to the
front of their container, its size says so, and zeros fill the gap, as if it had been compiled for these cards.
The layout is as `cuobjdump --dump-elf` and readelf show it; what does not fit it raises.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

SECTION = b".nv_fatbin"
MAGIC = 0xBA55ED50
CONTAINER = struct.Struct("<IHHQ")  # magic, version, header bytes, bytes behind the header
ENTRY = struct.Struct("<HHIQIIHHI")  # kind, version, header bytes, payload bytes, .., .., minor, major, architecture
MACHINE_CODE = 2  # kind; 1 is PTX, which a card of a later architecture would compile


def only(library: bytes, cards: Sequence[str]) -> bytes:
    """The same library, of the same length, with the machine code for `cards` and for no other; no PTX.

    cards: compute capabilities, such as "9.0"
    Raises ValueError when the file has no such section, another layout, or no code that a card can run.
    """
    out = bytearray(library)
    start, size = _section(library)
    place, stop = start, start + size
    while place < stop:
        magic, _, head, rest = CONTAINER.unpack_from(library, place)
        if magic != MAGIC:
            raise ValueError(f"The GPU code at byte {place} begins with {magic:#x} instead of {MAGIC:#x}: unknown.")
        entries = list(_entries(library, place + head, place + head + rest))
        wanted = _wanted([arch for kind, arch, _ in entries if kind == MACHINE_CODE], cards)
        kept = b"".join(part for kind, arch, part in entries if kind == MACHINE_CODE and arch in wanted)
        struct.pack_into("<Q", out, place + 8, len(kept))
        out[place + head : place + head + rest] = kept.ljust(rest, b"\0")
        place += head + rest
    return bytes(out)


def _entries(library: bytes, place: int, stop: int) -> Iterator[tuple[int, int, bytes]]:
    """(kind, architecture, header with payload) of each entry."""
    while place < stop:
        kind, _, head, payload, *_, arch = ENTRY.unpack_from(library, place)
        yield kind, arch, library[place : place + head + payload]
        place += head + payload


def _wanted(found: list[int], cards: Sequence[str]) -> set[int]:
    """Architectures (90 for 9.0) that `cards` run: the nearest not above each, of the same major number."""
    out = set()
    for card in cards:
        own = int(card.replace(".", ""))
        fits = [arch for arch in found if arch // 10 == own // 10 and arch <= own]
        if not fits:
            raise ValueError(f"The library has no machine code for capability {card}, only for {sorted(found)}.")
        out.add(max(fits))
    return out


def _section(library: bytes) -> tuple[int, int]:
    """Offset and bytes of SECTION in a 64-bit ELF file."""
    if library[:5] != b"\x7fELF\x02":
        raise ValueError("Not a 64-bit ELF library.")
    (table,) = struct.unpack_from("<Q", library, 0x28)
    each, count, names_at = struct.unpack_from("<HHH", library, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", library, table + i * each) for i in range(count)]
    names = heads[names_at][4]
    for name, _, _, _, offset, size in heads:
        if library[names + name : names + name + len(SECTION) + 1] == SECTION + b"\0":
            return offset, size
    raise ValueError(f"The library has no section {SECTION.decode()}: it holds no CUDA code.")

