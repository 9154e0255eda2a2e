"""What the ranks of tests/distributed run: `python ranks.py CASE FOLDER RANKS`; rank 0 writes `FOLDER/CASE.json`."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from ftkit import _modules
from ftkit.distributed import fsdp, loading, mesh
from ftkit.distributed.launch import run_forked
from ftkit.parameters import count_parameters
from tests.tiny import foreign_model, save_foreign  # noqa: F401

INPUT_IDS = torch.arange(24).view(2, 12)  # (B, T)


def build_empty(folder: Path):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "qwen"), dtype=torch.float32)


def build_full(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder / "qwen", dtype=torch.float32)


def load(context: mesh.DistributedContext, folder: Path):
    return loading.load_from_rank0(
        lambda: build_empty(folder),
        lambda: build_full(folder),
        lambda model: fsdp.apply_fsdp(model, context.mesh),
        context.device,
    )


def delayed(context: mesh.DistributedContext, folder: Path) -> dict:
    """Losses, gradients and weights of the sharded model against the plain one, and what each rank holds."""
    model, plain = load(context, folder), build_full(folder)
    losses = []
    for each in (plain, model):
        loss = each(input_ids=INPUT_IDS, labels=INPUT_IDS).loss
        loss.backward()
        losses.append(loss.item())
    own = dict(plain.named_parameters())
    apart = [
        ((p.grad.full_tensor() - own[n].grad).abs().max() / own[n].grad.abs().max()).item()
        for n, p in model.named_parameters()
    ]
    same = all(torch.equal(p.full_tensor(), own[name]) for name, p in model.named_parameters())
    held = [None] * context.world_size
    dist.all_gather_object(held, count_parameters(model).local)
    return {
        "losses": losses,
        "gradients_apart": max(apart),
        "weights_equal": same,
        "held": held,
        "total": count_parameters(plain).total,
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
    }


def missing(context: mesh.DistributedContext, folder: Path) -> dict:
    """The mutation: rank 0 forgets to send its buffers; the check must name them."""
    # Only load_from_rank0's own broadcast: torch sends the weights by one as well.
    kept = {name: getattr(dist, name) for name in ("get_rank", "broadcast_object_list")}
    loading.dist = SimpleNamespace(**kept, broadcast=lambda *a, **k: None)
    said = [""] * context.world_size
    try:
        load(context, folder)
        mine = ""
    except RuntimeError as error:
        mine = str(error)
    finally:
        loading.dist = dist
    dist.all_gather_object(said, mine)
    return {"said": said}


def totals(context: mesh.DistributedContext, folder: Path) -> dict:
    return {
        "sum": context.sum(float(context.rank + 1)),
        "layers": len(_modules.decoder_layers(build_empty(folder))),
    }


if __name__ == "__main__":
    case, folder = sys.argv[1], Path(sys.argv[2])

    def main(context: mesh.DistributedContext) -> None:
        result = {"delayed": delayed, "missing": missing, "totals": totals}[case](context, folder)
        if context.is_main_process:
            (folder / f"{case}.json").write_text(json.dumps(result))

    run_forked(main, int(sys.argv[3]))
