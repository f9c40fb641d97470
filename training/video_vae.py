"""Trains the tiny video VAE of models/nets on Puppet World: with the image-decoding regulariser, and without it.

    python -m training.video_vae --steps 2400      # both arms in turn; resumes from training/runs/video_vae
    python -m training.video_vae --export window   # writes checkpoints/vae/interspatial_tiny_vae.safetensors

Arms: `plain`, and `window`, whose latent has to let a small picture decoder see each of a window's four frames in four
of its channels (ISA4D, 2505.15800). Both see the same batches, steps and losses but that one. Fast motion: every second
frame of clips of 16 fps, and crops that move along a path of their own. The rest is as in `training.vae`, but a linear
path that starts at the principal components of the data takes the place of taught colour channels.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .package import CHECKPOINTS, RUNS, prepare

prepare(comfy=False)
from interspatial.models.nets.video_vae import CHANNELS, Block, CausalConv, VideoVAE, VideoVAEConfig  # noqa: E402

from . import clips  # noqa: E402
from .card import save_checkpoint  # noqa: E402
from .log import Curve  # noqa: E402
from .muon import Muon  # noqa: E402
from .state import save  # noqa: E402

ARMS = ("plain", "window")
TINY = VideoVAEConfig(widths=(32, 48, 64), encoder_blocks=(1, 2, 1), decoder_blocks=(2, 2, 2))
CROP, FRAMES, BATCH = 48, 9, 4
LATENT_NOISE, ENERGY, CHROMA = 0.08, 5e-4, 3.0
REGULARISER = 0.1  # of the same squared error as the clip's; at 0.2, the paper's for L1, it is the larger part
RATE, MUON_RATE = 1.5e-3, 0.02
LINEAR_RATE = 4e-3  # of a weight's root mean square: Muon's steps would wipe the principal components out
TURN = 100  # steps of one arm before the other has its turn
FOLDER = RUNS / "video_vae"


class PictureDecoder(nn.Module):
    """Four channels of a latent frame to one picture; told which four. Not part of the checkpoint."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.inside = nn.Conv2d(4, width, 3, padding=1)
        self.group = nn.Parameter(torch.zeros(4, width))
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.outside = nn.Conv2d(width, 3 * 64, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """latent: [B, 16, L, h, w] -> [B, L, 4, 3, 8h, 8w], group k being for frame k of the window"""
        groups = latent.transpose(1, 2).unflatten(2, (4, 4))
        x = self.inside(groups.flatten(0, 2)).unflatten(0, groups.shape[:3]) + self.group[:, :, None, None]
        x = self.outside(F.silu(self.middle(F.silu(x).flatten(0, 2))))
        return F.pixel_shuffle(x, 8).unflatten(0, groups.shape[:3])


def windows(video: Tensor) -> Tensor:
    """The four frames of each latent frame; the first is there four times.

    video: [B, 3, T, H, W] -> [B, L, 4, 3, H, W]
    """
    frames = torch.cat([video[:, :, :1].expand(-1, -1, 4, -1, -1), video[:, :, 1:]], 2)
    return frames.transpose(1, 2).unflatten(1, (-1, 4))


def squared(error: Tensor, channel: int) -> Tensor:
    """Mean square, chroma counted more: grey is the best guess for a small coloured figure."""
    chroma = error - error.mean(channel, keepdim=True)
    return error.square().mean() + CHROMA * chroma.square().mean()


class FastCrops:
    """Random crops that move over random clips, those that change most preferred."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.shards = [s for _, s in clips.named_shards("any") + clips.named_shards("suits") * 2]

    def path(self, room: int) -> list[int]:
        """Where the crop's edge is in each frame, pixels: a steady speed and a swing, inside the picture."""
        rng = self.rng
        start, speed = rng.uniform(0, room), rng.choice((0, 1)) * rng.uniform(-4, 4)
        swing, rate, phase = rng.choice((0, 1)) * rng.uniform(0, 8), rng.uniform(0.3, 2), rng.uniform(0, 6.28)
        places = (start + speed * f + swing * math.sin(rate * f + phase) for f in range(FRAMES))
        return [min(room, max(0, round(p))) for p in places]

    def one(self) -> Tensor:
        """returns: [3, T, CROP, CROP] in -1..1"""
        rng = self.rng
        clip = rng.choice(self.shards)
        clip = clip[rng.randrange(len(clip))]
        step = rng.choice((1, 2, 2))
        start = rng.randint(0, len(clip) - step * (FRAMES - 1) - 1)
        best, most = None, -1.0
        for _ in range(3):
            ys, xs = self.path(clip.shape[1] - CROP), self.path(clip.shape[2] - CROP)
            frames = clip[start : start + step * FRAMES : step]
            moved = (f[y : y + CROP, x : x + CROP] for f, y, x in zip(frames, ys, xs, strict=True))
            crop = torch.stack([torch.from_numpy(f.copy()) for f in moved])
            change = crop[1:].float().sub(crop[:-1].float()).abs().mean().item() + 0.1 * crop[0].float().std().item()
            if change > most:
                best, most = crop, change
        if rng.random() < 0.5:
            best = best.flip(2)
        return best.permute(3, 0, 1, 2).float() / 127.5 - 1

    def batch(self, size: int = BATCH) -> Tensor:
        return torch.stack([self.one() for _ in range(size)])


def principal(windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """windows: [N, C] -> mean [C], encoder [16, C] and decoder [C, 16] of the largest principal components

    Scaled to unit variance and turned at random, so that no channel is worth more than another.
    """
    mean = windows.mean(0)
    values, vectors = torch.linalg.eigh((windows - mean).T.cov().double())
    values, vectors = values[-CHANNELS:].float().sqrt(), vectors[:, -CHANNELS:].float()
    turn = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS))[0]
    return mean, turn @ (vectors / values).T, (vectors * values) @ turn.T


@torch.no_grad()
def fit_start(vae: VideoVAE, video: Tensor) -> None:
    """The linear path becomes that of the principal components of `video`; the convolutions make mean 0 and spread 1.

    The last convolution of a block starts at a fifth of that, those of encoder and decoder lower: the net begins as the
    linear path. Without that path 600 steps brought less (24.0 dB on 12 fast clips) than it does alone (25.9).
    """
    into, out_of = vae.linear_encoder, vae.linear_decoder.conv.conv
    x = into.stacked(into.after_past(F.pixel_unshuffle(video.transpose(1, 2), 8), None))
    mean, weight, back = principal(x.permute(0, 1, 3, 4, 2).flatten(0, 3))
    into.conv.weight.copy_(weight[..., None, None])
    into.conv.bias.copy_(-weight @ mean)
    out_of.weight.copy_(back[..., None, None])
    out_of.bias.copy_(mean)
    goals = {m.convs[-1]: 0.2 for m in vae.modules() if isinstance(m, Block)}
    goals |= {vae.encoder[-1]: 0.1, vae.decoder[-1]: 0.02}

    def fit(layer: CausalConv, given: tuple, out: Tensor) -> Tensor:
        goal = goals.get(layer, 1.0)
        spread, mean = out.std((0, 1, 3, 4)).clamp(min=1e-4) / goal, out.mean((0, 1, 3, 4))
        layer.conv.weight.div_(spread.view(-1, 1, 1, 1))
        layer.conv.bias.sub_(mean).div_(spread)
        return (out - mean.view(-1, 1, 1)) / spread.view(-1, 1, 1)

    convs = [m for part in (vae.encoder, vae.decoder) for m in part.modules() if isinstance(m, CausalConv)]
    for layer in convs:
        nn.init.orthogonal_(layer.conv.weight)
        nn.init.zeros_(layer.conv.bias)
    hooks = [layer.register_forward_hook(fit) for layer in convs]
    vae.decode(vae.encode(video))
    for hook in hooks:
        hook.remove()


class Arm:
    """One of the two trainings, with its file."""

    def __init__(self, name: str, device: str):
        torch.manual_seed(0)
        self.name, self.device, self.path = name, device, FOLDER / f"{name}.pt"
        self.vae = VideoVAE(TINY)
        self.picture = PictureDecoder()
        saved = torch.load(self.path, map_location="cpu", weights_only=True) if self.path.exists() else None
        if saved:
            self.vae.load_state_dict(saved["vae"])
            self.picture.load_state_dict(saved["picture"])
        else:
            fit_start(self.vae, FastCrops(-1).batch(64))
        self.step, self.seconds = (saved["step"], saved["seconds"]) if saved else (0, 0.0)
        self.net = nn.ModuleList([self.vae, self.picture]).to(device, memory_format=torch.channels_last)
        self.optimisers = self.make_optimisers()
        for optimiser, part in zip(self.optimisers, saved["optimisers"] if saved else (), strict=False):
            optimiser.load_state_dict(part)
        self.curve = Curve(FOLDER / f"{name}.csv")
        self.run = torch.compile(self.reconstruct)

    def make_optimisers(self) -> list[torch.optim.Optimizer]:
        """Muon for convolutions, AdamW for the rest; the linear path moves by a share of its own size."""
        linear = [self.vae.linear_encoder.conv.weight, self.vae.linear_decoder.conv.conv.weight]
        rest = [p for p in self.net.parameters() if all(p is not q for q in linear)]
        groups = [{"params": [p], "rate": LINEAR_RATE * p.detach().square().mean().sqrt().item()} for p in linear]
        groups.append({"params": [p for p in rest if p.ndim < 4], "rate": RATE})
        muon = Muon([{"params": [p for p in rest if p.ndim == 4], "rate": MUON_RATE}], MUON_RATE)
        return [muon, torch.optim.AdamW(groups, RATE, betas=(0.9, 0.98), weight_decay=0.0)]

    def reconstruct(self, video: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.vae.encode(video)
        return self.vae.decode(mean + LATENT_NOISE * noise), mean

    def loss(self, video: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and what the curve shows."""
        noise = torch.randn(len(video), CHANNELS, (FRAMES + 3) // 4, CROP // 8, CROP // 8).to(video)
        with torch.autocast(video.device.type, torch.bfloat16):
            out, mean = self.run(video, noise)
        error, mean = out.float() - video, mean.float()
        loss = squared(error, 1) + 0.02 * error.abs().mean() + ENERGY * mean.square().mean()
        shown = {"psnr": -10 * math.log10(error.square().mean().item() / 4), "energy": mean.square().mean().item()}
        if self.name == "window":
            pictures = self.picture(mean + LATENT_NOISE * noise) - windows(video)
            loss = loss + REGULARISER * squared(pictures, 3)
            shown["pictures"] = -10 * math.log10(pictures.square().mean().item() / 4)
        return loss, shown

    def turn(self, batches: list[Tensor], total: int) -> None:
        """One step for each batch, then the file."""
        mark = time.process_time()
        for video in batches:
            pace = min(1, (self.step + 1) / 50) * (0.02 + 0.98 * min(1, 1.6 * (1 - self.step / total)))
            for group in (g for optimiser in self.optimisers for g in optimiser.param_groups):
                group["lr"] = group["rate"] * pace
            loss, shown = self.loss(video.to(self.device))
            self.net.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            for optimiser in self.optimisers:
                optimiser.step()
            self.step += 1
            if self.step % 25 == 0:
                self.curve.add(step=self.step, loss=loss.item(), **shown,
                               seconds=self.seconds + time.process_time() - mark)  # fmt: skip
        self.seconds += time.process_time() - mark
        save({"vae": self.vae.state_dict(), "picture": self.picture.state_dict(), "step": self.step,
              "optimisers": [o.state_dict() for o in self.optimisers], "seconds": self.seconds}, self.path)  # fmt: skip


def train(total: int, device: str) -> None:
    """Both arms in turn, on the same batches."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    arms = [Arm(name, device) for name in ARMS]
    while (step := min(arm.step for arm in arms)) < total:
        data = FastCrops(step)
        batches = [data.batch() for _ in range(min(TURN, total - step))]
        for arm in arms:
            if arm.step == step:
                torch.manual_seed(step)
                arm.turn(batches, total)


def load(name: str) -> tuple[VideoVAE, dict]:
    """An arm as it is, and its file."""
    saved = torch.load(FOLDER / f"{name}.pt", map_location="cpu", weights_only=True)
    (vae := VideoVAE(TINY)).load_state_dict(saved["vae"])
    return vae.eval(), saved


@torch.no_grad()
def normalised(vae: VideoVAE) -> tuple[Tensor, Tensor]:
    """Fold the latents' mean and spread into the convolutions on both sides, so that latents have mean 0, spread 1.

    returns: mean and spread before, [16] each
    """
    shards = [s for _, s in clips.named_shards("any")]
    sample = torch.stack([torch.from_numpy(shards[i % len(shards)][i].copy()) for i in range(48)])
    latents = torch.cat([vae.encode(c[None].permute(0, 4, 1, 2, 3).float() / 127.5 - 1) for c in sample])
    mean, spread = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    for into in (vae.encoder[-1].conv, vae.linear_encoder.conv):  # their outputs are added
        into.weight.div_(spread.view(-1, 1, 1, 1))
        into.bias.div_(spread)
    into.bias.sub_(mean / spread)
    for out_of in (vae.decoder[0].conv, vae.linear_decoder.conv.conv):
        out_of.bias.add_(out_of.weight[:, :, 0, 0] @ mean)
        out_of.weight.mul_(spread.view(1, -1, 1, 1))
    return mean, spread


def export(name: str, path: Path, note: str = "") -> None:
    vae, saved = load(name)
    mean, spread = normalised(vae)
    penalty = f" + {REGULARISER} of the pictures of four channels each" if name == "window" else ""
    save_checkpoint(vae.state_dict(), path, torch.float16, {
        "what": "Causal video VAE of this pack (models/nets/video_vae.py), 16 latent channels, 8x space, 4x time",
        "data": f"Puppet World clips, 17 frames of 128x128 at 16 fps; every second frame in two of three batches; "
                f"{BATCH} moving crops of {CROP}x{CROP}, {FRAMES} frames",
        "loss": f"MSE + {CHROMA} chroma MSE + 0.02 L1 + {ENERGY} latent energy{penalty}, latent noise {LATENT_NOISE}",
        "optimiser": "Muon", "steps": saved["step"], "seconds": f"{saved['seconds']:.0f}", "device": "1 CPU core",
        "seed": 0, "note": note,
        "latent_mean": [round(v, 4) for v in mean.tolist()], "latent_std": [round(v, 4) for v in spread.tolist()],
    }, {"config": vae.config.to_json()})  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2400, help="of each arm")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--export", choices=ARMS, help="write this arm's checkpoint; do not train")
    parser.add_argument("--note", default="", help="what else the card should say about how it was made")
    args = parser.parse_args()
    if args.export:
        export(args.export, CHECKPOINTS / "vae" / "interspatial_tiny_vae.safetensors", args.note)
    else:
        train(args.steps, args.device)
