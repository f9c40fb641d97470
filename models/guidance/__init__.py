"""Guidance that moves the latent of a run: what is evaluated beside it, and what becomes of that."""

from __future__ import annotations

from .roles import CfgRoles, LoraRoles, ModelRoles, PromptRoles, Roles
from .samplers import SAMPLERS, calls_per_step, why_refused
from .w2sd import LABELS, Reflection, cost, reflect

__all__ = ["LABELS", "SAMPLERS", "CfgRoles", "LoraRoles", "ModelRoles", "PromptRoles", "Reflection", "Roles",
           "calls_per_step", "cost", "reflect", "why_refused"]  # fmt: skip
