"""Saves a checkpoint together with how it was made: in the file's own metadata, and as a card beside it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def save_checkpoint(
    state: dict[str, torch.Tensor], path: Path, dtype: torch.dtype, made: dict, extra: dict | None = None
) -> None:
    """Write `path` (beside, then renamed) and `path` with suffix .md.

    made: what, data, loss, steps, seconds, device, seed ...    extra: further safetensors metadata (strings)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous().clone() for k, v in state.items()}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"made": json.dumps(made), **(extra or {})})
    part.replace(path)
    count = sum(v.numel() for v in tensors.values())
    rows = "\n".join(f"| {k} | {v} |" for k, v in made.items())
    size = path.stat().st_size / 1e6
    path.with_suffix(".md").write_text(
        f"# {path.stem}\n\n{count / 1e6:.2f} M parameters, {size:.1f} MB, Apache-2.0.\n\n| | |\n| --- | --- |\n{rows}\n"
    )
    print(f"{path.name}: {count / 1e6:.2f} M parameters, {size:.1f} MB", flush=True)
