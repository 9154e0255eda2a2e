"""What the ranks of test_loading and test_tensor_parallel run: `python loading_ranks.py FOLDER RANKS`.

All cases of a number of ranks in one launch, as a launch takes longer than a case. Rank 0 writes `FOLDER/N.json`.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import RowwiseParallel
from transformers import AutoModelForCausalLM

from ftkit.distributed import loading, mesh, tensor_parallel
from ftkit.distributed.fsdp import apply_fsdp
from ftkit.distributed.grad_clip import clip_grad_norm_
from ftkit.distributed.launch import run_forked
from ftkit.models import meta_model
from ftkit.parameters import count_parameters

MAX_NORM = 0.1
LR = 0.5


def batches(vocabulary: int) -> list[dict[str, torch.Tensor]]:
    """Two micro-batches of ragged rows (B, T) with padding and masked labels."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in (12, 9):
        ids = torch.randint(0, vocabulary, (4, length), generator=generator)
        attention = torch.ones_like(ids)
        attention[1, length - 3 :] = 0
        made.append({"input_ids": ids, "attention_mask": attention, "labels": ids.masked_fill(attention == 0, -100)})
    return made


def step(model, ranks=None) -> dict[str, torch.Tensor | float]:
    """Two accumulated micro-batches, clipped, one step: losses, gradients before clipping, norm, weights."""
    part, parts = (ranks.dp_rank, ranks.dp_size) if ranks else (0, 1)
    losses = []
    for batch in batches(model.config.vocab_size):
        labels = batch.pop("labels")[:, 1:]
        tokens = (labels != -100).sum()
        mine = {name: tensor.chunk(parts)[part] for name, tensor in batch.items()}
        logits = model(**mine, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.chunk(parts)[part].flatten(), reduction="sum"
        )
        (loss * parts / tokens).backward()  # FSDP averages
        losses.append((ranks.sum(loss.item()) if ranks else loss.item()) / tokens.item())
    gradients = {name: whole(p.grad).clone() for name, p in model.named_parameters()}
    norm = clip_grad_norm_(model.parameters(), MAX_NORM)
    clipped = {name: whole(p.grad).clone() for name, p in model.named_parameters()}
    torch.optim.SGD(model.parameters(), lr=LR).step()
    weights = {name: whole(p).detach().clone() for name, p in model.named_parameters()}
    return {"losses": losses, "norm": norm, "gradients": gradients, "clipped": clipped, "weights": weights}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of a tensor's entries, relative to its largest entry.

    The gradient of a key's bias is nothing but rounding, for softmax does not see it: taken relative to a
    thousandth of the largest entry of all.
    """
    largest = max(tensor.abs().max().item() for tensor in b.values())
    return max(((a[n] - b[n]).abs().max() / max(b[n].abs().max().item(), 1e-3 * largest)).item() for n in b)


def compare(found: dict, expected: dict) -> dict[str, float]:
    return {
        "losses": max(abs(a - b) for a, b in zip(found["losses"], expected["losses"], strict=True)),
        "norm": abs(found["norm"] / expected["norm"] - 1),
        "gradients": apart(found["gradients"], expected["gradients"]),
        "clipped": apart(found["clipped"], expected["clipped"]),
        "weights": apart(found["weights"], expected["weights"]),
    }


def cut(model, context: mesh.DistributedContext, fsdp: bool):
    if context.tp_mesh is not None:
        model = tensor_parallel.apply_tensor_parallel(model, context.tp_mesh)
    return apply_fsdp(model, context.mesh) if fsdp else model


def load(source, context: mesh.DistributedContext, fsdp: bool = True):
    return loading.load_sharded_model(
        lambda: meta_model(str(source)), partial(cut, context=context, fsdp=fsdp), source, context.device
    )


def plain(source):
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)


def equal(source, context: mesh.DistributedContext, fsdp: bool) -> dict:
    """Weights as loaded, a step's losses, gradients, norm and weights against a single process."""
    reference, model = plain(source), load(source, context, fsdp)
    own = dict(reference.named_parameters())
    result = {
        "loaded": all(torch.equal(whole(p), own[name]) for name, p in model.named_parameters()),
        "buffers": all(torch.equal(a, b) for a, b in zip(model.buffers(), reference.buffers(), strict=True)),
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
        "held": everywhere(count_parameters(model).local, context),
        "total": count_parameters(reference).total,
    }
    expected = step(reference)
    return {**result, **compare(step(model, context), expected)}


def everywhere(value, context: mesh.DistributedContext) -> list:
    values = [None] * context.world_size
    dist.all_gather_object(values, value)
    return values


def without_its_sum(source, context: mesh.DistributedContext) -> dict:
    """The mutation: row-parallel layers keep this rank's part of the sum."""
    keep = RowwiseParallel._prepare_output_fn
    RowwiseParallel._prepare_output_fn = staticmethod(lambda layouts, local, module, out, mesh: out.to_local())
    try:
        return equal(source, context, fsdp=False)
    finally:
        RowwiseParallel._prepare_output_fn = staticmethod(keep)


def norms_left_alone(source, context: mesh.DistributedContext) -> dict:
    """The mutation: the norms of heads are left out of the plan, so each rank has the gradient of its heads."""
    keep = tensor_parallel.STYLES["replicated_with_grad_allreduce"]
    tensor_parallel.STYLES["replicated_with_grad_allreduce"] = lambda: LeaveAlone()
    try:
        return equal(source, context, fsdp=False)
    finally:
        tensor_parallel.STYLES["replicated_with_grad_allreduce"] = keep


class LeaveAlone(tensor_parallel.ParallelStyle):
    def _apply(self, module, device_mesh):
        return module


def from_rank0(source, context: mesh.DistributedContext) -> bool:
    model = loading.load_from_rank0(
        lambda: meta_model(str(source)),
        lambda: plain(source),
        partial(cut, context=context, fsdp=True),
        context.device,
    )
    own = dict(plain(source).named_parameters())
    return all(torch.equal(whole(p), own[name]) for name, p in model.named_parameters())


def partial_gradients(source, context: mesh.DistributedContext) -> list[str]:
    """Which gradients come as parts of a sum, so that clipping must sum them."""
    model = load(source, context, fsdp=False)
    model(input_ids=torch.arange(8).view(1, 8)).logits.square().mean().backward()
    placed = {name: getattr(p.grad, "placements", ()) for name, p in model.named_parameters()}
    return [name for name, places in placed.items() if any(place.is_partial() for place in places)]


def stock_clip(source, context: mesh.DistributedContext) -> str:
    """Why ftkit has a clip of its own: what torch's says to two meshes."""
    model = load(source, context)
    model(input_ids=torch.arange(8).view(1, 8)).logits.square().mean().backward()
    try:
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    except Exception as error:
        return str(error)
    return ""


def cases(context: mesh.DistributedContext, folder: Path) -> dict:
    qwen, llama = folder / "qwen", folder / "llama"
    if context.world_size == 4:
        return {
            "qwen": equal(qwen, context, fsdp=True),
            "llama": equal(llama, context, fsdp=True),
            "from rank 0": from_rank0(llama, context),
            "stock clip": stock_clip(llama, context),
        }
    return {
        "qwen": equal(qwen, context, fsdp=False),
        "llama": equal(llama, context, fsdp=False),
        "qwen in FSDP": equal(qwen, context, fsdp=True),
        "without its sum": without_its_sum(llama, context),
        "norms left alone": norms_left_alone(qwen, context),
        "partial": partial_gradients(qwen, context),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])

    def main(context: mesh.DistributedContext) -> None:
        result = cases(context, folder)
        if context.is_main_process:
            (folder / f"{context.world_size}.json").write_text(json.dumps(result))

    run_forked(main, int(sys.argv[2]), mesh="1,-1,2")
