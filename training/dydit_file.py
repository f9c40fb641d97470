"""Writes the router file of the tiny text-to-video model from a training of `training.dydit`.

    python -m training.dydit_file                  # the checkpoint and its card
    python -m training.dydit_file --compare        # error of the averaged and of the last weights

The file holds the routers, the changes of the base's weights as differences under the names of LoRA files, and the
share of tokens that the executor computes at each noise level: what passes the threshold in the clip that needs most,
about 1.5 times the mean. With it the squared distance of the flow to the base is 0.0537, with the mean 0.0575 (after
1000 steps, 56 clips). Differences are whole: cut to rank 64 they raised the error of the flow from 0.369 to 0.401, to
rank 32 to 0.426 (after 380 steps).
"""

# S noise levels

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor

from . import dit, text
from .card import save_checkpoint
from .dydit import CHECKPOINTS, FOLDER, GROUPS, TARGET, Trained, load_file

LEVELS = torch.tensor([0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96, 1.0])
CLIPS = 8  # for each noise level
NAMES = ("attn_rate", "mlp_rate", "token_selection")


def name_in_file(name: str) -> str:
    """blocks.0.ffn.0.bias -> diffusion_model.blocks.0.ffn.0.diff_b"""
    stem, _, last = name.rpartition(".")
    if last not in ("weight", "bias"):
        return f"diffusion_model.{name}.diff"
    return f"diffusion_model.{stem}.{'diff' if last == 'weight' else 'diff_b'}"


def is_router(name: str) -> bool:
    return any(part in name for part in NAMES)


def encoder() -> torch.nn.Module:
    model = text.build().requires_grad_(False)
    words = load_file(CHECKPOINTS / "text_encoders" / "tiny_puppet_umt5.safetensors")
    model.load_state_dict({k: v.float() for k, v in words.items() if k != "spiece_model"})
    return model


@torch.inference_mode()
def measure(weights: dict[str, Tensor], clips: int = CLIPS) -> dict[str, Tensor]:
    """For each noise level: error of the flow, distance to the base, FLOPs share, the most tokens of a clip by block.

    returns: error, distance, ratio [S], tokens [S, blocks]
    """
    both, words = Trained(compiled=False), encoder()
    for name, parameter in both.learned().items():
        parameter.copy_(weights[name])
    data, quiet, rows = dit.Data("t2v", 12345), torch.tensor(0.0), []
    torch.manual_seed(7)
    for sigma in LEVELS:
        video, _, captions = data.batch(clips)
        noise = torch.randn_like(video)
        x, t, context = (1 - sigma) * video + sigma * noise, (sigma * 1000).expand(clips), text.encode(words, captions)
        flow, ratio = both(x, t, context, quiet, torch.zeros(clips))
        base = both.base(x, t, context)
        tokens = torch.stack([block.share.amax() for block in both.model.blocks])
        rows.append(((flow - noise + video).square().mean(), (flow - base).square().mean(), ratio, tokens))
    error, distance, ratio, tokens = (torch.stack(column) for column in zip(*rows, strict=True))
    return {"error": error, "distance": distance, "ratio": ratio, "tokens": tokens}


def compare(saved: dict) -> None:
    for which in ("average", "learned"):
        found = {k: v.mean().item() for k, v in measure(saved[which], 4).items()}
        print(which, "  ".join(f"{k} {v:.4f}" for k, v in found.items()), flush=True)


def export(saved: dict, base: dict[str, Tensor], which: str, note: str) -> None:
    weights = saved[which]
    shares = measure(weights)["tokens"].clamp(1 / 320, 1.0)
    tensors = {name: value for name, value in weights.items() if is_router(name)}
    tensors |= {name_in_file(n): v - base[n] for n, v in weights.items() if not is_router(n)}
    about = {"version": 1, "sigmas": LEVELS.tolist(), "shares": [[round(s, 4) for s in row] for row in shares.tolist()]}
    made = {"what": f"Dynamic routers for tiny_puppet_t2v: heads, {GROUPS} MLP groups, tokens; and differences of the "
                    "base's self attention, MLP and modulation weights",
            "data": "800 Puppet World clips of the prompt language, the latents that the base learned from",
            "loss": f"DyDiT's, FLOPs target {TARGET}, and the distance to the base; see training/dydit.py",
            "steps": saved["step"], "batch": 6, "seconds": round(saved["seconds"]),
            "device": "1 CPU core shared with other work, bfloat16 autocast", "seed": 0, "note": note}  # fmt: skip
    save_checkpoint(tensors, CHECKPOINTS / "dynamic_routers" / "tiny_puppet_t2v.safetensors", torch.float16, made,
                    {"interspatial_dynamic_router": json.dumps(about)})  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--which", choices=("learned", "average"), default="learned")
    parser.add_argument("--note", default="", help="what else the card should say about how it was made")
    args = parser.parse_args()
    state = torch.load(FOLDER / "state.pt", weights_only=True)
    frozen = load_file(CHECKPOINTS / "diffusion_models" / "tiny_puppet_t2v.safetensors")
    frozen = {k: v.float() for k, v in frozen.items()}
    if args.compare:
        compare(state)
    else:
        export(state, frozen, args.which, args.note)
