"""Checkers of notebook 13: right, untouched, and each usual mistake with the hint meant for it."""

import math

from ftcourse.exercises.ddp_to_fsdp import check_all_gathers, check_clip_factor, check_peak_gathered

from .shown import checker_tests


def norm(shards):
    return math.sqrt(sum(s**2 for s in shards))


EXERCISES = [
    (
        check_peak_gathered,
        lambda layers, root, per_layer: root + (max(layers) if per_layer else sum(layers)),
        {
            "stay gathered": lambda layers, root, per_layer: max(layers),
            "that is the whole model": lambda layers, root, per_layer: sum(layers) + root,
            "not in the last": lambda layers, root, per_layer: layers[-1] + root,
            "not in the first": lambda layers, root, per_layer: layers[0] + root,
            "not the sum": lambda layers, root, per_layer: sum(layers),
            "peak at 350": lambda layers, root, per_layer: 1,
            "right for the example only": lambda layers, root, per_layer: 350 if per_layer else 650,
            "it is 75, or 145": lambda layers, root, per_layer: root + (layers[1] if per_layer else sum(layers)),
            "all 650 bytes": lambda layers, root, per_layer: max(layers) + root,
        },
    ),
    (
        check_all_gathers,
        lambda layers, reshard: (2 if reshard else 1) * layers + 1,
        {
            "the root gathers too": lambda layers, reshard: 2 * layers,
            "gathered again for its backward": lambda layers, reshard: layers + 1,
            "it gathers once, not twice": lambda layers, reshard: 2 * layers + 2,
            "backward pass and the root": lambda layers, reshard: layers,
            "= 9 all-gathers": lambda layers, reshard: 1,
            "still whole": lambda layers, reshard: 2 * layers + 1,
            "gather once, and yours": lambda layers, reshard: 2 * layers + 1 if reshard else 0,
            "gather 13 times": lambda layers, reshard: 2 * layers + 1 if reshard else 5,
            "not for 12": lambda layers, reshard: 9 if reshard else 5,
        },
    ),
    (
        check_clip_factor,
        lambda shards, most: min(1.0, most / (norm(shards) + 1e-6)),
        {
            "their squares do": lambda shards, most: most / sum(shards),
            "a mean of norms": lambda shards, most: most * len(shards) / sum(shards),
            "largest shard": lambda shards, most: most / max(shards),
            "not over the first": lambda shards, most: most / shards[0],
            "take the root": lambda shards, most: most / norm(shards) ** 2,
            "that is the norm": lambda shards, most: norm(shards),
            "the factor is 0.2": lambda shards, most: 9.0,
            "at most 1": lambda shards, most: most / norm(shards),
            "use every shard, and max_norm": lambda shards, most: min(1.0, 1 / norm(shards)),
            "so the factor is 1": lambda shards, most: 0.2,
        },
    ),
]

(
    test_solution_is_right,
    test_empty_stub_is_not_solved_yet,
    test_wrong_answer_gets_the_hint_meant_for_it,
) = checker_tests(EXERCISES)
