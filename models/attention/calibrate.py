"""Measures what each fixed pattern costs each head, on some exact rows of every attention call, and changes nothing.

The calibration of Sparse-vDiT (arXiv 2506.03065) and the layer search of Efficient-vDiT (arXiv 2502.06155). Differs
from the papers: errors of sampled rows in place of whole outputs, averaged over the run and over prompts before
anything is chosen (theirs go on with what they chose, so an early choice bends all later ones), with the pooled tail
where the sparse run will have it, by place in the noise range, so any sampler and number of steps can use the result.
"""
# B batch   N tokens   H heads   D head dim   K blocks   V video blocks   S slots per block   R sampled rows
# P patterns   X heads of a chunk

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..call import AttentionCall
from .blocks import Blocks
from .pattern_findings import Findings, LayerSums, Scene
from .pattern_table import Network, bin_of
from .patterns import Pattern, pattern_map, places_of, stripe_columns, stripe_map
from .presets import preset_of
from .sampled_rows import SampledRows, pattern_errors, stratified_rows

AUTO = Blocks(None)
ROWS = 256  # of one call


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `host.attach_attention` takes, for one run. Attention stays dense.

    findings: says what is measured, and takes it
    blocks: as the sparse run will have them
    tick: called before each attention call is measured; may raise the user's interrupt
    """

    findings: Findings
    blocks: Blocks = AUTO
    rows: int = ROWS
    tick: Callable[[], None] = lambda: None

    def why_not(self, call: AttentionCall) -> str | None:
        if reason := call.mask_reason():
            return reason
        if call.k.shape[2] != call.q.shape[2]:
            return "grouped queries: fewer key heads than query heads"
        if call.forward.position is None:
            return "the sampler does not tell the step"
        if not any(branch.cond == 0 for branch in call.branches):
            return "the negative prompt"
        if self.findings.scene is not None and call.layout.key != self.findings.scene.layout.key:
            return "other tokens than the first call had"
        return None

    def attend(self, call: AttentionCall) -> Tensor:
        """returns: [B, N, H, D], dense"""
        self.tick()
        if self.findings.scene is None:
            self.findings.scene = self._scene(call)
        for branch in call.branches:
            if branch.cond == 0:
                for row in range(*branch.rows.indices(call.q.shape[0])):
                    self._add(call, row)
        return call.dense()

    def _scene(self, call: AttentionCall) -> Scene:
        blocks = self.blocks.resolved(preset_of(call).order)
        order = blocks.of(call)
        places = places_of(order, call.layout)
        fixed = [pattern for pattern in self.findings.patterns if pattern.kind not in ("full", "stripes")]
        maps = {pattern: pattern_map(pattern, places) for pattern in fixed}
        return Scene(Network.of(call), call.layout, blocks, order, places, maps)

    def _add(self, call: AttentionCall, row: int) -> None:
        """Measure one entry of the batch."""
        layer, scene, patterns = self._layer(call), self.findings.scene, self.findings.patterns
        video, seed = call.layout.video, 1000 * sum(layer.calls) + call.layer
        rows = stratified_rows(self.rows, video.start, video.stop, seed).to(call.q.device)
        bias = None if call.key_bias is None else call.key_bias.expand(call.q.shape[0], -1)[row]
        sample = SampledRows.of(
            call.q[row], call.k[row], call.v[row], rows, scene.order,
            scale=call.scale, key_bias=bias, tail=self.findings.tail,
        )  # fmt: skip
        apart, length = [], []
        for heads, scores in sample.chunks():
            layer.mass[heads] += scores.mass()
            columns = stripe_columns(layer.mass[heads])
            found = pattern_errors(scores, [self._keep(pattern, sample.block, columns) for pattern in patterns])
            apart.append(found[0])
            length.append(found[1])
        number = bin_of(call.forward.position.percent, self.findings.bins)
        layer.errors[number] += relative(torch.cat(apart), torch.cat(length))
        layer.calls[number] += 1

    def _keep(self, pattern: Pattern, block: Tensor, columns: Tensor) -> Tensor | None:
        """The map of a pattern at some rows: bool [1 or X, R, V], None for all.

        block: int64 [R]; columns: int64 [X, V]
        """
        if pattern.kind == "full":
            return None
        if pattern.kind != "stripes":
            return self.findings.scene.maps[pattern][block][None]
        own = block[:, None] == torch.arange(columns.shape[-1], device=block.device)
        return stripe_map(columns, pattern, own)

    def _layer(self, call: AttentionCall) -> LayerSums:
        layers, bins, heads = self.findings.layers, self.findings.bins, call.q.shape[2]
        if call.layer not in layers:
            errors = torch.zeros(bins, heads, len(self.findings.patterns), device=call.q.device)
            mass = torch.zeros(heads, len(self.findings.scene.places), device=call.q.device)
            layers[call.layer] = LayerSums(errors, [0] * bins, mass)
        return layers[call.layer]


def relative(apart: Tensor, length: Tensor) -> Tensor:
    """Errors as a share of the layer's output, so that a head which gives little may be wrong. fp32 [H, P], [H]

    Measured: with each head's own output in their place the tiny model's clips were 0.5 to 0.8 dB further from dense at
    densities 0.5 and 0.3, and as far at 0.2.
    """
    return apart / length.mean().clamp(min=1e-30)
