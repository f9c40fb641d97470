"""Sockets that several nodes share."""

from __future__ import annotations

from comfy_api.latest import io

ACTIVATIONS = io.Custom("INTERSPATIAL_ACTIVATIONS")  # a models.quant.calibration.Calibration
PLAN = io.Custom("INTERSPATIAL_QUANT_PLAN")  # a models.quant.plan.Plan
