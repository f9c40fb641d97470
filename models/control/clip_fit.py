"""Bodies and cameras brought to the clip that a run makes: its length, its picture, and a camera where none is given.

P people   T pixel frames   N points a person   F latent frames
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from .body import BodyTrack
from .camera import CameraPath
from .camera_moves import default_stand, stand_before
from .time_folding import latent_frames
from .tokens import BodyTokens, body_tokens, identity_features

FITS = ("stretch", "trim")


@dataclass(frozen=True)
class Clip:
    """latents: F of the whole video    stride: pixel frames a latent frame
    height, width: pixels of the video    rows, columns: pixels that the token grid covers, its padding included
    """

    latents: int
    stride: int
    height: int
    width: int
    rows: int
    columns: int

    @property
    def frames(self) -> int:
        return (self.latents - 1) * self.stride + 1


@dataclass(frozen=True)
class Fit:
    """how: one of FITS    fps: of the video, 0 for that of the body"""

    how: str = "stretch"
    fps: float = 0.0


@dataclass(frozen=True)
class ClipTokens:
    """tokens: of the whole clip, on the CPU    notes: what was changed, for the report"""

    tokens: BodyTokens
    notes: dict[str, str]

    @property
    def seen(self) -> bool:
        return bool(self.tokens.usable.any())

    def with_identity(self, features: Tensor | None) -> ClipTokens:
        """features: of `tokens.identity_features`"""
        return replace(self, tokens=replace(self.tokens, identity=features))


def tokens_of_clip(body: BodyTrack, camera: CameraPath | None, clip: Clip, fit: Fit, depth: str) -> ClipTokens:
    """camera: None for `hold_camera`    depth: mode of `projection.DEPTHS`"""
    body, camera, notes = brought(body, camera, clip, fit)
    camera = replace(camera, height=clip.rows, width=clip.columns)
    tokens = body_tokens(body, camera, clip.stride, depth)
    notes["points"] = f"{100 * tokens.usable.float().mean():.0f} % in view"
    return ClipTokens(tokens, notes)


def brought(
    body: BodyTrack, camera: CameraPath | None, clip: Clip, fit: Fit
) -> tuple[BodyTrack, CameraPath, dict[str, str]]:
    """Both at the length and in the picture of the clip, and what was changed. camera: None for `hold_camera`"""
    notes: dict[str, str] = {}
    rate = _rate(body, fit)
    body = _lengthened(body, clip, fit, notes)
    if camera is None:
        camera = hold_camera(body, clip.height, clip.width)
        notes["camera"] = "none given, one that holds and sees everybody"
    camera = _camera_lengthened(camera, rate, clip, fit, notes)
    if camera.height * clip.width != camera.width * clip.height:
        notes["picture"] = "of another shape than the camera's, which is scaled to cover it and cropped"
    return body, camera.covering(clip.height, clip.width), notes


def hold_camera(body: BodyTrack, height: int, width: int) -> CameraPath:
    """A level camera that stands still on the +z side, where bodies face, and sees all known points of all frames.

    returns: one frame
    """
    stand = stand_before(body, height, width) if body.known.any() else default_stand()
    return stand.path(1, height, width)


def reference_features(latent: Tensor, body: BodyTrack, camera: CameraPath | None, stride: int) -> Tensor:
    """What a reference picture shows of each point: `tokens.identity_features` of the first frames.

    latent: [C, h, w] as the model sees it    stride: pixels a latent entry
    """
    height, width = (stride * size for size in latent.shape[1:])
    body = body.at(slice(1))
    camera = hold_camera(body, height, width) if camera is None else camera.at(slice(1))
    return identity_features(latent.float().cpu(), body, camera.covering(height, width))


def _lengthened(body: BodyTrack, clip: Clip, fit: Fit, notes: dict) -> BodyTrack:
    rate = _rate(body, fit)
    if _long_enough(body.frames, rate, clip, fit):
        return body.at(slice(clip.frames))
    speed = f", {body.fps:g} a second brought to {fit.fps:g}" if fit.how == "trim" and rate != 1 else ""
    notes["body"] = f"{body.frames} frames to {clip.frames}, {_done(body.frames / rate, clip, fit)}{speed}"
    return body.fitted(clip.frames, body.fps / rate, fit.how)


def _camera_lengthened(camera: CameraPath, rate: float, clip: Clip, fit: Fit, notes: dict) -> CameraPath:
    if _long_enough(camera.frames, rate, clip, fit):
        return camera.at(slice(clip.frames))
    if camera.frames > 1:
        notes["camera"] = f"{camera.frames} frames to {clip.frames}, {_done(camera.frames / rate, clip, fit)}"
    return camera.fitted(clip.frames, rate, fit.how)


def _rate(body: BodyTrack, fit: Fit) -> float:
    """Frames of the body to a frame of the video. The camera has the body's rate: it has none of its own."""
    return body.fps / (fit.fps or body.fps)


def _long_enough(frames: int, rate: float, clip: Clip, fit: Fit) -> bool:
    """Frames behind the last whole latent frame are not missed, and say nothing about another speed."""
    return latent_frames(frames, clip.stride) == clip.latents and (fit.how == "stretch" or rate == 1)


def _done(frames: float, clip: Clip, fit: Fit) -> str:
    if fit.how == "stretch":
        return "stretched"
    return "the last one held" if frames < clip.frames else "trimmed"
