"""Every native family, run through ComfyUI's sampler: the tokens are explained exactly, and nothing else is touched."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from interspatial.models.families import FAMILIES, Inputs, Timed, family_of
from interspatial.models.families.family import Family
from interspatial.models.forward import Forward, NotVideo
from interspatial.models.layout import TokenLayout, arrange
from interspatial.models.report import Card
from interspatial.tests.models.tinies import BY_NAME, TINIES, Tiny, guide_frames, sample
from interspatial.tests.models.tiny_dits import placed, seedvr2, wan

CARD = Card("probe", "sparse")


class Permuted:
    """Attention with the video tokens in another order, put back afterwards: equal up to rounding."""

    def why_not(self, call) -> None:
        return None

    def order(self, call) -> torch.Tensor:
        video = call.layout.video
        order = torch.arange(call.layout.tokens)
        order[video.start:video.stop] = video.start + torch.randperm(
            len(video), generator=torch.Generator().manual_seed(call.layer))
        return order

    def attend(self, call) -> torch.Tensor:
        order = self.order(call)
        mask = None if call.mask is None else call.mask[..., order]   # all masks here are a bias per key
        out = call.dense(call.q[:, order], call.k[:, order], call.v[:, order], mask=mask)
        return out[:, torch.argsort(order)]


class Zeros(Permuted):
    """No attention at all, to see that attention matters in these models."""

    def attend(self, call) -> torch.Tensor:
        return torch.zeros_like(call.q)


class Aside:
    """Looks at every call and takes none."""

    def __init__(self) -> None:
        self.seen = []

    def why_not(self, call) -> str:
        rows = call.forward.batch * call.forward.frames
        self.seen.append((call.layer, call.layout, call.q.shape, call.forward.family.name, rows))
        return "it only looks"


def relative(x: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative L2 error."""
    return float((x - truth).norm() / truth.norm())


def spy(monkeypatch) -> list:
    """What `Forward.explain` says about every attention call from now on."""
    said, explain = [], Forward.explain

    def explained(self, *sizes):
        said.append(explain(self, *sizes))
        return said[-1]

    monkeypatch.setattr(Forward, "explain", explained)
    return said


@pytest.mark.parametrize("tiny", TINIES, ids=lambda tiny: tiny.name)
def test_tokens_are_explained_and_the_rest_is_left_alone(comfy, monkeypatch, tiny):
    from interspatial.models import host

    model = tiny.model()
    plain = sample(model, tiny)
    said, aside = spy(monkeypatch), Aside()
    watched = sample(host.attach_attention(model, CARD, aside), tiny)

    assert torch.equal(watched, plain), "standing aside must leave every bit"
    truth = arrange([(kind, size) for kind, size in tiny.segments])
    assert [layer for layer, *_ in aside.seen] == [*tiny.layers] * 2, "two steps, each layer once and in order"
    for _, layout, shape, family, batch in aside.seen:
        assert [(s.kind, len(s)) for s in layout.segments] == [(s.kind, len(s)) for s in truth.segments]
        assert layout.grid == truth.grid
        assert (shape[0], shape[1], family) == (batch, layout.tokens, tiny.family)
    refused = [reason for reason in said if not isinstance(reason, TokenLayout)]
    assert len(refused) == 2 * tiny.others
    assert all(isinstance(reason, NotVideo) and reason for reason in refused)

    permuted = sample(host.attach_attention(model, CARD, Permuted()), tiny)
    assert relative(permuted, plain) <= 1e-5
    without = sample(host.attach_attention(model, CARD, Zeros()), tiny)
    assert relative(without, plain) > 1e-4, "attention does not show: this test proves nothing"
    assert torch.equal(sample(model, tiny), plain), "the model that came in is as it was"


@pytest.mark.parametrize("name", ["wan", "cogvideox", "hunyuan_video", "ltxv", "flux"])
@pytest.mark.parametrize(("cfg", "batch", "second"), [(3.0, 1, 7), (1.0, 2, 7), (3.0, 2, 7), (3.0, 1, 9)],
                         ids=["cfg", "batch", "cfg and batch", "unequal prompts"])
def test_guidance_batches_and_unequal_prompts(comfy, name, cfg, batch, second):
    """Both prompts in one batch, or in two calls when their lengths do not fit (CogVideoX repeats them instead)."""
    from interspatial.models import host

    tiny, aside = BY_NAME[name], Aside()
    model, prompts = tiny.model(), (tiny.prompt(1, 7), tiny.prompt(2, second))
    plain = sample(model, tiny, cfg=cfg, batch=batch, prompts=prompts)
    permuted = sample(host.attach_attention(model, CARD, Permuted()), tiny, cfg=cfg, batch=batch, prompts=prompts)
    assert relative(permuted, plain) <= 1e-5
    sample(host.attach_attention(model, CARD, aside), tiny, cfg=cfg, batch=batch, prompts=prompts)
    assert aside.seen
    chunks = 1 if cfg == 1.0 or second != 7 else 2
    assert {b for *_, b in aside.seen} == {batch * chunks}
    assert {shape[0] for _, _, shape, _, _ in aside.seen} == {batch * chunks}


def test_context_windows_have_layouts_of_their_own(comfy):
    """9 latent frames in windows of 4: the first as it is, later ones with an anchor frame in front."""
    import comfy.context_windows as windows
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode
    from interspatial.models import host

    tiny = BY_NAME["wan"]
    seen, latent = {}, torch.zeros(1, 16, 9, 8, 8)

    class Look(Permuted):
        def why_not(self, call) -> None:
            seen.setdefault(call.forward.window, set()).add((call.layout.grid, call.branches[0].id))

    base = ContextWindowsManualNode.execute(
        tiny.model(), 4, 1, windows.ContextSchedules.STATIC_STANDARD, 1, False, windows.ContextFuseMethods.PYRAMID, 2,
        False).result[0]
    plain = sample(base, tiny, latent=latent)
    permuted = sample(host.attach_attention(base, CARD, Look()), tiny, latent=latent)
    assert relative(permuted, plain) <= 1e-5
    grids = {window: {grid for grid, _ in found} for window, found in seen.items()}
    assert grids == {(0, 1, 2, 3): {(4, 4, 4)}, (3, 4, 5, 6): {(5, 4, 4)}, (5, 6, 7, 8): {(5, 4, 4)}}
    branches = {branch for found in seen.values() for _, branch in found}
    assert len(branches) == 1, "one prompt is one branch in all windows"


def test_guides_with_dropped_tokens_are_left_alone(comfy, monkeypatch):
    """ComfyUI drops guide tokens by values on the device: the count no longer fits, so the call is not touched."""
    from interspatial.models import host

    tiny = BY_NAME["ltxv_guided"]
    prompts = tuple([[text, {**extra, **guide_frames(keep=False), "attention_mask": torch.ones(1, 7, dtype=torch.long)}]
                     for text, extra in tiny.prompt(seed)] for seed in (1, 2))
    model, aside = tiny.model(), Aside()
    patched = host.attach_attention(model, CARD, aside)
    assert torch.equal(sample(patched, tiny, prompts=prompts), sample(model, tiny, prompts=prompts))
    assert not aside.seen
    assert "84 tokens, where the video with all that belongs to it has 96" in host.report_of(patched)


def test_weighted_guides_are_left_alone(comfy):
    """A guide strength below 1 makes ComfyUI cut one self attention into calls over part of the queries."""
    from interspatial.models import host

    tiny, aside = BY_NAME["ltxv_guided"], Aside()
    entries = [{"pre_filter_count": 24, "strength": 0.5, "pixel_mask": None, "latent_shape": [1, 4, 6]}]
    prompts = tuple([[text, {**extra, "guide_attention_entries": entries}] for text, extra in tiny.prompt(seed)]
                    for seed in (1, 2))
    model = tiny.model()
    patched = host.attach_attention(model, CARD, aside)
    assert torch.equal(sample(patched, tiny, prompts=prompts), sample(model, tiny, prompts=prompts))
    assert not aside.seen


def test_frame_by_frame_generation_is_refused(comfy):
    from interspatial.models import host

    tiny, aside = BY_NAME["wan_causal"], Aside()
    model = host.attach_attention(tiny.model(), CARD, aside)
    module = model.model.diffusion_model
    model.model_options["transformer_options"]["ar_state"] = {
        "start_frame": 0, "kv_caches": module.init_kv_caches(1, 500, "cpu", torch.float32),
        "crossattn_caches": module.init_crossattn_caches(1, "cpu", torch.float32)}
    sample(model, tiny, steps=1)
    assert not aside.seen
    assert "frame by frame" in host.report_of(model)


def test_text_as_long_as_the_video_is_refused(comfy):
    """Self and cross attention of Wan look alike then, so nothing is touched."""
    from interspatial.models import host

    tiny, aside = BY_NAME["wan"], Aside()
    model = host.attach_attention(tiny.model(), CARD, aside)
    sample(model, tiny, steps=1, prompts=(tiny.prompt(1, 72), tiny.prompt(2, 72)))
    assert not aside.seen
    assert "as many tokens as the text (72)" in host.report_of(model)


def test_seedvr2_is_known_with_its_reason(comfy):
    from interspatial.models import host

    model = seedvr2()
    assert family_of(model.model.diffusion_model).opaque
    tiny = Tiny("seedvr2", "seedvr2", seedvr2, (1, 16, 3, 8, 12), (), text=(7, 5120),
                cond=lambda: {"condition": torch.zeros(1, 17, 3, 8, 12)})
    patched = host.attach_attention(model, CARD, Aside())
    assert torch.equal(sample(patched, tiny), sample(model, tiny))
    assert "no hook ever sees it" in host.report_of(patched)


def test_unknown_model_is_left_alone_with_a_sentence(comfy):
    from interspatial.models import host

    class Stranger(type(wan().model.diffusion_model).__mro__[1]):
        """A module that is none of ComfyUI's."""

        def __init__(self) -> None:
            super().__init__()
            self.dtype, self.patch_embedding = torch.float32, torch.nn.Conv3d(16, 16, 1)

        def forward(self, x, t, context=None, transformer_options=None, **kwargs):
            from comfy.ldm.modules.attention import optimized_attention

            tokens = x.flatten(2).transpose(1, 2)
            out = optimized_attention(tokens, tokens, tokens, 1, transformer_options=transformer_options)
            return out.transpose(1, 2).reshape(x.shape)

    tiny, model, aside = BY_NAME["wan"], placed(Stranger(), "WAN21", "WAN21_T2V"), Aside()
    assert family_of(model.model.diffusion_model) is None
    patched = host.attach_attention(model, CARD, aside)
    assert torch.equal(sample(patched, tiny), sample(model, tiny))
    assert not aside.seen
    assert "Stranger is not a model this pack knows" in host.report_of(patched)


def test_a_model_that_another_comfyui_has_changed_still_renders(comfy, monkeypatch):
    from interspatial.models import host

    def layout(inputs):
        raise AttributeError("'WanModel' object has no attribute 'patch_size'")

    broken = dataclasses.replace(family_of(wan().model.diffusion_model), layout=layout)
    monkeypatch.setattr(host.hooks, "family_of", lambda model: broken)
    tiny, aside = BY_NAME["wan"], Aside()
    patched = host.attach_attention(tiny.model(), CARD, aside)
    assert torch.equal(sample(patched, tiny), sample(tiny.model(), tiny))
    assert not aside.seen
    assert "could not be told (AttributeError: 'WanModel' object has no attribute" in host.report_of(patched)


def test_model_of_the_loader_node(comfy):
    """A checkpoint file through UNETLoader, as a user loads it."""
    import comfy.utils
    import folder_paths
    from interspatial.models import host

    import nodes

    tiny, folder = BY_NAME["wan"], Path(folder_paths.get_folder_paths("diffusion_models")[0])
    folder.mkdir(parents=True, exist_ok=True)
    config = {"config": json.dumps({"transformer": {"text_dim": 32, "freq_dim": 64}})}
    weights = {key: value.clone() for key, value in tiny.model().model.diffusion_model.state_dict().items()}
    comfy.utils.save_torch_file(weights, str(folder / "interspatial_tiny_wan.safetensors"), metadata=config)
    model, = nodes.UNETLoader().load_unet("interspatial_tiny_wan.safetensors", "default")
    assert host.family_of_model(model).name == "wan"
    permuted = sample(host.attach_attention(model, CARD, Permuted()), tiny)
    assert relative(permuted, sample(tiny.model(), tiny)) <= 1e-5


def test_family_of_a_compiled_model(comfy):
    module = wan().model.diffusion_model
    assert family_of(torch.compile(module, backend="eager")) is family_of(module)
    assert family_of(module).name == "wan"


def test_blocks_are_where_the_family_says(comfy):
    for tiny in TINIES:
        module = tiny.model().model.diffusion_model
        stacks = family_of(module).stacks(module)
        expected = len(tiny.layers) - (tiny.name == "wan_vace")   # two contexts share one VACE block
        assert sum(stacks.values()) == expected, tiny.name


def test_names_are_unique():
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)


TIMED = Family("timed", (), (), 4, 8, lambda i: "", timed=(Timed("latent", 2), Timed("face", 1, scale=4, offset=1)))


@pytest.mark.parametrize(("start", "stop", "latent", "face"), [
    (0, 5, range(5), range(16)), (2, 4, range(2, 4), range(4, 12)), (0, 1, range(1), range(0)),
    (4, 5, range(4, 5), range(12, 16)),
])
def test_slice_cond_cuts_what_has_time(start, stop, latent, face):
    """Five latent frames; the face has four pictures per latent frame and none for the first."""
    conds = {"latent": torch.arange(5).reshape(1, 1, 5), "face": torch.arange(16)[None], "text": torch.ones(1, 7)}
    cut = TIMED.slice_cond(conds, start, stop)
    assert cut["latent"].flatten().tolist() == list(latent)
    assert cut["face"].flatten().tolist() == list(face)
    assert cut["text"] is conds["text"]
    assert conds["latent"].shape[2] == 5


def test_layouts_refuse_what_they_cannot_tell(comfy):
    """Guides that are no whole frames, packed layouts of another signature, references of Z-Image."""
    for name, latent, audio, conds, says in (
        ("ltxv", (1, 128, 4, 4, 6), None, {"keyframe_idxs": torch.zeros(1, 3, 25, 2)}, "not whole frames"),
        ("minimax_h3", (1, 24, 2, 4, 6), (1, 32, 2, 5), {}, "cannot be read"),
        ("lumina2", (1, 16, 1, 8, 12), None, {"ref_latents": [torch.zeros(1, 16, 8, 8)]}, "reference images"),
    ):
        module = BY_NAME[name].model().model.diffusion_model
        assert says in family_of(module).expect(Inputs(module, latent, 7, audio, conds))
