"""What notebook 11 builds in its cells: its loss turns red when it is broken."""

import pytest
import torch

import build
from ftkit.loss import IGNORE_INDEX

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
    "logits *= in_loss / count": "logits *= in_loss",
    "(total.log() - picked) * in_loss": "(total.log() - picked)",
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
