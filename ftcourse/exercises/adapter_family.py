"""Checkers for 10_adapter_family: which methods are worth a look, and what four bits cost."""

import functools
import math

from ftcourse.intervals import interval

from . import WrongAnswer, checker, require_answer

FRONTS = (
    {"a": (0.9, 0.1), "b": (0.5, 0.5), "c": (0.1, 0.9), "d": (0.4, 0.4), "e": (0.5, 0.3)},
    {"a": (0.9, 0.9), "b": (0.8, 0.95), "c": (0.7, 0.9), "d": (0.9, 0.5), "e": (0.2, 0.96)},
    {"a": (0.6, 0.6), "b": (0.6, 0.6), "c": (0.6, 0.7), "d": (0.2, 0.1)},
)


@checker
def check_front(front, points) -> str:
    """Check `front(points)`: the names that no other method beats in one measure without losing in the other.

    `points` maps a method to (learnt, kept), more is better; the checker's own come first.
    """
    for example in (*FRONTS, points):
        answer = require_answer(front(dict(example)))
        if not isinstance(answer, set | list | tuple | frozenset):
            raise WrongAnswer(f"a set of names is expected, and your code returns a {type(answer).__name__}.")
        answer, right = set(answer), _front(example)
        if answer == right:
            continue
        if unknown := answer - set(example):
            raise WrongAnswer(f"{sorted(map(str, unknown))[0]} is no method: return the keys of the dict.")
        if answer == {name for name in example if name not in right}:
            raise WrongAnswer("those are the methods that another one beats: return the others.")
        if answer == {max(example, key=lambda name: sum(example[name]))}:
            raise WrongAnswer("that is the highest sum: a sum needs a price of facts in answers, and none is given.")
        ends = {max(example, key=lambda name: example[name][place]) for place in (0, 1)}
        if answer == ends:
            raise WrongAnswer("those are the best of each measure alone: a method between them may be unbeaten, too.")
        if missing := sorted(right - answer):
            raise WrongAnswer(f"{missing[0]} is missing from {example}: no other is as good in both and better in one.")
        name = min(answer - right)
        by = min(other for other in example if _beats(example[other], example[name]))
        raise WrongAnswer(f"{name} is beaten by {by}, {example[by]} against {example[name]}: leave it out.")
    return f"unbeaten on pocket-base: {', '.join(sorted(_front(points)))}."


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and all(mine >= theirs for mine, theirs in zip(one, other, strict=True))


def _front(points) -> set[str]:
    return {name for name, own in points.items() if not any(_beats(other, own) for other in points.values())}


SEEDS = (0, 1, 2, 3)
VERDICTS = ("costs", "gains", "cannot tell")
NOISE = (0.9, -0.7, 0.4, -0.6)  # of a seed, in both arms
CASES = {  # a made-up effect of four bits by seed: the verdict
    (0.10, 0.11, 0.09, 0.10): "costs",
    (-0.10, -0.12, -0.09, -0.10): "gains",
    (0.30, -0.20, 0.25, -0.15): "cannot tell",
    (-0.30, 0.25, -0.28, 0.20): "cannot tell",
}


@checker
def check_four_bits(four_bits, final_loss) -> str:
    """Check `four_bits(final_loss, seeds)`: "costs", "gains" or "cannot tell", by a paired 95 % interval.

    `final_loss(quantised, seed)` of a real model is called only after the verdicts on made-up losses are right.
    """
    for effects, right in CASES.items():
        seen: list[tuple[bool, int]] = []

        def made_up(quantised: bool, seed: int, effects=effects, seen=seen) -> float:
            if seed not in SEEDS:
                raise WrongAnswer(f"you train with seed {seed}: take the seeds that you are given.")
            seen.append((bool(quantised), seed))
            return 2 + NOISE[seed] + (effects[seed] if quantised else 0)

        answer = require_answer(four_bits(made_up, SEEDS))
        if answer not in VERDICTS:
            raise WrongAnswer(f"the verdict is one of {', '.join(map(repr, VERDICTS))}, and yours is {answer!r}.")
        if missing := {(arm, seed) for arm in (True, False) for seed in SEEDS} - set(seen):
            arm, seed = min(missing)
            raise WrongAnswer(f"you never train with quantised={arm} at seed {seed}: run all pairs.")
        if answer == right:
            continue
        if right == "cannot tell":
            raise WrongAnswer("the interval of the differences contains 0 there: the mean alone does not decide.")
        if answer == "cannot tell":
            raise WrongAnswer("pair by seed: take the interval of the differences, not one interval of each arm.")
        raise WrongAnswer("upside down: a higher loss with four bits is a cost.")
    once = functools.cache(final_loss)
    verdict = four_bits(once, SEEDS[:3])
    differences = [once(True, seed) - once(False, seed) for seed in SEEDS[:3]]
    found = interval(differences)
    right = "costs" if found.low > 0 else "gains" if found.high < 0 else "cannot tell"
    if verdict != right:
        span = f"{found.low:+.3f} to {found.high:+.3f}"
        raise WrongAnswer(f"on pocket-base the interval is {span}, and you say {verdict!r}.")
    small = "" if math.isclose(found.mean, 0, abs_tol=0.05) else ", which is more than 0.05 nats per token"
    return f"four bits: {verdict}{small}."
