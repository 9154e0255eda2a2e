"""The bytes of a training step on one rank, before anything is loaded: from a model's shapes and a plan."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ftkit.distributed import tensor_parallel
from ftkit.distributed.sharding import decoder_layers
from ftkit.memory.communication import communication
from ftkit.memory.plan import Plan
from ftkit.memory.states import States, states
from ftkit.memory.step import apply_method, causal_lm
from ftkit.memory.trace import Trace, on_meta, trace

OPTIMIZER_STEP = "optimizer step"


@dataclass(frozen=True)
class Estimate:
    """Bytes on rank 0, which holds no less than any other; `at_peak` splits the peak by kind."""

    plan: Plan
    states: States
    phases: dict[str, int]  # the peak of each phase
    splits: dict[str, dict[str, int]]  # the same, by kind
    communication: dict[str, int]  # what a rank sends in a step, by operation
    traced: Trace  # the step without its optimizer

    @property
    def weights(self) -> int:
        return self.states.weights

    @property
    def gradients(self) -> int:
        return self.states.gradients

    @property
    def optimizer(self) -> int:
        return self.states.optimizer

    @property
    def phase(self) -> str:
        """The phase of the peak."""
        return max(self.phases, key=self.phases.get)

    @property
    def peak(self) -> int:
        return self.phases[self.phase]

    @property
    def at_peak(self) -> dict[str, int]:
        return self.splits[self.phase]

    def fits(self, capacity: int, reserve: float = 0.1) -> bool:
        """Whether the peak leaves `reserve` of `capacity` bytes to the context, libraries and fragmentation."""
        return self.peak <= capacity * (1 - reserve)


def estimate_memory(
    model: nn.Module,
    plan: Plan,
    gradient_mask: Mapping[str, torch.Tensor] | None = None,
    *,
    traced: Trace | None = None,
    every_layer: bool = False,
) -> Estimate:
    """Estimate a steady step (not the first, which has no moments yet) of a causal language model under a plan.

    `model` may lie on meta, and is not changed. `gradient_mask` is that of task-dependent child-tuning, where it is
    there already; `traced` the trace of a plan that differs in its optimizer alone. `every_layer` traces the whole
    depth, as a slower proof of the short cut that `ftkit.memory.trace` takes. Raises ValueError for a plan that the
    model cannot follow, RuntimeError in a process that is in a process group while the plan has several ranks.
    """
    check(model, plan)
    model = apply_method(on_meta(model), plan)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze {plan.freeze!r} leaves nothing to train: give a narrower pattern")
    return combine(
        model, plan, states(model, plan, 0, gradient_mask), traced or trace(model, plan, every_layer)
    )


def combine(model: nn.Module, plan: Plan, held: States, traced: Trace) -> Estimate:
    """What is held and what was traced, as one estimate, of a model with what trains chosen."""
    constant = {"optimizer": held.optimizer, "communication": held.buffers, "scratch": held.scratch}

    def with_states(split: dict[str, int]) -> dict[str, int]:
        return {k: v for k in {**split, **constant} if (v := split.get(k, 0) + constant.get(k, 0))}

    splits = {phase: with_states(split) for phase, split in traced.at_peak.items()}
    step = {"weights": held.weights, "gradients": held.gradients, "scratch": held.transient}
    splits[OPTIMIZER_STEP] = with_states(step)
    phases = {phase: sum(split.values()) for phase, split in splits.items()}
    return Estimate(plan, held, phases, splits, communication(model, plan), traced)


def check(model: nn.Module, plan: Plan) -> None:
    """Raise ValueError, with the remedy, where plan and model do not go together."""
    config = causal_lm(model).config.get_text_config()
    positions = getattr(config, "n_positions", None)  # a table of them: rotary models compute any
    if positions and plan.max_length > positions:
        raise ValueError(f"max_length is {plan.max_length}, and the model has {positions} positions")
    tp = plan.mesh[2]
    if tp == 1:
        return
    if plan.method == "lora":
        raise ValueError("LoRA and tensor parallelism do not go together here: give a mesh whose tp is 1")
    tensor_parallel.layer_styles(causal_lm(model))
    tensor_parallel.check(causal_lm(model).config, tp)
    if not decoder_layers(model):
        raise ValueError("the model has no layers to split")
