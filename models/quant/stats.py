"""What is known of the activations that enter a layer, from a calibration."""
# K inputs   S bins of the noise range

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerStats:
    """Of one layer's input, over all tokens of the calibration.

    peak: [S, K] float32, largest absolute value of each channel, by bin of sigma
    power: [S, K] float32, mean square of each channel, by bin
    gram: [K, K] float32, mean outer product of the input with itself over all bins; None where it was too large to keep
    """

    peak: Tensor
    power: Tensor
    gram: Tensor | None = None

    @property
    def peaks(self) -> Tensor:
        """[K], over all bins."""
        return self.peak.amax(0)

    @property
    def rms(self) -> float:
        """J of LRQ-DiT: root mean square over everything."""
        return float(self.power.mean().sqrt())

    @property
    def salience(self) -> float:
        """Largest channel peak over the median one: what tells layers with salient channels from others."""
        return float(self.peaks.max() / self.peaks.median().clamp_min(1e-12))
