"""The study of a real model: its data, evaluation, optimizers, search and program, on a tiny model."""

import dataclasses
import json
import math
import os
import random
from itertools import islice
from pathlib import Path

import pytest
import torch

from experiments.real_model import convert, study
from experiments.real_model.study import Sizes, Splits, read_splits, run_trial
from ftcourse.studies import real_model
from ftcourse.studies.bracketing import UnbracketedError
from ftcourse.studies.real_model import (
    ADAMW,
    BASE,
    CONTROL,
    DEFAULTS,
    FISHER,
    FREE,
    LORA,
    MAGNITUDE,
    METHODS,
    NO_WARMUP,
    RANDOM,
    SEEDS,
    TUNING_SEED,
    RealStudy,
    Trial,
)
from ftcourse.studies.records import read_records, trial_of
from ftkit.batching import global_batch, pad
from ftkit.child_tuning import ChildTuningAdamW
from ftkit.loss import IGNORE_INDEX
from ftkit.models import load_causal_lm
from tests.tiny import foreign_tokenizer, save_foreign

SMALL = Sizes(examples=6, epochs=2, batch_size=3, longest=60, evaluated=4, evaluations=2)


def request(text: str, call: str) -> str:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": call}]
    return json.dumps({"messages": messages}) + "\n"


@pytest.fixture
def data(tmp_path) -> Path:
    """Requests of which one is in two splits, and one is long."""
    folder = tmp_path / "calls"
    folder.mkdir()
    rows = [request(f"cat {i}", f"sat {i}") for i in range(20)]
    train = [*rows[:10], request("cat on " * 30, "sat"), rows[15]]
    for name, lines in {"train": train, "validation": rows[10:15], "test": rows[15:20]}.items():
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def splits(data) -> Splits:
    return read_splits(data, foreign_tokenizer(), SMALL)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_foreign(tmp_path_factory.mktemp("tiny"), layers=1)


def test_no_evaluated_request_is_trained_on_and_long_ones_are_left_out(data, splits):
    assert len(splits.train) == 10, "12 requests without the long one and the one that the test split has"
    wide = dataclasses.replace(SMALL, longest=1000)
    assert len(read_splits(data, foreign_tokenizer(), wide).train) == 11
    texts = [foreign_tokenizer().decode(row["input_ids"]) for row in splits.train]
    assert not any("cat 15" in text for text in texts)


def test_only_the_call_and_the_end_of_its_turn_are_in_the_loss(splits):
    row = splits.train[3]
    assert foreign_tokenizer().decode(row["input_ids"]) == (
        "<|im_start|>user\ncat 3<|im_end|>\n<|im_start|>assistant\nsat 3<|im_end|>\n"
    )
    in_loss = [label for label in row["labels"] if label != IGNORE_INDEX]
    assert foreign_tokenizer().decode(in_loss) == "sat 3<|im_end|>"


def test_the_evaluated_subset_comes_from_all_over_the_split(splits):
    assert study.evenly(list(range(10)), 4) == [0, 2, 5, 7]
    assert study.evenly([1, 2], 4) == [1, 2]
    assert len(splits.test) == SMALL.evaluated


def test_data_that_are_too_few_are_refused(data):
    with pytest.raises(ValueError, match="too few examples of at most 60 tokens"):
        read_splits(data, foreign_tokenizer(), dataclasses.replace(SMALL, examples=11))


def test_the_evaluation_agrees_with_the_models_own_loss_and_with_greedy_decoding(model, splits):
    base = load_causal_lm(model, dtype=torch.float32)
    learnt, rows = splits.train[:2], splits.train[:5]
    optimizer = torch.optim.AdamW(base.parameters(), lr=0.02)
    for _ in range(40):  # until it answers some requests and not others
        optimizer.zero_grad()
        study.mean_loss(base, learnt).backward()
        optimizer.step()
    loss, exact = study.evaluate(base, rows, batch=2)
    batch = pad(rows, 0)
    with torch.no_grad():
        assert loss == pytest.approx(base(**batch).loss.item(), rel=1e-5)
    right = 0
    for row in rows:
        answer = [label for label in row["labels"] if label != IGNORE_INDEX]
        first = row["labels"].index(answer[0])
        prompt = torch.tensor([row["input_ids"][:first]])
        given = base.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=len(answer)
        )
        right += given[0, first:].tolist() == answer
    assert exact == right / len(rows) and 0 < right < len(rows)


TRAINED = (ADAMW, CONTROL, LORA, FREE, FISHER, RANDOM, MAGNITUDE)


def trial_at(method: str, lr: float = 1e-3, seed: int = 0) -> Trial:
    return dataclasses.replace(METHODS[method], lr=lr, seed=seed)


@pytest.mark.parametrize("method", [*TRAINED, NO_WARMUP])
def test_a_run_of_each_method(method, model, splits):
    trial = trial_at(method)
    record = run_trial(trial, model, splits, SMALL)
    assert json.loads(json.dumps(record)) == record and trial_of(record, Trial) == trial
    assert record["steps"] == len(record["train_loss"]) == 4
    curve = record["curve"]
    assert curve["at"] == [2, 4] and len(curve["loss"]) == len(curve["exact"]) == 2
    assert (record["test_loss"], record["test_exact"]) == (curve["loss"][-1], curve["exact"][-1])
    assert all(f"`{name}`" in real_model.__doc__ for name in record.keys() - set(vars(trial)))
    tuning = run_trial(dataclasses.replace(trial, seed=TUNING_SEED), model, splits, SMALL)
    assert tuning["curve"]["at"] == [4] and not [name for name in tuning if name.startswith("test")]
    assert {name for name in record if name.startswith("validation")} == set()
    assert run_trial(trial, model, splits, SMALL)["train_loss"] == record["train_loss"], "it repeats"


@pytest.mark.parametrize(("warmup", "moves"), [(0.5, False), (0.0, True)])
def test_a_warmup_begins_at_zero(warmup, moves, model, splits):
    trial = dataclasses.replace(trial_at(ADAMW), warmup=warmup)
    prepared = study.prepare(trial, model, splits, SMALL)
    before = prepared.base.get_input_embeddings().weight.clone()
    next(study.training_steps(prepared, trial, SMALL))
    assert torch.equal(before, prepared.base.get_input_embeddings().weight) != moves


def test_training_is_what_a_plain_loop_computes(model, splits):
    """Clipped at 1, weight decay 0.01 of matrices, warmup of a quarter, then linear to 0."""
    trial = dataclasses.replace(trial_at(ADAMW, 0.05), warmup=0.25)
    wanted = list(study.training_steps(study.prepare(trial, model, splits, SMALL), trial, SMALL))
    prepared = study.prepare(trial, model, splits, SMALL)
    base = prepared.base.train()
    matrices = [p for p in base.parameters() if p.ndim > 1]
    vectors = [p for p in base.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0}])
    losses, norms = [], []
    for step, lr in enumerate((0.0, 0.05, 0.05 * 2 / 3, 0.05 / 3)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss = base(**pad(global_batch(prepared.rows, step, 3, trial.seed), 0)).loss
        loss.backward()
        norms.append(torch.cat([p.grad.flatten() for p in base.parameters()]).norm())
        for parameter in base.parameters():
            parameter.grad /= max(norms[-1], 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert max(norms) > 1, "clipping is at work"
    assert losses == pytest.approx(wanted, rel=1e-4)


def changed(trial: Trial, model: Path, splits: Splits) -> float:
    """Share of the base's weights that a run changes."""
    before = load_causal_lm(model, dtype=torch.float32).state_dict()
    prepared = study.prepare(trial, model, splits, SMALL)
    list(study.training_steps(prepared, trial, SMALL))
    after = dict(prepared.base.named_parameters())
    names = [name for name in before if name in after]
    return sum(int((after[n] != before[n]).sum()) for n in names) / sum(before[n].numel() for n in names)


@pytest.mark.parametrize(("method", "least", "most"), [
    (FISHER, 0.09, 0.1001), (RANDOM, 0.08, 0.11), (MAGNITUDE, 0.07, 0.1001), (FREE, 0.8, 1.0), (ADAMW, 0.8, 1.0),
])  # fmt: skip
def test_masks_train_their_share_of_the_weights(method, least, most, model, splits):
    assert least <= changed(trial_at(method), model, splits) <= most


def test_masks_differ_and_magnitude_takes_the_largest_weights(model, splits):
    made = {}
    for method in (FISHER, RANDOM, MAGNITUDE):
        trial = trial_at(method)
        prepared = study.prepare(trial, model, splits, SMALL)
        masks = study.make_masks(prepared, trial)
        made[method] = torch.cat([mask.flatten() for mask in masks.values()])
        if method == MAGNITUDE:
            weights = torch.cat([p.detach().abs().flatten() for p in prepared.base.parameters()])
    assert weights[made[MAGNITUDE]].min() >= weights[~made[MAGNITUDE]].max()
    assert not torch.equal(made[FISHER], made[MAGNITUDE]) and not torch.equal(made[RANDOM], made[MAGNITUDE])


def test_only_child_tuning_has_another_optimizer(model, splits):
    kinds = {}
    for method in TRAINED:
        trial = trial_at(method)
        kinds[method] = type(study.make_optimizer(study.prepare(trial, model, splits, SMALL), trial))
    assert {method for method, kind in kinds.items() if kind is ChildTuningAdamW} == {FREE, FISHER, RANDOM, MAGNITUDE}
    with pytest.raises(ValueError, match="no method 'dora'"):
        trial = Trial("dora", 1e-3, 0)
        study.make_optimizer(study.prepare(trial, model, splits, SMALL), trial)


def test_seeds_draw_other_examples_and_methods_the_same(model, splits):
    rows = {
        (method, seed): study.prepare(trial_at(method, seed=seed), model, splits, SMALL).rows
        for method in (ADAMW, LORA)
        for seed in (0, 1)
    }
    assert rows[ADAMW, 0] == rows[LORA, 0] != rows[ADAMW, 1]


def test_the_untrained_model_is_evaluated_as_it_is(model, splits):
    record = run_trial(trial_at(BASE, 0.0), model, splits, SMALL)
    assert (record["curve"]["at"], record["train_loss"], record["steps"]) == ([0], [], 0)
    loss, exact = study.evaluate(load_causal_lm(model, dtype=torch.float32), splits.test)
    assert (record["test_loss"], record["test_exact"]) == (round(loss, 5), round(exact, 5))


BEST = {ADAMW: 1.2e-4, LORA: 1e-2, FREE: 2e-3, FISHER: 3e-4, RANDOM: 3e-4, MAGNITUDE: 1e-5}


def pretend(trial: Trial) -> dict:
    """A run whose loss is least at the method's rate in BEST."""
    loss = abs(math.log(trial.lr / BEST.get(trial.method, trial.lr))) if trial.lr else 9.0
    split = "validation" if trial.seed == TUNING_SEED else "test"
    exact = 1 / (1 + loss)
    at = [4] if split == "validation" else [2, 4]
    curve = {"at": at, "loss": [loss] * len(at), "exact": [exact] * len(at)}
    return {**dataclasses.asdict(trial), f"{split}_loss": loss, f"{split}_exact": exact, "curve": curve}


def test_the_program_brackets_every_rate_and_tunes_on_other_seeds(tmp_path):
    output = tmp_path / "study.jsonl"
    for part in study.PARTS:
        study.run_part(part, pretend, output)
    found = RealStudy(output)
    for method in (ADAMW, FREE, FISHER, RANDOM, MAGNITUDE, LORA, NO_WARMUP):
        best, rates = found.best_rate(method), list(found.tuning(method))
        assert min(rates) < best < max(rates)
        assert [run["seed"] for run in found.runs(method)] == list(SEEDS)
    assert found.best_rate(MAGNITUDE) < 2e-5 < min(study.STARTS[MAGNITUDE]), "far from where the search starts"
    assert found.best_rate(ADAMW) == found.best_rate(NO_WARMUP) == 1.2e-4
    for lr in DEFAULTS:
        assert [run["seed"] for run in found.runs(ADAMW, lr)] == list(SEEDS)
    control = [run["lr"] for run in found.runs(CONTROL)]
    assert control == pytest.approx([math.sqrt(0.3) * found.best_rate(FREE)] * len(SEEDS))
    tested = [record for record in found.records if "test_loss" in record]
    assert len(tested) == (7 + len(DEFAULTS) + 1) * len(SEEDS) + 1, "and the untrained model"
    assert all((record["seed"] in SEEDS) == ("test_loss" in record) for record in found.records)


def test_an_interrupted_study_continues_with_the_same_runs(tmp_path):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "study.jsonl"
    study.run_part("full", pretend, whole)
    left = 5

    def stop(trial: Trial) -> dict:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return pretend(trial)

    with pytest.raises(KeyboardInterrupt):
        study.run_part("full", stop, output)
    assert len(read_records(output)) == 5
    study.run_part("full", pretend, output)
    assert output.read_text() == whole.read_text()


def test_a_rate_on_the_edge_of_the_grid_is_no_result(tmp_path, monkeypatch):
    monkeypatch.setitem(BEST, FREE, 1e6)
    with pytest.raises(UnbracketedError, match="upper edge"):
        study.run_part("child", pretend, tmp_path / "study.jsonl")


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--parts", "all"], "invalid choice"), (["--threads", "2"], "unrecognized")]
)
def test_arguments_that_cannot_work_are_refused(arguments, said, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        study.main(["--data", str(data), "--output", str(tmp_path / "study.jsonl"), *arguments])
    assert said in capsys.readouterr().err and not (tmp_path / "study.jsonl").exists()


def test_a_folder_without_a_split_is_named(data, capsys):
    (data / "validation.jsonl").unlink()
    with pytest.raises(SystemExit):
        study.main(["--data", str(data)])
    assert f"{data} has no validation.jsonl" in capsys.readouterr().err


@pytest.mark.real
def test_the_first_steps_of_a_stored_run_repeat():
    """With the real model, and the data in the folder FTKIT_SNIPS. The run is drawn at random."""
    data = os.environ.get("FTKIT_SNIPS")
    if not data:
        pytest.skip("FTKIT_SNIPS names no folder with SNIPS requests")
    try:
        folder = convert.cached_model()
    except convert.MissingModelError as error:
        pytest.skip(str(error))
    stored = [record for record in RealStudy().records if record["train_loss"]]
    record = random.choice(stored)
    trial, sizes = trial_of(record, Trial), Sizes()
    splits = read_splits(Path(data), study.load_tokenizer(folder), sizes)
    steps = study.training_steps(study.prepare(trial, folder, splits, sizes), trial, sizes)
    again = list(islice(steps, 4))
    # Sums have another order on other processors.
    assert again == pytest.approx(record["train_loss"][:4], rel=1e-2), trial
    other = next(each for each in stored if each["seed"] != record["seed"])
    assert again != pytest.approx(other["train_loss"][:4], rel=1e-2)
