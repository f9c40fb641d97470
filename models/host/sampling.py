"""A sampling run inside a node, as core's KSampler makes it: the same noise, preview, progress and interrupt."""

from __future__ import annotations

import comfy.sample
import comfy.utils
import latent_preview
import torch

# What nodes that sample offer, in place of core's lists, which differ between versions: those in use with video models.
SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "res_multistep", "uni_pc", "lcm")
SCHEDULERS = ("simple", "normal", "beta", "sgm_uniform", "karras", "linear_quadratic", "kl_optimal")


@torch.inference_mode()
def sample(
    model, positive, negative, latent: dict, *, seed: int, steps: int, cfg: float, sampler: str, scheduler: str
) -> dict:
    """The latent after `steps` steps at full denoise; bit-equal to core's KSampler with the same settings.

    negative: conditioning, or None: the model runs with the positive alone, whatever cfg says
    latent: a LATENT of ComfyUI, with its batch index and noise mask where it has them
    returns: a LATENT
    raises: ComfyUI's interrupt when the user asks for it
    """
    if negative is None:
        negative, cfg = positive, 1.0
    start = comfy.sample.fix_empty_latent_channels(
        model, latent["samples"], latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal")
    )
    samples = comfy.sample.sample(
        model, comfy.sample.prepare_noise(start, seed, latent.get("batch_index")),
        steps, cfg, sampler, scheduler, positive, negative, start, noise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, steps), disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )  # fmt: skip
    kept = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio")}
    return {**kept, "samples": samples}


SMALL = (5, 32, 32)  # latent frames, height and width where nobody said


def small_latent(model) -> dict:
    """An empty LATENT of SMALL for this model, for looking at it where size does not matter much."""
    form = model.get_model_object("latent_format")
    shape = SMALL if form.latent_dimensions == 3 else SMALL[1:]
    return {"samples": torch.zeros(1, form.latent_channels, *shape)}
