"""The verdicts of the mask tournament, on made-up records whose answer is known."""

import statistics

import numpy as np
import pytest

from ftcourse.claims import Ledger
from ftcourse.studies.mask_claims import add_child_tuning_claims, add_mask_claims, steadier
from ftcourse.studies.masks import ADAMW, F_MORE, FISHER, FISHER_MORE, LIFT, LORA, MAGMA, MAGNITUDE, RANDOM, UPDATE, F

from .made_up import TASKS, tournament

LAGS, GOOD_P, FREE, STEADY = range(4)
DRIVEN, UPDATES, ALIGNED, RANDOM_LORA, LARGEST, RANK_FIRST, OVER_FULL, KEEPS = range(8)


def verdicts(add, study) -> list[str]:
    return [claim.verdict for claim in claims(add, study)]


def claims(add, study):
    ledger = Ledger("child-tuning")
    add(ledger, study)
    return ledger.claims


def everywhere(value, *methods):
    return {(task, method): value for task in TASKS for method in methods}


def test_nothing_is_found_where_there_is_nothing(tmp_path):
    """Equal methods: no gain, and none is worse by a percentage point."""
    study = tournament(tmp_path)
    found = verdicts(add_child_tuning_claims, study)
    assert [found[row] for row in (LAGS, GOOD_P, FREE)] == ["refuted", "supported", "refuted"]
    found = verdicts(add_mask_claims, study)
    assert [found[row] for row in (DRIVEN, UPDATES, ALIGNED, RANK_FIRST, OVER_FULL, KEEPS)] == ["refuted"] * 6
    assert found[RANDOM_LORA] == found[LARGEST] == "supported"  # they match


@pytest.mark.parametrize(
    ("row", "ends"),
    [
        (FREE, {"scores": everywhere(0.7, F), "in_domains": {F: 0.1}}),
        (STEADY, {"spread": {F: 0.01, ADAMW: 5}}),
        (LAGS, {"scores": everywhere(0.7, F), "first_loss": everywhere(3.0, F)}),
    ],
)
def test_each_claim_about_f_is_supported_where_it_should_be(row, ends, tmp_path):
    assert verdicts(add_child_tuning_claims, tournament(tmp_path, **ends))[row] == "supported"


@pytest.mark.parametrize(
    ("row", "ends"),
    [
        (LAGS, {"scores": everywhere(0.7, F), "first_loss": everywhere(1.0, F)}),  # exceeds, but never lagged
        (LAGS, {"first_loss": everywhere(3.0, F)}),  # lags and does not exceed
        (GOOD_P, {"scores": {("chat-96", F_MORE): 0.7}}),
        (STEADY, {"spread": {F: 5, ADAMW: 0.01}}),
    ],
)
def test_each_claim_about_f_is_refuted_where_it_should_be(row, ends, tmp_path):
    assert verdicts(add_child_tuning_claims, tournament(tmp_path, **ends))[row] == "refuted"


@pytest.mark.parametrize(
    ("row", "ends"),
    [
        (DRIVEN, {"scores": everywhere(0.7, FISHER, FISHER_MORE)}),
        (UPDATES, {"scores": everywhere(0.7, UPDATE)}),
        (ALIGNED, {"scores": everywhere(0.7, MAGMA)}),
        (RANK_FIRST, {"scores": everywhere(0.3, MAGNITUDE)}),
        (OVER_FULL, {"scores": everywhere(0.7, LIFT)}),
        (KEEPS, {"kept": everywhere(0.9, LIFT)}),
    ],
)
def test_each_claim_about_masks_is_supported_where_it_should_be(row, ends, tmp_path):
    assert verdicts(add_mask_claims, tournament(tmp_path, **ends))[row] == "supported"


@pytest.mark.parametrize(("row", "worse"), [(RANDOM_LORA, RANDOM), (LARGEST, MAGNITUDE)])
def test_what_falls_short_of_lora_does_not_match_it(row, worse, tmp_path):
    study = tournament(tmp_path, scores=everywhere(0.4, worse))
    assert verdicts(add_mask_claims, study)[row] == "refuted"
    assert worse != LORA and study.effect("chat-96", worse, against=LORA).mean == pytest.approx(-0.1, abs=0.01)


def test_a_claim_may_hold_on_one_task(tmp_path):
    study = tournament(tmp_path, scores={("truth-500", UPDATE): 0.7})
    claim = claims(add_mask_claims, study)[UPDATES]
    assert claim.verdict == "supported under conditions" and claim.only_if == "on truth-500"
    assert "truth-500 +20.0 (" in claim.measured and claim.seeds == 6 and claim.worthwhile == 0.01


def test_held_out_domains_are_judged_apart_from_questions(tmp_path):
    study = tournament(tmp_path, in_domains={FISHER: 0.1, FISHER_MORE: 0.1})
    claim = claims(add_mask_claims, study)[DRIVEN]
    assert claim.only_if == "on chat-96 in held-out domains"


def test_the_lag_at_adamws_rate_is_named(tmp_path):
    study = tournament(tmp_path)
    assert study.tuning_curves("chat-96", F, study.rate("chat-96", ADAMW))  # both grids have it
    assert "at AdamW's rate by chat-96 +0.00" in claims(add_child_tuning_claims, study)[LAGS].measured


def test_steadier_is_pitman_and_morgans_comparison():
    generator = np.random.default_rng(0)
    shared = generator.normal(size=12)
    steady, wild = shared + 0.1 * generator.normal(size=12), shared + 3 * generator.normal(size=12)
    found = steadier(list(steady), list(wild))
    assert found.low > 0 and steadier(list(wild), list(steady)).high < 0
    # The correlation by its definition: covariance of sum and difference is the difference of the variances.
    by_hand = (wild.var() - steady.var()) / ((wild + steady).std() * (wild - steady).std())
    assert found.mean == pytest.approx(by_hand)
    assert steadier([0.0] * 5, [0.0] * 5).low < 0 < steadier([0.0] * 5, [0.0] * 5).high
    assert steadier(list(steady[:6]), list(steady[6:])).low < 0
    with pytest.raises(ValueError, match="four or more"):
        steadier([1.0, 2.0], [1.0, 3.0])
    assert statistics.stdev(steady) < statistics.stdev(wild)
