"""Masks of random and of large weights, and AdamW whose updates are masked, each against numpy or torch."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from ftcourse.masks import (
    Magma,
    UpdateMaskedAdamW,
    linear_weights,
    low_rank,
    magnitude_masks,
    matching_lora_rank,
    random_masks,
)
from ftkit.child_tuning import ChildTuningAdamW, gradient_mask
from ftkit.models import load_base
from tests.tiny import foreign_model

MATRIX = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 10)).astype(np.float32))


def test_linear_weights_are_the_matrices_of_the_layers_alone():
    model, _ = load_base()
    names = set(linear_weights(model))
    assert names == {n for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2}
    assert not any("lm_head" in name or "embed" in name for name in linear_weights(foreign_model()))


def test_the_largest_entries_of_each_matrix_by_numpy():
    weights = {"a": MATRIX, "b": 100 * MATRIX.T.contiguous()}  # one threshold for both would leave "a" empty
    for name, mask in magnitude_masks(weights, 0.25).items():
        score = weights[name].abs().numpy().ravel()
        expected = np.zeros(score.size, bool)
        expected[np.argsort(-score)[:30]] = True
        assert np.array_equal(mask.numpy().ravel(), expected)


def test_rank_reduction_is_the_best_approximation():
    reduced = low_rank(MATRIX, 3)
    values = np.linalg.svd(MATRIX.numpy().astype(np.float64), compute_uv=False)
    assert np.linalg.matrix_rank(reduced.numpy(), tol=1e-4) == 3
    # Eckart and Young: what is left out is the other singular values.
    assert float((MATRIX - reduced).norm()) == pytest.approx(float(np.sqrt((values[3:] ** 2).sum())), rel=1e-4)
    by_rank = [magnitude_masks({"a": MATRIX}, 0.25, rank)["a"] for rank in (0, 3, 10)]
    assert torch.equal(by_rank[0], by_rank[2]) and not torch.equal(by_rank[0], by_rank[1])  # rank 10 is the matrix
    assert [int(mask.sum()) for mask in by_rank] == [30, 30, 30]


def test_a_random_mask_is_the_seeds_own():
    weights = {"a": torch.zeros(300, 300), "b": torch.zeros(300, 300)}
    masks, again, other = (random_masks(weights, 0.1, seed) for seed in (0, 0, 1))
    assert torch.equal(masks["a"], again["a"]) and not torch.equal(masks["a"], other["a"])
    assert not torch.equal(masks["a"], masks["b"])
    assert float(masks["a"].float().mean()) == pytest.approx(0.1, abs=0.005)


def test_lora_of_the_matching_rank_trains_as_many_numbers():
    model, _ = load_base()
    weights = linear_weights(model)
    masked = sum(int(mask.sum()) for mask in magnitude_masks(weights, 0.1).values())
    rank = matching_lora_rank(weights, 0.1)
    targets = [name.removesuffix(".weight") for name in weights]
    adapted = get_peft_model(model, LoraConfig(r=rank, target_modules=targets))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == pytest.approx(masked, rel=0.01)
    assert trained * (rank + 1) / rank > 1.1 * masked  # one rank more is further off


def two_steps(make, model, steps=2):
    """The weights after every step, and the optimizer."""
    generator = torch.Generator().manual_seed(1)
    optimizer, after = make(model.named_parameters()), []
    for _ in range(steps):
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
        after.append({name: param.detach().clone() for name, param in model.named_parameters()})
    return after, optimizer


def layer():
    torch.manual_seed(0)
    return torch.nn.Linear(40, 30)


def test_a_masked_update_is_part_of_adamws_and_its_moments_are_all_of_them():
    model, start = layer(), {name: p.detach().clone() for name, p in layer().named_parameters()}
    plain, adamw = two_steps(lambda named: torch.optim.AdamW(named, lr=0.1), copy.deepcopy(model))
    masked, optimizer = two_steps(lambda named: UpdateMaskedAdamW(named, 0.1, keep_p=0.25, seed=3), model)
    for name, before in start.items():
        keep = gradient_mask(before.shape, 0.25, seed=3, step=1, name=name)
        assert torch.equal(masked[0][name][~keep], before[~keep]) and 0 < keep.float().mean() < 1
        change, dense = masked[0][name] - before, plain[0][name] - before
        assert torch.allclose(change[keep], 4 * dense[keep], rtol=1e-4, atol=1e-6)
    assert not torch.equal(masked[1]["weight"], masked[0]["weight"])
    for one, other in zip(optimizer.state.values(), adamw.state.values(), strict=True):
        assert torch.equal(one["exp_avg"], other["exp_avg"]) and torch.equal(one["exp_avg_sq"], other["exp_avg_sq"])
    # Negative control: where the gradient is masked, the moments are not AdamW's.
    _, child = two_steps(lambda named: ChildTuningAdamW(named, lr=0.1, reserve_p=0.25), layer())
    pairs = zip(child.state.values(), adamw.state.values(), strict=True)
    assert not any(torch.equal(one["exp_avg"], other["exp_avg"]) for one, other in pairs)


def test_with_every_change_kept_it_is_adamw():
    plain, _ = two_steps(lambda named: torch.optim.AdamW(named, lr=0.1), layer())
    whole, _ = two_steps(lambda named: UpdateMaskedAdamW(named, 0.1, keep_p=1.0), layer())
    assert torch.allclose(plain[1]["weight"], whole[1]["weight"], rtol=1e-6, atol=1e-7)


def test_magma_skips_whole_tensors_and_damps_by_alignment():
    model = torch.nn.ModuleDict({f"layer_{n}": torch.nn.Linear(20, 20) for n in range(10)})
    model["embed_tokens"] = torch.nn.Embedding(5, 20)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain, _ = two_steps(lambda named: torch.optim.AdamW(named, lr=0.1), copy.deepcopy(model), steps=1)
    after, _ = two_steps(lambda named: Magma(named, 0.1, seed=2), model, steps=1)
    generator, skipped = torch.Generator().manual_seed(1), 0
    for name, before in start.items():
        gradient = torch.randn(before.shape, generator=generator).numpy().ravel()
        momentum = 0.1 * gradient
        cosine = gradient @ momentum / np.linalg.norm(gradient) / np.linalg.norm(momentum)  # 1 in the first step
        factor = 1.0 if name == "embed_tokens.weight" else 1 / (1 + np.exp(-cosine / 2))
        change, dense = after[0][name] - before, plain[0][name] - before
        if not change.any():
            skipped += 1
            assert name != "embed_tokens.weight"
        else:
            assert torch.allclose(change, factor * dense, rtol=1e-4, atol=1e-6)
    assert 4 <= skipped <= 16  # of twenty tensors, each with probability a half


def test_magmas_alignment_is_a_running_mean():
    model = layer()
    _, optimizer = two_steps(lambda named: Magma(named, 0.1), model, steps=3)
    generator, expected = torch.Generator().manual_seed(1), {}
    moments = {name: 0 for name, _ in model.named_parameters()}
    for _ in range(3):
        for name, param in model.named_parameters():
            g = torch.randn(param.shape, generator=generator).numpy().ravel().astype(np.float64)
            moments[name] = m = 0.9 * moments[name] + 0.1 * g
            now = 1 / (1 + np.exp(-(g @ m) / np.linalg.norm(g) / np.linalg.norm(m) / 2))
            expected[name] = 0.9 * expected.get(name, now) + 0.1 * now
    for name, param in model.named_parameters():
        assert float(optimizer.state[param]["alignment"]) == pytest.approx(expected[name], rel=1e-4)
