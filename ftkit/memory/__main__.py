"""Estimate the memory of a training step on one rank from a model's shapes and a plan; nothing is loaded.

    ftkit memory                                pocket-base, one process, as ftkit finetune runs it
    ftkit memory llama-3-8b --mesh 1,8,1 --compute_dtype bfloat16 --activation_checkpointing --gpu_gib 80
    ftkit memory MODEL --method lora --lora_r 16 --json
    ftkit memory llama-2-70b --method lora --base_dtype nf4 --param_dtype bfloat16 --compute_dtype bfloat16    QLoRA

MODEL is a published size, a folder with a config.json, or a name that transformers finds.
"""

import argparse
import json
import logging
import sys
from dataclasses import fields

from ftkit._arguments import parse

from .estimate import GIB, Estimate, estimate_memory, table
from .plan import (
    BASE_DTYPES,
    CHECKPOINT_POLICIES,
    CHILD_STATES,
    DTYPES,
    EIGHT_BITS,
    KERNELS,
    METHODS,
    OPTIMIZERS,
    SIZES,
    MemoryPlan,
    published_meta_model,
)

LORA_FLAGS = {  # flag -> option of ftkit.adapters.attach
    "lora_r": "r",
    "target_modules": "target_modules",
    "lora_dropout": "lora_dropout",
    "dora": "use_dora",
    "modules_to_save": "modules_to_save",
}
MOMENTS = "of AdamW (default: the parameters'); 8bit: in blocks with a scale each, as bitsandbytes has them"
POLICIES = "recompute all layers, every second one, or all but the matrix products of each (%(default)s)"


def make_parser() -> argparse.ArgumentParser:
    plan = MemoryPlan()
    parser = argparse.ArgumentParser(
        prog="ftkit memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="", help=f"pocket-base without one; or {', '.join(SIZES)}")
    parser.add_argument("--method", choices=METHODS, default=plan.method)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default=plan.optimizer)
    parser.add_argument("--freeze", default="", help="pattern of the parameters to freeze: frozen, child-tuning")
    lora = parser.add_argument_group("LoRA (--method lora)")
    lora.add_argument("--lora_r", type=int, help="rank of its matrices (8)")
    lora.add_argument("--target_modules", help="all-linear (default), or a regular expression for whole names")
    lora.add_argument("--lora_dropout", type=float, help="probability (0)")
    lora.add_argument("--dora", action="store_true", help="train magnitudes, too")
    lora.add_argument("--modules_to_save", help="modules that are fully trained, as in embed_tokens,lm_head")
    lora.add_argument("--base_dtype", choices=BASE_DTYPES, default="", help="nf4: linear layers in 4 bits (QLoRA)")
    parser.add_argument("--child_state", choices=CHILD_STATES, default=plan.child_state)
    parser.add_argument("--reserve_p", type=float, default=plan.reserve_p, help="fraction of weights that train")
    parser.add_argument("--param_dtype", choices=DTYPES, default=plan.param_dtype, help="dtype of the parameters")
    parser.add_argument("--compute_dtype", choices=DTYPES, default=plan.compute_dtype, help="dtype of activations")
    parser.add_argument("--moment_dtype", choices=["", *DTYPES, EIGHT_BITS], default="", help=MOMENTS)
    parser.add_argument("--master_copy", action="store_true", help="float32 beside weights in fewer bits")
    parser.add_argument(
        "--mesh", default="1,1,1", help="ranks: dp_replicate,dp_shard,tp (%(default)s); tp without sequence parallelism"
    )
    parser.add_argument("--ddp", action="store_true", help="replicas under DDP, not fully_shard: mesh N,1,1")
    parser.add_argument("--keep_unsharded", action="store_true", help="do not free weights after forward")
    parser.add_argument("--micro_batch_size", type=int, default=plan.micro_batch_size, help="(%(default)s)")
    parser.add_argument("--max_length", type=int, default=plan.max_length, help="tokens per sequence (%(default)s)")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches per step (%(default)s)")
    parser.add_argument("--packing", action="store_true", help="full sequences of several conversations, not padded")
    parser.add_argument("--activation_checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--checkpoint_policy", choices=CHECKPOINT_POLICIES, default="all", help=POLICIES)
    parser.add_argument("--loss_chunk", type=int, default=0, help="tokens whose logits exist at once; 0: all")
    parser.add_argument("--kernel", choices=KERNELS, help="AdamW's (as ftkit finetune's: fused)")
    parser.add_argument("--gpu_gib", type=float, help="print whether it fits into this, with a tenth to spare")
    parser.add_argument("--bandwidth", type=float, help="GB/s that a rank sends: print how long that takes")
    parser.add_argument("--every_layer", action="store_true", help="trace all layers, which is slower")
    parser.add_argument("--json", action="store_true", help="bytes, as JSON")
    return parser


def plan_of(given: argparse.Namespace) -> MemoryPlan:
    """The plan of the arguments. Raises ValueError if it is not possible."""
    try:
        mesh = tuple(int(part) for part in given.mesh.split(","))
    except ValueError:
        raise ValueError(f"--mesh is {given.mesh!r}: give three whole numbers, as in 1,8,1") from None
    same = {field.name: getattr(given, field.name) for field in fields(MemoryPlan) if hasattr(given, field.name)}
    options = {option: value for flag, option in LORA_FLAGS.items() if (value := getattr(given, flag))}
    if options and given.method != "lora":
        flags = " and ".join(f"--{flag}" for flag, option in LORA_FLAGS.items() if option in options)
        raise ValueError(f"{flags} is for LoRA, and --method is {given.method}: give --method lora")
    if "modules_to_save" in options:
        options["modules_to_save"] = options["modules_to_save"].split(",")
    same["kernel"] = given.kernel or ("loop" if "child-tuning" in (given.method, given.optimizer) else "fused")
    return MemoryPlan(**{**same, "mesh": mesh, "options": options, "reshard_after_forward": not given.keep_unsharded})


def as_json(estimate: Estimate, given: argparse.Namespace) -> str:
    values = {key: getattr(estimate, key) for key in ("weights", "gradients", "optimizer", "peak", "phase")}
    values |= {"at_peak": estimate.at_peak, "phases": estimate.phases, "sent": estimate.communication}
    if given.gpu_gib:
        values["fits"] = estimate.fits(int(given.gpu_gib * GIB))
    return json.dumps(values, indent=1)


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    given = parse(parser, arguments)
    logging.disable(logging.WARNING)  # transformers warns of tokens that a tiny vocabulary lacks
    try:
        estimate = estimate_memory(published_meta_model(given.model), plan_of(given), every_layer=given.every_layer)
    except ValueError as error:
        parser.error(str(error))
    if given.json:
        print(as_json(estimate, given))
        return 0
    print(table(estimate))
    if given.gpu_gib:
        fits = "fits" if estimate.fits(int(given.gpu_gib * GIB)) else "does not fit"
        print(f"{fits} into {given.gpu_gib:g} GiB with a tenth to spare")
    if given.bandwidth and estimate.communication:
        seconds = sum(estimate.communication.values()) / (given.bandwidth * 1e9)
        print(f"sending takes {seconds:.2f} s a step at {given.bandwidth:g} GB/s, where nothing overlaps it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
