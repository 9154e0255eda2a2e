"""Sharded and replicated training against one process: equal masks to the bit, equal weights to rounding.

Every run gets the same gradients, so nothing but the optimizer can differ. Weights agree within 1e-6: torch's
fused kernel treats the ends of a tensor differently in the last bit, and shards end elsewhere.
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ftkit.child_tuning import fisher_information, gradient_mask, load_masks, top_fraction_masks

from . import ranks

TOLERANCE = 1e-6
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # loading in one process


def launch(cases: list[str], world_size: int, folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Run the cases one after another on `world_size` ranks; returns what rank 0 saved for each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, ranks.__file__, ",".join(cases), str(folder)],
            env={**common, "RANK": str(rank), "WORLD_SIZE": str(world_size)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * world_size, "\n".join(outputs)
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


@pytest.fixture(scope="module")
def single() -> dict[str, torch.Tensor]:
    model = ranks.Small()
    return ranks.train(model, ranks.build(model), 0, ranks.STEPS)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("two")
    cases = [
        "fsdp",
        "ddp",
        "partial",
        "mutated",
        "chunks",
        "flattened",
        "child fsdp",
        "child fsdp compact",
        "fisher fsdp",
    ]
    return launch(cases, 2, folder) | {"folder": folder}


@pytest.fixture(scope="module")
def four(tmp_path_factory, two) -> dict[str, dict[str, torch.Tensor]]:
    """On four ranks: two ways of sharding, each of them also resumed from what two ranks have saved."""
    folder = tmp_path_factory.mktemp("four")
    shutil.copytree(two["folder"] / "checkpoint", folder / "checkpoint")
    cases = ["resume fsdp", "resume 2d", "fsdp", "2d", "chunks", "child 2d", "child 2d compact", "fisher 2d"]
    return launch(cases, 4, folder) | {"folder": folder}


def check_equal(results: dict[str, torch.Tensor], single: dict[str, torch.Tensor]) -> None:
    for key, value in results.items():
        if key.startswith("mask"):
            assert torch.equal(value, single[key]), key
        else:
            torch.testing.assert_close(value, single[key], rtol=0, atol=TOLERANCE, msg=key)


def test_the_single_process_uses_the_documented_masks(single):
    for name, param in ranks.Small().named_parameters():
        for step in range(1, ranks.STEPS + 1):
            expected = gradient_mask(param.shape, 0.4, seed=2, step=step, name=name)
            assert torch.equal(single[f"mask {step} {name}"], expected)


def test_two_fsdp_ranks_equal_one_process(two, single):
    assert len(two["fsdp"]) == len(single)
    check_equal(two["fsdp"], single)


def test_the_same_mask_on_all_shards_is_noticed(two, single):
    with pytest.raises(AssertionError):
        check_equal({key: value for key, value in two["mutated"].items() if key.startswith("mask")}, single)


@pytest.mark.parametrize("case", ["fsdp", "2d"])
def test_four_ranks_equal_one_process(four, single, case):
    assert len(four[case]) == len(single)
    check_equal(four[case], single)


@pytest.mark.parametrize("case", ["resume fsdp", "resume 2d"])
def test_a_run_of_two_ranks_resumes_on_four(four, single, case):
    assert f"mask {ranks.RESUMED_AT + 1} up.weight" in four[case]
    check_equal(four[case], single)


@pytest.fixture(scope="module")
def single_child() -> dict[str, torch.Tensor]:
    model = ranks.Small()
    return ranks.train_task_dependent(model, ranks.build(model, "task-dependent"), 0, ranks.STEPS)


@pytest.mark.parametrize("case", ["child fsdp", "child fsdp compact"])
def test_task_dependent_on_two_ranks_equals_one_process(two, single_child, case):
    """Each run has saved half-way, and went on with the other kind of state, dense or compact."""
    check_equal(two[case], single_child)


@pytest.mark.parametrize("case", ["child 2d", "child 2d compact"])
def test_task_dependent_on_four_ranks_equals_one_process(four, single_child, case):
    check_equal(four[case], single_child)


@pytest.mark.parametrize("compact", [False, True])
def test_a_child_of_two_ranks_resumes_on_one(two, single_child, compact):
    results = ranks.resume_task_dependent(ranks.Small(), compact, two["folder"])
    check_equal(results, single_child)


@pytest.fixture(scope="module")
def single_fisher(tmp_path_factory) -> dict[str, torch.Tensor]:
    scores = fisher_information(ranks.Small(), ranks.fisher_batches(), loss=ranks.fisher_loss)
    results = {f"score {name}": score for name, score in scores.items()}
    return results | {f"mask {name}": mask for name, mask in top_fraction_masks(scores, 0.3).items()}


@pytest.mark.parametrize("world, case", [("two", "fisher fsdp"), ("four", "fisher 2d")])
def test_the_child_of_a_sharded_model_is_that_of_one_process(request, single_fisher, world, case):
    results = request.getfixturevalue(world)
    for key, expected in single_fisher.items():
        torch.testing.assert_close(results[case][key], expected, rtol=1e-4, atol=1e-9)
    loaded = load_masks(results["folder"] / "child.safetensors")
    assert all(torch.equal(loaded[name], single_fisher[f"mask {name}"]) for name in loaded) and len(loaded) == 7
    tied = {name: results[case][f"tied {name}"] for name in loaded}
    for name, mask in top_fraction_masks(tied, 0.3).items():
        assert torch.equal(results[case][f"tied mask {name}"], mask), name
    kept = sum(int(results[case][f"tied mask {name}"].sum()) for name in loaded)
    assert kept == round(0.3 * sum(score.numel() for score in tied.values()))
    chosen = top_fraction_masks(tied, 0.3)
    least = min(float(score[chosen[name]].min()) for name, score in tied.items() if chosen[name].any())
    assert kept < sum(int((score >= least).sum()) for score in tied.values())  # ties there are
    # Had every process its own threshold, another child would come out.
    own = [results[case][f"own {name}"] for name in loaded]
    assert not all(torch.equal(a, loaded[name]) for a, name in zip(own, loaded, strict=True))


def test_a_run_of_two_ranks_resumes_on_one(two, single):
    model = ranks.Small()
    check_equal(ranks.resume(model, ranks.build(model), two["folder"]), single)


def test_torch_still_tells_where_shards_lie_and_marks_flattened_parameters(two, four):
    """Both are private to torch; each rank has checked them on itself, and would have failed here."""
    assert {"chunks", "flattened"} <= two.keys() and "chunks" in four


def test_replicas_draw_the_same_mask(two):
    first, second = two["ddp"]["replicas"]
    assert torch.equal(first, second)


def test_gradients_that_are_parts_of_a_sum_are_summed(two):
    keep = gradient_mask((50,), 0.5, seed=0, step=1, name="w")
    assert torch.equal(two["partial"]["exp_avg"], torch.where(keep, 6.0, 0.0))
