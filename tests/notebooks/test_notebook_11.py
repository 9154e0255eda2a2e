"""What notebook 11 builds in its cells: its loss turns red when it is broken, its meter agrees with torch's profiler,
its page for a record shows one."""

import json
import weakref
from collections import Counter
from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import build
from ftcourse.claims import Ledger
from ftcourse.plots import new_axes
from ftcourse.studies.lora_speed import loss_gap, memory_ratio, speed_up, table
from ftkit.loss import IGNORE_INDEX
from tests.experiments.test_lora_speed import played

from .test_notebooks import source

F = torch.nn.functional


def cell(start):
    """The source of the one code cell that begins with `start`."""
    cells = build.read_source(source("11_speed_ups")).cells
    (found,) = [c.source for c in cells if c.cell_type == "code" and c.source.startswith(start)]
    return found


def run(starts, **names):
    names |= {"torch": torch, "F": F, "IGNORE_INDEX": IGNORE_INDEX}
    for start in starts:
        exec(cell(start), names)
    return names


@pytest.fixture
def rows():
    torch.manual_seed(0)
    hidden, head = torch.randn(40, 6, dtype=torch.float64), torch.randn(30, 6, dtype=torch.float64)
    labels = torch.randint(30, (40,))
    labels[:15] = IGNORE_INDEX
    return hidden.requires_grad_(), head.requires_grad_(), labels


MUTATIONS = {
    "logits.scatter_add_(1, label, -torch.ones_like(total))": "pass",
    "logits *= learnt / count": "logits *= learnt",
    "(total.log() - picked) * learnt": "(total.log() - picked)",
    "gradient.mul_(upstream)": "gradient",
    "grad_head.addmm_(logits.T, h)": "torch.mm(logits.T, h, out=grad_head)",
}


@pytest.mark.parametrize("line", [None, *MUTATIONS])
def test_the_chunked_loss_is_the_full_one_and_each_of_its_lines_is_needed(line, rows):
    text = cell("class ChunkedCrossEntropy")
    assert line is None or text.count(line) == 1
    names = run(["def gap"])
    exec(text.replace(line, MUTATIONS[line]) if line else text, names)
    worst = max(names["worst_gap"](*rows, chunk) for chunk in (1, 7, 40, 45))
    assert (worst < 1e-12) == (line is None)


def test_large_logits_do_not_overflow(rows):
    hidden, head, labels = rows
    names = run(["class ChunkedCrossEntropy", "def gap"])
    assert names["worst_gap"](500 * hidden, head, labels, 7) < 1e-12


def test_the_meter_counts_what_the_allocator_gives():
    libraries = {"Counter": Counter, "weakref": weakref, "tree_leaves": tree_leaves}
    names = run(["def tensors", "def full_loss", "def metered"], TorchDispatchMode=TorchDispatchMode, **libraries)
    hidden, head = torch.randn(100, 8, requires_grad=True), torch.randn(500, 8, requires_grad=True)
    labels = torch.randint(500, (100,))
    peak = max(names["metered"](names["full_loss"], hidden, head, labels).alive)
    hidden.grad = head.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        names["full_loss"](hidden, head, labels)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocated = max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
    assert peak == pytest.approx(allocated, rel=0.001) and peak >= 4 * labels.numel() * 500 * 4


def test_the_page_of_a_record_shows_it_and_judges_it(capsys):
    names = {
        "table": table,
        "new_axes": new_axes,
        "speed_up": speed_up,
        "memory_ratio": memory_ratio,
        "loss_gap": loss_gap,
        "COMMAND": "measure",
    }
    page = ["if record is None", "def judged", "speed, memory, measured"]
    shown = run(page, record=played(), ledger=Ledger("speed and memory"), **names)
    assert "a played device, 1970-01-01" in capsys.readouterr().out and len(shown["ax"].lines) == 3
    speed, memory = shown["ledger"].claims
    assert (speed.verdict, memory.verdict) == ("supported", "supported") and "losses within 0.200" in speed.measured
    slower = json.loads(json.dumps(played()))
    slower["contenders"]["unsloth"] |= {"seconds": [9.0, 2.0, 2.0, 2.0], "peak_bytes": 2 * 2**30}
    shown = run(page, record=slower, ledger=Ledger("speed and memory"), **names)
    assert [claim.verdict for claim in shown["ledger"].claims] == ["refuted", "refuted"]
    for nothing in (None, {"contenders": {"trl": {}}}):
        judged = run(["def judged"], **names)["judged"](nothing, "unsloth")
        assert judged[:2] == (None, None) and "measure" in judged[2]
