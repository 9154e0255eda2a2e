"""The padding check sees masks that leak, by margins that say where its limits come from."""

import pytest
import torch

from ftkit.chat import attention as padding
from ftkit.chat import check_padding, finding_codes
from ftkit.models import load_base
from tests.tiny import foreign_model, foreign_tokenizer

from .cases import causal_and_padding, padding_only, with_masks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_sound_masks_pass_in_each_dtype(dtype):
    assert check_padding(foreign_model(dtype), foreign_tokenizer()) == []


def test_pocket_base_passes_and_keeps_its_mode():
    model, tokenizer = load_base()
    model.train()
    assert check_padding(model, tokenizer) == []
    assert model.training


def test_an_ignored_attention_mask_shows_on_the_left_only():
    # With padding on the right the causal mask alone hides the pads: this is why it goes unnoticed for so long.
    (found,) = with_masks(torch.ones_like)
    assert found.code == "padding-changes-logits"
    assert "on the left" in found.observed


def test_a_padding_mask_without_the_causal_one_lets_the_future_through():
    assert finding_codes(with_masks(padding_only)) == ["future-changes-logits"]
    assert with_masks(causal_and_padding) == []


def test_limits_have_room_on_both_sides(monkeypatch):
    """Rounding stays a factor of five below the limit; leaks of these masks are over it by more than two."""
    for dtype, limit in padding.TOLERANCE.items():
        monkeypatch.setitem(padding.TOLERANCE, dtype, limit / 5)
        assert check_padding(foreign_model(dtype), foreign_tokenizer()) == []
        monkeypatch.setitem(padding.TOLERANCE, dtype, 2 * limit)
    assert with_masks(torch.ones_like) != []
    assert with_masks(padding_only) != []
