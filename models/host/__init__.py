"""The only door to ComfyUI: hooks into a MODEL, and the few services of the host.

    attach_attention(model, card, method)   a method for the video's self attention
    attach_step(model, card, method)        a method around a whole evaluation of the model
    reflecting_sampler(sampler, roles, ...) a SAMPLER that reflects before the steps of another one
    report_of(model)                        what the patches of this model did in the last run
"""
from __future__ import annotations

from .folders import register_folders
from .hooks import KINDS, Patch, StepCall, attach_attention, attach_step, patches_of, report_of
from .lora_switch import load_lora, lora_files
from .measuring import executing_node, wrap_outermost
from .reflection import reflecting_sampler
from .services import (
    add_model_folder,
    check_interrupt,
    family_of_model,
    free_memory,
    model_sampling,
    other_cache,
    progress_bar,
    show_text,
)
from .text_encoder import load_text_encoder, text_encoder_files

__all__ = [
    "KINDS", "Patch", "StepCall", "add_model_folder", "attach_attention", "attach_step", "check_interrupt",
    "executing_node",
    "family_of_model", "free_memory", "load_lora", "load_text_encoder", "lora_files", "model_sampling",
    "other_cache", "patches_of", "progress_bar", "reflecting_sampler", "register_folders", "report_of", "show_text",
    "text_encoder_files", "wrap_outermost",
]
