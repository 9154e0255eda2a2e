"""Every stored study that names its records as `BRACKETED` keeps the rules, and one run of each can be repeated."""

import importlib
import pkgutil
from dataclasses import replace

import pytest

import ftcourse.studies
from ftcourse.studies.bracketing import TUNING_SEEDS, check_study
from ftcourse.studies.records import make_repeatable, read_records, trial_of
from tests.ftcourse.studies.repeats import assert_repeats, draw

pytestmark = pytest.mark.thorough

MODULES = {
    module.name: found
    for module in pkgutil.iter_modules(ftcourse.studies.__path__)
    if not module.ispkg and hasattr(found := importlib.import_module(f"ftcourse.studies.{module.name}"), "BRACKETED")
}


@pytest.mark.parametrize("name", MODULES)
def test_a_stored_study_is_bracketed_and_has_its_seeds(name):
    module = MODULES[name]
    records = read_records(module.BRACKETED)
    assert records, f"python -m ftcourse.studies.{name} stores them in {module.BRACKETED}"
    check_study(records, module.Trial)


@pytest.mark.parametrize("name", MODULES)
def test_a_final_run_drawn_at_random_repeats(name):
    module = MODULES[name]
    final = [record for record in read_records(module.BRACKETED) if record["seed"] not in TUNING_SEEDS]
    stored = draw(final)
    trial = trial_of(stored, module.Trial)
    make_repeatable()
    others = [
        r for r in final if trial_of(r, module.Trial) != trial == replace(trial_of(r, module.Trial), seed=trial.seed)
    ]
    assert others
    assert_repeats(stored, module.run(trial), others)


@pytest.mark.parametrize(("measure", "change"), [("test_exact", 0.1), ("test_loss", 0.2), ("train_loss", [1.0])])
def test_a_run_that_does_not_repeat_is_noticed(measure, change):
    stored = {"test_exact": 0.5, "test_loss": 1.0, "train_loss": [2.0, 1.5, 1.0], "lr": 1e-3, "seed": 0}
    assert_repeats(stored, dict(stored), [{**stored, "train_loss": [2.1, 1.5, 1.0]}, stored])
    with pytest.raises(AssertionError):
        assert_repeats(stored, {**stored, measure: stored[measure] + change if measure != "train_loss" else change})
    with pytest.raises(AssertionError):
        assert_repeats(stored, stored, [stored])  # another seed would not agree


def test_a_draw_can_be_repeated(monkeypatch, capsys):
    records = [{"seconds": n} for n in range(100)]
    monkeypatch.setenv("FTKIT_DRAW", "7")
    assert draw(records) == draw(records) and draw(records)["seconds"] < 50
    assert "FTKIT_DRAW=7" in capsys.readouterr().out
