"""Arithmetic: one operation per file, the reference above the backends, one signature. Imports torch only.

| operation      | file              | what it computes                                          | backends            |
| -------------- | ----------------- | --------------------------------------------------------- | ------------------- |
| `block_attend` | `block_attend.py` | attention over kept key blocks, the rest as a pooled tail | gather (any device) |
| `pool_blocks`  | `pool_blocks.py`  | weighted block means and the log of their weights         | torch (any device)  |

What they stand on: `block_plan.py` (which blocks see which), `head_rows.py` (heads as rows of one table),
`dense_rows.py` and `kept_rows.py` (the two halves of the gather backend).
"""
