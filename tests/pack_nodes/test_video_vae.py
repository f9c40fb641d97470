"""The causal video VAE in ComfyUI: core's own VAE nodes, exact chunks, Wan's too, and the audit."""

from __future__ import annotations

import pytest
import torch

ROWS, COLUMNS = 32, 24


@pytest.fixture(scope="module")
def modules(comfy):
    from interspatial.models.host import vae_chunks, video_vae
    from interspatial.nodes import video_vae as nodes

    return vae_chunks, video_vae, nodes


@pytest.fixture(scope="module")
def ours(modules):
    from interspatial.models.nets.video_vae import VideoVAE, VideoVAEConfig

    torch.manual_seed(0)
    return modules[1].InterspatialVAE(VideoVAE(VideoVAEConfig((6, 10, 12), (1, 1, 1), (1, 1, 1))))


@pytest.fixture(scope="module")
def wan(comfy):
    """Core's Wan VAE at a width that runs in no time, through core's own loader."""
    import comfy.sd
    from comfy.ldm.wan.vae import WanVAE

    torch.manual_seed(0)
    net = WanVAE(4, 16, [1, 2, 4, 4], 2, [], [False, True, True])
    for p in net.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 4 and p.shape[1:] == (1, 1, 1) else 0.0, 0.2)
    return comfy.sd.VAE(sd=net.state_dict())


def clip(frames):
    return torch.rand(frames, ROWS, COLUMNS, 3, generator=torch.Generator().manual_seed(frames))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def test_core_nodes_take_it(ours):
    import nodes

    images = clip(9)
    latent = nodes.VAEEncode().encode(ours, images)[0]
    assert latent["samples"].shape == (1, 16, 3, ROWS // 8, COLUMNS // 8)
    back = nodes.VAEDecode().decode(ours, latent)[0]
    assert back.shape == (9, ROWS, COLUMNS, 3) and back.min() >= 0 and back.max() <= 1 and back.std() > 0.01
    net = ours.first_stage_model.net
    video = images.movedim(-1, 0).unsqueeze(0) * 2 - 1
    torch.testing.assert_close(latent["samples"], net.encode(video), rtol=0, atol=1e-5)
    want = (net.decode(latent["samples"])[0].movedim(0, -1) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(back, want, rtol=0, atol=1e-5)


def test_core_nodes_take_pictures_and_odd_lengths(ours):
    for frames, latents in ((1, 1), (6, 3)):
        samples = ours.encode(clip(frames))
        assert samples.shape[2] == latents
        assert ours.decode(samples).shape == (1, 4 * latents - 3, ROWS, COLUMNS, 3)


def test_core_tiled_nodes_take_it(ours):
    import nodes

    images = torch.rand(13, 96, 64, 3)
    latent = nodes.VAEEncodeTiled().encode(ours, images, 64, 16, 8, 4)[0]
    whole = ours.encode(images)
    assert latent["samples"].shape == whole.shape
    back = nodes.VAEDecodeTiled().decode(ours, {"samples": whole}, 64, 16, 8, 4)[0]
    assert back.shape == images.shape
    apart = (back - ours.decode(whole)[0]).abs().mean()
    assert apart < 0.3 * back.std(), "tiles are near the whole, but for their edges"


@pytest.mark.parametrize("which", ["ours", "wan"])
@pytest.mark.parametrize("frames", [1, 5, 9, 10, 17])
def test_the_streaming_nodes_give_what_core_gives(modules, which, frames, request):
    vae, nodes = request.getfixturevalue(which), modules[2]
    images = clip(frames)
    latent, report = nodes.EncodeVideo.execute(images, vae).args
    whole = vae.encode(images)
    torch.testing.assert_close(latent["samples"], whole, rtol=0, atol=1e-5)
    assert "exact chunks" in report and ("trim 13 frames to 10" in report) == (which == "ours" and frames == 10)
    assert ("first 9 of 10" in report) == (which == "wan" and frames == 10)
    for chunk in (1, 3):
        back, _ = nodes.DecodeVideo.execute(latent, vae, chunk).args
        torch.testing.assert_close(back, vae.decode(whole)[0], rtol=0, atol=1e-5)
    assert whole.std() > 0.01 and back.std() > 0.01


def test_clips_of_a_batch_follow_one_another(modules, ours):
    latents = torch.randn(2, 16, 3, 4, 3)
    images, report = modules[2].DecodeVideo.execute({"samples": latents}, ours).args
    torch.testing.assert_close(images, ours.decode(latents).flatten(0, 1), rtol=0, atol=1e-5)
    assert report == "18 frames, in exact chunks"


def test_frames_leave_as_they_come_and_an_interrupt_ends_it(modules, ours):
    chunks, seen = modules[0], []

    def tick(done):
        seen.append(done)
        if done == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        chunks.decode_video(ours, torch.randn(1, 16, 9, 4, 3), 2, tick)
    assert seen == [2, 4]
    seen.clear()
    chunks.encode_video(ours, clip(13), 3, seen.append)
    assert seen == [3, 4]


def test_the_file_comes_back_as_it_was(modules, ours, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    _, module, nodes = modules
    net = ours.first_stage_model.net
    good, bare, wrong = (tmp_path / f"{name}.safetensors" for name in ("good", "bare", "wrong"))
    save_file(net.state_dict(), good, {"config": net.config.to_json()})
    save_file(net.state_dict(), bare)
    save_file(net.state_dict(), wrong, {"config": type(net.config)().to_json()})
    monkeypatch.setattr(module, "video_vae_path", lambda name: str(tmp_path / name))
    loaded = nodes.LoadVideoVAE.execute("good.safetensors").args[0]
    assert torch.equal(loaded.encode(clip(5)), ours.encode(clip(5)))
    for name, said in (("bare", "no video VAE of Interspatial"), ("wrong", "do not fit the config")):
        with pytest.raises(ValueError, match=f"Load Interspatial VAE: .*{said}"):
            nodes.LoadVideoVAE.execute(f"{name}.safetensors")


def test_bad_input_gets_a_sentence(modules, ours, comfy):
    import comfy.sd

    nodes = modules[2]
    pictures = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    with pytest.raises(ValueError, match=r"Encode Video \(Streaming\): this VAE is not one for video"):
        nodes.EncodeVideo.execute(clip(5), pictures)
    with pytest.raises(ValueError, match="8 and more a side"):
        nodes.EncodeVideo.execute(torch.rand(5, 4, 32, 3), ours)
    with pytest.raises(ValueError, match="4 channels, this VAE's have 16"):
        nodes.DecodeVideo.execute({"samples": torch.randn(1, 4, 2, 4, 4)}, ours)
    with pytest.raises(ValueError, match="Decode pictures with VAE Decode"):
        nodes.DecodeVideo.execute({"samples": torch.randn(1, 16, 4, 4)}, ours)


@pytest.mark.parametrize("which", ["ours", "wan"])
def test_audit_by_place(modules, which, request):
    vae, images = request.getfixturevalue(which), clip(17)
    picture, report, back = modules[2].VAEWindowAudit.execute(images, vae).args
    error = (back - images).square().mean((1, 2, 3))
    assert picture.shape[0] == 1 and picture.std() > 0.05
    want = -10 * error[3::4].mean().log10()
    assert f"frame 3 of 4: {want:.2f} dB, from 4" in report
    assert f"PSNR of all 17 frames: {-10 * error.mean().log10():.2f} dB" in report


def test_audit_of_known_errors(comfy):
    from interspatial.models.measure.window_audit import audit, describe, draw_audit

    level = torch.tensor([0.0, *[0.1, 0.2, 0.3, 0.1] * 2, 0.1, 0.2])
    images = torch.zeros(11, 8, 8, 3)
    found = audit(images, images + level.view(-1, 1, 1, 1), 4)
    assert found.counts == (1, 3, 3, 2, 2)
    assert found.psnr == pytest.approx((float("inf"), 20.0, 13.979, 10.457, 20.0), abs=1e-3)
    assert found.spread == pytest.approx(9.543, abs=1e-3)
    short = audit(images[:3], images[:3] + 0.1, 4)
    assert "frame 3 of 4: the clip is too short" in describe(short)
    assert draw_audit(short, "short", describe(short)).ndim == 3
    assert audit(images, images, 1).spread == 0.0 and "no window" in describe(audit(images, images + 0.1, 1))[-1]
    with pytest.raises(ValueError, match="came back with shape"):
        audit(images, torch.zeros(11, 16, 8, 3), 4)
