# %% [markdown]
# # 01 · Gradient masks: a 3×3 demo
#
# Child-tuning updates a random part of the weights at each step. On a gradient of nine numbers you build its mask,
# show that the average stays the gradient, and measure the noise that it adds.
#
# - **Prerequisites:** [00_start_here](00_start_here.ipynb), for what a gradient and an optimizer step are.
# - **Hardware:** any processor; no accelerator.
# - **Time:** about 30 minutes with the exercises; its cells run in under 10 seconds on two cores.

# %% [markdown]
# ## You will be able to
#
# - **build** a gradient mask from a probability, and rescale the entries that it keeps,
# - **show** that the expectation of the masked gradient is the gradient,
# - **predict** the variance that a mask adds,
# - **distinguish** a gradient mask from freezing, over layers and over steps,
# - **measure** what masking costs in learning rate, and avoid the NaN that multiplying by a mask lets through.

# %% [markdown]
# ## Why care?
#
# **Child-tuning** is meant to make a fine-tune generalise better from little data, by updating only a random part
# of the weights at each step. It is a short change to the optimizer and needs no more optimizer states, but it adds
# noise. Its authors report +0.9 percentage points for BERT and −0.1 for RoBERTa on four GLUE tasks; notebook 02
# compares it with AdamW, each at its best learning rate.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import torch
from ftcourse.claims import EXACT, Ledger
from ftcourse.exercises.gradient_masks import (
    check_largest_rate,
    check_mask_schedules,
    check_masked_gradient,
)
from ftcourse.expected import expected_error
from ftcourse.explorers.gradient_masks import mask_explorer
from ftcourse.mask_pictures import plot_gradients, plot_moved, plot_trained
from ftcourse.plots import use_course_style

use_course_style()
torch.set_printoptions(precision=2, sci_mode=False)

# %% tags=["nbval-ignore-output"]
print(
    f"Python {sys.version.split()[0]}, torch {torch.__version__}, "
    "device: cpu (nine numbers need no other)"
)

# %%
RESERVE_P = 0.33  # probability that a gradient entry is kept, from 0 to 1
N_MASKS = 10_000  # masks drawn where an average is measured
SEED = 7  # set again in each cell that draws random numbers
ledger = Ledger("child-tuning", EXACT)  # records each claim, and whether its test held
PAPER = "Xu et al. 2021, on Child-Tuning_F"

# %% [markdown]
# ## 1 · Keep some entries, at random
#
# At each optimizer step, child-tuning keeps some entries of the gradient at random and drops the others. The
# weights whose entries are kept are called the **child network**. Below is the gradient of one 3×3 weight, and the
# probability with which each entry is kept: the reserve probability `reserve_p`, the same for all.

# %%
gradient = torch.tensor([[0.8, -1.2, 0.3], [0.5, 2.0, -0.7], [-0.4, 0.1, 1.5]])
probabilities = torch.full_like(gradient, RESERVE_P)
print(gradient, probabilities, sep="\n")

# %% [markdown]
# A Bernoulli sampler turns each probability into a 1 (keep) or a 0 (drop).

# %%
torch.manual_seed(SEED)
sampler = torch.distributions.Bernoulli(probabilities)
sample = sampler.sample()
keep = sample.bool()  # the gradient mask
print(sample, keep, sep="\n")
assert torch.equal(keep, sample == 1)

# %% [markdown]
# The **gradient mask** is the sample as booleans: True where an entry is kept. This draw kept three of nine, as 0.33
# suggests; another may keep one or six.

# %% [markdown]
# ## 2 · Rescale by 1/p
#
# Two thirds of the entries are gone. Child-tuning divides the ones it keeps by `reserve_p`, the **1/p rescaling**
# that inverted dropout uses too. Section 3 shows what it is for. The result is the **masked gradient**:
#
# `masked_gradient = where(keep, gradient / reserve_p, 0)`

# %%
masked_gradient = torch.where(keep, gradient / RESERVE_P, 0.0)
print(f"1/p = {1 / RESERVE_P:.2f}")
print(
    f"the largest entry: {gradient.max():.2f}, and {masked_gradient.max():.2f} after rescaling"
)
assert torch.equal(masked_gradient != 0, keep)
assert torch.allclose(masked_gradient[keep] / gradient[keep], torch.tensor(1 / RESERVE_P))

# %%
unscaled, rescaled = "masked", f"masked, × {1 / RESERVE_P:.2f}"
panels = {
    "gradient": gradient,
    unscaled: torch.where(keep, gradient, 0.0),
    rescaled: masked_gradient,
}
figure = plot_gradients(panels, {unscaled: keep, rescaled: keep})

# %% [markdown]
# All three share one colour scale; hatched entries are dropped. Under plain gradient descent, the weights of
# hatched entries do not move in this step, and the others move three times as far as without a mask. AdamW behaves
# differently, because it normalises its steps; see notebook 02.

# %% [markdown]
# ## 3 · Averaged over many masks
#
# **Predict first.** The entry at the top left is 0.80. Averaged over 10,000 gradient masks, what will its
# masked gradient be: 0.26, 0.80 or 2.42? Put your guess into the next cell, then run the one below it.

# %%
my_guess = 0.26

# %%
torch.manual_seed(SEED)
masks = torch.bernoulli(torch.full((N_MASKS, 3, 3), RESERVE_P)).bool()
draws = torch.where(masks, gradient / RESERVE_P, 0.0)  # (N_MASKS, 3, 3)
mean = draws.mean(dim=0)
print(f"guessed {my_guess:.2f}, measured {mean[0, 0]:.2f}")

# %% [markdown]
# An entry is $g/p$ with probability $p$, and 0 otherwise. So its expectation is $p \cdot g/p = g$: the masked
# gradient is an **unbiased** estimate of the gradient, thanks to the rescaling. All nine entries:

# %%
title = f"mean of {N_MASKS:,}"
figure = plot_gradients({title: mean, "gradient": gradient, "difference": mean - gradient})

# %% [markdown]
# Close, but not equal, and the largest entries deviate most. How far may the average of an unbiased estimate deviate?
#
# The mean of $n$ draws has a **standard error** of $|g| \sqrt{(1 - p) / (p\,n)}$. An unbiased mean is more than four
# standard errors off in one case of 16,000, so four is our tolerance.

# %%
standard_error = gradient.abs() * ((1 - RESERVE_P) / RESERVE_P / N_MASKS) ** 0.5
deviation = (mean - gradient).abs() / standard_error
unscaled = (RESERVE_P * mean - gradient).abs() / standard_error
print(f"largest standard error: {standard_error.max():.3f}")
print(f"largest deviation: {deviation.max():.1f} standard errors, of 4 allowed")
print(f"without the rescaling, the smallest deviation: {unscaled.min():.0f} standard errors")
held = bool((deviation < 4).all())
measured = f"at most {deviation.max():.1f} standard errors away, over {N_MASKS:,} masks"
ledger.add(
    "the expectation of the masked gradient is the gradient", PAPER, held, measured, seeds=1
)
assert held and unscaled.min() > 4

# %% [markdown]
# The last line is a **negative control**: the same tolerance has to reject a masked gradient without the rescaling,
# because a check that cannot fail proves nothing.

# %% [markdown]
# ## 4 · The cost is variance
#
# A single masked gradient is a noisy estimate. Its variance is the mean of the squares minus the square of the mean:
#
# $$p \left(\frac{g}{p}\right)^2 - g^2 = \frac{1 - p}{p}\, g^2$$

# %%
predicted = (1 - RESERVE_P) / RESERVE_P * gradient**2
measured = draws.var(dim=0)
ratio = measured / predicted
print("predicted", predicted, "measured", measured, "measured / predicted", ratio, sep="\n")
assert (ratio - 1).abs().max() < 0.05

# %% [markdown]
# Predicted and measured agree within 2 %; with 10,000 draws the ratio has a standard error of 0.7 %.
#
# How large is the noise next to the signal? The standard deviation is the root of the variance:

# %%
for reserve_p in (0.05, 0.1, 0.33, 0.5, 0.9, 1.0):
    noise = ((1 - reserve_p) / reserve_p) ** 0.5
    print(f"reserve_p {reserve_p:.2f}: the standard deviation is {noise:.2f} times the entry")
assert noise == 0  # at reserve_p = 1

# %% [markdown]
# At 0.33 the noise is larger than the signal. Child-tuning accepts that on purpose: its authors argue that the
# noise helps a fine-tune on little data to generalise.

# %% [markdown]
# ## 5 · Change `reserve_p` yourself
#
# Run the cell to get a slider: drag it, or use the arrow keys. The mean of 1,000 masked gradients stays near the
# gradient, while the kept entries grow with 1/p. The colour scale grows with them, so that at 0.05 the gradient
# looks pale beside its noise. **New seed** draws other masks.

# %%
explorer = mask_explorer(gradient, reserve_p=RESERVE_P, seed=SEED)
explorer

# %% [markdown]
# An entry is kept when its uniform random number is below `reserve_p`. So with the same seed, a higher `reserve_p`
# keeps the same entries and some more. A cell can move the slider, too:

# %%
kept_before = explorer.mask
explorer.slider.value = 0.6
print(
    f"{int(kept_before.sum())} entries kept at {RESERVE_P}, {int(explorer.mask.sum())} at 0.6"
)
assert (explorer.mask | ~kept_before).all(), "raising reserve_p only adds entries"
explorer.slider.value = RESERVE_P

# %% [markdown]
# ## 6 · At 1.0 it is full fine-tuning
#
# With `reserve_p = 1` every entry is kept and 1/p is 1. That is a useful test of any child-tuning code: its result
# must be bitwise identical to plain fine-tuning.

# %%
torch.manual_seed(SEED)
keep_all = torch.bernoulli(torch.full((N_MASKS, 3, 3), 1.0)).bool()
full = torch.where(keep_all, gradient / 1.0, 0.0)
differ = int((full != gradient).sum())
print(f"{keep_all.float().mean():.0%} of {keep_all.numel():,} entries kept, {differ} differ")
measured = f"{differ} of {full.numel():,} entries differ"
ledger.add("reserve_p = 1 is full fine-tuning", PAPER, differ == 0, measured)
assert differ == 0

# %% [markdown]
# ## 7 · A gradient mask cuts across layers
#
# The usual way to train a part of a model is to **freeze** the rest. Take three layers of equal size: freezing two
# leaves a third of the weights to train, and in each step so does a gradient mask with `reserve_p = 1/3`.
# **Predict:** for each of the two, which weights do not train in a step?

# %%
weights = [torch.nn.Linear(6, 6, bias=False).weight for _ in range(3)]
for weight in weights[:2]:
    weight.requires_grad_(False)
frozen = [torch.full((6, 6), weight.requires_grad) for weight in weights]
torch.manual_seed(SEED)
drawn = [torch.bernoulli(torch.full((6, 6), 1 / 3)).bool() for _ in weights]
figure = plot_trained({"freezing": frozen, "masking": drawn})

# %%
shares = torch.stack(drawn).float().mean(dim=(1, 2))  # one a layer
tolerance = 4 * (1 / 3 * 2 / 3 / 36) ** 0.5  # four standard errors of a share over 36 entries
held = bool(((shares - 1 / 3).abs() < tolerance).all()) and bool((shares > 0).all())
measured = (
    f"{shares.min():.0%} to {shares.max():.0%} of each of {len(shares)} layers at p = 1/3"
)
claim = "at each step, a gradient mask trains a part of every layer"
ledger.add(claim, "Wright 2022, the demo of transformer_central", held, measured, seeds=1)
assert held and torch.stack(frozen).float().mean(dim=(1, 2)).tolist() == [0, 0, 1]
print(measured)

# %% [markdown]
# Freezing trains all of one layer and nothing of the others. In one step, a gradient mask trains a part of every
# layer.

# %% [markdown]
# ## 8 · Every step draws a new mask
#
# A frozen weight stays frozen for the whole run. A gradient mask is drawn anew at each step, so the probability
# that an entry was dropped in all of $k$ steps is only $(1 - p)^k$. **Predict:** what share of a 100×100 weight has
# moved after ten steps?

# %%
torch.manual_seed(SEED)
first = torch.bernoulli(torch.full((100, 100), RESERVE_P)).bool()
moved, steps = torch.zeros_like(first), range(1, 11)
shares = {"a new mask at each step": [], "the first mask, kept": []}
for step in steps:
    mask = first if step == 1 else torch.bernoulli(torch.full((100, 100), RESERVE_P)).bool()
    moved |= mask
    shares["a new mask at each step"].append(moved.float().mean().item())
    shares["the first mask, kept"].append(first.float().mean().item())
curve = [1 - (1 - RESERVE_P) ** step for step in steps]
ax = plot_moved(steps, shares, curve)
assert (
    max(abs(a - b) for a, b in zip(shares["a new mask at each step"], curve, strict=True))
    < 0.02
)

# %%
print(
    f"after ten steps: {shares['a new mask at each step'][-1]:.0%} moved, {curve[-1]:.0%} predicted"
)
assert round(curve[-1], 2) == 0.98

# %% [markdown]
# "It trains a third of the weights" is true of one step and false of a run. With AdamW even more weights move in
# each step, because momentum goes on moving those that were kept before. So the change of the weights is **not**
# sparse, and storing it takes as much disk space as a full fine-tune.

# %% [markdown]
# ### Two modes
#
# Everything so far is the **task-free** mode (Child-Tuning_F): the child network is random. The **task-driven**
# mode (Child-Tuning_D) selects it once, by the Fisher information of each weight, an estimate of how much the task
# needs it. It keeps this mask for the whole run, without the 1/p rescaling; see notebook 03.

# %% [markdown]
# ## 9 · Break it, then fix it
#
# In half precision a gradient can overflow, so that an entry is `inf`. Suppose that the gradient mask drops just
# this entry. Multiplying by 0 should remove it …

# %% tags=["raises-exception"]
overflowed = gradient.clone()
overflowed[0, 0] = torch.inf
assert not keep[0, 0]  # the gradient mask drops this entry
weight = torch.nn.Parameter(torch.zeros(3, 3))
weight.grad = keep * overflowed / RESERVE_P
torch.nn.utils.clip_grad_norm_([weight], max_norm=1.0)
print(weight.grad)
with expected_error(AssertionError):
    assert weight.grad.isfinite().all(), (
        "the dropped inf came back as NaN, and clipping spread it"
    )

# %% [markdown]
# … but it does not: `0 * inf` is NaN, so the norm is NaN, and clipping multiplies all nine entries by NaN. The fix:
# **select** entries with `where`, never multiply by a mask.

# %%
weight.grad = torch.where(keep, overflowed / RESERVE_P, 0.0)
norm = torch.nn.utils.clip_grad_norm_([weight], max_norm=1.0)
print(weight.grad)
print(f"norm before clipping {norm:.2f}, after {weight.grad.norm():.2f}")
assert norm.isfinite() and weight.grad.isfinite().all()

# %% [markdown]
# An `inf` in an entry that is *kept* still gets through, as it should: the mask must not hide that the run
# overflowed.

# %% [markdown]
# ## Exercise 1 · The whole recipe
#
# Difficulty ●○○, 5 minutes. Write the recipe as one function: draw a gradient mask from `generator`, select,
# rescale. The checker uses `reserve_p = 0.3`. Expected: about 30 % of the entries are kept, each times 3.33, and a
# dropped `inf` leaves no NaN.


# %% tags=["exercise"]
def masked_gradient_of(
    gradient: torch.Tensor, reserve_p: float, generator: torch.Generator
) -> torch.Tensor:
    """Return a new tensor: the gradient under a new gradient mask, rescaled by 1 / reserve_p."""
    ### BEGIN SOLUTION
    probabilities = torch.full_like(gradient, reserve_p)
    keep = torch.bernoulli(probabilities, generator=generator).bool()
    return torch.where(keep, gradient / reserve_p, 0.0)
    ### END SOLUTION


check_masked_gradient(masked_gradient_of)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `torch.bernoulli` takes a tensor of probabilities and `generator=`. `torch.where(condition, this,
# otherwise)` selects.
#
# </details>

# %% [markdown]
# ## Exercise 2 · An experiment: one mask, or a new one each step?
#
# Difficulty ●●○, 8 minutes. Minimise $\frac{1}{2} w^2$ for each of 1,000 weights by masked gradient descent; the
# gradient of a weight is $w$. All start at 1. Draw one mask before the first step, or a new one at each step.
# **Predict** the loss that is left after 24 steps at `reserve_p = 0.25` and `lr = 0.1`, write `run`, look at the
# numbers, then answer:
#
# - `adapts`: under which schedule do nearly all weights move, `"once"` or `"anew"`?
# - `keeps`: under which do most weights keep their first value?
#
# Expected: about 75 % of the loss is left under one, 1 to 2 % under the other.


# %% tags=["exercise"]
def run(
    anew: bool, reserve_p: float, lr: float, steps: int, generator: torch.Generator
) -> torch.Tensor:
    """Return 1,000 weights after masked steps from 1; if not `anew`, all under the first mask."""
    ### BEGIN SOLUTION
    weight = torch.ones(1_000)
    mask = torch.rand(1_000, generator=generator) < reserve_p
    for _ in range(steps):
        weight = weight - lr * torch.where(mask, weight / reserve_p, 0.0)
        if anew:
            mask = torch.rand(1_000, generator=generator) < reserve_p
    return weight
    ### END SOLUTION


adapts = (  # "once" or "anew"
    ### BEGIN SOLUTION
    "anew"
    ### END SOLUTION
)
keeps = (  # "once" or "anew"
    ### BEGIN SOLUTION
    "once"
    ### END SOLUTION
)
check_mask_schedules(run, adapts, keeps)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Draw the first mask before the loop. Then compare `run(False, 0.25, 0.1, 24, torch.Generator())` with the same for
# True: what is the mean of $\frac{1}{2} w^2$, and how many weights are still 1?
#
# </details>

# %% [markdown]
# ## Exercise 3 · An experiment: what does 1/p cost in learning rate?
#
# Difficulty ●●○, 8 minutes. Take 20 steps of masked gradient descent on the same $\frac{1}{2} w^2$, from 1,000 weights
# of 1 and with a new mask at each step, at each learning rate in `rates`. Return the largest that left a lower loss
# than at the start. Run it at `reserve_p` 1 and 0.25 and answer: **how many times smaller** is the largest learning
# rate at 0.25? Expected: a whole number.


# %% tags=["exercise"]
RATES = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]


def largest_rate(reserve_p: float, rates: list[float], generator: torch.Generator) -> float:
    """Return the largest of the rates at which the mean of w² falls in 20 masked steps from 1."""
    ### BEGIN SOLUTION
    falling = []
    for lr in rates:
        weight = torch.ones(1_000)
        for _ in range(20):
            weight = weight - lr * masked_gradient_of(weight, reserve_p, generator)
        if weight.square().mean() < 1:
            falling.append(lr)
    return max(falling)
    ### END SOLUTION


times_smaller = (
    ### BEGIN SOLUTION
    largest_rate(1.0, RATES, torch.Generator()) / largest_rate(0.25, RATES, torch.Generator())
    ### END SOLUTION
)
check_largest_rate(largest_rate, times_smaller)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# A kept weight becomes $w\,(1 - \mathrm{lr}/p)$. It shrinks while $\mathrm{lr}/p$ is below 2, so the largest `lr` is
# proportional to $p$. Use your `masked_gradient_of` from exercise 1, with `weight` as the gradient.
#
# </details>

# %% [markdown]
# ## In `ftkit`: masks without hidden state
#
# The next mask of a `torch.Generator` depends on everything that it drew before. So it differs when the run is
# restarted, or spread over another number of processes. `ftkit` uses a **counter-based RNG** instead: each
# element's random number is a hash of (seed, step, name, index). `region` asks for a part of a mask, here its rows
# 1 and 2.

# %%
from ftkit.child_tuning import gradient_mask

key = {"seed": SEED, "name": "layer.weight"}
one = gradient_mask((3, 3), RESERVE_P, step=1, **key)
again = gradient_mask((3, 3), RESERVE_P, step=1, **key)
later = gradient_mask((3, 3), RESERVE_P, step=2, **key)
lower = gradient_mask((3, 3), RESERVE_P, step=1, region=(slice(1, 3), slice(0, 3)), **key)
assert torch.equal(one, again) and not torch.equal(one, later)
assert torch.equal(lower, one[1:])  # a shard draws its own rows and no others
print(one, lower, sep="\n")

# %% [markdown]
# A process that holds only the two lower rows draws exactly its part of the full mask.
#
# A `reserve_p` of 0 would keep nothing, and 1/p does not exist, so it is refused:

# %%
try:
    gradient_mask((3, 3), 0.0, seed=SEED, step=1, name="layer.weight")
except ValueError as refusal:
    print(refusal)
else:
    raise AssertionError("reserve_p = 0 was accepted")

# %% [markdown]
# ## What transfers
#
# - **Any model:** expectation, variance, the share moved after `k` steps and the NaN are identities; they hold for 8
#   billion weights as for nine.
# - **Plain gradient descent only:** "three times as far" and the smaller largest learning rate. In AdamW 1/p nearly
#   cancels (notebook 02).
# - **From the literature, not measured here:** the paper's gains are for BERT-sized encoders on GLUE; "Random
#   Masking" (Xu and Zhang 2024) trains under one fixed random mask. It matches LoRA on their tasks, and needs larger
#   learning rates.

# %% [markdown]
# ## Numbers to take away
#
# What a gradient mask costs at each reserve probability, computed from the formulas above. The noise is the standard
# deviation of an entry, as a multiple of that entry.

# %%
print("reserve_p    1/p    noise per entry    moved after 10 steps")
for p in (0.1, 0.3, 0.5):
    noise, moved_after_10 = ((1 - p) / p) ** 0.5, 1 - (1 - p) ** 10
    print(f"{p:9.1f} {1 / p:6.1f} {noise:18.1f} {moved_after_10:23.1%}")

# %% [markdown]
# ## Recap
#
# - A gradient mask keeps each entry with probability `reserve_p` and divides what it keeps by it.
# - The expectation stays the gradient; the cost is a variance of $\frac{1 - p}{p}\, g^2$.
# - Select with `where`: multiplying by the mask turns a dropped `inf` into NaN.
# - Within a step it trains a part of every layer; over a run nearly every weight moves.
#
# The claims that this notebook tested, with the verdicts that its cells computed:

# %%
ledger.show()
assert all(claim.verdict == "supported" for claim in ledger.claims)

# %% [markdown]
# ## Recall
#
# 1. What does a masked gradient hold where its gradient mask is False?
# 2. Why divide by `reserve_p`?
# 3. How large is the noise at `reserve_p = 0.5`, compared with the entry?
# 4. How does a gradient mask differ from freezing, within a step and over a run?
# 5. Why is `keep * gradient` dangerous?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: zero, whatever the gradient was, even `inf`.
# - 2: so that the expectation stays the gradient.
# - 3: equally large: $\sqrt{0.5 / 0.5} = 1$.
# - 4: it reaches into every layer, and it is drawn anew at each step, so that nearly all weights move.
# - 5: `0 * inf` is NaN, and NaN spreads.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Xu et al., [Raise a Child in Large Language Model](https://arxiv.org/abs/2109.05687), EMNLP 2021, and
#   [its code](https://github.com/alibaba/AliceMind/tree/main/ChildTuning). The averages quoted above are those of
#   its Child-Tuning_F rows against vanilla fine-tuning; no standard deviations are given.
# - Less Wright, [transformer_central](https://github.com/lessw2020/transformer_central): child-tuning for
#   PyTorch, and the demo that this notebook follows.
# - Srivastava et al., [Dropout](https://jmlr.org/papers/v15/srivastava14a.html), JMLR 2014: the rescaling.
# - Xu and Zhang, [Random Masking](https://arxiv.org/abs/2405.02596), 2024.
#
# ## Next
#
# [02_child_tuning](02_child_tuning.ipynb): gradient masks become an optimizer.
