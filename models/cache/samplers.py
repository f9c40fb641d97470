"""What each of ComfyUI's samplers means for a cache. Read in comfy/k_diffusion/sampling.py of ComfyUI 0.30.0.

    smooth      the latent follows a curve: velocities can be forecast
    noisy       noise is added between steps: the velocity jumps with it, the denoised latent does not
    refused     its steps depend on what the model answers, so a forecast would steer the schedule
"""
from __future__ import annotations

SMOOTH = (
    "euler", "euler_cfg_pp", "heun", "heunpp2", "exp_heun_2_x0", "dpm_2", "lms", "dpm_fast", "dpmpp_2m",
    "dpmpp_2m_cfg_pp", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "gradient_estimation",
    "gradient_estimation_cfg_pp", "unipc", "unipc_bh2",
)
NOISY = (
    "euler_ancestral", "euler_ancestral_RF", "euler_ancestral_cfg_pp", "exp_heun_2_x0_sde", "dpm_2_ancestral",
    "dpm_2_ancestral_RF", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_RF", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde",
    "dpmpp_sde_gpu", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu", "ddpm", "lcm", "res_multistep_ancestral", "res_multistep_ancestral_cfg_pp", "er_sde",
    "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece",
)
REFUSED = {
    "dpm_adaptive": "the sampler dpm_adaptive chooses its steps by the model's answers",
    "ar_video": "the sampler ar_video makes frame after frame from a key cache",
}
SAMPLERS = {**dict.fromkeys(SMOOTH, "smooth"), **dict.fromkeys(NOISY, "noisy"), **dict.fromkeys(REFUSED, "refused")}
# Samplers whose function carries another name than the sampler.
FUNCTIONS = {"dpm_fast_function": "dpm_fast", "dpm_adaptive_function": "dpm_adaptive"}


def sampler_class(function: str) -> str | None:
    """smooth, noisy, refused, or None for a sampler that this table does not know. function: name of the function"""
    return SAMPLERS.get(FUNCTIONS.get(function, function.removeprefix("sample_")))


def why_refused(function: str) -> str | None:
    """Why a cache leaves every step of this sampler alone, None where it need not."""
    name = FUNCTIONS.get(function, function.removeprefix("sample_"))
    if name in REFUSED:
        return REFUSED[name]
    return None if name in SAMPLERS else f"the sampler {name or 'of this run'} is not known, so no step is left out"
