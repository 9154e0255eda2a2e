"""Checkers for 04_freezing: a pattern of names, BitFit by hand, and an experiment under a memory budget."""

import math
import re
from collections.abc import Sequence

from torch import nn

from ftcourse.intervals import interval
from ftcourse.studies.bracketing import BracketedStudy, method_of
from ftcourse.studies.freezing import Trial
from ftcourse.studies.records import trial_of

from . import NotAttempted, WrongAnswer, checker, require_answer

KINDS = ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")


@checker
def check_first_two_blocks(pattern) -> str:
    """Check `pattern()`: a regular expression for the embeddings and blocks 0 and 1 of a model of twelve."""
    names = [f"model.layers.{i}.{kind}.{own}" for i in range(12) for kind in KINDS for own in ("weight", "bias")]
    names = ["model.embed_tokens.weight", *names, "model.norm.weight", "lm_head.weight"]
    wanted = {name for name in names if re.match(r"model\.(embed_tokens|layers\.[01])\.", name)}
    text = require_answer(pattern())
    if not isinstance(text, str):
        raise WrongAnswer(f"a string is wanted, and your code returns a {type(text).__name__}.")
    try:
        found = {name for name in names if re.search(text, name)}
    except re.error as error:
        raise WrongAnswer(f"that is no regular expression: {error}.") from None
    if not found:
        raise WrongAnswer("it matches no name; they look like model.layers.0.mlp.up_proj.weight.")
    if found == set(names):
        raise WrongAnswer("it matches every name: nothing would be left to train.")
    strangers = [name for name in names if name in found - wanted]
    if strangers and all(re.match(r"model\.layers\.1[01]\.", name) for name in strangers):
        raise WrongAnswer(
            "blocks 10 and 11 match as well, for their numbers begin with 1: end the number with an escaped dot."
        )
    if strangers:
        raise WrongAnswer(f"it also matches {strangers[0]}.")
    if "model.embed_tokens.weight" not in found:
        raise WrongAnswer("the embeddings are missing: alternatives are joined by |.")
    if wanted - found:
        raise WrongAnswer(f"it does not match {min(wanted - found)}.")
    return f"{len(found)} of {len(names)} names: the embeddings and blocks 0 and 1, not blocks 10 and 11."


class _Small(nn.Module):
    def __init__(self, bias: bool):
        super().__init__()
        self.relative_bias = nn.Embedding(4, 3)  # has "bias" in its name, and is none
        self.first = nn.Linear(3, 5, bias=bias)
        self.norm = nn.LayerNorm(5, bias=bias)
        self.last = nn.Linear(5, 2, bias=bias)


@checker
def check_train_biases(train_biases) -> str:
    """Check `train_biases(model)`: only parameters whose name ends in bias train; none is a ValueError."""
    model = _Small(bias=True)
    model.norm.bias.requires_grad_(False)  # as an earlier choice left it
    wanted = ["first.bias", "norm.bias", "last.bias"]
    answer = train_biases(model)
    trains = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if "first.weight" in trains and "norm.bias" not in trains:  # nothing was touched
        require_answer(answer)
    if "first.weight" in trains:
        raise WrongAnswer("the weights still train: set requires_grad to False where the name is no bias.")
    if not trains:
        raise WrongAnswer("nothing trains: set requires_grad to True where the name is a bias.")
    if "relative_bias.weight" in trains:
        raise WrongAnswer("relative_bias.weight is a weight: look at the end of the name.")
    if trains != wanted and set(trains) < set(wanted):
        raise WrongAnswer(f"{min(set(wanted) - set(trains))} was frozen before, and it should train: set it to True.")
    if trains != wanted:
        raise WrongAnswer(f"these should train: {', '.join(wanted)}; and these do: {', '.join(trains)}.")
    if answer is None or list(answer) != wanted:
        raise WrongAnswer("return the names that train, in the model's order.")
    without = _Small(bias=False)
    try:
        train_biases(without)
    except ValueError:
        return "three biases train; a model without any is refused."
    except Exception as error:
        raise WrongAnswer(f"a model without biases wants a ValueError, not {type(error).__name__}.") from None
    raise WrongAnswer("a model without biases would train nothing, and nobody would know: raise ValueError.")


BUDGET = 2_500_000  # bytes for the optimizer's states
NEW_SEEDS = "5 to 99"


def prediction_interval(values: Sequence[float]) -> tuple[float, float]:
    """Where one more run of the same kind falls in 95 of 100 cases: mean ± t · s · √(1 + 1/n), by Student's t.

    It is wider than the interval of the mean, because one run has its own chance. Raises ValueError as `interval`.
    """
    of_mean = interval(values)
    half = (of_mean.high - of_mean.mean) * math.sqrt(len(values) + 1)
    return of_mean.mean - half, of_mean.mean + half


@checker
def check_experiment(experiment, study: BracketedStudy) -> str:
    """Check `experiment()`: one run of a preset that fits `BUDGET`, predicted before and judged after.

    It returns the predicted range of exact match (low, high), the record that the study's `run` gave, and whether the
    stored runs agree with it. `study` has those stored runs.
    """
    answer = require_answer(experiment())
    if not isinstance(answer, tuple) or len(answer) != 3:
        raise WrongAnswer("return three things: the predicted range, the record, and whether the stored runs agree.")
    predicted, record, agrees = answer
    if any(part is None or part is ... for part in answer):
        raise NotAttempted
    if not isinstance(record, dict) or "optimizer_bytes" not in record:
        raise WrongAnswer("the second thing is the record that run(Trial(…)) returns.")
    method = method_of(trial_of(record, Trial))
    if record["optimizer_bytes"] > BUDGET:
        megabytes = record["optimizer_bytes"] / 1e6
        raise WrongAnswer(f"{record['preset']} needs {megabytes:.1f} MB for optimizer states: the budget is 2.5 MB.")
    if method not in study.methods:
        raise WrongAnswer(f"there are no stored runs of {record['preset']} on {record['task']!r} to compare with.")
    stored = study.runs(method)
    if record["seed"] in stored or record["seed"] in study.tuning_seeds:
        raise WrongAnswer(f"seed {record['seed']} is a stored run's: take another, {NEW_SEEDS}, so that it is news.")
    if not math.isclose(record["lr"], study.best(method)):
        raise WrongAnswer(
            f"the stored runs have lr {study.best(method):g}, and yours has {record['lr']:g}: with two changes at "
            "once you cannot tell which of them did it."
        )
    low, high = predicted
    if not 0 <= low < high <= 1:
        raise WrongAnswer(f"the predicted range is {low} to {high}: two fractions, the lower one first.")
    if high - low > 0.5:
        raise WrongAnswer("a range over half of all outcomes predicts nothing: make it narrower.")
    exact = record["test_exact"]
    first, last = prediction_interval([run["test_exact"] for run in stored.values()])
    if bool(agrees) != (first <= exact <= last):
        raise WrongAnswer(
            f"the stored runs put a new one between {max(first, 0):.2f} and {last:.2f}, and yours has {exact:.2f}: "
            f"they {'agree' if first <= exact <= last else 'do not agree'}."
        )
    own = "inside" if low <= exact <= high else "outside"
    return (
        f"{record['preset']}, seed {record['seed']}: exact match {exact:.2f}, {own} your {low:.2f} to {high:.2f}; the "
        f"stored runs put a new one between {max(first, 0):.2f} and {last:.2f}."
    )
