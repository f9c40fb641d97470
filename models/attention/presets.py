"""Where each model family stands sparse attention, and how much of it. Starting points: tune them with the meter.

Gathered from the settings that DraftAttention, Sparse VideoGen, AdaSpa and Radial Attention were published with, at the
cautious end, because theirs drop what is not kept. Published shares of steps are shares of the step count, so they are
counted in steps here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..call import AttentionCall

FEW_STEPS = 8  # distilled models: the first steps make most of the picture
LARGE = 3000  # width of the network from which a model is a large one: Wan 14B has 5120, 5B 3072, 1.3B 1536
HD_TOKENS = 2500  # of a frame: 720p has 3600, 480p 1560 in Wan's patches


@dataclass(frozen=True)
class Preset:
    """start: share of the steps that stay dense    density: share of video-to-video blocks computed exactly"""

    name: str
    start: float
    dense_layers: tuple[int, ...]
    density: float
    order: str = "strip"


FEW = Preset("few steps", 0.4, (0, -1), 0.35)
OTHER = Preset("any model", 0.25, (0,), 0.35)
WAN_HD, WAN_SD = Preset("Wan 720p", 0.2, (0,), 0.25), Preset("Wan 480p", 0.25, (0,), 0.3)
WAN_SMALL = Preset("Wan small", 0.3, (0, 1), 0.4)
FAMILIES = {
    "hunyuan_video": Preset("HunyuanVideo", 0.1, (0, 1), 0.2),
    "hunyuan_video_15": Preset("HunyuanVideo 1.5", 0.1, (0, 1), 0.2),
    "cogvideox": Preset("CogVideoX", 0.2, (0,), 0.3),
    "ltxv": Preset("LTX", 0.2, (0,), 0.2),
    "ltxav": Preset("LTX 2", 0.2, (0,), 0.2),
    "mochi": Preset("Mochi", 0.2, (0, 1), 0.3),
    "cosmos": Preset("Cosmos", 0.3, (0,), 0.25),
    "cosmos_predict2": Preset("Cosmos Predict2", 0.3, (0,), 0.25),
    "kandinsky5": Preset("Kandinsky 5", 0.2, (0,), 0.3),
    "minimax_h3": Preset("MiniMax-H3", 0.2, (), 0.2),
}


def preset_of(call: AttentionCall) -> Preset:
    """The preset for this call's model, frame size and number of steps."""
    if call.run.schedule.steps <= FEW_STEPS:
        return FEW
    name = call.forward.family.name if call.forward.family else ""
    if not name.startswith("wan"):
        return FAMILIES.get(name, OTHER)
    if call.q.shape[2] * call.q.shape[3] < LARGE:
        return WAN_SMALL
    return WAN_HD if call.layout.frame_tokens >= HD_TOKENS else WAN_SD
