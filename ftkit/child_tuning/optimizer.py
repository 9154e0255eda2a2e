"""What may go into a parameter group; every refusal names the group or parameter, and what to do instead."""

import torch

from ftkit._compat import is_flattened_by_fsdp1
from ftkit._modules import clean_name
from ftkit.dtensor import local_gradient, local_region, local_tensor, shard_like

from .local_param import LocalParam
from .masks import DRAW_RANGE, draw_threshold, effective_p, mask_key
from .state import MOMENTS, compact_update, load_checked, moment_dtype, save_dense, to_compact
from .update import dense_update, masked_update

MODES = ("task-free", "task-dependent")


def check_options(options: dict, label: str) -> None:
    """Refuse a `reserve_p` that masks cannot honour, and an unknown mode."""
    try:
        draw_threshold(options["reserve_p"])
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None
    if options["mode"] not in MODES:
        raise ValueError(f"{label}: mode must be one of {MODES}, but is {options['mode']!r}")


def check_names(params, label: str, taken: set[str]) -> None:
    """Refuse what cannot be keyed: unnamed, equally named, flattened or complex parameters."""
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
            raise ValueError(f"{name}: is complex: train its real and imaginary parts")


def check_masks(masks, params, label: str) -> dict[str, torch.Tensor]:
    """The given masks by clean name, for each trainable parameter one of its shape."""
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


_HYPERPARAMS = ("lr", "weight_decay", "eps", "amsgrad", "maximize", "foreach", "fused")


class ChildTuningAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` with a gradient mask.

    **task-free**: each step draws a fresh mask that keeps each gradient entry with probability p =
    `reserve_p`, and multiplies the kept ones by 1/p (p as the masks realise it), so that the expectation is
    the gradient. Nothing is frozen: momentum moves masked entries too, and decoupled weight decay acts on
    every element. In Adam the factor 1/p nearly cancels; what remains is a steady drift smaller by the square
    root of p.

    **task-dependent**: a given mask (see `fisher_mask`) names the child, once for the whole training.
    Gradients are not amplified; what lies outside the child is neither updated nor decayed and stays equal to
    the bit.

    One mask belongs to one step, however many micro-batches it has, and depends only on seed, step, name and
    element: not on processes, sharding, device or resume. `param.grad` is only read, so norms logged from it
    are those of the whole gradient; clip before `step()`. inf or NaN outside the mask does no harm. Plain
    tensors, DDP, and the DTensors of FSDP2, tensor parallelism and both are handled; build the optimizer
    after `fully_shard`. Masks are drawn on the CPU, and copied block by block for weights elsewhere; on CUDA with
    Triton a kernel draws those of task-free steps (see `triton_kernel`), unless `fused=False` or `foreach=True`.

    Args:
        named_params: `model.named_parameters()`, or groups: dicts whose `params` are (name, parameter) pairs.
            Names key the masks. A group may have its own `reserve_p`, `mode`, `gradient_mask` and `seed`.
        lr, betas, eps, weight_decay, amsgrad, maximize, foreach, fused: as in `torch.optim.AdamW`; the fused
            kernel is used unless `foreach=True` or `fused=False` is given. `capturable` and `differentiable`
            are refused: the mask's key is computed on the host.
        reserve_p: probability of keeping an entry, in (0, 1]; not used in task-dependent mode. 1 is
            `torch.optim.AdamW(fused=True)`, bit for bit where moments have the weights' dtype.
        mode: "task-free" or "task-dependent".
        gradient_mask: for task-dependent groups, bool tensors by parameter name, each of the whole
            parameter's shape.
        seed: any integer, the same on every process.
        fp32_moments: keep moments of bfloat16 and float16 weights in float32. In bfloat16 the second moment
            times 0.999 rounds back to itself: it can grow but never shrink, and steps stay small for ever.
        compact_state: in task-dependent groups, keep moments of the child alone: of a child of 10 %, they
            take a tenth of AdamW's bytes, and 4 more for each of its elements tell where it is.

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
        # torch's constructor adds the groups before it knows of options that are not its own.
        groups = [{**own, "gradient_mask": gradient_mask, **group} for group in groups]
        super().__init__(groups, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, foreach=foreach, fused=fused)
        self.defaults.update(own)
        self._step_supports_amp_scaling = False  # GradScaler unscales the gradients before it calls step()

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient; a closure is evaluated first, as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            arithmetic = {name: group[name] for name in _HYPERPARAMS}
            arithmetic["beta1"], arithmetic["beta2"] = group["betas"]
            shares = [
                self._share(name, param, group)
                for name, param in zip(group["param_names"], group["params"], strict=True)
                if param.grad is not None
            ]
            threshold = draw_threshold(group["reserve_p"])
            if group["mode"] == "task-free" and threshold == DRAW_RANGE:
                same = [share for share in shares if share.param.dtype == share.moments[0].dtype]
                dense_update(same, arithmetic)
                shares = [share for share in shares if share.param.dtype != share.moments[0].dtype]
            compact_update([share for share in shares if share.child_index is not None], arithmetic)
            shares = [share for share in shares if share.child_index is None]
            masked_update(shares, arithmetic, threshold, 1 / effective_p(group["reserve_p"]))
        return loss

    @torch.no_grad()
    def add_param_group(self, param_group: dict) -> None:
        """Add a group of (name, parameter) pairs; options that it lacks are the optimizer's."""
        group = dict(param_group)
        label = f"parameter group {len(self.param_groups)}"
        masks = group.pop("gradient_mask", None)
        taken = {clean_name(name) for other in self.param_groups for name in other["param_names"]}
        if not isinstance(group["params"], set | torch.Tensor):
            group["params"] = list(group["params"])
        check_names(group["params"], label, taken)
        options = {**self.defaults, **group}
        check_options(options, label)
        if options["mode"] == "task-dependent":
            masks = check_masks(masks, group["params"], label)
        super().add_param_group(group)
        if options["mode"] == "task-dependent":
            group = self.param_groups[-1]
            for name, param in zip(group["param_names"], group["params"], strict=True):
                if (mask := masks.get(clean_name(name))) is None:
                    continue  # frozen; if it is not any more, step() says that it needs a mask
                # The mask is part of the state, so that every kind of checkpoint saves it with the moments.
                state = {**self._new_state(param, group), "gradient_mask": shard_like(mask, param)}
                self.state[param] = to_compact(state, param) if group["compact_state"] else state

    def load_state_dict(self, state_dict: dict) -> None:
        """Resume from a state of this optimizer, or of `torch.optim.AdamW`; masks go on from the saved step.

        Raises:
            ValueError: the state belongs to other parameters or to another mode.
        """
        load_checked(self, state_dict, super().load_state_dict)

    def state_dict(self) -> dict:
        """As in torch, with dense moments and with the masks of task-dependent groups, by parameter."""
        return save_dense(self, super().state_dict)

    def state_bytes(self) -> dict[str, int]:
        """Bytes of the state on this process: "moments", and "masks" (or the indices that stand for them)."""
        sizes = {"moments": 0, "masks": 0}
        for state in self.state.values():
            for key, value in state.items():
                kind = "moments" if key in MOMENTS else "masks"
                if key != "step":
                    sizes[kind] += local_tensor(value).nbytes
        return sizes

    def _new_state(self, param: torch.Tensor, group: dict) -> dict:
        state = self.state[param]
        state["step"] = torch.tensor(0.0)  # on the CPU: the mask's key needs it there at every step
        for key in MOMENTS if group["amsgrad"] else MOMENTS[:2]:
            state[key] = torch.zeros_like(param, dtype=moment_dtype(param, group))
        return state

    def _share(self, name: str, param: torch.Tensor, group: dict) -> LocalParam:
        if param.grad.is_sparse:
            raise ValueError(f"{name}: its gradient is sparse; build the embedding with sparse=False")
        state = self.state[param]
        if "step" not in state:
            if group["mode"] == "task-dependent":
                raise ValueError(f"{name}: it has a gradient but no gradient_mask; freeze it, or give it one")
            self._new_state(param, group)
        state["step"] += 1
        step = int(state["step"])
        child = state.get("gradient_mask")
        moments = [state.get(key) for key in MOMENTS]
        regions = vars(self).setdefault("_regions", {})  # not part of what is pickled: found anew there
        if param not in regions:
            regions[param] = local_region(param)
        return LocalParam(
            param=local_tensor(param),
            grad=local_gradient(param),
            moments=[None if moment is None else local_tensor(moment) for moment in moments],
            step=step,
            region=regions[param],
            key=mask_key(group["seed"], step, name),
            child=None if child is None else local_tensor(child),
            child_index=state.get("child_index"),
        )
