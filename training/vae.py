"""Trains the tiny video VAE: ComfyUI's Wan VAE class at a small base width, on Puppet World.

    python -m training.vae --minutes 30            # resumes from training/runs/vae/state.pt when it is there
    python -m training.vae --decoder --steps 1500  # then the decoder alone: latents stay valid
    python -m training.vae --export                # writes checkpoints/vae/tiny_puppet_vae.safetensors and its card

Loss: squared error, chroma counted more, in -1..1 on 9-frame crops (L1 alone leaves small coloured figures grey,
because grey is the median), plus a penalty on the latents' energy while fixed noise is added to them: the posterior's
width is a constant, which keeps the latents smooth enough for a small diffusion model. At export the latents'
per-channel mean and spread are folded into the 1x1x1 convolutions on both sides of the bottleneck, so that core's Wan
2.1 latent format, whose constants belong to another VAE, normalises them to zero mean and unit variance.
"""

from __future__ import annotations

import argparse
import math
import random
import time

import torch
import torch.nn.functional as F

from .package import CHECKPOINTS, RUNS, prepare

prepare()
from comfy.ldm.wan.vae import WanVAE  # noqa: E402

from . import clips, vae_parallel  # noqa: E402
from .card import save_checkpoint  # noqa: E402
from .log import Curve  # noqa: E402
from .muon import Muon  # noqa: E402
from .state import save  # noqa: E402

DIM, LATENT_NOISE, ENERGY = 8, 0.15, 5e-4
TAUGHT = 0.3  # weight of the three taught latent channels
CROP, FRAMES = 64, 9
REFINE_CROP, REFINE_BATCH, REFINE_NOISE = 48, 8, 0.08
RATE, MUON_RATE = 1.5e-3, 0.02
CHROMA = 3.0  # colour is a small part of a pixel's energy and most of what a prompt asks for
FOLDER = RUNS / "vae"


def build() -> WanVAE:
    """The architecture that core's loader infers from the weights."""
    vae = WanVAE(dim=DIM, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
                 temperal_downsample=[False, True, True], image_channels=3, conv_out_channels=3,
                 dropout=0.0)  # fmt: skip
    for name, p in vae.named_parameters():
        if p.ndim > 1 and not name.endswith("gamma"):
            torch.nn.init.orthogonal_(p)
            if "proj" in name:
                p.data.mul_(0.1)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(p)
        else:
            torch.nn.init.ones_(p)
    return vae


@torch.no_grad()
def fit_start(vae: WanVAE, video: torch.Tensor) -> None:
    """Scale and shift every convolution so that each channel it makes has mean 0 and spread 1 on `video`.

    Without it the grey of the background grows from layer to layer, the norms divide by it, and colours are not
    learned.
    The last convolution of a residual block starts at a fifth of that, so that blocks begin close to the identity.
    """
    plain = vae_parallel.convolve
    last = {id(m.residual[6]) for m in vae.modules() if hasattr(m, "residual")}

    def fitted(conv, x, weight, **how):
        out = plain(conv, x, weight, **how)
        goal = 0.2 if id(conv) in last else 1.0
        spread, mean = out.std((0, 2, 3)).clamp(min=1e-4) / goal, out.mean((0, 2, 3))
        conv.weight.div_(spread.view(-1, *[1] * (conv.weight.ndim - 1)))
        conv.bias.sub_(mean).div_(spread)
        return (out - mean.view(1, -1, 1, 1)) / spread.view(1, -1, 1, 1)

    vae_parallel.convolve = fitted
    try:
        mean, _ = vae_parallel.encode(vae, video)
        vae_parallel.decode(vae, mean)
    finally:
        vae_parallel.convolve = plain
    vae.decoder.head[2].weight.mul_(0.4)  # pictures are greyer than noise
    vae.decoder.head[2].bias.copy_(video.mean((0, 2, 3, 4)))


class Crops:
    """Random crops of random clips, those that move preferred."""

    def __init__(self, seed: int, side: int):
        self.rng, self.side = random.Random(seed), side
        self.shards = [s for _, s in clips.named_shards("any") + clips.named_shards("prompts")[:4]]

    def one(self) -> torch.Tensor:
        """returns: [3, T, side, side] in -1..1"""
        shard = self.rng.choice(self.shards)
        clip = shard[self.rng.randrange(len(shard))]
        start = self.rng.randint(0, clip.shape[0] - FRAMES)
        best, most = None, -1.0
        for _ in range(3):
            y, x = self.rng.randint(0, clip.shape[1] - self.side), self.rng.randint(0, clip.shape[2] - self.side)
            crop = torch.from_numpy(clip[start : start + FRAMES, y : y + self.side, x : x + self.side].copy())
            motion = (crop[0].float() - crop[-1].float()).abs().mean().item() + 0.1 * crop[0].float().std().item()
            if motion > most:
                best, most = crop, motion
        if self.rng.random() < 0.5:
            best = best.flip(2)
        return best.permute(3, 0, 1, 2).float() / 127.5 - 1

    def batch(self, size: int) -> torch.Tensor:
        return torch.stack([self.one() for _ in range(size)])


def cell_colours(video: torch.Tensor) -> torch.Tensor:
    """What the first three latent channels are taught to hold: brightness, red-green and blue-green of their cell.

    Left alone the network finds shapes in a hundred steps and colours only after thousands: puppets cover little of a
    picture, and grey is right elsewhere.
    video: [B, 3, T, H, W] in -1..1 -> [B, 3, (T + 3) / 4, H / 8, W / 8], of about unit spread on puppets
    """
    cells = torch.cat([F.avg_pool3d(video[:, :, :1], (1, 8, 8)), F.avg_pool3d(video[:, :, 1:], (4, 8, 8))], 2)
    red, green, blue = cells.unbind(1)
    return torch.stack([2 * (red + green + blue) / 3 - 0.6, 4 * (red - green), 4 * (blue - green)], 1)


def train(minutes: float, batch: int, total: int, device: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    vae = build().to(device)
    matrices = [p for n, p in vae.named_parameters() if p.ndim > 1 and not n.endswith("gamma")]
    vectors = [p for n, p in vae.named_parameters() if p.ndim <= 1 or n.endswith("gamma")]
    optimisers = [Muon(matrices, MUON_RATE), torch.optim.AdamW(vectors, RATE, betas=(0.9, 0.98), weight_decay=0.0)]
    step, spent = 0, 0.0
    state = FOLDER / "state.pt"
    if state.exists():
        saved = torch.load(state, map_location=device, weights_only=True)
        vae.load_state_dict(saved["model"])
        for optimiser, part in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(part)
        step, spent = saved["step"], saved["seconds"]
    data, curve = Crops(step, CROP), Curve(FOLDER / "curve.csv")
    if step == 0:
        fit_start(vae, data.batch(8).to(device))

    def reconstruct(video: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, _ = vae_parallel.encode(vae, video)
        return vae_parallel.decode(vae, mean + LATENT_NOISE * noise), mean

    run = torch.compile(reconstruct)
    began, mark = time.time(), time.time()
    while step < total and time.time() - began < 60 * minutes:
        pace = min(1, (step + 1) / 50) * (0.02 + 0.98 * min(1, 1.6 * (1 - step / total)))
        for optimiser, rate in zip(optimisers, (MUON_RATE, RATE), strict=True):
            optimiser.param_groups[0]["lr"] = rate * pace
        video = data.batch(batch).to(device)
        noise = torch.randn(batch, 16, (FRAMES + 3) // 4, CROP // 8, CROP // 8, device=device)
        out, mean = run(video, noise)
        error = out - video
        mse = error.square().mean()
        chroma = error - error.mean(1, keepdim=True)
        loss = mse + CHROMA * chroma.square().mean() + 0.02 * error.abs().mean() + ENERGY * mean.square().mean()
        loss = loss + TAUGHT * (mean[:, :3] - cell_colours(video)).square().mean()
        vae.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        if step % 25 == 0:
            curve.add(step=step, loss=loss.item(), psnr=-10 * math.log10(mse.item() / 4),
                      energy=mean.square().mean().item(), seconds=spent + time.time() - mark)  # fmt: skip
        if step % 200 == 0 or step == total:
            spent, mark = spent + time.time() - mark, time.time()
            save(
                {
                    "model": vae.state_dict(),
                    "optimisers": [o.state_dict() for o in optimisers],
                    "step": step,
                    "seconds": spent,
                    "device": device,
                },
                state,
            )


def refine_decoder(minutes: float, total: int, device: str) -> None:
    """Train the decoder on, the encoder as it is: diffusion models may be trained on its latents at the same time."""
    torch.manual_seed(1)
    vae = build().to(device)
    vae.load_state_dict(torch.load(FOLDER / "state.pt", map_location=device, weights_only=True)["model"])
    learned = torch.nn.ModuleList([vae.conv2, vae.decoder])
    matrices = [p for n, p in learned.named_parameters() if p.ndim > 1 and not n.endswith("gamma")]
    vectors = [p for n, p in learned.named_parameters() if p.ndim <= 1 or n.endswith("gamma")]
    optimisers = [Muon(matrices, MUON_RATE), torch.optim.AdamW(vectors, RATE, betas=(0.9, 0.98), weight_decay=0.0)]
    step, spent, state = 0, 0.0, FOLDER / "decoder.pt"
    if state.exists():
        saved = torch.load(state, map_location=device, weights_only=True)
        vae.load_state_dict(saved["model"])
        step, spent = saved["step"], saved["seconds"]
        for optimiser, part in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(part)
    data, curve = Crops(1_000_000 + step, REFINE_CROP), Curve(FOLDER / "decoder.csv")
    run = torch.compile(lambda latent: vae_parallel.decode(vae, latent))
    began, mark = time.time(), time.time()
    while step < total and time.time() - began < 60 * minutes:
        pace = 0.6 * min(1, (step + 1) / 50) * (0.02 + 0.98 * min(1, 2 * (1 - step / total)))
        for optimiser, rate in zip(optimisers, (MUON_RATE, RATE), strict=True):
            optimiser.param_groups[0]["lr"] = rate * pace
        video = data.batch(REFINE_BATCH).to(device)
        with torch.no_grad():
            latent = vae_parallel.encode(vae, video)[0]
            latent = latent + REFINE_NOISE * torch.randn_like(latent)
        error = run(latent) - video
        mse = error.square().mean()
        loss = mse + (error - error.mean(1, keepdim=True)).square().mean() + 0.02 * error.abs().mean()
        vae.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        if step % 25 == 0:
            curve.add(
                step=step, loss=loss.item(), psnr=-10 * math.log10(mse.item() / 4), seconds=spent + time.time() - mark
            )
        if step % 100 == 0 or step == total:
            spent, mark = spent + time.time() - mark, time.time()
            save(
                {
                    "model": vae.state_dict(),
                    "optimisers": [o.state_dict() for o in optimisers],
                    "step": step,
                    "seconds": spent,
                },
                state,
            )


@torch.no_grad()
def export(note: str = "") -> None:
    """Fold the latents' statistics in, save in the layout that core's VAELoader reads."""
    from comfy.latent_formats import Wan21

    saved = torch.load(FOLDER / "state.pt", map_location="cpu", weights_only=True)
    refined = FOLDER / "decoder.pt"
    best = (
        torch.load(refined, map_location="cpu", weights_only=True)
        if refined.exists()
        else {**saved, "step": 0, "seconds": 0.0}
    )
    vae = build()
    vae.load_state_dict(best["model"])
    shards = [s for _, s in clips.named_shards("prompts")]
    sample = torch.stack(
        [torch.from_numpy(shards[i % len(shards)][i].copy()) for i in range(64)]
    ).permute(0, 4, 1, 2, 3).float() / 127.5 - 1  # fmt: skip
    latents = torch.cat([vae_parallel.encode(vae, c[None])[0] for c in sample])
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    target = Wan21()
    goal_mean, goal_std = target.latents_mean.flatten(), target.latents_std.flatten()
    gain = goal_std / std
    shift = goal_mean - gain * mean
    vae.conv1.weight[:16].mul_(gain.view(-1, 1, 1, 1, 1))
    vae.conv1.bias[:16].mul_(gain).add_(shift)
    vae.conv1.weight[16:].zero_()
    vae.conv1.bias[16:].fill_(2 * math.log(LATENT_NOISE))
    vae.conv2.bias.sub_(vae.conv2.weight[:, :, 0, 0, 0] @ (shift / gain))
    vae.conv2.weight.div_(gain.view(1, -1, 1, 1, 1))
    print("latent spread per channel before folding:", [round(s, 3) for s in std.tolist()])
    save_checkpoint(vae.state_dict(), CHECKPOINTS / "vae" / "tiny_puppet_vae.safetensors", torch.float16, {
        "what": "Video VAE, ComfyUI's Wan VAE class, base width 8, 16 latent channels, 8x space, 4x time",
        "data": "Puppet World clips, 17 frames of 128x128 at 16 fps, 64x64 crops of 9 frames",
        "loss": f"MSE + {CHROMA} chroma MSE + 0.02 L1 + {ENERGY} latent energy + {TAUGHT} taught colour channels, "
                f"latent noise {LATENT_NOISE}", "optimiser": "Muon",
        "steps": f"{saved['step']}, then {best['step']} of the decoder alone",
        "seconds": f"{saved['seconds']:.0f}, then {best['seconds']:.0f}", "device": saved.get("device", "1 CPU core"),
        "seed": 0, "note": note,
        "latent_mean": [round(v, 4) for v in mean.tolist()], "latent_std": [round(v, 4) for v in std.tolist()],
    })  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--decoder", action="store_true", help="train the decoder on; the encoder stays")
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--note", default="", help="what else the card should say about how it was made")
    args = parser.parse_args()
    if args.decoder:
        refine_decoder(args.minutes, args.steps, args.device)
    elif not args.export:
        train(args.minutes, args.batch, args.steps, args.device)
    export(args.note)
