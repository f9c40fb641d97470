"""Services of the host: interrupt, progress, folders, text on a node."""

from __future__ import annotations

import pytest
from interspatial.tests.models.probes import attach
from interspatial.tests.models.tinies import BY_NAME, sample

TINY = BY_NAME["wan"]


@pytest.fixture
def base(comfy):
    return TINY.model()


def test_family_and_sampling_of_a_model(base):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3
    from interspatial.models import host

    assert host.family_of_model(base).name == "wan"
    assert host.model_sampling(base).shift == 8.0
    assert host.model_sampling(ModelSamplingSD3().patch(base, 3.0)[0]).shift == 3.0


def test_check_interrupt(comfy):
    import comfy.model_management
    from interspatial.models import host

    host.check_interrupt()
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        host.check_interrupt()
    host.check_interrupt()


def test_free_memory_of_the_cpu_is_what_the_system_has(comfy):
    import psutil
    import torch
    from interspatial.models import host

    free = host.free_memory(torch.device("cpu"))
    assert isinstance(free, int) and 0 < free <= psutil.virtual_memory().total


def test_progress_bar(comfy, monkeypatch):
    import comfy.utils
    from interspatial.models import host

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", True)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *rest, **kw: seen.append((value, total)))
    show = host.progress_bar(8)
    show(2)
    show(8)
    assert seen == [(2, 8), (8, 8)]


def test_model_folder_keeps_what_the_user_configured(comfy, monkeypatch):
    import folder_paths
    from interspatial.models import host

    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    folder_paths.folder_names_and_paths["plans"] = (["/user/plans"], {".json"})
    for _ in range(2):
        host.add_model_folder("plans", {".safetensors"})
    paths, extensions = folder_paths.folder_names_and_paths["plans"]
    assert paths[0] == "/user/plans"
    assert len(paths) == 2
    assert extensions == {".json", ".safetensors"}


def test_summary_reaches_the_node(base, monkeypatch):
    import sys
    from types import ModuleType, SimpleNamespace

    from interspatial.models import host

    sent, server = [], ModuleType("server")
    server.PromptServer = SimpleNamespace(instance=SimpleNamespace(
        send_progress_text=lambda text, node_id: sent.append((node_id, text))))
    monkeypatch.setitem(sys.modules, "server", server)
    sample(attach(attach(base, "one", "sparse", [], node_id="12"), "two", "sparse", []), TINY, steps=1)
    assert sent == [("12", "one 2/2 layers, 1/1 steps")]

    def broken(text, node_id):
        raise ConnectionError("closed")

    server.PromptServer.instance.send_progress_text = broken
    host.show_text("text", "12")
    monkeypatch.delitem(sys.modules, "server")
    host.show_text("text", "12")


def test_comfyui_has_the_text_message(comfy):
    """Our text on a node goes through this method of ComfyUI's server."""
    source = (comfy / "server.py").read_text()
    assert "def send_progress_text" in source
