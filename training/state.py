"""Files that a trainer may be stopped in the middle of writing: written beside, then renamed."""

from __future__ import annotations

from pathlib import Path

import torch


def save(content: object, path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)
