"""Compare estimated with measured memory on 1, 2 and 4 ranks, and store both.

    python -m ftcourse.studies.memory
    python -m ftcourse.studies.memory --output mine.json

Small models of three architectures, with random weights; one launch per number of ranks. About two minutes on two
cores.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import Module
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3Config

from ftcourse.measured_memory import measure_memory
from ftcourse.runs import Run, start
from ftkit.distributed.launch import run_forked
from ftkit.distributed.mesh import DistributedContext
from ftkit.memory import MemoryPlan, estimate_memory
from ftkit.models import data_dir, load_config

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS = {
    "llama": lambda: LlamaConfig(hidden_size=64, intermediate_size=172, num_hidden_layers=4, vocab_size=320, **HEADS),
    "qwen3, tied": lambda: Qwen3Config(
        hidden_size=66,
        intermediate_size=100,
        num_hidden_layers=3,
        head_dim=16,
        vocab_size=311,
        tie_word_embeddings=True,
        **HEADS,
    ),
    "gpt2, tied": lambda: GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=320, n_positions=64),
    "pocket-base": lambda: load_config(data_dir() / "pocket-base"),
}
MEASURED = "measured: "  # prefix of the line in which the measuring processes print their results
SIZE = {"micro_batch_size": 4, "max_length": 48}
CASES = {  # ranks -> (model, arguments of MemoryPlan)
    1: [
        ("pocket-base", {}),
        ("llama", {}),
        ("llama", {"activation_checkpointing": True}),
        ("llama", {"loss_chunk": 32}),
        ("llama", {"accumulation": 3}),
        ("llama", {"kernel": "foreach", "micro_batch_size": 1, "max_length": 16}),
        ("llama", {"param_dtype": "bfloat16", "compute_dtype": "bfloat16"}),
        ("llama", {"param_dtype": "bfloat16", "compute_dtype": "bfloat16", "master_copy": True}),
        ("llama", {"compute_dtype": "bfloat16"}),
        ("llama", {"method": "lora", "options": {"r": 4}}),
        ("llama", {"method": "frozen", "freeze": r"layers\.[01]\.|embed_tokens"}),
        ("qwen3, tied", {}),
        ("qwen3, tied", {"method": "child-tuning"}),
        ("qwen3, tied", {"method": "child-tuning", "child_state": "dense", "reserve_p": 0.1}),
        ("qwen3, tied", {"method": "child-tuning", "child_state": "compact", "reserve_p": 0.1}),
        (
            "qwen3, tied",
            {
                "method": "child-tuning",
                "child_state": "compact",
                "param_dtype": "bfloat16",
                "compute_dtype": "bfloat16",
            },
        ),
        ("gpt2, tied", {}),
        ("gpt2, tied", {"activation_checkpointing": True, "loss_chunk": 64}),
    ],
    2: [
        ("llama", {"mesh": (2, 1, 1), "ddp": True}),
        ("gpt2, tied", {"mesh": (2, 1, 1), "ddp": True, "activation_checkpointing": True}),
        ("pocket-base", {"mesh": (1, 2, 1)}),
        ("llama", {"mesh": (1, 2, 1), "reshard_after_forward": False}),
        ("llama", {"mesh": (1, 2, 1), "compute_dtype": "bfloat16", "activation_checkpointing": True}),
        ("llama", {"mesh": (1, 2, 1), "accumulation": 2}),
        ("llama", {"mesh": (1, 2, 1), "method": "lora", "options": {"r": 4}}),
        ("llama", {"mesh": (1, 2, 1), "method": "frozen", "freeze": "mlp|q_proj"}),
        ("qwen3, tied", {"mesh": (1, 2, 1)}),
        (
            "qwen3, tied",
            {"mesh": (1, 2, 1), "method": "child-tuning", "child_state": "compact", "reserve_p": 0.2},
        ),
        ("gpt2, tied", {"mesh": (1, 2, 1)}),
        ("llama", {"mesh": (1, 1, 2)}),
    ],
    4: [
        ("qwen3, tied", {"mesh": (4, 1, 1), "ddp": True}),
        ("llama", {"mesh": (1, 4, 1)}),
        ("qwen3, tied", {"mesh": (1, 4, 1), "method": "child-tuning"}),
        ("llama", {"mesh": (2, 2, 1)}),
        ("llama", {"mesh": (2, 2, 1), "loss_chunk": 32, "reshard_after_forward": False}),
        ("llama", {"mesh": (1, 2, 2)}),
        ("llama", {"mesh": (1, 2, 2), "activation_checkpointing": True, "compute_dtype": "bfloat16"}),
    ],
}


def plan_of(case: tuple[str, dict]) -> MemoryPlan:
    return MemoryPlan(**{**SIZE, **case[1]})


def build(config: PreTrainedConfig, device: str) -> Module:
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def child_of(model: Module, reserve_p: float) -> dict[str, torch.Tensor]:
    """A mask that is uneven over ranks: denser in the first rows."""
    masks = {}
    for name, parameter in model.named_parameters():
        chance = torch.linspace(2 * reserve_p, 0, parameter.shape[0])
        chance = chance.view(-1, *[1] * (parameter.ndim - 1)).expand(parameter.shape)
        masks[name] = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)) < chance
    return masks


def mask_for(case: tuple[str, dict]) -> dict[str, torch.Tensor] | None:
    plan = plan_of(case)
    if not plan.child_tuning or plan.child_state == "task-free":
        return None
    return child_of(build(CONFIGS[case[0]](), "cpu"), plan.reserve_p)


def predict(case: tuple[str, dict]) -> dict:
    found = estimate_memory(build(CONFIGS[case[0]](), "meta"), plan_of(case), mask_for(case))
    kinds = {kind: getattr(found, kind) for kind in ("weights", "gradients", "optimizer", "peak")}
    return {**kinds, "phase": found.phase, "at_peak": found.at_peak, "phases": found.phases}


def measure_here(context: DistributedContext, numbers: list[int]) -> list[list[dict]]:
    """Measure these cases of this number of ranks; of each case, what every rank measured."""
    torch.set_num_threads(1)
    found = []
    for case in (CASES[context.world_size][number] for number in numbers):
        plan = plan_of(case)
        mesh = None
        if context.world_size > 1:
            mesh = plan.mesh.build_mesh("cpu")
        measured = asdict(measure_memory(build(CONFIGS[case[0]](), "cpu"), plan, mesh, mask_for(case)))
        by_rank = [measured] * context.world_size
        if context.is_distributed:
            dist.all_gather_object(by_rank, measured)
        found.append(by_rank)
    return found


def measure(ranks: int, numbers: Iterable[int] | None = None) -> list[list[dict]]:
    """Measure in `ranks` processes the cases with these numbers, by default all; LaunchError where a rank fails."""
    run = start_measuring(ranks, numbers)
    try:
        return measured(run)
    finally:
        run.stop()


def start_measuring(ranks: int, numbers: Iterable[int] | None = None) -> Run:
    """Start `measure` in the background; `measured` waits for the results."""
    numbers = range(len(CASES[ranks])) if numbers is None else numbers
    return start("-m", "ftcourse.studies.memory", "--measure", ranks, "--numbers", *numbers, ranks=None)


def measured(run: Run) -> list[list[dict]]:
    (line,) = [line for line in run.result().splitlines() if line.startswith(MEASURED)]
    return json.loads(line.removeprefix(MEASURED))


def record(ranks: int) -> list[dict]:
    """One record per case: the model, the plan, and bytes estimated for rank 0 and measured on each rank."""
    measured = measure(ranks)
    return [
        {"ranks": ranks, "model": case[0], "plan": case[1], "predicted": predict(case), "measured": each}
        for case, each in zip(CASES[ranks], measured, strict=True)
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ftcourse.studies.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    output = data_dir() / "results" / "memory.json"
    parser.add_argument("--output", type=Path, default=output, help="where to store it (%(default)s)")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)  # on so many ranks, for `start_measuring`
    parser.add_argument("--numbers", type=int, nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.measure:

        def write(context: DistributedContext) -> None:
            found = measure_here(context, given.numbers)
            if context.is_main_process:
                print(f"\n{MEASURED}{json.dumps(found)}", flush=True)

        run_forked(write, given.measure)
        return 0
    rows = [row for ranks in CASES for row in record(ranks)]
    given.output.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    print(f"{len(rows)} cases stored in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
