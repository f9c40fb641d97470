"""Choices by name: one sentence for every word that Puppet World does not know."""

from __future__ import annotations

from collections.abc import Iterable


def check_choice(what: str, value: object, accepted: Iterable[object]) -> None:
    """raises: ValueError that names the value and what is accepted"""
    known = list(accepted)
    if value not in known:
        names = ", ".join(str(one) for one in known)
        raise ValueError(f"Puppet World: {what} {value!r} is not known. Accepted: {names}.")
