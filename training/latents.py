"""Encodes the rendered clips with the tiny VAE: what the diffusion models train on.

    python -m training.latents --shards 24 --image
        # --image: also each clip's first-frame conditioning, for image-to-video

Latents are stored in core's normalised space (Wan21 process_in): a float16 tensor [clips, 16, 5, 16, 16] per shard.
"""

from __future__ import annotations

import argparse

import torch

from .package import CHECKPOINTS, RUNS, prepare

prepare()
from comfy.latent_formats import Wan21  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from . import clips, vae, vae_parallel  # noqa: E402
from .state import save  # noqa: E402

FOLDER = RUNS / "latents"


def load_vae() -> torch.nn.Module:
    model = vae.build().requires_grad_(False)
    model.load_state_dict(
        {k: v.float() for k, v in load_file(CHECKPOINTS / "vae" / "tiny_puppet_vae.safetensors").items()}
    )
    return model


@torch.inference_mode()
def encode_shard(model: torch.nn.Module, shard, image: bool) -> torch.Tensor:
    out = []
    for start in range(0, len(shard), 4):
        video = torch.from_numpy(shard[start : start + 4].copy()).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        if image:
            video[:, :, 1:] = 0.0  # WanImageToVideo fills the unknown frames with mid grey
        with torch.autocast("cpu", torch.bfloat16):
            mean, _ = vae_parallel.encode(model, video)
        out.append(Wan21().process_in(mean.float()).half())
    return torch.cat(out)


def load(kind: str = "prompts") -> tuple[torch.Tensor, torch.Tensor | None, list[str]]:
    """All encoded shards. returns: latents [N, 16, T, h, w], image conditioning or None, captions"""
    names = sorted(p.stem for p in FOLDER.glob(f"{kind}-???.pt"))
    videos = torch.cat([torch.load(FOLDER / f"{n}.pt", weights_only=True) for n in names])
    images = [FOLDER / f"{n}-image.pt" for n in names]
    captions = [c for n in names for c in clips.captions(n)]
    first = (
        torch.cat([torch.load(p, weights_only=True) for p in images if p.exists()])
        if any(p.exists() for p in images)
        else None
    )
    return videos, first, captions


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--from-shard", type=int, default=0)
    parser.add_argument("--image", action="store_true")
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    model = load_vae()
    for name, shard in clips.named_shards("prompts")[args.from_shard : args.shards]:
        path = FOLDER / (f"{name}-image.pt" if args.image else f"{name}.pt")
        if not path.exists():
            save(encode_shard(model, shard, args.image), path)
            print(path.name, flush=True)
