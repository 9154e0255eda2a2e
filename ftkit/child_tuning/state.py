"""The optimizer's state: its compact form, the update of that form, saving and loading.

In task-dependent mode the moments of weights outside the child network stay zero. The compact form stores the moments
of the child alone, as vectors in row-major order of the local tensor, with the flat indices of their elements.
Checkpoints hold the dense form, whichever form the optimizer uses.
"""

from collections.abc import Callable, Iterator
from itertools import chain

import torch

from ftkit._modules import clean_name
from ftkit.dtensor import local_tensor, wrap_like

from .local_param import LocalParam
from .update import adamw_blocks, parts

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def to_compact(dense: dict) -> dict:
    """The compact form of a parameter's dense state with a `gradient_mask`."""
    mask = local_tensor(dense["gradient_mask"]).reshape(-1)
    index = mask.nonzero().squeeze(1)
    if mask.numel() < 2**31:
        index = index.int()  # half the bytes
    moments = {key: local_tensor(dense[key]).reshape(-1)[index] for key in MOMENTS if key in dense}
    return {"step": dense["step"], **moments, "mask_indices": index}


def to_dense(compact: dict, param: torch.Tensor) -> dict:
    """The dense form of a compact state, as new tensors; a dense state is returned as it is."""
    if "mask_indices" not in compact:
        return compact
    index, local = compact["mask_indices"], local_tensor(param)

    def scatter(values: torch.Tensor) -> torch.Tensor:
        full = values.new_zeros(local.numel())
        full[index] = values
        return wrap_like(torch.empty_like(local, dtype=values.dtype).copy_(full.view(local.shape)), param)

    moments = {key: scatter(compact[key]) for key in MOMENTS if key in compact}
    mask = scatter(torch.ones_like(index, dtype=torch.bool))
    return {"step": compact["step"], **moments, "gradient_mask": mask}


def compact_update(local_params: list[LocalParam], hyperparams: dict) -> None:
    """AdamW on the elements at `mask_indices`: copied out, updated and copied back; the others are not read."""

    def update(batch: list[tuple]) -> None:
        tensors = []
        for index, weights, grads, moments, _ in batch:
            tensors.append([values.take(index).to(moments[0].dtype) for values in (weights, grads)] + moments)
        adamw_blocks(tensors, [local.step for *_, local in batch], hyperparams)
        for (index, weights, *_), (updated, *_) in zip(batch, tensors, strict=True):
            weights.index_copy_(0, index, updated.to(weights.dtype))

    flat = {id(local): local.param.reshape(-1) for local in local_params}
    for batch in _batches(local_params, flat):
        update(batch)
    for local in local_params:
        if not local.param.is_contiguous():  # then the flat one was a copy
            local.param.copy_(flat[id(local)].view(local.param.shape))


def _batches(local_params: list[LocalParam], flat: dict[int, torch.Tensor]) -> Iterator[list[tuple]]:
    """Lists of `(indices, weights, grads, moments, local)`: parts of the indices and moments, all weights and grads."""
    kinds = {}
    for local in local_params:
        kinds.setdefault((local.param.dtype, local.param.device), []).append(local)
    for same in kinds.values():
        for part in parts([local.mask_indices.numel() for local in same]):
            batch = []
            for place, start, stop in part:
                local = same[place]
                index = local.mask_indices[start:stop].long()  # for 8-byte indices torch uses its threads
                moments = [None if t is None else t[start:stop] for t in local.moments]
                batch.append((index, flat[id(local)], local.grad.reshape(-1), moments, local))
            yield batch


@torch.no_grad()
def load_checked(optimizer: torch.optim.Optimizer, state_dict: dict, load: Callable[[dict], None]) -> None:
    """Check `state_dict` against the optimizer, load it with torch's `load`, then restore its dtypes and layout."""
    seen = {}

    def check_last(_, saved: dict) -> dict:
        # In a hook, because earlier hooks of the caller may change the dict.
        seen.update(_checked(optimizer, saved))
        return seen

    handle = optimizer.register_load_state_dict_pre_hook(check_last)
    try:
        load(state_dict)
    finally:
        handle.remove()
    saved_ids = chain.from_iterable(group["params"] for group in seen["param_groups"])
    for group in optimizer.param_groups:
        for param in group["params"]:
            saved = seen["state"].get(next(saved_ids))
            if saved is None:
                continue
            state = optimizer.state[param]
            state |= {key: _place(key, value, param, group) for key, value in saved.items()}
            if group["compact_state"] and "gradient_mask" in state:
                optimizer.state[param] = to_compact(state)


def save_dense(optimizer: torch.optim.Optimizer, save: Callable[[], dict]) -> dict:
    """The state dict that torch's `save` makes, with dense states instead of compact ones."""

    def dense(_, saved: dict) -> dict:
        pairs = zip(saved["param_groups"], optimizer.param_groups, strict=True)
        params = {n: p for old, group in pairs for n, p in zip(old["params"], group["params"], strict=True)}
        return {**saved, "state": {key: to_dense(state, params[key]) for key, state in saved["state"].items()}}

    # As the first hook, so that hooks of the caller get the dense form too.
    handle = optimizer.register_state_dict_post_hook(dense, prepend=True)
    try:
        return save()
    finally:
        handle.remove()


def moment_dtype(param: torch.Tensor, group: dict) -> torch.dtype:
    """The dtype of a parameter's moments: float32 for low precision with `fp32_moments`, else its own."""
    low_precision = param.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if low_precision and group["fp32_moments"] else param.dtype


def _checked(optimizer: torch.optim.Optimizer, saved: dict) -> dict:
    """The saved state, checked, with this optimizer's names, and its options and masks where none were saved."""
    state, groups = dict(saved["state"]), []
    for index, (group, old) in enumerate(zip(optimizer.param_groups, saved["param_groups"], strict=False)):
        mode = old.get("mode", group["mode"])
        if mode != group["mode"]:
            raise ValueError(
                f"parameter group {index}: the saved state is {mode} but this optimizer is {group['mode']}: "
                f'build it with mode="{mode}", or start without the saved state'
            )
        for name, other in zip(group["param_names"], old.get("param_names", ()), strict=False):
            if clean_name(name) != clean_name(other):
                raise ValueError(
                    f"parameter group {index}: {name} stands where the saved state has {other}: build the "
                    "optimizer from the same parameters in the same order"
                )
        for name, param, number in zip(group["param_names"], group["params"], old["params"], strict=False):
            for key, value in state.get(number, {}).items():
                if key != "step" and isinstance(value, torch.Tensor) and value.shape != param.shape:
                    raise ValueError(
                        f"{name}: the saved {key} has shape {tuple(value.shape)}, the parameter "
                        f"{tuple(param.shape)}: load the state of the same model"
                    )
        own = {key: value for key, value in group.items() if key != "params"}
        kept = {key: group[key] for key in ("param_names", "compact_state")}  # may differ from the saved ones
        groups.append({**own, **old, **kept})
        if mode == "task-dependent":
            for param, number in zip(group["params"], old["params"], strict=False):
                if optimizer.state[param]:
                    state[number] = {**to_dense(optimizer.state[param], param), **state.get(number, {})}
    groups += saved["param_groups"][len(groups) :]  # too many: torch raises
    return {**saved, "state": state, "param_groups": groups}


def _place(key: str, value, param: torch.Tensor, group: dict):
    """A copy of a saved value with the device and memory layout of its parameter."""
    if not isinstance(value, torch.Tensor):
        return value
    if key == "step":
        return value.to(device="cpu", dtype=torch.float32, copy=True)
    dtype = value.dtype if value.dtype == torch.bool else moment_dtype(param, group)
    return torch.empty_like(param, dtype=dtype, requires_grad=False).copy_(value)
