"""Checkpoints are complete or absent, written while training goes on, and read on any number of ranks."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemWriter

from ftkit.distributed import checkpoint
from ftkit.distributed.checkpoint import CheckpointError, Checkpoints, full_state_dict, latest_checkpoint, load_weights
from ftkit.distributed.checkpoint_folder import commit
from ftkit.distributed.device import pick_device
from ftkit.distributed.mesh import DistributedContext
from ftkit.finetune import export
from ftkit.finetune.export import to_hugging_face
from ftkit.models import load_base
from tests import ROOT
from tests.programs import run_program
from tests.tiny import foreign_model, save_foreign

from .checkpoint_ranks import ABOUT, SAVED, STEPS, build, resume

ALONE = DistributedContext(0, 1, pick_device(), None)
PROGRAM = Path(__file__).with_name("checkpoint_ranks.py")


def trained(seed: int = 0):
    model, optimizer = build(ALONE, seed)
    for _ in range(2):
        ids = torch.arange(12).view(1, 12)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(folder, step, model, optimizer, keep=1, **extra) -> Path:
    checkpoints = Checkpoints(folder, ABOUT, ALONE, keep)
    checkpoints.save(step, model, optimizer, extra)
    checkpoints.finish()
    return checkpoints.latest()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two ranks wrote, and what happened to them; SAVED lies in `kept`."""
    folder = tmp_path_factory.mktemp("two")
    run_program(PROGRAM, folder, "write", 2)
    return folder, json.loads((folder / "write.json").read_text())


def test_round_trip_and_only_the_newest_is_kept(tmp_path):
    model, optimizer = trained()
    save(tmp_path, 1, model, optimizer, note=1)
    path = save(tmp_path, 12, model, optimizer, note=2)
    assert names(tmp_path) == ["step-000012"] and latest_checkpoint(tmp_path) == path
    other, other_optimizer = trained(seed=5)
    extra = Checkpoints(tmp_path, ABOUT, ALONE).load(other, other_optimizer, {"note": 0})
    assert extra == {"note": 2, "step": 12}
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(optimizer.state[a]["exp_avg_sq"], other_optimizer.state[b]["exp_avg_sq"])
    third = foreign_model(torch.float32, seed=7)
    load_weights(path, third)
    assert all(torch.equal(t, third.state_dict()[n]) for n, t in full_state_dict(model).items())


def test_saving_returns_before_it_is_written(tmp_path, monkeypatch):
    """The disk waits until the test has changed the weights: what is written is the state at `save`."""
    go, true = threading.Event(), FileSystemWriter.write_data
    monkeypatch.setattr(FileSystemWriter, "write_data", lambda *args: go.wait(30) and true(*args))
    model, optimizer = trained()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoints = Checkpoints(tmp_path, ABOUT, ALONE, keep=2)
    checkpoints.save(1, model, optimizer, {})
    assert names(tmp_path) == ["step-000001.incomplete"] and latest_checkpoint(tmp_path) is None
    for parameter in model.parameters():
        parameter.data.zero_()
    go.set()
    checkpoints.save(2, model, optimizer, {})  # finishes the one before
    assert latest_checkpoint(tmp_path) is not None
    checkpoints.finish()
    assert names(tmp_path) == ["step-000001", "step-000002"]
    loaded = foreign_model(torch.float32, seed=1)
    load_weights(tmp_path / "step-000001", loaded)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())
    load_weights(tmp_path / "step-000002", loaded)
    assert not any(tensor.any() for tensor in loaded.state_dict().values())


def test_a_torn_checkpoint_is_never_the_latest(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 3, model, optimizer)
    for torn in ("step-000004.incomplete", "step-000002.removed"):
        shutil.copytree(path, tmp_path / torn)  # even where nothing is missing in it
    assert latest_checkpoint(tmp_path) == path
    assert latest_checkpoint(tmp_path / "none") is None
    save(tmp_path, 4, model, optimizer)
    assert names(tmp_path) == ["step-000004"]


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "about.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_damage_is_skipped_where_an_older_one_is_complete(tmp_path, name, damage):
    model, optimizer = trained()
    save(tmp_path, 3, model, optimizer, keep=2)
    broken = save(tmp_path, 4, model, optimizer, keep=2)
    damage(broken / name)
    with pytest.warns(UserWarning, match=rf"{name}.*continuing from step-000003"):
        assert latest_checkpoint(tmp_path).name == "step-000003"
    with pytest.raises(CheckpointError, match=name):
        load_weights(broken, model)
    checkpoints = Checkpoints(tmp_path, ABOUT, ALONE)
    with pytest.warns(UserWarning, match=name):
        assert checkpoints.load(model, optimizer, {})["step"] == 3
    checkpoints.save(4, model, optimizer, {})  # the run comes by again
    checkpoints.finish()
    assert names(tmp_path) == ["step-000004"] and latest_checkpoint(tmp_path) == broken


def test_damage_without_an_older_one_is_an_error(tmp_path):
    path = save(tmp_path, 3, *trained())
    (path / "__0_0.distcp").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp has 4 bytes of [\d,]+: restore the file"):
        latest_checkpoint(tmp_path)


def test_damage_inside_a_file_is_noticed_while_reading(tmp_path):
    path = save(tmp_path, 3, *trained())
    (path / ".metadata").write_bytes(bytes((path / ".metadata").stat().st_size))
    with pytest.raises(CheckpointError, match="step-000003 cannot be read"):
        Checkpoints(tmp_path, ABOUT, ALONE).load(*trained(1), {})


def test_another_run_is_refused_before_anything_changes(tmp_path):
    save(tmp_path, 3, *trained())
    model, optimizer = build(ALONE, seed=2)
    with pytest.raises(CheckpointError, match="its optimizer is 'adamw', and here 'child-tuning task-free'"):
        Checkpoints(tmp_path, {**ABOUT, "optimizer": "child-tuning task-free"}, ALONE).load(model, optimizer, {})
    assert not optimizer.state
    model.lm_head = torch.nn.Linear(32, 5)
    with pytest.raises(CheckpointError, match=r"its parameters are \d+ \(lm_head"):
        Checkpoints(tmp_path, ABOUT, ALONE).load(model, optimizer, {})
    frozen = foreign_model(torch.float32)
    frozen.model.norm.weight.requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"its trained is \d+ \(model.norm.weight: among them\)"):
        Checkpoints(tmp_path, ABOUT, ALONE).load(frozen, torch.optim.AdamW(frozen.parameters()), {})
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        Checkpoints(tmp_path / "none", ABOUT, ALONE).load(model, optimizer, {})


def test_a_crash_at_any_call_leaves_a_complete_checkpoint(tmp_path, monkeypatch):
    """Stop the program before its 1st, 2nd, ... call that changes the folder: what is latest can be loaded."""
    model, optimizer = trained()
    save(tmp_path, 1, model, optimizer)
    changes = [(Path, "mkdir"), (Path, "rename"), (shutil, "rmtree"), (json, "dump"), (os, "fsync")]
    crashes = []
    for call in range(1, 30):
        step = int(latest_checkpoint(tmp_path).name[5:])
        with monkeypatch.context() as patch:
            calls = {"left": call}
            for owner, name in changes:
                patch.setattr(owner, name, crash_after(calls, getattr(owner, name), crashes))
            try:
                save(tmp_path, step + 1, model, optimizer)
            except (OSError, KeyError):
                pass
            else:
                break
        found = int(latest_checkpoint(tmp_path).name[5:])
        assert found in (step, step + 1)
        load_weights(latest_checkpoint(tmp_path), model)
        crashes[-1] += f" {found - step}"
    assert {word.split()[0] for word in crashes} == {name for _, name in changes}
    assert crashes[0].endswith(" 0") and crashes[-1].endswith(" 1")  # some before it is complete, some after
    assert names(tmp_path) == [f"step-{step + 1:06d}"]


def crash_after(calls, true, crashes):
    def call(*args, **kwargs):
        calls["left"] -= 1
        if calls["left"] == 0:
            crashes.append(true.__name__)
        if calls["left"] <= 0:  # a dead program changes nothing more
            raise KeyError("crash")
        return true(*args, **kwargs)

    return call


def test_a_first_checkpoint_that_cannot_be_written_leaves_nothing_to_resume(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    with pytest.raises(OSError, match=rf"make room on that disk, remove {folder.parent} and start again"):
        commit(folder / "step-000001", {}, [("No space left on device", {})], keep=1)
    save(folder, 1, *trained())
    with pytest.raises(OSError, match="newest complete checkpoint is step-000001: make room on that disk and resume"):
        commit(folder / "step-000002", {}, [("No space left on device", {})], keep=1)


# A fork of a warm server enters no mounts, so it makes them itself.
FULL_DISK = """
import ctypes, os, sys
sys.path[:0] = sys.argv[1:]
from pathlib import Path
def done(failed):
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
libc = ctypes.CDLL(None, use_errno=True)
own = {"setgroups": "deny", "uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
try:
    done(libc.unshare(CLONE_NEWNS | CLONE_NEWUSER))
    for name, text in own.items():
        Path("/proc/self", name).write_text(text)
    done(libc.mount(b"tmpfs", b"disk", b"tmpfs", 0, b"size=1300k"))
except OSError as error:
    sys.exit(f"NOT HERE: {error}")
from tests.ftkit.distributed.test_checkpoint import save, trained
pair = trained()
for step in (1, 2):
    try:
        print('saved', save(Path('disk'), step, *pair).name)
    except OSError as error:
        print('errno', error.errno, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a small disk is made of Linux's namespaces")
def test_a_really_full_disk(tmp_path):
    """A file system of one megabyte, where this machine lets us make one."""
    (tmp_path / "disk").mkdir()
    command = [sys.executable, "-c", FULL_DISK, str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    if done.stderr.startswith("NOT HERE"):
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    assert "saved step-000001" in done.stdout, done.stderr
    assert "errno 28" in done.stdout and "newest complete checkpoint is step-000001" in done.stdout


def test_two_ranks_resume_to_the_bit_and_one_rank_nearly(two):
    folder, result = two
    assert result["resumed"] == result["losses"][SAVED:]
    saved = resume_from_kept(folder)
    assert saved["extra"] == {"note": "kept", "step": SAVED}
    # Sums over two halves of a batch end in other digits, and AdamW enlarges those.
    assert saved["losses"] == pytest.approx(result["losses"][SAVED:], abs=1e-5)


def resume_from_kept(folder):
    return resume(ALONE, folder / "kept")


def test_resume_on_more_ranks(two):
    folder, result = two
    run_program(PROGRAM, folder / "kept", "resume", 4)
    resumed = json.loads((folder / "kept" / "resume.json").read_text())
    assert resumed["losses"] == pytest.approx(result["losses"][SAVED:], abs=1e-5)
    assert len(resumed["losses"]) == STEPS - SAVED


def test_every_rank_refuses_and_says_the_same(two):
    _, result = two
    for case, words in (
        ("other optimizer", "CheckpointError: .*its optimizer is 'adamw', and here 'child-tuning"),
        ("missing shard", "CheckpointError: .*__1_0.distcp is missing"),
        (
            "full disk",
            r"OSError: \[Errno 28\].*rank 1: \[Errno 28\] No space left.*newest complete checkpoint is step-000003",
        ),
    ):
        first, second = result[case]
        assert first == second and re.search(words, first), (case, first)
    assert result["unchanged"] and result["saving"] == ["", ""]
    assert result["left"] == ["step-000003"] and result["later"] == ["step-000006"]


def test_from_shards_to_a_folder_in_one_call(tmp_path):
    base = save_foreign(tmp_path / "qwen")
    model, optimizer = trained()
    path = save(tmp_path / "checkpoints", 2, model, optimizer)
    folder = to_hugging_face(path, str(base), tmp_path / "model")
    opened, tokenizer = load_base(folder)
    assert opened.lm_head.weight is opened.model.embed_tokens.weight and opened.dtype == torch.bfloat16
    assert tokenizer.chat_template and opened.generation_config.eos_token_id == tokenizer.eos_token_id
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, model.state_dict()[name].to(torch.bfloat16)), name
    with pytest.raises(FileExistsError, match="give another folder"):
        to_hugging_face(path, str(base), folder)
    with pytest.raises(SystemExit):
        export.main([str(path), str(tmp_path / "other")])  # pocket-base's names are others
    assert not (tmp_path / "other").exists()
    export.main([str(path), str(tmp_path / "again"), "--base", str(base)])
    assert names(tmp_path / "again") == names(folder)


def test_a_checkpoint_without_moments_would_show(tmp_path, monkeypatch):
    """The mutation: the optimizer's part is not loaded."""
    torch.manual_seed(0)
    model, optimizer = trained()
    save(tmp_path / "written", SAVED, model, optimizer, note="")
    true = resume(ALONE, tmp_path)["losses"]
    whole = checkpoint.set_state_dict
    monkeypatch.setattr(
        checkpoint,
        "set_state_dict",
        lambda model, optimizer, **states: (
            whole(model, [], model_state_dict=states["model_state_dict"], optim_state_dict={}),
            optimizer.state.clear(),
        ),
    )
    assert resume(ALONE, tmp_path)["losses"] != pytest.approx(true, abs=1e-5)
