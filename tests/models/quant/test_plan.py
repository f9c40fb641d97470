"""Plans of mixed precision: what they are made of, what they promise, and their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from interspatial.models.quant.format import FORMATS
from interspatial.models.quant.recipe import Choice

EIGHT, SIX, FOUR, THREE = (Choice.parse(name) for name in ("vidit_q 8", "vidit_q 6", "lrq 4", "lrq 3"))
EVEN = (1.0, 1.0, 1.0)


@pytest.fixture
def module(comfy):
    """The module under test; it imports ComfyUI."""
    from interspatial.models.quant import plan

    return plan


@pytest.fixture
def measured(module):
    return table(module)


def table(module, blocks: int = 3, stacks: tuple = ("blocks",), seen=(True, True, True)):
    """Layers whose content and text errors fall, and whose motion error grows, from block to block."""
    shapes, options = {}, {}
    for stack in stacks:
        for i in range(blocks):
            for role, shape in (("self_attn.q", (256, 256)), ("ffn.0", (1024, 256)), ("ffn.2", (256, 1024))):
                layer = f"{stack}.{i}.{role}"
                shapes[layer] = shape
                at = 2 * i / max(1, blocks - 1)
                strength = (16.0**-at, 16.0**at, (1.0 if role == "ffn.2" else 0.01) * 4.0**-at)
                options[layer] = {
                    choice: module.Option(FORMATS[choice.format].size(shape, choice.bits),
                                          tuple(1e-3 * s * 4.0**-choice.bits for s in strength))
                    for choice in (EIGHT, SIX, FOUR, THREE)
                }  # fmt: skip
    return module.Measured(shapes, options, seen, {"model": "WanModel", "steps": 4})


def budget(measured, choice: Choice) -> int:
    """Bytes with one choice for all layers."""
    return sum(options[choice].nbytes for options in measured.options.values())


def test_a_plan_keeps_its_budget_and_its_promise(module, measured):
    plan = module.make_plan(measured, budget(measured, FOUR), EVEN)
    assert plan.nbytes <= budget(measured, FOUR) and len(plan.histogram) > 1
    choice, nbytes, errors = plan.uniform()
    assert choice == FOUR and nbytes == budget(measured, FOUR)
    assert all(mine < theirs for mine, theirs in zip(plan.errors, errors, strict=True))
    assert plan.bits_per_weight == pytest.approx(8 * plan.nbytes / measured.weights)
    assert plan.recipe.layers == plan.chosen and plan.recipe.why_not(measured.shapes) is None
    assert plan.recipe.nbytes(measured.shapes) == plan.nbytes


def test_weights_decide_what_is_protected(module, measured):
    """Content hangs on the first block, motion on the last."""
    bits = {}
    for name, weights in (("content", (1.0, 0.0, 0.0)), ("motion", (0.0, 1.0, 0.0))):
        plan = module.make_plan(measured, budget(measured, FOUR), weights)
        bits[name] = [sum(plan.chosen[f"blocks.{i}.{role}"].bits for role in ("self_attn.q", "ffn.0", "ffn.2"))
                      for i in (0, 2)]  # fmt: skip
    assert bits["content"][0] > bits["content"][1] and bits["motion"][1] > bits["motion"][0]


def test_what_was_not_seen_counts_nothing(module):
    plan = module.make_plan(table(module, seen=(True, False, False)), budget(table(module), FOUR), EVEN)
    assert plan.about["counted"] == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="weights of content, motion and text that were measured are all 0"):
        module.make_plan(table(module, seen=(True, True, False)), 10**9, (0.0, 0.0, 1.0))


def test_the_ends_of_every_stack_may_ask_for_bits(module):
    measured = table(module, blocks=4, stacks=("double_blocks", "single_blocks"))
    plan = module.make_plan(measured, int(1.3 * budget(measured, FOUR)), EVEN, least_ends=6)
    ends = module.end_layers(measured.shapes)
    assert len(ends) == 2 * 2 * 3 and "single_blocks.3.ffn.0" in ends and "double_blocks.1.ffn.0" not in ends
    assert all(plan.chosen[layer].bits >= 6 for layer in ends)
    assert any(choice.bits < 6 for choice in plan.chosen.values())
    low = module.Measured(measured.shapes, {layer: {THREE: options[THREE]}
                                            for layer, options in measured.options.items()})  # fmt: skip
    with pytest.raises(ValueError, match=r"no candidate has the 4 bits that the first and last block"):
        module.make_plan(low, 10**9, EVEN, least_ends=4)


def test_layers_with_other_choices(module, measured):
    """A layer whose shape only one format takes: no single choice serves all, and the plan still does."""
    measured.options["blocks.1.ffn.0"].clear()
    measured.options["blocks.1.ffn.0"][Choice("rtn", 4)] = module.Option(1000, EVEN)
    plan = module.make_plan(measured, 10**9, EVEN)
    assert plan.chosen["blocks.1.ffn.0"] == Choice("rtn", 4) and plan.uniform() is None


def test_too_small_a_budget(module, measured):
    with pytest.raises(ValueError, match="smallest plan of these candidates takes"):
        module.make_plan(measured, 1000, EVEN)


def test_a_file_gives_the_same_plan(module, measured, tmp_path):
    plan = module.make_plan(measured, budget(measured, FOUR), (1.0, 2.0, 0.5), least_ends=4)
    plan.save(path := tmp_path / "sub" / "mine.json")
    loaded = module.load_plan(path)
    assert loaded == plan and loaded.uniform() == plan.uniform()
    assert list(path.parent.iterdir()) == [path], "nothing else is left"
    other = module.make_plan(loaded.measured, budget(measured, THREE), EVEN)
    assert other.nbytes <= budget(measured, THREE), "another budget from the file alone"


def test_a_failed_save_leaves_the_older_file(module, measured, tmp_path, monkeypatch):
    plan = module.make_plan(measured, budget(measured, FOUR), EVEN)
    plan.save(path := tmp_path / "mine.json")
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(module.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        plan.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def changed(content: dict, *path, to) -> dict:
    """The content with one value replaced."""
    at = content
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return content


LAYER = "blocks.0.ffn.0"
DAMAGES = [
    (lambda c: [], "it holds no plan"),
    (lambda c: {"layers": {}}, "it holds no plan"),
    (lambda c: changed(c, "interspatial_quant_plan", to=9), "its format is version 9"),
    (lambda c: changed(c, "layers", to={}), "it is of no layer"),
    (lambda c: changed(c, "layers", LAYER, "choice", to="magic 4"), "no weight format 'magic'"),
    (lambda c: changed(c, "layers", LAYER, "choice", to="rtn 4"), "which is none of its options"),
    (lambda c: changed(c, "layers", LAYER, "options", "lrq 4", to=[1000, 1.0]), "are no 3 finite numbers"),
    (lambda c: changed(c, "layers", LAYER, to={"shape": [4, 4]}), "is missing in it"),
    (lambda c: changed(c, "layers", LAYER, "shape", to=["a"]), "invalid literal"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_damaged_files_are_named(module, measured, tmp_path, damage, said):
    module.make_plan(measured, budget(measured, FOUR), EVEN).save(path := tmp_path / "mine.json")
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=rf"The plan .*mine\.json cannot be used: .*{said}.*plan again"):
        module.load_plan(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_files_that_are_no_json(module, tmp_path, content):
    (path := tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"The plan .*mine\.json cannot be used"):
        module.load_plan(path)
    with pytest.raises(ValueError, match=r"none\.json cannot be used"):
        module.load_plan(Path(tmp_path) / "none.json")


def test_a_plan_says_why_it_is_of_another_model(module, measured):
    plan = module.make_plan(measured, budget(measured, FOUR), EVEN)
    shapes = dict(measured.shapes)
    assert plan.why_not({**shapes, "blocks.9.more": (4, 4)}) is None
    assert plan.why_not({**shapes, LAYER: (4, 256)}) == f"{LAYER} is [4, 256] in the model, [1024, 256] in the plan"
    del shapes[LAYER]
    assert plan.why_not(shapes) == f"the model has no layer {LAYER}"
