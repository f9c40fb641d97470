"""Attention methods, one file each: they choose blocks, `kernels.block_attend` does the arithmetic."""
