"""Behaviour: what happens to a MODEL. Nodes call in here; arithmetic lives in `kernels`."""
