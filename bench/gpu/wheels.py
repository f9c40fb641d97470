"""The packages that the bundle carries: fetched with pip, opened here, so that the machine itself needs no pip."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from . import fatbin

# What importing ComfyUI's nodes, its samplers and this pack asks for, and what a machine with torch, torchvision,
# torchaudio, triton, transformers, scipy, aiohttp, psutil and einops has not. Found by hiding everything else and
# running `python -m bench.gpu --smoke`. Versions of requirements.lock, but for comfy-kitchen: 0.2.40 has sol_attn.
PACKAGES = {"av": "18.1.0", "comfy-aimdo": "0.4.11", "comfy-kitchen": "0.2.40", "torchsde": "0.2.6",
            "trampoline": "0.1.2"}  # fmt: skip
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

# The AMD library is 158 MB that an NVIDIA card cannot use; the others are for editors and compilers.
LEFT_OUT = re.compile(r"backends/hip/.*\.so$|\.(pyi|pxd|pyx)$")
GPU_CODE = "comfy_kitchen/backends/cuda/_C.abi3.so"


def fetch(folder: Path, python: str) -> list[Path]:
    """The wheels of PACKAGES for this Python ("3.12") on Linux x86-64, from `folder` or the package index."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, version in PACKAGES.items():
        if not _found(folder, name, version):
            subprocess.run([
                sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
                "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
                *(word for platform in PLATFORMS for word in ("--platform", platform)),
                "--dest", str(folder), f"{name}=={version}",
            ], check=True)  # fmt: skip
    return [_found(folder, name, version)[0] for name, version in PACKAGES.items()]


def _found(folder: Path, name: str, version: str) -> list[Path]:
    return sorted(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))


def opened(wheel: Path, cards: Sequence[str]) -> dict[str, bytes]:
    """The files of a wheel as they lie in site-packages, by path; GPU code for `cards` only.

    Raises ValueError for a wheel that an installer would have to move files of.
    """
    files = {}
    with zipfile.ZipFile(wheel) as archive:
        for path in archive.namelist():
            if ".data/" in path:
                raise ValueError(f"{wheel.name} has {path}, which belongs elsewhere: only plain wheels can be bundled.")
            if not path.endswith("/") and not LEFT_OUT.search(path):
                content = archive.read(path)
                files[path] = fatbin.only(content, cards) if path == GPU_CODE else content
    return files
