"""Step windows and step methods in a run."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.report import Card
from interspatial.models.schedule import StepWindow
from interspatial.tests.models.probes import attach
from interspatial.tests.models.tinies import BY_NAME, sample

TINY = BY_NAME["wan"]


@pytest.fixture
def base(comfy):
    return TINY.model()


@pytest.fixture
def plain(base):
    return sample(base, TINY, steps=1)


@pytest.mark.parametrize(("window", "steps"), [
    (StepWindow(1, None, "steps"), {1, 2, 3}), (StepWindow(0.0, 0.3), {0, 1}), (StepWindow(0.3, 1.0), {2, 3})])
def test_step_windows_in_a_run(base, window, steps):
    """Four simple steps lie at 0, 25, 50 and 75 % of the noise range."""
    from interspatial.models import host

    class Inside:
        def why_not(self, call):
            inside = call.run.schedule.contains(window, call.forward.position)
            return None if inside else "outside the window"

        def attend(self, call):
            ran.add(call.forward.position.step)
            return call.dense()

    ran: set = set()
    model = host.attach_attention(base, Card("ours", "sparse"), Inside())
    sample(model, TINY, steps=4)
    assert ran == steps
    assert f"{len(steps)}/4 steps, unpatched: outside the window ({2 * (4 - len(steps))})" in host.report_of(model)


def test_step_method_may_run_or_replace_the_model(base, plain):
    from interspatial.models import host

    class Repeat:
        """Gives the last output of this prompt again in every second step."""

        def why_not(self, step):
            return None

        def evaluate(self, step):
            state = step.state(step.forward.branches[0], dict)
            if step.forward.position.step % 2 == 0:
                state["output"] = step.proceed()
            outputs.append(state["output"])
            return state["output"]

    outputs, trace = [], []
    model = host.attach_step(attach(base, "ours", "sparse", trace), Card("repeat", "cache"), Repeat())
    sample(model, TINY, steps=4)
    assert outputs[1] is outputs[0]
    assert outputs[3] is outputs[2]
    assert len(trace) == 2 * 2, "the attention method sees only the steps that ran"
    assert host.report_of(model) == "repeat 4/4 steps\nours 2/2 layers, 2/2 steps"


def test_step_method_that_stands_aside_changes_nothing(base, plain):
    from interspatial.models import host

    class Never:
        def why_not(self, step):
            return "never"

    model = host.attach_step(base, Card("never", "cache"), Never())
    assert torch.equal(sample(model, TINY, steps=1), plain)
    assert host.report_of(model) == "never 0/1 steps, unpatched: never (1)"


def test_step_methods_are_ordered_by_kind(base):
    from interspatial.models import host

    trace: list = []

    class Step:
        def __init__(self, name: str) -> None:
            self.name = name

        def why_not(self, step) -> str:
            trace.append(self.name)
            return "only looks"

    for kinds in (("cache", "window"), ("window", "cache")):
        trace.clear()
        model = base
        for kind in kinds:
            model = host.attach_step(model, Card(kind, kind), Step(kind))
        sample(model, TINY, steps=1)
        assert trace == ["window", "cache"]


def test_step_state_is_per_prompt_and_window(comfy, base):
    """Two prompts over three context windows keep six states, each through all steps."""
    import comfy.context_windows as windows
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode
    from interspatial.models import host

    class Keep:
        def why_not(self, step):
            for branch in step.forward.branches:
                state = step.state(branch, list)
                state.append(step.run.step)
                if not any(state is other for other in states):
                    states.append(state)
            return "only keeps"

    states: list = []
    model = ContextWindowsManualNode.execute(
        base, 4, 1, windows.ContextSchedules.STATIC_STANDARD, 1, False, windows.ContextFuseMethods.PYRAMID, 2,
        False).result[0]
    sample(host.attach_step(model, Card("keep", "cache"), Keep()), TINY, cfg=3.0, latent=torch.zeros(1, 16, 9, 8, 8))
    assert states == [[0, 1]] * 6
