"""Task-dependent mode, dense and compact: the child trains as AdamW trains it, and the rest stays to the bit."""

import copy

import pytest
import torch

from ftkit.child_tuning import ChildTuningAdamW, gradient_mask, update

COMPACT = pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])


def named(dtype=torch.float64):
    """Parameters of awkward shapes; none of "frozen" is in the child, all of "whole" is."""
    shapes = {
        "w": (33, 65),
        "scalar": (),
        "nothing": (0, 4),
        "frozen": (9,),
        "whole": (17,),
        "transposed": (13, 21),
    }
    params = {}
    for index, (name, shape) in enumerate(shapes.items()):
        value = torch.randn(shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64).to(dtype)
        params[name] = torch.nn.Parameter(value.t().contiguous().t() if name == "transposed" else value)
    return list(params.items())


def child(params, seed=0):
    masks = {n: gradient_mask(p.shape, 0.25, seed=seed, step=0, name=n) for n, p in params}
    return masks | {"frozen": torch.zeros(9, dtype=torch.bool), "whole": torch.ones(17, dtype=torch.bool)}


def build(params, seed=0, **options):
    options = {"lr": 0.01, "weight_decay": 0.1} | options
    return ChildTuningAdamW(params, mode="task-dependent", gradient_mask=child(params, seed), **options)


def train(opt, params, first: int, last: int, outside: float | None = None) -> None:
    masks = child(params)
    for step in range(first, last):
        for index, (name, param) in enumerate(params):
            generator = torch.Generator().manual_seed(100 * step + index)
            grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.dtype)
            param.grad = grad if outside is None else torch.where(masks[name], grad, outside)
        opt.step()


def check_child(compact: bool, **options) -> None:
    """torch's AdamW on a vector of the child's elements alone is the reference."""
    params = named()
    masks, before = child(params), {name: param.detach().clone() for name, param in params}
    vectors = [torch.nn.Parameter(param.detach()[masks[name]]) for name, param in params]
    opt = build(params, compact_state=compact, **options)
    reference = torch.optim.AdamW(vectors, **({"lr": 0.01, "weight_decay": 0.1} | options))
    for step in range(12):
        train(opt, params, step, step + 1)
        for vector, (name, param) in zip(vectors, params, strict=True):
            vector.grad = param.grad[masks[name]]
        reference.step()
    for vector, (name, param) in zip(vectors, params, strict=True):
        torch.testing.assert_close(param[masks[name]], vector, rtol=1e-12, atol=1e-13)
        assert torch.equal(param[~masks[name]], before[name][~masks[name]])


@COMPACT
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True, "foreach": True}])
@pytest.mark.parametrize("block", [64, update.BLOCK_ELEMENTS])
def test_the_child_trains_like_adamw_and_the_rest_stays(monkeypatch, compact, options, block):
    monkeypatch.setattr(update, "BLOCK_ELEMENTS", block)
    check_child(compact, **options)


def test_decay_outside_the_child_is_noticed(monkeypatch):
    """What every public implementation does: the mask holds back the gradient, but not the decay."""
    monkeypatch.setattr(update, "_copy_back", lambda piece, updated: piece.param.copy_(updated))
    with pytest.raises(AssertionError):
        check_child(compact=False)


@COMPACT
@pytest.mark.parametrize("outside", [float("nan"), float("inf")])
def test_inf_and_nan_outside_the_child_never_leak(compact, outside):
    params, clean = named(), named()
    opts = [build(p, compact_state=compact) for p in (params, clean)]
    train(opts[0], params, 0, 4, outside=outside)
    train(opts[1], clean, 0, 4)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(params, clean, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_compact_equals_dense(dtype):
    """Weights and saved states; the last bit may differ where a block ends, in float32 and float64."""
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 0}[dtype]
    dense_params, compact_params = named(dtype), named(dtype)
    dense, compact = build(dense_params, compact_state=False), build(compact_params, compact_state=True)
    train(dense, dense_params, 0, 10)
    train(compact, compact_params, 0, 10)
    for (_, a), (_, b) in zip(dense_params, compact_params, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for number, entry in dense.state_dict()["state"].items():
        other = compact.state_dict()["state"][number]
        assert entry.keys() == other.keys() == {"step", "exp_avg", "exp_avg_sq", "gradient_mask"}
        for key, value in entry.items():
            assert value.dtype == other[key].dtype and value.shape == other[key].shape
            torch.testing.assert_close(value, other[key], rtol=1e-6, atol=1e-7)


def test_compact_moments_take_the_childs_share_of_the_bytes():
    weight = torch.nn.Parameter(torch.zeros(1000, 100))
    mask = torch.zeros(1000, 100, dtype=torch.bool)
    mask[:100] = True
    sizes = {}
    for compact in (False, True):
        opt = ChildTuningAdamW([("w", weight)], mode="task-dependent", gradient_mask={"w": mask}, compact_state=compact)
        sizes[compact] = opt.state_bytes()
    assert sizes[False] == {"moments": 8 * 100_000, "masks": 100_000}
    assert sizes[True] == {"moments": 8 * 10_000, "masks": 4 * 10_000}


@COMPACT
@pytest.mark.parametrize("resumed_compact", [False, True])
def test_a_resumed_run_has_the_saved_child_and_equals_the_uninterrupted_one(compact, resumed_compact):
    straight, params = named(torch.float32), named(torch.float32)
    train(build(straight, compact_state=compact), straight, 0, 9)
    opt = build(params, compact_state=compact)
    train(opt, params, 0, 4)
    saved = copy.deepcopy(opt.state_dict())
    second = [(name, torch.nn.Parameter(param.detach().clone())) for name, param in params]
    resumed = build(second, seed=1, compact_state=resumed_compact)  # another child, that of the state wins
    resumed.load_state_dict(saved)
    assert ("mask_indices" in resumed.state[second[0][1]]) is resumed_compact
    train(resumed, second, 4, 9)
    for (_, a), (_, b) in zip(straight, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0 if compact == resumed_compact else 1e-6)


def test_a_lost_mask_is_noticed():
    straight, params = named(torch.float32), named(torch.float32)
    train(build(straight), straight, 0, 6)
    opt = build(params)
    train(opt, params, 0, 4)
    saved = opt.state_dict()
    for entry in saved["state"].values():
        del entry["gradient_mask"]
    resumed = build(params, seed=1)
    resumed.load_state_dict(saved)
    train(resumed, params, 4, 6)
    assert not all(torch.equal(a, b) for (_, a), (_, b) in zip(straight, params, strict=True))


def test_modes_can_be_mixed_by_group():
    body, head = torch.nn.Parameter(torch.ones(100)), torch.nn.Parameter(torch.ones(100))
    opt = ChildTuningAdamW(
        [{"params": [("body", body)]}, {"params": [("head", head)], "mode": "task-free", "reserve_p": 1.0}],
        mode="task-dependent",
        gradient_mask={"module.body": torch.arange(100) < 10},
    )
    body.grad, head.grad = torch.ones(100), torch.ones(100)
    opt.step()
    assert int((body != 1).sum()) == 10 and int((head != 1).sum()) == 100


def test_frozen_parameters_need_no_mask_until_they_train():
    weight, frozen = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(4), requires_grad=False)
    opt = ChildTuningAdamW(
        [("w", weight), ("f", frozen)],
        mode="task-dependent",
        gradient_mask={"w": torch.ones(4, dtype=torch.bool)},
    )
    weight.grad = torch.ones(4)
    opt.step()
    frozen.requires_grad_(True)
    frozen.grad = torch.ones(4)
    with pytest.raises(ValueError, match="f: it has a gradient but no gradient_mask"):
        opt.step()


@pytest.mark.parametrize(
    "masks, message",
    [
        (None, "group 0 is task-dependent but has no gradient_mask"),
        ({}, "group 0 is task-dependent but has no gradient_mask"),
        ({"v": torch.ones(4, dtype=torch.bool)}, "w: gradient_mask has no mask of this name"),
        ({"w": torch.ones(5, dtype=torch.bool)}, r"w: its gradient_mask must be torch.bool .*\(4,\)"),
        ({"w": torch.ones(4)}, "w: its gradient_mask must be torch.bool"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        ChildTuningAdamW([("w", torch.nn.Parameter(torch.zeros(4)))], mode="task-dependent", gradient_mask=masks)


def test_a_state_of_the_other_mode_is_refused():
    params = named(torch.float32)
    opt = build(params)
    train(opt, params, 0, 1)
    with pytest.raises(ValueError, match=r'group 0: the saved state is task-dependent .*mode="task-dependent"'):
        ChildTuningAdamW(params).load_state_dict(opt.state_dict())
