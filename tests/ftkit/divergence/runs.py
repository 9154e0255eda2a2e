"""A training loop that records itself, in healthy variants and with faults planted in it."""

from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ftkit._compat import enable_activation_checkpointing
from ftkit.batching import Example, micro_batches, packed_micro_batches, unmasked_tokens
from ftkit.child_tuning import ChildTuningAdamW
from ftkit.distributed.fsdp import apply_fsdp, apply_parallelism
from ftkit.distributed.grad_clip import clip_grad_norm_
from ftkit.distributed.mesh import DistributedContext
from ftkit.divergence import record
from ftkit.loss import accumulate, next_token_loss
from ftkit.parameters import decay_groups
from tests.tiny import foreign_model

STEPS = 2
LONGEST = 14  # tokens


def examples(step: int) -> list[Example]:
    """Ragged, the loss on the second half of each; every three in a row have the same longest length."""
    generator = torch.Generator().manual_seed(step)
    lengths = [LONGEST, 5, 9, LONGEST, 6, 7][:: -1 if step % 2 else 1]
    rows = [torch.randint(3, 290, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": row, "labels": [-100] * (len(row) // 2) + row[len(row) // 2 :]} for row in rows]


class Loop:
    """One run. Subclasses and hooks of a fault change a part of it; `context` is None in a single process."""

    lr, layers, micro_batch_size, clip = 1e-3, 2, 3, float("inf")

    def __init__(self, context: DistributedContext | None = None):
        self.context, self.step = context, 0
        self.rank, self.ranks = (context.dp_rank, context.dp_size) if context else (0, 1)

    def build(self) -> nn.Module:
        return foreign_model(torch.float32, layers=self.layers).train()

    def shard(self, model: nn.Module) -> nn.Module:
        return model

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(decay_groups(model.named_parameters(), weight_decay=0.01), lr=self.lr)

    def batches(self, rows: list[Example]) -> list[dict]:
        return micro_batches(rows, self.micro_batch_size, 0, self.rank, self.ranks)

    def loss_of(self, model: nn.Module, batch: dict) -> torch.Tensor:
        return next_token_loss(model, batch, torch.float32, False)

    def backward(self, model: nn.Module, rows: list[Example]) -> None:
        accumulate(model, self.batches(rows), self.loss_of, self.ranks, unmasked_tokens(rows))

    def reduce(self, model: nn.Module) -> None:
        clip_grad_norm_(model.parameters(), self.clip)

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()

    def run(self, folder: Path, rounding: bool = False, first: int = 0, **others) -> None:
        model = self.shard(self.build())
        optimizer = self.make_optimizer(model)
        with record(folder, model, optimizer, steps=STEPS - first, first_step=first, rounding=rounding):
            for self.step in range(first, STEPS):
                self.train_step(model, optimizer)

    def train_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        rows = examples(self.step)
        self.backward(model, rows)
        self.reduce(model)
        optimizer.step()
        self.zero_grad(optimizer)


class Clipped(Loop):
    clip = 0.1  # a tenth of the norm, about


class NearZero(Loop):
    """Adam makes a whole step of one gradient, whose sign is a matter of rounding."""

    near_zero = 1e-10

    def make_optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.1, eps=1e-20)

    def reduce(self, model):
        if self.step == 0:
            model.model.layers[0].mlp.down_proj.weight.grad[3, 5] = self.near_zero


class Lora(Loop):
    lr, alpha = 1e-2, 16

    def build(self) -> nn.Module:
        model = super().build()
        torch.manual_seed(1)
        return get_peft_model(model, LoraConfig(r=4, lora_alpha=self.alpha, target_modules="all-linear"))


class Child(Loop):
    seed = 0

    def make_optimizer(self, model):
        return ChildTuningAdamW(model.named_parameters(), lr=self.lr, reserve_p=0.3, seed=self.seed)


class Bfloat16(Loop):
    def build(self):
        return foreign_model(torch.bfloat16, layers=self.layers).train()


class Fsdp(Loop):
    def shard(self, model):
        return apply_fsdp(model, self.context.mesh)


class Parallel(Loop):
    """Tensor parallelism, with FSDP over one shard."""

    def shard(self, model):
        return apply_parallelism(model, self.context.mesh, self.context.tp_mesh)


class Ddp(Loop):
    def shard(self, model):
        return DistributedDataParallel(model)

    def backward(self, model, rows):
        batches = self.batches(rows)
        for number, batch in enumerate(batches, 1):
            model.require_backward_grad_sync = number == len(batches)
            (self.loss_of(model, batch) * self.ranks / unmasked_tokens(rows)).backward()


class ByHand(Loop):
    """Whole copies whose gradients are averaged by hand."""

    def reduce(self, model):
        for name, parameter in model.named_parameters():
            self.all_reduce(name, parameter.grad)
        super().reduce(model)

    def all_reduce(self, name: str, grad: torch.Tensor) -> None:
        dist.all_reduce(grad)
        grad /= self.ranks


# Healthy: another way to compute the same.


class OtherSign(NearZero):
    near_zero = -NearZero.near_zero


class MicroBatches(Loop):
    micro_batch_size = 1


class Checkpointed(Loop):
    def build(self):
        model = super().build()
        enable_activation_checkpointing(model)
        return model.train()


class Packed(Loop):
    def batches(self, rows):
        return packed_micro_batches(rows, 2, 2 * LONGEST, 0, self.rank, self.ranks)


class Eager(Loop):
    def build(self):
        model = super().build()
        model.set_attn_implementation("eager")
        return model


class OneThread(Loop):
    def run(self, folder, **how):
        threads = torch.get_num_threads()
        torch.set_num_threads(3 if threads == 1 else 1)
        try:
            super().run(folder, **how)
        finally:
            torch.set_num_threads(threads)


class LossScale(Loop):
    """As a gradient scaler does for float16."""

    def backward(self, model, rows):
        accumulate(model, self.batches(rows), self.loss_of, 2**10, unmasked_tokens(rows))
        for parameter in model.parameters():
            parameter.grad /= 2**10


class Resumed(Loop):
    """Recorded from step 1 on; step 0 is done by another model, whose states are loaded."""

    keeps_moments = True

    def run(self, folder, **how):
        self.before = Loop.build(self)
        self.optimizer_before = Loop.make_optimizer(self, self.before)
        self.step = 0
        self.train_step(self.before, self.optimizer_before)
        super().run(folder, first=1)

    def build(self):
        model = super().build()
        model.load_state_dict(self.before.state_dict())
        return model

    def make_optimizer(self, model):
        optimizer = super().make_optimizer(model)
        if self.keeps_moments:
            optimizer.load_state_dict(self.optimizer_before.state_dict())
        return optimizer


class SumOfShares(ByHand):
    """Every rank divides by the tokens of all, and the gradients are summed."""

    def backward(self, model, rows):
        accumulate(model, self.batches(rows), self.loss_of, 1, unmasked_tokens(rows))

    def all_reduce(self, name, grad):
        dist.all_reduce(grad)


class ShardedLora(Lora):
    shard = Fsdp.shard


class ShardedChild(Child):
    shard = Fsdp.shard


class ManyBfloat16(Bfloat16):
    micro_batch_size = 1


class Hsdp(Fsdp):
    """Two replicas, each in one shard."""


class ShardedClipped(Fsdp):
    clip = Clipped.clip


class ShardedBfloat16(Bfloat16):
    def shard(self, model):
        return apply_fsdp(model, self.context.mesh, torch.bfloat16)
