# %% [markdown]
# # 03 · Fisher masks and their relatives
#
# Which tenth of a model does a task need? You measure it, compare it with what five other rules would choose, train
# that tenth alone, and read a tournament of fourteen methods.
#
# - **Prerequisites:** [02_child_tuning](02_child_tuning.ipynb).
# - **Hardware:** any processor; one core is enough.
# - **Time:** about 40 minutes with the exercises; its cells run in under one minute on one core.

# %% [markdown]
# ## You will be able to
#
# - **compute** the Fisher information of each weight from the gradients of examples,
# - **build** six kinds of masks and **compare** where they lie,
# - **prove** that training left everything outside a mask unchanged,
# - **estimate** the memory of masked training, scoring included,
# - **judge** a comparison by a paired interval.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import copy
import tempfile
from itertools import islice
from pathlib import Path

import torch
import transformers
from ftcourse.claims import Ledger
from ftcourse.exercises.fisher_masks import check_child, check_experiment, check_peak_bytes
from ftcourse.expected import expected_error
from ftcourse.explorers.fisher_masks import (
    child_explorer,
    overlap,
    plot_overlaps,
    plot_patterns,
)
from ftcourse.explorers.masks import plot_effects, tournament_explorer
from ftcourse.intervals import interval
from ftcourse.masks import UpdateMaskedAdamW, linear_weights, magnitude_masks, random_masks
from ftcourse.plots import use_course_style
from ftcourse.studies.mask_claims import add_mask_claims
from ftcourse.studies.masks import PREDICTIONS, Tournament, loss_by_place, masked_optimizer
from ftcourse.studies.tasks import load_task, training_steps
from torch.distributions import Bernoulli, kl_divergence

from ftkit.child_tuning import (
    ChildTuningAdamW,
    fisher_information,
    load_masks,
    save_masks,
    top_fraction_masks,
)

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
print(f"torch {torch.__version__}, transformers {transformers.__version__}, device: cpu")

# %%
SHARE = 0.1  # fraction of the weights that a fixed mask trains
LR = 5e-3  # learning rate of a tenth of this small model; large models want a much smaller one
WEIGHT_DECAY = 0.01  # each step takes LR * WEIGHT_DECAY of a weight off it
SEED = 0  # of examples, their order and random masks
ledger = Ledger("child-tuning")  # the claims tested here; the recap shows them

# %% [markdown]
# ## 1 · Fisher information: how much a weight matters
#
# Task-driven child-tuning (Child-Tuning_D) trains the weights with the highest Fisher information. A logistic
# regression with three weights shows what that is. It separates yes from no: the first weight reads a wide feature,
# the second a narrow one, the third a feature that is always zero. Each example gives each weight a gradient; the
# weight's **Fisher information** is the mean of their squares.

# %%
torch.manual_seed(SEED)
widths = torch.tensor([3.0, 1.0, 0.0])
features = torch.randn(20_000, 3) * widths  # (N, 3)
weight = torch.tensor([0.5, -0.5, 0.5])
yes = torch.sigmoid(features @ weight)
labels = torch.bernoulli(yes)
gradients = (yes - labels)[:, None] * features  # of -log p(label): a row for each example
information = (gradients**2).mean(dim=0)
print("Fisher information:", [round(f, 2) for f in information.tolist()])
assert information[0] > information[1] > information[2] == 0

# %% [markdown]
# No gradient ever reaches the third weight, so its score is exactly 0.
#
# Why the square? Change a weight by a small $\delta$, and the predictions change by about $\frac{1}{2} F \delta^2$,
# where $F$ is its score, measured as the Kullback-Leibler divergence of the new predictions from the old (in **nats**,
# the unit of the natural logarithm). A high score means: change it, and the model says something else.

# %%
DELTA = 0.05
for i in range(3):
    changed = weight + DELTA * torch.eye(3)[i]
    before, after = Bernoulli(logits=features @ weight), Bernoulli(logits=features @ changed)
    measured = kl_divergence(before, after).double().mean().item()
    predicted = information[i].item() * DELTA**2 / 2
    print(f"weight {i}: predictions change by {measured:.5f} nats, predicted {predicted:.5f}")
    # The mean of 20,000 squares is off by one or two per cent, the formula's next term is as small.
    assert abs(measured - predicted) <= 0.1 * predicted + 1e-9

# %% [markdown]
# Gradients alone predicted what a change does. That holds for labels drawn from the model's own predictions, as here.
# With the labels of a data set the score is called the **empirical** Fisher information, and the formula becomes a
# guide only.

# %% [markdown]
# ## 2 · Scores of a language model
#
# `load_task` returns pocket-base, 96 questions with short answers as tokens, and their loss: the mean over the tokens
# of the answers. How a conversation becomes tokens, and why only answers are in the loss, is the subject of
# [05_chat_templates](05_chat_templates.ipynb).
#
# We score all weights, one example at a time, once with each half of the examples.

# %%
task = load_task("chat-96", SEED, validation=True)
base = task.model


def scores_of(batches):
    return fisher_information(base, batches, per="batch", loss=task.loss)


halves = [scores_of([row] for row in rows) for rows in (task.train[:48], task.train[48:])]
fisher = {name: (score + halves[1][name]) / 2 for name, score in halves[0].items()}
assert fisher.keys() == dict(base.named_parameters()).keys()

# %%
everything = torch.cat([score.flatten() for score in fisher.values()])
total = everything.numel()
ranked = everything.sort(descending=True).values.double().cumsum(0) / everything.double().sum()
for share in (0.01, 0.1, 0.3):
    print(f"the top {share:.0%} of {total:,} weights hold {ranked[round(share * total)]:.0%}")
print(f"{(everything == 0).float().mean():.0%} have a score of exactly 0")
assert ranked[round(SHARE * total)] > 0.85
unread = (fisher["model.embed_tokens.weight"] == 0).all(dim=1)  # a row for each token
assert (everything == 0).sum() == unread.sum() * base.config.hidden_size

# %% [markdown]
# The squared gradient is concentrated, which is why a small mask can be enough. The zeros are embeddings of tokens
# that no example contains.
#
# The original code is faster: it squares the gradient of each **batch**. **Predict first:** with 16 examples in a
# batch, do such scores sum to as much as ours (1), to a quarter (0.25), or to hardly more than 1/16 (0.07)?

# %%
my_guess = 1

# %%
batches = [task.train[first : first + 16] for first in range(0, 96, 16)]
by_batch = scores_of(batches)
ratio = (torch.cat([s.flatten() for s in by_batch.values()]).sum() / everything.sum()).item()
print(f"you guessed {my_guess:.2f}; measured {ratio:.2f}")
assert 1 / 16 < ratio < 2 / 16

# %% [markdown]
# In a batch, gradients are averaged **before** they are squared, so what the examples disagree on cancels. Pure noise
# would leave 1/16.
#
# For the mask it matters less. `top_fraction_masks` keeps the largest scores of all tensors together; `overlap` is
# the fraction of one mask that another one shares.

# %%
child = top_fraction_masks(fisher, SHARE)  # the weights of the child network
by_halves = overlap(*(top_fraction_masks(half, SHARE) for half in halves))
shared = overlap(child, top_fraction_masks(by_batch, SHARE))
print(f"masks of two halves of the examples share {by_halves:.0%}")
print(
    f"the batches' mask and ours share {shared:.0%}; two random masks would share {SHARE:.0%}"
)
assert sum(int(mask.sum()) for mask in child.values()) == round(SHARE * total)  # exactly
assert 0.5 < by_halves < 0.9 and abs(shared - by_halves) < 0.1

# %% [markdown]
# The batches' mask differs from ours about as much as a mask from other examples of the same kind would.

# %% [markdown]
# ## 3 · Six ways to mask
#
# Two masks are drawn anew in every step; they differ in **where** they act:
#
# - a **gradient mask** (Child-Tuning_F): AdamW's moments see the masked gradient,
# - an **update mask** (SkipUpdate and Magma, 2026): the moments see the whole gradient, and a random part of the
#   resulting update is skipped.
#
# One step of each, keeping half of the entries and without weight decay:

# %%
weights = linear_weights(base)  # what LoRA adapts by default: seven matrices a layer


def one_step(make):
    """Fractions of the linear layers' moments that are not zero, and of the weights that changed."""
    model = copy.deepcopy(base)
    optimizer = make(model.named_parameters(), lr=1e-3, weight_decay=0.0)
    task.loss(model, batches[0]).backward()
    optimizer.step()
    trained = {name: p for name, p in model.named_parameters() if name in weights}
    filled = sum(int((optimizer.state[p]["exp_avg"] != 0).sum()) for p in trained.values())
    moved = sum(int((p != weights[name]).sum()) for name, p in trained.items())
    return filled / linear_total, moved / linear_total


linear_total = sum(w.numel() for w in weights.values())

# %%
gradient_masked = one_step(
    lambda *p, **options: ChildTuningAdamW(*p, reserve_p=0.5, **options)
)
update_masked = one_step(lambda *p, **options: UpdateMaskedAdamW(*p, keep_p=0.5, **options))
for name, (filled, moved) in {"gradient": gradient_masked, "update": update_masked}.items():
    print(f"masked {name:8}: moments filled {filled:.0%}, weights changed {moved:.0%}")
assert abs(gradient_masked[0] - 0.5) < 0.01 and update_masked[0] > 0.99
assert all(abs(moved - 0.5) < 0.02 for _, moved in (gradient_masked, update_masked))

# %% [markdown]
# Both rescale what they keep by 1/p. In AdamW that nearly cancels for a masked gradient, as notebook 02 shows, but
# not for a masked update: its mean is AdamW's. Magma masks whole tensors and multiplies a kept update by how well
# gradient and momentum agree.
#
# The other four masks are **fixed** for the whole training. First, a random one:

# %%
masks = {"random": random_masks(weights, SHARE, SEED)}
print(f"{sum(int(m.sum()) for m in masks['random'].values()):,} of {linear_total:,} weights")

# %% [markdown]
# The **Fisher mask** of the same matrices: one threshold for all, so a matrix gets as much of the mask as it matters.

# %%
masks["Fisher"] = top_fraction_masks({name: fisher[name] for name in weights}, SHARE)
shares = [mask.float().mean().item() for mask in masks["Fisher"].values()]
print(f"from {min(shares):.0%} to {max(shares):.0%} of a matrix")
assert sum(int(mask.sum()) for mask in masks["Fisher"].values()) == round(SHARE * linear_total)

# %% [markdown]
# **Magnitude**: the largest |w| of each matrix (Super-Tuning). It needs no data and no gradient.

# %%
masks["magnitude"] = magnitude_masks(weights, SHARE)
name = "model.layers.0.self_attn.q_proj.weight"
smallest_kept = weights[name].abs()[masks["magnitude"][name]].min()
assert smallest_kept >= weights[name].abs()[~masks["magnitude"][name]].max()

# %% [markdown]
# **Magnitude after rank reduction** (LIFT): the largest entries of each matrix's best approximation of rank 8.

# %%
RANK = 8  # of 128
u, s, v = torch.linalg.svd(weights[name].detach())
reduced = (u[:, :RANK] * s[:RANK]) @ v[:RANK]
masks["low-rank"] = magnitude_masks(weights, SHARE, rank=RANK)
smallest_kept = reduced.abs()[masks["low-rank"][name]].min()
assert smallest_kept >= reduced.abs()[~masks["low-rank"][name]].max() - 1e-6
print(
    f"rank {RANK} explains {(s[:RANK] ** 2).sum() / (s**2).sum():.0%} of this matrix's variance"
)

# %% [markdown]
# ## 4 · Where they lie
#
# One matrix, the query projection of the lowest layer, a dark point for each entry that is trained:

# %% tags=["nbval-ignore-output"]
_ = plot_patterns({label: mask[name] for label, mask in masks.items()})

# %% [markdown]
# The Fisher mask fills some rows and leaves out half of them. A row belongs to one head, so whole heads have little
# gradient in this task. The largest weights lie in some rows and columns more than in others, and after rank
# reduction even more so: a product of two vectors is large where both are.
#
# **Predict first:** of the largest weights, how many does the Fisher mask share: about 70 %, 40 %, or the 10 % of
# chance?

# %%
my_guess = 0.4

# %% tags=["nbval-ignore-output"]
_ = plot_overlaps(masks)

# %%
with_fisher = {label: overlap(mask, masks["Fisher"]) for label, mask in masks.items()}
gradient_total = sum(float(fisher[n].sum()) for n in weights)
for label, mask in masks.items():
    held = sum(float(fisher[n][mask[n]].sum()) for n in weights) / gradient_total
    print(
        f"{label:10} shares {with_fisher[label]:4.0%} with Fisher; {held:.0%} of the squared gradient"
    )
empty_rows = {label: (~mask[name].any(dim=1)).float().mean() for label, mask in masks.items()}
assert all(0.08 < with_fisher[label] < 0.14 for label in ("random", "magnitude", "low-rank"))
assert 0.4 < empty_rows["Fisher"] < 0.6 and empty_rows["magnitude"] < empty_rows["low-rank"]

# %% [markdown]
# Where a weight is large says next to nothing about where the gradient is: the largest weights share little more
# with the Fisher mask than a random mask does. Whether that matters, only training tells; section 7 has it.

# %% [markdown]
# Back to the Fisher mask of **all** weights. Each bar is a part of the model, with its number of weights in brackets;
# the dashed line is what a random mask would take. Move the slider (or press the arrow keys) and watch where a
# smaller mask gathers.

# %%
explorer = child_explorer(fisher, SHARE)
explorer

# %%
explorer.slider.value = 0.01  # what the slider does, done by a cell
kept = {part: count.kept for part, count in explorer.parts.items()}
first = sum(count for part, count in kept.items() if part.startswith("layers.0"))
print(f"of the top 1 %, {first / sum(kept.values()):.0%} lie in the lowest of four layers")
assert sum(kept.values()) == round(0.01 * total)
explorer.slider.value = SHARE

# %% [markdown]
# That the lowest layer has most of it is a fact about this model of four layers, not a rule: look at your own.
#
# Scores of 0 cannot be ranked. A percentile that keeps what is "at least as large" would then keep
# everything; `top_fraction_masks` keeps positive scores only, and refuses scores that are all zero:

# %%
try:
    top_fraction_masks({"w": torch.zeros(1000)}, SHARE)
except ValueError as refusal:
    print(refusal)
else:
    raise AssertionError("scores without any information were accepted")

# %% [markdown]
# ### Exercise 1 · One threshold
#
# Difficulty ●●○, 6 minutes. Return a mask for each tensor: True for the largest scores of all tensors **together**, a
# fraction `reserve_p` of all weights, rounded. A score of 0 is never kept. Raise a ValueError if all scores are zero.
# Expected: 20 of the checker's 200 weights.


# %% tags=["exercise"]
def child_of(scores: dict[str, torch.Tensor], reserve_p: float) -> dict[str, torch.Tensor]:
    """Masks of the largest scores, by the names of the scores."""
    ### BEGIN SOLUTION
    together = torch.cat([score.flatten() for score in scores.values()])
    if not together.any():
        raise ValueError("all scores are zero: does the loss depend on these weights?")
    threshold = together.topk(round(reserve_p * together.numel())).values[-1]
    return {name: (score >= threshold) & (score > 0) for name, score in scores.items()}
    ### END SOLUTION


check_child(child_of)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `torch.cat` the flattened scores. With `k`, the number of weights to keep, the last value of `topk(k)` is the
# threshold, and the score at the threshold is kept, unless it is 0. `any()` tells whether a score is not zero.
#
# </details>

# %% [markdown]
# ## 5 · Train the mask, and nothing else
#
# `ChildTuningAdamW` takes fixed masks as `gradient_mask`. They need not come from Fisher information.


# %%
def task_driven(model, **options):
    """The optimizer that trains the child network of a model."""
    options |= {"lr": LR, "weight_decay": WEIGHT_DECAY}
    options |= {"mode": "task-dependent", "gradient_mask": child}
    return ChildTuningAdamW(model.named_parameters(), **options)


tuned = load_task("chat-96", SEED, validation=True)
optimizer = task_driven(tuned.model)
losses = list(islice(training_steps(tuned, optimizer, SEED), 30))
assert losses[-1] < losses[0] / 4

# %%
pretrained = dict(base.named_parameters())


def moved_outside(model) -> int:
    """How many weights outside the mask differ from the pretrained ones: torch.ne has no tolerance."""
    pairs = ((p[~child[n]], pretrained[n][~child[n]]) for n, p in model.named_parameters())
    return sum(int(now.ne(before).sum()) for now, before in pairs)


inside = sum(
    int(p.ne(pretrained[n])[child[n]].sum()) for n, p in tuned.model.named_parameters()
)
print(
    f"after 30 steps with weight decay, moved outside the mask: {moved_outside(tuned.model)}"
)
print(f"inside: {inside / round(SHARE * total):.0%}")
assert moved_outside(tuned.model) == 0 and inside > 0.98 * SHARE * total

# %% [markdown]
# Nine weights in ten are bitwise the pretrained ones. A gradient mask that is drawn anew in each step is sparse
# within a step only: over thirty steps it moves nearly every weight.
#
# ### Break it, then fix it
#
# Both implementations under Sources mask the **gradient** and then decay every **weight**, in the mask or not. One
# such step:


# %% tags=["raises-exception"]
def step_of_masked_gradients(weight_decay):
    model = copy.deepcopy(base)
    adamw = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=weight_decay)
    task.loss(model, batches[0]).backward()
    for name, p in model.named_parameters():
        p.grad = torch.where(child[name], p.grad, 0.0)
    adamw.step()
    return model


decayed = moved_outside(step_of_masked_gradients(WEIGHT_DECAY))
with expected_error(AssertionError):
    assert decayed == 0, (
        "weights outside the mask have moved, although their gradients were masked"
    )

# %% [markdown]
# A zero gradient stops Adam's part of the step, but not the decay, which takes `lr · weight_decay` of every weight
# off it. The fix: mask the decay as well, as `ChildTuningAdamW` does.

# %%
still = copy.deepcopy(base)
fixed = task_driven(still)
task.loss(still, batches[0]).backward()
fixed.step()
undecayed = moved_outside(step_of_masked_gradients(0.0))
for what, count in {
    "all weights": decayed,
    "the mask": moved_outside(still),
    "none": undecayed,
}.items():
    print(f"decay on {what:12} moves {count:7,} weights outside the mask")
assert moved_outside(still) == undecayed == 0 < decayed

# %% tags=["hide-input"]
_ = ledger.add(
    "what lies outside the child network is frozen",
    "Xu et al. 2021, on Child-Tuning_D",
    moved_outside(tuned.model) == moved_outside(still) == undecayed == 0,
    f"0 of {total - round(SHARE * total):,} weights moved in 30 steps; with decay on all, {decayed:,} in one",
    only_if="weight decay is masked, too, or is 0",
)

# %% [markdown]
# A resumed run needs the same mask. The optimizer's `state_dict` holds it, and a file can:

# %%
with tempfile.TemporaryDirectory() as folder:
    save_masks(child, Path(folder) / "child.safetensors")
    loaded = load_masks(Path(folder) / "child.safetensors")
assert all(torch.equal(mask, loaded[name]) for name, mask in child.items())
saved = [state["gradient_mask"] for state in optimizer.state_dict()["state"].values()]
assert all(map(torch.equal, saved, child.values()))

# %% [markdown]
# Chosen anew after a resume, from weights that have moved, the mask would be another one: an epoch of training
# changes the scores.

# %% [markdown]
# ## 6 · What it costs
#
# AdamW keeps two float32 moments for each weight: 8 bytes. Outside the mask they would stay zero, so they need not
# exist. Each weight inside needs 4 bytes more for its index: `compact = (8 + 4) · reserve_p · weights`.

# %%
sizes = {}
for compact in (False, True):
    sizes[compact] = task_driven(base, compact_state=compact).state_bytes()
size = round(SHARE * total)
print(f"AdamW's moments   {8 * total:9,} bytes estimated, dense:   {sizes[False]}")
print(f"those of the mask {8 * size:9,} bytes estimated, compact: {sizes[True]}")
assert sizes[False] == {"moments": 8 * total, "masks": total}
assert sizes[True] == {"moments": 8 * size, "masks": 4 * size}

# %% [markdown]
# Estimate and measurement agree to the byte. But that is training alone. A Fisher mask has to be **scored** first,
# and scoring holds a gradient and a float32 score for every weight, mask or not:

# %%
scores = sum(score.nbytes for score in fisher.values())
grads = sum(p.nbytes for p in base.parameters())  # as large as the weights, in float32
print(f"scores {scores:,} bytes, gradients {grads:,}, weights {grads:,}")
assert scores == grads == 4 * total

# %% [markdown]
# ### Exercise 2 · The peak
#
# Difficulty ●●○, 5 minutes. Return the most bytes that weights, gradients, scores and optimizer states take together
# at any time: first all weights are scored, then the scores are freed and the mask is trained with compact states.
# Everything is float32. Expected: for a million weights, 12,000,000 at 0.1 and 15,200,000 at 0.6.


# %% tags=["exercise"]
def peak_bytes(weights: int, reserve_p: float) -> float:
    """Peak bytes of scoring and then training a mask; activations are not counted."""
    ### BEGIN SOLUTION
    scoring = (4 + 4 + 4) * weights  # weights, gradients, scores
    training = (4 + 4) * weights + 12 * reserve_p * weights
    return max(scoring, training)
    ### END SOLUTION


check_peak_bytes(peak_bytes)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Weights and gradients are there all the time. The scores and the optimizer's states are not there together.
#
# </details>

# %% [markdown]
# With Fisher scores the peak is 12 bytes a weight as long as `reserve_p` is below a third: a quarter less than
# AdamW's 16. Random and magnitude masks need no scores: `8 + 12 · reserve_p`. A dense gradient remains in all of
# these; LoRA has gradients for its adapters only, which is why it needs least.

# %% [markdown]
# ## 7 · The tournament
#
# Which method should you use? `python -m ftcourse.studies.masks` trained pocket-base by each for equally many steps
# on **chat-96**, this notebook's task. Each method has its own learning rate, bracketed by factors of at most 2.5 on
# a validation split, and is scored on test questions with other seeds. One percentage point counts as the smallest
# difference that matters.

# %% [markdown]
# The number in a method's name is the fraction that it keeps: `F 0.3` masks gradients at p = 0.3, `D 0.1` trains the
# Fisher tenth of all weights and `D 0.1, linear` that of the linear layers.

# %%
study = Tournament()
for name in study.tasks:
    print(f"{name}: {len(study.methods(name))} methods, {study.seeds(name)} seeds")
    rates = {
        method: study.rate(name, method)
        for method in ("AdamW", "F 0.3", "D 0.1", "LoRA", "random 0.1")
    }
    print(
        "   learning rates:", ", ".join(f"{method} {rate:g}" for method, rate in rates.items())
    )

# %% [markdown]
# **Predict first:** which methods end clearly ahead of AdamW on all weights, and which behind it? What we expected
# was written down before the first run; the figure shows it at the right.

# %%
for name in study.tasks:
    plot_effects(study, name, predicted=True)

# %% [markdown]
# Each line is the 95 % interval of the difference from AdamW, paired by seed. How good were the expectations? One
# counts as right if the sign is right: a difference of at least one percentage point with an interval clear of zero,
# or neither.

# %%
for name in study.tasks:
    found = {m: study.sign(name, m) for m in study.methods(name)[1:]}
    right = [method for method, sign in found.items() if sign == PREDICTIONS[method].sign]
    print(f"{name}: {len(right)} of {len(found)} expectations right")
    for method in [method for method in found if method not in right]:
        print(f"   {method}: {study.effect(name, method).points}; expected:")
        print(f"      {PREDICTIONS[method].why}")

# %%
for name in study.tasks:
    effects = {method: study.effect(name, method) for method in study.methods(name)[1:]}
    ahead = [method for method, effect in effects.items() if effect.low > 0]
    behind = [method for method, effect in effects.items() if effect.high < 0]
    widths = sorted(100 * (effect.high - effect.low) / 2 for effect in effects.values())
    print(
        f"{name}: ahead of AdamW: {', '.join(ahead) or 'none'}; behind: {', '.join(behind) or 'none'}"
    )
    print(f"   half an interval: {widths[0]:.0f} to {widths[-1]:.0f} percentage points")

# %%
effects = {method: study.effect("chat-96", method) for method in study.methods("chat-96")[1:]}
assert [method for method, e in effects.items() if e.low > 0] == ["D 0.3"]
assert [method for method, e in effects.items() if e.high < 0] == [
    "F 0.2",
    "Magma 0.5",
    "random 0.1",
]
tried = {rate: sum(scores) / 2 for rate, scores in study.tuning("chat-96", "F 0.2").items()}
print(
    "F 0.2, exact match on validation questions:",
    {rate: f"{s:.0%}" for rate, s in tried.items()},
)
assert 0 < tried[5e-3] - tried[2e-3] < 0.03

# %% [markdown]
# Three tenths of the weights, chosen by Fisher information, come out ahead, by about three percentage points. A
# random tenth is behind, by about as much, and so is Magma. The other methods, except F at p = 0.2, cannot be told
# from AdamW. With 13 intervals of 95 %, expect about one in twenty to miss zero by chance: a lead whose interval
# begins at one point needs a second task before you rely on it.

# %% [markdown]
#
# F at p = 0.2 is a warning. On validation questions the higher of two learning rates won by two points, and on the
# test it lost nine: two tuning seeds are few.

# %% [markdown]
# The loss orders the methods differently. Those that train linear layers only end with a much higher loss, at nearly
# the same exact match:

# %%
_ = plot_effects(study, "chat-96", measure="test_loss")

# %% [markdown]
# Why? Compare the loss of the answers' last token, which ends the turn, with that of the others, after 30 steps
# with each method's own learning rate:


# %%
def after_30_steps(masks, lr):
    """Loss of the last token and of the others, in nats per token; all weights train without masks."""
    one = load_task("chat-96", SEED, validation=True)
    masks = masks or {
        n: torch.ones_like(p, dtype=torch.bool) for n, p in one.model.named_parameters()
    }
    list(islice(training_steps(one, masked_optimizer(one.model, masks, lr), SEED), 30))
    return loss_by_place(one)


places = {
    "all weights": after_30_steps(None, 1e-3),
    "random tenth": after_30_steps(masks["random"], 1e-2),
}

# %% tags=["nbval-ignore-output"]
for name, (last, rest) in places.items():
    print(f"{name:12}: last token {last:.1f} nats, the others {rest:.1f}")

# %%
assert places["random tenth"][0] > 3 and places["all weights"][0] < 1
assert abs(places["random tenth"][1] - places["all weights"][1]) < 0.8

# %% [markdown]
# The end-of-turn token is new: its row of the LM head was never trained, and these methods do not reach that row. The
# token still becomes the likeliest one, but stays far from certain. In an instruct model it is trained already; if
# you add tokens, train their rows, too (PEFT: `trainable_token_indices`).
#
# ### What training costs in old knowledge
#
# The retention probe: after each run, facts of the pretraining text were asked in the format of that text, where the
# base model knows all:

# %%
_ = plot_effects(study, "chat-96", measure="kept")

# %%
for method in ("AdamW", "F 0.3", "random 0.1", "D 0.1", "LoRA"):
    known = study.ends("chat-96", method, "kept")
    rate = study.rate("chat-96", method)
    print(
        f"{method:11} learning rate {rate:6g}: {sum(known) / len(known):.0%} of the facts kept"
    )
assert study.effect("chat-96", "D 0.1", "kept").high < -0.1
tenths = ("random 0.1", "D 0.1, linear", "magnitude 0.1", "LIFT 0.1")
assert min(effects[method].mean for method in tenths) > -0.04

# %% [markdown]
# A sparse mask does not protect what the model knew. The Fisher tenth leaves nine weights in ten untouched and
# forgets **more** than AdamW on all weights. The learning rate alone does not explain it: a random tenth has twice
# that of the Fisher tenth and keeps nearly as much as AdamW. Which weights change matters, too.

# %% [markdown]
# Choose a method, and follow it by epoch; thin lines are single seeds.

# %%
curves = tournament_explorer(study)
curves

# %%
curves.method.value = "random 0.1"  # what the menu does, done by a cell
print(curves.caption)
assert "fixed random tenth" in curves.caption

# %% tags=["hide-input"]
add_mask_claims(ledger, study)

# %% [markdown]
# Now one comparison by yourself. A short training of a mask, judged on validation questions:


# %%
def held_out_loss(masks, seed: int) -> float:
    """Loss on validation questions, in nats per token, after 18 steps that train the masks alone."""
    one = load_task("chat-96", seed, validation=True)
    optimizer = masked_optimizer(one.model, masks, lr=1e-2)  # near the best rate of both
    for _ in islice(training_steps(one, optimizer, seed), 18):
        pass
    one.model.eval()
    with torch.no_grad():
        return one.evaluate(one.model, "validation")["validation_loss"]


# %% [markdown]
# ### Exercise 3 · Run an experiment, and judge it
#
# Difficulty ●●●, 12 minutes. LIFT's paper calls the largest weights a poor choice, Super-Tuning's a good one. Are
# they better than a **random** tenth of the same matrices? Run both on four seeds or more with `held_out_loss`, and
# return the losses by mask with the verdict on magnitude that the paired interval allows: "better", "worse" or
# "undecided". Expected: half a minute of training.


# %% tags=["exercise"]
def experiment() -> tuple[dict[str, list[float]], str]:
    """Losses by mask, seeds in the same order, and the verdict on "magnitude"."""
    ### BEGIN SOLUTION
    losses = {"magnitude": [], "random": []}
    for seed in range(4):
        losses["magnitude"].append(held_out_loss(magnitude_masks(weights, SHARE), seed))
        losses["random"].append(held_out_loss(random_masks(weights, SHARE, seed), seed))
    pairs = zip(losses["magnitude"], losses["random"], strict=True)
    found = interval([random - magnitude for magnitude, random in pairs])  # above 0: less loss
    verdict = "better" if found.low > 0 else "worse" if found.high < 0 else "undecided"
    return losses, verdict
    ### END SOLUTION


check_experiment(experiment, ("magnitude", "random"))

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `interval` of `ftcourse.intervals` takes the list of differences, one per seed: subtract magnitude's loss from
# random's. The verdict is "better" if the whole interval is above 0.
#
# </details>

# %% [markdown]
# ## 8 · The family
#
# | method | what trains | source |
# | --- | --- | --- |
# | FISH Mask | a fixed mask of the highest Fisher information | [2111.09839](https://arxiv.org/abs/2111.09839) |
# | SHiRA | a fixed sparse mask of 1 to 2 % as an adapter; in PEFT | [2406.13175](https://arxiv.org/abs/2406.13175) |
# | Super-Tuning | the largest weights of each linear layer; in PEFT | [2607.09287](https://arxiv.org/abs/2607.09287) |
# | LIFT | the largest weights after rank reduction, at times anew | [2506.00772](https://arxiv.org/abs/2506.00772) |
# | Random Masking | a fixed random mask at a large learning rate | [2405.02596](https://arxiv.org/abs/2405.02596) |
# | SpIEL | an index that drops and grows entries during training | [2401.16405](https://arxiv.org/abs/2401.16405) |
# | RoSA | LoRA and a sparse mask together | [2401.04679](https://arxiv.org/abs/2401.04679) |
# | S2FT | a few heads and channels, permuted into dense blocks | [2412.06289](https://arxiv.org/abs/2412.06289) |
# | LISA | a few layers drawn at random, others frozen for a while | [2403.17919](https://arxiv.org/abs/2403.17919) |
# | BAdam | one block of layers after the other, with Adam | [2404.02827](https://arxiv.org/abs/2404.02827) |
# | GaLore | all weights; the moments live in a low-rank projection | [2403.03507](https://arxiv.org/abs/2403.03507) |
# | Magma | all weights; a random part of the updates is skipped | [2602.15322](https://arxiv.org/abs/2602.15322) |
#
# Without any mask, reinforcement learning changes only 5 to 30 % of the weights and supervised fine-tuning most of
# them ([Mukherjee et al. 2025](https://arxiv.org/abs/2505.11711)).

# %% [markdown]
# ### What to use
#
# - **Memory is enough for AdamW:** use AdamW. Masks of gradients and updates save nothing, and brought nothing here.
#   A Fisher mask of 30 % was worth three points: try it against AdamW on your task, each at its own learning rate.
# - **It is not:** use LoRA. It needs no scores and no dense gradients, and every tool can serve it.
# - **You need sparse changes** (bitwise frozen weights, small deltas of full rank): start with a random or magnitude
#   mask. Take a Fisher mask where you can pay for its scores and have checked what it forgets.
# - **You compare masks:** put a random mask among them, and give each its own learning rate.

# %% [markdown]
# ## What transfers
#
# **Measured here:** pocket-base, 1.0 million parameters, 96 examples, 60 steps, one task. Embeddings and LM head are
# a quarter of it, and the rows of its chat tokens are untrained: masks and LoRA of the linear layers cannot reach
# them. An instruct model has trained them already.

# %% [markdown]
# **From the literature, not measured here:** the largest weights match or exceed LoRA on Llama 3 of 1B and 8B
# (Super-Tuning); 5 % of the weights after rank reduction exceed full fine-tuning on reasoning tasks (LIFT); a random
# mask matches LoRA with fewer trained weights (Random Masking).

# %% [markdown]
# ## Numbers to take away
#
# - A tenth of the weights holds over 85 % of the squared gradient; the largest tenth by |w| holds little more than a
#   random one.
# - A batch of 16 leaves about a twelfth of the score.
# - Best learning rates: 10 times AdamW's for a random tenth of the linear layers, 5 times for LoRA and the Fisher
#   tenth.
# - Memory per weight in float32, without activations: AdamW 16 bytes, a mask `8 + 12 · reserve_p`, scoring 12.
# - From the literature: full fine-tuning at 1e-5 to 2e-5, LoRA at about ten times that on all linear layers; sweep by
#   factors of 3 until the best rate has worse ones on both sides.

# %% [markdown]
# ## Recap
#
# - Fisher information is the mean squared gradient over examples: square before you average.
# - One threshold for the whole model keeps an exact count; where it falls is a finding, not a setting.
# - Masks differ in what they choose, and in where they act: on gradients or on updates.
# - Frozen means bitwise equal, so the decay has to be masked, too.
# - Scoring needs a gradient and a score for every weight, once.
# - A tenth of the linear layers, even a random one, came within four points of all weights at its own learning rate.
#   A sparse mask alone does not protect old knowledge.

# %% [markdown]
# A claim counts as supported if its whole interval is above zero. It counts as refuted if the interval ends below the
# smallest gain that matters, one percentage point, even where it contains zero. Otherwise it is inconclusive.
# "Matches" allows a shortfall of one point.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. What is the Fisher information of a weight, and what does a score of 0 mean?
# 2. Why is the squared gradient of a batch smaller than the mean of the squared gradients?
# 3. What do AdamW's moments see under a gradient mask, and what under an update mask?
# 4. What moves a weight whose gradient is always masked to zero?
# 5. Why does a Fisher mask of 10 % not save 42 % of the memory, as its states suggest?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: the mean over examples of its squared gradient; at 0, no example's loss depends on it (to first order).
# - 2: averaging comes first, and gradients that disagree cancel.
# - 3: the masked gradient; the whole gradient, of whose update a part is then skipped.
# - 4: weight decay.
# - 5: 8 + 12 · 0.1 bytes are held in training, but scoring held 12 before: 12 of 16 save a quarter.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Xu et al., [Raise a Child in Large Language Model](https://arxiv.org/abs/2109.05687), EMNLP 2021, and
#   [its code](https://github.com/alibaba/AliceMind/tree/main/ChildTuning), which scores with dropout on and clips
#   each gradient first.
# - Less Wright, [transformer_central](https://github.com/lessw2020/transformer_central/tree/main/fine_tuning), 2022:
#   the optimizer for PyTorch, a notebook and [a video](https://www.loom.com/share/0f6b1d964f4246ee9b467c51cc5ad166).
# - The table in section 8; PEFT's pages on
#   [SHiRA](https://huggingface.co/docs/peft/package_reference/shira) and
#   [Super-Tuning](https://huggingface.co/docs/peft/package_reference/supertuning).
#
# ## Next
#
# [04_freezing](04_freezing.ipynb): whole tensors that train or do not, chosen by name.
