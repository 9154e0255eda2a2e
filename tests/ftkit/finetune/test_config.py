"""What a fine-tune refuses, before a model is loaded or a file written."""

import json
import warnings
from contextlib import nullcontext
from dataclasses import fields

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ftkit.finetune import train
from ftkit.finetune.config import LIMITS, RESUMABLE_FIELDS, Config, parse_config, validate, validate_value
from ftkit.finetune.data import read_training_data, validate_freeze
from ftkit.finetune.train import main
from ftkit.freezing import freeze
from ftkit.models import load_base
from tests import architectures
from tests.tiny import foreign_tokenizer, ragged_conversations, save_foreign

MAY_BE_ZERO = {"weight_decay", "warmup_ratio", "max_steps", "eval_every", "save_every", "stop_after", "seed"}
MAY_BE_ZERO |= {"warmup_steps", "save_total_limit", "early_stopping_patience", "record", "loss_chunk"}
MAY_BE_ZERO |= {"neftune_noise_alpha", "lora_dropout", "adam_beta1", "adam_beta2"}
BELOW_ONE = {"lora_dropout", "adam_beta1", "adam_beta2"}


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ragged_conversations()))
    return path


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reserve_p": 0.0}, "--reserve_p is 0.0: give a probability above 0 and at most 1"),
        ({"reserve_p": 1.2}, "--reserve_p is 1.2"),
        ({"batch_size": 0}, "--batch_size is 0: give a positive number"),
        ({"lr": -1.0}, "--lr is -1.0"),
        ({"timeout": 0.0}, "--timeout is 0.0"),
        ({"max_steps": -1}, "--max_steps is -1: give 0 or more"),
        ({"warmup_ratio": 20.0}, "--warmup_ratio is 20.0: give 0 to 1"),
        ({"weight_decay": float("nan")}, "--weight_decay is nan: give 0 or more"),
        ({"lr": float("inf")}, r"--lr is inf: give a positive number, up to 1e\+09"),
        ({"seed": 2**63}, r"--seed is \d+: give 0 or more, up to 1e\+09"),
        ({"lora_r": 0}, "--lora_r is 0"),
        ({"mesh": "1,2,1"}, "needs 2 ranks, and 1 are started"),
        ({"mesh": "4"}, "takes dp_replicate,dp_shard,tp"),
        ({"method": "lora", "freeze": "mlp"}, "leave --freeze"),
        ({"resume": True}, "no complete checkpoint"),
        ({"optimizer": "sgd"}, "--optimizer is 'sgd': give one of adamw, child-tuning, child-tuning-d, adamw_8bit"),
        ({"method": "loar"}, "--method is 'loar': give one of full, lora"),
    ],
)
def test_impossible_settings_are_named(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        validate(Config(output=str(tmp_path / "new"), **settings))


def test_settings_of_several_ranks(tmp_path, chats, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="give --mesh with tp 1"):
        validate(Config(output="x", method="lora", mesh="1,1,3"))
    source = str(save_foreign(tmp_path / "qwen"))
    with pytest.raises(ValueError, match=r"3 ranks does not divide 4 \(attention heads\)"):
        read_training_data(validate(Config(output="x", model=source, data=str(chats), mesh="1,1,3")))
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ValueError, match="target"):
        settings = {"model": source, "data": str(chats), "method": "lora", "target_modules": "no_such"}
        read_training_data(validate(Config(output="x", **settings)))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mixtral", {}, "plan has layers of kind .*: use dp_shard instead of tp"),
        ("bloom", {}, "has no tensor-parallel plan"),
        ("mamba", {}, "has no tensor-parallel plan"),
        ("neox", {"attention_dropout": 0.1}, r"attention_dropout is 0.1 .* write 0.0 there, or use dp_shard"),
        ("neox", {}, None),  # with dropout that every rank has alike
    ],
)
def test_what_tensor_parallelism_cannot_do_is_said_before_the_launch(tmp_path, chats, monkeypatch, name, changes, said):
    monkeypatch.setenv("WORLD_SIZE", "2")
    source = str(architectures.save(name, tmp_path / name, **changes))
    run = validate(Config(output="x", model=source, data=str(chats), mesh="1,1,2"))
    with pytest.raises(ValueError, match=said) if said else nullcontext():
        read_training_data(run)


def test_an_output_folder_that_exists_is_kept(tmp_path):
    with pytest.raises(FileExistsError, match="exists: give another --output"):
        validate(Config(output=str(tmp_path)))
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(FileExistsError, match="its run has no complete checkpoint: remove it"):
        validate(Config(output=str(tmp_path)))
    checkpoint = tmp_path / "checkpoints" / "step-000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "about.json").write_text('{"files": {}}')
    with pytest.raises(FileExistsError, match="give --resume to continue it"):
        validate(Config(output=str(tmp_path)))


def test_resume_wants_the_same_settings(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "step-000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "about.json").write_text('{"files": {}}')
    before = Config(output=str(tmp_path), lr=1e-3)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(before.__dict__))
    validate(Config(output=str(tmp_path), lr=1e-3, resume=True, stop_after=7))
    assert "stop_after" in RESUMABLE_FIELDS
    with pytest.raises(ValueError, match=r"--lr is 0.002 and was 0.001"):
        validate(Config(output=str(tmp_path), lr=2e-3, resume=True))


def test_inputs_of_a_foreign_model_and_ragged_data(tmp_path, chats, capsys):
    source = save_foreign(tmp_path / "qwen")
    inputs = read_training_data(validate(Config(output="x", model=str(source), data=str(chats), max_length=40)))
    assert len(inputs.train) == 11 and inputs.evaluation == []
    assert "warning: 4 of 11 examples" in capsys.readouterr().out
    assert inputs.pad_id == foreign_tokenizer().pad_token_id


def test_more_ranks_than_rows(tmp_path, chats, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "12")
    with pytest.raises(ValueError, match="12 ranks share a batch of 11 examples"):
        read_training_data(validate(Config(output="x", data=str(chats), batch_size=16)))
    with pytest.raises(ValueError, match="12 ranks share a batch of 4 examples"):
        read_training_data(validate(Config(output="x", data=str(chats), batch_size=4)))


def test_a_vocabulary_larger_than_the_embedding(tmp_path, chats):
    source = save_foreign(tmp_path / "qwen")
    tokenizer = foreign_tokenizer().from_pretrained(source)
    tokenizer.add_tokens([f"<extra{i}>" for i in range(40)])
    tokenizer.save_pretrained(source)
    with pytest.raises(ValueError, match="resize_token_embeddings"):
        read_training_data(validate(Config(output="x", model=str(source), data=str(chats))))


def test_a_folder_of_data_without_train(tmp_path, chats):
    with pytest.raises(FileNotFoundError, match="the splits chats and no train"):
        read_training_data(validate(Config(output="x", data=str(chats.parent))))


@pytest.mark.parametrize("spoil", ["template", "json", "role", "model", "quantised", "missing"])
def test_the_program_says_one_line_and_writes_nothing(tmp_path, chats, capsys, monkeypatch, spoil):
    monkeypatch.setattr(train, "estimate_run", lambda *_: None)
    source, output = save_foreign(tmp_path / "qwen"), tmp_path / "out"
    if spoil == "template":
        (source / "chat_template.jinja").unlink()
        config = json.loads((source / "tokenizer_config.json").read_text())
        config.pop("chat_template", None)
        (source / "tokenizer_config.json").write_text(json.dumps(config))
        said = "tokenizer.chat_template is empty"
    elif spoil == "json":
        chats.write_text(chats.read_text() + "\n{")
        said = "chats.jsonl:12: not JSON"
    elif spoil == "role":
        chats.write_text(chats.read_text().replace('"user"', '"human"'))
        said = "unknown role 'human'"
    elif spoil == "quantised":
        config = json.loads((source / "config.json").read_text())
        quantised = {"quant_method": "fp8", "weight_block_size": [16, 16]}
        (source / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
        said = "is quantised with fp8 (quantization_config in its config.json): give the unquantised model"
    elif spoil == "missing":
        held = load_file(source / "model.safetensors")
        held.pop("model.norm.weight")
        save_file(held, source / "model.safetensors", {"format": "pt"})
        said = "model.norm.weight is not in the model's files"
    else:
        source, said = tmp_path / "nowhere", "no model folder"
    capsys.readouterr()  # what saving the folder said
    with pytest.raises(SystemExit) as stop:
        main(["--model", str(source), "--data", str(chats), "--output", str(output)])
    error = capsys.readouterr().err
    told = [line for line in error.splitlines() if line and not line.startswith("Loading weights")]
    assert stop.value.code == 2 and told[0].startswith("error: ") and said in told[0]
    assert len(told) == 1 + (spoil == "template") or spoil == "role"  # which is wrong in every line of the data
    assert not output.exists()


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("embed_token_s", "--freeze: no parameter name matches 'embed_token_s'; near names: embed_tokens"),
        ("mlp[", "--freeze: 'mlp[' is not a regular expression"),
        (".", "--freeze '.' leaves nothing to train: give a narrower pattern"),
    ],
)
def test_a_pattern_that_freezes_nothing_or_all_is_said_before_the_folder_is_made(
    tmp_path, chats, capsys, pattern, said
):
    source, output = save_foreign(tmp_path / "qwen"), tmp_path / "out"
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["--model", str(source), "--data", str(chats), "--output", str(output), "--freeze", pattern])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and said in error
    assert not output.exists()


@pytest.mark.parametrize("pattern", ["lm_head", "embed_tokens|lm_head", r"layers\.0\."])
def test_a_pattern_is_checked_with_the_names_of_the_real_model(tmp_path, pattern):
    """Ties hold on the meta device too: lm_head is a name there, as it is of the weights."""
    source = str(save_foreign(tmp_path / "qwen"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        validate_freeze(pattern, source)
        assert freeze(load_base(source)[0], pattern)


def test_a_yaml_file_and_its_unknown_key(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"output": str(tmp_path), "lr": 1e-4}))
    with pytest.raises(SystemExit):
        main([str(path)])
    assert "exists: give another --output" in capsys.readouterr().err
    for text, said in (
        ("output: x\nlearning_rat: 1", "unknown key learning_rat"),
        ("output: x\nwarmup_ration: 1", "unknown key warmup_ration (did you mean warmup_ratio?)"),
        ("output: x\npacking: 'yes'", "--packing is 'yes': give a value of type bool"),
        ("output: x\nmax_steps: 2.5", "--max_steps is 2.5: give a whole number, 0 or more"),
        ("output: x\nlr: fast", "--lr is 'fast': give a positive number"),
        ("output: x\nbatch_size: true", "--batch_size is True: give a whole number"),
        ("lr: 1", "lacks the key output"),
        ("", "lacks the key output"),
        ("output: [", "is not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(SystemExit) as stop:
            main([str(path)])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith("error: ") and said in error, text
    path.write_text("output: x\nlr: 5e-5")  # which YAML reads as a text
    assert parse_config([str(path)]).lr == 5e-5


NUMBERS = [item for item in fields(Config) if item.type in (int, float)]


@given(item=st.sampled_from(NUMBERS), value=st.floats() | st.integers() | st.just(10**400))
def test_a_number_beyond_its_limit_is_refused(item, value):
    """Against limits written down once more: which fields may be 0, which end at 1 or before it."""
    most = 1 if item.name in ("warmup_ratio", "reserve_p") else 1 - 1e-12 if item.name in BELOW_ONE else 1e9
    good = (value > 0 or (value == 0 and item.name in MAY_BE_ZERO)) and value <= most
    good = good and (item.type is float or isinstance(value, int))
    good = good and (item.name != "loraplus_lr_ratio" or value >= 1)
    try:
        validate_value(item.name, item.type, value)
    except ValueError as error:
        assert not good and str(error).startswith(f"--{item.name} is {value}: give ")
    else:
        assert good


def test_every_number_has_a_limit():
    assert {item.name for item in NUMBERS} == set(LIMITS)
    assert {item.name for item in NUMBERS if LIMITS[item.name][1](0)} == MAY_BE_ZERO
    assert all(LIMITS[item.name][1](item.default) for item in NUMBERS)


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert all(f"--{name}" in said for name in Config.__dataclass_fields__)
