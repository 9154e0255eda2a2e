"""The pictures and tables show what they are given: every learning rate, every method, and the words say the same."""

import matplotlib
import pytest
import torch
from matplotlib import pyplot

matplotlib.use("agg")

from ftcourse.explorers import adapter_family as family
from ftcourse.intervals import Interval
from ftcourse.plots import figure_svg
from ftcourse.studies.bracketing import SEEDS, TUNING_SEEDS, BracketedStudy
from ftcourse.studies.real_model import RealStudy
from ftcourse.studies.records import write_records
from ftcourse.studies.trade_off import DORA, FULL, LORA, TASK, Trial

CURVES = {  # method: learning rate: exact match, facts kept
    FULL: {1e-4: (0.1, 1.0), 3e-4: (0.6, 0.8), 9e-4: (0.4, 0.3)},
    LORA: {1e-3: (0.2, 1.0), 3e-3: (0.5, 0.9), 9e-3: (0.3, 0.5)},
    DORA: {1e-3: (0.3, 0.9), 3e-3: (0.7, 0.7), 9e-3: (0.2, 0.1)},
}


def made_up_study():
    records = []
    for method, curve in CURVES.items():
        for lr, (exact, kept) in curve.items():
            for place, seed in enumerate(TUNING_SEEDS):
                shift = 0.02 * (place - 0.5)
                records.append({**Trial(TASK, method, lr, seed).__dict__, "kept": kept + shift,
                                "validation_exact": exact + shift, "validation_loss": 2 - exact})  # fmt: skip
        best = max(curve, key=lambda lr: curve[lr][0])
        for seed in SEEDS:
            exact, kept = curve[best]
            records.append({**Trial(TASK, method, best, seed).__dict__, "test_exact": exact + 0.01 * seed,
                            "test_loss": 2 - exact, "kept": kept})  # fmt: skip
    return BracketedStudy(records, Trial)


@pytest.fixture
def study():
    yield made_up_study()
    pyplot.close("all")


def test_the_curve_has_a_point_for_every_learning_rate_and_a_filled_sign_for_the_best(study):
    ax = family.plot_trade_off(study, [FULL, DORA])
    open_signs, filled = ax.lines[0::2], ax.lines[1::2]
    for method, line, best in zip((FULL, DORA), open_signs, filled, strict=True):
        assert [tuple(point) for point in line.get_xydata()] == [pytest.approx(p) for p in CURVES[method].values()]
        assert best.get_xydata()[0].tolist() == pytest.approx(max(CURVES[method].values()))
    assert len({line.get_marker() for line in open_signs}) == 2  # not by colour alone
    figure_svg(ax.figure)


def test_the_menu_redraws_and_says_it_in_words(study):
    explorer = family.TradeOffExplorer(study, [FULL], LORA)
    assert explorer.menu.options == (LORA, DORA)
    assert explorer.caption.startswith("LoRA: at its best learning rate, 0.003, 50% of the validation questions")
    before = explorer.picture.value
    explorer.menu.value = DORA
    assert "0.003, 70% of the validation questions answered and 70% of the facts kept" in explorer.caption
    assert explorer.picture.value != before and explorer.points == family.learning_and_forgetting(study, DORA)
    assert repr(explorer) == "TradeOffExplorer(DoRA): run the cell to choose another method"


def test_the_tables_have_means_over_the_final_seeds(study):
    rows = family.results(study, [FULL, LORA]).splitlines()
    assert rows[2].split() == ["full", "0.0003", "62%", "1.40", "80%"]
    assert rows[3].split() == ["LoRA", "0.003", "52%", "1.50", "90%"]


def test_costs_are_counts_and_medians_of_paired_times():
    made = [
        {"task": "t", "model": "", "row": row, "lr": 1e-3, "seed": seed, "step_ms": time, "trainable": 1000,
         "adapter_bytes": 4200, "test_exact": 0.5, "test_loss": 1.0}
        for row, times in (("lora", (20, 20, 40, 40)), ("dora", (20, 30, 60, 80)))
        for seed, time in zip((100, 0, 1, 2), times, strict=True)
    ]  # fmt: skip
    rows = family.costs(made, ["t"], ["lora", "dora"], "lora").splitlines()
    assert rows[2].split() == ["lora", "1,000", "4,200", "1.0"]
    assert rows[3].split()[-1] == "1.5"  # of 1.5, 1.5 and 2


def test_gains_are_differences_from_the_reference(study):
    axes = family.plot_gains(study, [FULL, DORA], LORA)
    centres = [container.lines[0].get_xdata()[0] for container in axes[0].containers]
    assert centres == pytest.approx([10, 20])
    assert [label.get_text() for label in axes[0].get_yticklabels()] == [FULL, DORA]
    assert [label.get_text() for label in axes[1].get_yticklabels()] == ["", ""]
    assert family.in_units(Interval(0.1, 0.05, 0.15), "kept") == "+10.0 (+5.0 to +15.0)"
    assert family.in_units(Interval(0.1, 0.05, 0.15), "test_loss") == "+0.10 (+0.05 to +0.15)"


def test_movement_has_a_sign_for_each_seed_and_one_scale(study):
    panels = {"full": [[(0.1, 0.2)], [(0.3, 0.4), (0.5, 0.6)]], "lora": [[(1.0, 2.0)]]}
    axes = family.plot_movement(panels, {"full": "correlation +1.00"})
    assert [len(line.get_xdata()) for line in axes[0].lines] == [1, 2]
    assert len({line.get_marker() for line in axes[0].lines}) == 2
    assert axes[0].get_xlim() == axes[1].get_xlim() and axes[0].get_ylim() == axes[1].get_ylim()
    assert axes[0].get_title() == "full\ncorrelation +1.00" and axes[1].get_title() == "lora"
    figure_svg(axes[0].figure)


def test_every_level_is_a_line():
    axes = family.plot_levels(torch.linspace(-1, 1, 100), {"a": [-1, 0, 1], "b": torch.tensor([-1.0, 1.0])})
    assert [len(ax.lines) for ax in axes] == [3, 2] and axes[0].get_title() == "a: 3 levels"
    figure_svg(axes[0].figure)


def record(method, lr, seed, exact, split):
    return {"method": method, "lr": lr, "seed": seed, "p": 1.0, "warmup": 0.1,
            f"{split}_exact": exact, f"{split}_loss": 1 - exact}  # fmt: skip


def test_the_real_model_s_methods_appear_when_their_search_is_over(tmp_path):
    path = tmp_path / "real.jsonl"
    records = [record("AdamW", lr, 100, e, "validation") for lr, e in ((1e-4, 0.2), (3e-4, 0.4), (7e-4, 0.3))]
    records += [record("LoRA", lr, 100, e, "validation") for lr, e in ((1e-3, 0.2), (3e-3, 0.5))]
    write_records(path, records)
    assert family.searched(RealStudy(path)) == ["AdamW"]
    assert family.real_results(RealStudy(path)) == (
        "AdamW: best learning rate 0.0003, 40% of the validation calls; no final runs yet"
    )
    records += [record("LoRA", 9e-3, 100, 0.4, "validation")]
    records += [record("LoRA", 3e-3, seed, e, "test") for seed, e in ((0, 0.4), (1, 0.6))]
    write_records(path, records)
    assert family.searched(RealStudy(path)) == ["AdamW", "LoRA"]
    last = family.real_results(RealStudy(path)).splitlines()[1]
    assert last == "LoRA: best learning rate 0.003, 50% of the validation calls, 50% of the test calls (2 seeds)"
