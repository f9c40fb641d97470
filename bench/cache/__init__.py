"""Evidence for step caches and for guidance."""
