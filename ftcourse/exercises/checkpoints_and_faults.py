"""Checkers for 15_checkpoints_and_faults: which checkpoint is whole, and how often to write one."""

import math

from . import WrongAnswer, checker, match_known_mistake, require_answer

WHOLE = {"__0_0.distcp": 900, "__1_0.distcp": 800, ".metadata": 50}


def _folder(**changes: int | None) -> dict:
    """A folder as the exercise sees it: sizes when written, and sizes found now (None: the file is gone)."""
    found = {name: changes.get(name.strip("._").partition(".")[0], size) for name, size in WHOLE.items()}
    return {"written": dict(WHOLE), "found": {name: size for name, size in found.items() if size is not None}}


@checker
def check_newest_whole(newest_whole) -> str:
    """Check `newest_whole(folders)`: {name: {"written": {file: bytes}, "found": {file: bytes}}} to a name or None."""
    whole, short, gone = _folder(), _folder(**{"1_0": 17}), _folder(**{"0_0": None})
    unfinished = {"written": None, "found": {"__0_0.distcp": 900}}
    cases = [
        ({"step-000004": whole, "step-000008": whole}, "step-000008", "take the newest whole one."),
        (
            {"step-000010": whole, "step-000009": whole},
            "step-000010",
            "10 is newer than 9: the order is that of steps.",
        ),
        (
            {"step-000004": whole, "step-000008.incomplete": unfinished},
            "step-000004",
            "a folder that still has its temporary name was never finished.",
        ),
        (
            {"step-000004": whole, "step-000008.incomplete": whole},
            "step-000004",
            "a folder that still has its temporary name was never finished, even when all files look right.",
        ),
        (
            {"step-000004": whole, "step-000008": short},
            "step-000004",
            "a file of step-000008 is short: compare sizes.",
        ),
        (
            {"step-000004": whole, "step-000008": gone},
            "step-000004",
            "a file of step-000008 is gone: it is not whole.",
        ),
        ({"step-000004": short}, None, "where none is whole, return None."),
        ({}, None, "an empty folder has no checkpoint: return None."),
    ]
    seen = []
    for folders, expected, hint in cases:
        name = newest_whole({name: dict(folder) for name, folder in folders.items()})
        if name is ...:
            require_answer(name)
        seen.append(name)
        if name != expected and any(each is not None for each in seen):
            raise WrongAnswer(f"of {list(folders)} you choose {name}: {hint}")
    if all(name is None for name in seen):
        require_answer(None)
    return "finished by its name, whole by its sizes, newest by its step; and None where there is none."


@checker
def check_best_interval(best_interval) -> str:
    """Check `best_interval(write_seconds, failures_a_day)`: Young's seconds between two checkpoints."""
    for write, failures in ((30.0, 2.0), (5.0, 24.0)):
        seconds = float(require_answer(best_interval(write, failures)))
        between = 86_400 / failures
        wrong = {
            math.sqrt(write * between): "the factor 2 is missing: on average half an interval is lost.",
            math.sqrt(2 * write * failures): "Young's M is the time between failures, not their number.",
            math.sqrt(2 * write / failures): "M is in seconds: a day has 86,400 of them.",
            math.sqrt(2 * write * between) / 60: "give seconds, not minutes.",
            2 * write * between: "take the square root.",
            between: "that is the time between failures: writing costs little, so write more often.",
        }
        match_known_mistake(seconds, wrong)
        expected = math.sqrt(2 * write * between)
        if not math.isclose(seconds, expected, rel_tol=1e-6):
            raise WrongAnswer(
                f"{write:g} s to write, {failures:g} failures a day: {expected:.0f} s, not {seconds:.0f}."
            )
    return "the square root of 2 · C · M: four times as many failures, twice as many checkpoints."
