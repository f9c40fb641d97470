"""Evidence for interspatial control."""
