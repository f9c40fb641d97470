"""The tiny text encoder: ComfyUI's own UMT5 class with a vocabulary of its own,
trained together with the video model.
"""

from __future__ import annotations

import io
import random
from functools import lru_cache

import torch

from .package import RUNS, prepare

prepare()
import comfy.ops  # noqa: E402
from comfy.ldm.modules.attention import attention_pytorch  # noqa: E402
from comfy.text_encoders.t5 import T5  # noqa: E402
from interspatial.models.puppet import scene  # noqa: E402

TOKENS = 32  # prompts are padded to this length, as the loader node does
CONFIG = {"d_model": 128, "d_ff": 256, "num_layers": 2, "num_heads": 4, "d_kv": 32, "dense_act_fn": "gelu_pytorch_tanh",
          "is_gated_act": True, "model_type": "umt5"}  # fmt: skip


def corpus() -> list[str]:
    """Every sentence that a scene can be described with, often enough to learn the words."""
    rng = random.Random(0)
    return [p.caption() for p in scene.all_prompts()] * 2 + [
        scene.random_scene(rng.randrange(1 << 30)).caption() for _ in range(3000)
    ]


@lru_cache(1)
def vocabulary() -> bytes:
    """The sentencepiece model; kept on disk so that a resumed run uses the same one."""
    path = RUNS / "vocabulary.model"
    if not path.exists():
        import sentencepiece

        buffer = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()), model_writer=buffer, vocab_size=200, model_type="unigram", pad_id=0,
            eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, num_threads=1, minloglevel=2)  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    return path.read_bytes()


@lru_cache(1)
def _processor():
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=vocabulary(), add_eos=True)


@lru_cache(4096)
def tokens(caption: str) -> tuple[int, ...]:
    ids = _processor().encode(caption)
    return tuple((ids + [0] * TOKENS)[:TOKENS])


def build() -> T5:
    model = T5(
        {**CONFIG, "vocab_size": _processor().get_piece_size()}, torch.float32, "cpu", comfy.ops.disable_weight_init
    )
    for name, p in model.named_parameters():
        if p.ndim > 1:
            spread = 1.0 if name == "shared.weight" else p.shape[1] ** -0.5
            torch.nn.init.normal_(p, 0, spread * (CONFIG["d_kv"] ** -0.5 if name.endswith(".q.weight") else 1.0))
        else:
            torch.nn.init.ones_(p)
    return model


def encode(model: T5, captions: list[str]) -> torch.Tensor:
    """As core's SDClipModel does it: masked attention, masked positions set to zero. returns: [B, TOKENS, d_model]"""
    device = next(model.parameters()).device
    ids = torch.tensor([tokens(c) for c in captions], device=device)
    ends = (ids == 1).int()
    mask = ((ends.cumsum(1) - ends) == 0).long()  # up to and including the first end token
    x, bias = model.shared(ids), None
    hidden = (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min
    for block in model.encoder.block:  # T5Stack.forward adds in place, which autograd refuses
        attention, feed_forward = block.layer
        out, bias = attention.SelfAttention(attention.layer_norm(x), hidden, bias, attention_pytorch)
        x = x + out
        x = x + feed_forward.DenseReluDense(feed_forward.layer_norm(x))
    return model.encoder.final_layer_norm(x).float() * mask[..., None]
