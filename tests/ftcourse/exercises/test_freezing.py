"""The checkers of 04_freezing: a solution is right, a stub is not solved yet, a wrong answer gets its hint."""

import dataclasses

import torch

from ftcourse.exercises.freezing import (
    check_experiment,
    check_first_two_blocks,
    check_train_biases,
    prediction_interval,
)
from ftcourse.studies.bracketing import TUNING_SEEDS, BracketedStudy
from ftcourse.studies.freezing import Trial

from .shown import checker_tests


def train_biases(model, *, end=True, freeze=True, thaw=True, answer=True, refuse=True):
    for name, parameter in model.named_parameters():
        is_bias = name.endswith(".bias") if end else "bias" in name
        if is_bias and thaw:
            parameter.requires_grad_(True)
        if not is_bias and freeze:
            parameter.requires_grad_(False)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if refuse and not names:
        raise ValueError("no biases")
    return names if answer else None


def assert_biases(model):
    names = train_biases(model, refuse=False)
    assert names
    return names


def freeze_all(model):
    model.requires_grad_(False)
    return []


KIND = Trial("", "chat-96", "attention only", 0, 0)
RECORDS = [
    {**dataclasses.asdict(KIND), "lr": lr, "seed": seed, "validation_exact": exact, "validation_loss": 1.0}
    for lr, exact in ((1e-3, 0.2), (3e-3, 0.4), (9e-3, 0.3))
    for seed in TUNING_SEEDS
] + [
    {**dataclasses.asdict(KIND), "lr": 3e-3, "seed": seed, "test_exact": exact, "optimizer_bytes": 2_113_664}
    for seed, exact in enumerate((0.30, 0.34, 0.32, 0.36, 0.28))
]
STUDY = BracketedStudy(RECORDS, Trial)


def check_run(experiment):
    return check_experiment(experiment, STUDY)


def experiment(exact=0.33, predicted=(0.2, 0.4), agrees=True, **changes):
    record = {**RECORDS[-1], "seed": 17, "test_exact": exact, **changes}
    return predicted, record, agrees


EXERCISES = [
    (
        check_first_two_blocks,
        lambda: r"embed_tokens|layers\.[01]\.",
        {
            "blocks 10 and 11 match as well": lambda: r"embed_tokens|layers\.[01]",
            "begin with 1": lambda: r"embed|layers\.(0|1)",
            "the embeddings are missing": lambda: r"layers\.[01]\.",
            "it does not match model.layers.1": lambda: r"embed|layers\.0\.",
            "it also matches": lambda: r"embed|layers\.[012]\.",
            "it also matches model.layers.2.": lambda: r"model\.(embed_tokens|layers)",
            "it also matches lm_head.weight": lambda: r"embed|head|layers\.[01]\.",
            "it matches no name": lambda: r"layer\.0",
            "it matches every name": lambda: ".",
            "no regular expression": lambda: "layers[",
            "a string is wanted": lambda: [0, 1],
        },
    ),
    (
        check_train_biases,
        train_biases,
        {
            "the weights still train": lambda m: train_biases(m, freeze=False),
            "relative_bias.weight is a weight": lambda m: train_biases(m, end=False),
            "norm.bias was frozen before": lambda m: train_biases(m, thaw=False),
            "nothing trains": freeze_all,
            "return the names": lambda m: train_biases(m, answer=False),
            "not AssertionError": assert_biases,
            "raise ValueError": lambda m: train_biases(m, refuse=False),
        },
    ),
    (
        check_run,
        experiment,
        {
            "return three things": lambda: 0.3,
            "the record that run(": lambda: ((0.2, 0.4), 0.33, True),
            "MLP only needs 4.0 MB": lambda: experiment(preset="MLP only", optimizer_bytes=3_957_000),
            "no stored runs of head only": lambda: experiment(preset="head only"),
            "no stored runs of attention only on 'chat-16'": lambda: experiment(task="chat-16"),
            "seed 3 is a stored run's": lambda: experiment(seed=3),
            "seed 101 is a stored run's": lambda: experiment(seed=101),
            "with two changes at once": lambda: experiment(lr=1e-3),
            "the lower one first": lambda: experiment(predicted=(0.4, 0.2)),
            "two fractions": lambda: experiment(predicted=(20, 40)),
            "predicts nothing": lambda: experiment(predicted=(0.0, 0.9)),
            "they agree": lambda: experiment(agrees=False),
            "they do not agree": lambda: experiment(exact=0.6),
        },
    ),
]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


def test_other_roads_to_the_right_answer_are_right():
    assert check_first_two_blocks(lambda: r"^model\.(embed_tokens|layers\.(0|1)\.)").right
    assert check_train_biases(lambda m: tuple(train_biases(m))).right
    assert check_run(lambda: experiment(exact=0.6, agrees=False)).right
    assert "outside your 0.10 to 0.20" in check_run(lambda: experiment(predicted=(0.1, 0.2))).message


def test_a_stub_in_any_place_is_not_solved_yet():
    for answer in ((..., ..., ...), ((0.2, 0.4), ..., True), ((0.2, 0.4), RECORDS[-1], None)):
        assert check_run(lambda answer=answer: answer).not_attempted


def test_the_prediction_interval_holds_95_of_100_new_values():
    torch.manual_seed(0)
    inside = 0
    for row in torch.randn(4000, 6, dtype=torch.float64).tolist():
        low, high = prediction_interval(row[:5])
        inside += low <= row[5] <= high
    assert 0.94 < inside / 4000 < 0.96
