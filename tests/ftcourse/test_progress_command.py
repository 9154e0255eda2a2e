"""`ftkit progress`: shown, exported, collected and begun again."""

import json

import pytest

from ftcourse import cli, progress_command, solved

ONE, MASK = "start_here.check_one_step", "gradient_masks.check_masked_gradient"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    path = tmp_path / "progress.jsonl"
    monkeypatch.setenv(solved.VARIABLE, str(path))
    for key, right in ((MASK, False), (MASK, False), (ONE, False), (ONE, True)):
        solved.keep(key, right, path)
    return path


def run(capsys, *arguments):
    code = cli.main(["progress", *map(str, arguments)])
    return (code, *capsys.readouterr())


def test_every_exercise_is_shown_with_its_state(kept, capsys):
    code, said, _ = run(capsys)
    lines = said.splitlines()
    assert code == 0 and lines[0] == "00_start_here: 1 of 1"
    assert lines[1].startswith("  ✔ one step: solved 20") and lines[1].endswith(", 1 wrong try")
    assert "  ○ masked gradient: open, 2 wrong tries" in lines and "  ○ matched lr: open" in lines
    assert lines[-1] == f"1 of {len(solved.list_exercises())} exercises solved; kept in {kept}"


def test_without_progress_and_when_it_is_off(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(solved.VARIABLE, str(tmp_path / "none.jsonl"))
    assert run(capsys)[1].splitlines()[-1].startswith("0 of ")
    assert run(capsys, "--reset")[1] == "there was no progress to reset\n"
    monkeypatch.setenv(solved.VARIABLE, "off")
    assert "FTKIT_PROGRESS is off: nothing is kept" in run(capsys)[1]


def test_an_export_is_read_back_and_replaces_only_an_export(kept, tmp_path, capsys):
    file = tmp_path / "ada.json"
    for _ in range(2):  # again the next day
        assert run(capsys, "--export", file, "--name", "Ada")[:2] == (0, f"{file}: 1 solved exercises\n")
    name, progress = progress_command.read_export(file)
    assert name == "Ada" and progress == solved.read_progress(kept)
    (tmp_path / "essay.json").write_text("my essay")
    code, _, error = run(capsys, "--export", tmp_path / "essay.json")
    assert code == 2 and "give another name" in error and (tmp_path / "essay.json").read_text() == "my essay"
    assert run(capsys, "--export", tmp_path / "none" / "ada.json")[0] == 2


def test_a_class_is_collected_by_learner_and_by_exercise(kept, tmp_path, capsys):
    folder = tmp_path / "class"
    folder.mkdir()
    run(capsys, "--export", folder / "ada.json")
    kept.unlink()
    for name, file in (("Bob", "b1.json"), ("Bob", "b2.json")):
        run(capsys, "--export", folder / file, "--name", name)
    code, said, error = run(capsys, "--collect", folder)
    lines = [line.split() for line in said.splitlines()]
    number = len(solved.list_exercises())
    assert (code, error) == (0, "") and lines[0][:4] == ["learner", "solved", "00", "01"]
    assert lines[1][:4] == ["ada", f"1/{number}", "1/1", "0/3"]
    assert lines[2][:3] == ["Bob", "(b1.json)", f"0/{number}"] and lines[3][1] == "(b2.json)"
    assert ["00", "one", "step", "1", "of", "3", "1"] in lines
    assert ["01", "masked", "gradient", "0", "of", "3", "2"] in lines
    assert len({len(line) for line in said.partition("\n\n")[0].splitlines()}) == 1  # aligned


WRONG = {
    "text.json": "my essay",
    "list.json": "[]",
    "old.json": '{"format": "ftkit progress 0", "exercises": {}}',
    "no_rows.json": '{"format": "ftkit progress 1"}',
    "rows.json": '{"format": "ftkit progress 1", "exercises": {"a": {"tries": "many", "solved": null}}}',
    "deep.json": "[" * 200_000,
    "large.json": " " * (progress_command.LARGEST + 1),
}


def test_files_of_others_are_named_and_left_out(kept, tmp_path, capsys):
    folder = tmp_path / "class"
    folder.mkdir()
    code, _, error = run(capsys, "--collect", folder)
    assert code == 2 and "no .json file" in error
    for name, text in WRONG.items():
        (folder / name).write_text(text)
    run(capsys, "--export", folder / "ada.json")
    code, said, error = run(capsys, "--collect", folder)
    assert code == 1 and said.splitlines()[1].startswith("ada")
    assert len(error.splitlines()) == len(WRONG) and all(name in error for name in WRONG)


def test_a_name_cannot_command_the_terminal(kept, tmp_path, capsys):
    file = tmp_path / "ada.json"
    run(capsys, "--export", file)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"name": "\x1b[2JEve\n\x07" + "e" * 99}))
    assert progress_command.read_export(file)[0] == ("[2JEve" + "e" * 99)[:60]


def test_a_reset_sets_the_file_aside(kept, capsys):
    before = kept.read_text()
    code, said, _ = run(capsys, "--reset")
    assert code == 0 and not kept.exists()
    assert kept.with_name("progress.jsonl.before").read_text() == before and "progress.jsonl.before" in said


def test_flags_that_do_not_go_together_are_refused(kept, tmp_path):
    for arguments in (["--name", "Ada"], ["--reset", "--export", str(tmp_path / "x.json")]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["progress", *arguments])
        assert stop.value.code == 2


def test_without_platformdirs_it_is_named(monkeypatch, capsys):
    import sys

    monkeypatch.delenv(solved.VARIABLE)
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    code, _, error = run(capsys)
    assert code == 2 and "pip install 'ftkit[lab]'" in error
