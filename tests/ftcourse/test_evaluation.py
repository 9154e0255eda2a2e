"""The export against what the harness documents, intervals against a table, comparisons against counting by hand."""

import json
from pathlib import Path

import pytest
import yaml

from ftcourse.evaluation import Preference, compare_exact, write_lm_eval_task
from ftkit import load_chat


def test_a_task_holds_every_question_and_scores_exact_match(tmp_path):
    rows = load_chat()["test"]
    path = write_lm_eval_task(tmp_path / "tasks", "held_out", rows, until=["<|end|>"], max_new_tokens=9)
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert path.name == "held_out.yaml" and task["task"] == "held_out"
    # As in the harness's own guide to tasks: a local file is read by the loader "json".
    assert task["dataset_path"] == "json" and task["test_split"] in task["dataset_kwargs"]["data_files"]
    data = Path(task["dataset_kwargs"]["data_files"]["test"])
    docs = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    assert [doc["question"] for doc in docs] == [row["messages"][0]["content"] for row in rows]
    assert [doc["answer"] for doc in docs] == [row["messages"][1]["content"] for row in rows]
    assert {doc["domain"] for doc in docs} == set(rows["domain"])
    assert task["output_type"] == "generate_until" and task["metric_list"][0]["metric"] == "exact_match"
    assert task["generation_kwargs"] == {"until": ["<|end|>"], "do_sample": False, "max_gen_toks": 9}
    assert (task["doc_to_text"], task["doc_to_target"]) == ("{{question}}", "{{answer}}")


def test_a_task_refuses_what_it_cannot_ask(tmp_path):
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for messages in (turn * 2, turn[:1], [{"role": "system", "content": "s"}, *turn]):
        with pytest.raises(ValueError, match="conversation 1 is not one question"):
            write_lm_eval_task(tmp_path, "x", [{"messages": turn}, {"messages": messages}], until=["."])
    for rows, until in (([], ["."]), ([{"messages": turn}], [])):
        with pytest.raises(ValueError, match="needs questions"):
            write_lm_eval_task(tmp_path, "x", rows, until=until)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wins", "losses", "low", "high"),
    [(8, 2, 0.4902, 0.9433), (50, 50, 0.4038, 0.5962), (10, 0, 0.7225, 1.0), (0, 10, 0.0, 0.2775)],
)
def test_the_interval_is_wilsons(wins, losses, low, high):
    """Values as published calculators of Wilson's interval give them, four digits."""
    found = Preference(wins, losses, ties=7).interval
    assert found == pytest.approx((low, high), abs=5e-5)


def test_a_verdict_needs_an_interval_beside_one_half():
    assert Preference(8, 2, 0).verdict == "cannot tell" and Preference(9, 1, 0).verdict == "first"
    assert Preference(1, 9, 90).verdict == "second" and Preference(0, 0, 5).verdict == "cannot tell"
    assert Preference(0, 0, 5).interval == (0.0, 1.0)
    assert str(Preference(9, 1, 3)).startswith("9 wins, 1 losses, 3 ties: the first wins 90%")


def test_exact_match_judges_pairs():
    counted = compare_exact(["a", "b", "x", "y"], ["a", "x", "c", "z"], ["a", "b", "c", "d"])
    assert counted == Preference(1, 1, 2)
    with pytest.raises(ValueError, match="zip"):
        compare_exact(["a"], ["a", "b"], ["a"])
