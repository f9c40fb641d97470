"""Runs the GPU bench from an unpacked bundle; needs Python, torch and no network. Lies on top of the bundle.

    python3 interspatial_gpu/run.py --out DIR [--stages a b] [--seconds 540] [--smoke] [--device cuda|cpu]

The first call unpacks what lies beside this file. A second call with the same DIR goes on where the first one ended.
"""

from __future__ import annotations

import os
import sys
import tarfile
import types
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = {"site": "site.tar.xz", "ComfyUI": "ComfyUI.tar.xz", "pack": "pack.tar.xz"}


def unpack() -> None:
    """Each part whole or not at all."""
    for name, archive in PARTS.items():
        folder, part = HERE / name, HERE / f"{name}.part"
        if not folder.exists():
            with tarfile.open(HERE / archive, "r:xz") as tar:
                tar.extractall(part, filter="data")
            part.rename(folder)


def main() -> None:
    unpack()
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE / "site"), *([before] if before else [])])
    os.environ["COMFYUI_PATH"] = str(HERE / "ComfyUI")
    os.environ["HF_HUB_OFFLINE"] = "1"  # or a tokenizer may wait for a network that is not there
    # bench/__init__.py imports ComfyUI and with it torch; each stage's process does, this one need not.
    package = types.ModuleType("bench")
    package.__path__ = [str(HERE / "pack" / "bench")]
    sys.modules["bench"] = package
    sys.path.insert(0, str(HERE / "pack"))
    from bench.gpu.__main__ import main as run

    run()


if __name__ == "__main__":
    main()
