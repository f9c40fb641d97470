"""Sockets that several nodes share."""

from __future__ import annotations

from comfy_api.latest import io

ACTIVATIONS = io.Custom("INTERSPATIAL_ACTIVATIONS")  # a models.quant.calibration.Calibration
PLAN = io.Custom("INTERSPATIAL_QUANT_PLAN")  # a models.quant.plan.Plan
BODY = io.Custom("INTERSPATIAL_BODY")  # a models.control.body.BodyTrack
CAMERA = io.Custom("INTERSPATIAL_CAMERA")  # a models.control.camera.CameraPath
WORLD = io.Custom("INTERSPATIAL_WORLD")  # a models.puppet.world.World
ADAPTER = io.Custom("INTERSPATIAL_ADAPTER")  # a models.host.adapter_files.LoadedAdapter
