"""Checkers of notebook 13: right, untouched, and each usual mistake with the hint meant for it."""

from ftcourse.exercises.ddp_to_fsdp import (
    DESYNC,
    MADE_UP,
    Measured,
    check_choose_wrapping,
    check_find_desync,
    desync,
)

from .shown import checker_tests


def chooser(fits=lambda m, limit: m.peak <= limit, good=lambda m: m.error < 1e-4, key=lambda m: m.collectives):
    def choose(measure, names, limit):
        table = {name: measure(name) for name in names}
        left = {name: m for name, m in table.items() if fits(m, limit) and good(m)}
        return min(left, key=lambda name: key(left[name]), default=None)

    return choose


def twice(measure, names, limit):
    for name in names:
        measure(name)
    return chooser()(measure, names, limit)


def lazy(measure, names, limit):
    return chooser()(measure, [name for name in names if name != "a"], limit)


def always(measure, names, limit):
    table = {name: measure(name) for name in names}
    return "c" if "c" in table else min(table)


def find(dumps):
    """Independent of the checker's reference: strings of all calls, place by place."""
    first = max(entries[0]["collective_seq_id"] for entries in dumps.values())
    last = max(entries[-1]["collective_seq_id"] for entries in dumps.values())
    for seq in range(first, last + 1):
        here = {rank: [e for e in entries if e["collective_seq_id"] == seq] for rank, entries in dumps.items()}
        if len({str([(e["profiling_name"], e["input_sizes"]) for e in found]) for found in here.values()}) > 1:
            return seq, [rank for rank, found in here.items() if not found]
    return None


def shortest(dumps):
    """Says what the shortest recorder lacks, whatever it is."""
    rank = min(dumps, key=lambda rank: len(dumps[rank]))
    longest = max(len(entries) for entries in dumps.values())
    return (len(dumps[rank]) + 1, [rank]) if len(dumps[rank]) < longest else None


def missing_only(dumps):
    found = find(dumps)
    return found if found and found[1] else None


def from_the_start(dumps):
    last = max(entries[-1]["collective_seq_id"] for entries in dumps.values())
    for seq in range(1, last + 1):
        here = {r: [e["profiling_name"] for e in es if e["collective_seq_id"] == seq] for r, es in dumps.items()}
        if len(set(map(str, here.values()))) > 1:
            return seq, [rank for rank, found in here.items() if not found]
    return None


def everyone_behind(dumps):
    found = find(dumps)
    longest = max(entries[-1]["collective_seq_id"] for entries in dumps.values())
    behind = [rank for rank, entries in dumps.items() if entries[-1]["collective_seq_id"] < longest]
    return found and (found[0], behind)


EXERCISES = [
    (
        check_choose_wrapping,
        chooser(),
        {
            "the limit is 500": chooser(fits=lambda m, limit: True),
            "lowest peak": chooser(key=lambda m: m.peak),
            "computes something else": chooser(good=lambda m: m.error == m.error),
            "not a number": chooser(good=lambda m: not m.error > 1e-4),
            "was never measured": lazy,
            "measured twice": twice,
            "return None then": always,
            "exactly the limit fits": chooser(fits=lambda m, limit: m.peak < limit),
            "name of one of the ways": lambda measure, names, limit: 3,
            "fewer collectives": chooser(key=lambda m: -m.peak),
        },
    ),
    (
        check_find_desync,
        find,
        {
            "rank 2 did not": lambda dumps: (5, [0]),
            "only rank 0 is": everyone_behind,
            "nobody is missing": missing_only,
            "the same collectives": lambda dumps: find(dumps) or (1, []),
            "begin where all ranks have entries": from_the_start,
        },
    ),
]

(
    test_solution_is_right,
    test_empty_stub_is_not_solved_yet,
    test_wrong_answer_gets_the_hint_meant_for_it,
) = checker_tests(EXERCISES)


def test_the_choice_is_tried_on_what_the_ranks_measure():
    live = {"one": Measured(4_000_000, 3, 1e-7), "many": Measured(2_000_000, 9, 1e-7)}
    verdict = check_choose_wrapping(chooser(), live.__getitem__, list(live), 3_000_000)
    assert verdict.right and "'many': 2.00 MB at the peak and 9 collectives" in verdict.message

    def forgets(measure, names, limit):
        return chooser()(measure, names, limit) if "a" in names or "b" in names else names[0]

    assert (
        "'many' is best within 3.0 MB"
        in check_choose_wrapping(forgets, live.__getitem__, list(live), 3_000_000).message
    )


def test_the_search_is_tried_on_the_recorders_of_the_ranks():
    recorded = DESYNC["rank 2 stopped"][0]
    verdict = check_find_desync(find, recorded)
    assert verdict.right and "rank 2 never entered collective 4" in verdict.message

    def knows_the_cases(dumps):
        return (9, [9]) if dumps is recorded else find(dumps)

    assert "on the live ranks: expected (4, [2])" in check_find_desync(knows_the_cases, recorded).message


def test_the_made_up_cases_have_the_answers_that_they_state():
    for dumps, expected in DESYNC.values():
        assert desync(dumps) == find(dumps) == expected
    assert [name for name, m in MADE_UP.items() if m.error < 1e-4 and m.peak <= 500] == ["b", "c", "f"]
