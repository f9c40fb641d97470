"""Arithmetic: one operation per file of its name, the reference above the backends, one signature.

| operation       | what it computes                                          | backends, best first              |
| --------------- | --------------------------------------------------------- | --------------------------------- |
| `block_attend`  | attention over kept key blocks, the rest as a pooled tail | triton (CUDA, ROCm), gather (any) |
| `block_mass`    | softmax mass of every pair of blocks                      | triton (CUDA, ROCm), gather (any) |
| `decode_codes`  | packed codes to whole numbers, levels or vectors          | triton (CUDA, ROCm), torch (any)  |
| `int8_linear`   | int8 weights by activations rounded to int8 per token     | comfy_kitchen, triton, torch      |
| `keep_top`      | the columns that each row keeps, as ascending lists       | triton (CUDA, ROCm), torch (any)  |
| `list_map`      | lists of what a map keeps                                 | triton (CUDA, ROCm), torch (any)  |
| `nearest`       | the nearest centroid of every token, head by head         | triton (CUDA, ROCm), torch (any)  |
| `pool_blocks`   | weighted block means and the log of their weights         | triton (CUDA, ROCm), torch (any)  |
| `pooling_error` | what a block's mean in its place would do to each query   | triton (CUDA, ROCm), torch (any)  |
| `round_rows`    | rows masked, rotated and rounded to int8                  | triton (CUDA, ROCm), torch (any)  |
| `sol_attend`    | attention by the rule of Sol-Attn, which picks its blocks | comfy_kitchen 0.2.40 (CUDA, ROCm) |
| `weighted_sum`  | tensors times numbers, summed in float32 in one pass      | triton (CUDA, ROCm), torch (any)  |

A backend is a module, `triton_attend.py` or `gather_mass.py`, with the operation as one function and a `why_not`.
`attend_call.py` and `mass_call.py` hold the arguments and what no backend takes, `dispatch.py` chooses; `reasons` of a
`BACKENDS` says why not, backend by backend. The tables that all of them read are in `block_plan.py`. Behind the gather
backend of `block_attend` stand `ordered_rows.py` (CPU), `kept_rows.py` (devices) and `dense_rows.py` (full rows),
behind its triton backend `triton_ordered.py`, with keys and values in block order. `triton_tiles.py` times tiles, and
`tuned_tiles.py` remembers the fastest.

Imports torch only. Triton is imported where its kernels are first asked for, comfy_kitchen where `sol_attend`
and `int8_linear` ask for it.
"""
