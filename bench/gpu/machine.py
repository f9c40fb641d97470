"""What the figures were measured on: the card, its driver and clocks, and the versions. Reads; never sets anything."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]

# nvidia-smi's name -> ours, with its unit
CLOCKS = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "power.draw": "watts",
    "temperature.gpu": "celsius",
}
CARD = {
    "name": "gpu",
    "driver_version": "driver",
    "clocks.max.sm": "sm_mhz_most",
    "clocks.max.mem": "memory_mhz_most",
    "power.limit": "watts_most",
    "mig.mode.current": "mig",
    "ecc.mode.current": "ecc",
}


def clocks() -> dict[str, float]:
    """Clocks, power and temperature now; empty without an NVIDIA card."""
    return {name: float(value) for name, value in _smi(CLOCKS).items() if _is_number(value)}


def card() -> dict[str, str | float]:
    """What nvidia-smi says about the first card; empty without one."""
    return {name: float(value) if _is_number(value) else value for name, value in _smi(CARD).items()}


def _smi(fields: dict[str, str]) -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(fields.values(), values, strict=True)) if len(values) == len(fields) else {}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def range_of(samples: list[dict[str, float]]) -> dict[str, list[float]]:
    """Least, median and greatest of each figure over samples of `clocks`."""
    named = {name: [sample[name] for sample in samples if name in sample] for name in CLOCKS.values()}
    return {name: [min(values), median(values), max(values)] for name, values in named.items() if values}


def facts(device: str) -> dict:
    """Versions and the card, as a process sees them that has torch.

    device: "cuda" or "cpu"
    """
    import torch

    found = {"device": device, "cpu": _cpu(), "system": platform.platform(), "python": platform.python_version(),
             "torch": torch.__version__, "cuda": torch.version.cuda}  # fmt: skip
    found |= {name: version(name) for name in ("triton", "transformers", "numpy", "comfy-kitchen")}
    found["comfyui"] = _comfyui()
    if device == "cuda":
        seen = torch.cuda.get_device_properties(0)
        found |= {"gpu": seen.name, "capability": f"{seen.major}.{seen.minor}", "sms": seen.multi_processor_count,
                  "memory_gib": round(seen.total_memory / 2**30, 1), "l2_mib": round(seen.L2_cache_size / 2**20, 1),
                  "cudnn": torch.backends.cudnn.version()}  # fmt: skip
    return found | card() | revision()


def version(distribution: str) -> str | None:
    """Of an installed package; None without it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _comfyui() -> str | None:
    try:
        import comfyui_version
    except ImportError:
        return None
    return comfyui_version.__version__


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def revision() -> dict[str, object]:
    """Of the pack: what the bundle noted when it was made, else what git says. changed: with edits on top"""
    noted = ROOT.parent / "bundle.json"
    if noted.is_file():
        about = json.loads(noted.read_text())
        return {"revision": about["revision"], "changed": about["changed"]}
    try:
        head, edits = (subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout
                       for words in (("rev-parse", "HEAD"), ("status", "--porcelain")))  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return {"revision": None, "changed": None}
    return {"revision": head.strip(), "changed": bool(edits.strip())}
