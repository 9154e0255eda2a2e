"""A restart of one launch is told from another launch."""

import pytest

from ftkit.distributed.launch import is_same_launch, launch_id


@pytest.fixture
def launched(monkeypatch):
    def set_to(run: str | None, machines: str = "1"):
        for name, value in (("TORCHELASTIC_RUN_ID", run), ("GROUP_WORLD_SIZE", machines)):
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return set_to


def test_without_torchrun_nothing_belongs(launched, tmp_path):
    launched(None)
    assert launch_id() == ""
    (tmp_path / "launch").write_text("")
    assert not is_same_launch(tmp_path)


def test_the_same_rendezvous_id_is_the_same_launch_on_any_number_of_machines(launched, tmp_path):
    launched("job-7", "4")
    (tmp_path / "launch").write_text(launch_id())
    assert is_same_launch(tmp_path)
    launched("job-8", "4")
    assert not is_same_launch(tmp_path) and not is_same_launch(tmp_path / "none")


def test_without_an_id_it_is_the_torchrun_process(launched, tmp_path):
    launched("none")
    (tmp_path / "launch").write_text(launch_id())
    assert is_same_launch(tmp_path)  # this process still has the same parent
    (tmp_path / "launch").write_text("torchrun since 1.0")
    assert not is_same_launch(tmp_path)
    launched("none", "2")  # whose torchrun? they differ from machine to machine
    assert launch_id() == ""
