"""The mask tournament: each method's run, the plan, the reader, and the stored record."""

import json
import math
from itertools import islice

import pytest
import torch

from ftcourse.almanac import all_facts
from ftcourse.datasets import chat_with_validation, truth_with_validation
from ftcourse.intervals import interval
from ftcourse.studies import masks
from ftcourse.studies.bracketing import TUNING_SEEDS
from ftcourse.studies.masks import (
    ADAMW,
    CONTROL,
    FISHER,
    FISHER_LINEAR,
    FISHER_MORE,
    LIFT,
    LORA,
    MAGNITUDE,
    METHODS,
    PREDICTIONS,
    RANDOM,
    SEEDS,
    F,
    Prediction,
    Tournament,
    Trial,
    kept,
    prepare,
    run,
)
from ftcourse.studies.records import read_records, trial_of
from ftcourse.studies.tasks import load_task, training_steps
from ftkit.models import load_base
from tests import tiny

from .made_up import tournament

pytestmark = pytest.mark.thorough

SPARSE = (RANDOM, FISHER, FISHER_MORE, FISHER_LINEAR, MAGNITUDE, LIFT)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return str(tiny.save_foreign(tmp_path_factory.mktemp("foreign")))


@pytest.fixture
def one_epoch(monkeypatch):
    """Of one epoch, judged by few rows, which are more than one forward pass takes."""
    monkeypatch.setattr("ftcourse.studies.tasks.epochs", lambda n: 1)
    monkeypatch.setattr("ftcourse.studies.tasks.EVAL_ROWS", 8)
    facts = all_facts()[::60]
    monkeypatch.setattr("ftcourse.studies.tasks.all_facts", lambda: facts)

    def few(n, seed):
        splits = chat_with_validation(n, seed)
        return {split: rows[: n if split == "train" else 10] for split, rows in splits.items()}

    monkeypatch.setattr("ftcourse.studies.tasks.chat_with_validation", few)
    monkeypatch.setattr(
        "ftcourse.studies.tasks.truth_with_validation",
        lambda n, seed, n_test: truth_with_validation(n, seed, n_validation=10, n_test=10),
    )
    masks.fisher_scores.cache_clear()
    yield
    masks.fisher_scores.cache_clear()


@pytest.mark.parametrize("task", ["chat-8", "truth-8"])
@pytest.mark.parametrize("method", [ADAMW, *PREDICTIONS])
def test_every_method_runs_on_a_foreign_model_and_repeats(task, method, foreign, one_epoch):
    record = run(Trial(task, method, 1e-3, 0), foreign)
    assert record["curves"] == run(Trial(task, method, 1e-3, 0), foreign)["curves"]
    assert all(len(curve) == 1 and math.isfinite(curve[0]) for curve in record["curves"].values())
    assert "test_exact" in record and 0 <= record["kept"] <= 1
    assert trial_of(record, Trial) == Trial(task, method, 1e-3, 0)


def test_tuning_runs_see_validation_data_alone(foreign, one_epoch):
    record = run(Trial("chat-8", ADAMW, 1e-3, TUNING_SEEDS[0]), foreign)
    assert "validation_exact" in record and "kept" not in record and "test_" not in json.dumps(record)


def weights_after(method: str, steps: int = 2, task: str = "chat-96"):
    """Base weights, trained weights and `trained`, after a few steps on pocket-base."""
    torch.manual_seed(0)
    loaded = load_task(task, 0, validation=True)
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    prepared, optimizer = prepare(method, loaded, 1e-2, 0, None, task)
    list(islice(training_steps(prepared, optimizer, 0), steps))
    return before, loaded.model, masks.trained_entries(prepared.model, optimizer)


@pytest.mark.parametrize("method", SPARSE)
def test_a_fixed_mask_trains_its_share_and_nothing_else(method):
    before, model, trained = weights_after(method)
    moved = {name: int((p != before[name]).sum()) for name, p in model.named_parameters()}
    chosen = {name for name in before if ".layers." in name and before[name].ndim == 2}
    domain = before if method in (FISHER, FISHER_MORE) else chosen
    share = 0.3 if method == FISHER_MORE else 0.1
    assert trained == pytest.approx(share * sum(before[name].numel() for name in domain), rel=0.01)
    assert 0.9 * trained <= sum(moved.values()) <= trained
    assert all(count == 0 for name, count in moved.items() if name not in domain)


def test_lora_trains_as_many_numbers_as_the_masks():
    counts = [weights_after(method, steps=1)[2] for method in (LORA, MAGNITUDE)]
    assert counts[0] == pytest.approx(counts[1], rel=0.01)


def test_a_classifiers_head_is_trained_densely(foreign):
    torch.manual_seed(0)
    task = load_task("truth-8", 0, foreign, validation=True)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    task, optimizer = prepare(FISHER_LINEAR, task, 1e-2, 0, foreign, "truth-8")
    list(islice(training_steps(task, optimizer, 0), 2))  # the first one has a learning rate of 0
    moved = {name: (p != before[name]).float().mean() for name, p in task.model.named_parameters()}
    assert moved.pop("score.weight") == 1 and max(moved.values()) < 1


def test_what_is_kept_is_asked_of_the_trained_weights():
    _, tokenizer = load_base()
    assert tokenizer is not None
    torch.manual_seed(0)
    for name in ("chat-96", "truth-500"):
        model = load_task(name, 0).model
        assert kept(model, None) > 0.95
        with torch.no_grad():
            for param in model.model.layers.parameters():
                param.zero_()
        assert kept(model, None) < 0.05


def test_the_last_tokens_loss_is_told_from_the_others():
    task = load_task("chat-8", 0)
    last, rest = masks.loss_by_place(task)
    task.model.eval()
    by_hand = {"last": [], "rest": []}
    for row in task.train:
        with torch.no_grad():
            logits = task.model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        places = [n for n, label in enumerate(row["labels"][1:]) if label != -100]
        for n in places:
            loss = -logits[n].log_softmax(-1)[row["labels"][n + 1]].item()
            by_hand["last" if n == places[-1] else "rest"].append(loss)
    assert last == pytest.approx(sum(by_hand["last"]) / 8, rel=1e-4)
    assert rest == pytest.approx(sum(by_hand["rest"]) / len(by_hand["rest"]), rel=1e-4)
    assert last > 2 * rest  # the token that ends a turn is new to the base model


def test_predictions_are_of_every_method_but_adamw():
    assert set(PREDICTIONS) == {*METHODS["chat-96"], CONTROL} - {ADAMW}
    assert all(p.sign in (-1, 0, 1) and len(p.why.split()) > 5 for p in PREDICTIONS.values())
    assert set(METHODS["truth-500"]) <= set(METHODS["chat-96"])


def test_the_command_resumes_and_a_line_cut_off_is_done_again(foreign, tmp_path, one_epoch, monkeypatch, capsys):
    monkeypatch.setitem(masks.METHODS, "chat-8", (ADAMW, F))
    done = []

    def made_up(trial, base):
        done.append(trial)
        middle = sorted(masks.CHAT_RATES.get(trial.method, masks.CHAT_RATES[F]))[1]
        split = "validation" if trial.seed in TUNING_SEEDS else "test"
        score = {f"{split}_exact": 0.1 + (trial.lr == middle), f"{split}_loss": 1.0}
        return {**trial.__dict__, **score, "curves": {}}

    monkeypatch.setattr(masks, "run", made_up)
    output = tmp_path / "out" / "study.jsonl"
    arguments = ["--tasks", "chat-8", "--seeds", "2", "--model", foreign, "--workers", "1", "--output", str(output)]
    masks.main(arguments)
    whole, controls = read_records(output), read_records(output.with_name(masks.CONTROLS))
    assert len(whole) == 2 * 3 * 2 + 2 * 2 and len(controls) == 2  # tuning and final runs of AdamW and F
    middle = sorted(masks.CHAT_RATES[F])[1]
    assert {r["lr"] for r in controls} == {float(f"{math.sqrt(0.3) * middle:.3g}")}
    output.write_text(output.read_text()[:-20])
    done.clear()
    masks.main(arguments)
    assert len(done) == 1 and read_records(output) == whole
    assert str(output) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "songs-9"], "chat-N or truth-N"),
        (["--tasks", "chat-9999"], "must be between 1 and"),
        (["--model", "./nowhere"], "no model folder"),
        (["--workers", "0"], "at least 1"),
        (["--seeds", "0"], "at least 1"),
    ],
)
def test_what_cannot_work_is_refused_before_any_run(arguments, said, tmp_path, capsys):
    output = tmp_path / "study.jsonl"
    with pytest.raises(SystemExit):
        masks.main([*arguments, "--output", str(output)])
    assert said in capsys.readouterr().err and not output.exists()


def test_effects_are_paired_by_seed(tmp_path):
    study = tournament(tmp_path, scores={("chat-96", F): 0.6})
    ends = [study.ends("chat-96", method) for method in (F, ADAMW)]
    found = study.effect("chat-96", F)
    assert found == interval([a - b for a, b in zip(*ends, strict=True)])
    assert found.mean == pytest.approx(0.1, abs=0.005)
    assert study.effect("chat-96", F, against=CONTROL).mean == pytest.approx(0.1, abs=0.005)
    assert study.effect("chat-96", F, "test_loss", epoch=0).mean == pytest.approx(0, abs=0.01)


def test_the_reader_gives_rates_curves_and_counts(tmp_path):
    study = tournament(tmp_path, scores={("chat-96", FISHER_MORE): 0.6})
    assert study.tasks == ("chat-96", "truth-500")
    assert set(study.methods("truth-500")) == {*METHODS["truth-500"], CONTROL}
    assert study.rate("chat-96", ADAMW) == sorted(masks.CHAT_RATES[ADAMW])[1]
    assert study.rate("chat-96", CONTROL) == float(f"{math.sqrt(0.3) * study.rate('chat-96', F):.3g}")
    assert list(study.tuning("chat-96", F).values()) == [[0.2, 0.2], [0.4, 0.4], [0.2, 0.2]]
    assert study.tuning_curves("chat-96", F, 0.7) == []
    assert study.curves("chat-96", F, "train_loss") == [[3.0, 0.1]] * 6
    assert (study.trained("chat-96", F), study.seeds("chat-96")) == (100, 6)
    assert study.best_of("chat-96", FISHER, FISHER_MORE) == FISHER  # chosen by validation, where both are equal


def test_a_sign_needs_a_percentage_point_and_an_interval_clear_of_zero(tmp_path):
    scores = {("chat-96", F): 0.7, ("chat-96", RANDOM): 0.3, ("chat-96", LIFT): 0.506}
    study = tournament(tmp_path, scores=scores, spread={LORA: 40})
    assert [study.sign("chat-96", method) for method in (F, RANDOM, LIFT, LORA)] == [1, -1, 0, 0]
    assert study.effect("chat-96", LIFT).low > 0  # clear of zero, but too small to matter
    assert Prediction(1, "why").sign == study.sign("chat-96", F)


def test_the_stored_study_is_what_it_promises():
    """test_stored_studies.py checks its rates and repeats a run."""
    study = Tournament()
    for task in study.tasks:
        assert study.seeds(task) >= SEEDS[task]
        assert set(study.methods(task)) == {*METHODS[task], CONTROL}
        assert len(study.ends(task, CONTROL)) == study.seeds(task)
        score = sum(study.ends(task, ADAMW)) / study.seeds(task)
        assert (0.5 if task.startswith("truth") else 0.05) < score < 0.95  # it discriminates
