# %% [markdown]
# # 02b · Inside the optimizer
#
# Optional: how `ChildTuningAdamW` is built, from a naive draft to masks that are the same on any number of
# processes, and what low precision and memory ask of it.
#
# - **Prerequisites:** [02_child_tuning](02_child_tuning.ipynb). Two sections run on two processes;
#   [13_ddp_to_fsdp](13_ddp_to_fsdp.ipynb) explains ranks, DDP and FSDP from the start.
# - **Hardware:** any processor; two processes share it in two sections, and no accelerator is used.
# - **Time:** about 40 minutes with the exercises; its cells run in about 30 seconds on two cores.

# %% [markdown]
# Nothing here is needed to use child-tuning. Read on if you write optimizers, or want to know what goes wrong when
# one is sharded, restarted or run in bfloat16.
#
# ## You will be able to
#
# - **write** AdamW from its formula, and turn it into child-tuning,
# - **name** three things that go wrong when a mask is multiplied into `p.grad`,
# - **explain** a counter-based random number generator, and why shards and replicas need one,
# - **test** whether a mask depends on the number of ranks,
# - **estimate** what child-tuning costs in memory and time.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import copy
import hashlib
import json
import os
import re
import tempfile
import zlib
from statistics import median

import numpy
import torch
from ftcourse.exercises.inside_the_optimizer import check_accumulated_gradient, check_mask_test
from ftcourse.expected import expected_error
from ftcourse.explorers.inside_the_optimizer import plot_moved, plot_step_times, shard_explorer
from ftcourse.plots import use_course_style
from ftcourse.runs import torchrun
from safetensors.torch import load_file

from ftkit.child_tuning import ChildTuningAdamW, gradient_mask
from ftkit.models import data_dir

# %% tags=["nbval-ignore-output"]
use_course_style()
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the ranks of this notebook run on the CPU
os.chdir(tempfile.mkdtemp())  # what this notebook writes lies there
print(f"torch {torch.__version__}, device: cpu, {os.cpu_count()} cores")

# %%
RESERVE_P = 0.3  # probability that a gradient entry is kept
LR = 0.01  # learning rate
BETA1, BETA2 = 0.9, 0.999  # decay rates of AdamW's two moving averages
EPS = 1e-8  # keeps AdamW from dividing by zero
WEIGHT_DECAY = 0.1  # large, so that a wrong decay shows within a few steps
STEPS = 20  # optimizer steps of the small model
SEED = 7  # of the gradient masks

# %% [markdown]
# ## 1 · Draft 1: AdamW from its formula
#
# A wrong number is easiest to see in a small model. This one has 161 parameters, and is written to a file because
# two processes will import it later.

# %%
# %%writefile small.py
import torch


def small_model():
    """Eight numbers in, one out; the same weights at every call."""
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def toy_batch():
    """Inputs [64, 8] and targets [64, 1]: the sum of the first three numbers."""
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(8))
    return inputs, inputs[:, :3].sum(dim=1, keepdim=True)


def backward(model, inputs, targets):
    model.zero_grad()
    torch.nn.functional.mse_loss(model(inputs), targets).backward()


# %%
from small import backward, small_model, toy_batch

INPUTS, TARGETS = toy_batch()


def train(model, step, steps=STEPS):
    """Take `steps` optimizer steps on the whole toy batch; return the model."""
    for _ in range(steps):
        backward(model, INPUTS, TARGETS)
        step()
    return model


def gradients_of(model):
    return {name: weight.grad for name, weight in model.named_parameters()}


def distance(one, other):
    """The largest difference between two models' weights."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


# %% [markdown]
# AdamW keeps two moving averages: `m` of the gradient, its **momentum**, and `v` of its square. Both start at
# zero, so the first averages are too small; dividing them by `1 - BETA**step` corrects that. Then
#
# `weight -= LR * (m / (sqrt(v) + EPS) + WEIGHT_DECAY * weight)`


# %%
@torch.no_grad()
def adamw(model, gradients, state):
    """One step of AdamW. gradients: by parameter name; state: a dict, empty at first."""
    state["step"] = step = state.get("step", 0) + 1
    for name, weight in model.named_parameters():
        m, v = state.get(name, (0.0, 0.0))
        m = BETA1 * m + (1 - BETA1) * gradients[name]
        v = BETA2 * v + (1 - BETA2) * gradients[name] ** 2
        state[name] = m, v
        momentum = m / (1 - BETA1**step)
        size = (v / (1 - BETA2**step)).sqrt()
        weight -= LR * (momentum / (size + EPS) + WEIGHT_DECAY * weight)


# %% [markdown]
# Three copies train: with draft 1, with torch's AdamW, and, as a negative control, with an AdamW that forgets the
# weight decay. Torch takes the same sums in another order, so 20 steps of float32 may differ by up to 1e-5.

# %%
TOLERANCE = 1e-5
options = {"lr": LR, "betas": (BETA1, BETA2), "eps": EPS}
draft_1, by_torch, undecayed, state = small_model(), small_model(), small_model(), {}
train(draft_1, lambda: adamw(draft_1, gradients_of(draft_1), state))
train(
    by_torch,
    torch.optim.AdamW(by_torch.parameters(), weight_decay=WEIGHT_DECAY, **options).step,
)
train(undecayed, torch.optim.AdamW(undecayed.parameters(), weight_decay=0, **options).step)
print(f"without weight decay: {distance(undecayed, by_torch):.3f} away from AdamW")
print(f"draft 1:              under {TOLERANCE:g}")
assert distance(draft_1, by_torch) < TOLERANCE and distance(undecayed, by_torch) > 1e-3

# %% [markdown]
# ## 2 · Draft 2: mask the gradient in place
#
# The shortest child-tuning is that of the paper's code: multiply `p.grad` by a mask and by `1 / p`, then take
# AdamW's step.


# %%
@torch.no_grad()
def draft_2(model, state):
    for weight in model.parameters():
        keep = torch.bernoulli(torch.full_like(weight, RESERVE_P))
        weight.grad *= keep / RESERVE_P
    adamw(model, gradients_of(model), state)


def gradient_norm(model):
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()


# %% [markdown]
# It trains. **Predict:** what does a gradient norm show that is logged after the step, and what becomes of an `inf`
# in an entry that the mask drops?

# %%
model = small_model()
backward(model, INPUTS, TARGETS)
before = gradient_norm(model)
torch.manual_seed(SEED)
draft_2(model, {})
print(f"gradient norm before the step {before:.2f}, after it {gradient_norm(model):.2f}")
assert abs(gradient_norm(model) / before - 1) > 0.1

# %%
dropped = int((model[0].weight.grad.flatten() == 0).nonzero()[0])  # by the mask of this seed
model = small_model()
backward(model, INPUTS, TARGETS)
model[0].weight.grad.view(-1)[dropped] = torch.inf
torch.manual_seed(SEED)
draft_2(model, {})
not_finite = model[0].weight.isnan().flatten()
print(f"weights that are NaN: {int(not_finite.sum())}, although its gradient was masked")
assert not_finite.sum() == 1 and not_finite[dropped]

# %% [markdown]
# Two faults: the logged norm is that of the masked gradient, and `0 * inf` is NaN. A third shows after a restart.
# The mask comes from torch's global generator, and a checkpoint of model and optimizer does not hold its state.
# **Predict:** a program seeds the generator, takes five steps, restarts from a checkpoint, and takes five more.
# Are its weights those of ten steps without a restart?


# %%
def trained(draft, restart=False):
    """Ten steps of a draft, with or without a restart of the process after five."""
    model, state = small_model(), {}
    for half in range(2):
        if half == 0 or restart:
            torch.manual_seed(SEED)  # what a program does when it starts
        train(model, lambda: draft(model, state), steps=5)
    return model


moved_by = distance(trained(draft_2), trained(draft_2, restart=True))
print(f"draft 2 after a restart: weights differ by up to {moved_by:.3f}; a step is {LR}")
assert moved_by > LR

# %% [markdown]
# After the restart the masks of steps 1 to 5 are drawn again. None of the three faults raises an error.

# %% [markdown]
# ## 3 · Draft 3: choose on a copy, with a seed for each mask
#
# Two changes fix them. `torch.where` builds a new tensor, so `p.grad` stays as it was and no `inf` leaks. And each
# mask has a generator of its own, seeded by a **key**: seed, optimizer step and parameter name. A checkpoint of
# model and optimizer holds step and names already.


# %%
def seeded_mask(shape, step, name):
    key = zlib.crc32(f"{SEED}/{step}/{name}".encode())  # an integer from a text
    return torch.rand(shape, generator=torch.Generator().manual_seed(key)) < RESERVE_P


def masked_step(model, state, draw_mask):
    """One step of AdamW with masked gradients; draw_mask(shape, step, name) gives the masks."""
    masked, step = {}, state.get("step", 0) + 1
    for name, weight in model.named_parameters():
        keep = draw_mask(weight.shape, step, name)
        masked[name] = torch.where(keep, weight.grad / RESERVE_P, 0.0)
    adamw(model, masked, state)


def draft_3(model, state):
    masked_step(model, state, seeded_mask)


# %%
model = small_model()
backward(model, INPUTS, TARGETS)
row, column = (~seeded_mask((16, 8), 1, "0.weight")).nonzero()[0].tolist()  # masked at step 1
model[0].weight.grad[row, column] = torch.inf
before = copy.deepcopy(gradients_of(model))
draft_3(model, {})
changed = sum(int((before[n] != g).sum()) for n, g in gradients_of(model).items())
not_finite = sum(int((~weight.isfinite()).sum()) for weight in model.parameters())
after_restart = distance(trained(draft_3), trained(draft_3, restart=True))
print(f"entries of p.grad changed: {changed}; weights not finite: {not_finite}")
print(f"after a restart, weights differ by {after_restart}")
assert changed == not_finite == after_restart == 0

# %% [markdown]
# ## 4 · Draft 4: a counter-based RNG
#
# One fault is left. A large model is divided into **shards**, one for each process (a **rank**). Suppose that a rank
# holds rows 8 to 15 of a weight with 16 rows. It seeds its generator by the same key and draws 8 rows. **Predict:**
# which rows of the unsharded mask does it get?

# %%
full = seeded_mask((16, 8), 1, "0.weight")
of_shard = seeded_mask((8, 8), 1, "0.weight")
print(f"entries that differ from rows 8 to 15: {int((of_shard != full[8:]).sum())} of 64")
print(f"entries that differ from rows 0 to 7:  {int((of_shard != full[:8]).sum())} of 64")
assert torch.equal(of_shard, full[:8]) and not torch.equal(of_shard, full[8:])

# %% [markdown]
# A stateful generator always starts with its first number, whichever rows the shard has. A **counter-based** RNG
# (Salmon et al. 2011) has no state: each element's random number is a hash of (seed, step, name, index), where the
# index is that in the *unsharded* tensor. So any rank can compute any part.

# %% [markdown]
# Philox is such a hash: it turns a key and a counter into random bits. Here the key is a digest of seed, step and name,
# and the counter runs over the elements from 0. A shard's counter starts at its own first element instead;
# `gradient_mask` does that for a `region`.


# %%
def hashed_mask(count, reserve_p, seed, step, name):
    """The mask of the first `count` elements; a multiple of 16."""
    digest = hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8).digest()
    key = numpy.array([int.from_bytes(digest, "little"), 0], numpy.uint64)
    words = numpy.random.Philox(key=key).random_raw(count // 4)  # 64 random bits each
    draws = words.astype("<u8").view("<u2")  # four numbers of 16 bits from each
    return torch.from_numpy(draws < round(reserve_p * 65_536))


# %%
key = {"seed": SEED, "step": 1, "name": "0.weight"}
full = gradient_mask((16, 8), RESERVE_P, **key)
by_hand = hashed_mask(16 * 8, RESERVE_P, **key).view(16, 8)
region = (slice(8, 16), slice(0, 8))
of_shard = gradient_mask((16, 8), RESERVE_P, **key, region=region)
print(f"ftkit against the function above: {int((full != by_hand).sum())} of 128 differ")
print(f"the shard against rows 8 to 15:   {int((of_shard != full[8:]).sum())} of 64 differ")
assert torch.equal(full, by_hand) and torch.equal(of_shard, full[8:])
assert not torch.equal(of_shard, full[:8])

# %% [markdown]
# Move the slider: the mask of a 12×12 weight, sharded over one to six ranks. Left, each rank seeds a generator and
# draws its rows (draft 3). Right, each computes the hash of its elements. A filled entry is kept, a hatched one masked,
# and a cross marks an entry that differs from the mask on one rank.

# %%
explorer = shard_explorer()
explorer

# %%
differ = {}
for ranks in (1, 2, 4):
    explorer.slider.value = ranks  # what the slider does, done by a cell
    differ[ranks] = explorer.differing
    print(explorer.caption)
assert differ[1] == (0, 0) and differ[2][0] > 0 and differ[4][0] > 0
assert differ[2][1] == differ[4][1] == 0

# %% [markdown]
# Draft 4 is draft 3 with these masks, and it is the library's optimizer up to the order of sums:


# %%
def draft_4(model, state):
    def mask(shape, step, name):
        return gradient_mask(shape, RESERVE_P, seed=SEED, step=step, name=name)

    masked_step(model, state, mask)


def by_library(seed=SEED):
    model = small_model()
    settings = {"reserve_p": RESERVE_P, "seed": seed, "weight_decay": WEIGHT_DECAY, **options}
    return train(model, ChildTuningAdamW(model.named_parameters(), **settings).step)


# %%
by_draft_4, state = small_model(), {}
train(by_draft_4, lambda: draft_4(by_draft_4, state))
print(f"another seed: {distance(by_draft_4, by_library(seed=8)):.2f} away from the library")
print(f"draft 4:      under {TOLERANCE:g}")
assert distance(by_draft_4, by_library()) < TOLERANCE
assert distance(by_draft_4, by_library(seed=8)) > 1e-3

# %% [markdown]
# ### Exercise 1 · one mask per step
#
# Difficulty ●●○, 6 minutes. With gradient accumulation, one optimizer step takes the sum of several
# **micro-batches'** gradients. Return the masked gradient of that step, rescaled by 1/p; draw from `generator`.
# Expected: about 30 % of the checker's entries are kept, and the gradients that you were given are unchanged.


# %% tags=["exercise"]
def accumulated_gradient(
    micro_gradients: list[torch.Tensor], reserve_p: float, generator: torch.Generator
) -> torch.Tensor:
    """Return the masked and rescaled gradient of one optimizer step."""
    ### BEGIN SOLUTION
    gradient = torch.stack(micro_gradients).sum(dim=0)
    probabilities = torch.full_like(gradient, reserve_p)
    keep = torch.bernoulli(probabilities, generator=generator).bool()
    return torch.where(keep, gradient / reserve_p, 0.0)
    ### END SOLUTION


check_accumulated_gradient(accumulated_gradient)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Sum first, then draw one gradient mask from `generator`. With one for each of four micro-batches, an entry
# is dropped only with probability `0.7 ** 4`.
#
# </details>

# %% [markdown]
# ## 5 · Masked entries move
#
# After $k$ steps, $1 - (1 - p)^k$ of the entries have been kept at least once. This weight starts at zero and has
# no decay, so an entry that is not zero has moved. **Predict:** at step 2, does an entry move that was kept at
# step 1 and is masked now?


# %%
def constant_gradient(weight, weight_decay):
    weight = torch.nn.Parameter(weight)
    weight.grad = torch.ones_like(weight)
    settings = {"lr": LR, "reserve_p": RESERVE_P, "seed": SEED, "weight_decay": weight_decay}
    return weight, ChildTuningAdamW([("weight", weight)], **settings)


# %%
weight, optimizer = constant_gradient(torch.zeros(200, 200), weight_decay=0)
moved, shares = {}, {}  # by step: entries that moved in it; share that has moved so far
for step in range(1, 11):
    before = weight.detach().clone()
    optimizer.step()
    moved[step], shares[step] = weight != before, (weight != 0).float().mean().item()

# %% tags=["hide-input"]
assert abs(shares[2] - 0.51) < 0.01 and abs(shares[10] - 0.97) < 0.01
_ = plot_moved(shares, RESERVE_P)

# %%
key = {"shape": (200, 200), "reserve_p": RESERVE_P, "seed": SEED, "name": "weight"}
kept = [gradient_mask(step=step, **key) for step in (1, 2)]
coasting = moved[2][kept[0] & ~kept[1]].float().mean().item()
waiting = moved[2][~kept[0] & ~kept[1]].float().mean().item()
decaying, optimizer = constant_gradient(torch.ones(200, 200), WEIGHT_DECAY)
optimizer.step()
decayed = (decaying != 1).float().mean().item()
print(f"masked at step 2, kept at step 1:    {coasting:.0%} moved in step 2")
print(f"masked at both steps:                {waiting:.0%} moved in step 2")
print(f"with weight decay, after one step: {decayed:.0%} have moved")
assert coasting == decayed == 1 and waiting == 0

# %% [markdown]
# A mask decides which gradients enter the momentum. Once in, they move the weight for many steps, masked or not, and
# weight decay acts on every entry. So task-free child-tuning (F, a new mask at every step) freezes nothing. In
# task-driven mode (D, one mask for the whole run), `ChildTuningAdamW` neither updates nor decays what is outside the
# mask; the original code decays it.

# %% [markdown]
# ## 6 · Sharded: the same mask on any number of ranks
#
# **FSDP** (Fully Sharded Data Parallel) gives each rank a shard of every tensor and a part of the batch. Shard first,
# then build the optimizer from `model.named_parameters()`, because sharding replaces the parameters.

# %%
# %%writefile sharded.py
from safetensors.torch import save_file
from small import backward, small_model, toy_batch
from torch.distributed.fsdp import fully_shard

from ftkit.child_tuning import ChildTuningAdamW
from ftkit.distributed import launch


def main(context):
    model = small_model()
    fully_shard(model, mesh=context.mesh)  # first
    named = model.named_parameters()  # of the sharded model
    optimizer = ChildTuningAdamW(named, lr=0.01, weight_decay=0.1, reserve_p=0.3, seed=7)
    inputs, targets = (part.chunk(context.world_size)[context.rank] for part in toy_batch())
    for _ in range(20):
        backward(model, inputs, targets)
        optimizer.step()
    rows = [len(weight.to_local()) for weight in model.parameters()]
    print(f"rank {context.rank} holds rows of each tensor: {rows}", flush=True)
    weights = {name: p.detach().full_tensor() for name, p in model.named_parameters()}
    if context.is_main_process:
        save_file(weights, "sharded.safetensors")


launch.run_distributed(main)

# %%
said = torchrun("sharded.py", ranks=2, quiet=True)
print(*sorted(re.findall(r"rank \d holds rows of each tensor: \[.*?\]", said)), sep="\n")
sharded = small_model()
sharded.load_state_dict(load_file("sharded.safetensors"))
print(f"another seed:  {distance(sharded, by_library(seed=8)):.2f} away from one process")
print(f"the two ranks: under {TOLERANCE:g}")
assert distance(sharded, by_library()) < TOLERANCE
assert distance(sharded, by_library(seed=8)) > 1e-3

# %% [markdown]
# Rank 1 holds no row of the last layer, and the masks agree all the same. The tolerance is that of section 1,
# because two half batches are summed in another order.

# %% [markdown]
# ## 7 · Break it, then fix it: replicas with masks of their own
#
# With **DDP** (Distributed Data Parallel) every rank holds a copy of the model, a **replica**, and gradients are
# averaged. Programs often seed each rank differently, so that dropout differs. What if masks come from that
# generator?

# %%
# %%writefile replicas.py
import torch
from safetensors.torch import save_file
from small import backward, small_model, toy_batch

from ftkit.child_tuning import ChildTuningAdamW
from ftkit.distributed import launch


def train(context, reserve_p, own_masks):
    model = torch.nn.parallel.DistributedDataParallel(small_model())
    torch.manual_seed(7 + context.rank)  # so that dropout would differ
    optimizer = ChildTuningAdamW(model.named_parameters(), lr=0.01, reserve_p=reserve_p)
    inputs, targets = (part.chunk(context.world_size)[context.rank] for part in toy_batch())
    for _ in range(20):
        backward(model, inputs, targets)
        for weight in model.parameters() if own_masks else []:
            keep = torch.bernoulli(torch.full_like(weight, 0.3)).bool()
            weight.grad = torch.where(keep, weight.grad / 0.3, 0.0)
        optimizer.step()
    return model.module.state_dict()


def main(context):
    # With reserve_p = 1 the optimizer is AdamW, and the masks are the rank's own.
    save_file(train(context, 1.0, own_masks=True), f"own-{context.rank}.safetensors")
    save_file(train(context, 0.3, own_masks=False), f"hashed-{context.rank}.safetensors")


launch.run_distributed(main)

# %%
said = torchrun("replicas.py", ranks=2, quiet=True)


def between_ranks(masks):
    """The largest difference between the trained weights of the two ranks."""
    first, second = (load_file(f"{masks}-{rank}.safetensors") for rank in range(2))
    return max((first[name] - second[name]).abs().max().item() for name in first)


# %% tags=["raises-exception"]
with expected_error(AssertionError):
    assert between_ranks("own") == 0, "two ranks of one model hold different weights"

# %% [markdown]
# Both ranks trained without an error, and a checkpoint of rank 0 would have hidden the other model. From step 2
# on, the averaged gradient belongs to neither. The fix, in the program's second run: masks that depend on no
# generator's state.

# %%
print(f"masks of a rank's generator: weights differ by up to {between_ranks('own'):.2f}")
print(f"hashed masks:                {between_ranks('hashed')}")
assert between_ranks("hashed") == 0 and between_ranks("own") > LR

# %% [markdown]
# **Replicas** must draw the same mask, **shards** each their own part of it. A hash of (seed, step, name, index)
# gives both.

# %% [markdown]
# ### Exercise 2 · does this mask depend on the number of ranks?
#
# Difficulty ●●○, 8 minutes. Write the experiment. `draw(rank, ranks)` returns the rows of a 12×8 mask that a rank
# draws when the weight is divided into `ranks` blocks of rows, so `draw(0, 1)` is the whole mask. Compare 1, 2, 3
# and 4 ranks, and return how many of the 96 entries differ from the whole mask, at worst. The checker tries it on
# five generators, good and faulty.


# %% tags=["exercise"]
def most_differing(draw) -> int:
    """Return the largest number of entries that differ from draw(0, 1), over 2, 3 and 4 ranks."""
    ### BEGIN SOLUTION
    full = draw(0, 1)
    counts = []
    for ranks in (2, 3, 4):
        joined = torch.cat([draw(rank, ranks) for rank in range(ranks)])
        counts.append(int((joined != full).sum()))
    return max(counts)
    ### END SOLUTION


check_mask_test(most_differing)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `torch.cat([draw(rank, ranks) for rank in range(ranks)])` joins the shards along the rows. Compare it with
# `draw(0, 1)` for each number of ranks; a fault may show at only one of them.
#
# </details>

# %% [markdown]
# ## 8 · Low precision
#
# In bfloat16, which has 8 bits of precision, two things go wrong: moments do not decay, and `reserve_p` is
# rounded. **Predict:** a second moment of 1.0 in bfloat16 is multiplied by 0.999 a thousand times. What is left of
# it?

# %%
second = {dtype: torch.ones((), dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
for _ in range(1_000):
    for value in second.values():
        value.mul_(BETA2)
for dtype, value in second.items():
    print(f"{dtype!s:15} after 1,000 steps: {value.item():.3f}")
print(f"0.3 in bfloat16 is {torch.tensor(0.3, dtype=torch.bfloat16).item():.5f}")
assert second[torch.bfloat16] == 1 and abs(second[torch.float32] - 0.368) < 0.001

# %% [markdown]
# In bfloat16, 0.999 times the moment rounds back to it, so the second moment can grow and never shrinks: after one
# large gradient the updates stay small for good. `ChildTuningAdamW` therefore keeps float32 moments of bfloat16
# weights, and draws masks with integers, so that `reserve_p` is exact to 1/65,536.

# %%
kinds = {}
for fp32_moments in (True, False):
    weight = torch.nn.Parameter(torch.zeros(64, dtype=torch.bfloat16))
    named = [("weight", weight)]
    optimizer = ChildTuningAdamW(named, lr=LR, reserve_p=1.0, fp32_moments=fp32_moments)
    for step in range(1_000):
        weight.grad = torch.full_like(weight, 10.0 if step == 0 else 0.1)
        optimizer.step()
    kinds[fp32_moments] = optimizer.state[weight]["exp_avg_sq"][0].item()
    print(f"fp32_moments={fp32_moments!s:5}: second moment {kinds[fp32_moments]:.3f}")
assert kinds[True] < 0.06 and kinds[False] > 0.09

# %% [markdown]
# The gradient was 10 in the first step and 0.1 in the 999 that follow. The float32 moment has lost nearly two
# thirds of the first one's share, the bfloat16 moment nothing of it.

# %% [markdown]
# ## 9 · Memory and time
#
# F needs no state of its own: masks are computed, used and dropped. D has one mask for the whole run. With dense
# state it stores moments of all entries, and the mask. With compact state, the default, it stores only the kept
# entries' moments and a 4-byte index for each. Here D keeps 10 % of the entries.


# %%
def state_per_parameter(**settings):
    """Bytes of moments, and of masks or indices, per parameter after a step of 1,000,000 parameters."""
    param = torch.nn.Parameter(torch.zeros(1_000, 1_000))
    param.grad = torch.ones_like(param)
    optimizer = ChildTuningAdamW([("w", param)], **settings)
    optimizer.step()
    return [size / param.numel() for size in optimizer.state_bytes().values()]


# %%
child = {"w": gradient_mask((1_000, 1_000), 0.1, seed=SEED, step=1, name="w")}
driven = {"mode": "task-dependent", "gradient_mask": child}
state_sizes = {
    "F": state_per_parameter(),
    "D at 0.1, dense": state_per_parameter(**driven, compact_state=False),
    "D at 0.1, compact": state_per_parameter(**driven),
}
print("bytes of state per parameter   moments   masks or indices")
for name, (moments, masks) in state_sizes.items():
    print(f"{name:28} {moments:9.2f} {masks:18.2f}")
assert state_sizes["F"] == [8, 0] and abs(sum(state_sizes["D at 0.1, compact"]) - 1.2) < 0.01

# %% [markdown]
# AdamW's moments are 8 bytes per parameter, and so are F's. D at 0.1 with compact state takes 1.2.

# %% [markdown]
# Now time. The figure is drawn from a stored record (`make bench`, two CPU cores, ten million parameters): a bar is the
# median of the repetitions, its line runs from the fastest to the slowest, and hatched bars are this library's. "Fused"
# and "foreach" are torch's two fast ways to step AdamW; [docs/costs.md](../docs/costs.md) has the table.

# %% tags=["hide-input"]
record = json.loads((data_dir() / "results" / "bench_cpu.json").read_text())
times = {name: found["seconds"] for name, found in record["results"].items()}
_ = plot_step_times(times)

# %%
middle = {name: median(seconds) for name, seconds in times.items()}
slower = middle["ours, task-free"] / middle["AdamW, fused"]
faster = middle["original arithmetic"] / middle["ours, task-free"]
pocket = {name: median(seconds) for name, seconds in record["pocket"]["steps"].items()}
passes = median(record["pocket"]["passes"])  # forward and backward
share = {name: seconds / (seconds + passes) for name, seconds in pocket.items()}
# One thread drew the measured mask; F uses two.
mask = median(record["mask_seconds"]["mask"]) / record["threads"]
drawing = mask / middle["ours, task-free"]
print(f"F on two CPU cores: {slower:.1f} times fused AdamW's step")
print(f"drawing the masks, shared by two threads: {drawing:.0%} of F's step")
assert 0.15 < drawing < 0.3 and middle["ours, task-free"] < middle["AdamW, foreach"]
print(f"the paper's arithmetic, written with torch operations: {faster:.1f} times F's step")
print(f"share of a training step of pocket-base: F {share['ours, task-free']:.0%},", end=" ")
print(
    f"AdamW {share['AdamW, fused']:.0%}, the paper's arithmetic {share['original arithmetic']:.0%}"
)

# %% [markdown]
# Drawing masks is about a fifth of F's step on a CPU. All in all F takes less time than AdamW with foreach; fused AdamW
# takes its whole step in one kernel, so it is far ahead.

# %% [markdown]
# A batch with more tokens lowers the optimizer's share, because forward and backward pass grow with the batch and the
# optimizer's step does not. On CUDA, a Triton kernel draws the masks in registers; no time of it is recorded here.

# %% [markdown]
# ## What transfers
#
# - Measured here: 161 parameters on one and two ranks; bytes and bits, which hold at any size.
# - The library's tests compare one process with two and four ranks under FSDP, and replicas with each other.
# - Times are of two CPU cores. Measure on your own device with `make bench`.
# - From the literature, not measured here: random operations of DTensor depend on the number of GPUs, too, reports
#   [pytorch#168058](https://github.com/pytorch/pytorch/issues/168058) (2025).

# %% [markdown]
# ## Numbers to take away
#
# - State per parameter: AdamW and F 8 bytes, D at 0.1 with compact state 1.2 bytes.
# - In bfloat16, 0.999 · v = v: keep the moments in float32.
# - At p = 0.3, half of the entries have moved after two steps and 97 % after ten: F freezes nothing.
# - 16 random bits per element: `reserve_p` is exact to 1/65,536.

# %% [markdown]
# ## Recap
#
# - Choose with `torch.where` on a copy; draw one mask per optimizer step.
# - Hash (seed, step, name, index): restarts, replicas and shards agree without any saved state.
# - Shard first, then build the optimizer from `named_parameters()`.
# - Momentum and weight decay move masked entries in task-free mode, not in task-driven mode.

# %% [markdown]
# ## Recall
#
# 1. Name three things that go wrong with `p.grad *= mask / reserve_p`.
# 2. What has a stateful generator that a counter-based one has not, and why does a shard need the latter?
# 3. Which must be equal on two replicas, and on two shards: seed, step, name, index?
# 4. Why can an entry move that is masked in this step?
# 5. Why does a second moment in bfloat16 never shrink?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: the logged norm is the masked gradient's; `inf * 0` is NaN; after a restart other masks are drawn.
# - 2: a state that depends on what was drawn before. A shard has to compute its part of the mask without the rest.
# - 3: replicas share all four; shards share seed, step and name, and differ in index.
# - 4: its momentum is from earlier steps, and weight decay acts on every entry.
# - 5: 0.999 · v lies closer to v than to the next smaller bfloat16 number, so it rounds back to v.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Xu et al., [Raise a Child in Large Language Model](https://arxiv.org/abs/2109.05687), EMNLP 2021, and
#   [its code](https://github.com/alibaba/AliceMind/tree/main/ChildTuning).
# - Salmon et al., [Parallel random numbers: as easy as 1, 2, 3](https://doi.org/10.1145/2063384.2063405), SC
#   2011: Philox.
# - Loshchilov and Hutter, [Decoupled Weight Decay Regularization](https://arxiv.org/abs/1711.05101): AdamW.
#
# ## Next
#
# [03_fisher_masks](03_fisher_masks.ipynb): a mask that is chosen once, by what the task needs.
