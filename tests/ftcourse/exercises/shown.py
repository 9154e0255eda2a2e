"""What every checker owes its learner, as tests: right to a solution, patience with a stub, a hint for each mistake."""

import pytest


def checker_tests(exercises):
    """Three tests for (checker, solution, {part of the hint: typical wrong answer}) triples.

    A test module gives them names that begin with `test_`, so that pytest finds them there.
    """
    checks = [check for check, _, _ in exercises]
    wrong = [(check, hint, answer) for check, _, answers in exercises for hint, answer in answers.items()]

    @pytest.mark.parametrize(("check", "solution"), [(check, solution) for check, solution, _ in exercises])
    def solution_is_right(check, solution):
        verdict = check(solution)
        assert verdict.right and not verdict.not_attempted, verdict
        assert repr(verdict).startswith("Right: ")

    @pytest.mark.parametrize("stub", [lambda *args: None, lambda *args: ...], ids=["None", "ellipsis"])
    @pytest.mark.parametrize("check", checks)
    def empty_stub_is_not_solved_yet(check, stub):
        verdict = check(stub)
        assert verdict.not_attempted and not verdict.right
        assert repr(verdict).startswith("Not solved yet: ")

    @pytest.mark.parametrize(("check", "hint", "answer"), wrong, ids=[f"{c.__name__}: {h}" for c, h, _ in wrong])
    def wrong_answer_gets_the_hint_meant_for_it(check, hint, answer):
        verdict = check(answer)
        assert repr(verdict).startswith("Not yet: ")
        assert hint in verdict.message, verdict
        assert not verdict.right and not verdict.not_attempted

    return solution_is_right, empty_stub_is_not_solved_yet, wrong_answer_gets_the_hint_meant_for_it
