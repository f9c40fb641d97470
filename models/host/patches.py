"""Patches on a MODEL, changed after they were put there."""

from __future__ import annotations

from dataclasses import replace

from .hooks import PATCHES, Patch, patches_of


def with_method(model, patch: Patch, method):
    """A clone of a MODEL in which one of its step patches has another method: the same place, the same card."""
    model = model.clone()
    found = (replace(one, method=method) if one is patch else one for one in patches_of(model))
    model.model_options["transformer_options"][PATCHES] = tuple(found)
    return model
