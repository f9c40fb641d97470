"""Trainers of the tiny checkpoints. Not part of the published pack."""
