"""Evidence: scripts that measure, and their results with the method. Not part of the published pack."""
