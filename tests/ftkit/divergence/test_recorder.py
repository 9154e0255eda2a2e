"""What a recording holds, that it changes nothing, and what the command says."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from ftkit.batching import packed_micro_batches, pad
from ftkit.divergence import compare, record, recorder
from ftkit.divergence.comparison import main
from ftkit.divergence.recorder import PADDING, project, projection, token_keys
from ftkit.divergence.recording import Recording, assemble

from . import runs


def small(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def recorded(folder, change=lambda model: None, **how):
    model, optimizer = small()
    change(model)
    with record(folder, model, optimizer, steps=2, **how):
        train(model, optimizer)
    return model


@pytest.fixture
def reference(tmp_path):
    recorded(tmp_path / "a")
    recorded(tmp_path / "a", rounding=True)
    return tmp_path


def test_projections_of_parts_add_up_to_those_of_the_row():
    rows = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(project(rows[:, :6]) + project(rows[:, 6:], offset=6), project(rows), atol=1e-12)
    assert not torch.allclose(project(rows[:, :6]) + project(rows[:, 6:]), project(rows), atol=1e-3)
    assert torch.equal(projection(10)[:4], projection(4))


def test_a_projected_difference_has_the_norm_of_the_difference():
    a, b = torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(0))
    estimated = np.sqrt(np.square(project(a - b).numpy()).mean(1)).mean()
    assert estimated == pytest.approx((a - b).norm(dim=1).mean().item(), rel=0.1)


def test_tokens_have_the_same_keys_padded_on_either_side_and_packed():
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]
    padded, packed = pad(rows, 0), packed_micro_batches(rows, 2, 8, 0, 0, 1)[0]
    keys = token_keys((), padded)
    assert keys[1, 2] == PADDING and len(set(keys.flatten().tolist())) == 6
    flipped = {name: tensor.flip(0) for name, tensor in padded.items()}
    left = {name: tensor.flip(1) for name, tensor in padded.items()}
    left["input_ids"][1, 1:] = torch.tensor([8, 9])
    left["input_ids"][0] = padded["input_ids"][0]
    assert torch.equal(token_keys((), flipped), keys.flip(0))
    assert set(token_keys((), packed).flatten().tolist()) == set(keys.flatten().tolist()) - {PADDING}
    assert torch.equal(token_keys((), left), torch.stack([keys[0], keys[1].roll(1)]))
    whole = token_keys((), {"input_ids": packed["input_ids"]})  # positions do not begin anew: one document
    assert not set(whole.flatten().tolist()) <= set(keys.flatten().tolist())


def test_columns_of_ranks_are_added_up_and_rows_are_not():
    keys, line = np.array([1, 2]), np.ones((2, 4))
    (part,) = assemble([(0, 0, 3, 6, keys, line), (1, 3, 3, 6, keys, line)])
    assert part.rank is None and (part.lines == 2).all()
    parts = assemble([(0, 0, 6, 6, keys, line), (1, 0, 6, 6, keys + 2, line)])
    assert [part.rank for part in parts] == [0, 1] and all((part.lines == 1).all() for part in parts)


def test_recording_changes_nothing_and_leaves_no_hooks(tmp_path):
    plain, optimizer = small()
    train(plain, optimizer)
    model = recorded(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    noisy = recorded(tmp_path, rounding=True)
    apart = [(a - b).abs().max().item() for a, b in zip(plain.parameters(), noisy.parameters(), strict=True)]
    assert 0 < max(apart) < 1e-5
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_steps_after_the_recorded_ones_are_not_recorded(tmp_path):
    model, optimizer = small()
    with record(tmp_path, model, optimizer, steps=1, first_step=5):
        train(model, optimizer, 3)
    recording = Recording(tmp_path)
    assert recording.steps == range(5, 6) and {step for step, *_ in recording.facts} == {5, 6}


def test_what_a_loop_recorded_before_it_failed_is_written(tmp_path):
    model, optimizer = small()
    with pytest.raises(ZeroDivisionError), record(tmp_path, model, optimizer):
        train(model, optimizer, 1)
        _ = 1 / 0
    assert Recording(tmp_path).steps == range(1)


def test_a_number_that_is_not_finite_differs(reference):
    def spoil(model):
        model[0].register_forward_hook(lambda module, args, output: output * float("nan"))

    recorded(reference / "b", spoil)
    first = compare(reference / "a", reference / "b").first
    assert (first.module, first.kind) == ("0", "output")


def test_the_command_says_equal(reference, capsys):
    recorded(reference / "b")
    assert main([str(reference / "a"), str(reference / "b")]) == 0
    assert "no difference beyond rounding" in capsys.readouterr().out


def test_the_command_says_where(reference, capsys):
    recorded(reference / "b", lambda model: model[2].register_forward_hook(lambda module, args, output: 1.5 * output))
    assert main([str(reference / "a"), str(reference / "b")]) == 1
    said = capsys.readouterr().out
    assert "first divergence: step 0, module 2" in said and "B is A times 1.5" in said and "likely cause" in said
    assert main([str(reference / "a"), str(reference / "b"), "--json"]) == 1
    first = json.loads(capsys.readouterr().out)["first"]
    assert first["module"] == "2" and first["step"] == 0 and first["factors"] == pytest.approx([1.5])


def test_the_command_refuses_what_it_cannot_compare(reference, capsys):
    recorded(reference / "b")
    (reference / "c").mkdir()
    (reference / "c" / "rank-0.safetensors").write_bytes(b"no tensors")
    recorded(reference / "later", first_step=7)
    for a, b, said in (
        ("b", "a", "with rounding=True"),
        ("a", "nothing", "rank-0.safetensors is missing"),
        ("a", "c", "is not a recording"),
        ("a", "later", "no step in common"),
    ):
        assert main([str(reference / a), str(reference / b)]) == 2
        assert said in capsys.readouterr().err


def test_a_recording_without_one_of_its_ranks_is_refused(reference):
    path = reference / "a" / "rank-0.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'\\"ranks\\": 1', b'\\"ranks\\": 2'))
    with pytest.raises(ValueError, match=r"rank-1\.safetensors is missing"):
        Recording(reference / "a")


def test_a_sign_that_rounding_decides_would_be_accused_without_its_part_of_the_noise(tmp_path, monkeypatch):
    whole, tokens = recorder.rounding_error, sum(len(row["input_ids"]) for row in runs.examples(0))
    runs.NearZero().run(tmp_path / "a")
    runs.OtherSign().run(tmp_path / "b")
    for error, equal in ((whole, True), (lambda tensor, width: whole(tensor, width) * (width != tokens), False)):
        monkeypatch.setattr(recorder, "rounding_error", error)
        runs.NearZero().run(tmp_path / "a", rounding=True)
        assert (compare(tmp_path / "a", tmp_path / "b").first is None) == equal
