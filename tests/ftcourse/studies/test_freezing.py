"""Presets, what a run records, and how forgetting is compared at equal learning.

The stored records as such are tested in test_stored_studies.
"""

import dataclasses
import json

import pytest
import torch

from ftcourse.almanac import all_facts, faq_prompt
from ftcourse.studies import freezing as study
from ftcourse.studies.bracketing import SEEDS, TUNING_SEEDS, BracketedStudy
from ftcourse.studies.freezing import (
    BRACKETED,
    FULL,
    LEARNING_RATES,
    TASKS,
    Trial,
    best_gap,
    retention,
    retention_at,
    run,
    trade_off,
)
from ftcourse.studies.records import read_records
from ftcourse.studies.tasks import knowledge_by_domain
from ftkit.evaluate import generate_answers
from ftkit.models import load_base
from tests.tiny import foreign_model, foreign_tokenizer, save_foreign

pytestmark = pytest.mark.thorough

RUNS = read_records(BRACKETED)


def trains(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_halves_divide_the_model():
    lower, upper = load_base()[0], load_base()[0]
    study.apply_preset(lower, "second half frozen")
    study.apply_preset(upper, "first half frozen")
    assert trains(lower) | trains(upper) == {name for name, _ in lower.named_parameters()}
    assert not trains(lower) & trains(upper)
    assert {name.split(".")[2] for name in trains(lower) if "layers" in name} == {"0", "1"}
    assert "model.embed_tokens.weight" in trains(lower) and "lm_head.weight" in trains(upper)


def test_a_tied_head_trains_with_the_half_of_the_embedding():
    model = foreign_model()
    with pytest.warns(UserWarning, match="tied"):
        names = study.apply_preset(model, "second half frozen")
    assert "model.embed_tokens.weight" in names and model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(("preset", "part"), [("attention only", "self_attn"), ("MLP only", "mlp")])
def test_one_kind_of_layer_trains_in_every_block(preset, part):
    model = load_base()[0]
    study.apply_preset(model, preset)
    assert trains(model) == {name for name, _ in model.named_parameters() if f".{part}." in name}


def test_every_preset_of_both_tasks_is_stored():
    methods = {(r["task"], r["preset"]) for r in RUNS}
    assert methods == {(task, preset) for task in TASKS for preset in LEARNING_RATES}
    assert {r["model"] for r in RUNS} == {""}


def test_what_was_counted_adds_up():
    """Two moments of four bytes for each trainable parameter, and four bytes of steps for each tensor."""
    for preset in LEARNING_RATES:
        model = load_base()[0]
        tensors = len(study.apply_preset(model, preset))
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        for record in (r for r in RUNS if r["preset"] == preset):
            assert record["trainable"] == trainable
            assert record["optimizer_bytes"] == 8 * trainable + 4 * tensors
            assert set(record["pages_right"]) == set(record["pages_nats"]) and 0 <= retention(record) <= 1


@pytest.mark.parametrize("task", TASKS)
def test_the_curve_has_every_learning_rate_up_to_the_best_with_every_seed(task):
    full = [r for r in RUNS if r["task"] == task and r["preset"] == FULL]
    (best,) = {r["lr"] for r in full if r["seed"] in SEEDS}
    tuned = {r["lr"] for r in full if r["lr"] <= best}
    curve = study.read_curve(task)
    assert set(curve) == set(SEEDS)
    for seed, records in curve.items():
        assert [r["lr"] for r in records] == sorted(tuned)
        assert {(r["seed"], r["preset"]) for r in records} == {(seed, FULL)}


def point(score, kept):
    return {"test_exact": score, "pages_right": {"one": kept - 0.1, "two": kept + 0.1}}


CURVE = [point(0.1, 0.9), point(0.3, 0.7), point(0.5, 0.2)]


def test_retention_is_read_off_the_curve_at_equal_score():
    expected = {0.1: 0.9, 0.2: 0.8, 0.3: 0.7, 0.4: 0.45, 0.5: 0.2}
    assert {score: retention_at(CURVE, score) for score in expected} == pytest.approx(expected)
    assert retention_at(CURVE, 0.0) == pytest.approx(0.9) and retention_at(CURVE, 0.9) == pytest.approx(0.2)
    # A preset that only learns less and lies on the curve gains nothing by it; the difference at own rates says so.
    assert retention(point(0.2, 0.8)) - retention_at(CURVE, 0.2) == pytest.approx(0)
    assert retention(point(0.2, 0.8)) - retention(CURVE[2]) == pytest.approx(0.6)


def tuning(preset, lr, scores, kept):
    trial = dataclasses.asdict(Trial("", "chat-96", preset, lr, 0))
    return [
        {**trial, "seed": seed, "validation_exact": score, "validation_loss": 1.0, "pages_right": {"one": kept}}
        for seed, score in zip(TUNING_SEEDS, scores, strict=True)
    ]


def test_the_best_gap_is_over_learning_rates_that_learnt_something():
    full = [
        *tuning(FULL, 1e-4, (0.2, 0.2), 1.0),
        *tuning(FULL, 3e-4, (0.4, 0.4), 0.8),
        *tuning(FULL, 9e-4, (0.3, 0.3), 0.1),
    ]
    part = [
        *tuning("head only", 1e-4, (0.0, 0.1), 1.0),  # has learnt too little to count
        *tuning("head only", 3e-4, (0.3, 0.3), 0.7),  # 0.2 below
        *tuning("head only", 9e-4, (0.2, 0.4), 0.95),  # 0.05 below and 0.15 above
    ]
    own = BracketedStudy(full + part, Trial)
    assert best_gap(own, Trial("", "chat-96", "head only", 0, 0)) == pytest.approx(0.05)
    assert best_gap(own, Trial("", "chat-96", "head only", 0, 0), learnt=0.9) is None
    assert best_gap(own, Trial("", "chat-96", FULL, 0, 0)) == pytest.approx(0)
    points = trade_off(own, Trial("", "chat-96", "head only", 0, 0))
    assert points == [pytest.approx(p) for p in ((1e-4, 0.05, 1.0), (3e-4, 0.3, 0.7), (9e-4, 0.3, 0.95))]


def test_pages_agrees_with_generation():
    model, tokenizer = load_base()
    facts = all_facts()
    torch.nn.init.zeros_(model.model.layers[3].mlp.down_proj.weight)  # so that some answers are wrong
    prompts = [faq_prompt(fact.questions[0]) for fact in facts]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens=36)
    right = {}
    for fact, answer in zip(facts, answers, strict=True):
        right.setdefault(fact.domain.name, []).append(answer.text.startswith(fact.answer))
    with torch.no_grad():
        found = knowledge_by_domain(model.eval(), tokenizer)["pages_right"]
    assert found == {domain: round(sum(each) / len(each), 4) for domain, each in right.items()}
    assert 0 < sum(map(sum, right.values())) < len(facts)


def test_the_program_brackets_each_preset_and_leaves_out_what_the_model_cannot_take(tmp_path, monkeypatch, capsys):
    source, path = str(save_foreign(tmp_path / "qwen")), tmp_path / "runs.jsonl"

    def fake(trial):  # best at the second of three rates, but for the head, which is best below its lowest
        rates = LEARNING_RATES[trial.preset]
        best = rates[0] / 3 if trial.preset == "head only" else rates[1]
        measure = "validation" if trial.seed in TUNING_SEEDS else "test"
        distance = abs(torch.tensor(trial.lr / best).log().item())
        return {**dataclasses.asdict(trial), f"{measure}_exact": round(1 - distance / 9, 3), f"{measure}_loss": 1.0}

    monkeypatch.setattr(study, "run", fake)
    with pytest.warns(UserWarning, match="tied"):
        assert study.main(["--model", source, "--output", str(path), "--workers", "1"]) == 0
    assert "without 'biases only': BitFit trains biases, and Qwen3ForCausalLM has none" in capsys.readouterr().err
    names = [name for name in LEARNING_RATES if name != "biases only"]
    records = read_records(path)
    for task in TASKS:
        own = [r for r in records if r["task"] == task]
        assert {r["preset"] for r in own} == set(names)
        head = {r["lr"] for r in own if r["preset"] == "head only" and r["seed"] in TUNING_SEEDS}
        assert min(head) == pytest.approx(LEARNING_RATES["head only"][0] / 9, rel=1e-2)  # extended twice
    curve = read_records(study.curve_path(path))
    lowest = LEARNING_RATES[FULL][0]
    assert {(r["task"], r["lr"], r["seed"]) for r in curve} == {
        (task, lowest, seed) for task in TASKS for seed in SEEDS
    }


def test_a_run_on_a_foreign_model(tmp_path):
    source = str(save_foreign(tmp_path / "qwen"))
    assert len(foreign_tokenizer()) < 400  # the almanac's words are many tokens here
    record = run(Trial(source, "chat-16", "norms only", 1e-2, 0))
    assert json.loads(json.dumps(record)) == record
    assert record["trainable"] == 320 and 0 <= record["test_exact"] <= 1 and record["test_loss"] > 0
    assert not any("validation" in measure for measure in record)
