"""Bytes of a training step on one rank, told from a model's shapes and a plan; nothing is loaded.

    python -m ftkit.memory                      pocket-base, one process, as python -m ftkit.finetune runs it
    python -m ftkit.memory llama-3-8b --mesh 1,8,1 --compute bfloat16 --activation_checkpointing --gpu_gib 80
    python -m ftkit.memory MODEL --method lora --lora_r 16 --json

MODEL is a published size, a folder with a config.json, or a name that transformers finds.
"""

import argparse
import json
import logging
import sys

from ftkit._arguments import parse

from .estimate import GIB, Estimate, estimate_memory, table
from .plan import CHILD_STATES, DTYPES, KERNELS, METHODS, OPTIMIZERS, SIZES, MemoryPlan, published_meta_model


def parser() -> argparse.ArgumentParser:
    plan = MemoryPlan()
    made = argparse.ArgumentParser(
        prog="ftkit memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("model", nargs="?", default="", help=f"pocket-base without one; or {', '.join(SIZES)}")
    made.add_argument("--method", choices=METHODS, default=plan.method)
    made.add_argument("--optimizer", choices=OPTIMIZERS, default=plan.optimizer)
    made.add_argument("--freeze", default="", help="pattern of the parameters to freeze: frozen, child-tuning")
    made.add_argument("--lora_r", type=int, default=8, help="rank of LoRA's matrices (%(default)s)")
    made.add_argument("--child_state", choices=CHILD_STATES, default=plan.child_state)
    made.add_argument("--reserve_p", type=float, default=plan.reserve_p, help="part that is the child")
    made.add_argument("--weights", choices=DTYPES, default=plan.weights, help="dtype that is stepped")
    made.add_argument("--compute", choices=DTYPES, default=plan.compute, help="dtype of activations")
    made.add_argument("--moments", choices=["", *DTYPES], default="", help="default: the optimizer's own")
    made.add_argument("--master_copy", action="store_true", help="float32 beside weights in fewer bits")
    made.add_argument("--mesh", default="1,1,1", help="ranks: dp_replicate,dp_shard,tp (%(default)s)")
    made.add_argument("--ddp", action="store_true", help="replicas under DDP, not fully_shard: mesh N,1,1")
    made.add_argument("--keep_gathered", action="store_true", help="do not free weights after forward")
    made.add_argument("--micro_batch_size", type=int, default=plan.micro_batch_size, help="(%(default)s)")
    made.add_argument("--max_length", type=int, default=plan.max_length, help="tokens of a row (%(default)s)")
    made.add_argument("--accumulation", type=int, default=1, help="micro-batches of a step (%(default)s)")
    made.add_argument("--activation_checkpointing", action="store_true")
    made.add_argument("--loss_chunk", type=int, default=0, help="tokens whose logits exist at once; 0: all")
    made.add_argument("--kernel", choices=KERNELS, default=plan.kernel, help="AdamW's: foreach on CUDA")
    made.add_argument("--gpu_gib", type=float, help="say whether it fits into this, with a tenth to spare")
    made.add_argument("--bandwidth", type=float, help="GB/s that a rank sends: say how long that takes")
    made.add_argument("--every_layer", action="store_true", help="trace the whole depth: slower, a proof")
    made.add_argument("--json", action="store_true", help="bytes, as JSON")
    return made


def plan_of(given: argparse.Namespace) -> MemoryPlan:
    """Raises ValueError for what is no plan."""
    try:
        mesh = tuple(int(part) for part in given.mesh.split(","))
    except ValueError:
        raise ValueError(f"--mesh is {given.mesh!r}: give three whole numbers, as in 1,8,1") from None
    same = ("method", "optimizer", "freeze", "child_state", "reserve_p", "weights", "compute", "moments")
    same += ("master_copy", "ddp", "micro_batch_size", "max_length", "accumulation")
    same += ("activation_checkpointing", "loss_chunk", "kernel")
    options = {"r": given.lora_r} if given.method == "lora" else {}
    return MemoryPlan(
        mesh=mesh,
        options=options,
        reshard_after_forward=not given.keep_gathered,
        **{name: getattr(given, name) for name in same},
    )


def as_json(found: Estimate, given: argparse.Namespace) -> str:
    said = {kind: getattr(found, kind) for kind in ("weights", "gradients", "optimizer", "peak", "phase")}
    said |= {"at_peak": found.at_peak, "phases": found.phases, "sent": found.communication}
    if given.gpu_gib:
        said["fits"] = found.fits(int(given.gpu_gib * GIB))
    return json.dumps(said, indent=1)


def main(arguments: list[str] | None = None) -> int:
    made = parser()
    given = parse(made, arguments)
    logging.disable(logging.WARNING)  # transformers warns of tokens that a tiny vocabulary lacks
    try:
        found = estimate_memory(published_meta_model(given.model), plan_of(given), every_layer=given.every_layer)
    except ValueError as error:
        made.error(str(error))
    if given.json:
        print(as_json(found, given))
        return 0
    print(table(found))
    if given.gpu_gib:
        fits = "fits" if found.fits(int(given.gpu_gib * GIB)) else "does not fit"
        print(f"{fits} into {given.gpu_gib:g} GiB with a tenth to spare")
    if given.bandwidth and found.communication:
        seconds = sum(found.communication.values()) / (given.bandwidth * 1e9)
        print(f"sending takes {seconds:.2f} s a step at {given.bandwidth:g} GB/s, where nothing overlaps it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
