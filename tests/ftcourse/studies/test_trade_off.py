"""The study of learning against forgetting: what each method sets up, its learning rates, what a run records, its
command. test_stored_studies has the rest."""

import json
import math
import statistics
from dataclasses import replace

import pytest
import torch

from ftcourse.studies import trade_off as study
from ftcourse.studies.bracketing import TUNING_SEEDS, check_study
from ftcourse.studies.chat_recipe import chat_token_ids
from ftcourse.studies.records import read_records, trial_of
from ftcourse.studies.tasks import load_task
from ftcourse.studies.trade_off import METHODS, Trial, optimizer_of, prepare, run
from ftkit.models import load_tokenizer
from tests.tiny import foreign_model

pytestmark = pytest.mark.thorough

TOKENIZER = load_tokenizer(study.base_of(""))


@pytest.fixture
def prepared():
    task = load_task("chat-24", 0, study.base_of(""))
    return lambda name: prepare(name, replace(task, model=load_task("chat-24", 0, study.base_of("")).model), TOKENIZER)


def rates_by_kind(name, model, lr):
    """The learning rates of low-rank factors and of all else that trains."""
    named = {id(parameter): key for key, parameter in model.named_parameters()}
    found = {True: set(), False: set()}
    for group in optimizer_of(name, model, lr).param_groups:
        for parameter in group["params"]:
            found["lora_" in named[id(parameter)]].add(group["lr"])
    return found[True], found[False]


@pytest.mark.parametrize(
    ("name", "factors", "rest"),
    [
        (study.FULL, set(), {5e-3}),
        (study.LORA, {5e-3}, set()),
        (study.ONE_RATE, {5e-3}, {5e-3}),
        (study.OWN_RATE, {5e-3}, {study.WHOLE_LR}),
        (study.TOKENS, {5e-3}, {study.WHOLE_LR}),
        (study.LORAPLUS, {5e-3, 5e-3 * study.LORAPLUS_RATIO}, set()),
    ],
)
def test_each_kind_of_parameter_has_the_learning_rate_that_the_method_says(prepared, name, factors, rest):
    model = prepared(name)
    assert rates_by_kind(name, model, 5e-3) == (factors, rest)
    grouped = sum(len(group["params"]) for group in optimizer_of(name, model, 5e-3).param_groups)
    assert grouped == sum(parameter.requires_grad for parameter in model.parameters())


def test_the_exchanged_start_has_b_where_a_was_random_and_changes_nothing(prepared):
    usual, exchanged = prepared(study.LORA), prepared(study.ZERO_A)
    for model, zero, random in ((usual, "lora_B.", "lora_A."), (exchanged, "lora_A.", "lora_B.")):
        for name, parameter in model.named_parameters():
            if zero in name:
                assert not parameter.any()
            elif random in name:
                bound = parameter.shape[1] ** -0.5
                assert 0.8 * bound < parameter.abs().max() <= bound
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        assert torch.equal(usual(ids).logits, exchanged(ids).logits)


def test_the_chat_tokens_rows_train_in_embedding_and_head_and_no_others(prepared):
    model = prepared(study.TOKENS)
    rows = chat_token_ids(TOKENIZER, load_task("chat-24", 0, study.base_of("")).train[0])
    deltas = [p for name, p in model.named_parameters() if "trainable_tokens_delta" in name]
    assert [tuple(p.shape) for p in deltas] == [(len(rows), 128)] * 2 and len(rows) >= 2
    factors = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == factors + 2 * len(rows) * 128
    with torch.no_grad():
        ids = torch.tensor([[token for token in range(10, 30) if token not in rows]])
        before = model(ids).logits
        for delta in deltas:
            delta.add_(1.0)
        changed = ((model(ids).logits - before).abs() > 1e-4).any(1)[0].nonzero().flatten().tolist()
    assert set(changed) <= set(rows) and changed


def test_attention_alone_has_factors_in_attention_alone(prepared):
    names = [n for n, p in prepared(study.ATTENTION).named_parameters() if p.requires_grad]
    assert names and all("self_attn" in name for name in names)


def test_groups_that_hold_no_factors_or_nothing_else_are_left_out():
    model = foreign_model()
    groups = [{"params": list(model.named_parameters()), "weight_decay": 0.1}]
    assert [group["lr"] for group in study.separate_groups(groups, 7e-4)] == [7e-4]


def test_a_run_records_what_was_learnt_and_kept():
    tuned = run(Trial("chat-24", study.BITFIT, 1e-2, TUNING_SEEDS[0]))
    final = run(Trial("chat-24", study.BITFIT, 1e-2, 0))
    for record in (tuned, final):
        assert json.loads(json.dumps(record)) == record and trial_of(record, Trial).method == study.BITFIT
        assert 0 <= record["kept"] <= 1 and record["cpu_ms"] > 0 and len(record["first_losses"]) == 3
    assert "validation_exact" in tuned and "kept_by_domain" not in tuned
    assert "test_exact" in final
    assert statistics.fmean(final["kept_by_domain"].values()) == pytest.approx(final["kept"], abs=1e-4)


def test_every_method_starts_with_three_rates_a_factor_of_three_apart():
    for method in METHODS.values():
        assert len(method.rates) == 3
        assert all(2.9 < b / a < 3.03 for a, b in zip(method.rates, method.rates[1:], strict=False))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--workers", "0"], "at least 1"), (["--task", "songs-9"], "chat-N"), (["--methods", "magic"], "invalid choice")],
)
def test_what_cannot_work_is_refused_before_any_run(arguments, said, tmp_path, capsys):
    output = tmp_path / "study.jsonl"
    with pytest.raises(SystemExit):
        study.main([*arguments, "--output", str(output)])
    assert said in capsys.readouterr().err and not output.exists()


def test_the_command_runs_every_method(tmp_path, monkeypatch):
    def made_up(trial):
        distance = abs(math.log(trial.lr / 5e-3))
        split = "validation" if trial.seed in TUNING_SEEDS else "test"
        return {**vars(trial), f"{split}_exact": 1 - distance / 20, f"{split}_loss": distance}

    monkeypatch.setattr(study, "run", made_up)
    output = tmp_path / "study.jsonl"
    assert study.main(["--output", str(output), "--workers", "1"]) == 0
    check_study(read_records(output), Trial)
    assert {record["method"] for record in read_records(output)} == set(METHODS)


def test_what_the_lessons_compare_is_stored_with_its_seeds():
    stored = study.read()
    assert {study.FULL, study.LORA, study.TOKENS, study.ZERO_A} <= set(study.complete(stored))
    assert {method.method for method in stored.methods} == set(study.complete(stored))


def test_a_method_that_lacks_a_final_run_is_not_complete():
    records = [record for record in study.read().records if (record["method"], record["seed"]) != (study.LORA, 3)]
    assert study.complete(study.BracketedStudy(records, Trial), [study.LORA, study.FULL]) == [study.FULL]
