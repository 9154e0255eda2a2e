# %% [markdown]
# # 03 · Fisher masks: a child that the task chooses
#
# Which tenth of a model does a task need most? You measure it, look where it lies, and train it alone, with a
# tenth of AdamW's moments, while the rest stays the same to the bit.
#
# - **Prerequisites:** [02_child_tuning](02_child_tuning.ipynb).
# - **Hardware:** any processor; two cores are enough.
# - **Time:** about 35 minutes with the exercises; its cells run in under one minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **compute** the Fisher information of each weight from the gradients of examples,
# - **choose** a child by one threshold over the whole model, and **map** where it lies,
# - **compare** children: by example or by batch, before or after an epoch,
# - **prove** that a training left everything outside the child alone,
# - **predict** the bytes of the optimizer's state.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import copy
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from ftcourse.claims import Claim, show_claims
from ftcourse.datasets import low_resource_chat
from ftcourse.exercises.fisher_masks import check_child, check_compact_bytes, check_fisher
from ftcourse.explorers.fisher_masks import child_explorer, child_parts, plot_child_map
from ftcourse.plots import new_axes, use_course_style
from torch.distributions import Bernoulli, kl_divergence

from ftkit import load_base
from ftkit.batching import global_batch, pad, steps_per_epoch
from ftkit.child_tuning import (
    ChildTuningAdamW,
    fisher_information,
    gradient_mask,
    load_masks,
    save_masks,
    top_fraction_masks,
)
from ftkit.conversations import encode, training_template
from ftkit.loss import IGNORE_INDEX

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
print(
    f"torch {torch.__version__}, transformers {transformers.__version__}, device: cpu (a small model)"
)

# %%
N_QUESTIONS = 96  # conversations to learn from: little data, as child-tuning is meant for
BATCH_SIZE = 16  # conversations in a step
RESERVE_P = 0.1  # share of the weights that are in the child
LR = 2e-3  # learning rate; large models want a much smaller one
WEIGHT_DECAY = 0.01  # each step takes LR * WEIGHT_DECAY of a weight off it
EPOCHS = 5  # passes over the conversations
SEED = 0  # of questions, order and random numbers
claims = []  # what this notebook tested, each with its verdict; the recap prints them

# %% [markdown]
# ## 1 · Fisher information: how much a weight matters
#
# Task-dependent child-tuning chooses its child by a score for each weight. Here three weights tell yes from no: the
# first reads a wide feature, the second a narrow one, the third a feature that is always zero. Each example gives
# each weight a gradient, and the weight's **Fisher information** is the mean of their squares:
#
# `fisher = (gradients ** 2).mean(dim=0)`

# %%
torch.manual_seed(SEED)
widths = torch.tensor([3.0, 1.0, 0.0])
features = torch.randn(20_000, 3) * widths  # (N, 3)
weight = torch.tensor([0.5, -0.5, 0.5])
yes = torch.sigmoid(features @ weight)
labels = torch.bernoulli(yes)
gradients = (yes - labels)[:, None] * features  # of -log p(label): a row for each example
fisher = (gradients**2).mean(dim=0)
print("Fisher information:", [round(f, 2) for f in fisher.tolist()])
assert fisher[0] > fisher[1] > fisher[2] == 0

# %% [markdown]
# Notice: no gradient ever reaches the third weight, so its score is exactly 0.
#
# Why the square? Nudge a weight by a small δ, and the predictions move by about `½ · fisher · δ²`, counted as the
# Kullback-Leibler divergence of the new ones from the old (in **nats**, the unit of the natural logarithm). A high
# score means: touch it, and the model says something else.

# %%
NUDGE = 0.05
for i in range(3):
    nudged = weight + NUDGE * torch.eye(3)[i]
    before, after = Bernoulli(logits=features @ weight), Bernoulli(logits=features @ nudged)
    moved = kl_divergence(before, after).double().mean().item()
    predicted = fisher[i].item() * NUDGE**2 / 2
    print(f"weight {i}: predictions move by {moved:.5f} nats, predicted {predicted:.5f}")
    # The mean of 20,000 squares strays by one or two per cent, the formula's next term is as small.
    assert abs(moved - predicted) <= 0.1 * predicted + 1e-9

# %% [markdown]
# Notice: a measurement of gradients alone predicted what a change does. That takes labels drawn from the model's own
# predictions, as here. With the labels of a data set the score is called the **empirical** Fisher information, and
# the formula is a guide only.
#
# `ftkit` computes it from any model and any loss, one example at a time:

# %%
linear = torch.nn.Linear(3, 1, bias=False)
linear.weight.data = weight[None].clone()


def loss_of(model, batch):
    logits = model(batch["features"]).squeeze(1)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"])


few = {"features": features[:100], "labels": labels[:100]}
scored = fisher_information(linear, [few], loss=loss_of)["weight"][0]
by_formula = (gradients[:100] ** 2).mean(dim=0)
print("from a model:", scored, "by the formula:", by_formula)
assert torch.allclose(scored, by_formula, rtol=1e-5)  # sums of a hundred float32 squares

# %% [markdown]
# Notice: two ways, one score. From a hundred examples, though, it is a rough estimate of that of twenty thousand.

# %% [markdown]
# ### Exercise 1 · Fisher information
#
# Difficulty ●○○, 3 minutes. Return the Fisher information of each weight. Expected: from gradients of shape (N, …),
# a tensor of the shape that follows N.


# %% tags=["exercise"]
def fisher_of(gradients: torch.Tensor) -> torch.Tensor:
    """The Fisher information of each weight from the gradients of N examples."""
    ### BEGIN SOLUTION
    return (gradients**2).mean(dim=0)
    ### END SOLUTION


check_fisher(fisher_of)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Square each example's gradient first. Averaging first lets examples that disagree cancel.
#
# </details>

# %% [markdown]
# ## 2 · By example or by batch
#
# Now a language model: pocket-base, and 96 questions with their answers. We score its weights with one half of the
# questions and with the other. The mean of the two is the Fisher information of all questions; how far they differ
# tells how much chance is in it.

# %%
base, tokenizer = load_base()
template = training_template(tokenizer)
rows = {
    split: [encode(tokenizer, row["messages"], template) for row in conversations]
    for split, conversations in low_resource_chat(N_QUESTIONS, SEED).items()
}
PAD = tokenizer.pad_token_id
batches = [
    pad(rows["train"][i : i + BATCH_SIZE], PAD) for i in range(0, N_QUESTIONS, BATCH_SIZE)
]
middle = len(batches) // 2
halves = [fisher_information(base, part) for part in (batches[:middle], batches[middle:])]
fisher = {name: (score + halves[1][name]) / 2 for name, score in halves[0].items()}

# %%
total = sum(score.numel() for score in fisher.values())
everything = torch.cat([score.flatten() for score in fisher.values()])
top = everything.topk(round(RESERVE_P * total)).values
print(f"{total:,} weights; {(everything == 0).float().mean():.0%} have a score of exactly 0")
print(f"the top {RESERVE_P:.0%} of them hold {top.sum() / everything.sum():.0%} of the sum")
assert total == sum(p.numel() for p in base.parameters())
unread = (fisher["model.embed_tokens.weight"] == 0).all(dim=1)  # a row for each token
assert (everything == 0).sum() == unread.sum() * base.config.hidden_size
assert top.sum() > 0.8 * everything.sum()

# %% [markdown]
# Notice: very uneven, and that is why a child can be small. The zeros are embeddings of tokens that no
# question uses.
#
# The original code is quicker: one gradient for each **batch**, squared. **Predict first:** with 16 questions
# in a batch, do such scores sum to as much as ours (1), to a quarter (1/4), or to hardly more than 1/16?

# %%
my_guess = 1

# %%
by_batch = fisher_information(base, batches, per="batch")
ratio = (torch.cat([s.flatten() for s in by_batch.values()]).sum() / everything.sum()).item()
print(
    f"guessed {my_guess:.2f}, measured {ratio:.2f} (one over {1 / ratio:.0f}): "
    f"{'right' if abs(my_guess - ratio) < 0.03 else 'another number'}"
)
assert 1 / BATCH_SIZE < ratio < 2 / BATCH_SIZE

# %% [markdown]
# Notice: in a batch, gradients are averaged **before** they are squared, and what the questions disagree on
# cancels. Pure noise would leave 1/16; they agree on little more than that.
#
# Does that choose another child? `top_masks` marks the weights of highest score, one gradient mask a tensor: a
# **Fisher mask**.


# %%
def overlap(child: dict, other: dict) -> float:
    """The share of a child's weights that another child of the same size has too."""
    shared = sum(int((mask & other[name]).sum()) for name, mask in child.items())
    return shared / sum(int(mask.sum()) for mask in child.values())


child = top_fraction_masks(fisher, RESERVE_P)
half_children = [top_fraction_masks(half, RESERVE_P) for half in halves]
random_child = {
    name: gradient_mask(score.shape, RESERVE_P, seed=SEED, step=1, name=name)
    for name, score in fisher.items()
}
by_chance, by_halves = overlap(child, random_child), overlap(*half_children)
shared = overlap(child, top_fraction_masks(by_batch, RESERVE_P))
print(
    f"shared with a random child {by_chance:.0%}, by the children of two halves {by_halves:.0%}"
)
print(f"shared by the batches' child and ours {shared:.0%}")

# %% [markdown]
# Notice two yardsticks: chance alone shares `reserve_p`, and the children of two halves, which are **other
# questions** of the same kinds, share the second number. The batches' child differs from ours about as much.

# %%
claims.append(
    Claim(
        "the squared gradient of a batch stands for the mean squared gradient of its examples",
        "a possible reading of Xu et al.'s code",
        0.8 < ratio < 1.25,
        f"{ratio:.0%} of it at {BATCH_SIZE} a batch; the children share {shared:.0%}, "
        f"those of two halves of the questions {by_halves:.0%}",
    )
)
assert abs(by_chance - RESERVE_P) < 0.01  # a hundred thousand weights stray by a tenth of that
assert 0.5 < by_halves < 0.9 and abs(shared - by_halves) < 0.1

# %% [markdown]
# ## 3 · One threshold, and the map
#
# `top_masks` ranks all weights of the model **together**, with one threshold, so a layer gets as much of the child as
# it matters.
#
# **Predict first:** many fine-tunes freeze the lower layers, near the input, and train the upper ones. Where will most
# of the child be: in `layers.0`, the lowest, spread evenly, or in `layers.3`, the highest?

# %%
my_guess = "layers.3"

# %%
parts = child_parts(child)
ax = plot_child_map(parts, RESERVE_P, title=f"where the child of {RESERVE_P:.0%} lies")

# %%
in_layer = {f"layers.{n}": 0 for n in range(base.config.num_hidden_layers)}
for part, count in parts.items():
    if (layer := part.split()[0]) in in_layer:
        in_layer[layer] += count.kept
size = sum(count.kept for count in parts.values())
for layer, kept in in_layer.items():
    print(f"{layer} holds {kept / size:.0%} of the child")
fullest = max(in_layer, key=in_layer.get)
print("right" if my_guess == fullest else f"another layer: {fullest}")
assert size == round(RESERVE_P * total)

# %% [markdown]
# Notice: a bar is the share of its **part** (weights in brackets) that is in the child; a printed line is the share of
# the **child** that lies in a layer, and embeddings and head have the rest. The lowest layer holds most of it. Every
# part has some, and of the norms' few weights more than half are in.

# %%
every_layer = all(count.kept > 0 for count in parts.values())
by_layer = ", ".join(f"{kept / size:.0%}" for kept in in_layer.values())
measured = f"{by_layer} of the child in the layers from input to output; one model, one task"
lower = in_layer["layers.0"] + in_layer["layers.1"]
upper = in_layer["layers.2"] + in_layer["layers.3"]
reading = "a possible reading of one global threshold"
claims.append(Claim("a Fisher mask reaches into every layer", reading, every_layer, measured))
claim = "what a task needs most lies in the upper layers"
reading = "a possible reading of freezing the lower ones"
claims.append(Claim(claim, reading, upper > lower, measured))
assert every_layer and lower > 2 * upper
assert all(count.share > 0.5 for part, count in parts.items() if "norm" in part)

# %% [markdown]
# The original code scores only parameters with `layer` in their name, and trains the others without a gradient
# mask. `fisher_information(..., exclude=[...])` leaves names out.
#
# Move the slider (or press the arrow keys) to the left and watch where a smaller child gathers.

# %%
explorer = child_explorer(fisher, RESERVE_P)
explorer

# %%
explorer.slider.value = 0.01  # what the slider does, done by a cell
fullest = max(explorer.parts, key=lambda part: explorer.parts[part].share)
first = sum(part.kept for name, part in explorer.parts.items() if name.startswith("layers.0"))
smallest = sum(part.kept for part in explorer.parts.values())
print(f"at 1 %, {first / smallest:.0%} of the child is in layers.0; fullest: {fullest}")
assert first > smallest / 2
explorer.slider.value = RESERVE_P

# %% [markdown]
# ### When there is nothing to choose
#
# The original takes a percentile and keeps what is **at least** that large. Where too many scores are 0, the
# percentile is 0, and every weight is "at least 0":

# %%
scores = torch.zeros(1000)
scores[:50] = 1.0  # 5 % of the weights have any gradient
at_percentile = scores >= scores.quantile(1 - RESERVE_P)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    positive = top_fraction_masks({"w": scores}, RESERVE_P)["w"]
print(
    f"percentile: {at_percentile.float().mean():.0%}, top_masks: {positive.float().mean():.0%}"
)
print(said[0].message)
assert at_percentile.all() and torch.equal(positive, scores > 0)

# %% [markdown]
# Notice: the percentile made the child the whole model, without a word. Scores that are **all** zero come from a
# loss that does not depend on the weights, and are refused:

# %%
try:
    fisher_information_of_nothing = fisher_information(
        base, batches[:1], per="batch", loss=lambda model, batch: 0 * model(**batch).loss
    )
    top_fraction_masks(fisher_information_of_nothing, RESERVE_P)
except ValueError as refusal:
    print(refusal)
else:
    raise AssertionError("an all-zero Fisher information was accepted")

# %% [markdown]
# ### Exercise 2 · One threshold
#
# Difficulty ●●○, 6 minutes. Return a mask for each tensor: True for the `reserve_p` largest scores of all
# tensors **together**. Raise a ValueError if all scores are zero. Expected: 20 of the checker's 200 weights.


# %% tags=["exercise"]
def child_of(scores: dict[str, torch.Tensor], reserve_p: float) -> dict[str, torch.Tensor]:
    """Masks of the largest scores, by the names of the scores."""
    ### BEGIN SOLUTION
    together = torch.cat([score.flatten() for score in scores.values()])
    if not together.any():
        raise ValueError("all scores are zero: does the loss depend on these weights?")
    threshold = together.topk(round(reserve_p * together.numel())).values[-1]
    return {name: score >= threshold for name, score in scores.items()}
    ### END SOLUTION


check_child(child_of)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `torch.cat` the flattened scores. With `k`, the number of weights in the child, the last value of `topk(k)` is the
# threshold, and the score at the threshold belongs to the child. `any()` tells whether a score is not zero.
#
# </details>

# %% [markdown]
# ## 4 · Before or after an epoch
#
# The original code scores the **pretrained** weights: its pass over the data takes no step. Wright's notebook says to
# train one epoch while the parameters are watched, which can be read as: score them after an epoch. We train that
# epoch on a copy.


# %%
def train(model, optimizer, epochs: int) -> None:
    """Passes over the training questions, in the same order for every caller."""
    model.train()
    for step in range(epochs * steps_per_epoch(rows["train"], BATCH_SIZE)):
        batch = pad(global_batch(rows["train"], step, BATCH_SIZE, SEED), PAD)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


# %% [markdown]
# **Predict first:** of the child before the epoch, how much is in the child after it: nearly all, half, or the
# tenth that chance gives?

# %%
my_guess = 1.0

# %% tags=["nbval-ignore-output"]
trained = copy.deepcopy(base)
train(trained, torch.optim.AdamW(trained.parameters(), lr=LR), epochs=1)
later = fisher_information(trained, batches)
later_child = top_fraction_masks(later, RESERVE_P)
kept = overlap(child, later_child)
print(f"guessed {my_guess:.0%}, measured {kept:.0%}; the two halves share {by_halves:.0%}")
later_parts = child_parts(later_child)
axes = new_axes(9, 5, columns=2)[1]
plot_child_map(parts, RESERVE_P, title="pretrained", ax=axes[0])
plot_child_map(later_parts, RESERVE_P, title="after one epoch", ax=axes[1])
axes[1].tick_params(labelleft=False)  # the parts have their names on the left

# %%
scores_fell = sum(s.sum() for s in later.values()) < sum(s.sum() for s in fisher.values()) / 2
lowest = sum(part.kept for name, part in later_parts.items() if name.startswith("layers.0"))
print(f"scores fell to under half: {bool(scores_fell)}")
print(f"layers.0 still holds more of the child than all other layers: {lowest > size / 2}")
print(f"less is shared than between the two halves: {kept < by_halves - 0.05}")
print(f"more is shared than by chance: {kept > 2 * RESERVE_P}")
assert scores_fell and kept > 2 * RESERVE_P

claim = "the child of the pretrained weights is the child after one epoch"
reading = "a possible reading of code and talk, which differ in this"
measured = (
    f"they share under two thirds: {kept < 2 / 3}; "
    f"two halves of the questions {by_halves:.0%}; rate {LR}"
)
claims.append(Claim(claim, reading, kept > by_halves, measured))

# %% [markdown]
# Notice: most of the child lies in `layers.0` as before, but much of it is other weights. An epoch learns what the
# scores asked for, so they fall and the ranking changes. Does a gentler epoch change it less? Put `lr=3e-4` in place
# of `lr=LR` above, and see. From here on we follow the original code: `child` is that of the pretrained weights.

# %% [markdown]
# ## 5 · Train the child, and nothing else
#
# Task-dependent child-tuning (Child-Tuning_D) holds the child fixed for the whole run, without an amplifier.
# `ChildTuningAdamW` takes it as `gradient_mask`.


# %%
def task_dependent(model, **options):
    """The optimizer that trains the child of a model."""
    options |= {"lr": LR, "weight_decay": WEIGHT_DECAY}
    options |= {"mode": "task-dependent", "gradient_mask": child}
    return ChildTuningAdamW(model.named_parameters(), **options)


model = copy.deepcopy(base)
optimizer = task_dependent(model)
train(model, optimizer, EPOCHS)

# %%
pretrained = dict(base.named_parameters())


def frozen_outside(model) -> bool:
    """Is every weight outside the child the pretrained one, to the bit?"""
    pairs = ((p[~child[n]], pretrained[n][~child[n]]) for n, p in model.named_parameters())
    return all(torch.equal(now, before) for now, before in pairs)


assert frozen_outside(model)

# %%
steps = EPOCHS * steps_per_epoch(rows["train"], BATCH_SIZE)
moved = {name: p != pretrained[name] for name, p in model.named_parameters()}
share = sum(int(m.sum()) for m in moved.values()) / total
print(f"after {steps} steps with weight decay, {share:.0%} of the weights have moved")
print(f"outside the child: {sum(int((moved[n] & ~child[n]).sum()) for n in child)} weights")
assert overlap(child, moved) > 0.99

# %% [markdown]
# Notice: `torch.equal` allows no tolerance: after thirty steps, nine weights in ten are the pretrained ones.
# This child is sparse over the whole run; a random mask, drawn anew at each step, is sparse within a step only.
#
# ### Break it, then fix it
#
# Both implementations under Sources mask the **gradient** and then decay every **weight**, in the child or not. One
# such step:


# %% tags=["raises-exception"]
def step_of_masked_gradients(weight_decay):
    model = copy.deepcopy(base)
    adamw = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=weight_decay)
    model(**batches[0]).loss.backward()
    for name, p in model.named_parameters():
        p.grad = torch.where(child[name], p.grad, 0.0)
    adamw.step()
    return model


frozen = frozen_outside(step_of_masked_gradients(WEIGHT_DECAY))
assert frozen, "weights outside the child have moved, although their gradients were masked"

# %% [markdown]
# A zero gradient stops Adam's part of the step, not the decay, which takes `lr · weight_decay` of every weight off
# it. The fix: mask the decay as well, as `ChildTuningAdamW` does.

# %%
still = copy.deepcopy(base)
fixed = task_dependent(still)
still(**batches[0]).loss.backward()
fixed.step()
held = frozen_outside(still)
print(f"outside the child, with decay masked: unchanged {held}; with decay on all: {frozen}")
undecayed = frozen_outside(step_of_masked_gradients(0.0))
print(f"with a weight decay of 0: unchanged {undecayed}")
assert held and undecayed and not frozen

# %% [markdown]
# Notice: at a weight decay of 0, the default of the original optimizer, there is nothing to mask. Otherwise the drift
# is slow, but it is not "frozen".

# %%
claim, source = "what lies outside the child is frozen", "Xu et al. 2021, on Child-Tuning_D"
held = held and undecayed and frozen_outside(model)
broken = f"with decay on every weight, equal after one: {frozen}"
measured = f"equal to the bit after {steps} steps; {broken}"
condition = "the weight decay is masked too, or is 0"
claims.append(Claim(claim, source, held, measured, only_if=condition))

# %% [markdown]
# The child is needed again when a run is resumed. It can be written to a file, and comes back the same:

# %%
with tempfile.TemporaryDirectory() as folder:
    save_masks(child, Path(folder) / "child.safetensors")
    loaded = load_masks(Path(folder) / "child.safetensors")
assert all(torch.equal(mask, loaded[name]) for name, mask in child.items())
saved = [state["gradient_mask"] for state in optimizer.state_dict()["state"].values()]
same = all(map(torch.equal, saved, child.values()))
print(f"the optimizer's state_dict holds it too: {same}")
assert same

# %% [markdown]
# Notice: a child is data, so keep it with the model. Chosen anew in a resumed run, from weights that have moved, it
# would be another one, as section 4 showed.

# %% [markdown]
# ## 6 · A tenth of the moments
#
# AdamW keeps two float32 moments for each weight: 8 bytes. Outside the child they would be zeros for ever, so
# they need not exist. Each weight of the child needs 4 bytes more, to say where it is.
#
# `compact = (8 + 4) · reserve_p · weights`

# %%
sizes = {}
for compact in (False, True):
    sizes[compact] = task_dependent(base, compact_state=compact).state_bytes()
print(f"AdamW's moments  {8 * total:9,} bytes predicted, dense: {sizes[False]}")
print(f"the child's      {8 * size:9,} bytes predicted, compact: {sizes[True]}")
assert sizes[False] == {"moments": 8 * total, "masks": total}
assert sizes[True] == {"moments": 8 * size, "masks": 4 * size}

# %% [markdown]
# Notice: predicted and measured agree to the byte. The dense form keeps a mask of one byte a weight. Weights and
# gradients, 4 bytes each, are as large as before: 4 + 4 + 8 = 16 bytes a weight become `8 + 12 · reserve_p`.
#
# Fewer bytes, the same training? Three steps of each, on the same batches:

# %%
twins = [copy.deepcopy(base), copy.deepcopy(base)]
for twin, compact in zip(twins, (False, True), strict=True):
    three_steps = task_dependent(twin, compact_state=compact)
    for batch in batches[:3]:
        twin(**batch).loss.backward()
        three_steps.step()
        three_steps.zero_grad()
pairs = list(zip(twins[0].parameters(), twins[1].parameters(), strict=True))
gap = max((dense - small).abs().max().item() for dense, small in pairs)
print(f"weights differ by less than a hundredth of a step: {gap < LR / 100}")
assert gap < LR / 100  # the vectors are cut elsewhere: last digits may differ

# %%
less = sizes[True]["moments"] / sizes[False]["moments"]
claim = "the child's moments take the share reserve_p of AdamW's bytes"
held = abs(less - RESERVE_P) < 1e-6 and gap < LR / 100
dense, indices = sizes[False]["moments"], sizes[True]["masks"]
measured = f"{less:.1%} of {dense:,} bytes, and {indices:,} of indices"
claims.append(Claim(claim, "this course's compact state", held, measured))

# %% [markdown]
# ### Exercise 3 · Bytes of a child
#
# Difficulty ●○○, 3 minutes. Return the bytes of the compact state: two float32 moments and an index for each
# weight of the child. Expected: 1,200,000 for a million weights at 0.1.


# %% tags=["exercise"]
def compact_bytes(weights: int, reserve_p: float) -> int:
    """Bytes of moments and indices of a child."""
    ### BEGIN SOLUTION
    return 12 * round(reserve_p * weights)
    ### END SOLUTION


check_compact_bytes(compact_bytes)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# How many weights has the child? Each of them has three numbers of four bytes.
#
# </details>

# %% [markdown]
# ## 7 · Two children, side by side
#
# Now task-free child-tuning (Child-Tuning_F, a new random child each step) from the same start, with the same
# questions in the same order. Questions that were not trained on judge both: by the mean loss, and by how many answers
# are right in every token.


# %%
def judge(model) -> tuple[float, float]:
    """Loss in nats a token and share of answers that are right in every token, on held-out questions."""
    batch = pad(rows["test"], PAD)
    labels = batch.pop("labels")[:, 1:]  # (B, T - 1)
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1]  # (B, T - 1, V)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    right = (logits.argmax(-1) == labels) | (labels == IGNORE_INDEX)
    return loss.item(), right.all(-1).float().mean().item()


# %% tags=["nbval-ignore-output"]
free = copy.deepcopy(base)
task_free = ChildTuningAdamW(
    free.named_parameters(), lr=LR, weight_decay=WEIGHT_DECAY, reserve_p=0.3, seed=SEED
)
train(free, task_free, EPOCHS)
names = {"untrained": base, "task-free, 0.3": free, f"task-dependent, {RESERVE_P}": model}
judged = {name: judge(one) for name, one in names.items()}
for name, (loss, exact) in judged.items():
    print(f"{name:20} loss {loss:.2f}   right answers {exact:.0%}")
stray = (2 * exact * (1 - exact) / len(rows["test"])) ** 0.5  # a standard error
print(
    f"two such scores on {len(rows['test'])} questions differ by about {stray:.0%} by chance"
)

# %%
start, *ends = [loss for loss, _ in judged.values()]
free_moved = sum(int((p != pretrained[n]).sum()) for n, p in free.named_parameters()) / total
print(f"both end under a third of the first loss: {max(ends) < start / 3}")
print(f"they end within 0.3 nats of each other: {abs(ends[0] - ends[1]) < 0.3}")
_, *scores = [exact for _, exact in judged.values()]
within = abs(scores[0] - scores[1]) < 3 * stray
print(f"right answers within three standard errors of each other: {within}")
print(f"weights moved: task-free over 90 %: {free_moved > 0.9}; task-dependent {share:.0%}")
assert max(ends) < start / 3 and free_moved > 0.9 and share <= RESERVE_P

# %% [markdown]
# Notice: a tenth of the weights learned about as much. Which mode is **better** one seed at one rate cannot tell, and
# their scores differ by no more than chance allows: [02_child_tuning](02_child_tuning.ipynb) has both over several
# seeds, each at its best rate, with intervals.

# %% [markdown]
# ## Recap
#
# - Fisher information is the mean squared gradient over examples: a guide to how far a nudge of a weight moves
#   predictions.
# - Square before you average: batches cancel most of it.
# - One threshold for the whole model; where it falls is a finding, not a setting.
# - Scores change as the model learns: say at which weights yours were taken.
# - Frozen means equal to the bit, so mask the decay too. The moments then take `reserve_p` of the bytes.
#
# The claims that this notebook tested, with the verdicts that its cells computed:

# %%
show_claims(claims)
assert [claim.held for claim in claims] == [False, True, False, False, True, True]

# %% [markdown]
# ## Recall
#
# 1. What is the Fisher information of a weight, and what does a score of 0 mean?
# 2. Why is the squared gradient of a batch smaller than the mean of the squared gradients?
# 3. What goes wrong with one threshold for each tensor?
# 4. What moves a weight whose gradient is always masked to zero?
# 5. How many bytes has the state of a child of 25 % of a billion weights, and what does not shrink?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: the mean squared gradient of its examples; at 0, no example's loss depends on it (to first order).
# - 2: averaging comes first, and gradients that disagree cancel.
# - 3: every tensor gets the same share, however little it matters.
# - 4: weight decay.
# - 5: 12 · 0.25 · 10⁹, that is 3 billion, where AdamW has 8; weights and gradients do not shrink.
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
# - Sung et al., [Training Neural Networks with Fixed Sparse Masks](https://arxiv.org/abs/2111.09839), 2021: Fisher
#   masks for sparse updates.
#
# ## Next
#
# [04_freezing](04_freezing.ipynb): whole tensors that train or do not, chosen by name.
