"""Time, memory and copy bandwidth; nothing here knows what is measured.

Candidates take turns in every round, so that what disturbs the machine disturbs all of them.
"""

import gc
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ftkit.child_tuning import gradient_mask
from ftkit.child_tuning.masks import DRAWS_PER_COUNTER
from ftkit.conversations import encode, load_chat, training_template
from ftkit.models import load_base

from .optimizers import NAMES, Candidate, make

WARM_UP = 2  # rounds that are not counted


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, with all the work that it starts on the device."""
    _wait(device)
    start = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - start


def rounds(candidates: list[Candidate], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every candidate's step in each of `repeats` rounds, by name."""
    times = {candidate.name: [] for candidate in candidates}
    for turn in range(-WARM_UP, repeats):
        for candidate in candidates:
            candidate.prepare()
            taken = seconds(candidate.step, device)
            if turn >= 0:
                times[candidate.name].append(taken)
    return times


def copy_seconds(elements: int, repeats: int, device: torch.device) -> list[float]:
    """Seconds to copy `elements` float32 numbers, each read once and written once (8 bytes)."""
    source, target = torch.ones(elements, device=device), torch.zeros(elements, device=device)
    return [seconds(lambda: target.copy_(source), device) for _ in range(-WARM_UP, repeats)][WARM_UP:]


def mask_seconds(elements: int, reserve_p: float, repeats: int) -> dict[str, list[float]]:
    """Seconds on one thread of a mask's random words from numpy, and of the whole mask, without an optimizer's step."""
    words = math.ceil(elements / DRAWS_PER_COUNTER) * 4
    taken = {
        "words": lambda: np.random.Philox(0).random_raw(words),
        "mask": lambda: gradient_mask((elements,), reserve_p, seed=0, step=1, name="weight"),
    }
    cpu = torch.device("cpu")
    return {what: [seconds(draw, cpu) for _ in range(repeats)] for what, draw in taken.items()}


def tensors(elements: int, count: int, device: torch.device, seed: int) -> dict[str, torch.Tensor]:
    """`count` normal vectors of together `elements` elements, by name."""
    torch.manual_seed(seed)
    sizes = [elements // count + (i < elements % count) for i in range(count)]
    return {f"layers.{i}.weight": torch.randn(size, device=device) for i, size in enumerate(sizes)}


def peak_bytes(
    name: str, elements: int, count: int, reserve_p: float, fisher_p: float, device: str
) -> dict[str, int | None]:
    """Memory of one candidate beside weights and gradients: of its state, and at most beyond it in a step.

    On a CPU it is the process's resident memory, so call it in a process of its own; "extra" is then good to
    about a megabyte, and None where the system does not tell (it needs Linux's /proc).
    """
    device = torch.device(device)
    small = [tensors(count, count, device, seed) for seed in (0, 1)]
    candidate = make(name, *small, reserve_p, fisher_p)
    for _ in range(3):  # code that is loaded and threads that are started are not the step's memory
        candidate.step()
    weights, gradients = (tensors(elements, count, device, seed) for seed in (0, 1))
    gc.collect()
    before = _used(device)
    candidate = make(name, weights, gradients, reserve_p, fisher_p)
    gc.collect()
    known = _forget_peak(device)
    for _ in range(3):
        candidate.step()
    state, owned = candidate.state_bytes(), 4 * elements if candidate.sources else 0  # its own gradients
    return {"state": state, "extra": max(0, _peak(device) - before - state - owned) if known else None}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status(entry: str) -> int:
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(entry)), 0)


def _used(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS:")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM:")


def _forget_peak(device: torch.device) -> bool:
    """Let the peak begin anew from what is used now; False where the system cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


ROWS = 16  # conversations in a batch, as python -m ftkit.finetune has by default


def pocket_step(repeats: int, reserve_p: float, fisher_p: float, device: torch.device) -> dict:
    """Seconds of forward and backward passes over real conversations, and of each candidate's step.

    Returns:
        "rows" and "tokens" of the padded batch [rows, tokens], "parameters", and lists of seconds: "passes",
        and "steps" by candidate.
    """
    model, tokenizer = load_base()
    model.to(device).train()
    template = training_template(tokenizer)
    chats = [encode(tokenizer, row["messages"], template) for row in load_chat()["train"].select(range(ROWS))]
    longest = max(len(chat["input_ids"]) for chat in chats)
    padded = [chat["input_ids"] + [0] * (longest - len(chat["input_ids"])) for chat in chats]
    batch = torch.tensor(padded, device=device)  # [ROWS, longest]
    padding = torch.tensor([[1] * len(c["input_ids"]) + [0] * (longest - len(c["input_ids"])) for c in chats])

    def passes() -> None:
        model.zero_grad()
        model(input_ids=batch, attention_mask=padding.to(device), labels=batch).loss.backward()

    taken = [seconds(passes, device) for _ in range(-WARM_UP, repeats)][WARM_UP:]
    weights = {name: param.detach() for name, param in model.named_parameters()}
    gradients = {name: param.grad for name, param in model.named_parameters()}
    candidates = [make(name, weights, gradients, reserve_p, fisher_p) for name in NAMES]
    numel = sum(weight.numel() for weight in weights.values())
    sizes = {"rows": ROWS, "tokens": longest, "parameters": numel}
    return {**sizes, "passes": taken, "steps": rounds(candidates, repeats, device)}
