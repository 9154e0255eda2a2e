"""ChildTuningAdamW against torch's AdamW, against the method's own arithmetic, and against theory."""

import copy
import math
import pickle

import pytest
import torch

from ftkit.child_tuning import ChildTuningAdamW, gradient_mask, optimizer, update
from ftkit.child_tuning.masks import effective_p


def named_tensors(dtype=torch.float32) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters of every awkward shape: no dimension, nothing in it, odd sizes, columns in memory order."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"scalar": (), "nothing": (0, 3), "vector": (37,), "matrix": (33, 65), "cube": (3, 5, 7)}
    tensors = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    tensors["transposed"] = torch.randn((21, 13), generator=generator, dtype=dtype).t()
    return [(name, torch.nn.Parameter(tensor)) for name, tensor in tensors.items()]


def gradients(named, step: int) -> None:
    """Give each parameter a gradient that depends on its name and the step alone."""
    for index, (_, param) in enumerate(named):
        generator = torch.Generator().manual_seed(1000 * step + index)
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.dtype)
        param.grad = torch.empty_like(param).copy_(grad)  # in the parameter's memory order, as autograd has it


def masked(name, grad, step, reserve_p, seed=0):
    keep = gradient_mask(grad.shape, reserve_p, seed=seed, step=step, name=name)
    return torch.where(keep, grad / effective_p(reserve_p), torch.zeros_like(grad))


def check_against_own_arithmetic() -> None:
    """The method in six lines: mask and amplify the gradient, then AdamW as its paper has it."""
    named = named_tensors(torch.float64)
    reference = {n: (p.detach().clone(), torch.zeros_like(p.data), torch.zeros_like(p.data)) for n, p in named}
    opt = ChildTuningAdamW(named, lr=0.01, weight_decay=0.1, reserve_p=0.3, seed=5)
    for step in range(1, 41):
        gradients(named, step)
        opt.step()
        for name, param in named:
            weight, m, v = reference[name]
            g = masked(name, param.grad, step, 0.3, seed=5)
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            weight -= 0.01 * 0.1 * weight
            weight -= 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            torch.testing.assert_close(param.data, weight, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("block", [64, update.BLOCK_ELEMENTS])
def test_forty_steps_equal_the_methods_own_arithmetic(monkeypatch, block):
    monkeypatch.setattr(update, "BLOCK_ELEMENTS", block)
    check_against_own_arithmetic()


@pytest.mark.parametrize(
    "module, name, mutated",
    [
        (optimizer, "effective_p", lambda p: math.sqrt(p)),  # another amplification
        (optimizer, "mask_key", lambda seed, step, name: 1),  # one mask for all
        (
            update,
            "fill_mask",
            lambda keep, key, threshold, region, start: fill(keep, key, threshold, region, 0),
        ),
    ],
)
def test_wrong_arithmetic_is_noticed(monkeypatch, module, name, mutated):
    monkeypatch.setattr(update, "BLOCK_ELEMENTS", 64)
    monkeypatch.setattr(module, name, mutated)
    with pytest.raises(AssertionError):
        check_against_own_arithmetic()


fill = update.fill_mask


@pytest.mark.parametrize(
    "options",
    [
        {"amsgrad": True},
        {"maximize": True},
        {"foreach": True},
        {"fused": False},
        {"amsgrad": True, "fused": False, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.0},
        {"lr": torch.tensor(0.01, dtype=torch.float64)},
    ],
)
def test_options_mean_what_they_mean_in_adamw(options):
    """torch's AdamW on gradients that were masked by hand is the reference."""
    ours, theirs = named_tensors(torch.float64), named_tensors(torch.float64)
    opt = ChildTuningAdamW(ours, reserve_p=0.5, **options)
    reference_options = {
        "foreach": False,
        **{k: v for k, v in options.items() if k not in ("fused", "foreach")},
    }
    reference = torch.optim.AdamW([p for _, p in theirs], **reference_options)
    for step in range(1, 11):
        gradients(ours, step)
        gradients(theirs, step)
        for name, param in theirs:
            param.grad = masked(name, param.grad, step, 0.5)
        opt.step()
        reference.step()
    for (name, a), (_, b) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12, msg=name)
        for key in opt.state[a].keys() | reference.state[b].keys():
            torch.testing.assert_close(opt.state[a][key], reference.state[b][key], rtol=1e-11, atol=1e-12)


def check_equals_adamw(reserve_p: float) -> None:
    """50 steps with decay groups and a warm-up schedule."""
    ours, theirs = named_tensors(), named_tensors()

    def groups(named):
        return [{"params": named[:3], "weight_decay": 0.0}, {"params": named[3:], "lr": 3e-3}]

    opt = ChildTuningAdamW(groups(ours), reserve_p=reserve_p)
    reference = torch.optim.AdamW(groups(theirs), fused=True)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1, step / 10)) for o in (opt, reference)]
    for step in range(1, 51):
        gradients(ours, step)
        gradients(theirs, step)
        for o, schedule in zip((opt, reference), schedules, strict=True):
            o.step()
            schedule.step()
        for (_, a), (_, b) in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
            for key in ("step", "exp_avg", "exp_avg_sq"):
                assert torch.equal(opt.state[a][key], reference.state[b][key])


def test_reserve_p_of_one_is_adamw_to_the_bit():
    check_equals_adamw(1.0)
    with pytest.raises(AssertionError):
        check_equals_adamw(0.9999)


def test_adam_cancels_all_but_the_square_root_of_p():
    """Constant gradient, steady state: the mean step is near lr times sqrt(0.3) = 0.548, not lr."""
    weight = torch.nn.Parameter(torch.zeros(4000))
    opt = ChildTuningAdamW([("w", weight)], lr=1.0, weight_decay=0.0, reserve_p=0.3)
    weight.grad = torch.ones(4000)
    for _ in range(2500):
        opt.step()
    before = weight.detach().clone()
    for _ in range(200):
        opt.step()
    assert (before - weight).mean().item() / 200 == pytest.approx(0.547, abs=0.004)


def check_expectation() -> None:
    """With beta1 = 0 the first moment is the masked gradient; its mean over steps must be the gradient."""
    weight, steps = torch.nn.Parameter(torch.zeros(500)), 4000
    opt = ChildTuningAdamW([("w", weight)], betas=(0.0, 0.999), reserve_p=0.3)
    weight.grad = torch.linspace(-2, 2, 500)
    total = torch.zeros(500)
    for _ in range(steps):
        opt.step()
        total += opt.state[weight]["exp_avg"]
    error = (total / steps - weight.grad) / weight.grad.abs().clamp(min=1e-6)
    assert error.abs().max() < 4.5 * math.sqrt(0.7 / 0.3 / steps)


def test_the_masked_gradient_averages_to_the_gradient(monkeypatch):
    check_expectation()
    monkeypatch.setattr(optimizer, "effective_p", lambda p: 1.0)
    with pytest.raises(AssertionError):
        check_expectation()


def check_nothing_leaks() -> None:
    weight = torch.nn.Parameter(torch.ones(1000))
    opt = ChildTuningAdamW([("w", weight)], reserve_p=0.3)
    for step in range(1, 4):
        keep = gradient_mask((1000,), 0.3, seed=0, step=step, name="w")
        bad = torch.where(torch.arange(1000) % 2 == 0, float("nan"), float("inf"))
        weight.grad = torch.where(keep, torch.ones(1000), bad)
        opt.step()
    assert weight.isfinite().all()
    assert all(opt.state[weight][key].isfinite().all() for key in ("exp_avg", "exp_avg_sq"))


def test_inf_and_nan_outside_the_mask_never_leak(monkeypatch):
    check_nothing_leaks()
    monkeypatch.setattr(update, "zero_unmasked_", lambda values, keep: values.mul_(keep))
    with pytest.raises(AssertionError):
        check_nothing_leaks()


def test_gradients_are_only_read():
    named = named_tensors()
    opt = ChildTuningAdamW(named, reserve_p=0.3)
    gradients(named, 1)
    before = [(p.grad, p.grad.clone(), p.grad._version) for _, p in named]
    opt.step()
    for (_, param), (grad, copied, version) in zip(named, before, strict=True):
        assert param.grad is grad and torch.equal(grad, copied) and grad._version == version


@pytest.mark.parametrize("reserve_p", [0.5, 1.0])
@pytest.mark.parametrize("transposed", ["weight", "gradient"])
def test_gradients_may_lie_in_another_memory_order(reserve_p, transposed):
    """Which torch's fused AdamW mistakes without a word (2.13, CPU): its gradients end up elsewhere."""
    results = []
    for other_order in (False, True):
        weight, grad = torch.ones(16, 24), torch.arange(384.0).view(16, 24)
        if other_order and transposed == "weight":
            weight = weight.t().contiguous().t()
        if other_order and transposed == "gradient":
            grad = grad.t().contiguous().t()
        weight = torch.nn.Parameter(weight)
        weight.grad = grad
        ChildTuningAdamW([("w", weight)], betas=(0.5, 0.999), eps=100.0, reserve_p=reserve_p).step()
        results.append(weight.detach().clone())
    assert torch.allclose(*results, rtol=0, atol=1e-7) and results[0].unique().numel() > 10


def test_weight_decay_acts_on_every_element():
    weight = torch.nn.Parameter(torch.ones(100))
    weight.grad = torch.zeros(100)
    ChildTuningAdamW([("w", weight)], lr=0.1, weight_decay=0.5, reserve_p=0.3).step()
    assert torch.allclose(weight, torch.full((100,), 0.95))


def moved_after(steps: int) -> float:
    weight = torch.nn.Parameter(torch.zeros(100_000))
    opt = ChildTuningAdamW([("w", weight)], reserve_p=0.3)
    weight.grad = torch.ones(100_000)
    for _ in range(steps):
        opt.step()
    return (weight != 0).float().mean().item()


def test_momentum_moves_masked_entries_too():
    assert [round(moved_after(steps), 2) for steps in (1, 2, 5, 10)] == [0.30, 0.51, 0.83, 0.97]


def one_step(weight_step: float, micro_batches: int) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.zeros(1000))
    opt = ChildTuningAdamW([("w", weight)], reserve_p=0.3)
    for _ in range(micro_batches):
        (weight_step * weight / micro_batches).sum().backward()
    opt.step()
    return weight.detach()


def test_one_mask_belongs_to_one_step():
    assert torch.equal(one_step(1.0, 1), one_step(1.0, 4))
    # A mask drawn for each of four micro-batches would leave almost three quarters of the entries moving.
    assert (one_step(1.0, 4) != 0).float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_groups_have_their_own_probability_and_later_groups_join():
    weights = {name: torch.nn.Parameter(torch.zeros(50_000)) for name in "abc"}
    opt = ChildTuningAdamW(
        [{"params": [("a", weights["a"])], "reserve_p": 0.1}, {"params": [("b", weights["b"])]}],
        reserve_p=0.6,
    )
    opt.add_param_group({"params": iter([("c", weights["c"])]), "reserve_p": 0.9})
    for weight in weights.values():
        weight.grad = torch.ones(50_000)
    opt.step()
    moved = [round((weight != 0).float().mean().item(), 1) for weight in weights.values()]
    assert moved == [0.1, 0.6, 0.9]


def test_parameters_without_gradient_stay_and_keep_no_state():
    a, b = torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(5))
    opt = ChildTuningAdamW([("a", a), ("b", b)])
    a.grad = torch.ones(5)
    opt.step()
    assert torch.equal(b, torch.ones(5)) and b not in opt.state


def test_a_closure_is_evaluated_with_gradients():
    weight = torch.nn.Parameter(torch.ones(8))
    opt = ChildTuningAdamW([("w", weight)])

    def closure():
        opt.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert opt.step(closure).item() == 8
    assert (weight != 1).any()


def test_grad_scaler_unscales_first_and_skips_overflow():
    """Loss scaling changes nothing, and a step with an inf, in the mask or not, is skipped as a whole."""
    plain, scaled = (torch.nn.Parameter(torch.ones(100)) for _ in range(2))
    opts = [ChildTuningAdamW([("w", w)]) for w in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plain.square().sum().backward()
    opts[0].step()
    scaler.scale(scaled.square().sum()).backward()
    scaler.step(opts[1])
    scaler.update()
    assert torch.equal(plain, scaled)
    before = scaled.detach().clone()
    scaled.grad = torch.where(torch.arange(100) == 7, float("inf"), torch.ones(100))
    scaler.step(opts[1])
    scaler.update()
    assert torch.equal(before, scaled)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moments_of_low_precision_weights_are_float32(dtype):
    """Against float32 arithmetic whose weight alone is rounded after each step."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 300).to(dtype))
    shadow = torch.nn.Parameter(weight.detach().float())
    opt = ChildTuningAdamW([("w", weight)], lr=0.01, reserve_p=0.5)
    reference = ChildTuningAdamW([("w", shadow)], lr=0.01, reserve_p=0.5)
    for step in range(1, 20):
        weight.grad = torch.randn(300, generator=torch.Generator().manual_seed(step)).to(dtype)
        shadow.grad = weight.grad.float()
        opt.step()
        reference.step()
        shadow.data.copy_(shadow.to(dtype))
        assert torch.equal(weight.float(), shadow)
    assert opt.state[weight]["exp_avg"].dtype == opt.state[weight]["exp_avg_sq"].dtype == torch.float32
    full = ChildTuningAdamW([("w", weight)], reserve_p=1.0)
    full.step()
    assert full.state[weight]["exp_avg"].dtype == torch.float32
    as_adamw = ChildTuningAdamW([("w", weight)], fp32_moments=False)
    as_adamw.step()
    assert as_adamw.state[weight]["exp_avg"].dtype == dtype


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_alike(clone):
    named = named_tensors()
    opt = ChildTuningAdamW(named, reserve_p=0.4, seed=9)
    gradients(named, 1)
    opt.step()
    other = clone(opt)
    twins = [(name, p) for name, p in zip(dict(named), other.param_groups[0]["params"], strict=True)]
    gradients(named, 2)
    gradients(twins, 2)
    opt.step()
    other.step()
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(named, twins, strict=True))


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(4))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: ChildTuningAdamW([parameter()]), r"group 0 .*model\.named_parameters\(\)"),
        (lambda: ChildTuningAdamW(torch.zeros(4)), r"model\.named_parameters\(\)"),
        (lambda: ChildTuningAdamW([{"params": [parameter()]}]), r"group 0 .*named_parameters"),
        (
            lambda: ChildTuningAdamW([("w", parameter())], reserve_p=0),
            r"group 0: reserve_p is .*: give a probability above 0 and at most 1",
        ),
        (lambda: ChildTuningAdamW([{"params": [("w", parameter())], "reserve_p": 33}]), "group 0: reserve_p"),
        (
            lambda: ChildTuningAdamW([("w", parameter())], mode="taskfree"),
            "group 0: mode must be one of .*task-free",
        ),
        (lambda: ChildTuningAdamW([("w", parameter()), ("module.w", parameter())]), "w occurs twice"),
        (lambda: ChildTuningAdamW([("w", parameter())], capturable=True), "capturable"),
        (lambda: ChildTuningAdamW([("w", torch.zeros(2, dtype=torch.cfloat))]), "w: is complex|w is complex"),
        (lambda: ChildTuningAdamW([("w", parameter())], lr=-1), "learning rate"),
        (lambda: ChildTuningAdamW([]), "empty parameter list"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_sparse_gradients_are_refused_by_name():
    table = torch.nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"table\.weight: .*sparse=False"):
        ChildTuningAdamW([("table.weight", table.weight)]).step()


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    opt = ChildTuningAdamW([("w", parameter())])
    with pytest.raises(ValueError, match="group 1"):
        opt.add_param_group({"params": [("v", parameter())], "reserve_p": 2})
    assert len(opt.param_groups) == 1
