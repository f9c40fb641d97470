"""Settings of the interspatial transformer, as they lie in the metadata of its files, and the shapes that are known."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class DiTConfig:
    """width, depth, heads: of the video    points, point_heads: width and heads of the point tokens
    patch: latent pixels a token    extra: channels laid beside the latent (a background and its mask, or maps)
    identity: channels of the reference at each point    reference: channels of reference tokens, 0 for none
    camera: rays are given    vector: numbers that shift the modulation, 0 for none
    position: see POSITIONS    depth_mode: see `control.projection`    symmetric: points look at pixels too
    over_time: points look at themselves over time    feed: hidden channels per channel of the feed-forward
    temporal_stride: pixel frames a latent frame
    predicts: "flow", or "clip": the network gives the clean clip, from which the flow follows. A narrow network cannot
        carry the noise of its patches (Li and He, 2511.13720)
    """

    channels: int = 16
    width: int = 192
    depth: int = 4
    heads: int = 6
    points: int = 96
    point_heads: int = 3
    patch: int = 2
    extra: int = 17
    identity: int = 16
    reference: int = 16
    camera: bool = True
    vector: int = 0
    position: str = "rotary"
    depth_mode: str = "linear"
    symmetric: bool = True
    over_time: bool = True
    feed: float = 4.0
    temporal_stride: int = 4
    predicts: str = "flow"

    @staticmethod
    def of(values: dict) -> DiTConfig:
        """raises: ValueError for settings that this version does not know"""
        unknown = set(values) - {field.name for field in fields(DiTConfig)}
        if unknown:
            raise ValueError(f"Interspatial model: settings {sorted(unknown)} are not known to this version.")
        return DiTConfig(**values)

    def told(self) -> dict:
        return asdict(self)


# The 4B shape is a guess that fits the published parameter count; see the help page.
CONFIGS = {
    "tiny": DiTConfig(width=160, heads=5, predicts="clip"),
    "small": DiTConfig(width=384, depth=12, heads=6, points=192, point_heads=3),
    "4b": DiTConfig(width=1536, depth=36, heads=24, points=768, point_heads=12),
}
