"""`ChildTuningAdamW`, and the checks of its parameter groups."""

import torch

from ftkit._compat import is_flattened_by_fsdp1
from ftkit._modules import clean_name
from ftkit.dtensor import local_gradient, local_region, local_tensor, shard_like

from .local_param import LocalParam
from .masks import DRAW_RANGE, draw_threshold, effective_p, mask_key
from .state import MOMENTS, compact_update, load_checked, moment_dtype, save_dense, to_compact
from .update import dense_update, masked_update

MODES = ("task-free", "task-dependent")
_HYPERPARAMS = ("lr", "weight_decay", "eps", "amsgrad", "maximize", "foreach", "fused")


class ChildTuningAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` with a gradient mask: Child-Tuning_F and Child-Tuning_D (Xu et al., EMNLP 2021).

    **task-free**: each step draws a new mask that keeps each gradient entry with probability p = `reserve_p` and
    rescales it by 1/p, as inverted dropout does, which keeps the gradient unbiased. Nothing is frozen: momentum moves
    masked entries too, and decoupled weight decay acts on every element. In Adam the factor 1/p nearly cancels; what
    remains is a mean update smaller by the square root of p.

    **task-dependent** (the paper's task-driven): a given mask (see `fisher_mask`) selects the child network for the
    whole training. Gradients are not rescaled; weights outside it are neither updated nor decayed.

    A mask depends on seed, step, name and element only: not on micro-batches, processes, sharding, device or resume.
    `param.grad` is only read, so gradient norms are those of the unmasked gradient; clip before `step()`. inf or NaN
    outside the mask does no harm. Plain tensors, DDP, and DTensors of FSDP2 and tensor parallelism are handled; build
    the optimizer after `fully_shard`. Masks are drawn on the CPU and copied block by block; on CUDA with Triton a
    kernel draws those of task-free steps (see `triton_kernel`), unless `fused=False` or `foreach=True`.

    Args:
        named_params: `model.named_parameters()`, or groups: dicts whose `params` are (name, parameter) pairs.
            Names key the masks. A group may have its own `reserve_p`, `mode`, `gradient_mask` and `seed`.
        lr, betas, eps, weight_decay, amsgrad, maximize, foreach, fused: as in `torch.optim.AdamW`, but fused by
            default. `capturable` and `differentiable` are refused, because the mask's key is computed on the host.
        reserve_p: probability of keeping an entry, in (0, 1]; not used in task-dependent mode. 1 is bitwise identical
            to `torch.optim.AdamW(fused=True)` where moments have the weights' dtype.
        mode: "task-free" or "task-dependent".
        gradient_mask: for task-dependent groups, bool tensors by parameter name, of the whole parameter's shape.
        seed: any integer, the same on every process.
        fp32_moments: keep moments of bfloat16 and float16 weights in float32, because in bfloat16 the second moment
            times 0.999 rounds back to itself and never shrinks.
        compact_state: in task-dependent groups, store moments and 4-byte indices of the child network alone.

    Raises:
        ValueError: names, `reserve_p`, mode or masks do not fit; the message names the group or parameter.
    """

    def __init__(
        self,
        named_params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        amsgrad=False,
        *,
        reserve_p: float = 0.3,
        mode: str = "task-free",
        gradient_mask: dict[str, torch.Tensor] | None = None,
        seed: int = 0,
        fp32_moments: bool = True,
        compact_state: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ):
        if capturable or differentiable:
            raise ValueError("ChildTuningAdamW supports neither capturable=True nor differentiable=True: leave them")
        if isinstance(named_params, torch.Tensor):
            raise ValueError("ChildTuningAdamW needs names, not a tensor: pass model.named_parameters()")
        own = {"reserve_p": reserve_p, "mode": mode, "seed": seed}
        own |= {"fp32_moments": fp32_moments, "compact_state": compact_state}
        groups = list(named_params)
        if groups and not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        # Before super().__init__, which adds the groups, the defaults lack our options.
        groups = [{**own, "gradient_mask": gradient_mask, **group} for group in groups]
        super().__init__(groups, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, foreach=foreach, fused=fused)
        self.defaults.update(own)
        self._step_supports_amp_scaling = False  # GradScaler unscales the gradients before it calls step()

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient; a closure is evaluated first, and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            hyperparams = {name: group[name] for name in _HYPERPARAMS}
            hyperparams["beta1"], hyperparams["beta2"] = group["betas"]
            local_params = [
                self._local_param(name, param, group)
                for name, param in zip(group["param_names"], group["params"], strict=True)
                if param.grad is not None
            ]
            threshold = draw_threshold(group["reserve_p"])
            if group["mode"] == "task-free" and threshold == DRAW_RANGE:
                same = [local for local in local_params if local.param.dtype == local.moments[0].dtype]
                dense_update(same, hyperparams)
                local_params = [local for local in local_params if local.param.dtype != local.moments[0].dtype]
            compact_update([local for local in local_params if local.mask_indices is not None], hyperparams)
            local_params = [local for local in local_params if local.mask_indices is None]
            masked_update(local_params, hyperparams, threshold, 1 / effective_p(group["reserve_p"]))
        return loss

    @torch.no_grad()
    def add_param_group(self, param_group: dict) -> None:
        """Add a group of (name, parameter) pairs; missing options are the optimizer's defaults."""
        group = dict(param_group)
        label = f"parameter group {len(self.param_groups)}"
        masks = group.pop("gradient_mask", None)
        taken = {clean_name(name) for other in self.param_groups for name in other["param_names"]}
        if not isinstance(group["params"], set | torch.Tensor):
            group["params"] = list(group["params"])
        _check_names(group["params"], label, taken)
        options = {**self.defaults, **group}
        _check_options(options, label)
        if options["mode"] == "task-dependent":
            masks = _check_masks(masks, group["params"], label)
        super().add_param_group(group)
        if options["mode"] == "task-dependent":
            group = self.param_groups[-1]
            for name, param in zip(group["param_names"], group["params"], strict=True):
                if (mask := masks.get(clean_name(name))) is None:
                    continue  # frozen; once it has a gradient, step() raises
                # The mask is part of the state, so that every kind of checkpoint saves it with the moments.
                state = {**self._new_state(param, group), "gradient_mask": shard_like(mask, param)}
                self.state[param] = to_compact(state) if group["compact_state"] else state

    def load_state_dict(self, state_dict: dict) -> None:
        """Resume from a state of this optimizer or of `torch.optim.AdamW`; masks continue from the saved step.

        Raises ValueError where the state belongs to other parameters or to another mode.
        """
        load_checked(self, state_dict, super().load_state_dict)

    def state_dict(self) -> dict:
        """As in torch, with dense moments and, in task-dependent groups, each parameter's `gradient_mask`."""
        return save_dense(self, super().state_dict)

    def state_bytes(self) -> dict[str, int]:
        """Bytes of the state on this process: "moments", and "masks" (or their indices)."""
        sizes = {"moments": 0, "masks": 0}
        for state in self.state.values():
            for key, value in state.items():
                kind = "moments" if key in MOMENTS else "masks"
                if key != "step":
                    sizes[kind] += local_tensor(value).nbytes
        return sizes

    def _new_state(self, param: torch.Tensor, group: dict) -> dict:
        state = self.state[param]
        state["step"] = torch.tensor(0.0)  # on the CPU, where the mask's key is computed
        for key in MOMENTS if group["amsgrad"] else MOMENTS[:2]:
            state[key] = torch.zeros_like(param, dtype=moment_dtype(param, group))
        return state

    def _local_param(self, name: str, param: torch.Tensor, group: dict) -> LocalParam:
        if param.grad.is_sparse:
            raise ValueError(f"{name}: its gradient is sparse; build the embedding with sparse=False")
        state = self.state[param]
        if "step" not in state:
            if group["mode"] == "task-dependent":
                raise ValueError(f"{name}: it has a gradient but no gradient_mask; freeze it, or give it one")
            self._new_state(param, group)
        state["step"] += 1
        step = int(state["step"])
        mask = state.get("gradient_mask")
        moments = [state.get(key) for key in MOMENTS]
        regions = vars(self).setdefault("_regions", {})  # not pickled, but recomputed
        if param not in regions:
            regions[param] = local_region(param)
        return LocalParam(
            param=local_tensor(param),
            grad=local_gradient(param),
            moments=[None if moment is None else local_tensor(moment) for moment in moments],
            step=step,
            region=regions[param],
            key=mask_key(group["seed"], step, name),
            mask=None if mask is None else local_tensor(mask),
            mask_indices=state.get("mask_indices"),
        )


def _check_options(options: dict, label: str) -> None:
    """Raise ValueError for a `reserve_p` out of range and an unknown mode."""
    try:
        draw_threshold(options["reserve_p"])
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None
    if options["mode"] not in MODES:
        raise ValueError(f"{label}: mode must be one of {MODES}, but is {options['mode']!r}")


def _check_names(params, label: str, taken: set[str]) -> None:
    """Raise ValueError for unnamed, equally named, flattened or complex parameters."""
    if isinstance(params, set | torch.Tensor) or not all(isinstance(item, tuple) for item in params):
        raise ValueError(
            f"{label} has parameters without names, which key the masks: pass model.named_parameters(), or "
            'groups such as {"params": [(name, parameter), ...]}'
        )
    for name, param in params:
        key = clean_name(name)
        if key in taken:
            raise ValueError(f"{label}: the name {key} occurs twice and would give two parameters one mask")
        taken.add(key)
        if is_flattened_by_fsdp1(param):
            raise ValueError(f"{name}: FullyShardedDataParallel flattened it: shard with fully_shard (FSDP2)")
        if torch.is_complex(param):
            raise ValueError(f"{name} is complex: train its real and imaginary parts")


def _check_masks(masks, params, label: str) -> dict[str, torch.Tensor]:
    """Return the masks by clean name. Raises ValueError unless each trainable parameter has one of its shape."""
    if not masks:
        raise ValueError(f"{label} is task-dependent but has no gradient_mask: pass one, see fisher_mask")
    masks = {clean_name(name): mask for name, mask in masks.items()}
    for name, param in params:
        mask = masks.get(clean_name(name))
        if mask is None and not param.requires_grad:
            continue
        if mask is None:
            raise ValueError(
                f"{name}: gradient_mask has no mask of this name; give it one, freeze it with "
                'requires_grad_(False), or put it into a group of its own with mode="task-free"'
            )
        if mask.shape != param.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"{name}: its gradient_mask must be torch.bool with the whole parameter's shape "
                f"{tuple(param.shape)}, but is {mask.dtype} {tuple(mask.shape)}"
            )
    return masks
