"""Findings as values: compared, ordered, counted, printed and given to machines."""

import dataclasses
import json

import pytest

from ftkit.chat import RULES, as_records, finding_codes, has_errors, report_text
from ftkit.chat.findings import finding
from ftkit.findings import WIDTH

NOTE = finding("date-in-prompt", "it calls strftime_now")
WARNING = finding("no-pad-token", "tokenizer.pad_token is None")
ERROR = finding("no-template", "tokenizer.chat_template is empty")


def test_a_finding_is_a_value():
    assert finding("no-template", "x") == finding("no-template", "x") != finding("no-template", "y")
    assert repr(ERROR) == "error no-template: tokenizer.chat_template is empty"
    assert (ERROR.severity, ERROR.why, ERROR.remedy) == RULES["no-template"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        ERROR.code = "no-pad-token"


def test_only_errors_are_errors():
    assert has_errors([NOTE, WARNING, ERROR])
    assert not has_errors([NOTE, WARNING])
    assert not has_errors([])


def test_the_report_has_the_worst_first_and_each_once():
    text = report_text([NOTE, WARNING, ERROR, WARNING])
    heads = [line for line in text.splitlines() if not line.startswith(" ")]
    assert heads == [
        "error: no-template",
        "warning: no-pad-token",
        "note: date-in-prompt",
        "1 error, 1 warning, 1 note",
    ]
    assert report_text([]) == "0 errors, 0 warnings, 0 notes"


def test_the_report_is_whole_and_fits_a_terminal():
    long = finding("text-lost", "a very long text of many words " * 20 + "and " + "x" * 200)
    text = report_text([long])
    words = " ".join(text.split())
    for part in (long.observed, long.why, long.remedy):
        assert " ".join(part.split()) in words
    assert all(len(line) <= WIDTH or "x" * 200 in line for line in text.splitlines())


def test_records_are_json_with_every_field():
    records = json.loads(json.dumps(as_records([NOTE, ERROR])))
    assert [record["code"] for record in records] == finding_codes([ERROR, NOTE])
    assert all(list(record) == ["severity", "code", "observed", "why", "remedy"] for record in records)
