"""Progress: which verdicts are kept, and that keeping them changes nothing for the learner."""

import json
import os
import re

import nbformat
import pytest
from nbclient import NotebookClient

from ftcourse import contents, solved
from ftcourse.exercises import WrongAnswer, require_answer, start_here
from stable import kernel_environment
from tests import ROOT

RIGHT = {"right": lambda w, g, lr: w - lr * g, "wrong": lambda w, g, lr: w + lr * g, "stub": lambda w, g, lr: ...}
KEY = "start_here.check_one_step"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The file of progress of a learner in a notebook."""
    path = tmp_path / "data" / "progress.jsonl"
    monkeypatch.setenv(solved.VARIABLE, str(path))
    monkeypatch.setattr(solved, "_in_kernel", lambda: True)
    return path


def in_notebooks():
    """(notebook, checker) of each exercise cell in the sources."""
    for path in sorted((ROOT / "notebooks" / "source").glob("*.py")):
        for cell in path.read_text(encoding="utf-8").split("\n# %%")[1:]:
            if 'tags=["exercise"]' in cell.partition("\n")[0]:
                yield path.stem, re.findall(r"^(check_\w+)\(", cell, re.M)[-1]


def test_the_exercises_are_those_of_the_notebooks():
    listed = [(exercise.notebook, exercise.key.partition(".")[2]) for exercise in solved.list_exercises()]
    assert sorted(listed) == sorted(in_notebooks()) and len(listed) > 40
    assert len({exercise.key for exercise in solved.list_exercises()}) == len(listed)
    assert [notebook for notebook, _ in listed] == sorted(notebook for notebook, _ in listed)


def test_tries_are_counted_until_the_first_right_answer_and_a_stub_is_no_try(kept, capsys):
    for answer in ("stub", "wrong", "wrong", "right", "wrong", "right"):
        verdict = start_here.check_one_step(RIGHT[answer])
        assert verdict.right == (answer == "right")
    assert capsys.readouterr() == ("", "")
    found = solved.read_progress(kept)
    assert set(found) == {KEY} and found[KEY].tries == 2 and found[KEY].solved.startswith("20")
    assert len(kept.read_text().splitlines()) == 3
    assert set(json.loads(kept.read_text().splitlines()[0])) == {"exercise", "right", "at"}  # and no code, and no name


def test_nothing_is_kept_outside_notebooks_or_when_it_is_off(kept, monkeypatch):
    monkeypatch.setattr(solved, "_in_kernel", lambda: False)
    assert start_here.check_one_step(RIGHT["right"]).right
    monkeypatch.setattr(solved, "_in_kernel", lambda: True)
    for off in ("off", ""):
        monkeypatch.setenv(solved.VARIABLE, off)
        assert start_here.check_one_step(RIGHT["right"]).right and solved.progress_file() is None
    assert not kept.parent.exists()


def test_a_checker_that_is_no_exercise_of_the_course_is_not_kept(kept):
    from ftcourse.exercises import checker

    @checker
    def check_own(answer) -> str:
        if require_answer(answer) != 1:
            raise WrongAnswer("no")
        return "yes"

    assert check_own(1).right and not check_own(2).right and not kept.exists()


def test_a_file_that_cannot_be_written_or_read_fails_no_exercise(kept, monkeypatch):
    kept.parent.write_text("a file where the folder should be")
    assert start_here.check_one_step(RIGHT["right"]).right
    with pytest.raises(OSError):  # the negative control: keeping itself does fail
        solved.keep(KEY, True, kept)
    monkeypatch.setattr(solved, "progress_file", lambda: 1 / 0)
    assert repr(start_here.check_one_step(RIGHT["wrong"])).startswith("Not yet")


def test_lines_that_were_cut_off_are_passed_over(kept):
    kept.parent.mkdir()
    whole = json.dumps({"exercise": KEY, "right": False, "at": "2026-01-01"})
    kept.write_text(f'{whole}\n{whole[:20]}\n[1]\n"text"\n\n{whole}\n')
    assert solved.read_progress(kept)[KEY].tries == 2


def test_by_default_it_lies_in_the_users_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv(solved.VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = solved.progress_file()
    assert path.name == "progress.jsonl" and path.parent.name == "ftkit"
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert path == tmp_path / "ftkit" / "progress.jsonl"


def test_builds_and_tests_keep_nothing():
    assert kernel_environment()[solved.VARIABLE] == os.environ[solved.VARIABLE] == solved.OFF


@pytest.mark.parametrize("variable", ["own file", "off"])
def test_in_a_real_kernel(tmp_path, variable):
    path = tmp_path / "progress.jsonl"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LEARNER)])
    environment = kernel_environment() | ({} if variable == "off" else {solved.VARIABLE: str(path)})
    NotebookClient(nb, timeout=60, kernel_name="python3").execute(env=environment)
    assert nb.cells[0].outputs[0].data["text/plain"].startswith("Right")
    assert path.exists() == (variable != "off")
    assert (KEY in solved.read_progress(path)) == (variable != "off")


LEARNER = """
from ftcourse.exercises.start_here import check_one_step
check_one_step(lambda weight, gradient, lr: weight - lr * gradient)
"""


def test_the_map_counts_what_is_solved_and_none_in_a_build(kept, monkeypatch):
    parts = ["Start here", *contents.CONTENTS]
    assert [row[0] for row in contents.solved_table().rows] == parts
    assert contents.solved_table().rows[0][1:] == ("0\u00a0of\u00a01", "00 0/1")
    start_here.check_one_step(RIGHT["wrong"])
    assert contents.solved_table().rows[0][1:] == ("0\u00a0of\u00a01", "00 0/1")
    start_here.check_one_step(RIGHT["right"])
    table = contents.solved_table()
    assert table.rows[0][1:] == ("1\u00a0of\u00a01", "00 1/1 ✔") and "✔" not in str(table.rows[1:])
    assert '<a href="00_start_here.ipynb">00</a>' in table._repr_html_()
    total = sum(int(row[1].split("\u00a0")[2]) for row in table.rows)
    assert total == len(solved.list_exercises())
    monkeypatch.setenv(solved.VARIABLE, "off")
    assert "✔" not in str(contents.solved_table())
