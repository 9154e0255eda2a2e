"""The growth study: a small run is watched as it says, and every figure of the page comes from the records."""

import json

import pytest

from experiments.growth import __main__ as command
from experiments.growth import picture, report, trial
from experiments.growth.trial import Trial
from ftkit.conversations import read_source


def played(study: str, x: int, **values) -> dict:
    """A record of a run that never was: a test's, and nothing else's."""
    record = {
        "study": study,
        "x": x,
        "parameters": 10 * x,
        "machine": "x86_64, 2 cores",
        "torch": "0",
        "date": "1970-01-01",
    }
    record |= {"seconds": 9.0, "seconds_to_first_step": 5.0, "cpu_seconds": 1e-3 * x, "peak_bytes": 100 * x}
    return record | {"largest_process_bytes": 2**20, "step_seconds": [9.0, 9.0, 0.5, 0.1], "load": [1.0, 1.0]} | values


def test_growth_is_computed_from_the_two_largest_runs():
    records = [played("rows", x) for x in (10, 1000, 100)]
    quadratic = [played("rows", x, peak_bytes=x * x) for x in (10, 100, 1000)]
    text = report.markdown(records)
    assert "processor seconds 1.00, fastest step 0.00, peak memory 1.00" in text
    assert "One more row costs 1000 µs of a processor and 100 bytes" in text
    assert "peak memory 2.00" in report.markdown(quadratic)
    assert "| 1,000 | 5 | 9 | 1 | 100 |" in text


def test_a_million_rows_are_judged_where_they_were_measured():
    records = [played("rows", x) for x in (1000, 10_000)]
    text = report.markdown(records)
    assert "were not measured; at this cost they would take 1000 processor seconds, on 2 cores at least 500 s" in text
    measured = played("rows", 1_000_000, seconds_to_first_step=61.0, peak_bytes=int(2e9))
    assert "after 61 s (wanted: 60; missed)" in report.markdown([*records, measured])
    assert "2.00 GB (wanted: 2.00 GB; met)" in report.markdown([*records, measured])
    slow = played("rows", 1_000_000, seconds_to_first_step=60.0, peak_bytes=int(2.1e9))
    text = report.markdown([slow, *records])
    assert "after 60 s (wanted: 60; met)" in text and "2.10 GB (wanted: 2.00 GB; missed)" in text


def test_the_width_is_shown_in_parameters_and_a_single_run_grows_nothing():
    assert "| 70 |" in report.markdown([played("width", 7)]) and "Exponents" not in report.markdown(
        [played("width", 7)]
    )


def test_a_shared_machine_is_said_so():
    quiet, busy = [played("rows", 1)], [played("rows", 1), played("rows", 2, load=[1.0, 14.0])]
    assert "shared" not in report.markdown(quiet)
    assert "in 1 of 2 runs other programs waited for a core, too (load up to 14)" in report.markdown(busy)


def test_the_picture_shows_every_study_and_the_same_records_give_the_same_bytes():
    records = [played(study, x) for study in report.HEADS for x in (1, 2)]
    drawn = picture.svg(records)
    assert drawn == picture.svg(records) and all(study in drawn for study in ("length", "ranks", "width"))
    assert drawn != picture.svg([record | {"peak_bytes": 7} for record in records])


def test_rows_are_as_many_as_asked_for_and_all_different(tmp_path):
    rows = read_source(trial.write_rows(tmp_path / "a.jsonl", 50, (2, 3))).rows
    assert len({json.dumps(row) for row in rows}) == len(rows) == 50


def test_the_command_does_what_is_missing(tmp_path, monkeypatch):
    out, done = tmp_path / "growth.jsonl", []
    trials = [Trial("rows", 10, rows=10), Trial("rows", 20, rows=20), Trial("ranks", 1)]
    monkeypatch.setattr(command, "TRIALS", trials)
    monkeypatch.setattr(command, "run", lambda t: done.append(t.key) or played(*t.key))
    out.write_text(json.dumps(played("rows", 10)) + "\n")
    assert command.main(["--studies", "rows", "--out", str(out)]) == 0
    assert command.main(["--studies", "rows", "--out", str(out)]) == 0
    assert done == [("rows", 20)] and len(command.stored(out)) == 2


@pytest.mark.thorough
def test_a_run_is_watched_from_its_start_to_its_end(cold):  # a fork shares its memory with the process that it left
    found = trial.run(Trial("rows", 20, rows=20, flags={"batch_size": 2, "estimate_memory": False}))
    assert len(found["step_seconds"]) == 3 and found["parameters"] > 500_000
    assert 0 < found["seconds_to_first_step"] <= found["seconds"]
    assert found["peak_bytes"] > 1e7 and found["largest_process_bytes"] > 1e7 and found["cpu_seconds"] > 0


@pytest.mark.thorough
def test_a_run_that_fails_says_why():
    with pytest.raises(RuntimeError, match="--lr is 0"):
        trial.run(Trial("rows", 5, rows=5, flags={"lr": 0.0}))
