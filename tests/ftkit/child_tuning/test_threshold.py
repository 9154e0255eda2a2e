"""The global threshold against a plain sort of everything."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.child_tuning import fisher, top_fraction_masks

# That a child is smaller than asked for is tested below.
pytestmark = pytest.mark.filterwarnings("ignore:only .* scores are above zero")


def by_sorting(scores: dict[str, torch.Tensor], reserve_p: float) -> dict[str, torch.Tensor]:
    """The largest first; of equal ones the first name, then the first element."""
    order = sorted(
        (-value, name, index) for name, score in scores.items() for index, value in enumerate(score.tolist())
    )
    wanted = len(order) if reserve_p == 1 else max(1, round(reserve_p * len(order)))
    masks = {name: torch.zeros(score.shape, dtype=torch.bool) for name, score in scores.items()}
    for value, name, index in order[:wanted]:
        masks[name][index] = value < 0 or reserve_p == 1
    return masks


@st.composite
def score_dicts(draw):
    """Few distinct values make ties; the others span what float32 can hold."""
    ties = st.sampled_from([0.0, 1.0, 2.0, 3.0])
    spread = st.floats(0, 2.0**127, width=32)
    value = draw(st.sampled_from([ties, spread]))
    sizes = draw(st.lists(st.integers(0, 30), min_size=1, max_size=4))
    names = draw(st.permutations([f"p{i}" for i in range(len(sizes))]))
    return {
        name: torch.tensor(draw(st.lists(value, min_size=n, max_size=n))) for name, n in zip(names, sizes, strict=True)
    }


def check_against_sorting() -> None:
    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(score_dicts(), st.sampled_from([0.001, 0.1, 0.3, 0.5, 0.9, 1.0]))
    def check(scores, reserve_p):
        if not any((score > 0).any() for score in scores.values()):
            return
        expected = by_sorting(scores, reserve_p)
        for name, mask in top_fraction_masks(scores, reserve_p).items():
            assert torch.equal(mask, expected[name])

    check()


def test_masks_equal_those_of_a_sort():
    check_against_sorting()


def one_threshold_each(scores, reserve_p):
    return {name: top({name: score}, reserve_p)[name] for name, score in scores.items()}


top = top_fraction_masks


def test_a_threshold_for_each_parameter_is_noticed(monkeypatch):
    monkeypatch.setitem(globals(), "top_fraction_masks", one_threshold_each)
    with pytest.raises(Exception):  # noqa: B017  # an AssertionError, or a group of them
        check_against_sorting()


def all_ties(scores, reserve_p):
    """Masks as `score >= threshold` makes them: every score equal to the threshold is kept."""
    masks = top(scores, reserve_p)
    least = min(float(score[masks[name]].min()) for name, score in scores.items() if masks[name].any())
    return {name: score >= least for name, score in scores.items()}


def test_keeping_all_ties_is_noticed(monkeypatch):
    monkeypatch.setitem(globals(), "top_fraction_masks", all_ties)
    with pytest.raises(Exception):  # noqa: B017
        check_against_sorting()


@pytest.mark.parametrize("reserve_p", [0.001, 0.1, 0.5, 0.999])
def test_ties_do_not_change_the_count(reserve_p):
    """As squares of float32 gradients have them, and as bfloat16 scores have them by the thousand."""
    values = torch.rand(40, 60, generator=torch.Generator().manual_seed(1)).bfloat16().float() + 1
    scores = {"module.b": values[:25].clone(), "a": values[25:].clone(), "c": torch.ones(())}
    masks = top_fraction_masks(scores, reserve_p)
    assert sum(int(mask.sum()) for mask in masks.values()) == round(reserve_p * 2401)
    plain = top_fraction_masks({"a": scores["a"], "b": scores["module.b"].flatten(), "c": scores["c"]}, reserve_p)
    assert torch.equal(masks["module.b"].flatten(), plain["b"]) and torch.equal(masks["a"], plain["a"])


def test_distinct_scores_give_the_exact_count(monkeypatch):
    monkeypatch.setattr(fisher, "_BLOCK", 1000)
    values = torch.randperm(100_000, generator=torch.Generator().manual_seed(0)).float() / 7 + 1
    scores = {"a": values[:99_000].view(990, 100), "b": values[99_000:]}
    for reserve_p in (1e-5, 0.1, 0.3, 0.99999):
        masks = top_fraction_masks(scores, reserve_p)
        assert sum(int(mask.sum()) for mask in masks.values()) == round(reserve_p * 100_000)
        assert masks["a"].shape == (990, 100) and masks["a"].dtype == torch.bool


def test_scores_of_zero_are_kept_only_when_everything_is():
    scores = {"a": torch.tensor([0.0, 0.0, 0.0, 1.0])}
    with pytest.warns(UserWarning, match=r"only 1 of 4 .* 25.00% .* instead of 50.00%"):
        assert top_fraction_masks(scores, 0.5)["a"].tolist() == [False, False, False, True]
    assert top_fraction_masks(scores, 1.0)["a"].all()


@pytest.mark.parametrize(
    "scores, message",
    [
        ({}, "no scores"),
        ({"a": torch.zeros(0)}, "no scores"),
        ({"a": torch.zeros(5)}, "all scores are zero"),
        ({"a": torch.tensor([1.0, float("nan")])}, "a: its scores must be finite"),
        ({"a": torch.tensor([1.0, -1.0])}, "a: its scores must be finite, non-negative"),
        ({"a": torch.ones(3, dtype=torch.float64)}, "float32"),
    ],
)
def test_scores_without_an_answer_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        top_fraction_masks(scores, 0.3)


@pytest.mark.parametrize("reserve_p", [0, 1.5, float("nan")])
def test_impossible_shares_are_refused(reserve_p):
    with pytest.raises(ValueError, match=r"reserve_p is .*: give a probability above 0 and at most 1"):
        top_fraction_masks({"a": torch.ones(3)}, reserve_p)
