"""Mesh, sharding and load_from_rank0 on two and three real ranks, against a single process."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from ftcourse.runs import LaunchError, torchrun
from ftkit._modules import decoder_layers
from ftkit.distributed import launch, loading
from tests.programs import run_program
from tests.tiny import foreign_model, save_foreign

PROGRAM = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    save_foreign(folder / "qwen")
    return folder


def on_ranks(case: str, folder: Path, ranks: int = 2) -> dict:
    run_program(PROGRAM, case, folder, ranks)
    return json.loads((folder / f"{case}.json").read_text())


@pytest.mark.parametrize("ranks", [2, 3])
def test_delayed_init_equals_the_single_process(folder, ranks):
    result = on_ranks("delayed", folder, ranks)
    assert result["weights_equal"] and result["tied"]
    assert result["losses"][0] == pytest.approx(result["losses"][1], abs=1e-6)
    assert result["gradients_apart"] < 1e-4
    assert sum(result["held"]) == result["total"]
    assert max(result["held"]) < result["total"] / ranks * 1.1


def test_buffers_that_nobody_sent_are_named(folder):
    first, second = on_ranks("missing", folder)["said"]
    assert first == ""  # rank 0 has computed its own
    assert re.match(r"\d tensors were left unset by loading: model\.rotary_emb\.\w*inv_freq", second)


def test_sums_over_ranks_and_layers(folder):
    assert on_ranks("totals", folder, ranks=3) == {"sum": 6.0, "layers": 3}


def test_a_single_process_has_no_mesh_and_sums_alone():
    seen = []
    launch.run_distributed(
        lambda context: seen.append((context.rank, context.world_size, context.mesh, context.sum(2.5)))
    )
    assert seen == [(0, 1, None, 2.5)]


def test_poison_and_what_stays_poisoned():
    model = foreign_model(torch.float32)
    loading.assert_initialized(model)
    loading.fill_with_nan(model)
    assert all(p.isnan().all() for p in model.parameters())
    for p in list(model.parameters())[1:]:
        nn.init.ones_(p)
    with pytest.raises(RuntimeError, match=r"tensors were left unset by loading: model\.embed_tokens\.weight"):
        loading.assert_initialized(model)
    remedy = r"left unset by loading: weight, bias\..*again \(restore_buffers\).*is it this model.s checkpoint"
    with pytest.raises(RuntimeError, match=remedy):
        loading.assert_initialized(nn.Linear(2, 2, device="meta"))


def test_decoder_layers_of_a_model_without_any():
    assert (
        decoder_layers(foreign_model()) == list(foreign_model().model.layers)
        or len(decoder_layers(foreign_model())) == 3
    )
    with pytest.raises(ValueError, match="no ModuleList"):
        decoder_layers(nn.Linear(2, 2))


def test_several_ranks_end_in_run_with_code_0_and_a_failure_does_not(tmp_path):
    program = tmp_path / "ends.py"
    lines = [
        "import sys",
        "from ftkit.distributed.launch import run_distributed",
        "def main(context):",
        "    print('inside', flush=True)",
    ]
    lines += [
        "    context.barrier()  # else the other may still be joining, and says that it cannot",
        "    if len(sys.argv) > 1: raise ValueError('no good')",
        "run_distributed(main)",
        "print('never', flush=True)",
    ]
    program.write_text("\n".join(lines))
    said = torchrun(program, ranks=2, quiet=True)
    assert said.count("inside") == 2 and "never" not in said
    with pytest.raises(LaunchError, match="no good"):
        torchrun(program, "fail", ranks=2, quiet=True)
