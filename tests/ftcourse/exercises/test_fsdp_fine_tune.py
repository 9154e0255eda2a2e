"""Checkers of notebook 16: right, untouched, and each usual mistake with the hint meant for it."""

import math

import pytest

from ftcourse.exercises.fsdp_fine_tune import JOB, MODEL, check_changing, check_own_line
from ftcourse.launch_lines import memory_plan, read_launch_line
from ftkit.memory import estimate_memory, published_meta_model

FLAGS = ["--packing", "--seed 1"]
LINE = r"""torchrun --standalone --nproc-per-node 8 --max-restarts 3 -m ftkit.finetune --output runs/a \
    --model M --data d --lr 1e-5 --batch_size 128 --micro_batch_size 8 --max_length 2048 --packing \
    --activation_checkpointing --save_every 400"""


def short_run(flag):
    return {"": [3.0, 2.0], "--packing": [3.0, 2.00000001], "--seed 1": [3.1, 2.0]}[flag]


def judge(differs):
    """A solution that compares a flag's losses with the base's by `differs`."""
    return lambda run, flags: [flag for flag in flags if differs(run(flag), run(""))]


def right(ours, base):
    return any(not abs(a - b) <= 1e-4 for a, b in zip(ours, base, strict=True))


MISTAKES = {
    "last digits": lambda ours, base: ours != base,
    "compare every step": lambda ours, base: not abs(ours[0] - base[0]) <= 1e-4,
    "may cancel": lambda ours, base: not abs(sum(ours) - sum(base)) <= 1e-4 or math.isclose(ours[2], 1.96),
    "never greater than a tolerance": lambda ours, base: any(
        abs(a - b) > 1e-4 for a, b in zip(ours, base, strict=True)
    ),
}


def test_an_experiment_that_judges_rightly():
    verdict = check_changing(judge(right), FLAGS, short_run)
    assert verdict.right and "--seed 1 change what is computed; --packing change only" in verdict.message
    assert check_changing(judge(right), FLAGS).right


@pytest.mark.parametrize("hint", MISTAKES)
def test_each_wrong_judgement_gets_its_hint(hint):
    verdict = check_changing(judge(MISTAKES[hint]), FLAGS, short_run)
    assert not verdict.right and not verdict.not_attempted and hint in verdict.message


def test_a_flag_that_was_not_given():
    assert "none of the flags" in check_changing(lambda run, flags: ["--late", "--new"], FLAGS).message


@pytest.mark.parametrize("stub", [lambda *args: ..., lambda *args: None])
def test_an_untouched_experiment(stub):
    assert check_changing(stub, FLAGS, short_run).not_attempted


@pytest.mark.parametrize("stub", [None, ..., ""])
def test_an_untouched_line(stub):
    assert check_own_line(stub).not_attempted


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (LINE + " --learning_rate 1", "would not start"),
        (LINE.replace("-node 8", "-node 4"), "starts 4 processes"),
        (LINE.replace("--save_every 400", ""), "you would regret it: no --save_every"),
        (LINE.replace("1e-5", "1e-4"), "--lr 0.0001 with --method full: begin near 1e-5"),
        (LINE + " --method lora", "--lr 1e-05 with --method lora: begin near 1e-4"),
        (LINE.replace("_every 400", "_every 10"), "Young's interval"),
        (3, "a text is wanted"),
    ],
)
def test_each_mistake_of_a_line_gets_its_hint(line, hint):
    verdict = check_own_line(line)
    assert not verdict.right and not verdict.not_attempted and hint in verdict.message


def test_a_line_that_fits_and_one_that_does_not():
    verdict = check_own_line(LINE)
    assert verdict.right, verdict
    peak = estimate_memory(published_meta_model(MODEL), memory_plan(read_launch_line(LINE), JOB.tokens)).peak
    assert f"{peak / 2**30:.0f} GiB on each GPU" in verdict.message
    verdict = check_own_line(LINE.replace("micro_batch_size 8", "micro_batch_size 2 --reshard_after_forward false"))
    assert "run out of memory" in verdict.message and "gradients of several micro-batches" in verdict.message
