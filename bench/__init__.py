"""Evidence: scripts that measure, and their results with the method. Not part of the published pack.

Importing it makes `interspatial` and `comfy` importable, so that the scripts import them like anything else.
"""

from training.package import prepare

prepare()
