"""Reading data sets: each kind of file and name, places of rows, and errors that name the line and a remedy."""

import gzip
import json
import pickle
import time
import zipfile

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit.conversations import ConversationError, files, find_chat, load_chat, read_conversations, read_source
from tests.tiny import foreign_tokenizer, ragged_conversations

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def called(arguments, **other):
    """A conversation with a tool call."""
    call = {"type": "function", "function": {"name": "tide", "arguments": arguments}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {
        "messages": [GOOD["messages"][0], answer, {"role": "tool", "content": "high"}, GOOD["messages"][1]],
        **other,
    }


def error_of(path):
    with pytest.raises(ConversationError) as error:
        read_source(path)
    return str(error.value)


def test_good_lines_blank_lines_and_other_keys_are_read(tmp_path):
    rows = [GOOD, {**GOOD, "source": "x"}, *ragged_conversations()]
    path = write(tmp_path / "a.jsonl", rows[0], "", *rows[1:], "")
    source = read_source(path)
    assert source.rows == read_conversations(path) == rows
    assert source.places[:3] == [f"{path}:{k}" for k in (1, 3, 4)]
    assert (source.format, source.notes) == ("messages", [])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "array.json", "array.jsonl", "array.json.gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "bom"])
def test_json_files_with_and_without_a_mark_and_compression(tmp_path, name, mark):
    rows = [GOOD, {**GOOD, "source": "é\u2028"}]
    indented = json.dumps(rows, indent=1)
    text = mark + (indented if name.startswith("array") else "\n".join(json.dumps(row) for row in rows))
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    source = read_source(path)
    assert source.rows == rows
    assert source.places[1] == (f"{path}: row 2" if name.startswith("array") else f"{path}:2")


def test_one_object_over_several_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(GOOD, indent=1))
    assert read_source(path).rows == [GOOD]
    path.write_text(json.dumps({"data": [GOOD]}, indent=1))
    assert 'under "data"' in error_of(path)
    path.write_text(json.dumps(GOOD, indent=1) * 2)
    assert "not JSON" in error_of(path) and "one object per line" in error_of(path)
    assert error_of(write(path, GOOD, "{", "}", "{")).count("not JSON") == 3  # then each line is one of its own


def test_what_was_converted_is_noted_once(tmp_path):
    source = read_source(write(tmp_path / "a.jsonl", SHAREGPT, SHAREGPT))
    assert source.rows == [GOOD, GOOD] and source.format == "ShareGPT"
    assert source.notes == ["converted from ShareGPT: human → user, gpt → assistant"]
    source = read_source(write(tmp_path / "b.jsonl", {"text": "The tide."}))
    assert (source.rows, source.format) == ([{"text": "The tide."}], "text")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"messages": [', ("not JSON", "column", "Write {")),
        ('{"messages": []} {}', ("more text", "Write {")),
        ('"text"', ("not an object", "Write {")),
        ({"prompts": "x"}, ("no known format", '"prompts"', "The formats are", "Alpaca: {")),
        ({"messages": []}, ("empty", "Write {")),
        (SHAREGPT, ("a row of ShareGPT", "bad.jsonl:1 is of messages", "its own file")),
        ('{"messages": [], "messages": []}', ("the key 'messages' stands twice", "keep one")),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', ("the key 'content'", "keep one")),
        ('{"messages": [], "score": NaN}', ("NaN is not a finite number",)),
        ('{"messages": [], "score": -1e999}', ("-1e999 is not a finite number",)),
        (f'{{"messages": [], "n": {"1" * 5000}}}', ("not JSON that Python reads",)),
        ('{"messages": [{"role": "user", "content": "a \\uD83d b"}]}', ("a lone surrogate, \\ud83d",)),
        ('{"messages": [{"role": "user", "\\udc00": "a"}]}', ("a lone surrogate, \\udc00",)),
        (f'{{"messages": {"[" * 100000}', ("nested more than 100 levels",)),
        (f'{{"messages": {"[" * 101}{"]" * 101}}}', ("nested more than 100 levels",)),
        (f'{{"messages": {"[" * 600}"\\ud800"{"]" * 600}}}', ("nested more than 100 levels",)),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_remedy(tmp_path, line, said):
    error = error_of(write(tmp_path / "bad.jsonl", GOOD, line, GOOD))
    assert error.startswith(f"{tmp_path}/bad.jsonl:2: ")
    assert all(part in error for part in said), error
    assert error_of(write(tmp_path / "bad.json", "[", json.dumps(GOOD), ",", line, "]")).split(": ")[1] == "row 2"


def test_what_looks_bad_and_is_not(tmp_path):
    emoji, deep = '{"messages": [{"role": "assistant", "content": "\\ud83d\\ude00"}]}', {}
    for _ in range(95):
        deep = {"a": deep}
    rows = read_conversations(
        write(tmp_path / "a.jsonl", emoji, {**GOOD, "other": deep}, {**GOOD, "other": [[]] * 300})
    )
    assert rows[0]["messages"][0]["content"] == "😀" and rows[1]["other"] == deep


def test_many_bad_lines_are_counted(tmp_path):
    error = error_of(write(tmp_path / "b.jsonl", *["nope"] * 9))
    assert error.count("not JSON") == 5 and "and 4 more bad rows" in error


def test_files_that_are_not_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data file"):
        read_conversations(tmp_path / "none.jsonl")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a.jsonl", json.dumps(GOOD))
    for name, content, said in [
        ("empty.jsonl", b"", "no conversations"),
        ("blank.jsonl", b"\n \r\n\n", "no conversations"),
        ("array.json", b"[]", "no conversations"),
        ("open.json", b"[", "row 1: not JSON"),
        ("comma.json", b"[{} {}]", "row 1: not JSON (no comma"),
        ("arrays.jsonl", b"[]\n[]", "more text after the array"),
        ("latin.jsonl", '{"messages": "é"}'.encode("latin-1"), "UTF-8"),
        ("utf16.jsonl", json.dumps(GOOD).encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        ("binary.jsonl", bytes(range(256)), "not UTF-8"),
        ("a.pkl", pickle.dumps([GOOD]), "a pickle"),
        ("a.zip", (tmp_path / "zip").read_bytes(), "a zip archive: unpack it"),
        ("a.csv", b"prompt,completion\nq,a\n", "a table of CSV"),
        ("a.arrow", b"ARROW1\0\0", "Dataset.to_parquet"),
        ("cut.jsonl.gz", gzip.compress(json.dumps(GOOD).encode())[:-12], "gzip data are damaged"),
        ("bad.jsonl.gz", b"\x1f\x8b\x08\0nonsense and more of it", "gzip data are damaged"),
        ("bad.parquet", b"PAR1 nonsense", "cannot be read as Parquet"),
    ]:
        (tmp_path / name).write_bytes(content)
        error = error_of(tmp_path / name)
        assert error.startswith(f"{tmp_path}/{name}") and said in error and "\n" not in error, error


def test_parquet_is_read_without_the_nulls_that_arrow_fills_in(tmp_path):
    rows = [called({"harbour": "north"}, n=1, tools=None), called({"city": "west"}, n=None, tools='[{"name": "t"}]')]
    path = tmp_path / "a.parquet"
    plain = datasets.Dataset.from_list(rows)
    plain.to_parquet(path)
    assert plain[0]["messages"][0]["tool_calls"] is None  # what is to be removed
    source = read_source(path)
    assert [row["messages"] for row in source.rows] == [row["messages"] for row in rows]
    assert "content" in source.rows[0]["messages"][1]
    assert source.rows[1]["tools"] == [{"name": "t"}] and source.rows[1]["n"] is None
    assert source.places == [f"{path}: row 1", f"{path}: row 2"]
    load_chat(write(tmp_path / "b.jsonl", *rows))["train"].to_parquet(path)
    assert [row["messages"] for row in read_conversations(path)] == [row["messages"] for row in rows]
    datasets.Dataset.from_list([{"messages": [{"role": "user"}]}]).to_parquet(path)
    assert error_of(path).startswith(f"{path}: row 1: message 0 (user) has no text")


def test_folders_of_splits_and_shards(tmp_path):
    folder = tmp_path / "chats"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no data file in .* holds no \.jsonl"):
        find_chat(folder)
    for k in (0, 1):
        row = {"messages": [*GOOD["messages"], {"role": "user", "content": str(k)}]}
        datasets.Dataset.from_list([row]).to_parquet(folder / f"train-{k:05}-of-00002-ab{k}.parquet")
    (folder / "validation.jsonl.gz").write_bytes(gzip.compress(json.dumps(SHAREGPT).encode()))
    write(folder / "test.json", [GOOD])
    write(folder / "dataset_infos.json", "{}")
    write(folder / "README.md", "x")
    files = find_chat(folder)
    assert list(files) == ["test", "train", "validation"]
    source = read_source(files["train"])
    assert [row["messages"][2]["content"] for row in source.rows] == ["0", "1"]
    assert source.places[1] == f"{folder}/train-00001-of-00002-ab1.parquet: row 1"
    assert read_source(folder).rows == source.rows
    assert read_source(folder).notes == [f"read the split train of {folder}, not test, validation"]
    chats = load_chat(folder)
    assert {k: len(rows) for k, rows in chats.items()} == {"test": 1, "train": 2, "validation": 1}
    (folder / "train-00000-of-00002-ab0.parquet").unlink()
    with pytest.raises(ConversationError, match=r"the split train is train-00001.*all its shards"):
        find_chat(folder)
    (folder / "train-00001-of-00002-ab1.parquet").rename(folder / "test.parquet")
    with pytest.raises(ConversationError, match=r"the split test is test\.json, test\.parquet"):
        find_chat(folder)
    (folder / "test.parquet").unlink()
    assert "test, validation and no train" in error_of(folder)
    (folder / "validation.jsonl.gz").unlink()
    assert read_source(folder).rows == [GOOD]
    (tmp_path / "data").mkdir()
    (folder / "test.json").rename(tmp_path / "data" / "train.json")
    assert find_chat(tmp_path) == {"train": tmp_path / "data" / "train.json"}
    single = (tmp_path / "data" / "train.json").rename(tmp_path / "data" / "train-00000-of-00001.json")
    assert find_chat(tmp_path) == {"train": single}


def test_the_environment_names_the_data(tmp_path, monkeypatch):
    assert list(find_chat()) == ["heldout_domains", "test", "train"]
    path = write(tmp_path / "mine.jsonl", GOOD)
    monkeypatch.setenv("FTKIT_DATA", str(tmp_path))
    assert find_chat() == {"mine": path}
    assert find_chat(path) == {"train": path}


def test_data_sets_of_the_hub_are_streamed(monkeypatch, tmp_path):
    asked = []
    rows = {"test_sft": [GOOD], "train": [{"messages": [{**GOOD["messages"][1], "name": None}], "n": None}]}

    def load_dataset(name, config=None, split=None, **options):
        asked.append((name, config, split))
        assert options == {"streaming": True, "trust_remote_code": False}
        if name == "a/missing":
            raise datasets.exceptions.DatasetNotFoundError("no such data set\nand more")
        streams = {k: datasets.Dataset.from_list(v).to_iterable_dataset() for k, v in rows.items()}
        return streams[split] if split else datasets.IterableDatasetDict(streams)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    assert find_chat("a/b") == {"test_sft": "a/b:test_sft", "train": "a/b:train"}
    source = read_source("a/b")
    assert source.rows == [{"messages": [GOOD["messages"][1]], "n": None}]
    assert source.places == ["a/b:train: row 1"] and source.notes == ["read the split train of a/b, not test_sft"]
    assert read_source("a/b:all:test_sft").rows == [GOOD] and asked[-1] == ("a/b", "all", "test_sft")
    assert find_chat("a/b:test_sft") == {"train": "a/b:test_sft"}
    assert len(load_chat("a/b")["test_sft"]) == 1
    with pytest.raises(FileNotFoundError, match=r"a/missing: there is no such file .*no such data set\)\. Give"):
        read_source("a/missing")
    rows["train"] = [{"question": "q", "answer": "a"}]
    assert error_of("a/b:train").startswith("a/b:train: row 1: ")
    asked.clear()
    (tmp_path / "a" / "b").mkdir(parents=True)
    write(tmp_path / "a" / "b" / "train.jsonl", GOOD)
    assert read_source("a/b").rows == [GOOD] and not asked  # what lies here is not looked for on the hub
    with pytest.raises(FileNotFoundError, match="no data file"):
        read_source("a/none.jsonl")
    assert not asked


def test_the_hub_is_asked_as_datasets_wants_it(tmp_path):
    """`load_dataset` itself, on a folder laid out like a repository of the hub."""
    for split in ("train", "test"):
        datasets.Dataset.from_list([called({"harbour": split}), GOOD]).to_parquet(tmp_path / f"{split}.parquet")
    assert set(files.open_hub(str(tmp_path))) == {"train", "test"}
    (place, row), _ = files._hub_rows(f"{tmp_path}:default:test")
    assert place == f"{tmp_path}:default:test: row 1" and row == called({"harbour": "test"})
    with pytest.raises(FileNotFoundError, match=r"hub gives no such data set.*nowhere"):
        files.open_hub(f"{tmp_path}:nowhere")


def test_a_stream_that_breaks_off_is_named(monkeypatch):
    def broken():
        yield GOOD
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: broken())
    assert "reading from the hub failed (ConnectionError: reset by peer)" in error_of("a/b:train")


def as_text(messages):
    """All that a template can see."""
    return foreign_tokenizer().apply_chat_template(messages, tokenize=False, chat_template="{{ messages | tojson }}")


@pytest.mark.parametrize(
    "rows",
    [
        [called({"harbour": "north"}), called({"city": None})],
        [called({"harbour": "north"}), called('{"harbour": "north"}'), called([1, "a", None])],
        [called({"at": 51.507351, "n": 1.0, "big": 2**63, "text": "12"}, tools=[{"name": "a"}, {"type": "b"}])],
        [GOOD, {"messages": [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}]}],
        [GOOD, called({}, tools=[], chat_template_kwargs={"enable_thinking": False})],
        [{**GOOD, "n": 1}, {**GOOD, "n": "a", "late": True}],
    ],
)
def test_load_chat_gives_the_messages_of_the_file(tmp_path, rows):
    path = write(tmp_path / "a.jsonl", *rows)
    loaded = load_chat(path)["train"]
    for k, row in enumerate(rows):
        assert as_text(loaded[k]["messages"]) == as_text(row["messages"])
        assert {key: loaded[k][key] for key in row} == row
    assert "late" not in rows[-1] or loaded["late"] == [None, True]


def test_load_chat_keeps_plain_messages_an_ordinary_column_and_refuses_what_it_would_change(tmp_path):
    plain = load_chat(write(tmp_path / "a.jsonl", GOOD, GOOD))["train"]
    assert plain.features == datasets.Dataset.from_list([GOOD]).features
    for value in (2**70, 0.1234567890123456789):
        path = write(tmp_path / "b.jsonl", GOOD, called({"n": value}))
        assert read_conversations(path)[1] == called({"n": value})
        with pytest.raises(ConversationError, match=r"b\.jsonl:2: a Dataset cannot store its messages exactly"):
            load_chat(path)
    with pytest.raises(ConversationError, match=r"b\.jsonl:1 and the rows after it cannot be a Dataset"):
        load_chat(write(tmp_path / "b.jsonl", {**GOOD, "n": 2**70}))


NAMES = ["messages", "conversations", "prompt", "completion", "instruction", "output", "text", "tools", "functions"]
PARTS = ["role", "content", "from", "value", "tool_calls", "function_call", "function", "name", "arguments", "type"]
WORDS = ["user", "assistant", "function", "human", "gpt", "function_call", "text", "tide", "{}", "[1]"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(PARTS) | st.text(), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3) | VALUES
quickly = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.thorough
@quickly
@given(rows=st.lists(ROWS, min_size=1, max_size=3), array=st.booleans())
def test_any_json_is_read_or_refused(tmp_path, rows, array):
    path = (
        write(tmp_path / "a.json", rows) if array else write(tmp_path / "a.jsonl", *(json.dumps(row) for row in rows))
    )
    try:
        assert len(read_source(path).rows) == len(rows)
        load_chat(path)
    except ConversationError as error:
        assert str(error).startswith(str(path))


@quickly
@given(
    head=st.sampled_from([b"", b"[", b"{", b"\x1f\x8b", b"\x1f\x8b\x08\0", b"\xef\xbb\xbf", b"PAR1"]), tail=st.binary()
)
def test_any_bytes_are_refused(tmp_path, head, tail):
    (tmp_path / "a.json").write_bytes(head + tail)
    assert error_of(tmp_path / "a.json").startswith(f"{tmp_path}/a.json")


def test_large_files_are_read_quickly(tmp_path):
    many = write(tmp_path / "many.jsonl", *[GOOD | {"source": "x" * 200}] * 5000)
    long = write(
        tmp_path / "long.jsonl", {"messages": [*GOOD["messages"], {"role": "user", "content": "a" * 20_000_000}]}
    )
    turns = write(tmp_path / "turns.jsonl", {"messages": GOOD["messages"] * 100_000})
    for path, seconds in ((many, 0.5), (long, 2), (turns, 2)):
        start = time.process_time()
        read_source(path)
        assert time.process_time() - start < seconds, path
