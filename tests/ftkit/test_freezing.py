"""Freezing by pattern or predicate: what changed is returned, ties are said, what matches nothing is refused."""

import warnings

import pytest
import torch

from ftkit.freezing import freeze, train_only, unfreeze
from ftkit.models import load_base
from ftkit.parameters import count_parameters
from tests.tiny import foreign_model


@pytest.fixture(autouse=True)
def no_warning_but_those_asked_for():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # not those of files that an earlier test left open
        yield


def trainable(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_freeze_returns_what_it_changed_and_unfreeze_undoes_it():
    model = foreign_model()
    changed = freeze(model, r"mlp\.")
    assert len(changed) == 3 * 3 and all("mlp" in name for name in changed)
    assert count_parameters(model).trainable == count_parameters(model).total - 9 * 32 * 48
    assert freeze(model, r"layers\.0\.mlp") == []  # frozen already
    assert unfreeze(model, "mlp") == changed
    assert all(p.requires_grad for p in model.parameters())


def test_a_predicate_sees_name_and_parameter():
    model = foreign_model()
    assert freeze(model, lambda name, parameter: "layers.1." in name and parameter.ndim == 1) == [
        f"model.layers.1.{norm}.weight"
        for norm in ("self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm")
    ]


def test_train_only_sets_all_whatever_was_frozen_before():
    model = foreign_model()
    freeze(model, "mlp|q_proj")
    names = train_only(model, "q_proj|k_proj")
    assert names == trainable(model) == [n for n, _ in model.named_parameters() if n[-13:-8] in ("q_pro", "k_pro")]


def test_a_frozen_parameter_stays_to_the_bit_and_a_trainable_one_moves():
    model = foreign_model(torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = train_only(model, r"layers\.1\.mlp")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.arange(12).reshape(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert moved == names


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("embed_token_s", "embed_tokens"),
        (r"model\.layer\.0\.mlp\.up_proj\.weight", "model.layers.0.mlp.up_proj.weight"),
        ("gate_prj$", "gate_proj"),
        ("zzzzzzzz", "lm_head.weight, model.embed_tokens.weight"),
    ],
)
def test_a_pattern_that_matches_nothing_names_near_ones(pattern, near):
    model = foreign_model()
    for change in (freeze, unfreeze, train_only):
        with pytest.raises(ValueError, match="no parameter name matches") as error:
            change(model, pattern)
        assert near in str(error.value).partition("near names: ")[2]
    assert trainable(model) == [name for name, _ in model.named_parameters()]  # train_only froze nothing


def test_other_bad_choices_are_named():
    model = foreign_model()
    with pytest.raises(ValueError, match="predicate is true of no parameter; names look like lm_head"):
        freeze(model, lambda name, parameter: parameter.ndim == 7)
    with pytest.raises(ValueError, match=r"'mlp\[' is not a regular expression"):
        freeze(model, "mlp[")


def test_a_tied_head_is_one_tensor_with_the_table_and_that_is_said():
    model = foreign_model()
    with pytest.warns(UserWarning, match=r"lm_head\.weight is tied to model\.embed_tokens\.weight") as said:
        assert freeze(model, "lm_head") == ["model.embed_tokens.weight"]
    assert said[0].filename == __file__  # it points at the caller
    assert not model.lm_head.weight.requires_grad and not model.model.embed_tokens.weight.requires_grad
    with pytest.warns(UserWarning, match=r"embed_tokens\.weight is tied to lm_head\.weight"):
        assert unfreeze(model, "embed_tokens") == ["model.embed_tokens.weight"]
    freeze(model, "embed_tokens|lm_head")  # who names both is told nothing
    unfreeze(model, ".")


def test_an_untied_head_is_its_own():
    model = load_base()[0]
    assert freeze(model, "lm_head") == ["lm_head.weight"]
    assert model.model.embed_tokens.weight.requires_grad


def test_quantised_weights_cannot_train():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["a"].weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    freeze(model, "bias")
    with pytest.raises(ValueError, match=r"a\.weight is stored as torch\.int8"):
        unfreeze(model, ".")
    assert trainable(model) == ["b.weight"]  # nothing changed
    assert unfreeze(model, "bias") == ["a.bias", "b.bias"]
