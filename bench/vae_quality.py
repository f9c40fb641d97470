"""PSNR of the tiny VAE on 64 held-out clips, through core's own VAE object; and by place in the 4-frame window.

    python -m bench.vae_quality

Held out: prompts that no training clip shows, and scenes from seeds that training never drew. 17 frames of 128x128.
"""

from __future__ import annotations

import random
import sys

import torch
from interspatial.models.puppet import scene, world

from .inprocess import FPS, LENGTH, SIZE, psnr, vae


def clips() -> list[tuple[str, torch.Tensor]]:
    """(kind, [F, H, W, 3]) of 32 held-out prompts and 32 unseen general scenes."""
    _, held_out = scene.split_prompts()
    specs = [("prompt", held_out[i].scene(random.Random(f"vae-{i}"))) for i in range(32)]
    specs += [("any", scene.random_scene((1 << 30) + i)) for i in range(32)]  # training draws below 2^30
    return [(kind, world.pose_scene(spec, LENGTH, SIZE, SIZE, FPS).rgb) for kind, spec in specs]


@torch.inference_mode()
def main() -> None:
    coder, rows, places = vae(), {"prompt": [], "any": []}, [[] for _ in range(5)]
    for kind, clip in clips():
        back = coder.decode(coder.encode(clip))[0].float().clamp(0, 1)
        rows[kind].append(psnr(back, clip))
        for f in range(LENGTH):
            places[0 if f == 0 else 1 + (f - 1) % 4].append(float((back[f] - clip[f]).square().mean()))
    every = rows["prompt"] + rows["any"]
    print(f"64 clips: {sum(every) / 64:.2f} dB mean, {min(every):.2f} worst; "
          f"prompt scenes {sum(rows['prompt']) / 32:.2f}, general scenes {sum(rows['any']) / 32:.2f}")  # fmt: skip
    names = ("first frame", "1st of 4", "2nd of 4", "3rd of 4", "4th of 4")
    for name, errors in zip(names, places, strict=True):
        print(f"  {name}: {-10 * torch.tensor(errors).mean().log10():.2f} dB")


if __name__ == "__main__":
    sys.exit(main())
