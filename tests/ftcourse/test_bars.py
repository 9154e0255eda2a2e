"""The progress bar: one text, without a clock once it has ended in a notebook."""

import io
import re

import pytest

from ftcourse import bars
from ftcourse.bars import Bar


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setattr(bars, "in_notebook", lambda: True)


def test_in_a_notebook_it_is_plain_output_that_ends_the_same_each_time(notebook, capsys):
    for number in Bar(range(3), desc="fine-tune", unit="steps", mininterval=0):
        assert number < 3
    out, err = capsys.readouterr()
    assert err == "" and out.rpartition("\r")[2] == "fine-tune: 100%|██████████| 3/3 steps\n"
    assert "left]" in out, "a clock as long as it runs"


def test_what_is_said_beside_it_stays_and_an_early_end_has_no_clock(notebook, capsys):
    with Bar(total=4, desc="LoRA", unit="steps", mininterval=0) as bar:
        bar.set_postfix(loss="0.413")
        bar.update(2)
    last = capsys.readouterr().out.rpartition("\r")[2]
    assert last.rstrip() == "LoRA:  50%|█████     | 2/4 steps, loss=0.413"  # spaces cover the clock


def test_in_a_terminal_it_is_tqdms():
    said = io.StringIO()
    assert not bars.in_notebook()
    list(Bar(range(3), desc="fine-tune", file=said))
    assert re.search(r"3/3 \[\d\d:\d\d<", said.getvalue())
