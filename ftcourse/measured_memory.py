"""Measure the memory of a real training step on this rank: model states and peak."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from ftkit.child_tuning import ChildTuningAdamW
from ftkit.memory.estimate import OPTIMIZER_STEP, validate
from ftkit.memory.plan import MemoryPlan
from ftkit.memory.step import apply_method, apply_plan, forward_and_backward, label_gradients, mark_layers, unwrap_peft
from ftkit.memory.tracker import MemoryTracker
from ftkit.parameters import decay_groups

LR = 1e-4  # arbitrary: memory does not depend on it


@dataclass(frozen=True)
class Measured:
    """Bytes on this rank. `peak` counts live tensor storages; on CUDA it is the allocator's `max_memory_allocated`."""

    weights: int
    gradients: int
    optimizer: int  # without the step counters, 4 bytes for each parameter
    peak: int
    phases: dict[str, int]  # empty on CUDA
    splits: dict[str, dict[str, int]]  # each phase's peak by kind; empty on CUDA


def measure_memory(
    model: nn.Module,
    plan: MemoryPlan,
    mesh: DeviceMesh | None = None,
    gradient_mask: Mapping[str, torch.Tensor] | None = None,
) -> Measured:
    """Train `model`, in place, for two steps on a synthetic batch and measure the second.

    On several ranks a third step is measured, too, and the lower peak of each phase taken: a thread of gloo can hold a
    buffer for a moment after its collective has ended, and whether it does is chance.

    `mesh` is the plan's (`ParallelDims.build_mesh`), or None for one rank. Raises ValueError if the model, the mesh or
    torch's optimizers do not support the plan.
    """
    validate(model, plan)
    if plan.moment_dtype not in ("", "float32" if plan.child_tuning else plan.param_dtype):
        raise ValueError(f"moments in {plan.moment_dtype} can be estimated; no optimizer here keeps them: leave it out")
    if plan.world_size > 1 and (mesh is None or mesh.shape != plan.mesh.sizes):
        raise ValueError(f"the plan's mesh is {plan.mesh}, and the one given is {mesh and mesh.shape}")
    device = next(model.parameters()).device
    vocabulary = unwrap_peft(model).config.get_text_config().vocab_size
    model = apply_method(model, plan)
    if device.type == "cuda":
        return _on_cuda(model, plan, mesh, gradient_mask, vocabulary, device)
    tracker = MemoryTracker(vocabulary)
    with tracker:
        tracker.ignore((gradient_mask or {}).values())
        tracker.label(model.parameters(), "weights")
        model = apply_plan(model, plan, mesh)
        mark_layers(model, tracker)
        label_gradients(model, tracker)
        step, state_tensors = make_step(model, plan, gradient_mask)
        measured = []
        for _ in range(2 if mesh is None or mesh.size() == 1 else 3):
            tracker.clear_peaks()
            forward_and_backward(model, plan, vocabulary, tracker)
            tracker.begin(OPTIMIZER_STEP)
            step()
            tracker.label(state_tensors(), "optimizer")
            gradients = _nbytes(p.grad for p in model.parameters() if p.grad is not None)
            measured.append((tracker.peaks, tracker.at_peak))
            tracker.begin("end")
            model.zero_grad()
    phases, splits = lowest_peaks(measured[1:])
    peak = max(phases.values())
    return Measured(_nbytes(model.parameters()), gradients, _nbytes(state_tensors()), peak, phases, splits)


def lowest_peaks(steps: Sequence[tuple[dict[str, int], dict[str, dict]]]) -> tuple[dict[str, int], dict[str, dict]]:
    """Of each phase the lowest peak among the steps, and how it splits; a step is (bytes by phase, split by phase)."""
    best = {phase: min(steps, key=lambda step: step[0][phase]) for phase in steps[0][0] if phase != "end"}
    return {p: step[0][p] for p, step in best.items()}, {p: step[1][p] for p, step in best.items()}


def _on_cuda(model, plan, mesh, gradient_mask, vocabulary, device) -> Measured:
    model = apply_plan(model, plan, mesh)
    step, state_tensors = make_step(model, plan, gradient_mask)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats(device)
        forward_and_backward(model, plan, vocabulary)
        step()
        gradients = _nbytes(p.grad for p in model.parameters() if p.grad is not None)
        model.zero_grad()
    peak = torch.cuda.max_memory_allocated(device)
    return Measured(_nbytes(model.parameters()), gradients, _nbytes(state_tensors()), peak, {}, {})


def make_step(
    model: nn.Module, plan: MemoryPlan, gradient_mask: Mapping[str, torch.Tensor] | None = None
) -> tuple[Callable[[], None], Callable[[], Iterable[torch.Tensor]]]:
    """The plan's optimizer step, and a function that lists the tensors of its state."""
    groups = decay_groups(model.named_parameters(), 0.01)  # memory does not depend on the weight decay
    trained = [p for group in groups for _, p in group["params"]]
    masters = []
    if plan.child_tuning:
        mode = "task-free" if plan.child_state == "task-free" else "task-dependent"
        options = {"reserve_p": plan.reserve_p, "mode": mode, "compact_state": plan.child_state == "compact"}
        optimizer = ChildTuningAdamW(groups, lr=LR, gradient_mask=gradient_mask, **options)
    else:
        if plan.master_copy:
            copy_of = {p: p.detach().float().clone() for p in trained}
            masters = list(copy_of.values())
            groups = [{**g, "params": [(name, copy_of[p]) for name, p in g["params"]]} for g in groups]
        kernel = {"foreach": plan.kernel == "foreach", "fused": plan.kernel == "fused"}
        optimizer = torch.optim.AdamW(groups, lr=LR, **kernel)

    def step() -> None:
        for master, parameter in zip(masters, trained, strict=False):
            master.grad = parameter.grad.float()
        optimizer.step()
        for master, parameter in zip(masters, trained, strict=False):
            parameter.data.copy_(master)
            master.grad = None

    def state_tensors() -> list[torch.Tensor]:
        kept = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        return masters + [t for t in kept if t.ndim]

    return step, state_tensors


def _nbytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)
