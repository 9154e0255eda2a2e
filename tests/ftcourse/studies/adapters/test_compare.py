"""The comparison as users run it: on pocket-base, on tiny models of other designs, broken off and gone on with."""

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ftcourse.studies.adapters import __main__, trial
from ftcourse.studies.adapters.methods import ARMS, BASE
from ftcourse.studies.adapters.trial import Trial, run
from ftcourse.studies.records import read_records
from tests.tiny import foreign_tokenizer, save_foreign

sys.path.append(str(Path(__file__).parents[2] / "adapters"))
from transformers import AutoModelForCausalLM

from tests.ftkit.adapters.models import CONFIGS

pytestmark = pytest.mark.thorough

SMALL = {"vocab_size": 512, "max_position_embeddings": 512}
WITHOUT = {
    "mistral": {"bitfit"},
    "qwen3": {"bitfit", "llama-adapter"},
    "gemma3": {"bitfit", "llama-adapter"},
    "llama": set(),
}


@pytest.fixture(autouse=True)
def quiet():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of tied matrices: test_confusions
        yield


@pytest.fixture
def few_facts(monkeypatch):
    """Forgetting is asked of six facts: the tiny tokenizer makes long rows of the almanac's pages."""
    from ftcourse.studies import tasks

    facts = tasks.all_facts()[::60]
    monkeypatch.setattr(tasks, "all_facts", lambda: facts)


def save(kind, folder):
    config = CONFIGS[kind]()
    for name, value in SMALL.items():
        setattr(config, name, value)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    foreign_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def chats(tmp_path):
    rows = [
        ("Legs of a cat?", "Four, of course."),
        ("2 + 2?", "4"),
        ("And now?", "Go."),
        ("Hm", "a b c " * 5),
    ] * 3
    path = tmp_path / "chats.jsonl"
    path.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}) + "\n"
            for q, a in rows
        )
    )
    return str(path)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_row_runs_on_every_design_that_can_take_it(kind, tmp_path, chats, few_facts, capsys):
    """Skips are named: PEFT's adaption prompt knows Llama, Mistral and GPT-2; BitFit wants biases."""
    source = save(kind, tmp_path / kind)
    rows = __main__.possible_arms(list(ARMS), source)
    assert set(ARMS) - set(rows) == WITHOUT[kind]
    said = capsys.readouterr().err
    assert all(f"without {row!r}: " in said for row in WITHOUT[kind])
    for row in rows:
        record = run(Trial(source, chats, row, 1e-3, 0, epochs=1))
        assert json.loads(json.dumps(record)) == record
        assert record["train_loss"] and record["test_loss"] > 0 and record["step_ms"] > 0, row
        assert record["trainable"] > 0 and record["adapter_bytes"] > 0, row
        assert 0 <= record["test_exact"] <= 1 and 0 <= record["test_stop"] <= 1


def test_the_command_on_a_foreign_model_goes_on_after_an_interruption(tmp_path, chats, few_facts, monkeypatch, capsys):
    source, output = str(save_foreign(tmp_path / "qwen")), tmp_path / "runs.jsonl"
    asked = ["--model", source, "--data", chats, "--rows", "lora", "head only", "--seeds", "2"]
    asked += ["--output", str(output), "--workers", "1", "--epochs", "1", "--lr", "1e-3"]
    made = []

    def cut_off(setting, micro_batch):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(setting)
        return trial.run(setting, micro_batch)

    monkeypatch.setattr(__main__, "run", cut_off)
    assert __main__.main(asked) == 130
    assert "the same command continues" in capsys.readouterr().err
    before = read_records(output)
    assert len(before) == 3 and not output.with_suffix(".md").exists()

    monkeypatch.setattr(__main__, "run", trial.run)
    assert __main__.main(asked) == 0
    after = read_records(output)
    assert all(record in after for record in before)
    assert {(r["row"], r["seed"]) for r in after} == {
        (row, seed) for row in ("lora", "head only", BASE) for seed in (0, 1, 100) if (row, seed) != (BASE, 100)
    }
    printed = capsys.readouterr().out
    assert output.with_suffix(".md").read_text() in printed
    (lines,) = json.loads(output.with_suffix(".json").read_text()).values()
    assert [line["row"] for line in lines] == [BASE, "head only", "lora"]
    assert lines[2]["time"]["mean"] == 1


def test_other_data_under_the_same_name_is_not_mixed_in(tmp_path, chats, few_facts):
    source, output = str(save_foreign(tmp_path / "qwen")), tmp_path / "runs.jsonl"
    asked = ["--model", source, "--data", chats, "--rows", "head only", "--seeds", "1"]
    asked += ["--output", str(output), "--workers", "1", "--epochs", "1", "--lr", "1e-3"]
    assert __main__.main(asked) == 0
    first = json.loads(output.with_suffix(".json").read_text())
    lines = Path(chats).read_text().splitlines(keepends=True)
    Path(chats).write_text("".join(lines + lines[1:2] * 4))
    assert __main__.main(asked) == 0
    assert len(read_records(output)) == 6
    assert json.loads(output.with_suffix(".json").read_text()) != first


def test_the_search_and_the_seeds_as_planned(tmp_path, monkeypatch):
    """LoRA is best at 3e-3 and LoRA+ 4 at 1e-2: LoRA+ is run at both."""
    peak = {"lora": 3e-3, "lora+ 4": 1e-2}

    def play(setting):
        exact = -abs(setting.lr - peak[setting.row]) if setting.row in peak else 0.0
        return {**vars(setting), "test_exact": exact, "test_loss": 1.0}

    output = tmp_path / "runs.jsonl"
    usual = Trial("", "chat-200", BASE, 0.0, 0, 7)
    __main__.compare(usual, list(peak), 2, None, output, 1, play)
    tuned = {(r["row"], r["lr"]) for r in read_records(output) if r["seed"] == 100}
    assert tuned == {("lora", lr) for lr in (1e-3, 3e-3, 1e-2, 3e-2)} | {
        ("lora+ 4", lr) for lr in (1e-3, 3e-3, 1e-2, 3e-2)
    }
    final = {(r["row"], r["lr"], r["seed"]) for r in read_records(output) if r["seed"] != 100}
    rows = {(BASE, 0.0), ("lora", 3e-3), ("lora+ 4", 1e-2), ("lora+ 4", 3e-3)}
    assert final == {(*row, seed) for row in rows for seed in (0, 1)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "lora", "lara"], "there is no row 'lara'; the rows: full; child-tuning;"),
        (["--seeds", "0"], "--seeds and --micro_batch must be at least 1"),
        (["--lr", "0"], "give one above 0"),
        (["--data", "absent.jsonl"], "no data file at absent.jsonl"),
        (["--data", "calls-9999"], "between 1 and 226"),
        (["--model", "/absent/model"], "no model folder at /absent/model"),
    ],
)
def test_bad_input_is_named_before_work_starts(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(__main__, "run", lambda *_: pytest.fail("work has started"))
    with pytest.raises(SystemExit) as error:
        __main__.main(["--output", str(tmp_path / "runs.jsonl"), *arguments])
    assert error.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "runs.jsonl").exists()


def test_a_diverged_run_is_recorded_and_not_judged(tmp_path, chats, few_facts):
    source = str(save_foreign(tmp_path / "qwen"))
    record = run(Trial(source, chats, "full", 1e30, 0, epochs=4))
    assert record["train_loss"][-1] is None and "test_loss" not in record
    json.dumps(record, allow_nan=False)


def test_the_file_s_bytes_are_the_tensors_and_a_header(tmp_path):
    from ftkit.adapters import adapter_size_bytes, attach, save_adapter
    from ftkit.models import load_base

    model = attach(load_base()[0], "lora")
    size = trial.saved_bytes(model)
    folder = save_adapter(model, tmp_path)
    held = sum(t.numel() * t.element_size() for t in load_file(folder / "adapter_model.safetensors").values())
    assert held == adapter_size_bytes(model) < size < held * 1.05
    whole = attach(load_base()[0], "full")
    assert adapter_size_bytes(whole) < trial.saved_bytes(whole) < adapter_size_bytes(whole) * 1.01


def test_help_names_the_rows(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "lora, NEFTune" in said and "the same command continues" in said
