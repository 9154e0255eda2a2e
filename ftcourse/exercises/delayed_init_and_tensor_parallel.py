"""Checkers for 14_delayed_init_and_tensor_parallel: peaks of loading, shapes of shards, a row-parallel layer."""

from . import WrongAnswer, checker, require_answer, require_tensor


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


@checker
def check_shard_shapes(shard_shapes) -> str:
    """Check `shard_shapes(kind, out_features, in_features, tp)`: one rank's weight and bias, as torch keeps them."""
    for kind, out, wide, tp in (
        ("column", 12, 8, 4),
        ("row", 12, 8, 4),
        ("column", 6, 10, 2),
        ("row", 6, 10, 2),
    ):
        weight, bias = ((out // tp, wide), (out // tp,)) if kind == "column" else ((out, wide // tp), (out,))
        found = require_answer(shard_shapes(kind, out, wide, tp))
        where = f"{kind}-parallel, {out} out, {wide} in, {tp} ranks"
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise WrongAnswer("return two shapes: the weight's and the bias's.")
        found_weight, found_bias = (tuple(part) if isinstance(part, tuple | list) else (part,) for part in found)
        other = (out, wide // tp) if kind == "column" else (out // tp, wide)
        if found_weight == other:
            raise WrongAnswer(
                f"{where}: torch keeps a weight as (out, in). A column of the formula x @ W is a row of that: "
                "column-parallel cuts the output features."
            )
        if found_weight == (wide, out // tp) or found_weight == (wide // tp, out):
            raise WrongAnswer(f"{where}: torch keeps a weight as (out, in), not (in, out).")
        if found_weight == weight and found_bias != bias:
            raise WrongAnswer(
                f"{where}: the bias belongs to the output features: cut them and it is cut, else it is whole."
            )
        if any(isinstance(size, float) for size in (*found_weight, *found_bias)):
            raise WrongAnswer(f"{where}: shapes are whole numbers: use //, not /.")
        if (found_weight, found_bias) != (weight, bias):
            raise WrongAnswer(f"{where}: expected {weight} and {bias}, and yours are {found_weight} and {found_bias}.")
    return "column-parallel cuts output features and their bias; row-parallel cuts input features."


@checker
def check_row_parallel(row_parallel) -> str:
    """Check `row_parallel(x_parts, weight_parts, bias)`: the whole output of a row-parallel layer."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for ranks in (2, 4):
        x, weight, bias = (torch.randn(size, generator=generator) for size in ((3, 8), (5, 8), (5,)))
        xs, weights = list(x.chunk(ranks, 1)), list(weight.chunk(ranks, 1))
        expected = torch.nn.functional.linear(x, weight, bias)
        answer = row_parallel(xs, weights, bias)
        if isinstance(require_answer(answer), torch.Tensor) and answer.shape == (3, 5 * ranks):
            raise WrongAnswer("you put the parts side by side: that is for column-parallel layers. These are summed.")
        answer = require_tensor(answer, (3, 5))

        def near(other, answer=answer):
            return torch.allclose(answer, other, atol=1e-5)

        if near(expected + (ranks - 1) * bias):
            raise WrongAnswer(f"the bias is in it {ranks} times: each rank added it. Add it once, after the sum.")
        if near(expected - bias):
            raise WrongAnswer("the bias is missing: add it once, after the sum.")
        if near((expected - bias) / ranks + bias) or near(expected / ranks):
            raise WrongAnswer("that is a mean: each rank has a part of the sum over input features, so add the parts.")
        if near(torch.nn.functional.linear(xs[0], weights[0], bias)):
            raise WrongAnswer("that is the first rank's part alone: the sum over ranks (all-reduce) is missing.")
        if not near(expected):
            raise WrongAnswer("the output differs from x @ weight.T + bias of the whole layer.")
    return "the sum of the ranks' parts, and the bias once."
