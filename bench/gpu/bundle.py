"""One file with all that the GPU bench needs on a machine without network:

    python -m bench.gpu.bundle bench/out/interspatial_gpu.tar [--python 3.12] [--cards 9.0]

This pack as it lies here (committed or not), the ComfyUI that dev.py fetched, and the packages that such a machine
lacks (wheels.py). `cards` are compute capabilities; comfy-kitchen brings about 4 MB of code for each. Packed packages
are kept in .cache/bundle, so that only the first call takes its two minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import re
import subprocess
import tarfile
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from interspatial.devtools.comfyui import find_comfyui

from . import wheels

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "bundle"
FOLDER = "interspatial_gpu"
LIMIT_MB = 50.0

# Of the pack: sources, and what the tiny text-to-video model needs to run.
SOURCES = re.compile(r"(kernels|models|nodes|bench|training|devtools)/.*\.(py|json)$|__init__\.py$|pyproject\.toml$")
RESULTS = re.compile(r"bench/results/|bench/gpu/results")
CHECKPOINTS = (
    "checkpoints/diffusion_models/tiny_puppet_t2v.safetensors",
    "checkpoints/text_encoders/tiny_puppet_umt5.safetensors",
    "checkpoints/vae/tiny_puppet_vae.safetensors",
)

# Of ComfyUI: sources and their tables. Vocabularies make up 25 of its 46 MB, and the tiny text encoder has its own.
HOST_KINDS = {".py", ".json", ".yaml", ".toml"}
HOST_LEFT_OUT = re.compile(
    r"(tests|tests-unit|temp|input|output|user|models|blueprints|web|custom_nodes|script_examples)/"
    r"|comfy_api_nodes/|comfy/(text_encoders/\w+|sd1)_tokenizer/|openapi\.yaml|(.*/)?__pycache__/|\."
)

# The dictionary takes in all libraries of one package; the filter turns jumps into something that repeats.
PACKING = {True: [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 26}],
           False: [{"id": lzma.FILTER_LZMA2, "preset": 6}]}  # fmt: skip


def pack_files(names: Iterable[str]) -> list[str]:
    """Which of the pack's paths go along. Raises FileNotFoundError for a checkpoint that is not among them."""
    names = sorted(names)
    if missing := set(CHECKPOINTS) - set(names):
        raise FileNotFoundError(f"The bundle needs {', '.join(sorted(missing))}, which this checkout lacks.")
    return [name for name in names if name in CHECKPOINTS or (SOURCES.match(name) and not RESULTS.match(name))]


def host_files(names: Iterable[str]) -> list[str]:
    """Which of ComfyUI's paths go along."""
    return sorted(name for name in names if Path(name).suffix in HOST_KINDS and not HOST_LEFT_OUT.match(name))


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _read(root: Path, names: list[str]) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in names if (root / name).is_file()}


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar archive that depends on names and content alone."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return out.getvalue()


def packed(files: dict[str, bytes], machine_code: bool = False) -> bytes:
    """As .tar.xz; from the cache when these files were packed before."""
    plain = tar_of(files)
    kept = CACHE / f"{hashlib.sha256(plain).hexdigest()}.tar.xz"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        part.write_bytes(lzma.compress(plain, filters=PACKING[machine_code]))
        part.replace(kept)
    return kept.read_bytes()


def why_not_small(parts: dict[str, dict[str, bytes]], size: int, limit_mb: float = LIMIT_MB) -> str | None:
    """parts: the files of each part, by path    size: of the bundle, bytes"""
    if size <= limit_mb * 1e6:
        return None
    sizes = {f"{part}/{name}": len(content) for part, files in parts.items() for name, content in files.items()}
    largest = sorted(sizes, key=sizes.get, reverse=True)[:8]
    listed = ", ".join(f"{name} ({sizes[name] / 1e6:.1f} MB unpacked)" for name in largest)
    return (f"The bundle has {size / 1e6:.1f} MB, {size / 1e6 - limit_mb:.1f} MB more than the {limit_mb:g} MB that it "
            f"may have. Its largest files: {listed}. Leave something out, or name fewer --cards.")  # fmt: skip


def contents(python: str, cards: list[str]) -> dict[str, dict[str, bytes]]:
    """Files of each folder that the bundle unpacks to, by path."""
    comfyui = find_comfyui()
    ours = pack_files(_git("ls-files", "--cached", "--others", "--exclude-standard").splitlines())
    theirs = host_files(path.relative_to(comfyui).as_posix() for path in comfyui.rglob("*") if path.is_file())
    found = wheels.fetch(CACHE / f"wheels-{python}", python)
    site = {path: content for wheel in found for path, content in wheels.opened(wheel, cards).items()}
    return {"site": site, "ComfyUI": _read(comfyui, theirs), "pack": _read(ROOT, ours)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--python", default="3.12", help="of the machine")
    parser.add_argument("--cards", nargs="+", default=["9.0"], help="compute capabilities, such as 9.0 12.0")
    args = parser.parse_args()
    parts = contents(args.python, args.cards)
    about = {
        "revision": _git("rev-parse", "HEAD").strip(),
        "changed": bool(_git("status", "--porcelain").strip()),
        "made": date.today().isoformat(),
        "python": args.python,
        "cards": args.cards,
        "packages": wheels.PACKAGES,
    }
    whole = {f"{name}.tar.xz": packed(files, machine_code=name == "site") for name, files in parts.items()}
    for name, content in whole.items():
        print(f"{name:16} {len(content) / 1e6:6.1f} MB, {len(parts[name.partition('.')[0]])} files")
    whole["bundle.json"] = (json.dumps(about, indent=1) + "\n").encode()
    whole["run.py"] = (ROOT / "bench" / "gpu" / "run.py").read_bytes()
    bundle = tar_of({f"{FOLDER}/{name}": content for name, content in whole.items()})
    if reason := why_not_small(parts, len(bundle)):
        raise SystemExit(reason)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(bundle)
    print(f"{args.out}: {len(bundle) / 1e6:.1f} MB. There: tar xf {args.out.name} && python3 {FOLDER}/run.py --out DIR")


if __name__ == "__main__":
    main()
