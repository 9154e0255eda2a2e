"""The LoRA comparison: plain TRL really runs on a CPU, what is missing is named, and a record says what it holds."""

import json
import sys

import pytest
import torch
from transformers import AutoTokenizer

from experiments.lora_speed import __main__
from ftcourse.studies import lora_speed
from ftkit import load_base
from ftkit.loss import IGNORE_INDEX
from tests.tiny import ragged_conversations, save_foreign


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with a foreign model, and a file of ragged conversations."""
    folder = tmp_path_factory.mktemp("own")
    data = folder / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ragged_conversations()), encoding="utf-8")
    return save_foreign(folder / "qwen"), data


@pytest.fixture(scope="module")
def recorded(own, tmp_path_factory):
    """The text of the record that the command wrote for plain TRL on this CPU: 4 steps of 2 rows of 32 tokens."""
    folder, data = own
    out = tmp_path_factory.mktemp("results") / "record.json"
    sizes = ["--length", "32", "--batch-size", "2", "--steps", "3", "--warm-up", "1"]
    where = ["--device", "cpu", "--contenders", "trl", "--out", str(out)]
    assert __main__.main(["--model", str(folder), "--data", str(data), *sizes, *where]) == 0
    return out.read_text()


def played():
    """A record of a machine that never was: a test's, and nothing else's."""
    shared = {"device": "a played device", "versions": {"trl": "0", "unsloth": None}}
    seconds = {"trl": [9.0, 2.0, 4.0, 3.0], "liger": [9.0, 1.0, 2.0, 6.0], "unsloth": [9.0, 1.5, 1.5, 1.0]}
    gaps = {"trl": 0.0, "liger": 0.01, "unsloth": -0.2}
    contenders = {
        name: {
            "seconds": times,
            "losses": [3.0, 2.0, 1.0, 0.5 + gaps[name]],
            "peak_bytes": {"trl": 4, "liger": 3, "unsloth": 1}[name] * 2**30,
            "gradient_checkpointing": "True",
            **shared,
        }
        for name, times in seconds.items()
    }
    sizes = {"length": 8, "batch_size": 2, "steps": 3, "warm_up": 1}
    return {"date": "1970-01-01", "settings": {"model": "m", "r": 16, **sizes}, "contenders": contenders}


def test_rows_are_the_conversations_in_a_row_and_again(own):
    folder, data = own
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = __main__.blocks(data, tokenizer, 48, 40)
    assert [len(row[key]) for row in made for key in ("input_ids", "labels")] == [48] * 80
    ids = [i for row in made for i in row["input_ids"]]
    once = [
        i
        for row in ragged_conversations()
        for i in tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
    ]
    assert ids[: len(once)] == once and ids[len(once) : 2 * len(once)] == once
    assert all(row["labels"][0] == IGNORE_INDEX for row in made)
    pairs = [pair for row in made for pair in zip(row["labels"], row["input_ids"], strict=True)]
    assert all(label in (i, IGNORE_INDEX) for label, i in pairs) and any(label == i for label, i in pairs)


def test_a_row_with_nothing_to_learn_is_left_out(own, monkeypatch):
    folder, data = own
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = __main__.blocks(data, tokenizer, 8, 60)
    assert all(any(label != IGNORE_INDEX for label in row["labels"]) for row in made)
    whole = __main__.blocks(data, tokenizer, 200, 3)  # no row of these lacks one: the text as it stands
    assert [i for row in made for i in row["input_ids"]] != [i for row in whole for i in row["input_ids"]][:480]
    monkeypatch.setattr(__main__, "TRIES", 0)
    with pytest.raises(__main__.BenchError, match="larger --length"):
        __main__.blocks(data, tokenizer, 8, 60)


def test_plain_trl_runs_in_a_process_of_its_own_and_writes_every_step(own, recorded):
    record = json.loads(recorded)
    found = record["contenders"]["trl"]
    assert len(found["seconds"]) == len(found["losses"]) == 4
    assert min(found["seconds"]) > 0 and found["peak_bytes"] is None and found["device"] == "cpu"
    assert found["versions"]["torch"] == torch.__version__ and found["versions"]["unsloth"] is None
    # r × (rows + columns) of each target: three blocks of q, k, v, o and the MLP's three, see tests/tiny.py.
    shapes = [(64, 32), (32, 32), (32, 32), (32, 64), (48, 32), (48, 32), (32, 48)]
    assert found["trained_parameters"] == 3 * 16 * sum(map(sum, shapes))
    assert record["settings"]["model"] == "qwen"
    assert str(own[0]) not in recorded, "a record shows no path of the machine"


def test_the_first_loss_is_that_of_the_model_before_training(own, recorded):
    folder, data = own
    rows = __main__.blocks(data, AutoTokenizer.from_pretrained(folder), 32, 2)
    model = load_base(folder)[0].float()
    batch = {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
    # Two paths to a float32 mean over some thirty tokens, of which six digits are left.
    first = json.loads(recorded)["contenders"]["trl"]["losses"][0]
    assert first == pytest.approx(model(**batch).loss.item(), rel=1e-4)
    batch["labels"] = batch["labels"].roll(1, dims=1)
    assert first != pytest.approx(model(**batch).loss.item(), rel=1e-4), "other labels, another loss"


def ready(contenders, device="cuda", **pythons):
    __main__.check_ready(contenders, device, dict.fromkeys(contenders, sys.executable) | pythons)


def test_no_cuda_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(__main__.BenchError, match=r"no CUDA device.*--device cpu"):
        ready(["trl"])
    with pytest.raises(__main__.BenchError, match="liger, unsloth: these kernels"):
        ready(["trl", "liger", "unsloth"], device="cpu")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("liger", r"pip install .*\[gpu\]"), ("unsloth", "unsloth.txt, then --unsloth-python")],
)
def test_a_missing_package_is_named_with_its_remedy(name, remedy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(__main__.NEEDS, name, ("json", "a_package_that_is_not_there"))
    with pytest.raises(__main__.BenchError, match=rf"has no a_package_that_is_not_there: .*{remedy}"):
        ready([name])


def test_a_python_that_does_not_run_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(__main__.BenchError, match="nowhere/python is no Python that runs"):
        ready(["unsloth"], unsloth="nowhere/python")


def test_the_command_ends_with_1_and_writes_nothing_where_it_cannot_measure(own, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "record.json"
    assert __main__.main(["--model", str(own[0]), "--out", str(out)]) == 1
    assert "no CUDA device" in capsys.readouterr().err and not out.exists()


def test_a_cpu_never_writes_the_record_of_a_gpu(own, capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--model", str(own[0]), "--device", "cpu", "--contenders", "trl"])
    assert "name a file with --out" in capsys.readouterr().err


def test_a_contender_that_fails_shows_its_last_lines(own, tmp_path):
    folder, data = own
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nseq 40\necho no kernel for this device >&2\nexit 3\n")
    python.chmod(0o755)
    settings = __main__.Settings("", str(folder), "", "cpu", length=32, batch_size=1, steps=1, warm_up=0)
    with pytest.raises(__main__.BenchError, match=r"(?s)trl failed with exit status 3:\n22\n.*no kernel for"):
        __main__.measure(settings, ["trl"], {"trl": str(python)}, data)


def test_a_record_is_read_as_medians_after_the_warm_up():
    record = played()
    assert [lora_speed.step_seconds(record, name) for name in record["contenders"]] == [3.0, 2.0, 1.5]
    assert [lora_speed.speed_up(record, name) for name in record["contenders"]] == [1.0, 1.5, 2.0]
    assert lora_speed.memory_ratio(record, "unsloth") == 0.25
    assert lora_speed.loss_gap(record, "liger") == pytest.approx(0.01)
    record["settings"]["warm_up"] = 0  # with it, other medians
    assert lora_speed.step_seconds(record, "trl") == 3.5


def test_the_table_says_where_when_and_what():
    text = lora_speed.table(played())
    for part in ("a played device, 1970-01-01: m", "Unsloth             1.5000", "2.00×", "1.00", "0.2000"):
        assert part in text
    assert "unsloth None" not in text
    alone = played()
    del alone["contenders"]["trl"]
    assert "2.00×" not in lora_speed.table(alone), "nothing to compare with"


def test_data_that_is_not_there_is_said_and_not_raised(own, tmp_path, capsys):
    where = ["--device", "cpu", "--contenders", "trl", "--out", str(tmp_path / "record.json")]
    assert __main__.main(["--model", str(own[0]), "--data", str(tmp_path / "none.jsonl"), *where]) == 1
    assert "none.jsonl" in capsys.readouterr().err


def test_without_a_file_there_is_no_record(tmp_path):
    assert lora_speed.read_record(tmp_path / "gpu_lora.json") is None
    (tmp_path / "gpu_lora.json").write_text(json.dumps(played()))
    assert lora_speed.read_record(tmp_path / "gpu_lora.json") == played()
