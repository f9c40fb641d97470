"""Scenes and sentences: the small language, what seeds draw, what is refused."""

from __future__ import annotations

import random
import re

import pytest
from interspatial.models.puppet.camera import Camera
from interspatial.models.puppet.direct import ACTIONS, CAMERAS, GROUNDS, SHIRTS, directed_scene
from interspatial.models.puppet.motion import HEADINGS, Motion
from interspatial.models.puppet.scene import (
    PATTERNS,
    SHIRT_HUES,
    Ball,
    Prompt,
    Puppet,
    SceneSpec,
    all_prompts,
    random_scene,
    shirt_colour,
    split_prompts,
)

SENTENCE = re.compile(
    r"(a puppet|two puppets|three puppets) in (?:a )?(\w+) shirts? (.+?) "
    r"(on a checkered floor|in front of a plain wall)"
)
COUNTS = {"a puppet": 1, "two puppets": 2, "three puppets": 3}
ACTS = {"walk to the left": "left", "walk to the right": "right"}


def read(sentence: str) -> Prompt:
    """The prompt behind a caption of the small language."""
    count, shirt, act, ground = SENTENCE.fullmatch(sentence).groups()
    plural = re.sub(r"^(\w+?)s\b", r"\1", act) if count == "a puppet" else act
    return Prompt(COUNTS[count], shirt, ACTS.get(plural, plural), "floor" if "floor" in ground else "plate")


def test_every_prompt_can_be_read_back_from_its_caption():
    prompts = all_prompts()
    assert len({p.caption() for p in prompts}) == len(prompts) == len(set(prompts)) == 3 * 7 * 6 * 2
    for prompt in prompts:
        assert read(prompt.caption()) == prompt


@pytest.mark.parametrize("seed", range(5))
def test_a_prompts_scenes_differ_but_share_its_caption(seed):
    for prompt in random.Random(seed).sample(all_prompts(), 20):
        scenes = [prompt.scene(random.Random(seed * 100 + i)) for i in range(3)]
        assert {scene.caption() for scene in scenes} == {prompt.caption()}
        assert len(set(scenes)) == 3
        walks = prompt.action in ("left", "right")
        for scene in scenes:
            assert len(scene.puppets) == prompt.count and not scene.balls and scene.ground == prompt.ground
            assert {(p.shirt, p.pattern) for p in scene.puppets} == {(prompt.shirt, "plain")}
            assert {p.motion.name for p in scene.puppets} == {"walk" if walks else prompt.action}
            assert not walks or {p.motion.heading for p in scene.puppets} == {HEADINGS[prompt.action]}


def test_held_out_prompts_are_never_trained_on():
    train, held_out = split_prompts()
    assert len(held_out) == 60 and len(train) == len(all_prompts()) - 60
    assert not set(train) & set(held_out)
    assert not {p.caption() for p in train} & {p.caption() for p in held_out}
    assert set(train) | set(held_out) == set(all_prompts())
    assert split_prompts() == (train, held_out), "the split is fixed"
    for words in zip(*((p.count, p.shirt, p.action, p.ground) for p in held_out), strict=True):
        assert len(set(words)) >= 2
    assert {p.shirt for p in train} == set(SHIRT_HUES), "every word is trained, only pairings are new"


def test_the_language_is_what_the_checkpoints_were_trained_on():
    """The text encoder and the video models know these sentences and no others: changing them breaks the models."""
    one = Prompt(1, "red", "left", "floor")
    assert one.caption() == "a puppet in a red shirt walks to the left on a checkered floor"
    assert Prompt(2, "blue", "wave", "plate").caption() == "two puppets in blue shirts wave in front of a plain wall"
    assert Prompt(3, "pink", "dance", "floor").caption() == "three puppets in pink shirts dance on a checkered floor"
    _, held_out = split_prompts()
    assert held_out[0].caption() == "three puppets in purple shirts dance in front of a plain wall"


def test_mixed_scenes_are_described_group_by_group():
    walk = Motion("walk", HEADINGS["away"])
    people = (Puppet("red", "stripes", walk), Puppet("blue", motion=Motion("squat")), Puppet("red", "stripes", walk))
    spec = SceneSpec(people, (Ball(),), "plate", camera=Camera("orbit", 20.0))
    assert spec.caption() == ("two puppets in red striped shirts walk away and a puppet in a blue shirt squats "
                              "in front of a plain wall, with a bouncing ball, the camera orbits")  # fmt: skip


@pytest.mark.parametrize(("spec", "caption"), [
    (SceneSpec(()), "nobody on a checkered floor"),
    (SceneSpec((), (Ball(), Ball())), "nobody on a checkered floor, with bouncing balls"),
    (SceneSpec((Puppet(motion=Motion("turn")),) * 5), "5 puppets in red shirts turn around on a checkered floor"),
    (SceneSpec((Puppet(motion=Motion("walk", 0.4)),)), "a puppet in a red shirt walks on a checkered floor"),
])  # fmt: skip
def test_captions_of_unusual_scenes(spec, caption):
    assert spec.caption() == caption


@pytest.mark.parametrize("seed", range(30))
def test_random_scenes_are_fixed_by_their_seed_and_speak(seed):
    spec = random_scene(seed)
    assert spec == random_scene(seed) and spec != random_scene(seed + 1000)
    sentence = spec.caption()
    assert re.fullmatch(r"[a-z, ]+", sentence) and "  " not in sentence and sentence == sentence.strip()
    words = {"plain": "", "stripes": "striped ", "checks": "checked ", "dots": "dotted "}
    assert all(f"{p.shirt} {words[p.pattern]}shirt" in sentence for p in spec.puppets)


def test_random_scenes_reach_everything():
    specs = [random_scene(seed) for seed in range(300)]
    assert {len(s.puppets) for s in specs} == {1, 2, 3} and {len(s.balls) for s in specs} == {0, 1, 2}
    assert {s.camera.move for s in specs} == {"hold", "orbit", "dolly", "pan"}
    assert {s.ground for s in specs} == {"floor", "plate"}
    people = [p for s in specs for p in s.puppets]
    assert {p.shirt for p in people} == set(SHIRT_HUES) and {p.pattern for p in people} == set(PATTERNS)
    assert len({p.motion.name for p in people}) == 7


def test_random_scenes_can_be_told_how_many_and_which_move():
    spec = random_scene(3, puppets=0, balls=4, move="dolly")
    assert len(spec.puppets) == 0 and len(spec.balls) == 4 and spec.camera.move == "dolly"


@pytest.mark.parametrize("action", ACTIONS)
def test_directed_puppets_do_what_they_are_told(action):
    for seed in range(5):
        spec = directed_scene(seed, action, puppets=3, shirt="cyan", ground="plate", camera="hold", balls=1)
        assert len(spec.puppets) == 3 and {p.shirt for p in spec.puppets} == {"cyan"}
        assert (spec.ground, spec.camera.move, len(spec.balls)) == ("plate", "hold", 1)
        motions = {p.motion.name for p in spec.puppets}
        if action.startswith("walk "):
            heading = HEADINGS[{"walk toward the camera": "toward"}.get(action, action.split()[-1])]
            assert motions == {"walk"} and {p.motion.heading for p in spec.puppets} == {heading}
        elif action != "any":
            assert motions == {action}
        assert spec == directed_scene(seed, action, 3, "cyan", "plate", "hold", 1)


def test_what_is_left_open_is_drawn():
    specs = [directed_scene(seed, camera="any") for seed in range(100)]
    assert {len(s.puppets) for s in specs} == {1, 2, 3}
    assert {s.camera.move for s in specs} == set(CAMERAS) - {"any"}
    assert {s.ground for s in specs} == set(GROUNDS) - {"any"}
    assert {p.shirt for s in specs for p in s.puppets} == set(SHIRTS) - {"any"}


@pytest.mark.parametrize(("make", "says"), [
    (lambda: Puppet("beige"), "shirt 'beige' is not known. Accepted: red, yellow, green, cyan, blue, purple, pink."),
    (lambda: Puppet(pattern="zigzag"), "pattern 'zigzag' is not known. Accepted: plain, stripes, checks, dots."),
    (lambda: SceneSpec((), ground="grass"), "ground 'grass' is not known. Accepted: floor, plate."),
    (lambda: Prompt(4, "red", "left", "floor"), "number of puppets 4 is not known. Accepted: 1, 2, 3."),
    (lambda: Prompt(1, "beige", "left", "floor"), "shirt 'beige' is not known."),
    (lambda: Prompt(1, "red", "stand", "floor"), "action 'stand' is not known. Accepted: left, right, wave,"),
    (lambda: Prompt(1, "red", "left", "any"), "ground 'any' is not known. Accepted: floor, plate."),
    (lambda: random_scene(0, move="zoom"), "camera move 'zoom' is not known. Accepted: hold, orbit, dolly, pan."),
    (lambda: random_scene(0, puppets=-1), "cannot have -1 puppets. Accepted: 0 and more."),
    (lambda: random_scene(0, balls=-2), "cannot have -2 balls."),
    (lambda: directed_scene(0, "fly"), "action 'fly' is not known. Accepted: any, walk left, walk right,"),
    (lambda: directed_scene(0, puppets=4), "number of puppets 4 is not known. Accepted: 0, 1, 2, 3."),
    (lambda: directed_scene(0, shirt="beige"), "shirt 'beige' is not known. Accepted: any, red,"),
    (lambda: directed_scene(0, ground="grass"), "ground 'grass' is not known. Accepted: any, floor, plate."),
    (lambda: directed_scene(0, camera="zoom"), "camera move 'zoom' is not known. Accepted: hold, orbit, dolly, pan,"),
])  # fmt: skip
def test_what_is_not_known_is_refused_with_what_is(make, says):
    with pytest.raises(ValueError) as error:
        make()
    assert says in str(error.value) and str(error.value).startswith("Puppet World: ")


def test_shirts_are_the_colours_they_are_called():
    import colorsys

    for name, degrees in SHIRT_HUES.items():
        hue, saturation, _ = colorsys.rgb_to_hsv(*shirt_colour(name))
        assert hue * 360 == pytest.approx(degrees, abs=0.1) and saturation == pytest.approx(0.85)
