"""Compare Videos and Measure Run: how far two renders are apart, and what each one cost."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models import host
from ..models.measure import metrics, picture, stopwatch, summary

MEASUREMENT = io.Custom("INTERSPATIAL_MEASUREMENT")
FRAMES = "A VIDEO becomes frames with Get Video Components."
RUN = "The measurement from the Measure Run node of the branch that makes the {clip}; adds its seconds and peak memory."


class CompareVideos(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialCompareVideos",
            display_name="Compare Videos",
            category="interspatial/measure",
            description="Measures a test clip against a reference clip of the same size and length: PSNR, SSIM, "
            "flicker, and with Measure Run also seconds and peak memory. Shows frames side by side, where they differ, "
            "and PSNR and SSIM over the frames.",
            search_aliases=["psnr", "ssim", "flicker", "benchmark", "compare", "difference", "quality", "side by side"],
            is_output_node=True,
            inputs=[
                io.Image.Input("reference", tooltip=f"Frames of the clip to compare with: the plain render. {FRAMES}"),
                io.Image.Input("test", tooltip=f"Frames to judge; same size and number as the reference. {FRAMES}"),
                MEASUREMENT.Input("reference_run", optional=True, tooltip=RUN.format(clip="reference")),
                MEASUREMENT.Input("test_run", optional=True, tooltip=RUN.format(clip="test clip")),
                io.String.Input("reference_label", default="reference", optional=True,
                                tooltip="Name of the reference in the picture and the report, e.g. dense."),
                io.String.Input("test_label", default="test", optional=True,
                                tooltip="Name of the test clip in the picture and the report, e.g. sparse."),
                io.Float.Input("fps", default=0.0, min=0.0, max=240.0, step=0.01, optional=True, advanced=True,
                               tooltip="Frames per second, to give times in seconds; 16 for Wan, 24 for most others. "
                               "0: count in frames only."),
                io.Float.Input("error_gain", default=8.0, min=1.0, max=255.0, step=0.5, optional=True, advanced=True,
                               tooltip="Brightness of the error map: its last colour stands for 255 / gain levels of "
                               "255. 8 suits sparse attention, 30 or more shows rounding errors."),
                io.Int.Input("frames_shown", default=3, min=1, max=8, optional=True, advanced=True,
                             tooltip="Number of frames side by side in the picture, the worst one among them; 3 or 4 "
                             "stay readable on a node."),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Frames, error map and plots on one sheet."),
                io.String.Output(display_name="report", tooltip="The figures in words, one line for each."),
                io.Float.Output(display_name="psnr", tooltip="PSNR over the whole clip in dB; inf if nothing differs."),
                io.Float.Output(display_name="ssim", tooltip="Mean SSIM over the frames; 1 if nothing differs."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        reference,
        test,
        reference_run=None,
        test_run=None,
        reference_label="reference",
        test_label="test",
        fps=0.0,
        error_gain=8.0,
        frames_shown=3,
    ) -> io.NodeOutput:
        reference, test = reference[..., :3], test[..., :3]  # alpha is not part of what is seen
        if reason := metrics.why_not(reference, test):
            raise ValueError(f"Compare Videos: {reason}")
        found = metrics.compare(reference, test, host.progress_bar(len(reference)), host.check_interrupt)
        names = one_line(reference_label) or "reference", one_line(test_label) or "test"
        measured = measured_clips(names, (reference_run, test_run))
        lines = summary.summarize(found, (reference.shape[2], reference.shape[1]), fps, measured)
        sheet = picture.draw_comparison(reference, test, found, names, lines, error_gain, frames_shown).unsqueeze(0)
        report = "\n".join([f"{names[1]} against {names[0]}", *lines])
        host.show_text(report, getattr(cls.hidden, "unique_id", None))
        shown = {**ui.PreviewImage(sheet, cls=cls).as_dict(), **ui.PreviewText(report).as_dict()}
        return io.NodeOutput(sheet, report, found.clip_psnr, found.clip_ssim, ui=shown)


class MeasureRun(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialMeasureRun",
            display_name="Measure Run",
            category="interspatial/measure",
            description="Measures every sampling run of this model: seconds, seconds per step, model calls and peak "
            "memory. Put it anywhere before the sampler and connect the measurement to Compare Videos.",
            search_aliases=["timer", "benchmark", "seconds per step", "peak memory", "vram", "speed", "profile"],
            inputs=[io.Model.Input("model", tooltip="The model whose sampling is measured, patched or not.")],
            outputs=[
                io.Model.Output(tooltip="The same model, measured; results are bit-equal. Goes to the sampler."),
                MEASUREMENT.Output(
                    display_name="measurement", tooltip="Filled when the sampler has run. Goes to Compare Videos."
                ),
            ],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        return io.NodeOutput(*stopwatch.attach_stopwatch(model))


def measured_clips(names, runs):
    """(name, the run that made it) of the clips of this Compare Videos that have a Measurement."""
    clips = zip(names, runs, ("reference", "test"), strict=True)
    return [(name, stopwatch.run_behind(run, clip)) for name, run, clip in clips if run is not None]


def one_line(label: str) -> str:
    """A label without line breaks, tabs and outer spaces."""
    return " ".join(label.split())
