"""Masks against a Philox written from its paper, against statistics, and against themselves, cut up."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ftkit import _modules, dtensor
from ftkit.child_tuning import gradient_mask, masks

KEY = {"seed": 3, "step": 7, "name": "layers.0.weight"}


def philox4x64(counter: int, key: int) -> list[int]:
    """Philox4x64-10 in plain integers, as its paper gives it; counter and key fill their lowest word only."""
    low64 = (1 << 64) - 1
    words, k0, k1 = [counter, 0, 0, 0], key, 0
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [(b >> 64) ^ words[1] ^ k0, b & low64, (a >> 64) ^ words[3] ^ k1, a & low64]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & low64, (k1 + 0xBB67AE8584CAA73B) & low64
    return words


def draw_by_definition(index: int, seed: int, step: int, name: str) -> int:
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8).digest(), "little")
    word = philox4x64(1 + index // 16, key)[index % 16 // 4]
    return word >> (16 * (index % 4)) & 0xFFFF


def test_the_reference_reproduces_the_published_vector():
    assert philox4x64(0, 0) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]


def check_definition() -> None:
    mask = gradient_mask((5, 21), 0.3, **KEY).view(-1)
    expected = [draw_by_definition(i, **KEY) < round(0.3 * 65536) for i in range(105)]
    assert mask.tolist() == expected


def test_masks_follow_their_written_definition(monkeypatch):
    check_definition()
    fill = masks._fill
    monkeypatch.setattr(masks, "_fill", lambda keep, key, threshold, first: fill(keep, key, threshold, first + 16))
    with pytest.raises(AssertionError):
        check_definition()


def check_large_keys() -> None:
    for step in range(1, 9):
        mask = gradient_mask((33,), 0.3, seed=3, step=step, name="w")
        expected = [draw_by_definition(i, 3, step, "w") < round(0.3 * 65536) for i in range(33)]
        assert mask.tolist() == expected, step


def test_every_bit_of_a_key_counts(monkeypatch):
    """numpy turns a list such as [2**63 + 1, 0] into float64, and the key into another one."""
    assert any(masks.mask_key(3, step, "w") >= 2**63 for step in range(1, 9))
    check_large_keys()
    monkeypatch.setattr(masks, "mask_key", lambda *parts: int(float(mask_key(*parts))))
    with pytest.raises(AssertionError):
        check_large_keys()


mask_key = masks.mask_key


@st.composite
def wholes_and_parts(draw):
    shape = draw(st.lists(st.integers(0, 40), min_size=0, max_size=4))
    region = []
    for size in shape[: draw(st.integers(0, len(shape)))]:
        low = draw(st.integers(0, size))
        region.append(slice(low, draw(st.integers(low, size))))
    return tuple(shape), tuple(region)


def check_parts(phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    @settings(max_examples=150, deadline=None, database=None, derandomize=True, phases=phases)
    @given(wholes_and_parts(), st.integers(0, 64), st.integers(16, 200))
    def check(case, gap, block):
        shape, region = case
        whole = gradient_mask(shape, 0.4, **KEY)
        with pytest.MonkeyPatch.context() as patch:  # small limits, so that small tensors take every path
            patch.setattr(masks, "_CHEAP_GAP", gap)
            patch.setattr(masks, "BLOCK", block)
            patch.setattr(masks, "_COUNTERS", 1 + block // 50)
            part = gradient_mask(shape, 0.4, region=region, **KEY)
        assert torch.equal(part, whole[region])

    check()


def test_any_region_equals_that_part_of_the_whole():
    check_parts()


def offset_within_the_shard(self, run):
    return run * self.contiguous


def offset_without_the_first_index(self, run):
    index = np.unravel_index(run, self._outer) if self._outer else ()
    return sum(int(i) * stride for i, stride in zip(index, self._strides, strict=False))


@pytest.mark.parametrize("mutated", [offset_within_the_shard, offset_without_the_first_index])
def test_one_mask_on_all_shards_is_noticed(monkeypatch, mutated):
    monkeypatch.setattr(dtensor.Region, "_offset", mutated)
    with pytest.raises(AssertionError):
        check_parts((Phase.generate,))  # and do not look for the smallest case, which takes seconds


def test_regions_of_a_larger_tensor_cross_blocks():
    shape = (1000, 700)
    whole = gradient_mask(shape, 0.3, **KEY)
    for rows, columns in [
        ((0, 500), (0, 700)),
        ((0, 1000), (233, 467)),
        ((999, 1000), (699, 700)),
        ((3, 3), (0, 9)),
    ]:
        region = (slice(*rows), slice(*columns))
        assert torch.equal(gradient_mask(shape, 0.3, region=region, **KEY), whole[region])


def test_a_far_region_of_a_huge_tensor_is_drawn_alone():
    # 10^12 elements could never be drawn whole; the definition says what the last row's end must be.
    start = 10**12 - 20
    part = gradient_mask((10**6, 10**6), 0.5, region=(slice(-1, None), slice(-20, None)), **KEY)
    assert part.view(-1).tolist() == [draw_by_definition(start + i, **KEY) < 32768 for i in range(20)]


@pytest.mark.parametrize("reserve_p", [2e-5, 0.01, 0.1, 0.3, 0.35, 0.5, 0.75, 0.999])
def test_the_rate_is_honoured(reserve_p):
    realised = masks.effective_p(reserve_p)
    assert abs(realised - reserve_p) <= 2e-5
    n = 4_000_000
    kept = int(gradient_mask((n,), reserve_p, **KEY).sum())
    assert abs(kept - n * realised) < 4.5 * math.sqrt(n * realised * (1 - realised)) + 1


def chi_square(counts: np.ndarray) -> float:
    """Distance of a table of counts from independence of its rows and columns."""
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def joint_counts(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    return np.bincount((2 * a.long() + b.long()).view(-1).numpy(), minlength=4).reshape(2, 2)


def check_independence() -> None:
    """Masks of neighbours in name, step and seed, and neighbouring elements, tell nothing of one another."""
    n = 1_000_000
    base = gradient_mask((n,), 0.3, **KEY)
    others = [{**KEY, "name": "layers.1.weight"}, {**KEY, "step": 8}, {**KEY, "seed": 4}]
    others += [{"seed": 7, "step": 3, "name": KEY["name"]}]  # swapped numbers must not give the same key
    pairs = [(base, gradient_mask((n,), 0.3, **other)) for other in others]
    pairs += [(base[:-lag], base[lag:]) for lag in (1, 2, 4, 16, 64)]
    for a, b in pairs:
        assert chi_square(joint_counts(a, b)) < 15.1  # one degree of freedom: exceeded by chance once in 10,000


def test_masks_are_independent_across_names_steps_seeds_and_elements():
    check_independence()


def test_a_key_without_the_step_is_noticed(monkeypatch):
    original = masks.mask_key
    monkeypatch.setattr(masks, "mask_key", lambda seed, step, name: original(seed, 0, name))
    with pytest.raises(AssertionError):
        check_independence()


def test_draws_are_uniform():
    """Thresholds 1/16 apart cut the draws into bins; none may hold too many or too few."""
    element = np.empty(1 << 20, bool)
    below = []
    for threshold in range(4096, 1 << 16, 4096):
        masks.fill_mask(element, masks.mask_key(0, 1, "w"), threshold, dtensor.Region((1 << 20,)), 0)
        below.append(int(element.sum()))
    counts = np.diff([0, *below, 1 << 20])
    assert ((counts - (1 << 16)) ** 2 / (1 << 16)).sum() < 44.3  # 15 degrees of freedom: once in 10,000


def test_names_are_cleaned_of_wrappers():
    assert _modules.clean_name("module.layers.0._orig_mod._checkpoint_wrapped_module.weight") == "layers.0.weight"
    assert _modules.clean_name("_fsdp_wrapped_module.head.bias") == "head.bias"
    assert _modules.clean_name("block.module") == "block.module"  # a parameter that is called so
    assert _modules.clean_name("my_module.weight") == "my_module.weight"
    plain = gradient_mask((9, 9), 0.5, seed=0, step=1, name="a.weight")
    assert torch.equal(plain, gradient_mask((9, 9), 0.5, seed=0, step=1, name="module.a._orig_mod.weight"))


def test_reserve_p_of_one_keeps_everything():
    assert gradient_mask((3, 70), 1.0, **KEY).all()


@pytest.mark.parametrize("reserve_p", [0, -0.1, 1.0001, 33, float("nan"), float("inf")])
def test_impossible_probabilities_are_refused(reserve_p):
    with pytest.raises(ValueError, match=r"reserve_p is .*: give a probability above 0 and at most 1"):
        gradient_mask((3,), reserve_p, **KEY)


@pytest.mark.parametrize("reserve_p", [1e-6, 1.9e-5])
def test_probabilities_below_the_resolution_are_refused(reserve_p):
    with pytest.raises(ValueError, match="requires_grad_"):
        gradient_mask((3,), reserve_p, **KEY)


@pytest.mark.parametrize("region", [(slice(0, 4, 2),), (slice(0, 1),) * 3, (1,)])
def test_regions_that_do_not_fit_are_refused(region):
    with pytest.raises(ValueError, match="slices"):
        gradient_mask((4, 4), 0.5, region=region, **KEY)
