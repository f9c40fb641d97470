"""One evaluation of a MODEL at a noise level of choice, through ComfyUI's own sampling."""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import comfy.utils
import torch

from .services import model_sampling


@torch.inference_mode()
def evaluate_once(model, positive, negative, latent: dict, percent: float, seed: int, cfg: float) -> dict:
    """The clean latent that the model sees in a noisy one.

    negative: None: the model runs with the positive alone    latent: noise of `seed` is added to it
    percent: of the model's noise range; 0 is pure noise    returns: a LATENT
    """
    if negative is None:
        negative, cfg = positive, 1.0
    start = comfy.sample.fix_empty_latent_channels(
        model, latent["samples"], latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal")
    )
    sampling = model_sampling(model)
    sigma = min(float(sampling.percent_to_sigma(percent)), float(sampling.sigma_max))  # percent 0 is far above it
    samples = comfy.sample.sample_custom(
        model, comfy.sample.prepare_noise(start, seed, latent.get("batch_index")), cfg,
        comfy.samplers.sampler_object("euler"), torch.tensor([sigma, 0.0]), positive, negative, start,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
    )  # fmt: skip
    return {"samples": samples}
