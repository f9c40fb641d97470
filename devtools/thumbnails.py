"""Pictures of what the workflows make: the thumbnails of ComfyUI's template browser, and the one in the README.

    python devtools/thumbnails.py      needs COMFYUI_PATH; runs every workflow, then writes workflows/*.jpg and assets/
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
from .prompt import PromptError, run_prompt
from .server import ServerError, server_from_environment

SIDE, SHOWN = 256, 3  # pixels of a frame in a thumbnail, and how many stand side by side
README_PICTURE = ROOT / "assets" / "dense_vs_sparse.jpg"


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


def main() -> int:
    from PIL import Image

    try:
        with server_from_environment() as server:
            for path in workflow_paths():
                run = asyncio.run(run_prompt(server, load(api_path(path)), lambda _: None, workflow=load(path)))
                videos = sorted(file for file in run.files if file.suffix == ".mp4")
                picture = strip(frames_of(videos[0])) if len(videos) == 1 else side_by_side(videos)
                picture.save(path.with_suffix(".jpg"), quality=88)
                print(f"written: {path.with_suffix('.jpg').relative_to(ROOT)}")
                for sheet in (file for file in run.files if file.suffix == ".png"):
                    README_PICTURE.parent.mkdir(exist_ok=True)
                    Image.open(sheet).convert("RGB").save(README_PICTURE, quality=85)
                    print(f"written: {README_PICTURE.relative_to(ROOT)}")
    except (ServerError, PromptError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
