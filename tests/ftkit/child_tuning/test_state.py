"""Resuming: the continuation must equal the run that was never interrupted, bit for bit."""

import copy
import io

import pytest
import torch

from ftkit.child_tuning import ChildTuningAdamW, state


def named(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (40, 30), "a.bias": (30,), "b.weight": (7,)}
    return [(n, torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype))) for n, s in shapes.items()]


def train(opt, params, first: int, last: int) -> None:
    for step in range(first, last):
        for index, (_, param) in enumerate(params):
            generator = torch.Generator().manual_seed(100 * step + index)
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        opt.step()


def through_a_file(state_dict: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def check_resume(dtype=torch.float32, spoil=lambda saved: saved) -> None:
    straight = named(dtype)
    train(ChildTuningAdamW(straight, lr=0.1, reserve_p=0.4, seed=11), straight, 0, 12)
    first = named(dtype)
    opt = ChildTuningAdamW(first, lr=0.1, reserve_p=0.4, seed=11)
    train(opt, first, 0, 5)
    saved = spoil(through_a_file(opt.state_dict()))
    second = [(name, torch.nn.Parameter(param.detach().clone())) for name, param in first]
    resumed = ChildTuningAdamW(second)  # lr, reserve_p and seed come back with the state, as in torch
    resumed.load_state_dict(saved)
    train(resumed, second, 5, 12)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(straight, second, strict=True))


def without_steps(saved):
    for entry in saved["state"].values():
        entry["step"] = torch.tensor(0.0)
    return saved


def with_another_seed(saved):
    saved["param_groups"][0]["seed"] = 12
    return saved


def without_moments(saved):
    for entry in saved["state"].values():
        entry["exp_avg_sq"].zero_()
    return saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_equals_the_uninterrupted_one(dtype):
    check_resume(dtype)


@pytest.mark.parametrize("spoil", [without_steps, with_another_seed, without_moments])
def test_lost_state_is_noticed(spoil):
    with pytest.raises(AssertionError):
        check_resume(spoil=spoil)


def test_moments_cast_as_torch_casts_them_are_noticed(monkeypatch):
    """torch's loading rounds moments to bfloat16 with the weights; ours must not."""
    place = state._place

    def rounded(key, value, param, group):
        return place(key, value if key == "step" else value.bfloat16(), param, group)

    monkeypatch.setattr(state, "_place", rounded)
    with pytest.raises(AssertionError):
        check_resume(torch.bfloat16)


def test_loading_shares_no_memory_with_what_it_is_given():
    params = named()
    opt = ChildTuningAdamW(params)
    train(opt, params, 0, 2)
    saved = opt.state_dict()
    before = copy.deepcopy(saved)
    other = named()
    twin = ChildTuningAdamW(other)
    twin.load_state_dict(saved)
    train(twin, other, 2, 4)
    for key, entry in before["state"].items():
        assert all(torch.equal(entry[name], saved["state"][key][name]) for name in entry)


def test_a_state_of_adamw_can_be_taken_over():
    """Same names and meaning of the state: the moments go on, masks start at the saved step."""
    params, twins = named(), named()
    theirs = torch.optim.AdamW(params, fused=True, weight_decay=0.02)
    train(theirs, params, 0, 3)
    ours = ChildTuningAdamW(twins, reserve_p=0.7)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["reserve_p"] == 0.7 and ours.param_groups[0]["weight_decay"] == 0.02
    for (_, a), (_, b) in zip(params, twins, strict=True):
        assert all(torch.equal(theirs.state[a][key], ours.state[b][key]) for key in theirs.state[a])
    train(ours, twins, 3, 5)
    back = torch.optim.AdamW(twins)
    back.load_state_dict(ours.state_dict())
    train(back, twins, 5, 6)


def test_a_state_of_other_parameters_is_refused():
    params = named()
    opt = ChildTuningAdamW(params)
    train(opt, params, 0, 1)
    with pytest.raises(ValueError, match=r"b\.weight stands where the saved state has a\.weight"):
        ChildTuningAdamW(named()[::-1]).load_state_dict(opt.state_dict())


def test_a_state_of_another_shape_is_refused_and_nothing_is_loaded():
    params = named()
    opt = ChildTuningAdamW(params)
    train(opt, params, 0, 1)
    saved = opt.state_dict()
    saved["state"][1]["exp_avg"] = torch.zeros(31)
    other = ChildTuningAdamW(named())
    with pytest.raises(ValueError, match=r"a\.bias: the saved exp_avg has shape \(31,\)"):
        other.load_state_dict(saved)
    assert not other.state


def test_wrapper_prefixes_in_saved_names_do_not_matter():
    params = named()
    opt = ChildTuningAdamW([("module." + name, param) for name, param in params])
    train(opt, params, 0, 1)
    other = ChildTuningAdamW(named())
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[0]["param_names"] == [name for name, _ in params]


def test_callers_own_loading_hooks_are_heeded():
    params = named()
    opt = ChildTuningAdamW(params)
    train(opt, params, 0, 1)
    other = ChildTuningAdamW(named())

    def later(_, saved):
        saved["state"] = {k: {**v, "step": torch.tensor(41.0)} for k, v in saved["state"].items()}

    other.register_load_state_dict_pre_hook(later)
    other.load_state_dict(opt.state_dict())
    assert all(entry["step"] == 41 for entry in other.state.values())
