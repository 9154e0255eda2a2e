"""Every chat template that TRL ships gives the findings of the table that was reviewed by hand."""

import json

import pytest
from trl.chat_template_utils import has_generation_markers, is_chat_template_stop_token_trained

from ftkit.chat import RULES, check_chat_template, finding_codes
from ftkit.chat import __main__ as command
from ftkit.conversations.rendering import MARKERS
from ftkit.models import data_dir
from tests.tiny import foreign_model, ragged_conversations

from . import shipped
from .cases import tokenizer

TABLE = json.loads((data_dir() / "chat_templates.json").read_text(encoding="utf-8"))
ROWS = TABLE["templates"]


def made(name: str):
    row = ROWS[name]
    return shipped.tokenizer_for(name, row["bos_token"], row["eos_token"])


def test_the_table_is_of_the_templates_that_are_installed():
    assert sorted(ROWS) == shipped.names(), f"reviewed with TRL {TABLE['trl']}: review what changed"


def test_every_finding_of_the_table_has_a_reason():
    for name, row in ROWS.items():
        for code, reason in row["findings"].items():
            assert code in RULES
            assert reason[0].isupper() and reason.endswith("."), (name, code)


@pytest.mark.parametrize("name", shipped.names())
def test_findings_are_those_reviewed(name):
    assert sorted(finding_codes(check_chat_template(made(name)))) == sorted(ROWS[name]["findings"])


@pytest.mark.parametrize("name", [n for n in shipped.names() if n.endswith("_training.jinja")])
def test_trl_agrees_that_its_training_templates_learn_the_stop_token(name):
    blocks = "wants-content-blocks" in ROWS[name]["findings"]
    if not blocks:  # TRL's check writes plain strings
        assert is_chat_template_stop_token_trained(made(name))
    assert "stop-not-in-loss" not in ROWS[name]["findings"]


def test_markers_are_found_where_trl_finds_them():
    marked = [name for name in shipped.names() if has_generation_markers(shipped.text(name))]
    assert marked == [name for name in shipped.names() if MARKERS.search(shipped.text(name))]
    assert 0 < len(marked) < len(shipped.names())


def test_the_command_reports_on_each_without_a_crash(tmp_path, monkeypatch, capsys):
    # With the foreign tokenizer, which lacks a BOS and most of their special tokens: the harder case.
    path, model = tmp_path / "rows.jsonl", foreign_model()
    path.write_text("".join(json.dumps(row) + "\n" for row in ragged_conversations(3)), encoding="utf-8")
    monkeypatch.setattr(command, "check_padding", lambda *_: [])  # the same model each time
    for name in shipped.names():
        its = tokenizer(shipped.text(name))
        monkeypatch.setattr(command, "load", lambda _, its=its: (model, its, []))
        assert command.main([name, str(path), "--json"]) in (0, 1)
        record = json.loads(capsys.readouterr().out)
        assert {f["code"] for f in record["findings"]} <= set(RULES)
