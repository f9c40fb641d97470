"""Evidence for quantised weights."""
