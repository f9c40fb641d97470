"""The causal video VAE: values, causality, and chunks that give what the whole gives."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from interspatial.models.nets.causal_conv import CausalConv, Stream
from interspatial.models.nets.streaming import decode_chunks, encode_chunks, latent_frames, pixel_frames
from interspatial.models.nets.video_vae import VideoVAE, VideoVAEConfig

SMALL = VideoVAEConfig(widths=(6, 10, 12), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 2, 1))
FOUR_LEVELS = VideoVAEConfig((4, 6, 8, 8), (1, 1, 1, 1), (1, 1, 1, 1), patch=1, taps=(3, 3))
LENGTHS = (1, 2, 5, 6, 9, 17, 33)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return VideoVAE(SMALL).eval().requires_grad_(False)


def clip(frames, rows=16, columns=24, batch=1):
    draw = torch.Generator().manual_seed(frames)
    return torch.rand(batch, 3, frames, rows, columns, generator=draw) * 2 - 1


def filled(video):
    """The clip with its last frame repeated up to 4n + 1."""
    more = pixel_frames(latent_frames(video.shape[2])) - video.shape[2]
    return torch.cat([video] + [video[:, :, -1:]] * more, 2)


CONVOLUTIONS = [(3, 3, 1, 1), (1, 3, 1, 1), (3, 3, 2, 2), (4, 1, 4, 1), (4, 3, 1, 2)]


@pytest.mark.parametrize("taps,side,step,stride", CONVOLUTIONS)
def test_a_causal_convolution_is_a_3d_one_with_the_first_frame_before_the_clip(taps, side, step, stride):
    torch.manual_seed(1)
    layer, x = CausalConv(5, 7, taps, side, step, stride).double(), torch.randn(2, 7, 5, 9, 11).double()
    weight = layer.conv.weight.unflatten(1, (taps, 5)).transpose(1, 2)
    before = torch.cat([x[:, :1]] * (taps - 1) + [x], 1).transpose(1, 2)
    space = side // 2
    want = F.conv3d(before, weight, layer.conv.bias, (step, stride, stride), (0, space, space)).transpose(1, 2)
    torch.testing.assert_close(layer(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_give_what_the_whole_gives(vae, frames, chunk):
    video = clip(frames, batch=2)
    latent = vae.encode(filled(video))
    back = vae.decode(latent)
    assert back.shape == (2, 3, 4 * ((frames + 2) // 4) + 1, 16, 24)
    chunks = torch.cat(list(encode_chunks(vae, video, chunk)), 2)
    torch.testing.assert_close(chunks, latent, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat(list(decode_chunks(vae, latent, chunk)), 2), back, rtol=0, atol=1e-5)
    assert latent.std() > 0.05 and back.std() > 0.05, "random weights must not make everything equal"


def test_chunks_of_a_four_level_net():
    torch.manual_seed(2)
    vae, video = VideoVAE(FOUR_LEVELS).requires_grad_(False), clip(11)
    latent = vae.encode(filled(video))
    assert latent.shape == (1, 16, 4, 2, 3)
    torch.testing.assert_close(torch.cat(list(encode_chunks(vae, video, 1)), 2), latent, rtol=0, atol=1e-5)
    back = vae.decode(latent)
    torch.testing.assert_close(torch.cat(list(decode_chunks(vae, latent, 3)), 2), back, rtol=0, atol=1e-5)


def test_nothing_looks_ahead(vae):
    """A change of frame 6 reaches latent frame 2 (of frames 5 to 8), and in decoding nothing before frame 5."""
    video = clip(17)
    other = video.clone()
    other[:, :, 6] += 1
    a, b = vae.encode(video), vae.encode(other)
    assert torch.equal(a[:, :, :2], b[:, :, :2]) and not torch.equal(a[:, :, 2], b[:, :, 2])
    changed = a.clone()
    changed[:, :, 2] += 1
    x, y = vae.decode(a), vae.decode(changed)
    assert torch.equal(x[:, :, :5], y[:, :, :5])
    assert all(not torch.equal(x[:, :, f], y[:, :, f]) for f in (5, 6, 7, 8, 9))


def test_the_first_frame_is_a_picture(vae):
    video = clip(9)
    torch.testing.assert_close(vae.encode(video)[:, :, :1], vae.encode(video[:, :, :1]), rtol=0, atol=1e-6)
    still = video[:, :, :1].expand(-1, -1, 5, -1, -1)
    torch.testing.assert_close(vae.encode(still)[:, :, 1], vae.encode(still)[:, :, 0], rtol=0, atol=1e-6)


def test_no_statistic_over_space(vae):
    """Far from a change nothing moves: what a tile or a chunk sees does not depend on the rest of the picture."""
    video = clip(1, 16, 512)
    other = video.clone()
    other[..., :8] += 5
    assert torch.equal(vae.encode(video)[..., -8:], vae.encode(other)[..., -8:])


@pytest.mark.parametrize("frames,latents", [(1, 1), (2, 2), (4, 2), (5, 2), (6, 3), (9, 3), (33, 9)])
def test_lengths(frames, latents):
    assert latent_frames(frames) == latents
    assert pixel_frames(latents) >= frames > pixel_frames(latents - 1)


def test_bad_sizes_are_refused(vae):
    for video, said in ((clip(4), "4 frames"), (clip(5, 12, 16), "12 x 16"), (clip(5)[:, :, :0], "0 frames")):
        with pytest.raises(ValueError, match=said):
            vae.encode(video)
    stream = Stream()
    vae.encode(clip(5), stream)
    with pytest.raises(ValueError, match=r"5 frames of 16 x 24 next"):
        vae.encode(clip(5), stream)
    with pytest.raises(ValueError, match="chunks of 0"):
        next(encode_chunks(vae, clip(5), 0))


def test_config_survives_json_and_refuses_what_it_does_not_know():
    assert VideoVAEConfig.from_json(FOUR_LEVELS.to_json()) == FOUR_LEVELS
    with pytest.raises(ValueError, match="depth"):
        VideoVAEConfig.from_json(json.dumps({"depth": 3}))
    with pytest.raises(ValueError, match="4x in space"):
        VideoVAEConfig(patch=1)
    with pytest.raises(ValueError, match="numbers of blocks"):
        VideoVAEConfig(widths=(8, 8, 8, 8))


def allocator_peak(work, path) -> int:
    """Most bytes that torch's CPU allocator gave out at a time in `work`, from the profiler's trace."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    seen.export_chrome_trace(str(path))
    held = most = 0
    for event in json.loads(path.read_text())["traceEvents"]:
        if event.get("name") == "[memory]":
            held += event["args"]["Bytes"]
            most = max(most, held)
    return most


def test_memory_does_not_grow_with_the_clip(vae, tmp_path):
    latents = {n: vae.encode(clip(n, 32, 32)) for n in (33, 65)}

    def encode(n):
        video = clip(65, 32, 32)[:, :, :n]
        return allocator_peak(lambda: [part.sum() for part in encode_chunks(vae, video)], tmp_path / "trace.json")

    def decode(n):
        return allocator_peak(lambda: [part.sum() for part in decode_chunks(vae, latents[n])], tmp_path / "trace.json")

    for coder in (encode, decode):
        short, long = coder(33), coder(65)
        assert short > 10_000 and long < 1.15 * short, (short, long)
    whole = allocator_peak(lambda: vae.decode(latents[65]), tmp_path / "trace.json")
    assert whole > 5 * decode(65)
