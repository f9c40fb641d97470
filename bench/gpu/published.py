"""What the papers of our methods report of speed: an entry a figure, with the density and schedule it was got at."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """density: share that is computed exactly; None: the method's own rule with `settings`
    attention: how many times faster than dense its attention is reported to be    whole: the same of a whole run
    warm: share of the steps that stay dense    layers: share of the layers that do
    tail: as the method runs here; theirs drop the rest but for Sol-Attn and SVG-EAR
    """

    name: str
    method: str
    shape: str
    density: float | None
    attention: float | None = None
    whole: float | None = None
    warm: float = 0.0
    layers: float = 0.0
    tail: str | None = None
    settings: dict = field(default_factory=dict)

    @property
    def dense_calls(self) -> float:
        return 1 - (1 - self.warm) * (1 - self.layers)


# DraftAttention: the paper keeps a quarter of the steps dense. Sparse VideoGen 1 and 2: warm-up of their scripts.
# Sparse-vDiT gives no density: what its PFLOP leave of attention, whose dense share is 4 N^2 H D for every layer and
# step (468 of 660 PFLOP for Wan, 522 of 612 for HunyuanVideo, 105 of 148 for CogVideoX 1.5). AdaSpa: 10 of 50 steps.
# Sol-Attn: a fifth of the steps and the first layer. Radial: 12 of 50 steps, one layer of 40 for Wan. Rectified-SpaAttn
# is not among our methods: Draft with its tail at that density stands in, no dense step supposed. Attention tiles: 24
# frames with 3 and 6 reference frames, by FlexAttention on an A100. Re-ttention tells no time.
PUBLISHED = (
    Published("SVG2, Wan 720p", "svg2", "wan720", 0.295, attention=2.98, whole=1.60, warm=0.20, layers=0.025),
    Published("SVG2 Turbo, Wan 720p", "svg2", "wan720", 0.129, whole=1.89, warm=0.20, layers=0.025),
    Published("SVG-EAR, Wan 720p", "svg2", "wan720", 0.236, whole=1.61, warm=0.35, layers=0.025, tail="row"),
    Published("SVG1, Wan 720p", "svg1", "wan720", 0.30, whole=1.51, warm=0.20, layers=0.025),
    Published("Sol-Attn, Wan 720p", "threshold", "wan720", 0.149, whole=2.02, warm=0.20, layers=0.025, tail="block"),
    Published("Radial, Wan 720p", "radial", "wan720", None, whole=1.8, warm=0.24, layers=0.025,
              settings={"decay": 0.2}),
    Published("Rectified-SpaAttn, Wan 720p", "draft", "wan720", 0.25, whole=1.68, tail="row"),
    Published("Sparse-vDiT, Wan 720p", "sparse_vdit", "wan720", 0.44, whole=1.58),
    Published("Sol-Attn, 128k tokens", "threshold", "sol128k", 0.10, attention=5.41, tail="block"),
    Published("SVG2, HunyuanVideo 720p", "svg2", "hunyuan720", 0.255, attention=4.06, whole=2.30, warm=0.10,
              layers=0.033),
    Published("SVG1, HunyuanVideo 720p", "svg1", "hunyuan720", 0.25, whole=1.91, warm=0.10, layers=0.033),
    Published("AdaSpa, HunyuanVideo 720p", "adaspa", "hunyuan720", 0.20, whole=1.78, warm=0.20),
    Published("Sol-Attn, HunyuanVideo 720p", "threshold", "hunyuan720", 0.142, whole=2.12, warm=0.20, layers=0.017,
              tail="block"),
    Published("Radial, HunyuanVideo 720p", "radial", "hunyuan720", None, whole=1.9, warm=0.24,
              settings={"decay": 0.95, "first_frame": False}),
    Published("Rectified-SpaAttn, HunyuanVideo 720p", "draft", "hunyuan720", 0.20, whole=2.50, tail="row"),
    Published("Sparse-vDiT, HunyuanVideo 720p", "sparse_vdit", "hunyuan720", 0.32, whole=1.85),
    Published("DraftAttention, Wan 768p, 75 %", "draft", "wan768", 0.25, whole=1.42, warm=0.25, layers=0.025),
    Published("DraftAttention, Wan 768p, 55 %", "draft", "wan768", 0.45, whole=1.22, warm=0.25, layers=0.025),
    Published("DraftAttention, HunyuanVideo 768p, 90 %", "draft", "hunyuan768", 0.10, whole=1.75, warm=0.25,
              layers=0.033),
    Published("DraftAttention, HunyuanVideo 768p, 80 %", "draft", "hunyuan768", 0.20, whole=1.58, warm=0.25,
              layers=0.033),
    Published("Sparse-vDiT, CogVideoX 1.5", "sparse_vdit", "cogvideox15", 0.27, whole=1.76),
    Published("Attention tiles, 93 frames, 3 of 24", "attention_tile", "opensora93f", None, attention=3.67,
              settings={"reference_frames": 3}),
    Published("Attention tiles, 93 frames, 6 of 24", "attention_tile", "opensora93f", None, attention=2.14,
              settings={"reference_frames": 6}),
    Published("Re-ttention, CogVideoX 2B", "rettention", "cogvideox2b", 0.031, warm=0.44, settings={"mask": "window"}),
)  # fmt: skip
