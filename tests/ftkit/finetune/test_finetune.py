"""The program on a foreign model (tied, grouped queries, bfloat16) and ragged data, on one rank and on several."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemWriter
from torch.nn.functional import cross_entropy

from ftcourse.runs import LaunchError, torchrun
from ftkit.batching import global_batch
from ftkit.conversations import encode
from ftkit.distributed.checkpoint import latest_checkpoint
from ftkit.distributed.device import pick_device
from ftkit.distributed.mesh import DistributedContext, ParallelDims
from ftkit.evaluate import generate_answers
from ftkit.finetune import train
from ftkit.finetune.loss import Loss
from ftkit.models import load_base
from tests import architectures
from tests.tiny import CHATML, foreign_model, foreign_tokenizer, ragged_conversations, save_foreign

STEPS = 4
LAYERS = 2  # a first one and a last one
UNTOLD = str(Path(__file__).with_name("without_estimate.py"))  # what `no_estimates` is to ranks
pytestmark = pytest.mark.usefixtures("no_estimates")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    save_foreign(folder / "qwen", LAYERS)
    (folder / "chats.jsonl").write_text("\n".join(json.dumps(row) for row in ragged_conversations()))
    return folder


def flags(setting: Path, output: str, **settings) -> list[str]:
    base = {"model": setting / "qwen", "data": setting / "chats.jsonl", "output": setting / output}
    base |= {
        "lr": 1e-2,
        "max_steps": STEPS,
        "batch_size": 5,
        "micro_batch_size": 2,
        "optimizer": "child-tuning",
    }
    pairs = [(f"--{name}", str(value)) for name, value in (base | settings).items() if value is not None]
    return [word for pair in pairs for word in (pair[:1] if pair[1] == "True" else pair)]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def alone(setting):
    """The single process, to which every other run is compared."""
    train.main(flags(setting, "alone"))
    return setting / "alone"


@pytest.fixture(scope="module")
def sharded(setting):
    torchrun("-m", "ftkit.finetune", *flags(setting, "sharded"), ranks=2, quiet=True)
    return setting / "sharded"


def test_first_loss_is_the_mean_over_all_unmasked_tokens(alone):
    """By hand, row by row, without padding; a mean of row means is another number."""
    tokenizer, model = foreign_tokenizer(), foreign_model(layers=LAYERS).float()
    rows = [encode(tokenizer, row["messages"], CHATML) for row in ragged_conversations()]
    sums, counts = [], []
    for row in global_batch(rows, 0, 5, seed=0):
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        targets = torch.tensor(row["labels"][1:])
        sums.append(cross_entropy(logits, targets, reduction="sum").item())
        counts.append(int((targets != -100).sum()))
    first = metrics(alone)[0]["loss"]
    assert first == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    means = [s / c for s, c in zip(sums, counts, strict=True)]
    assert first != pytest.approx(sum(means) / len(means), rel=1e-5)


def test_two_ranks_compute_what_one_does(setting, alone, sharded):
    for one, two in zip(metrics(alone), metrics(sharded), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=2e-5)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
        assert one["lr"] == two["lr"]
    assert weights(alone).keys() == weights(sharded).keys()
    # AdamW enlarges the last digits of near-zero gradients, so single entries may stray: compare the whole update.
    base = weights_of_base(setting)
    for name, tensor in weights(alone).items():
        update = (tensor.float() - base[name].float()).norm()
        assert (weights(sharded)[name].float() - tensor.float()).norm() < 0.01 * update, name


def test_three_ranks_on_batches_that_do_not_divide(setting, alone):
    torchrun(UNTOLD, *flags(setting, "three"), ranks=3, quiet=True)
    for one, three in zip(metrics(alone), metrics(setting / "three"), strict=True):
        assert one["loss"] == pytest.approx(three["loss"], abs=2e-5)


def test_a_forgotten_world_size_would_show(setting, alone, monkeypatch):
    """The mutation: half the gradient. AdamW would hide it; the gradient norm in the metrics does not."""
    true = Loss.__call__
    monkeypatch.setattr(Loss, "__call__", lambda *a: true(*a) * 0.5)
    train.main(flags(setting, "halved", max_steps=1))
    halved = metrics(setting / "halved")[0]["grad_norm"]
    assert halved == pytest.approx(metrics(alone)[0]["grad_norm"] / 2, rel=1e-4)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 1), (1, 2)])
def test_resume_on_another_number_of_ranks(setting, alone, first, second):
    name = f"resumed_{first}_{second}"
    for ranks, settings in ((first, {"stop_after": 2}), (second, {"resume": True})):
        command = flags(setting, name, **settings)
        if ranks == 1:
            train.main(command)
        else:
            torchrun(UNTOLD, *command, ranks=ranks, quiet=True)
        assert (setting / name / "model").exists() == ("resume" in settings)
    rows = metrics(setting / name)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    exact = first == second == 1
    for row, reference in zip(rows, metrics(alone), strict=True):
        assert row["loss"] == (reference["loss"] if exact else pytest.approx(reference["loss"], abs=2e-5))
    if exact:
        assert all(torch.equal(t, weights(setting / name)[n]) for n, t in weights(alone).items())


def test_a_run_that_restarts_from_nothing_would_show(setting, alone, monkeypatch):
    """The mutation: continue with the weights but a fresh optimizer; the losses differ."""
    train.main(flags(setting, "amnesia", stop_after=2))
    true = train.Checkpoints.load

    def forget_moments(self, model, optimizer, extra):
        saved = true(self, model, optimizer, extra)
        for state in optimizer.state.values():
            state["exp_avg"].zero_()
        return saved

    monkeypatch.setattr(train.Checkpoints, "load", forget_moments)
    train.main(flags(setting, "amnesia", resume=True))
    assert metrics(setting / "amnesia")[-1]["loss"] != pytest.approx(metrics(alone)[-1]["loss"], abs=2e-5)


def test_export_is_an_ordinary_folder(setting, alone):
    model, tokenizer = load_base(alone / "model")
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert tokenizer.chat_template == CHATML
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    base = weights_of_base(setting)
    assert any(not torch.equal(base[name], tensor) for name, tensor in weights(alone).items())
    assert len(generate_answers(model, tokenizer, [ragged_conversations()[0]["messages"][:1]], max_new_tokens=4)) == 1


def weights_of_base(setting):
    return load_file(setting / "qwen" / "model.safetensors")


def test_frozen_and_trainable_in_one_layer(setting):
    settings = {"freeze": r"mlp|q_proj", "max_steps": 2}
    train.main(flags(setting, "mixed_alone", **settings))
    torchrun(UNTOLD, *flags(setting, "mixed", **settings), ranks=2, quiet=True)
    base = weights_of_base(setting)
    for name, tensor in weights(setting / "mixed").items():
        if "mlp" in name or "q_proj" in name:
            assert torch.equal(tensor, base[name]), name
    moved = [name for name, tensor in weights(setting / "mixed").items() if not torch.equal(tensor, base[name])]
    assert any("k_proj" in name for name in moved)
    for one, two in zip(metrics(setting / "mixed_alone"), metrics(setting / "mixed"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=2e-5)


def test_activation_checkpointing_and_adamw_change_nothing_and_something(setting, alone):
    train.main(flags(setting, "recompute", activation_checkpointing=True))
    train.main(flags(setting, "adamw", optimizer="adamw"))
    for row, again in zip(metrics(alone), metrics(setting / "recompute"), strict=True):
        assert row["loss"] == pytest.approx(again["loss"], abs=1e-6)
    assert metrics(setting / "adamw")[0]["loss"] == metrics(alone)[0]["loss"]
    assert metrics(setting / "adamw")[-1]["loss"] != pytest.approx(metrics(alone)[-1]["loss"], abs=2e-5)


def test_evaluation_and_checkpoints_come_when_asked(setting):
    train.main(flags(setting, "evals", eval_data=setting / "chats.jsonl", eval_every=2, save_every=1))
    assert [row["step"] for row in metrics(setting / "evals") if "eval_loss" in row] == [2, 4]
    kept = sorted(path.name for path in (setting / "evals" / "checkpoints").iterdir())
    assert kept == ["step-000004"]


def test_a_killed_run_leaves_the_last_whole_checkpoint(setting):
    """SIGKILL in the middle; what is on disk resumes, and ends as an undisturbed run does."""
    settings = {"max_steps": 400, "save_every": 1, "optimizer": "adamw"}
    command = [sys.executable, "-m", "ftkit.finetune", *flags(setting, "killed", **settings)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints, deadline = setting / "killed" / "checkpoints", time.time() + 90
    while latest_checkpoint(checkpoints) is None and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9
    step = int(latest_checkpoint(checkpoints).name.removeprefix("step-"))
    assert 1 <= step < 400
    train.main(flags(setting, "killed", **settings, resume=True, stop_after=step + 2))
    train.main(flags(setting, "undisturbed", **settings, stop_after=step + 2))
    losses = [[row["loss"] for row in metrics(setting / name)] for name in ("killed", "undisturbed")]
    assert losses[0] == losses[1] and len(losses[0]) == step + 2


def test_a_restarted_launcher_goes_on_by_itself(setting, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    train.main(flags(setting, "again", stop_after=2))
    train.main(flags(setting, "again"))
    assert [row["step"] for row in metrics(setting / "again")] == [1, 2, 3, 4]


def test_a_restart_before_the_first_checkpoint_begins_again(setting, alone, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-8")
    true = train.clip_grad_norm_
    monkeypatch.setattr(train, "clip_grad_norm_", lambda *a: exit("killed"))
    with pytest.raises(SystemExit):
        train.main(flags(setting, "early"))
    monkeypatch.setattr(train, "clip_grad_norm_", true)
    train.main(flags(setting, "early"))
    assert [row["loss"] for row in metrics(setting / "early")] == [row["loss"] for row in metrics(alone)]


def test_another_launch_does_not_touch_it(setting, alone, monkeypatch, capsys):
    """Nor does torchrun's second attempt of a launch that was refused."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-9")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(SystemExit):
        train.main(flags(setting, "alone"))
    assert "give --resume to continue it" in capsys.readouterr().err


def refused(command: list[str], capsys) -> str:
    """The one line that a run prints to stderr before it ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main(command)
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert stop.value.code == 2 and len(said) == 1 and said[0].startswith("error: ")
    return said[0]


def test_a_loss_that_is_not_finite_ends_the_run_and_says_what_to_do(setting, monkeypatch, capsys):
    true = Loss.__call__
    monkeypatch.setattr(Loss, "__call__", lambda *a: true(*a) * float("nan"))
    assert "the loss is nan: lower --lr" in refused(flags(setting, "nan"), capsys)


def test_a_disk_that_is_full_at_the_first_checkpoint_says_how_to_start_again(setting, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FileSystemWriter, "write_data", full)
        said = refused(flags(setting, "full"), capsys)
    assert f"make room on that disk, remove {setting / 'full'} and start again" in said
    assert f"remove {setting / 'full'}" in refused(flags(setting, "full", resume=True), capsys)
    assert "remove it" in refused(flags(setting, "full"), capsys)


def test_a_disk_that_is_full_at_the_export_keeps_the_checkpoint(setting, monkeypatch, capsys):
    def full(*_, **__):
        raise SafetensorError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(train, "export_weights", full)
        said = refused(flags(setting, "unwritten"), capsys)
    assert "the trained model could not be written: No space left on device: make room and give --resume" in said
    train.main(flags(setting, "unwritten", resume=True))
    assert (setting / "unwritten" / "model" / "model.safetensors").exists()


def test_a_model_without_position_ids_is_not_packed():
    class Recurrent(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            raise AssertionError

    with pytest.raises(ValueError, match=r"Recurrent takes no position_ids .*: train without --packing"):
        train.check_packing(Recurrent(), torch.device("cpu"))


@pytest.mark.parametrize(("epochs", "steps"), [(0.1, 1), (1.0, 3), (1.1, 4)])
def test_epochs_are_rounded_up_to_whole_steps(setting, epochs, steps):
    name = f"epochs{epochs}"
    train.main(flags(setting, name, max_steps=None, epochs=epochs, optimizer="adamw"))
    assert len(metrics(setting / name)) == steps


def test_dropout_is_that_of_the_seed_and_goes_on_after_a_resume(setting):
    neox = architectures.save("neox", setting / "neox")
    runs = {"drop": {}, "drop_again": {}, "drop_other": {"seed": 1}}
    runs["drop_recomputed"] = {"activation_checkpointing": True}
    for name, more in runs.items():
        torch.rand(1)  # what the process has drawn before plays no part
        train.main(flags(setting, name, model=neox, **more))
    train.main(flags(setting, "drop_stopped", model=neox, stop_after=2))
    train.main(flags(setting, "drop_stopped", model=neox, resume=True))
    losses = {name: [row["loss"] for row in metrics(setting / name)] for name in (*runs, "drop_stopped")}
    assert losses["drop"] == losses["drop_again"] == losses["drop_stopped"]
    assert losses["drop_recomputed"] == pytest.approx(losses["drop"], abs=1e-6)
    assert losses["drop_other"][0] != pytest.approx(losses["drop"][0], abs=1e-4)


def test_parts_of_a_batch_draw_apart_and_tensor_parallel_ranks_alike():
    def drawn(rank: int, step: int = 0, seed: int = 0) -> float:
        dims = ParallelDims(1, 2, 2)
        with train.seeded(seed, step, DistributedContext(rank, 4, pick_device(), None, None, dims)):
            return torch.rand(1).item()

    assert drawn(0) == drawn(1) != drawn(2) == drawn(3)
    assert len({drawn(0), drawn(0, step=1), drawn(0, seed=1)}) == 3
    torch.manual_seed(5)
    before = torch.get_rng_state()
    drawn(0)
    assert torch.equal(torch.get_rng_state(), before)  # of whoever calls a run in a notebook


def test_other_data_or_another_base_under_the_same_name_are_not_resumed(setting, capsys):
    data, base = setting / "changing.jsonl", shutil.copytree(setting / "qwen", setting / "changing")
    data.write_text((setting / "chats.jsonl").read_text())
    settings = {"data": data, "model": base, "method": "lora", "optimizer": "adamw"}
    train.main(flags(setting, "changed", **settings, stop_after=1))
    data.write_text(data.read_text().replace("the cat", "a cat"))
    said = refused(flags(setting, "changed", **settings, resume=True), capsys)
    assert "belongs to another run: its data is" in said
    data.write_text((setting / "chats.jsonl").read_text())
    foreign_model(layers=LAYERS, seed=1).save_pretrained(base)
    assert "its base is" in refused(flags(setting, "changed", **settings, resume=True), capsys)
    foreign_model(layers=LAYERS).save_pretrained(base)
    train.main(flags(setting, "changed", **settings, resume=True, stop_after=2))


def test_errors_of_ranks_come_back_in_one_line(setting):
    broken = shutil.copytree(setting / "qwen", setting / "broken")
    held = weights_of_base(setting)
    held.pop("model.norm.weight")
    save_file(held, broken / "model.safetensors", {"format": "pt"})
    for more, said in (
        ({"reserve_p": 2}, "give a probability above 0"),
        ({"model": broken}, "lacks model.norm.weight"),  # seen when there is a process group
    ):
        with pytest.raises(LaunchError, match=said) as error:
            torchrun(UNTOLD, *flags(setting, "bad", **more), ranks=2, quiet=True)
        assert str(error.value).count("error: ") == 1 and "Traceback" not in str(error.value)
        assert not (setting / "bad").exists()
