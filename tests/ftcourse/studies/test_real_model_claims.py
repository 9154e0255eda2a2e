"""Each verdict on the real model is the runs': turned round, the runs turn it round."""

import pytest

from ftcourse.claims import Ledger
from ftcourse.intervals import Interval
from ftcourse.studies.real_model import ADAMW, CONTROL, FISHER, FREE, LORA, MAGNITUDE, RANDOM
from ftcourse.studies.real_model_claims import add_real_child_tuning_claims, add_real_mask_claims, nats


class Runs:
    """A study of which only the gains are known: (mean, half of the interval's width) by methods and measure."""

    def __init__(self, **gains):
        self.gains = gains

    def model(self):
        return "a model (dequantised)"

    def gain(self, one, other, measure="exact", evaluation=-1):
        pairs = {(FREE, ADAMW): "free", (FISHER, ADAMW): "driven", (FREE, CONTROL): "control", (RANDOM, LORA): "random",
                 (MAGNITUDE, LORA): "magnitude"}  # fmt: skip
        name = pairs[one[0], other[0]]
        assert (measure, evaluation) == (("loss", 0) if measure == "loss" else ("exact", -1))
        mean, half = self.gains["lag" if measure == "loss" else name]
        return Interval(mean, mean - half, mean + half)


def verdicts(add, **gains) -> list[str]:
    ledger = Ledger("child-tuning")
    add(ledger, Runs(**gains))
    assert all(claim.seeds == 3 and "dequantised" in claim.model for claim in ledger.claims)
    return [claim.verdict for claim in ledger.claims]


@pytest.mark.parametrize(
    ("lag", "free", "wanted"),
    [
        ((0.2, 0.1), (0.05, 0.01), "supported"),  # it lags, then exceeds
        ((0.2, 0.1), (0.05, 0.1), "inconclusive"),
        ((0.2, 0.1), (-0.05, 0.01), "refuted"),
        ((-0.2, 0.1), (0.05, 0.01), "refuted"),  # it never lags
    ],
)
def test_lags_then_exceeds_needs_both(lag, free, wanted):
    found = verdicts(add_real_child_tuning_claims, lag=lag, free=free, control=(0, 1), driven=(0, 1))
    assert found[0] == wanted


def test_the_other_rows_follow_their_runs():
    assert verdicts(
        add_real_child_tuning_claims, lag=(0, 1), free=(0.1, 0.05), control=(0, 1), driven=(-0.1, 0.05)
    ) == ["inconclusive", "supported", "refuted"]
    assert verdicts(add_real_mask_claims, random=(0.0, 0.005), magnitude=(-0.05, 0.01)) == ["supported", "refuted"]
    assert verdicts(add_real_mask_claims, random=(-0.02, 0.005), magnitude=(0.0, 0.1)) == ["refuted", "inconclusive"]


def test_losses_are_printed_in_nats():
    assert nats(Interval(0.1234, 0.1, 0.2)) == "+0.123 nats (+0.100 to +0.200)"
