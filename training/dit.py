"""Trains the tiny video diffusion models: ComfyUI's Wan 2.1 transformer class, on latents of the tiny VAE.

    python -m training.dit t2v --minutes 50        # text to video, together with its text encoder
    python -m training.dit i2v --minutes 25        # image to video: starts from the text-to-video weights
    python -m training.dit t2v --export            # writes the checkpoints and their cards

Rectified flow as core samples it: x_s = (1 - s) x + s noise, the model predicts noise - x. Noise levels are uniform,
then shifted (Esser et al., 2024, section 5.3.2) by SHIFT, the same shift the workflows sample with. Text is dropped in
one of ten clips for guidance. What is exported is an exponential moving average of the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import torch

from .package import CHECKPOINTS, RUNS, prepare

prepare()
from comfy.ldm.wan.model import WanModel  # noqa: E402

from . import latents, text  # noqa: E402
from .card import save_checkpoint  # noqa: E402
from .log import Curve  # noqa: E402
from .muon import Muon  # noqa: E402
from .state import save  # noqa: E402

SHAPE = {"dim": 256, "ffn_dim": 1024, "num_layers": 6}
SHIFT, DROP, KEEP = 3.0, 0.1, 0.999
TEXT_STEPS = 1200  # the text encoder learns this long; then image to video can start, which shares it
RATE, MUON_RATE = {"t2v": 1e-3, "i2v": 6e-4}, {"t2v": 0.02, "i2v": 0.01}
EXTRA_CHANNELS = {"t2v": 0, "i2v": 20}  # four mask channels and the image's sixteen


def build(kind: str) -> WanModel:
    channels = 16 + EXTRA_CHANNELS[kind]
    model = WanModel(model_type="t2v", num_heads=SHAPE["dim"] // 128, in_dim=channels, out_dim=16,
                     text_dim=text.CONFIG["d_model"], freq_dim=256, dtype=torch.float32, device="cpu",
                     operations=torch.nn, **SHAPE)  # fmt: skip
    for name, p in model.named_parameters():
        if name.endswith("modulation"):
            torch.nn.init.normal_(p, 0, SHAPE["dim"] ** -0.5)
        elif name.startswith("head.head") or name.endswith("bias"):
            torch.nn.init.zeros_(p)
        elif p.ndim > 1:
            torch.nn.init.xavier_uniform_(p.flatten(1) if p.ndim > 2 else p)
        else:
            torch.nn.init.ones_(p)
    return model


class Data:
    """Batches of clips from memory; new shards are picked up as they are encoded."""

    def __init__(self, kind: str, seed: int):
        self.kind = kind
        self.generator = torch.Generator().manual_seed(seed)
        self.refresh()

    def refresh(self) -> None:
        self.videos, self.images, self.captions = latents.load()
        if self.kind == "i2v":
            self.videos, self.captions = self.videos[: len(self.images)], self.captions[: len(self.images)]

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor | None, list[str]]:
        pick = torch.randint(len(self.videos), (size,), generator=self.generator)
        dropped = torch.rand(size, generator=self.generator) < DROP
        captions = ["" if d else self.captions[i] for i, d in zip(pick.tolist(), dropped.tolist(), strict=True)]
        condition = None
        if self.kind == "i2v":
            image = self.images[pick].float()
            known = torch.zeros_like(image[:, :4])
            known[:, :, 0] = 1.0
            condition = torch.cat([known, image], 1)
        return self.videos[pick].float(), condition, captions


def train(kind: str, minutes: float, batch: int, total: int, device: str) -> None:
    folder = RUNS / kind
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, encoder = build(kind).to(device), text.build().to(device)
    if kind == "i2v":
        _start_from_text_model(model, encoder)
    learned = torch.nn.ModuleDict({"model": model, "encoder": encoder.requires_grad_(kind == "t2v")})
    average = {k: v.clone() for k, v in learned.state_dict().items()}
    matrices = [p for n, p in model.blocks.named_parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in learned.parameters() if p.requires_grad and id(p) not in chosen]
    optimisers = [
        Muon(matrices, MUON_RATE[kind], 0.95, 0.1),
        torch.optim.AdamW(others, RATE[kind], betas=(0.9, 0.98), weight_decay=0.01),
    ]
    step, spent, state = 0, 0.0, folder / "state.pt"
    if state.exists():
        saved = torch.load(state, map_location=device, weights_only=True)
        learned.load_state_dict(saved["learned"])
        for optimiser, part in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(part)
        average, step, spent = saved["average"], saved["step"], saved["seconds"]
    for block in model.blocks:
        block.compile()  # two thirds of a step are small operations that it fuses
    data, curve, recent = Data(kind, step), Curve(folder / "curve.csv"), []
    began, mark = time.time(), time.time()
    while step < total and time.time() - began < 60 * minutes:
        pace = min(1, (step + 1) / 100) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / total)))
        for optimiser, rate in zip(optimisers, (MUON_RATE[kind], RATE[kind]), strict=True):
            optimiser.param_groups[0]["lr"] = rate * pace
        if step >= TEXT_STEPS:
            encoder.requires_grad_(False)
        video, condition, captions = data.batch(batch)
        u = (torch.arange(batch) + torch.rand(batch)) / batch  # one noise level from each of `batch` equal slices
        sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
        noise, s = torch.randn_like(video), sigma.view(-1, 1, 1, 1, 1)
        x = (1 - s) * video + s * noise
        x = x if condition is None else torch.cat([x, condition], 1)
        with torch.autocast(device, torch.bfloat16):
            context = text.encode(encoder, captions)
            flow = model(x.to(device), (sigma * 1000).to(device), context)
        loss = (flow.float() - (noise - video).to(device)).square().mean()
        learned.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        keep = min(KEEP, step / (step + 20))
        for k, v in learned.state_dict().items():
            average[k].lerp_(v, 1 - keep)
        recent.append(loss.item())
        if step % 50 == 0:
            curve.add(step=step, loss=sum(recent) / len(recent), seconds=spent + time.time() - mark)
            recent.clear()
        if step % 250 == 0 or step == total:
            spent, mark = spent + time.time() - mark, time.time()
            save(
                {
                    "learned": learned.state_dict(),
                    "optimisers": [o.state_dict() for o in optimisers],
                    "average": average,
                    "device": device,
                    "step": step,
                    "seconds": spent,
                },
                state,
            )
            data.refresh()


def _start_from_text_model(model: WanModel, encoder: torch.nn.Module) -> None:
    saved = torch.load(RUNS / "t2v" / "state.pt", map_location="cpu", weights_only=True)
    if saved["step"] < TEXT_STEPS:
        raise SystemExit(
            f"Image to video starts when text to video has done {TEXT_STEPS} steps; it has done {saved['step']}."
        )
    weights = part_of(saved["average"], "model")
    wide = torch.zeros_like(model.patch_embedding.weight)
    wide[:, :16] = weights["patch_embedding.weight"]
    model.load_state_dict({**weights, "patch_embedding.weight": wide})
    encoder.load_state_dict(part_of(saved["learned"], "encoder"))


def part_of(state: dict, name: str) -> dict:
    """The entries of one of the learned modules, "model" or "encoder"."""
    return {k[len(name) + 1 :]: v for k, v in state.items() if k.startswith(name + ".")}


def export(kind: str, note: str = "") -> None:
    saved = torch.load(RUNS / kind / "state.pt", map_location="cpu", weights_only=True)
    weights = part_of(saved["average"], "model")
    videos, images, _ = latents.load()
    clips = len(videos if kind == "t2v" else images)
    made = {"data": f"{clips} Puppet World clips of the prompt language (192 training prompts), "
                    "17 frames of 128x128 at 16 fps",
            "loss": f"rectified flow, shift {SHIFT}, text dropped in {DROP:.0%} of the clips, "
                    f"weights averaged with {KEEP}",
            "steps": saved["step"], "batch": 8, "seconds": round(saved["seconds"]),
            "device": f"{saved.get('device', '1 CPU core')}, bfloat16 autocast", "seed": 0, "note": note}  # fmt: skip
    what = {"t2v": "Text-to-video", "i2v": "Image-to-video (36 input channels, no image encoder)"}[kind]
    save_checkpoint(weights, CHECKPOINTS / "diffusion_models" / f"tiny_puppet_{kind}.safetensors", torch.float16,
                    {"what": f"{what} diffusion transformer, ComfyUI's Wan 2.1 class, {SHAPE}", **made},
                    {"config": json.dumps({"transformer": {"text_dim": text.CONFIG["d_model"]}})})  # fmt: skip
    if kind == "t2v":
        words = part_of(saved["learned"], "encoder")
        config = {**text.CONFIG, "vocab_size": words["shared.weight"].shape[0]}
        words["spiece_model"] = torch.frombuffer(bytearray(text.vocabulary()), dtype=torch.uint8)
        save_checkpoint(words, CHECKPOINTS / "text_encoders" / "tiny_puppet_umt5.safetensors", torch.float16,
                        {"what": "Text encoder, ComfyUI's UMT5 class, own vocabulary, trained together with the "
                                 "text-to-video model", **made},
                        {"interspatial_text_encoder": json.dumps({"config": config,
                                                                  "tokens": text.TOKENS})})  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("t2v", "i2v"))
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--note", default="", help="what else the card should say about how it was made")
    args = parser.parse_args()
    if not args.export:
        train(args.kind, args.minutes, args.batch, args.steps, args.device)
    export(args.kind, args.note)
