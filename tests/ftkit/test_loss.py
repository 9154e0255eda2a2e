"""The summed cross-entropy by hand, and accumulation against one batch."""

import math

import pytest
import torch
from torch import nn
from transformers.integrations.neftune import activate_neftune

from ftkit.adapters import attach
from ftkit.loss import IGNORE_INDEX, accumulate, chunk_loss, next_token_loss, summed_cross_entropy, token_losses
from tests import architectures
from tests.tiny import foreign_model


def batch_of(rows: int) -> dict[str, torch.Tensor]:
    ids = torch.arange(3, 3 + 6 * rows).view(rows, 6)
    labels = ids.clone()
    labels[:, :2] = IGNORE_INDEX
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def test_even_logits_cost_the_logarithm_of_the_vocabulary_for_each_unmasked_label():
    labels = torch.tensor([[1, IGNORE_INDEX, 3]])
    loss = summed_cross_entropy(torch.zeros(1, 3, 10, dtype=torch.bfloat16), labels)
    assert loss.dtype == torch.float32 and math.isclose(loss.item(), 2 * math.log(10), rel_tol=1e-6)


def losses_and_gradient(function, logits: torch.Tensor, labels: torch.Tensor):
    logits = logits.clone().requires_grad_()
    losses = function(logits, labels)
    (losses * torch.arange(1, losses.numel() + 1).view_as(losses)).sum().backward()
    return losses.detach(), logits.grad


def torchs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    ).view_as(labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_those_of_torch_in_float64(dtype):
    torch.manual_seed(0)
    logits, labels = (3 * torch.randn(2, 5, 49_152)).to(dtype), torch.randint(0, 49_152, (2, 5))
    labels[0, :3] = IGNORE_INDEX
    expected, gradient = losses_and_gradient(torchs, logits.double(), labels)
    losses, found = losses_and_gradient(token_losses, logits, labels)
    assert losses.dtype == torch.float32 and found.dtype == dtype
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.double(), gradient, rtol=2e-6 if dtype == torch.float32 else 2**-8, atol=1e-9)


def test_the_gradient_is_nearer_to_float64_than_torchs_own():
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(1, 4, 128_256), torch.randint(0, 128_256, (1, 4))
    _, exact = losses_and_gradient(torchs, logits.double(), labels)
    error, torch_error = (
        (losses_and_gradient(function, logits, labels)[1] - exact).abs().max() for function in (token_losses, torchs)
    )
    assert error < 1e-6 and error <= torch_error


def test_what_a_masked_position_predicts_does_not_matter():
    logits, labels = torch.zeros(1, 2, 10), torch.tensor([[IGNORE_INDEX, 3]])
    logits[0, 0] = torch.nan
    losses, gradient = losses_and_gradient(token_losses, logits, labels)
    assert losses.tolist() == [[0.0, pytest.approx(math.log(10))]] and not gradient[0, 0].any()
    assert gradient.isfinite().all()


def test_a_token_is_predicted_from_those_before_it():
    model, batch = foreign_model(torch.float32), batch_of(2)
    logits = model(input_ids=batch["input_ids"]).logits
    by_hand = sum(-logits[row, t - 1].log_softmax(-1)[batch["labels"][row, t]] for row in range(2) for t in range(2, 6))
    torch.testing.assert_close(next_token_loss(model, batch, torch.float32, mixed=False), by_hand)
    shifted = nn.functional.cross_entropy(  # the mutation: each token from itself
        logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    assert not torch.isclose(shifted, by_hand)


def test_mixed_computes_in_the_other_dtype():
    model, batch = foreign_model(torch.float32), batch_of(1)
    exact = next_token_loss(model, batch, torch.bfloat16, mixed=False)
    mixed = next_token_loss(model, batch, torch.bfloat16, mixed=True)
    assert mixed.dtype == torch.float32 and 0 < abs(mixed - exact) < 0.01 * exact


def test_micro_batches_add_up_to_one_batch():
    model, batch = foreign_model(torch.float32), batch_of(4)

    def loss_of(model, micro_batch):
        return next_token_loss(model, micro_batch, torch.float32, mixed=False)

    def gradients(micro_batches, parts=1):
        model.zero_grad()
        losses = accumulate(model, micro_batches, loss_of, parts, tokens=16)
        return sum(loss.item() for loss in losses), [p.grad.clone() for p in model.parameters()]

    whole, expected = gradients([batch])
    halves = [{name: tensor[i : i + 2] for name, tensor in batch.items()} for i in (0, 2)]
    total, found = gradients(halves)
    assert math.isclose(whole, total, rel_tol=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    _, doubled = gradients([batch], parts=2)
    torch.testing.assert_close(doubled, [2 * gradient for gradient in expected])


def test_a_router_s_loss_is_added_where_the_configuration_asks_for_it():
    """The mean is transformers' own loss; without the setting it is the cross-entropy alone, as there."""
    batch, means = batch_of(3), {}
    batch["attention_mask"][1, 4:] = 0
    batch["labels"][1, 4:] = IGNORE_INDEX
    tokens = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
    for asked in (True, False):
        model = architectures.build("mixtral", output_router_logits=asked, router_aux_loss_coef=3.0)
        means[asked] = next_token_loss(model, batch, torch.float32, mixed=False) / tokens
        torch.testing.assert_close(means[asked], model(**batch).loss)
    assert means[True] - means[False] > 3
    model.zero_grad()
    means[True].backward()
    masked = batch | {"labels": torch.full_like(batch["labels"], IGNORE_INDEX)}  # what evens out the ranks
    assert next_token_loss(model, masked, torch.float32, mixed=False) == 0


def loss_and_gradients(model: nn.Module, batch: dict[str, torch.Tensor], chunk: int = 0):
    torch.manual_seed(0)  # of NEFTune's noise
    model.zero_grad()
    loss = next_token_loss(model, batch, torch.float32, mixed=False, chunked=bool(chunk))
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["full", "lora", "noise", "packed"])
def test_a_chunked_loss_is_the_whole_one_with_its_gradients(kind):
    model, batch = foreign_model(torch.float32), batch_of(3)
    if kind == "lora":
        model = attach(model, "lora", r=2)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
    if kind == "noise":
        activate_neftune(model, 5.0)
    if kind == "packed":
        positions = torch.tensor([0, 1, 2, 0, 1, 2]).expand(3, -1).clone()
        batch = {"input_ids": batch["input_ids"], "position_ids": positions, "labels": batch["labels"]}
    model.train()
    expected, gradients = loss_and_gradients(model, batch)
    for chunk in (1, 4, 15, 100):  # of 15 tokens
        chunk_loss(model, chunk)
        found, chunked = loss_and_gradients(model, batch, chunk)
        torch.testing.assert_close(found, expected)
        assert chunked.keys() == gradients.keys()
        torch.testing.assert_close(chunked, gradients, rtol=1e-4, atol=1e-6)
    shifted = {**batch, "labels": batch["labels"].roll(1, 1)}  # the mutation: another token's label
    assert not torch.isclose(loss_and_gradients(model, shifted, chunk)[0], expected)


def test_a_chunked_loss_never_has_more_logits_than_a_chunk():
    model, batch, seen = foreign_model(torch.float32), batch_of(3), []
    model.get_output_embeddings().register_forward_hook(lambda _m, _i, logits: seen.append(logits.shape[:-1].numel()))
    chunk_loss(model, 4)
    loss_and_gradients(model, batch, 4)
    assert max(seen) == 4 and sum(seen) == 2 * 15  # forward, and again in backward
    seen.clear()
    assert model(input_ids=batch["input_ids"]).logits.shape[:2] == (3, 6)  # without labels as before
    assert seen == [18]


def test_nothing_to_predict_costs_nothing():
    model, batch = foreign_model(torch.float32), batch_of(2)
    chunk_loss(model, 4)
    for empty in (
        {name: tensor[:, :1] for name, tensor in batch.items()},
        {**batch, "labels": torch.full_like(batch["labels"], IGNORE_INDEX)},
    ):
        loss, gradients = loss_and_gradients(model, empty, 4)
        assert loss == 0 and not any(gradient.any() for gradient in gradients.values())
