"""Plan Mixed Precision and Load Precision Plan as nodes, and their picture."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def nodes(comfy):
    """The module under test."""
    from interspatial.nodes import plan_precision

    return plan_precision


@pytest.fixture
def tiny(comfy):
    from interspatial.tests.models.tinies import BY_NAME

    return BY_NAME["wan"]


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch):
    """An own models folder of ComfyUI."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "quant_plans", raising=False)
    folder_paths.filename_list_cache.pop("quant_plans", None)
    yield tmp_path / "quant_plans"
    folder_paths.filename_list_cache.pop("quant_plans", None)
    folder_paths.folder_names_and_paths.pop("quant_plans", None)


SETTINGS = {"steps": 2, "cfg": 3.0, "trial_steps": 1, "detail": "module", "candidates": "8 to 3 bits"}


def planned(nodes, tiny, model=None, guided=True, **settings):
    model = tiny.model() if model is None else model
    negative = tiny.prompt(2) if guided else None
    with torch.inference_mode():
        return nodes.PlanPrecision.execute(model, tiny.prompt(1), {"samples": tiny.samples()}, negative=negative,
                                           **{**SETTINGS, **settings})  # fmt: skip


@pytest.fixture(scope="module")
def made(comfy):
    """One plan of the tiny Wan for the tests that only read it."""
    from interspatial.nodes import plan_precision
    from interspatial.tests.models.tinies import BY_NAME

    return planned(plan_precision, BY_NAME["wan"])


def test_a_plan_a_picture_and_a_report(made):
    plan, picture, report = made.args
    assert len(plan.chosen) == 20 and plan.bits_per_weight <= 4.5 and len(plan.histogram) > 1
    assert plan.measured.seen == (True, True, True) and plan.measured.about["detail"] == "module"
    assert picture.ndim == 4 and picture.shape[0] == 1 and picture.shape[-1] == 3 and picture.std() > 0.01
    lines = report.splitlines()
    assert lines[0].startswith("20 layers of WanModel: 4.") and "times that of" in lines[2]
    assert sum(line.startswith("| blocks.") for line in lines) == 20
    assert set(made.ui) >= {"images", "text"}


def test_the_model_stays_as_it_was(nodes, tiny):
    from interspatial.models import host
    from interspatial.tests.models.tinies import sample

    model = tiny.model()
    plain = sample(model, tiny)
    planned(nodes, tiny, model, detail="role")
    assert host.patches_of(model) == () and torch.equal(sample(model, tiny), plain)


def test_the_plan_runs(made, tiny):
    """Its choices are ones that the layers take, and the model computes with them."""
    from interspatial.models.host.quant_trial import coded_layers, float_weight, linear_layers
    from interspatial.models.quant.format import FORMATS
    from interspatial.tests.models.tinies import sample

    model, plan = tiny.model(), made.args[0]
    layers = linear_layers(model.model.diffusion_model)
    weights = {layer: FORMATS[choice.format].encode(float_weight(layers[layer], torch.device("cpu")), choice.bits)
               for layer, choice in plan.recipe.layers.items()}  # fmt: skip
    assert sum(coded.nbytes for coded in weights.values()) == plan.nbytes
    plain = sample(model, tiny)
    with torch.inference_mode(), coded_layers(model.model.diffusion_model, weights, 16):
        out = sample(model, tiny)
    assert 0 < float((out - plain).norm() / plain.norm()) < 0.2


def test_another_budget_from_what_was_measured(nodes, tiny, made, monkeypatch):
    def no_run(*args, **kwargs):
        raise AssertionError("sampled again")

    monkeypatch.setattr(nodes, "sample", no_run)
    plan = planned(nodes, tiny, measured=made.args[0], bits_per_weight=6.0).args[0]
    assert made.args[0].bits_per_weight < plan.bits_per_weight <= 6.0
    assert plan.measured == made.args[0].measured


def test_a_plan_of_another_model_is_refused(nodes, tiny, made):
    other = made.args[0]
    first, *rest = other.measured.shapes
    shapes = {first: (7, 7), **{layer: other.measured.shapes[layer] for layer in rest}}
    with pytest.raises(ValueError, match=r"^Plan Mixed Precision: the connected plan is of another model: blocks\.0"):
        planned(nodes, tiny, measured=replace(other, measured=replace(other.measured, shapes=shapes)))


def test_a_budget_in_gigabytes_is_of_the_whole_model(nodes, tiny, made):
    network = tiny.model().model.diffusion_model
    layers = made.args[0].measured.shapes
    rest = sum(x.nbytes for x in network.parameters()) - sum(
        network.get_submodule(layer).weight.nbytes for layer in layers
    )
    wanted = rest + 5 * made.args[0].measured.weights / 8
    plan = planned(nodes, tiny, measured=made.args[0], budget_gb=wanted / 1e9).args[0]
    assert 4.8 < plan.bits_per_weight <= 5.0
    with pytest.raises(ValueError, match=r"GB are less than the .* GB of what is not quantised"):
        planned(nodes, tiny, measured=made.args[0], budget_gb=rest / 1e9)


def test_without_a_negative_prompt(nodes, tiny):
    plan, _, report = planned(nodes, tiny, guided=False, detail="role").args
    assert plan.measured.seen == (True, True, False)
    assert "not measured: text (text needs a negative prompt and guidance" in report


def test_prompts_that_are_joined_are_sampled_one_by_one(nodes, tiny):
    latent = {"samples": tiny.samples()}
    settings = {**SETTINGS, "detail": "role", "negative": tiny.prompt(2)}
    with torch.inference_mode():
        plan = nodes.PlanPrecision.execute(tiny.model(), tiny.prompt(1) + tiny.prompt(3), latent, **settings).args[0]
    assert plan.measured.about["prompts"] == 2


def test_activation_statistics_reach_the_formats(nodes, tiny, made):
    from interspatial.models.quant.stats import LayerStats

    shapes = made.args[0].measured.shapes
    stats = {layer: LayerStats(torch.ones(2, k), torch.rand(2, k)) for layer, (_, k) in shapes.items()}
    plan = planned(nodes, tiny, calibration=SimpleNamespace(layers=stats), detail="role").args[0]
    layer, options = next(iter(plan.measured.options.items()))
    without = made.args[0].measured.options[layer]
    assert any(options[choice].nbytes > without[choice].nbytes for choice in options), "a mask takes bytes"


def test_a_saved_plan_is_listed_and_loaded(nodes, tiny, made, folder):
    from interspatial.models.host.plan_files import plan_files

    assert plan_files() == []
    report = planned(nodes, tiny, measured=made.args[0], filename="tiny one").args[2]
    assert "saved as tiny one.json" in report and plan_files() == ["tiny one.json"]
    loaded, picture, _ = nodes.LoadPlan.execute("tiny one.json").args
    assert loaded.chosen == made.args[0].chosen and picture.shape[-1] == 3
    before = nodes.LoadPlan.fingerprint_inputs("tiny one.json")
    planned(nodes, tiny, measured=made.args[0], filename="tiny one", bits_per_weight=5.0)
    assert nodes.LoadPlan.fingerprint_inputs("tiny one.json") != before


@pytest.mark.parametrize("name", ["../up", "/root", "a/b", ".hidden", " "])
def test_names_that_are_no_file_names_are_refused_before_the_run(nodes, name):
    answer = nodes.PlanPrecision.validate_inputs(filename=name)
    assert answer.startswith("Plan Mixed Precision: ") and "is no name for a file. Accepted" in answer


def test_a_model_with_other_patches_is_refused(nodes, tiny):
    from interspatial.nodes import speed

    sparse = speed.SparseVideoAttention.execute(tiny.model(), {"method": "draft", "density": 0.3}).args[0]
    with pytest.raises(ValueError, match=r"^Plan Mixed Precision: the model has .* on it.*Connect the model from"):
        planned(nodes, tiny, sparse)


def test_too_small_a_budget_says_what_the_least_is(nodes, tiny, made):
    with pytest.raises(ValueError, match=r"^Plan Mixed Precision: the smallest plan .* Raise the budget"):
        planned(nodes, tiny, measured=made.args[0], bits_per_weight=2.0)


def test_an_interrupt_ends_the_run(nodes, tiny, monkeypatch):
    import comfy.model_management as management

    monkeypatch.setattr(management, "interrupt_processing", True)
    with pytest.raises(management.InterruptProcessingException):
        planned(nodes, tiny)


def test_all_candidates_are_there(nodes):
    from interspatial.models.quant.recipe import Choice

    for names in nodes.CANDIDATES.values():
        assert len({Choice.parse(name) for name in names}) == len(names)


@pytest.mark.parametrize(("blocks", "stacks", "seen"), [
    (2, ("blocks",), (True, True, True)), (60, ("blocks",), (True, True, False)),
    (1, ("blocks",), (True, False, False)), (38, ("double_blocks", "single_blocks"), (True, True, True)),
])  # fmt: skip
def test_nothing_collides_and_nothing_leaves_the_sheet(comfy, blocks, stacks, seen):
    from interspatial.models.measure.picture import MARGIN
    from interspatial.models.measure.precision_picture import describe, lay_out
    from interspatial.models.quant import plan as plans
    from interspatial.tests.models.quant import test_plan

    measured = test_plan.table(plans, blocks, stacks, seen)
    plan = plans.make_plan(measured, test_plan.budget(measured, test_plan.FOUR), (1.0, 1.0, 1.0))
    canvas = lay_out(plan, describe(plan))
    rendered = canvas.render(MARGIN)
    boxes = [(box, text) for box, text, *_ in canvas.words] + [(box, "picture") for box, _ in canvas.pictures]
    for (left, top, right, bottom), text in boxes:
        assert left >= 0 and top >= 0 and right <= rendered.width and bottom <= rendered.height, text
    for (a, text_a), (b, text_b) in combinations(boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{text_a!r} at {a} lies on {text_b!r} at {b}"


def test_a_cell_has_the_colour_of_its_choice(made):
    from interspatial.models.measure.precision_picture import Grid, colour_of, lay_out, used

    plan = made.args[0]
    canvas = lay_out(plan, [])
    panel = canvas.pictures[len(used(plan))][1]
    grid = Grid(plan.chosen, 658)
    line = panel.height // len(grid.rows)
    for layer, choice in plan.chosen.items():
        row, column = grid.at[layer]
        got = panel.getpixel((grid.columns.index(column) * grid.cell + 1, grid.rows.index(row) * line + 1))
        assert got == colour_of(choice, plan.measured.choices)
    assert len({colour_of(choice, plan.measured.choices) for choice in plan.measured.choices}) == 5
