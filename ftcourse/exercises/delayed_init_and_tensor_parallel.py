"""Checkers for 14_delayed_init_and_tensor_parallel: peaks of loading, and a layer's tensor-parallel plan."""

from collections.abc import Callable, Mapping

from . import WrongAnswer, checker, require_answer


@checker
def check_loading_peaks(loading_peaks) -> str:
    """Check `loading_peaks(route, full, ranks)`: host memory of each rank at its peak, in the unit of `full`."""
    for full, ranks in ((16.0, 4), (140.0, 8), (6.0, 2)):
        share = full / ranks
        expected = {
            "every rank": [full] * ranks,
            "rank 0": [full + share] + [share] * (ranks - 1),
            "shards": [share] * ranks,
        }
        for route, peaks in expected.items():
            found = require_answer(loading_peaks(route, full, ranks))
            where = f"{route!r}, {full:g} GB on {ranks} ranks"
            found = [float(value) for value in found]
            if len(found) != ranks:
                raise WrongAnswer(f"{where}: a number for each rank is wanted, and you return {len(found)}.")
            if route == "rank 0" and found == [full] + peaks[1:]:
                raise WrongAnswer(f"{where}: rank 0 holds a shard of the model as well, while it still has the whole.")
            if route == "rank 0" and found == [full] + [0.0] * (ranks - 1):
                raise WrongAnswer(f"{where}: meta takes no memory, but a rank ends with its own shard.")
            if route == "every rank" and found == [share] * ranks:
                raise WrongAnswer(f"{where}: that is what is left after sharding; first each rank loads the whole.")
            if route == "every rank" and found == [full + share] * ranks:
                raise WrongAnswer(
                    f"{where}: whole and shards never lie side by side: the whole is cut tensor by tensor, and each "
                    "tensor is freed once its shard is kept."
                )
            if any(abs(a - b) > 1e-6 * full for a, b in zip(found, peaks, strict=True)):
                raise WrongAnswer(f"{where}: expected {peaks}, and yours is {found}.")
    return "only the last route needs no machine that could hold the model."


COLUMN_OF = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
ROW_OF = ("o_proj", "down_proj")


@checker
def check_layer_plan(layer_plan: Callable, try_plan: Callable[[dict], Mapping] | None = None) -> str:
    """Check `layer_plan()`: a style for each matrix of a decoder layer, with two all-reduces in the forward pass.

    `try_plan(plan)` runs it on the live ranks and returns `error`, relative to the whole layer's output, and
    `all_reduces`.
    """
    plan = require_answer(layer_plan())
    if not isinstance(plan, dict):
        raise WrongAnswer(
            f"a dict is wanted, from a matrix's name to its style, and you return a {type(plan).__name__}."
        )
    if missing := [name for name in (*COLUMN_OF, *ROW_OF) if name not in plan]:
        raise WrongAnswer(f"{missing[0]} has no style: without one, every rank would hold and compute all of it.")
    if strange := [style for style in plan.values() if style not in ("colwise", "rowwise")]:
        raise WrongAnswer(f"the styles are 'colwise' and 'rowwise', and one of yours is {strange[0]!r}.")
    if all(plan[name] == "rowwise" for name in COLUMN_OF) and all(plan[name] == "colwise" for name in ROW_OF):
        raise WrongAnswer(
            "row-parallel first needs an all-reduce after each of the five matrices, because SiLU and attention cannot "
            "work on partial sums; and column-parallel last leaves each rank a part of the output features."
        )
    for name in COLUMN_OF:
        if plan[name] == "rowwise":
            raise WrongAnswer(
                f"{name} is row-parallel: its output is a partial sum on each rank, which has to be summed before "
                "anything nonlinear. Let each rank have whole output features of it."
            )
    for name in ROW_OF:
        if plan[name] == "colwise":
            raise WrongAnswer(
                f"{name} is column-parallel: each rank holds only a part of its input features, and would need the "
                "others' first. Cut it along its input features."
            )
    if try_plan is None:
        return "column-parallel, then row-parallel, in attention and in the MLP."
    found = try_plan(plan)
    if found["error"] > 1e-4 or found["all_reduces"] != 2:
        raise WrongAnswer(f"on the live ranks this gives {found}.")
    return f"on the live ranks the layer's output is that of the whole layer, with {found['all_reduces']} all-reduces."
