"""A profiler trace of two training steps: record it, read it line by line, and draw it.

    python -m ftcourse.traces        the two fastest of 30 steps of pocket-base, in data/results/step_trace.json.gz

The file is a Chrome trace: open it at https://ui.perfetto.dev or at chrome://tracing.
"""

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ftkit.batching import global_batch, pad
from ftkit.models import data_dir

from .alternative_text import caption
from .plots import HATCHES, OKABE_ITO, new_axes

PHASES = ("forward", "loss", "backward", "clip", "optimizer")
STORED = "step_trace.json.gz"


class Span(NamedTuple):
    """An operation, or a phase that `record_function` marked."""

    name: str
    start: float  # milliseconds since the first span
    duration: float  # milliseconds
    depth: int  # how many spans of the same thread it lies in
    thread: int


def marked_step(model, batch, optimizer) -> None:
    """One training step whose phases a profile shows by name."""
    with record_function("forward"):
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    with record_function("loss"):
        labels = batch["labels"][:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels)
    with record_function("backward"):
        loss.backward()
    with record_function("clip"):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with record_function("optimizer"):
        optimizer.step()
        optimizer.zero_grad()


def record_steps(model, batches, optimizer) -> dict:
    """Profile a step per batch, after one that is left out; returns the Chrome trace."""
    marked_step(model, batches[0], optimizer)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for batch in batches[1:]:
            marked_step(model, batch, optimizer)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        seen.export_chrome_trace(str(path))
        return json.loads(path.read_text())


def fastest(trace: dict, count: int = 2) -> dict:
    """The trace of the `count` fastest of its steps: what other programs do only ever adds."""
    complete = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    firsts, lasts = (
        sorted((e for e in complete if e["name"] == name and e.get("cat") == "user_annotation"), key=lambda e: e["ts"])
        for name in (PHASES[0], PHASES[-1])
    )
    steps = [(last["ts"] + last["dur"] - first["ts"], first["ts"]) for first, last in zip(firsts, lasts, strict=True)]
    kept, shift, at = [], [], 0.0
    for length, start in sorted(sorted(steps)[:count], key=lambda step: step[1]):
        shift.append((start, start + length, at - start))
        at += length + 1000  # a millisecond between steps
    for event in complete:
        for start, end, by in shift:
            if start <= event["ts"] <= end:
                kept.append({**event, "ts": event["ts"] + by})
    return {"traceEvents": kept}


def slim(trace: dict) -> dict:
    """The trace without what a reader does not need: complete events alone, by name, time and thread."""
    kept = [event for event in trace["traceEvents"] if event.get("ph") == "X" and event.get("dur", 0) >= 1]
    threads = {thread: number for number, thread in enumerate(dict.fromkeys(event["tid"] for event in kept))}
    first = min(event["ts"] for event in kept)
    events = [
        {
            "ph": "X",
            "name": event["name"],
            "cat": event.get("cat", ""),
            "pid": 1,
            "tid": threads[event["tid"]],
            "ts": round(event["ts"] - first, 1),
            "dur": round(event["dur"], 1),
        }
        for event in kept
        if "PyTorch Profiler" not in event["name"]
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def read_trace(path: str | Path) -> dict:
    """A Chrome trace, packed by gzip or not."""
    path = Path(path)
    return json.loads((gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode())


def spans(trace: dict) -> list[Span]:
    """The trace's operations by their start, with their depth."""
    found, open_until = [], {}
    for event in sorted(trace["traceEvents"], key=lambda event: (event["tid"], event["ts"], -event["dur"])):
        stack = open_until.setdefault(event["tid"], [])
        while stack and stack[-1] <= event["ts"] + 1e-6:
            stack.pop()
        found.append(Span(event["name"], event["ts"] / 1e3, event["dur"] / 1e3, len(stack), event["tid"]))
        stack.append(event["ts"] + event["dur"])
    return sorted(found, key=lambda span: span.start)


def phases(found: Sequence[Span]) -> list[Span]:
    """The marked phases of all steps, in their order."""
    return [span for span in found if span.name in PHASES]


def within(found: Sequence[Span], phase: Span) -> list[Span]:
    """The operations that begin in a phase, on any thread: autograd runs the backward pass on its own."""
    end = phase.start + phase.duration
    return [span for span in found if span is not phase and phase.start <= span.start < end]


def heaviest(found: Sequence[Span], count: int = 5) -> list[tuple[str, int, float]]:
    """The operations that take the most time by themselves: name, calls, milliseconds without those inside."""
    inside: dict[Span, float] = {}  # milliseconds of the spans directly below
    last: dict[tuple[int, int], Span] = {}  # thread and depth -> the span that is open there
    for span in sorted(found, key=lambda span: (span.thread, span.start, span.depth)):
        last[span.thread, span.depth] = span
        parent = last.get((span.thread, span.depth - 1))
        if parent:
            inside[parent] = inside.get(parent, 0.0) + span.duration
    own: dict[str, list[float]] = {}
    for span in found:
        if span.name.startswith("aten::"):
            own.setdefault(span.name, []).append(span.duration - inside.get(span, 0.0))
    ranked = sorted(((name, len(times), sum(times)) for name, times in own.items()), key=lambda row: -row[2])
    return ranked[:count]


def plot_trace(found: Sequence[Span], *, deepest: int = 4):
    """Draw the first step as Perfetto does: time to the right, nested operations downwards; return the Axes."""
    marked = phases(found)
    step = marked[: len(PHASES)]
    start, end = step[0].start, step[-1].start + step[-1].duration
    shown = [s for s in found if start <= s.start < end]
    threads = sorted({span.thread for span in shown})
    _, ax = new_axes(8.5, 3.4)
    for span in shown:
        if span.depth > deepest or span.duration < 0.0015 * (end - start):
            continue
        y = span.depth + (deepest + 2) * threads.index(span.thread)
        look = PHASES.index(span.name) if span.name in PHASES else -1
        face = {"color": OKABE_ITO[look], "hatch": HATCHES[look]} if look >= 0 else {"color": "#bbbbbb"}
        ax.barh(y, span.duration, left=span.start - start, height=0.85, edgecolor="white", linewidth=0.5, **face)
        if span.duration > 0.045 * (end - start):
            short = span.name.removeprefix("aten::").removeprefix("autograd::engine::evaluate_function: ")
            room = int(span.duration / (end - start) * 95)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            name = short if len(short) <= room else f"{short[: room - 1].rstrip('.')}…"
            ax.text(span.start - start + span.duration / 2, y, name, ha="center", va="center", fontsize=8, bbox=box)
        elif look >= 0:  # too narrow for its name, which stands above it
            ax.text(span.start - start + span.duration / 2, y - 0.5, span.name, ha="center", va="bottom", fontsize=8)
    labels = ["Python", *(["autograd's thread"] * (len(threads) - 1))]
    ax.set_yticks([(deepest + 2) * number for number in range(len(threads))], labels)
    ax.set(xlabel="ms since the step began", xlim=(0, end - start))
    ax.invert_yaxis()
    return caption(
        ax, "one optimizer step as the profiler recorded it: nested operations below each other, phases in colour"
    )


def main(arguments: list[str] | None = None) -> int:
    from .studies.tasks import load_task

    parser = argparse.ArgumentParser(prog="python -m ftcourse.traces", description=__doc__.splitlines()[0])
    output = data_dir() / "results" / STORED
    parser.add_argument("--output", type=Path, default=output, help="where to store it (%(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="of which the two fastest are kept (%(default)s)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task = load_task("chat-96", 0, data_dir() / "pocket-base", validation=True)
    batches = [pad(global_batch(task.train, step, 16, 0), 0) for step in range(1 + given.steps)]
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-4)
    trace = slim(fastest(record_steps(task.model.train(), batches, optimizer)))
    given.output.write_bytes(gzip.compress(json.dumps(trace, separators=(",", ":")).encode(), mtime=0))
    print(f"{len(trace['traceEvents'])} events, {given.output.stat().st_size:,} bytes in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
