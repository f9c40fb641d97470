"""What goes into the bundle for a GPU machine, and what must not."""

from __future__ import annotations

import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bench.gpu import bundle, fatbin, wheels

from .fake_library import CUBIN, PTX, container, entry, library

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW, OTHER = entry(CUBIN, 80, b"a" * 7), entry(CUBIN, 90, b"b" * 13), entry(CUBIN, 120, b"c" * 5)
LATER = entry(PTX, 90, b"d" * 9)


def test_only_the_wanted_code_stays() -> None:
    whole = library(container(OLD, NEW, LATER, OTHER), container(NEW))
    cut = fatbin.only(whole, ["9.0"])
    assert len(cut) == len(whole)
    kept = container(NEW)
    at = whole.index(container(OLD, NEW, LATER, OTHER))
    assert cut[at:].startswith(kept + bytes(len(OLD + LATER + OTHER)) + kept + b"after")
    assert cut[:at] == whole[:at] and cut.partition(b"after")[2] == whole.partition(b"after")[2]


@pytest.mark.parametrize("cards, stays", [
    (["8.0"], OLD), (["8.6"], OLD), (["9.0", "12.0"], NEW + OTHER), (["12.1"], OTHER), (["9.0", "9.0"], NEW),
])  # fmt: skip
def test_a_card_runs_code_of_its_own_major_number(cards: list[str], stays: bytes) -> None:
    cut = fatbin.only(library(container(OLD, NEW, LATER, OTHER)), cards)
    assert stays in cut and sum(each in cut for each in (OLD, NEW, LATER, OTHER)) == len(set(cards))


@pytest.mark.parametrize("content, message", [
    (library(container(OLD)), r"capability 9.0, only for \[80\]"),
    (library(b"\1" * 32), "0x1010101 instead of 0xba55ed50"),
    (library(container(NEW), section=b".nv_nothing"), "no section .nv_fatbin"),
    (b"MZ", "Not a 64-bit ELF"),
])  # fmt: skip
def test_what_cannot_be_cut_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fatbin.only(content, ["9.0"])


def wheel(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_wheel_is_opened_without_the_other_makers_library(tmp_path: Path) -> None:
    files = wheels.opened(wheel(tmp_path, {
        "comfy_kitchen/__init__.py": b"1", "comfy_kitchen/backends/hip/_C.abi3.so": b"2",
        "comfy_kitchen/backends/hip/__init__.py": b"3", "comfy_kitchen/types.pyi": b"4",
        wheels.GPU_CODE: library(container(OLD, NEW)), "comfy_kitchen/": b"",
        "comfy_kitchen-0.2.dist-info/licenses/LICENSE": b"5",
    }), ["9.0"])  # fmt: skip
    assert set(files) == {"comfy_kitchen/__init__.py", "comfy_kitchen/backends/hip/__init__.py", wheels.GPU_CODE,
                          "comfy_kitchen-0.2.dist-info/licenses/LICENSE"}  # fmt: skip
    assert OLD not in files[wheels.GPU_CODE] and NEW in files[wheels.GPU_CODE]


def test_a_wheel_that_needs_an_installer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"some-1\.0\.data/scripts/some"):
        wheels.opened(wheel(tmp_path, {"some-1.0.data/scripts/some": b""}), ["9.0"])


def test_of_the_pack_sources_and_three_checkpoints() -> None:
    goes = ["__init__.py", "bench/gpu/child.py", "bench/gpu/stage.py", "devtools/children.py",
            "kernels/block_attend.py", "kernels/tuned/sm_90.json", "models/attention/draft.py",
            "training/package.py"]  # fmt: skip
    stays = ["README.md", "bench/results/attention_cpu.json", "bench/gpu/results/h200.json", "tests/conftest.py",
             "checkpoints/diffusion_models/tiny_puppet_i2v.safetensors", "web/docs/some.jpg", "tests/__init__.py",
             "checkpoints/quant_plans/tiny_puppet_t2v.json", "workflows/01_text_to_video.json"]  # fmt: skip
    assert bundle.pack_files([*stays, *goes, *bundle.CHECKPOINTS]) == sorted([*goes, *bundle.CHECKPOINTS])
    assert all((ROOT / name).is_file() for name in bundle.CHECKPOINTS)


def test_a_checkpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="tiny_puppet_vae"):
        bundle.pack_files(bundle.CHECKPOINTS[:2])


def test_of_comfyui_no_tests_vocabularies_or_pictures() -> None:
    goes = ["alembic_db/env.py", "comfy/ldm/cosmos/cosmos_tokenizer/layers3d.py", "comfy/sd.py",
            "comfy/text_encoders/t5_config_xxl.json", "comfy/text_encoders/spiece_tokenizer.py",
            "nodes.py"]  # fmt: skip
    stays = ["tests/test_a.py", "tests-unit/a.py", "comfy/text_encoders/t5_tokenizer/tokenizer.json", "input/a.png",
             "comfy/sd1_tokenizer/vocab.json", "comfy/__pycache__/sd.py", "blueprints/a.json", "openapi.yaml",
             "models/checkpoints/own.safetensors", ".git/a.py", "custom_nodes/theirs/nodes.py"]  # fmt: skip
    assert bundle.host_files([*stays, *goes]) == sorted(goes)


def test_too_large_says_by_how_much_and_of_what() -> None:
    parts = {"site": {"big.so": bytes(3_000_000), "small.py": b"1"}, "pack": {"middle.json": bytes(1_000_000)}}
    assert bundle.why_not_small(parts, 4_000_000, limit_mb=4) is None
    reason = bundle.why_not_small(parts, 4_600_000, limit_mb=4)
    assert "4.6 MB, 0.6 MB more than the 4 MB" in reason
    assert reason.index("site/big.so (3.0 MB") < reason.index("pack/middle.json (1.0 MB")


@pytest.mark.parametrize("machine_code", [True, False])
def test_packed_depends_on_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine_code: bool) -> None:
    monkeypatch.setattr(bundle, "CACHE", tmp_path)
    files = {"b/c.py": b"2", "a.py": b"1"}
    first = bundle.packed(files, machine_code)
    assert bundle.packed(dict(reversed(files.items())), machine_code) == first and len(list(tmp_path.iterdir())) == 1
    with tarfile.open(fileobj=io.BytesIO(first), mode="r:xz") as tar:
        assert {member.name: tar.extractfile(member).read() for member in tar} == files


def test_unpacked_and_run_by_one_command(tmp_path: Path) -> None:
    """run.py on a bundle whose runner only says what it was given."""
    runner = b"import json, os, sys\ndef main():\n    print(json.dumps([sys.argv[1:], os.environ['COMFYUI_PATH'], " \
             b"os.environ['PYTHONPATH'].split(os.pathsep), sys.modules['bench'].__path__]))\n"  # fmt: skip
    pack = {"bench/__init__.py": b"raise SystemExit('it imports torch')", "bench/gpu/__init__.py": b"",
            "bench/gpu/__main__.py": runner}  # fmt: skip
    folder = tmp_path / bundle.FOLDER
    folder.mkdir()
    for name, files in {"pack": pack, "site": {"av.py": b""}, "ComfyUI": {"nodes.py": b""}}.items():
        (folder / f"{name}.tar.xz").write_bytes(lzma.compress(bundle.tar_of(files)))
    (folder / "run.py").write_bytes((ROOT / "bench/gpu/run.py").read_bytes())
    (folder / "site.part").mkdir()  # of a call that was cut short
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COMFYUI_PATH")}
    for _ in range(2):
        done = subprocess.run([sys.executable, folder / "run.py", "--out", "x"], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert json.loads(done.stdout) == [["--out", "x"], str(folder / "ComfyUI"), [str(folder / "site")],
                                           [str(folder / "pack" / "bench")]]  # fmt: skip
    assert (folder / "site" / "av.py").exists() and (folder / "ComfyUI" / "nodes.py").exists()
