"""Arithmetic: one operation per file, the reference above the backends, one signature. Imports torch only.

| operation      | file              | what it computes                                              | backends |
| -------------- | ----------------- | ------------------------------------------------------------- | -------- |
| `block_attend` | `block_attend.py` | attention over kept key blocks, the rest as a pooled tail     | gather   |
| `pool_blocks`  | `pool_blocks.py`  | block means and log weights                                   | torch    |

Tables they share: `block_plan.py` (which blocks see which), `head_rows.py` (heads as rows of one table).
"""
