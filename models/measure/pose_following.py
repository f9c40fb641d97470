"""How well a clip follows the bodies it was given: its pixels against the truth of a Puppet World, without a network.

F frames   H rows   W columns   P puppets   Z zones (`models/puppet/zones.py`). Places are x, y in pixels.

Both the clip and the rendered truth are read by colour, by the same reader: what cannot be read in the truth is not
held against the clip. The figures are those of section 16.4 of the specification of human motion:
part error: distance of a zone's centroid from its place in the truth
joint error: distance of the ends of a limb's longest axis from their places. A limb of even thickness and length l has
    a standard deviation of l / sqrt(12) along its axis, so its ends lie sqrt(3) of them off the centroid
part recall: share of the truth's readable pixels that show the same zone
silhouette IoU: of the pixels that differ from the empty place
right person: share of the pixels where one person covers another that are nearer to a colour of the front one
jitter: root mean square of the second difference over time of the centroids
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..puppet.subset import alone
from ..puppet.world import World
from ..puppet.zones import Palette, palette_of, places, read
from .metrics import not_finite

LEAST = 6 / 32  # pixels for each row of the picture: zones of fewer are not judged. 6 of 32 rows
WORST = 0.5  # of the picture's height: error of a zone that is missing, and the most that any counts
LONG = 2.0  # a zone has ends where it is this many times longer than broad
SAME_SHAPE = 0.02  # of the proportions, the most that a clip is stretched by
PARTS = 4  # of the work, for whoever shows progress


def _nothing(*done: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Marks:
    """Where zones are. count: [F, Z] pixels    centre: [F, Z, 2], NaN without pixels    ends: [F, Z, 2, 2], two places
    long: [F, Z] how many times longer than broad"""

    count: Tensor
    centre: Tensor
    ends: Tensor
    long: Tensor


@dataclass(frozen=True)
class PoseScore:
    """names: of the Z zones    colours: [Z, 3] that they wear
    truth, found: [F, Z, 2] centroids in pixels, NaN where a zone is not there
    judged: [F, Z] bool, where the truth shows enough of a zone    part_errors: [F, Z] pixels, NaN where not judged
    end_errors: [F, Z] pixels, NaN also where a zone has no two ends
    recalls, ious: [F]    shown: [F] readable pixels of the truth
    right, overlap_recalls: [F], NaN where nobody covers anybody    overlap: [F] pixels of the two
    height: of the picture, pixels    token: pixels a side    notes: what was adapted
    """

    names: tuple[str, ...]
    colours: Tensor
    truth: Tensor
    found: Tensor
    part_errors: Tensor
    end_errors: Tensor
    judged: Tensor
    recalls: Tensor
    ious: Tensor
    shown: Tensor
    right: Tensor
    overlap_recalls: Tensor
    overlap: Tensor
    height: int
    token: float
    notes: tuple[str, ...] = ()

    @property
    def part_error(self) -> float:
        """Pixels."""
        return self.part_errors.nanmean().item()

    @property
    def joint_error(self) -> float:
        """Token spacings."""
        return self.end_errors.nanmean().item() / self.token

    @property
    def part_recall(self) -> float:
        return _weighed(self.recalls, self.shown)

    @property
    def silhouette_iou(self) -> float:
        return self.ious.nanmean().item()

    @property
    def right_person(self) -> float:
        return _weighed(self.right, self.overlap)

    @property
    def overlap_recall(self) -> float:
        return _weighed(self.overlap_recalls, self.overlap)

    @property
    def jitter(self) -> float:
        """Pixels; NaN for a clip of fewer than three frames."""
        return jitter(self.found, self.judged)

    @property
    def truth_jitter(self) -> float:
        return jitter(self.truth, self.judged)

    @property
    def worst_frame(self) -> int:
        """The frame of the largest part error, of those that show a zone; 0 if none does."""
        return int(self.part_errors.nanmean(1).nan_to_num(-1.0).argmax())

    def lines(self) -> list[str]:
        """The figures in words."""
        error, high = self.part_error, self.height
        said = [f"part error {error:.2f} pixels ({100 * error / high:.1f} % of the height), "
                f"worst in frame {self.worst_frame}",
                f"part recall {100 * self.part_recall:.1f} %, silhouette IoU {self.silhouette_iou:.3f}"]  # fmt: skip
        if self.end_errors.isnan().all():
            said.append("joint error: no limb has a colour of its own; puppets in suits have")
        else:
            said.append(f"joint error {self.joint_error:.2f} token spacings of {self.token:g} pixels")
        if self.overlap.sum():
            said.append(f"right person in {100 * self.right_person:.1f} % of {int(self.overlap.sum())} overlapping "
                        f"pixels, {100 * self.overlap_recall:.1f} % of them in the right zone")  # fmt: skip
        else:
            said.append("right person: nobody covers another whose colours differ")
        if len(self.judged) > 2:
            said.append(f"jitter {self.jitter:.2f} pixels, {self.truth_jitter:.2f} in the truth")
        return [*said, *self.notes]


def follow(
    clip: Tensor, world: World, token: float = 16.0, step: Callable[[], None] = _nothing,
    check: Callable[[int], None] = _nothing,
) -> PoseScore:  # fmt: skip
    """Score a clip against the scene it was asked to show.

    clip: [F, H, W, C] 0..1; a longer or shorter one is compared from the start, one of another size is scaled
    token: pixels a side that a token of the model covers
    step: called after each of the PARTS of the work    check: called within them; what it raises ends the work
    raises: ValueError with a sentence for what cannot be compared
    """
    if reason := why_not(clip, world):
        raise ValueError(reason)
    clip, truth, world, notes = fitted(clip[..., :3].float().cpu().clamp(0, 1), world)
    step()
    palette, place = palette_of(world.spec), places(world, check)
    step()
    zone, body = read(clip, palette, place)
    truth_zone, truth_body = read(truth, palette, place)
    step()
    hit, shown, union = (zone == truth_zone) & (zone >= 0), (truth_zone >= 0).sum((1, 2)), (body | truth_body)
    right, overlap_hit, overlap = people_in_overlap(clip, zone, truth_zone, world, palette)
    step()
    return PoseScore(
        palette.names, palette.zone_colours, *_errors(zone, truth_zone, palette), hit.sum((1, 2)) / shown,
        (body & truth_body).sum((1, 2)) / union.sum((1, 2)), shown, right / overlap, overlap_hit / overlap, overlap,
        world.height, float(token), tuple(notes),
    )  # fmt: skip


def _errors(zone: Tensor, truth_zone: Tensor, palette: Palette) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Centroids of the truth and the clip, their errors, errors of ends, and zones that are judged.

    zone, truth_zone: [F, H, W]    returns: [F, Z, 2] twice, [F, Z] three times
    raises: ValueError where nothing can be judged
    """
    found, truth = (marks_of(each, len(palette.names)) for each in (zone, truth_zone))
    judged = truth.count >= LEAST * zone.shape[1]
    if not judged.any():
        raise ValueError("no part of a puppet covers enough pixels of the truth to be judged: they are out of the "
                         "picture, or too small. Accepted: puppets that can be seen. Make the world larger, or move "
                         "them.")  # fmt: skip
    most = WORST * zone.shape[1]
    gap, ends = (found.centre - truth.centre).norm(dim=-1), end_distance(found.ends, truth.ends)
    gap, ends = (torch.where(found.count > 0, each, most).clamp(max=most) for each in (gap, ends))
    ended = judged & palette.long & (truth.long >= LONG)
    return (truth.centre, found.centre, gap.where(judged, torch.nan), ends.where(ended, torch.nan), judged)


def why_not(clip: Tensor, world: World) -> str | None:
    """Why a clip cannot be scored against a scene, as a sentence, or None."""
    if not world.spec.puppets:
        return "the scene has no puppets. Accepted: a world of one or more. Set puppets in Puppet Scene."
    if clip.ndim != 4 or clip.numel() == 0 or clip.shape[-1] < 3:
        return (f"the clip is empty or has no colour: its shape is {list(clip.shape)}. Accepted: frames x height x "
                "width x 3. Connect the frames of a clip (for a VIDEO: Get Video Components).")  # fmt: skip
    stretch = clip.shape[2] * world.height / (clip.shape[1] * world.width)
    if abs(stretch - 1) > SAME_SHAPE:
        return (f"the clip is {clip.shape[2]} x {clip.shape[1]} pixels and the world {world.width} x {world.height} "
                "(width x height). Accepted: the same proportions. Crop the clip, or make the world with the "
                "proportions of the clip.")  # fmt: skip
    return not_finite("test", clip)


def fitted(clip: Tensor, world: World) -> tuple[Tensor, Tensor, World, list[str]]:
    """Clip and truth brought to the same frames and pixels. returns: clip, truth, world, what was done in words"""
    notes, frames = [], min(len(clip), world.frames)
    if len(clip) != world.frames:
        notes.append(f"compared: the first {frames} frames; the clip has {len(clip)}, the world {world.frames}")
    if clip.shape[1:3] != (world.height, world.width):
        notes.append(f"scaled: the clip from {clip.shape[2]} x {clip.shape[1]} to {world.width} x {world.height} "
                     "pixels, the size of the world")  # fmt: skip
        size = (world.height, world.width)
        clip = interpolate(clip.movedim(-1, 1), size, mode="bilinear", antialias=True).movedim(1, -1)
    return clip[:frames], world.rgb[:frames], world.at(slice(0, frames)), notes


def marks_of(zone: Tensor, count: int) -> Marks:
    """Centroid and ends of each zone in each frame. zone: [F, H, W] int64, -1 where none    count: Z"""
    frame, y, x = (zone >= 0).nonzero(as_tuple=True)
    slot, x, y = frame * count + zone[frame, y, x], x.double() + 0.5, y.double() + 0.5

    def summed(values: Tensor) -> Tensor:
        return torch.bincount(slot, values, len(zone) * count).double().view(len(zone), count)

    pixels = summed(torch.ones_like(x))
    mean = torch.stack([summed(x), summed(y)], -1) / pixels[..., None]
    off = torch.stack([x, y], -1) - mean.flatten(0, 1)[slot]
    xx, xy, yy = (summed(off[:, i] * off[:, j]) / pixels for i, j in ((0, 0), (0, 1), (1, 1)))
    spread, axis = torch.linalg.eigh(torch.stack([xx, xy, xy, yy], -1).nan_to_num().unflatten(-1, (2, 2)))
    broad, long = (spread.clamp(min=0) + 1 / 12).sqrt().unbind(-1)  # a single row of pixels is one pixel broad
    reach = (3 * spread[..., 1:]).clamp(min=0).sqrt() * axis[..., 1]
    return Marks(pixels, mean, torch.stack([mean - reach, mean + reach], -2), long / broad)


def end_distance(found: Tensor, truth: Tensor) -> Tensor:
    """Mean distance of two pairs of ends, paired the better way. found, truth: [F, Z, 2, 2] -> [F, Z]"""
    straight = (found - truth).norm(dim=-1).mean(-1)
    return torch.minimum(straight, (found.flip(-2) - truth).norm(dim=-1).mean(-1))


def people_in_overlap(
    clip: Tensor, zone: Tensor, truth_zone: Tensor, world: World, palette: Palette
) -> tuple[Tensor, Tensor, Tensor]:
    """Where one person covers another, and the truth can be read: does the clip show the front one?

    Zones that both wear tell nothing, and are left out.
    zone, truth_zone: [F, H, W] of the clip and the truth
    returns: pixels nearer to what the front person wears than to what the hidden one does, those in the right zone, and
        all, each [F]
    """
    if len(world.spec.puppets) < 2:
        return (torch.zeros(world.frames),) * 3
    depth, order = torch.stack([alone(world, p).hits.depth for p in range(len(world.spec.puppets))]).sort(0)
    front, hidden = order[:2]
    wears = torch.zeros(len(order), len(palette.names), dtype=torch.bool).scatter(1, palette.limb_zone, True)
    telling = (truth_zone >= 0) & ~wears[hidden, truth_zone.clamp(min=0)]
    counted = depth[1].isfinite() & (world.owners == front) & telling & wears[front, truth_zone.clamp(min=0)]
    frame = counted.nonzero(as_tuple=True)[0]
    away = palette.distances(clip[counted])
    near, far = (away.where(wears[who[counted]], torch.inf).amin(1) for who in (front, hidden))
    shown = (near < far, (zone == truth_zone)[counted], torch.ones_like(frame, dtype=torch.bool))
    return tuple(torch.bincount(frame[which], minlength=world.frames).float() for which in shown)


def jitter(centre: Tensor, shown: Tensor) -> float:
    """Of zones that are there in three successive frames; NaN without any. centre: [F, Z, 2]    shown: [F, Z]"""
    second = centre[2:] - 2 * centre[1:-1] + centre[:-2]
    return second[shown[2:] & shown[1:-1] & shown[:-2]].square().nanmean().sqrt().item()


def _weighed(share: Tensor, pixels: Tensor) -> float:
    return ((share * pixels).nansum() / pixels.sum()).item()
