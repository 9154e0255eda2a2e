"""The bytes of a real training step on this rank: what is held after it, and the most that was alive in it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from ftkit.child_tuning import ChildTuningAdamW
from ftkit.memory.estimate import OPTIMIZER_STEP, check
from ftkit.memory.live import LiveBytes
from ftkit.memory.plan import Plan
from ftkit.memory.step import (
    apply_method,
    causal_lm,
    distribute,
    forward_and_backward,
    label_gradients,
    make_batch,
    mark_layers,
)

LR = 1e-4  # any: bytes do not depend on it


@dataclass(frozen=True)
class Measured:
    """Bytes on this rank. `peak` is of live tensor storages, or on CUDA what the allocator had given out."""

    weights: int
    gradients: int
    optimizer: int  # without the step counters, 4 bytes for each parameter
    peak: int
    phases: dict[str, int]  # empty on CUDA
    splits: dict[str, dict[str, int]]  # each phase's peak by kind; empty on CUDA


def measure_memory(
    model: nn.Module,
    plan: Plan,
    mesh: DeviceMesh | None = None,
    gradient_mask: Mapping[str, torch.Tensor] | None = None,
) -> Measured:
    """Train `model` for two steps as `plan` says, on one made-up batch, and measure the second.

    `mesh` has the plan's shape and the names dp_replicate, dp_shard and tp; None for one rank. The model is changed:
    give a copy where you need it. Raises ValueError for a plan that the model, the mesh or torch cannot follow.
    """
    check(model, plan)
    if plan.moments not in ("", "float32" if plan.method == "child-tuning" else plan.weights):
        raise ValueError(
            f"moments in {plan.moments} can be estimated; no optimizer here keeps them: leave it out"
        )
    if plan.world_size > 1 and (mesh is None or mesh.shape != plan.mesh):
        raise ValueError(f"the plan's mesh is {plan.mesh}, and the one given is {mesh and mesh.shape}")
    device = next(model.parameters()).device
    vocabulary = causal_lm(model).config.get_text_config().vocab_size
    live = LiveBytes(vocabulary)
    model = apply_method(model, plan)
    counted = live if device.type != "cuda" else None
    if counted is None:
        return _on_cuda(model, plan, mesh, gradient_mask, vocabulary, device)
    with live:
        live.leave_out((gradient_mask or {}).values())
        live.label(model.parameters(), "weights")
        model = distribute(model, plan, mesh)
        mark_layers(model, live)
        label_gradients(model, live)
        step, held = stepper(model, plan, gradient_mask)
        batch = make_batch(plan, vocabulary, device)
        for _ in range(2):
            live.peaks.clear()
            live.at_peak.clear()
            forward_and_backward(model, plan, batch, live)
            live.begin(OPTIMIZER_STEP)
            step()
            live.label(held(), "optimizer")
            gradients = _nbytes(p.grad for p in model.parameters() if p.grad is not None)
            live.begin("end")
            model.zero_grad()
    phases = {phase: size for phase, size in live.peaks.items() if phase != "end"}
    splits = {phase: live.at_peak[phase] for phase in phases}
    return Measured(
        _nbytes(model.parameters()), gradients, _nbytes(held()), max(phases.values()), phases, splits
    )


def _on_cuda(model, plan, mesh, gradient_mask, vocabulary, device) -> Measured:
    model = distribute(model, plan, mesh)
    step, held = stepper(model, plan, gradient_mask)
    batch = make_batch(plan, vocabulary, device)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats(device)
        forward_and_backward(model, plan, batch)
        step()
        gradients = _nbytes(p.grad for p in model.parameters() if p.grad is not None)
        model.zero_grad()
    peak = torch.cuda.max_memory_allocated(device)
    return Measured(_nbytes(model.parameters()), gradients, _nbytes(held()), peak, {}, {})


def stepper(
    model: nn.Module, plan: Plan, gradient_mask: Mapping[str, torch.Tensor] | None = None
) -> tuple[Callable[[], None], Callable[[], Iterable[torch.Tensor]]]:
    """The plan's optimizer step, and a function that lists the tensors of its state."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    masters = []
    if plan.method == "child-tuning":
        mode = "task-free" if plan.child_state == "task-free" else "task-dependent"
        optimizer = ChildTuningAdamW(
            trained,
            lr=LR,
            reserve_p=plan.reserve_p,
            mode=mode,
            gradient_mask=gradient_mask,
            compact_state=plan.child_state == "compact",
        )
    else:
        masters = [p.detach().float().clone() for _, p in trained] if plan.master_copy else []
        stepped = masters or [p for _, p in trained]
        kernel = {"foreach": plan.kernel == "foreach", "fused": plan.kernel == "fused"}
        optimizer = torch.optim.AdamW(stepped, lr=LR, **kernel)

    def step() -> None:
        for master, (_, parameter) in zip(masters, trained, strict=False):
            master.grad = parameter.grad.float()
        optimizer.step()
        for master, (_, parameter) in zip(masters, trained, strict=False):
            parameter.data.copy_(master)
            master.grad = None

    def held() -> list[torch.Tensor]:
        kept = [
            t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)
        ]
        return masters + [t for t in kept if t.ndim]

    return step, held


def _nbytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)
