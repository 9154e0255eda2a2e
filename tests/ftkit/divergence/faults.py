"""Training loops with one fault each: planted where its docstring says."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ftkit._modules import decoder_layers
from ftkit.batching import unmasked_tokens
from ftkit.child_tuning import optimizer
from ftkit.dtensor import local_tensor
from ftkit.loss import accumulate
from ftkit.parameters import decay_groups

from .runs import ByHand, Child, Clipped, Ddp, Fsdp, Loop, Lora, Parallel, Resumed

LAST = Loop.layers - 1


def layer_of(model: nn.Module, number: int = LAST) -> nn.Module:
    return decoder_layers(model)[number]


class Planted(Loop):
    """A fault in the model, before it is sharded."""

    def build(self):
        model = super().build()
        self.plant(model)
        return model

    def plant(self, model: nn.Module) -> None:
        raise NotImplementedError


class SummedLoss(Loop):
    """The loss is the sum over tokens, not their mean."""

    def backward(self, model, rows):
        accumulate(model, self.batches(rows), self.loss_of, self.ranks, 1)


class MeanOfMeans(Loop):
    """Each micro-batch is divided by its own tokens."""

    def loss_of(self, model, batch):
        return super().loss_of(model, batch) / (batch["labels"][:, 1:] != -100).sum()

    def backward(self, model, rows):
        batches = self.batches(rows)
        accumulate(model, batches, self.loss_of, self.ranks, len(batches))


class LostDivisor(Loop):
    """Accumulated micro-batches are not divided by their number."""

    def backward(self, model, rows):
        accumulate(model, self.batches(rows), self.loss_of, self.ranks * 2, unmasked_tokens(rows))


class AttentionScale(Planted):
    """One layer's attention does not divide by the root of the head's size."""

    def plant(self, model):
        layer_of(model).self_attn.scaling = 1.0


class StaleMask(Planted):
    """One layer keeps the attention mask of the first micro-batch."""

    def plant(self, model):
        masks = []

        def replace(module, args, kwargs):
            if kwargs["attention_mask"] is not None:
                masks.append(kwargs["attention_mask"])
                kwargs["attention_mask"] = masks[0]
            return args, kwargs

        layer_of(model).self_attn.register_forward_pre_hook(replace, with_kwargs=True)


class StaleAttentionMask(Loop):
    """From step 1 on, the model gets the padding mask of step 0."""

    def batches(self, rows):
        batches = super().batches(rows)
        if self.step == 0:
            self.masks = [batch["attention_mask"] for batch in batches]
        for batch, mask in zip(batches, self.masks, strict=True):
            batch["attention_mask"] = mask
        return batches


class WrongPositions(Loop):
    """From the fifth token on, positions are three too far."""

    def batches(self, rows):
        batches = super().batches(rows)
        for batch in batches:
            positions = torch.arange(batch["input_ids"].shape[1])
            batch["position_ids"] = (positions + 3 * (positions > 4)).expand_as(batch["input_ids"])
        return batches


class Dropout(Planted):
    """Attention dropout in one layer."""

    def plant(self, model):
        layer_of(model).self_attn.attention_dropout = 0.1


class DropoutOnOneRank(Fsdp, Planted):
    """Attention dropout in one layer, on rank 1 alone."""

    def plant(self, model):
        layer_of(model).self_attn.attention_dropout = 0.1 * self.rank


class LayerInBfloat16(Planted):
    """One MLP computes in bfloat16."""

    def plant(self, model):
        mlp = layer_of(model).mlp
        inner = mlp.forward

        def forward(x):
            with torch.autocast("cpu", torch.bfloat16):
                return inner(x).float()

        mlp.forward = forward


class NormEpsilon(Planted):
    """One norm adds 1e-5 in place of 1e-6."""

    def plant(self, model):
        layer_of(model).input_layernorm.variance_epsilon = 1e-5


class NotSynchronised(ByHand, Planted):
    """One weight of rank 1 is not that of rank 0."""

    def plant(self, model):
        if self.rank:
            nn.init.normal_(layer_of(model).mlp.up_proj.weight, std=0.02)


class LocalNorm(Fsdp):
    """Each rank clips by the norm of its own shards."""

    clip = Clipped.clip

    def reduce(self, model):
        parts = [parameter.grad.to_local() for parameter in model.parameters()]
        norm = torch.linalg.vector_norm(torch.stack([part.norm() for part in parts]))
        for part in parts:
            part *= min(1.0, self.clip / norm)


class OtherClip(Loop):
    """Gradients are clipped to another norm."""

    clip = 0.05


class ShiftedLabels(Loop):
    """Labels are shifted once more than they should be."""

    def batches(self, rows):
        batches = super().batches(rows)
        for batch in batches:
            batch["labels"] = batch["labels"].roll(-1, 1)
        return batches


class WrongLabels(Loop):
    """The same tokens are in the loss, with other labels."""

    def batches(self, rows):
        batches = super().batches(rows)
        for batch in batches:
            batch["labels"] = torch.where(batch["labels"] == -100, -100, (batch["labels"] + 1) % 290)
        return batches


class SkippedMicroBatch(Loop):
    """At step 1 the last micro-batch is left out."""

    def batches(self, rows):
        batches = super().batches(rows)
        return batches[:-1] if self.step == 1 else batches


class Frozen(Planted):
    """One matrix does not train."""

    def plant(self, model):
        layer_of(model).self_attn.q_proj.weight.requires_grad_(False)


class Detached(Planted):
    """The gradient of one gate is cut off."""

    def plant(self, model):
        gate = layer_of(model).mlp.gate_proj
        inner = gate.forward
        gate.forward = lambda x: inner(x.detach())


class OtherRate(Loop):
    """The norms have another learning rate."""

    def make_optimizer(self, model):
        made = super().make_optimizer(model)
        made.param_groups[1]["lr"] = 2 * self.lr
        return made


class DecayOnNorms(Loop):
    """Weight decay on norms, too."""

    def make_optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0.01)


class CoupledDecay(Loop):
    """Weight decay is added to the gradient: Adam with L2 in place of AdamW."""

    def make_optimizer(self, model):
        return torch.optim.Adam(decay_groups(model.named_parameters(), weight_decay=0.01), lr=self.lr)


class NoAllReduce(ByHand):
    """The gradient of one matrix is not reduced."""

    def all_reduce(self, name, grad):
        if f"layers.{LAST}.mlp.down_proj" not in name:
            super().all_reduce(name, grad)


class SumForMean(ByHand):
    """Gradients are summed over ranks, not averaged."""

    def all_reduce(self, name, grad):
        dist.all_reduce(grad)


class LoraScale(Lora):
    """Adapters are scaled by half of what they should be."""

    alpha = 8


class LostMoments(Resumed):
    """A resumed run without its optimizer's states."""

    keeps_moments = False


class OtherGradientMask(Child):
    """Child-tuning draws its gradient masks from another seed."""

    seed = 1


class StaleGradientMask(Child):
    """At step 1 child-tuning uses the gradient masks of step 0."""

    def run(self, folder, **how):
        drawn = optimizer.mask_key
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optimizer, "mask_key", lambda seed, step, name: drawn(seed, 1, name))
            super().run(folder, **how)


class KeptGradients(Loop):
    """Gradients are not zeroed after step 0."""

    def zero_grad(self, optimizer):
        pass


class OwnTokens(Ddp):
    """Every rank takes the mean over its own tokens, and DDP the mean of these."""

    def backward(self, model, rows):
        own = sum((batch["labels"][:, 1:] != -100).sum() for batch in self.batches(rows))
        for number, batch in enumerate(batches := self.batches(rows), 1):
            model.require_backward_grad_sync = number == len(batches)
            (self.loss_of(model, batch) / own).backward()


class NoSync(Fsdp):
    """The last micro-batch does not reduce either."""

    def backward(self, model, rows):
        model.set_requires_gradient_sync(False)
        for batch in self.batches(rows):
            (self.loss_of(model, batch) * self.ranks / unmasked_tokens(rows)).backward()


class EarlyOptimizer(Fsdp):
    """The optimizer is built before sharding."""

    def build(self):
        model = super().build()
        self.early = Loop.make_optimizer(self, model)
        return model

    def make_optimizer(self, model):
        return self.early


class PartialSums(Parallel):
    """A row-parallel layer returns each rank's partial sum."""

    def shard(self, model):
        model = super().shard(model)
        down = layer_of(model).mlp.down_proj

        def partial(module, args, output):
            return nn.functional.linear(local_tensor(args[0]), local_tensor(module.weight))

        down.register_forward_hook(partial)
        return model


class OtherData(Fsdp):
    """Both ranks take the first half of the batch."""

    def batches(self, rows):
        return Loop().batches(rows[: len(rows) // self.ranks])
