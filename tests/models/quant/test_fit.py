"""What a run takes on a card: the arithmetic, sizes of a real model, and the peak of a forward against a real one."""

from __future__ import annotations

import pytest
import torch

MID = {"dim": 256, "ffn_dim": 1024, "num_heads": 2, "num_layers": 2}


def need(**changes):
    from interspatial.models.quant.fit import Need, Weights

    return Need(**{"name": "as loaded", "weights": Weights(90, 10, 5), "activations": 40, "prompts": 2, "history": 3,
                   "reserve": 7} | changes)  # fmt: skip


@pytest.fixture(scope="module")
def wan14(comfy):
    """Wan 14B's diffusion model, without memory."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    return WanModel(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=16, out_dim=16, text_dim=4096,
                    dtype=torch.bfloat16, device="meta", operations=comfy.ops.disable_weight_init)  # fmt: skip


def traced(compute) -> int:
    """Most bytes alive during `compute`, by torch's own allocator."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as watched:
        compute()
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(torch.tensor([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).cumsum(0).tolist())


def conditions(model, prompt, x) -> dict:
    """As the sampler prepares them."""
    text, more = prompt[0]
    given = {"noise": x[:1], "device": x.device, "prompt_type": "positive", "width": 8, "height": 8, **more}
    found = model.extra_conds(cross_attn=text, **given)
    return {name: cond.process_cond(batch_size=x.shape[0], area=None).cond for name, cond in found.items()}


def without_scores(func, *args, **kwargs):
    """Attention as on a GPU; what ComfyUI takes on a CPU writes the scores down."""
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)


def real_peak(model, shape, prompt) -> int:
    """Bytes of one evaluation with all weights there, in float32 on one thread: attention has a scratch for each."""
    x, sigma = torch.zeros(shape), torch.full(shape[:1], 0.5)
    conds = conditions(model.model, prompt, x)
    options = {"optimized_attention_override": without_scores}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return traced(lambda: model.model.apply_model(x, sigma, transformer_options=options, **conds))
    finally:
        torch.set_num_threads(threads)


def test_everything_fits_and_nothing_streams():
    from interspatial.models.quant.fit import remedies, verdict

    assert need().whole == 150 and need().streamed(150) == 0
    assert verdict(need(), 150).startswith("fits: ") and remedies(need(), [], 150, 5) == []


def test_what_streams_is_what_finds_no_room_beside_two_layers():
    # a card of 120: 50 are taken, 10 by the layers on the way, 60 of 100 stay
    assert need().streamed(120) == 40
    assert need().least == 10 + 20 + 3 + 7, "one prompt at a time and two layers"
    assert need().streamed(50) == 100, "nothing stays where there is no room"


def test_the_least_of_a_small_model_is_not_more_than_its_weights():
    from interspatial.models.quant.fit import Weights

    assert need(weights=Weights(0, 6, 5)).least == 6 + 20 + 10


def test_the_verdict_names_what_streams_and_how_long_it_takes():
    from interspatial.models.quant.fit import Weights, verdict

    big = need(weights=Weights(0, 30 * 10**9, 10**8), activations=4 * 10**9, history=0, reserve=0)
    said = verdict(big, 16 * 10**9)
    assert said.startswith("fits with 18.2 GB of the weights in main memory") and "0.7 s at 25 GB/s" in said
    assert verdict(big, 2 * 10**9) == ("does not fit: 2.2 GB are needed with weights that stream layer by layer, "
                                       "2.0 GB are there")  # fmt: skip


def test_remedies_take_the_best_format_that_fits_and_count_frames():
    from interspatial.models.quant.fit import Weights, remedies

    others = [need(name=f"lrq {bits}", weights=Weights(bits * 10, 10, 5)) for bits in (8, 4, 3)]
    found = remedies(need(), others, 115, 10)
    assert found[0].startswith("lrq 4 fits as a whole"), "8 bits take 140, 4 take 100"
    assert found[1] == "1 latent frames instead of 10 fit as a whole", "5 of 40 bytes are left for activations"
    assert remedies(need(), others, 45, 1)[0].startswith("nothing fits as a whole")
    assert remedies(need(), others, 20, 1) == ["nothing fits; take a smaller or shorter clip, or a larger card"]


@pytest.mark.parametrize(("choice", "expected"), [(None, 28.58), ("rtn 8", 14.54), ("rtn 4", 7.48), ("rtn 3", 5.73),
                                                  ("rtn 2", 3.99)])  # fmt: skip
def test_sizes_of_wan_14b(wan14, choice, expected):
    """14.29 billion parameters, 13.97 of them in the layers that formats are for; GB"""
    from interspatial.models.host.fit_facts import stored_weights
    from interspatial.models.quant.fit import recipe_for, weights_of
    from interspatial.models.quant.recipe import Choice

    stored = stored_weights(wan14)
    assert len(stored.shapes) == 400, "10 in each of 40 blocks"
    found = weights_of(stored, choice and recipe_for(stored, Choice.parse(choice)))
    assert found.total / 1e9 == pytest.approx(expected, rel=5e-3)
    assert found.largest == 2 * 5120 * 6 * 5120 + 2 * 6 * 5120, "the modulation of all blocks, which is kept"


def test_a_plan_for_another_model_is_refused_with_the_layer(wan14):
    from interspatial.models.host.fit_facts import stored_weights
    from interspatial.models.quant.fit import weights_of
    from interspatial.models.quant.recipe import Choice, Recipe

    with pytest.raises(ValueError, match=r"no layer blocks\.99\.ffn\.0"):
        weights_of(stored_weights(wan14), Recipe({"blocks.99.ffn.0": Choice("rtn", 8)}))


@pytest.mark.parametrize("shape", [(1, 16, 5, 30, 34), (2, 16, 4, 24, 32)], ids=lambda s: "x".join(map(str, s)))
def test_peak_of_a_forward_of_wan(comfy, inference, shape):
    from interspatial.models.host.dry_forward import dry_forward
    from interspatial.tests.models.tinies import BY_NAME
    from interspatial.tests.models.tiny_dits import wan

    model, prompt = wan(**MID), BY_NAME["wan"].prompt(1)
    told = dry_forward(model, ((1, *shape[1:]),), shape[0], torch.float32, {}, prompt)
    assert told.peak == pytest.approx(real_peak(model, shape, prompt), rel=0.05)
    assert told.rows == shape[0] * shape[2] * shape[3] * shape[4] // 4
    assert told.scores == 4 * 2 * shape[0] * (told.rows // shape[0]) ** 2


@pytest.mark.parametrize("name", ["hunyuan_video", "cogvideox", "cosmos_predict2", "kandinsky5"])
def test_peak_of_a_forward_of_other_families(comfy, inference, name):
    from interspatial.models.host.dry_forward import dry_forward
    from interspatial.tests.models.tinies import BY_NAME

    tiny = BY_NAME[name]
    shape = (1, tiny.latent[1], 3, 30, 34)
    told = dry_forward(tiny.model(), (shape,), 1, torch.float32, {}, tiny.prompt(1))
    assert told.peak == pytest.approx(real_peak(tiny.model(), shape, tiny.prompt(1)), rel=0.1)


@pytest.mark.parametrize("act_bits", [8, 16])
def test_peak_with_quantised_layers(comfy, inference, act_bits):
    """Plain torch makes int8 products in parts of 2^20 numbers of up to 12 bytes, which no kernel does."""
    from interspatial.models.families import bare
    from interspatial.models.host.dry_forward import dry_forward
    from interspatial.models.host.fit_facts import stored_weights
    from interspatial.models.host.quant_trial import coded_layers, float_weight, linear_layers
    from interspatial.models.quant.fit import scratch_of
    from interspatial.models.quant.format import FORMATS
    from interspatial.tests.models.tinies import BY_NAME
    from interspatial.tests.models.tiny_dits import wan

    model, prompt, shape = wan(**MID), BY_NAME["wan"].prompt(1), (1, 16, 4, 24, 32)
    network = bare(model.model.diffusion_model)
    coded = {name: FORMATS["vidit_q"].encode(float_weight(layer, torch.device("cpu")), 4)
             for name, layer in linear_layers(network).items()}  # fmt: skip
    scratch = scratch_of(stored_weights(network), frozenset(coded), act_bits, 4)
    told = dry_forward(model, (shape,), 1, torch.float32, scratch, prompt).peak
    with coded_layers(network, coded, act_bits):
        real = real_peak(model, shape, prompt)
    parts = 12 * 2**20 if act_bits == 8 else 0
    assert 0.9 * told < real < 1.1 * told + parts


def test_a_model_that_asks_for_values_is_told_with_the_reason(comfy, inference):
    from interspatial.models.host.dry_forward import dry_forward
    from interspatial.tests.models.tinies import BY_NAME

    tiny = BY_NAME["minimax_h3"]
    with pytest.raises(ValueError, match=r"MiniMaxH3Model cannot be followed by sizes alone"):
        dry_forward(tiny.model(), tiny.latent, 1, torch.float32, {}, tiny.prompt(1))


def test_a_dry_forward_leaves_the_model_as_it_was(comfy, inference):
    from interspatial.models.host.dry_forward import dry_forward
    from interspatial.tests.models.tinies import BY_NAME, sample

    tiny = BY_NAME["wan"]
    before = sample(tiny.model(), tiny)
    dry_forward(tiny.model(), (tiny.latent,), 2, torch.bfloat16, {}, None)
    assert torch.equal(sample(tiny.model(), tiny), before)


def test_bytes_of_a_quantised_weight_are_those_of_all_its_tensors(comfy):
    from interspatial.models.host.fit_facts import nbytes
    from interspatial.models.host.quant_layouts import as_weight
    from interspatial.models.quant.format import FORMATS

    coded = FORMATS["rtn"].encode(torch.randn(48, 64), 4)
    assert nbytes(as_weight(coded, torch.bfloat16, 8)) == coded.nbytes == 48 * 32 + 48 * 4 + 48


def test_alive_bytes_count_what_operations_make_and_forget_what_is_gone():
    from interspatial.models.measure.alive import AliveBytes

    given = torch.ones(1000)
    with AliveBytes() as alive:
        a = given + 1  # 4000 bytes
        a.mul_(2)
        view = a[10:].reshape(2, -1)
        b = torch.cat((a, a))  # 8000
        del a
        c = b.sum()  # 4, while the view keeps the first
        del b, view
        d = given.double()  # 8000
    assert alive.peak == 12004 and alive.now == 8004
    del c, d
    assert alive.now == 0


def test_decoding_is_told_whole_and_in_tiles(comfy, inference):
    from types import SimpleNamespace

    from interspatial.models.host.fit_facts import decoding_of
    from interspatial.models.quant.fit import decode_verdict

    vae = SimpleNamespace(vae_dtype=torch.bfloat16, first_stage_model=torch.nn.Linear(8, 8, dtype=torch.bfloat16),
                          spacial_compression_decode=lambda: 8, temporal_compression_decode=lambda: 4,
                          memory_used_decode=lambda shape, dtype: 1000 * shape[2] * shape[3] * shape[4])  # fmt: skip
    turn = decoding_of(vae, (1, 16, 21, 90, 160), 0)
    assert (turn.weights, turn.whole, turn.tiled) == (144, 1000 * 21 * 90 * 160, 1000 * 16 * 64 * 64)
    assert decode_verdict(turn, turn.whole + 144).startswith("decoding fits")
    assert "VAE Decode (Tiled)" in decode_verdict(turn, turn.whole)
    assert "smaller tiles" in decode_verdict(turn, turn.tiled)
