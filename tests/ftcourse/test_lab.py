"""`ftkit lab`: where JupyterLab listens, and what is said about it."""

import sys

import pytest

from ftcourse import cli, lab


@pytest.fixture
def called(monkeypatch):
    """The command lines that would start JupyterLab."""
    commands = []
    monkeypatch.setattr(lab.subprocess, "call", lambda command: commands.append(command) or 0)
    monkeypatch.setattr(lab.subprocess, "run", lambda *_, **__: None)
    return commands


def test_lab_listens_where_it_is_told_and_keeps_its_token(tmp_path, called, capsys):
    assert cli.main(["lab", str(tmp_path), "--port", "9999", "--no-browser"]) == 0
    (command,) = called
    assert command[:4] == [sys.executable, "-m", "jupyter", "lab"] and (tmp_path / lab.FIRST).exists()
    assert {"--ServerApp.ip=127.0.0.1", "--ServerApp.port=9999", "--ServerApp.open_browser=False"} <= set(command)
    assert f"--ServerApp.root_dir={tmp_path}" in command
    assert capsys.readouterr().err == ""


def test_lab_for_other_machines_keeps_its_token_and_says_what_that_means(tmp_path, called, capsys):
    assert cli.main(["lab", str(tmp_path), "--ip", "0.0.0.0", "--port", "9999"]) == 0
    (command,) = called
    assert "--ServerApp.ip=0.0.0.0" in command
    assert not any(word in argument for argument in command for word in ("token", "password", "IdentityProvider"))
    said = capsys.readouterr().err
    assert all(word in said for word in ("--ip 0.0.0.0", "not encrypted", "ssh -N -L 9999:127.0.0.1:9999"))


@pytest.mark.parametrize(
    ("ip", "exposed"),
    [
        *(("127.0.0.1", False), ("127.8.8.8", False), ("::1", False), ("localhost", False)),
        *(("0.0.0.0", True), ("::", True), ("*", True), ("", True), ("10.0.0.7", True), ("gpu-box", True)),
    ],
)
def test_only_addresses_of_this_machine_alone_go_without_a_warning(ip, exposed):
    assert bool(lab.exposure_warning(ip, 8888)) is exposed


def test_the_help_explains_the_tunnel(capsys):
    with pytest.raises(SystemExit):
        cli.main(["lab", "--help"])
    assert "ssh -N -L 8888:127.0.0.1:8888" in capsys.readouterr().out


def test_lab_without_its_extra_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jupyterlab", None)
    assert cli.main(["lab", str(tmp_path / "new")]) == 2
    assert "pip install 'ftkit[lab]'" in capsys.readouterr().err and not (tmp_path / "new").exists()
