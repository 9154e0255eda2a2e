"""Fisher information against its closed form, and the child that comes of it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ftkit.child_tuning import (
    ChildTuningAdamW,
    fisher,
    fisher_information,
    fisher_mask,
    load_masks,
    save_masks,
    top_fraction_masks,
)


def regression():
    """Half the squared error of a linear model: example i's gradient is residual_i times x_i."""
    torch.manual_seed(0)
    model = torch.nn.Linear(7, 1)
    batches = [{"x": torch.randn(n, 7), "y": torch.randn(n, 1)} for n in (4, 1, 6)]
    return model, batches


def half_squared_error(model, batch):
    return (model(batch["x"]) - batch["y"]).square().mean() / 2


def closed_form(model, batches) -> dict[str, torch.Tensor]:
    x, y = (torch.cat([batch[key] for batch in batches]) for key in "xy")
    residual = (model(x) - y).detach()
    return {"weight": (residual * x).square().mean(0, keepdim=True), "bias": residual.square().mean(0)}


def check_closed_form(**options) -> None:
    model, batches = regression()
    scores = fisher_information(model, batches, loss=half_squared_error, **options)
    for name, expected in closed_form(model, batches).items():
        torch.testing.assert_close(scores[name], expected, rtol=1e-5, atol=1e-7)


def test_fisher_information_equals_its_closed_form():
    check_closed_form()


def test_squares_of_batch_gradients_are_noticed():
    with pytest.raises(AssertionError):
        check_closed_form(per="batch")


def test_gradients_left_over_from_the_last_example_are_noticed(monkeypatch):
    monkeypatch.setattr(torch.nn.Linear, "zero_grad", lambda self: None)
    with pytest.raises(AssertionError):
        check_closed_form()


def test_per_batch_squares_the_gradient_of_the_whole_batch():
    model, batches = regression()
    scores = fisher_information(model, batches, loss=half_squared_error, per="batch")
    squares = []
    for batch in batches:
        residual = (model(batch["x"]) - batch["y"]).detach()
        squares.append((residual * batch["x"]).mean(0).square())
    torch.testing.assert_close(scores["weight"][0], torch.stack(squares).mean(0), rtol=1e-5, atol=1e-7)


class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first = torch.nn.Linear(7, 9)
        self.drop = torch.nn.Dropout(0.5)
        self.last = torch.nn.Linear(9, 1)

    def forward(self, x):
        return self.last(self.drop(self.first(x).relu()))


def test_dropout_is_off_unless_asked_for():
    model, (_, batches) = Tower(), regression()
    model.train()
    calm = [fisher_information(model, batches, loss=half_squared_error)["last.weight"] for _ in range(2)]
    assert torch.equal(*calm)
    noisy = [
        fisher_information(model, batches, loss=half_squared_error, eval_mode=False)["last.weight"] for _ in range(2)
    ]
    assert not torch.equal(*noisy)


@pytest.mark.parametrize("eval_mode", [True, False])
def test_gradients_and_training_flags_are_left_as_they_were(eval_mode):
    model, (_, batches) = Tower(), regression()
    model.train()
    model.drop.eval()
    mine = torch.ones_like(model.last.weight)
    model.last.weight.grad = mine
    fisher_information(model, batches, loss=half_squared_error, eval_mode=eval_mode)
    assert model.last.weight.grad is mine and torch.equal(mine, torch.ones_like(mine))
    assert model.first.weight.grad is None
    assert model.training and model.last.training and not model.drop.training


def test_frozen_and_excluded_parameters_get_no_mask():
    model, (_, batches) = Tower(), regression()
    model.first.weight.requires_grad_(False)
    masks = fisher_mask(model, batches, 0.5, loss=half_squared_error, exclude=[r"^last\.b"])
    assert masks.keys() == {"first.bias", "last.weight"}
    assert sum(int(mask.sum()) for mask in masks.values()) == 9


def test_wrapped_models_give_plain_names():
    model, (_, batches) = torch.nn.Sequential(), regression()
    model.module = torch.nn.Linear(7, 1)
    scores = fisher_information(model, batches, loss=lambda m, b: half_squared_error(m.module, b))
    assert scores.keys() == {"weight", "bias"}


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=1, **sizes))


def chat_batches():
    generator = torch.Generator().manual_seed(3)
    batches = []
    for _ in range(3):
        input_ids = torch.randint(0, 40, (2, 12), generator=generator)
        labels = input_ids.clone()
        labels[:, :4] = -100
        labels[0, 9:] = -100
        batches.append({"input_ids": input_ids, "labels": labels})
    return batches


def test_a_language_model_trains_its_child_and_nothing_else():
    """From Fisher information to training: the whole path, on a Hugging Face model and its own loss."""
    model = tiny_llama()
    masks = fisher_mask(model, chat_batches(), 0.1)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.1 * total)
    shares = {name: mask.float().mean().item() for name, mask in masks.items()}
    assert max(shares.values()) > 2 * min(shares.values())  # one threshold: layers get unequal shares
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    opt = ChildTuningAdamW(model.named_parameters(), mode="task-dependent", gradient_mask=masks)
    for batch in chat_batches():
        opt.zero_grad()
        model(**batch).loss.backward()
        opt.step()
    for name, param in model.named_parameters():
        assert torch.equal(param != before[name], masks[name])


def test_masks_come_back_from_a_file(tmp_path):
    masks = top_fraction_masks({"module.a.weight": torch.rand(5, 6), "b": torch.rand(())}, 0.4)
    save_masks(masks, tmp_path / "child.safetensors")
    loaded = load_masks(tmp_path / "child.safetensors")
    assert loaded.keys() == {"a.weight", "b"}
    assert torch.equal(loaded["a.weight"], masks["module.a.weight"]) and torch.equal(loaded["b"], masks["b"])


def test_files_and_masks_of_another_kind_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors holds no gradient masks"):
        load_masks(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"w: a mask must be torch\.bool"):
        save_masks({"w": torch.ones(3)}, tmp_path / "masks.safetensors")


def bad_label(model, batch):
    return half_squared_error(model, batch) * float("nan")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"per": "token"}, 'per must be "example" or "batch"'),
        ({"exclude": ["embed"]}, "no parameter name contains 'embed'; the first ones are .'weight', 'bias'"),
        ({"exclude": ["weight", "bias"]}, "every parameter is frozen or excluded"),
        ({"loss": bad_label}, "weight: its gradient is not finite in example or batch 1"),
        ({"loss": lambda model, batch: half_squared_error(model, batch) * 0}, "all scores are zero"),
    ],
)
def test_what_cannot_be_scored_is_refused(options, message):
    model, batches = regression()
    with pytest.raises(ValueError, match=message):
        fisher_mask(model, batches, 0.3, **{"loss": half_squared_error, **options})


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="there are no batches"):
        fisher_mask(regression()[0], [], 0.3)


def test_an_impossible_share_is_refused_before_any_work():
    with pytest.raises(ValueError, match="reserve_p"):
        fisher_mask(regression()[0], iter(lambda: 1 / 0, None), 0)


def test_batches_whose_tensors_disagree_about_examples_are_refused():
    with pytest.raises(ValueError, match=r"\[4, 3\] rows"):
        fisher._examples({"x": torch.zeros(4, 7), "y": torch.zeros(3)})


def test_a_batch_without_labels_is_refused():
    with pytest.raises(ValueError, match="add labels"):
        fisher_mask(tiny_llama(), [{"input_ids": torch.zeros(1, 4, dtype=torch.long)}], 0.3)
