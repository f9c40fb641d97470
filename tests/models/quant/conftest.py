"""The tiny Wan dense, and quantised coarsely and finely, with two LoRAs for it."""

from __future__ import annotations

import pytest
from interspatial.tests.models.quant.tiny_quantised import loaded, lora, network_of
from interspatial.tests.models.tinies import BY_NAME


@pytest.fixture(scope="module")
def dense(comfy):
    return BY_NAME["wan"].model()


@pytest.fixture(scope="module")
def coarse(dense, tmp_path_factory):
    """At 4 bits, activations as they are."""
    return loaded(tmp_path_factory.mktemp("coarse") / "model.safetensors", dense, "rtn 4")


@pytest.fixture(scope="module")
def fine(dense, tmp_path_factory):
    """At 8 bits, in a format that is not ComfyUI's own."""
    return loaded(tmp_path_factory.mktemp("fine") / "model.safetensors", dense, "rtn 8")


@pytest.fixture(scope="module")
def weights(dense):
    return [lora(network_of(dense), seed) for seed in (1, 2)]
