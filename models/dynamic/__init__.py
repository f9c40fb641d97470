"""Dynamic compute by trained routers: heads, MLP groups and tokens that a block leaves out, by noise level and content.

DyDiT, arXiv 2410.03456, and DyDiT++, arXiv 2504.06803. `router_file` reads a file, `dynamic_model` runs it.
"""
