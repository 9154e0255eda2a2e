"""The command `ftkit`."""

import gc
import subprocess

import pytest

from ftcourse import cli, copying
from tests.warm import COLD


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    said = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(name in said and text in " ".join(said.split()) for name, (_, text) in cli.COMMANDS.items())


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_its_own_help_under_its_own_name(capsys, name):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith(f"usage: ftkit {name} ")


@pytest.mark.thorough
@pytest.mark.parametrize("module", [["ftcourse.cli", "finetune"], ["ftkit.finetune"]], ids=" ".join)
def test_a_command_ends_without_a_word_on_leaks(module):
    """Triton's bindings, where it is installed, count what they made when the interpreter ends."""
    done = subprocess.run([COLD, "-m", *module, "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""


def test_garbage_is_collected_while_a_command_runs(monkeypatch):
    seen = []
    monkeypatch.setattr("ftkit.chat.talk.main", lambda arguments: seen.append(gc.isenabled()))
    assert cli.main(["chat-with"]) == 0 and seen == [True]


@pytest.mark.parametrize(
    ("command", "said"), [("finetun", "did you mean finetune?"), ("zzz", "finetune, chat, chat-with, memory, merge")]
)
def test_an_unknown_command_is_answered_with_the_nearest(capsys, command, said):
    with pytest.raises(SystemExit) as stop:
        cli.main([command])
    assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["finetune", "--output", "x", "--lerning_rate", "1"], "unrecognized arguments: --lerning_rate"),
        (["finetune", "--output", "x", "--reserve_q", "1"], "did you mean --reserve_p?"),
        (["chat", "m", "d", "--max_lenght", "9"], "did you mean --max_length?"),
        (["memory", "--mehs", "1,1,1"], "did you mean --mesh?"),
        (["lab", "--prot", "9"], "did you mean --port?"),
        (["machine", "--jsno"], "unrecognized arguments: --jsno"),
    ],
)
def test_a_mistyped_flag_is_answered_with_the_nearest(capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_notebooks_are_copied_once_and_never_overwritten(tmp_path, capsys):
    folder = tmp_path / "mine"
    assert cli.main(["notebooks", str(folder)]) == 0
    notebooks = sorted(folder.glob("*.ipynb"))
    assert [path.name for path in notebooks] == sorted(p.name for p in copying.source_dir().glob("*.ipynb"))
    notebooks[0].write_text("my own work")
    notebooks[1].unlink()
    assert cli.main(["notebooks", str(folder)]) == 0
    assert notebooks[0].read_text() == "my own work" and notebooks[1].exists()
    assert f"1 notebooks copied, {len(notebooks) - 1} that were there" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["notebooks", str(tmp_path / "file")]) == 2
    assert "give another folder" in capsys.readouterr().err
