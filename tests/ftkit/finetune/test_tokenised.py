"""Large files: what several processes make of a file in parts is what one makes of it whole, once for all."""

import hashlib
import json
import multiprocessing
import os
import sys
import time
from dataclasses import replace

import psutil
import pytest

from ftkit.chat import examine
from ftkit.conversations import ConversationError, read_source
from ftkit.finetune import data, tokenised
from ftkit.finetune.config import Config
from ftkit.models import data_dir, load_tokenizer

TOKENIZER = load_tokenizer(data_dir() / "pocket-base")
LENGTH = 24  # tokens: some answers are cut off
ROWS = [json.loads(line) for line in (data_dir() / "chat" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
ROWS = [*ROWS[:60], ROWS[3], *ROWS[60:80], ROWS[3], {"messages": [{"role": "user", "content": "No answer?"}] * 2}]
ROWS[-1]["messages"][1] = {"role": "assistant", "content": ""}


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Parts of a few rows, and a cache of the test's own."""
    monkeypatch.setattr(tokenised, "LARGE", 1)
    monkeypatch.setattr(tokenised, "PART", 3000)
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))


def write(path, rows=ROWS, blank="\n"):
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines.insert(30, blank.strip("\n"))  # an empty line moves all numbers after it
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tokenise(path, tokenizer=TOKENIZER, max_length=LENGTH, positions=16):
    assert tokenised.is_large(path, tokenizer)
    return tokenised.tokenise(path, tokenizer, max_length, positions)


def whole(path, max_length=LENGTH, positions=16):
    source = read_source(path)
    return source, examine(TOKENIZER, source.rows, max_length, positions=positions, places=source.places)


def test_parts_say_and_hold_what_the_whole_does(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    assert len(tokenised.split(path)[0]) > 3
    found, (source, expected) = tokenise(path), whole(path)
    codes = {finding.code for finding in expected.findings}
    assert {"duplicate-example", "answer-cut-off", "positions-exceeded", "empty-answer"} <= codes
    assert found.findings == expected.findings
    examples = [{name: values[:LENGTH] for name, values in row.items()} for row in expected.examples]
    assert list(found.examples) == examples and len(found.examples) == len(examples)
    assert found.examples[-3:] == examples[-3:] and found.examples[-1] == examples[-1]
    with pytest.raises(IndexError):
        found.examples[len(examples)]
    assert found.quantiles == data.length_quantiles(expected.lengths)
    assert (found.format, found.notes) == (source.format, source.notes)
    one = data.TrainingData("", TOKENIZER, found.examples, [])
    assert one.digest == replace(one, train=examples).digest, "or no older run could be resumed"
    assert one.digest != replace(one, train=examples[::-1]).digest


def test_a_row_of_the_next_part_is_no_repetition_of_itself(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS[:60])
    assert "duplicate-example" not in {finding.code for finding in tokenise(path).findings}


def test_the_second_run_finds_the_tokens(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl")
    first = tokenise(path)
    monkeypatch.setattr(tokenised, "_build", None)  # fails if it is called
    second = tokenise(path)
    assert list(second.examples) == list(first.examples) and second.findings == first.findings
    elsewhere = tmp_path / "copy.jsonl"
    elsewhere.write_bytes(path.read_bytes())
    copied = tokenise(elsewhere)
    assert any(f"{elsewhere}:" in finding.observed for finding in copied.findings)
    assert not any(f"{path}:" in finding.observed for finding in copied.findings)


@pytest.mark.parametrize("change", ["content", "max_length", "positions", "template", "version"])
def test_whatever_the_tokens_depend_on_is_in_the_name(change, tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", ROWS[:20])
    tokenise(path)
    monkeypatch.setattr(tokenised, "_build", None)
    given = {"max_length": 23} if change == "max_length" else {"positions": 17} if change == "positions" else {}
    if change == "content":
        write(path, ROWS[1:21])
    if change == "template":
        given["tokenizer"] = load_tokenizer(data_dir() / "pocket-base")
        given["tokenizer"].chat_template += " "
    if change == "version":
        monkeypatch.setattr(tokenised, "FORMAT", -1)
    with pytest.raises(TypeError, match="NoneType"):
        tokenise(path, **given)


def test_a_bad_line_is_refused_by_its_number_and_nothing_is_kept(tmp_path):
    rows = [*ROWS[:50], {"messages": []}, *ROWS[50:]]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ConversationError) as ours:
        tokenise(path)
    with pytest.raises(ConversationError) as theirs:
        read_source(path)
    assert str(ours.value) == str(theirs.value) and f"{path}:52" in str(ours.value)
    assert not list((tmp_path / "cache").rglob(tokenised.ABOUT))
    path.write_bytes(path.read_bytes() + b'{"messages": "\xff"}\n')
    with pytest.raises(ConversationError, match=r"rows\.jsonl: not UTF-8 text"):
        tokenise(path)


@pytest.mark.parametrize("size", [1, 3000], ids=["a part of its own", "a part with others"])
def test_a_second_format_in_a_later_part_is_refused(size, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenised, "PART", size)
    path = write(tmp_path / "rows.jsonl", [*ROWS[:60], {"prompt": "Hi", "completion": "Hello."}])
    for read in (tokenise, read_source):
        with pytest.raises(
            ConversationError, match=r"rows\.jsonl:62: a row of prompt-completion, but .* is of messages"
        ):
            read(path)


def test_ranks_that_begin_together_tokenise_once(tmp_path, monkeypatch):
    path, built, build = write(tmp_path / "rows.jsonl", ROWS[:20]), tmp_path / "built", tokenised._build

    def noted(*given):
        with built.open("a") as file:
            file.write("x")
        build(*given)

    monkeypatch.setattr(tokenised, "_build", noted)
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=tokenise, args=(path,)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0] * 3 and built.read_text() == "x"


def test_processes_end_with_the_program_that_started_them(tmp_path, monkeypatch):
    path, begun = write(tmp_path / "rows.jsonl"), tmp_path / "begun"

    def wait(task, given):
        begun.write_text(str(os.getpid()))
        time.sleep(60)

    monkeypatch.setattr(tokenised.Task, "part", wait)
    program = multiprocessing.get_context("fork").Process(target=tokenise, args=(path,))
    program.start()
    wait_until(lambda: begun.exists() and begun.read_text())
    worker = psutil.Process(int(begun.read_text()))
    program.kill()
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def wait_until(happened, seconds=30) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_lines_and_bytes_of_the_parts_add_up(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    ranges, digest = tokenised.split(path)
    content = path.read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    assert b"".join(content[start:stop] for start, stop, _ in ranges) == content
    assert [line for *_, line in ranges] == [1 + content[:start].count(b"\n") for start, *_ in ranges]
    assert all(content[start - 1 : start] in (b"", b"\n") for start, *_ in ranges)


def test_the_program_reads_a_large_file_so(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "rows.jsonl", ROWS[:40])
    config = Config(output="", max_length=LENGTH, allow="answer-cut-off,all-labels-masked")
    large = data.read_examples(path, TOKENIZER, config, None)
    said = capsys.readouterr().out
    monkeypatch.setattr(tokenised, "LARGE", 1 << 30)
    small = data.read_examples(path, TOKENIZER, config, None)
    assert isinstance(large, tokenised.TokenisedExamples) and list(large) == small
    assert capsys.readouterr().out == said


def test_other_files_are_read_as_before(tmp_path, monkeypatch):
    array = tmp_path / "rows.jsonl"
    array.write_text(json.dumps(ROWS[:3]))
    assert not tokenised.is_large(array, TOKENIZER) and not tokenised.is_large(tmp_path / "none.jsonl", TOKENIZER)
    path = write(tmp_path / "rows.jsonl")
    monkeypatch.setattr(sys, "platform", "win32")
    assert not tokenised.is_large(path, TOKENIZER)


def test_a_cache_that_cannot_be_written_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tokenised.tempfile, "gettempdir", lambda: str(tmp_path))
    assert tokenised.cache_dir().parent == tmp_path


def test_data_sets_used_longest_ago_leave_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenised, "KEPT", 2)
    for k in range(3):
        folder = tmp_path / str(k)
        folder.mkdir()
        (folder / tokenised.ABOUT).write_text("")
        os.utime(folder, (k, k))
    tokenised._keep_newest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
