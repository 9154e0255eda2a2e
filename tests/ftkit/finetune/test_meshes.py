"""Every mesh and technique of the program computes what a single process does, on a foreign model and ragged data.

One launch of 2 ranks and one of 4 run all cases; the single process runs here.
"""

import json
import re
import shutil
from itertools import combinations
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from ftkit.adapters import load_adapter
from ftkit.finetune import train
from ftkit.models import load_base
from tests import architectures
from tests.programs import run_program
from tests.tiny import WORDS, foreign_model, save_foreign

LAYERS = 2  # a first one and a last one
RECIPES = {
    "adamw": {"optimizer": "adamw"},
    "child": {"optimizer": "child-tuning"},
    "fisher": {"optimizer": "child-tuning-d", "fisher_rows": 6},
    "lora": {"method": "lora", "lora_r": 4},
    "bfloat16": {"optimizer": "adamw", "compute_dtype": "bfloat16"},
    "experts": {"optimizer": "adamw", "model": "mixtral"},  # whose tensors are converted on loading
    "mixers": {"optimizer": "adamw", "model": "falcon"},  # of which a module sets the buffers of others
    "images": {"optimizer": "adamw", "model": "gemma"},  # converted on loading, with buffers that tp replicates
    "dropout": {"optimizer": "adamw", "model": "neox"},  # of the residual stream, which tp ranks all hold
}
CASES = {  # name: (ranks, recipe, what else is set)
    "packed": (1, "child", {"packing": True, "max_length": 64}),
    "tp2": (2, "child", {"mesh": "1,1,2", "loss_chunk": 9}),
    "replicas2": (2, "adamw", {"mesh": "2,1,1"}),
    "fisher2": (2, "fisher", {"reshard_after_forward": False}),
    "mixed2": (2, "bfloat16", {"loss_chunk": 9}),
    "lora2": (2, "lora", {"activation_checkpointing": True, "loss_chunk": 9}),
    "experts2": (2, "experts", {}),
    "mixers2": (2, "mixers", {}),
    "images2": (2, "images", {"mesh": "1,1,2"}),
    "dropout2": (2, "dropout", {"mesh": "1,1,2"}),
    "packed2": (2, "child", {"packing": True, "max_length": 64, "loss_chunk": 50}),
    "shards4": (4, "child", {}),
    "both4": (4, "child", {"mesh": "1,-1,2"}),
    "hybrid4": (4, "adamw", {"mesh": "2,-1,1"}),
    "three4": (4, "fisher", {"mesh": "2,1,2"}),
    "lora4": (4, "lora", {"mesh": "2,2,1"}),
}
REFUSED = {  # name: (what else is set, what every rank says); of 2 ranks
    "missing": ({"model": "no_expert"}, "cannot convert the tensors of .*no_expert .* one is missing"),  # rank 0 reads
    "nan": ({"model": "broken"}, "lm_head.weight in .* holds NaN or infinity"),  # in the shard of rank 1
    "leaks": ({"model": "mamba", "packing": True}, "attend to the one before it .*: train without --packing"),
    "routed": ({"model": "router", "loss_chunk": 9}, r"--loss_chunk: \w*MixtralForCausalLM has another loss"),
}
pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("no_estimates")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    save_foreign(folder / "qwen", LAYERS)
    for name in ("mixtral", "falcon", "gemma", "neox", "mamba"):
        architectures.save(name, folder / name)
    architectures.save("mixtral", folder / "router", output_router_logits=True, router_aux_loss_coef=3.0)
    change(shutil.copytree(folder / "mixtral", folder / "no_expert"), lose="layers.1.block_sparse_moe.experts.3.w1")
    change(shutil.copytree(folder / "falcon", folder / "broken"), spoil="lm_head.weight")
    (folder / "chats.jsonl").write_text("\n".join(json.dumps(row) for row in conversations()))
    return folder


def change(folder: Path, lose: str = " ", spoil: str = "") -> None:
    """Write a folder's file anew without a tensor, or with NaN in the last entry of one."""
    held = {name: t for name, t in load_file(folder / "model.safetensors").items() if lose not in name}
    if spoil:
        held[spoil][-1, -1] = float("nan")
    save_file(held, folder / "model.safetensors", {"format": "pt"})


def conversations() -> list[dict]:
    """Short rows and long ones, of other words each. Only two lengths: torch works out anew for each shape of a
    micro-batch how every tensor-parallel operation is shared, and that took most of the time of these runs.
    """
    rows = []
    for i in range(11):
        words = WORDS[1 : 5 if i % 3 else 12]
        question, answer = ([WORDS[0], *words[j % 3 :], *words[: j % 3]] for j in (i, i // 3))
        turns = {"user": question, "assistant": answer}
        rows.append({"messages": [{"role": who, "content": " ".join(said)} for who, said in turns.items()]})
    return rows


def settings(folder: Path, name: str, recipe: str, **more) -> dict:
    base = {"model": "qwen", "data": str(folder / "chats.jsonl"), "output": str(folder / name)}
    base |= {"lr": 1e-2, "max_steps": 3, "batch_size": 5, "micro_batch_size": 2}
    base |= RECIPES[recipe] | more
    return base | {"model": str(folder / base["model"])}


@pytest.fixture(scope="module")
def runs(folder):
    """All runs, by name; a recipe's own name is its single process."""
    for recipe in RECIPES:
        train.main(flags(settings(folder, recipe, recipe)))
    train.main(flags(settings(folder, "packed", CASES["packed"][1], **CASES["packed"][2])))
    for ranks in (2, 4):
        cases = [settings(folder, n, recipe, **more) for n, (r, recipe, more) in CASES.items() if r == ranks]
        if ranks == 2:
            cases += [settings(folder, name, "adamw", **more) for name, (more, _) in REFUSED.items()]
        (folder / f"cases{ranks}.json").write_text(json.dumps(cases))
        program = Path(__file__).with_name("mesh_ranks.py")
        run_program(program, folder / f"cases{ranks}.json", ranks)
    return folder


def flags(case: dict) -> list[str]:
    return [w for k, v in case.items() for w in ((f"--{k}",) if v is True else (f"--{k}", str(v)))]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", CASES)
def test_losses_and_norms_are_those_of_a_single_process(runs, name):
    alone, these = metrics(runs / CASES[name][1]), metrics(runs / name)
    assert [row["step"] for row in these] == [1, 2, 3]
    # bfloat16 keeps 3 digits, and autocast, which the single process uses, rounds in other places than FSDP2.
    digits = 1000 if CASES[name][1] == "bfloat16" else 1
    for one, many in zip(alone, these, strict=True):
        # AdamW's third step has had two chances to enlarge the last digits.
        assert one["loss"] == pytest.approx(many["loss"], abs=5e-5 * digits)
    # The norm of the first step is that of the gradient alone; half of it would show, which AdamW hides.
    assert alone[0]["grad_norm"] == pytest.approx(these[0]["grad_norm"], rel=1e-5 * digits)


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_rank_refuses_all_refuse_in_the_same_words_and_without_a_folder(runs, name):
    said = json.loads((runs / f"{name}.refused").read_text())
    assert len(said) == 2 and said[0] == said[1] and re.search(REFUSED[name][1], said[0]), said
    assert not (runs / name).exists()


def test_the_recipes_are_different_runs(runs):
    """The mutation of the test above: it would be red if a flag did nothing."""
    last = {name: metrics(runs / name)[-1]["loss"] for name, recipe in RECIPES.items() if "model" not in recipe}
    assert abs(last.pop("bfloat16") - last["adamw"]) > 1e-4  # by rounding alone
    gaps = [abs(a - b) for a, b in combinations(last.values(), 2)]
    assert min(gaps) > 1e-3


@pytest.mark.parametrize("name", ["fisher", "fisher2", "three4"])
def test_task_dependent_child_tuning_moves_its_child_alone(runs, name):
    masks = load_file(runs / name / "masks.safetensors")
    start, end = (
        load_file(runs / "qwen/model.safetensors"),
        load_file(runs / name / "model/model.safetensors"),
    )
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept / sum(mask.numel() for mask in masks.values()) == pytest.approx(0.3, abs=0.01)
    for key, mask in masks.items():
        assert torch.equal(start[key][~mask], end[key][~mask]), key
    assert any(not torch.equal(start[key], end[key]) for key in masks)
    alone = load_file(runs / "fisher" / "masks.safetensors")
    differ = sum(int((masks[key] != alone[key]).sum()) for key in masks)
    assert differ <= kept // 1000  # scores next to the threshold, summed in another order


def test_a_lora_checkpoint_holds_the_adapters_alone_and_resumes(runs):
    sizes = [sum(f.stat().st_size for f in (runs / n / "checkpoints").rglob("*.distcp")) for n in RECIPES]
    assert sizes[3] < sizes[0] / 2
    for more in ({"stop_after": 2}, {"resume": True}):
        train.main(flags(settings(runs, "lora_again", "lora", **more)))
    assert [r["loss"] for r in metrics(runs / "lora_again")] == [r["loss"] for r in metrics(runs / "lora")]


@pytest.mark.parametrize("name", ["lora", "lora2", "lora4"])
def test_lora_exports_adapter_and_merged_model(runs, name):
    base, _ = load_base(runs / "qwen")
    adapted = load_adapter(base, runs / name / "adapter")
    assert isinstance(adapted, PeftModel)
    merged, _ = load_base(runs / name / "model")
    ids = torch.arange(3, 15).view(1, 12)
    untouched = load_base(runs / "qwen")[0](input_ids=ids).logits
    with_adapter = adapted(input_ids=ids).logits
    assert torch.allclose(with_adapter, merged(input_ids=ids).logits, atol=0.1)  # bfloat16
    assert (with_adapter - untouched).abs().max() > 0.3
    weights, start = merged.state_dict(), foreign_model(layers=LAYERS).state_dict()
    assert all(torch.equal(weights[k], start[k]) for k in start if "norm" in k or "embed" in k)
