"""The stored runs are complete and add up, and one of them, drawn anew each time, can be repeated."""

import dataclasses
import json
import random

import pytest
import torch

from ftcourse.almanac import all_facts, faq_prompt
from ftcourse.studies import freezing as study
from ftcourse.studies.freezing import RATES, SEEDS, TUNING_SEED, Trial, best_rate, run
from ftcourse.studies.records import read_records, trial_of
from ftcourse.studies.tasks import knowledge_by_domain
from ftkit.evaluate import generate_answers
from ftkit.models import data_dir, load_base
from tests.tiny import foreign_tokenizer, save_foreign

RUNS = read_records(data_dir() / "results" / "freezing.jsonl")


def test_every_preset_ran_at_both_rates_and_with_every_seed_at_the_better():
    wanted = {Trial("", preset, lr, TUNING_SEED) for preset, rates in RATES.items() for lr in rates}
    for preset, rates in RATES.items():
        tried = {r["lr"]: r["test_exact"] for r in RUNS if r["preset"] == preset and r["seed"] == TUNING_SEED}
        assert set(tried) == set(rates)
        better = best_rate(RUNS, "", preset)
        assert tried[better] == max(tried.values())
        wanted |= {Trial("", preset, better, seed) for seed in SEEDS}
    assert {trial_of(record, Trial) for record in RUNS} == wanted and len(RUNS) == len(wanted)


def test_what_was_counted_adds_up():
    """Two moments of four bytes for each trainable parameter, and four bytes of steps for each tensor."""
    for record in RUNS:
        model = load_base()[0]
        tensors = len(study.apply_preset(model, record["preset"]))
        assert record["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert record["optimizer_bytes"] == 8 * record["trainable"] + 4 * tensors
        assert set(record["pages_right"]) == set(record["pages_loss"])


def test_a_run_drawn_at_random_repeats():
    """Processors sum in different orders, and 91 steps let that grow. Allowed is under half of what the worse rate
    of full fine-tuning changes (right answers 0.39 for 0.56, loss 0.72 for 0.46): a wrong rate would be noticed."""
    committed = random.choice(RUNS)
    again = run(trial_of(committed, Trial))
    for measure in ("trainable", "optimizer_bytes"):
        assert again[measure] == committed[measure]
    for measure in ("test_exact", "heldout_domains_exact"):
        assert again[measure] == pytest.approx(committed[measure], abs=0.08), committed
    for measure in ("test_loss", "heldout_domains_loss"):
        assert again[measure] == pytest.approx(committed[measure], rel=0.15), committed


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


def test_the_program_plans_rates_first_and_leaves_out_what_the_model_cannot_take(tmp_path, monkeypatch, capsys):
    source, path = str(save_foreign(tmp_path / "qwen")), tmp_path / "runs.jsonl"
    monkeypatch.setattr(
        study,
        "run",
        lambda s: {**dataclasses.asdict(s), "test_exact": 0.5, "test_loss": s.lr},
    )
    with pytest.warns(UserWarning, match="tied"):
        assert study.main(["--model", source, "--output", str(path)]) == 0
    records = read_records(path)
    names = [name for name in RATES if name != "biases only"]
    assert "without 'biases only': BitFit trains biases, and Qwen3ForCausalLM has none" in capsys.readouterr().err
    assert [r["preset"] for r in records[:12]] == [name for name in names for _ in range(2)]
    final = [(r["preset"], r["lr"], r["seed"]) for r in records[12:]]
    assert final == [(name, min(RATES[name]), seed) for seed in SEEDS for name in names]  # of equals, least loss
    assert {r["model"] for r in records} == {source}


def test_a_run_on_a_foreign_model(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "TASK", "chat-16")
    source = str(save_foreign(tmp_path / "qwen"))
    assert len(foreign_tokenizer()) < 400  # the almanac's words are many tokens here
    record = run(Trial(source, "norms only", 1e-2, 0))
    assert json.loads(json.dumps(record)) == record
    assert record["trainable"] == 320 and 0 <= record["test_exact"] <= 1 and record["test_loss"] > 0
