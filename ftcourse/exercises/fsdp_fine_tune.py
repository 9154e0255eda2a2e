"""Checkers for 16_fsdp_fine_tune: which flags change what is computed, and a launch line of the learner's own."""

import math
from collections.abc import Callable, Sequence

from ftcourse.launch_lines import LaunchLine, find_risks, memory_plan, read_launch_line
from ftcourse.planning import Cluster, Job, estimate_time, lora_parameters_of, parameters_of
from ftcourse.studies.launch_plans import CAPACITY, fits
from ftkit.memory import estimate_memory, published_meta_model

from . import WrongAnswer, checker, require_answer

Losses = Sequence[float]
GIB = 2**30
MADE_UP = {  # what a flag makes of the losses 3.25, 2.5, 2.0
    "": (3.25, 2.5, 2.0),
    "--rounding": (3.2500002, 2.4999998, 2.0000003),
    "--late": (3.25, 2.5, 1.96),
    "--swapped": (3.2, 2.55, 2.0),
    "--diverging": (3.25, math.nan, math.nan),
}
CHANGING = {"--late", "--swapped", "--diverging"}
HINTS = {
    "--rounding": "sums in another order differ in their last digits: allow 1e-4.",
    "--late": "a flag may show its effect only after some steps: compare every step.",
    "--swapped": "differences of two steps may cancel in a sum or mean: compare step by step.",
    "--diverging": "a loss that is not a number is never greater than a tolerance: ask for `not (gap <= 1e-4)`.",
}
MODEL = "llama-2-13b"  # of the launch line
JOB, CLUSTER = Job(conversations=100_000, tokens=700, epochs=2, batch_size=128), Cluster(gpus=8, mfu=0.2)
LEARNING_RATES = {"full": (3e-6, 6e-5), "lora": (3e-5, 1e-3)}  # by --method; several times the usual, either way


@checker
def check_changing(changing, flags: Sequence[str], short_run: Callable[[str], Losses] | None = None) -> str:
    """Check `changing(short_run, flags)`: the flags whose losses differ from those of `short_run("")`.

    It is tried on made-up losses, then with `short_run`, which trains.
    """
    tried = list(MADE_UP)[1:]
    found = _flags(changing(lambda flag: list(MADE_UP[flag]), tried), tried)
    for flag in tried:
        if (flag in found) != (flag in CHANGING):
            raise WrongAnswer(f"losses {MADE_UP['']} become {MADE_UP[flag]}: {HINTS[flag]}")
    if short_run is None:
        return "made-up losses are told apart."
    losses: dict[str, Losses] = {}

    def remembered(flag: str) -> Losses:
        if flag not in losses:
            losses[flag] = list(short_run(flag))
        return list(losses[flag])

    found = _flags(changing(remembered, list(flags)), flags)
    same = [flag for flag in flags if flag not in found]
    return f"{' and '.join(found)} change what is computed; {', '.join(same)} change only what it costs."


def _flags(answer, flags: Sequence[str]) -> list[str]:
    found = list(require_answer(answer))
    if unknown := [flag for flag in found if flag not in flags]:
        raise WrongAnswer(f"{unknown[0]!r} is none of the flags that were given.")
    return [flag for flag in flags if flag in found]


@checker
def check_own_line(text) -> str:
    """Check a launch line for Llama 2 13B and JOB on eight GPUs of 80 GB that may be withdrawn."""
    if not isinstance(require_answer(text), str):
        raise WrongAnswer(f"a text is wanted, and this is a {type(text).__name__}.")
    if not text.strip():
        require_answer(None)
    try:
        line = read_launch_line(text.strip())
    except ValueError as error:
        raise WrongAnswer(f"it would not start: {error}") from None
    if line.gpus != CLUSTER.gpus:
        raise WrongAnswer(f"it starts {line.gpus} processes, and there are {CLUSTER.gpus} GPUs.")
    if risks := find_risks(line):
        raise WrongAnswer(f"it would start, and you would regret it: {risks[0]}.")
    low, high = LEARNING_RATES[line.config.method]
    if not low <= line.config.lr <= high:
        usual = "1e-4" if line.config.method == "lora" else "1e-5"
        raise WrongAnswer(f"--lr {line.config.lr:g} with --method {line.config.method}: begin near {usual}.")
    minutes, young = _minutes_between_saves(line)
    if not young / 3 <= minutes <= 3 * young:
        raise WrongAnswer(
            f"--save_every {line.config.save_every} is about every {minutes:.0f} minutes, and Young's interval is "
            f"{young:.0f} minutes."
        )
    found = estimate_memory(published_meta_model(MODEL), memory_plan(line, JOB.tokens))
    if not fits(found.peak):
        most = max(found.at_peak, key=found.at_peak.get)
        several = ", unsharded gradients of several micro-batches included" * (found.plan.accumulation > 1)
        raise WrongAnswer(
            f"it would run out of memory: {found.peak / GIB:.0f} of {0.9 * CAPACITY / GIB:.0f} GiB, most of it {most} "
            f"({found.at_peak[most] / GIB:.0f} GiB{several})."
        )
    restarts = f"{line.max_restarts} restarts"
    return f"{found.peak / GIB:.0f} GiB on each GPU, a checkpoint every {minutes:.0f} minutes, {restarts}."


def _minutes_between_saves(line: LaunchLine) -> tuple[float, float]:
    """Of this line, and by Young's interval."""
    total = parameters_of(MODEL)
    trained = lora_parameters_of(MODEL, line.config.lora_r) if line.config.method == "lora" else total
    job = Job(JOB.conversations, JOB.tokens, JOB.epochs, line.config.batch_size)
    timing = estimate_time(total, trained, job, CLUSTER)
    per_minute = timing.step_seconds / 60
    return line.config.save_every * per_minute, timing.save_every * per_minute
