"""The recorded speeds: complete, of plausible sizes, and made by the program."""

import json

import pytest

from ftcourse import step_speeds
from ftkit.models import data_dir


def test_the_record_is_what_the_program_writes(tmp_path, monkeypatch):
    stored = json.loads((data_dir() / "results" / step_speeds.STORED).read_text())
    made_up = {name: 1.23456 if isinstance(value, float) else value for name, value in stored.items()}
    monkeypatch.setattr(step_speeds, "measure", lambda: made_up)
    step_speeds.main(["--output", str(tmp_path / "new.json")])
    new = json.loads((tmp_path / "new.json").read_text())
    assert new.keys() == stored.keys() and new["flops"] == 1.23
    assert stored["packed"] > stored["padded"] and stored["full"] > stored["padded"]


def test_the_fastest_call_counts(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(step_speeds.time, "perf_counter", lambda: next(clock))
    calls = []
    assert step_speeds.fastest(calls.append, "x", repeats=3) == pytest.approx(1.0) and len(calls) == 4
