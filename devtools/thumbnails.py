"""Pictures of what the workflows make: the thumbnails of ComfyUI's template browser, those in README and help pages.

    python devtools/thumbnails.py [03 05]      needs COMFYUI_PATH; runs the workflows of these numbers, or all, then
                                               writes workflows/*.jpg and the pictures that they save
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

if not __package__:  # started as a file; relative imports need to know their package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "devtools"

from . import ROOT
from .convert import api_path, load, workflow_paths
from .prompt import PromptError, Run, run_prompt
from .server import Server, ServerError, server_from_environment

SIDE, SHOWN = 256, 3  # pixels of a frame in a thumbnail, and how many stand side by side
DOCS = ROOT / "web" / "docs"
PICTURES = {  # by the filename prefix of the node that saves it
    "sparse_vs_dense": ROOT / "assets" / "dense_vs_sparse.jpg",
    "attention_error": DOCS / "attention_error.jpg",
    "attention_looks": DOCS / "attention_looks.jpg",
    "sparse_pattern": DOCS / "sparse_pattern.jpg",
    "error_target": DOCS / "error_target.jpg",
    "cache_plan": DOCS / "cache_plan.jpg",
    "step_cache": DOCS / "step_cache.jpg",
    "precision_plan": DOCS / "precision_plan.jpg",
    "quantised_2bit": DOCS / "quantize_model.jpg",
    "control_followed": DOCS / "body_control.jpg",
    "viewer": DOCS / "interspatial_viewer.jpg",
    "interspatial_model": DOCS / "interspatial_model.jpg",
}


def frames_of(video: Path) -> list:
    """PIL pictures of the first, middle and last frames."""
    import av

    with av.open(str(video)) as container:
        pictures = [frame.to_image() for frame in container.decode(video=0)]
    return [pictures[round(i * (len(pictures) - 1) / (SHOWN - 1))] for i in range(SHOWN)]


def strip(pictures: list):
    from PIL import Image

    sheet = Image.new("RGB", (SIDE * len(pictures), SIDE))
    for i, picture in enumerate(pictures):
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (i * SIDE, 0))
    return sheet


def side_by_side(videos: list[Path]):
    """The middle frames of several videos."""
    return strip([frames_of(video)[1] for video in videos])


def write_pictures(path: Path, run: Run) -> None:
    """The thumbnail of the workflow at `path`, and the pictures that its run has saved."""
    from PIL import Image

    videos = sorted(file for file in run.files if file.suffix == ".mp4")
    made = {path.with_suffix(".jpg"): strip(frames_of(videos[0])) if len(videos) == 1 else side_by_side(videos)}
    for sheet in (file for file in run.files if file.suffix == ".png"):
        if target := PICTURES.get(sheet.stem.rstrip("_0123456789")):
            made[target] = Image.open(sheet).convert("RGB")
    for target, picture in made.items():
        target.parent.mkdir(exist_ok=True)
        picture.save(target, quality=88)
        print(f"written: {target.relative_to(ROOT)}")


def picture_all(server: Server, numbers: list[str]) -> None:
    for path in workflow_paths():
        if not numbers or path.name[:2] in numbers:
            write_pictures(path, asyncio.run(run_prompt(server, load(api_path(path)), workflow=load(path))))


def main(numbers: list[str]) -> int:
    try:
        with server_from_environment() as server:
            picture_all(server, numbers)
    except (ServerError, PromptError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
