"""Samplers that a reflection may move, with their model calls per step. Read in comfy/k_diffusion/sampling.py of
ComfyUI 0.30.0.

All of them hand their own latent to the first call of a step and go on from it, so a displacement written into that
tensor is the sampler's own latent from then on: histories, noise and callbacks need nothing else.
"""

from __future__ import annotations

from ..schedule import CALLS_PER_STEP, Schedule

SAMPLERS = {
    "euler": 1, "euler_ancestral": 1, "heun": 2, "heunpp2": 3, "exp_heun_2_x0": 2, "exp_heun_2_x0_sde": 2, "dpm_2": 2,
    "dpm_2_ancestral": 2, "lms": 1, "dpmpp_2s_ancestral": 2, "dpmpp_sde": 2, "dpmpp_sde_gpu": 2, "dpmpp_2m": 1,
    "dpmpp_2m_sde": 1, "dpmpp_2m_sde_gpu": 1, "dpmpp_2m_sde_heun": 1, "dpmpp_2m_sde_heun_gpu": 1, "dpmpp_3m_sde": 1,
    "dpmpp_3m_sde_gpu": 1, "ddpm": 1, "lcm": 1, "ipndm": 1, "ipndm_v": 1, "deis": 1, "res_multistep": 1,
    "res_multistep_ancestral": 1, "gradient_estimation": 1, "er_sde": 1, "seeds_2": 2, "seeds_3": 3,
}  # fmt: skip
REFUSED = {
    "unipc": "uni_pc hands the model a scaled copy of its latent, so a reflection would not reach it",
    "unipc_bh2": "uni_pc_bh2 hands the model a scaled copy of its latent, so a reflection would not reach it",
    "sa_solver": "sa_solver corrects each step from latents of the steps before, which a reflection leaves behind",
    "sa_solver_pece": "sa_solver_pece corrects each step from latents of the steps before, which a reflection leaves "
                      "behind",
    "dpm_fast_function": "dpm_fast chooses sigmas of its own",
    "dpm_adaptive_function": "dpm_adaptive chooses sigmas of its own",
}  # fmt: skip


def why_refused(function: str) -> str | None:
    """Why a sampler cannot be reflected, None where it can. function: name of its function"""
    name = function.removeprefix("sample_")
    if name in SAMPLERS:
        return None
    if name.endswith("_cfg_pp"):
        return f"the sampler {name} takes the answer without a prompt apart from the guided one, and moves by both"
    return REFUSED.get(name, f"the sampler {name or 'of this run'} is not known")


def calls_per_step(schedule: Schedule, step: int) -> int:
    """Model calls of a step of an accepted sampler; samplers of several calls end with a step of one."""
    if schedule.sampler in CALLS_PER_STEP:
        calls = schedule.calls_in(step)
    else:
        calls = SAMPLERS.get(schedule.sampler.removeprefix("sample_"), 1)
    return 1 if schedule.sigmas[step + 1] == 0.0 else calls
