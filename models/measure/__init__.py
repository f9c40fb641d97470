"""Measuring a render against another one: how far apart, how long, how much memory."""
