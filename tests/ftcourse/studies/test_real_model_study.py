"""Reading the study of a real model: rates, curves, paired gains, predictions and figures, on made-up records."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ftcourse.studies import real_model
from ftcourse.studies.bracketing import UnbracketedError, method_of
from ftcourse.studies.real_model import (
    ADAMW,
    BASE,
    CONTROL,
    DEFAULTS,
    FREE,
    LORA,
    METHODS,
    PREDICTIONS,
    SEEDS,
    TUNING_SEED,
    RealStudy,
    Trial,
    outcome,
    plot_curves,
    plot_learning_rates,
)
from ftcourse.studies.records import trial_of
from ftkit.models import data_dir


def record(method: str, lr: float, seed: int, loss: list[float], exact: list[float]) -> dict:
    split = "validation" if seed == TUNING_SEED else "test"
    at = [10 * (i + 1) for i in range(len(loss))]
    return {
        **asdict(replace(METHODS[method], lr=lr, seed=seed)),
        f"{split}_loss": loss[-1],
        f"{split}_exact": exact[-1],
        "curve": {"at": at, "loss": loss, "exact": exact},
        "model": "a model (Q4_1, dequantised)",
        "data": "calls",
        "examples": 8,
        "trained": 1_500_000,
        "steps": 20,
        "precision": "float32",
    }


RECORDS = [
    *(record(ADAMW, lr, TUNING_SEED, [1.0], [exact]) for lr, exact in ((1e-4, 0.6), (4e-5, 0.5), (2e-4, 0.4))),
    *(record(FREE, lr, TUNING_SEED, [1.0], [exact]) for lr, exact in ((1e-4, 0.5), (2e-4, 0.6), (5e-4, 0.1))),
    *(record(LORA, lr, TUNING_SEED, [1.0], [exact]) for lr, exact in ((1e-4, 0.5), (2e-4, 0.6))),
    *(record(ADAMW, 1e-4, seed, [2.0, 1.0], [0.2, 0.5 + 0.1 * seed]) for seed in reversed(SEEDS)),
    *(record(ADAMW, lr, seed, [3.0, 2.0], [0.1, 0.2]) for lr in DEFAULTS for seed in SEEDS),
    *(record(FREE, 2e-4, seed, [2.5 + seed / 10, 0.8], [0.1, 0.6 + 0.1 * seed]) for seed in SEEDS),
    *(record(CONTROL, 1.1e-4, seed, [2.5, 0.9], [0.1, 0.6]) for seed in SEEDS),
]


def read(folder: Path, records: list[dict]) -> RealStudy:
    path = folder / "study.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return RealStudy(path)


@pytest.fixture
def study(tmp_path) -> RealStudy:
    return read(tmp_path, RECORDS)


def test_rates_and_their_curve(study):
    assert study.tuning(ADAMW, "exact") == {4e-5: 0.5, 1e-4: 0.6, 2e-4: 0.4}
    assert list(study.tuning(ADAMW)) == [4e-5, 1e-4, 2e-4], "lowest first"
    assert (study.best_rate(ADAMW), study.best_rate(FREE)) == (1e-4, 2e-4)
    with pytest.raises(UnbracketedError, match=r"LoRA.*upper edge"):
        study.best_rate(LORA)


def test_final_runs_are_those_at_the_best_rate_seeds_in_order(study):
    assert study.ends(ADAMW) == pytest.approx([0.5, 0.6, 0.7])
    assert study.ends(ADAMW, lr=2e-5) == [0.2] * 3
    assert study.ends(CONTROL, "loss") == [0.9] * 3, "which is not tuned"
    assert study.curves(FREE, "loss") == [[2.5, 0.8], [2.6, 0.8], [2.7, 0.8]]
    assert study.at() == [10, 20]
    with pytest.raises(ValueError, match=r"no final run of AdamW at 0\.001"):
        study.ends(ADAMW, lr=1e-3)


def test_gains_are_paired_by_seed(study):
    gain = study.gain((FREE,), (ADAMW,))
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1)), "though the seeds spread"
    assert study.gain((FREE,), (ADAMW,), "loss", 0).mean == pytest.approx(0.6)
    assert study.gain((ADAMW,), (ADAMW, 2e-5)).mean == pytest.approx(0.4)


def test_a_seed_that_one_method_lacks_is_left_out(tmp_path):
    lacking = [r for r in RECORDS if (r["method"], r["seed"]) != (FREE, 0)]
    assert read(tmp_path, lacking).gain((FREE,), (CONTROL,)).mean == pytest.approx(0.15)


def test_the_source_says_that_the_weights_are_dequantised(study):
    assert study.model() == "a model (Q4_1, dequantised), 1.5 M parameters"
    assert "dequantised" in study.source() and "8 examples, 20 steps" in study.source()


def test_predictions_are_judged_by_the_runs(study, tmp_path):
    judged = {prediction.text: outcome(prediction, study) for prediction in PREDICTIONS}
    lags = next(text for text in judged if "lags" in text)
    exceeds = next(text for text in judged if "does not exceed" in text)
    assert (judged[lags], judged[exceeds]) == ("came true", "did not")
    assert judged["2e-5 loses at least 5 percentage points of exact calls against the best rate"] == "came true"
    assert "" in judged.values(), "runs of masks are missing"
    swapped = [{**r, "curve": {**r["curve"], "loss": [1.0, 1.0]}} if r["method"] == FREE else r for r in RECORDS]
    other = read(tmp_path, swapped)
    assert not next(p for p in PREDICTIONS if p.text == lags).came_true(other)


def test_figures_show_what_the_records_have(study):
    ax = plot_learning_rates(study, (ADAMW, FREE))
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines[ADAMW] == [[4e-5, 0.5], [1e-4, 0.6], [2e-4, 0.4]]
    rings = [line.get_xydata().tolist() for line in ax.lines if line.get_markersize() == 13]
    assert rings == [[[1e-4, 0.6]], [[2e-4, 0.6]]]
    assert ax.get_xscale() == "log" and "validation" in ax.get_ylabel()
    ax = plot_curves(study, (ADAMW, FREE))
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines[FREE] == [[10, pytest.approx(2.6)], [20, pytest.approx(0.8)]]
    assert len(ax.lines) == 2 * (len(SEEDS) + 1) and "test" in ax.get_ylabel()


STORED = data_dir() / "results" / "real_study.jsonl"


@pytest.mark.skipif(not STORED.exists(), reason="the study has not been run")
def test_the_stored_study_is_bracketed_and_its_final_runs_are_whole():
    check_stored(RealStudy())


def check_stored(study: RealStudy) -> None:
    tested = {name for name, trial in METHODS.items() if any(is_run_of(trial, each) for each in study.records)}
    assert ADAMW in study.tuned() and tested <= {*study.tuned(), CONTROL, BASE}
    for method in study.tuned():
        rates = list(study.tuning(method))
        assert min(rates) < study.best_rate(method) < max(rates)
    for method in tested - {BASE}:
        assert [run["seed"] for run in study.runs(method)] == list(SEEDS), method
    for each in study.records:
        curve, split = each["curve"], "validation" if each["seed"] == TUNING_SEED else "test"
        assert real_model.WEIGHTS in each["model"] and each["precision"] == "float32"
        assert {name for name in each if name.endswith("_exact")} == {f"{split}_exact"}
        assert each[f"{split}_exact"] == curve["exact"][-1] and curve["at"][-1] == each["steps"]
        assert len(each["train_loss"]) == each["steps"]


def is_run_of(trial: Trial, each: dict) -> bool:
    return each["seed"] != TUNING_SEED and method_of(trial_of(each, Trial)) == method_of(trial)


def broken(kind: str) -> list[dict]:
    """Records in which one thing is wrong; "" for none."""
    whole = [{**r, "train_loss": [1.0] * r["curve"]["at"][-1], "steps": r["curve"]["at"][-1]} for r in RECORDS[:-2]]
    whole = [each for each in whole if each["method"] in (ADAMW, FREE)]
    match kind:
        case "edge":
            whole = [r for r in whole if r["lr"] != 5e-4]
        case "seed":
            whole = [r for r in whole if (r["method"], r["seed"]) != (FREE, 2)]
        case "split":
            whole[0] = {**whole[0], "test_exact": 0.5}
        case "weights":
            whole[0] = {**whole[0], "model": "a model"}
        case "steps":
            whole[-1] = {**whole[-1], "train_loss": [1.0]}
    return whole


@pytest.mark.parametrize("kind", ["", "edge", "seed", "split", "weights", "steps"])
def test_a_stored_study_with_a_fault_is_refused(kind, tmp_path):
    study = read(tmp_path, broken(kind))
    if not kind:
        check_stored(study)
        return
    with pytest.raises((AssertionError, UnbracketedError)):
        check_stored(study)


def test_methods_differ_in_what_is_not_tuned():
    assert len(set(METHODS.values())) == len(METHODS)
    assert TUNING_SEED not in SEEDS and real_model.WEIGHTS.endswith("dequantised")
