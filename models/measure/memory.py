"""Peak memory of a stretch of work: the accelerator's own peak counter, else the resident size of the process."""

from __future__ import annotations

import threading

import torch

PERIOD = 0.02  # seconds between two looks at the process: a look takes 0.1 ms, and model calls last longer


class PeakMemory:
    """Context manager; `bytes` is right once it is left, `what` says in words what was counted.

    On CUDA, ROCm, XPU and other devices whose torch module keeps a peak counter, this is the most that torch's
    allocator held in tensors on that device; entering resets the counter. Elsewhere (CPU, MPS) a thread watches the
    resident memory of the whole process, which says how much was in use, not which part of it is the model's.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.counter = peak_counter(device)
        self.what = f"tensors on {device}" if self.counter else "whole process"
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        if self.counter:
            self.counter.reset_peak_memory_stats(self.device)
        else:
            self.done = threading.Event()
            self.thread = threading.Thread(target=self.watch, daemon=True)
            self.look()
            self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        if self.counter:
            self.bytes = self.counter.max_memory_allocated(self.device)
        else:
            self.done.set()
            self.thread.join()
            self.look()

    def watch(self) -> None:
        """Body of the thread."""
        while not self.done.wait(PERIOD):
            self.look()

    def look(self) -> None:
        """Take one reading of the process."""
        self.bytes = max(self.bytes, resident_bytes())


def peak_counter(device: torch.device):
    """The torch module of this device (torch.cuda, torch.xpu, ...) if it keeps a peak counter, else None."""
    module = getattr(torch, device.type, None)
    return module if hasattr(module, "max_memory_allocated") and hasattr(module, "reset_peak_memory_stats") else None


def resident_bytes() -> int:
    """Resident memory of this process."""
    import psutil  # one of ComfyUI's own requirements

    return psutil.Process().memory_info().rss


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; without it a clock would stop too early."""
    module = getattr(torch, device.type, None)
    if device.type == "mps":  # the one module whose function takes no device
        module.synchronize()
    elif hasattr(module, "synchronize"):
        module.synchronize(device)
