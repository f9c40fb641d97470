"""A small 64-bit ELF file with a section of GPU code, laid out as a CUDA compiler does it."""

from __future__ import annotations

import struct

PTX, CUBIN = 1, 2


def entry(kind: int, arch: int, payload: bytes) -> bytes:
    """One architecture's code of one source file."""
    head = struct.pack("<HHIQIIHHI", kind, 0x101, 64, len(payload), 0, 0, 0, 0, arch)
    return head.ljust(64, b"\0") + payload


def container(*entries: bytes) -> bytes:
    inside = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(inside)) + inside


def library(*containers: bytes, section: bytes = b".nv_fatbin") -> bytes:
    """ELF header, the text "before", the section, the text "after", section names, section headers."""
    code = b"".join(containers)
    names = b"\0.text\0" + section + b"\0.shstrtab\0"
    code_at = 64 + len(b"before")
    names_at = code_at + len(code) + len(b"after")
    heads = [(0, 0, 0), (1, 64, 6), (7, code_at, len(code)), (8 + len(section), names_at, len(names))]
    table = b"".join(struct.pack("<IIQQQQ", name, 1, 0, 0, at, size).ljust(64, b"\0") for name, at, size in heads)
    start = b"\x7fELF\x02\x01\x01".ljust(0x28, b"\0") + struct.pack("<Q", names_at + len(names))
    start = start.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, len(heads), 3)
    return start + b"before" + code + b"after" + names + table
