"""Checkers of notebook 14: right, untouched, and each usual mistake with the hint meant for it."""

from ftcourse.exercises.delayed_init_and_tensor_parallel import check_layer_plan, check_loading_peaks

from .shown import checker_tests


def peaks(route, full, ranks):
    share = full / ranks
    if route == "every rank":
        return [full] * ranks
    return [full * (route == "rank 0") + share] + [share] * (ranks - 1)


def other(route, value):
    """`peaks` with another answer for one route."""
    return lambda name, full, ranks: value(full, ranks) if name == route else peaks(name, full, ranks)


PLAN = dict.fromkeys(["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"], "colwise")
PLAN |= dict.fromkeys(["o_proj", "down_proj"], "rowwise")


def plan(**changes):
    """A function that returns the right plan but for the changes."""
    return lambda *_: PLAN | changes


EXERCISES = [
    (
        check_loading_peaks,
        peaks,
        {
            "a number for each rank": lambda route, full, ranks: [full],
            "holds a shard of the model as well": other("rank 0", lambda f, n: [f] + [f / n] * (n - 1)),
            "meta takes no memory": other("rank 0", lambda f, n: [f] + [0.0] * (n - 1)),
            "never lie side by side": other("every rank", lambda f, n: [f + f / n] * n),
            "left after sharding": other("every rank", lambda f, n: [f / n] * n),
            "'shards', 16 GB on 4 ranks: expected": other("shards", lambda f, n: [f] * n),
        },
    ),
    (
        check_layer_plan,
        plan(),
        {
            "a dict is wanted": lambda: ["colwise"],
            "down_proj has no style": lambda: {name: style for name, style in PLAN.items() if name != "down_proj"},
            "one of yours is 'columns'": plan(q_proj="columns"),
            "leaves each rank a part": lambda: {n: "rowwise" if s == "colwise" else "colwise" for n, s in PLAN.items()},
            "up_proj is row-parallel": plan(up_proj="rowwise"),
            "o_proj is column-parallel": plan(o_proj="colwise"),
        },
    ),
]

test_solution_is_right, test_empty_stub, test_each_mistake_gets_its_hint = checker_tests(EXERCISES)


def test_the_plan_is_tried_on_the_ranks():
    verdict = check_layer_plan(plan(), lambda plan: {"error": 1e-7, "all_reduces": 2})
    assert verdict.right and "with 2 all-reduces" in verdict.message
    for wrong in ({"error": 1.0, "all_reduces": 2}, {"error": 0.0, "all_reduces": 7}):
        assert "on the live ranks this gives" in check_layer_plan(plan(), lambda plan, wrong=wrong: wrong).message
