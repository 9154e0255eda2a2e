# %% [markdown]
# # 01 · Gradient masks: a 3×3 demo
#
# Nine numbers are enough to see how child-tuning works, what it leaves unchanged, and what it costs.
#
# - **Prerequisites:** Python, and what a gradient is.
# - **Hardware:** any processor; no accelerator.
# - **Time:** about 25 minutes with the exercises; its cells run in under 10 seconds on two cores.

# %% [markdown]
# ## You will be able to
#
# - **build** a gradient mask from a probability, and amplify what it keeps,
# - **show** that the expectation of the masked gradient is the gradient,
# - **predict** the variance that a mask adds,
# - **tell** a gradient mask from freezing, over layers and over steps,
# - **spot** the infinity that a multiplied mask lets through.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import torch
from ftcourse.exercises.gradient_masks import (
    check_child_gradient,
    check_child_variance,
    check_masked_descent,
)
from ftcourse.explorers.gradient_masks import mask_explorer
from ftcourse.plots import new_axes, plot_matrix, use_course_style

use_course_style()
torch.set_printoptions(precision=2, sci_mode=False)

# %% tags=["nbval-ignore-output"]
print(
    f"Python {sys.version.split()[0]}, torch {torch.__version__}, device: cpu (nine numbers need no other)"
)

# %%
RESERVE_P = 0.33  # probability that a gradient entry is kept, from 0 to 1
N_MASKS = 10_000  # masks drawn where an average is measured
SEED = 7  # of torch's random numbers on the CPU, set anew in each cell that draws
claims = {}  # what this notebook claims -> whether its test held; the recap prints them

# %% [markdown]
# ## 1 · Keep some entries, at random
#
# Child-tuning lets each optimizer step learn from part of the gradient: the entries of a random **child
# network**. We follow its demo on a pretend gradient of one 3×3 weight.

# %%
gradient = torch.tensor([[0.8, -1.2, 0.3], [0.5, 2.0, -0.7], [-0.4, 0.1, 1.5]])
probabilities = torch.full_like(gradient, RESERVE_P)
print(gradient, probabilities, sep="\n")

# %% [markdown]
# Notice: each entry has its own probability of being kept, here the same for all: the reserve probability,
# `reserve_p`.
#
# A Bernoulli sampler turns each probability into a 1 (keep) or a 0 (drop).

# %%
torch.manual_seed(SEED)
sampler = torch.distributions.Bernoulli(probabilities)
sample = sampler.sample()
keep = sample.bool()  # the gradient mask
print(sample, keep, sep="\n")
assert torch.equal(keep, sample == 1)

# %% [markdown]
# Notice: the sample is made of floats, the **gradient mask** of booleans, with True where an entry is kept.
# This draw kept three of nine, as one would expect from 0.33; another may keep one or six.

# %% [markdown]
# ## 2 · Amplify what was kept
#
# Two thirds of the gradient are gone, so the rest has to speak for them: divide it by `reserve_p`.
#
# `child_gradient = where(keep, gradient / reserve_p, 0)`

# %%
amplifier = 1 / RESERVE_P
child_gradient = torch.where(keep, gradient * amplifier, 0.0)
print(f"amplifier {amplifier:.2f}")
assert torch.equal(child_gradient != 0, keep)
assert torch.allclose(child_gradient[keep] / gradient[keep], torch.tensor(1 / RESERVE_P))

# %%
figure, axes = new_axes(9, 2.8, columns=3)
plot_matrix(gradient, title="gradient", ax=axes[0])
plot_matrix(keep, title="gradient mask", ax=axes[1])
ax = plot_matrix(
    child_gradient, title=f"child gradient (× {amplifier:.2f})", mask=keep, ax=axes[2]
)

# %% [markdown]
# Notice: in plain gradient descent the hatched entries do not move in this step, and the others move three
# times as far as they would have. AdamW rescales its steps, and its momentum moves entries kept before.

# %% [markdown]
# ## 3 · Averaged over many masks
#
# **Predict first.** The entry at the top left is 0.80. Averaged over 10,000 gradient masks, what will its
# child gradient be: 0.26, 0.80 or 2.42? Put your guess into the next cell, then run the one below it.

# %%
my_guess = 0.26

# %%
torch.manual_seed(SEED)
masks = torch.bernoulli(torch.full((N_MASKS, 3, 3), RESERVE_P)).bool()
children = torch.where(masks, gradient / RESERVE_P, 0.0)  # (N_MASKS, 3, 3)
mean = children.mean(dim=0)
close = abs(my_guess - mean[0, 0]) < 0.1
print(
    f"guessed {my_guess:.2f}, measured {mean[0, 0]:.2f}: {'right' if close else 'another number'}"
)

# %% [markdown]
# An entry is `g / p` with chance `p`, and 0 otherwise. So its expectation is `p · g / p = g`: the amplifier
# undoes what the gradient mask takes away, **on average**.

# %%
figure, axes = new_axes(6.2, 2.8, columns=2)
plot_matrix(mean, title=f"mean of {N_MASKS:,} child gradients", limit=2, ax=axes[0])
ax = plot_matrix(gradient, title="gradient", limit=2, ax=axes[1])

# %% [markdown]
# Notice: close, and not equal; the largest entries stray most. How far may an honest average stray?
#
# A mean of `n` draws strays by its **standard error**, `|g| · sqrt((1 - p) / p / n)`. Beyond four of them
# lies one honest entry in 16,000: that is our tolerance.

# %%
standard_error = gradient.abs() * ((1 - RESERVE_P) / RESERVE_P / N_MASKS) ** 0.5
strayed = (mean - gradient).abs() / standard_error
print(f"largest standard error {standard_error.max():.3f}")
print(f"strayed by at most {strayed.max():.1f} standard errors; 4 are allowed")
unamplified = (RESERVE_P * mean - gradient).abs() / standard_error
print(f"without the amplifier it would be {unamplified.min():.0f} or more")
held = bool((strayed < 4).all())
claims["the expectation of the child gradient is the gradient"] = held
assert held and unamplified.min() > 4

# %% [markdown]
# Notice: the tolerance passes an honest mean and catches a forgotten amplifier. A check that cannot fail
# proves nothing.

# %% [markdown]
# ## 4 · What it costs is variance
#
# The average hides that a single child gradient is a rough guess. Its variance is the mean of the squares
# minus the square of the mean:
#
# `p · (g / p)² - g² = (1 - p) / p · g²`

# %%
predicted = (1 - RESERVE_P) / RESERVE_P * gradient**2
measured = children.var(dim=0)
ratio = measured / predicted
print("predicted", predicted, "measured", measured, "measured / predicted", ratio, sep="\n")
held = bool((ratio - 1).abs().max() < 0.05)
claims["a gradient mask adds (1 - p) / p · g² of variance"] = held
assert held

# %% [markdown]
# Notice: predicted and measured differ by a percent or so. With 10,000 draws the ratio itself strays by 0.7
# %, so 5 % is a generous limit.

# %%
for reserve_p in (0.05, 0.1, 0.33, 0.5, 0.9, 1.0):
    noise = ((1 - reserve_p) / reserve_p) ** 0.5
    print(f"reserve_p {reserve_p:.2f}: the standard deviation is {noise:.2f} times the entry")
assert noise == 0  # at reserve_p = 1

# %% [markdown]
# Notice: at 0.33 the noise is larger than the signal. Child-tuning pays this on purpose: its authors argue that
# the noise helps a fine-tune on little data to generalise.

# %% [markdown]
# ## 5 · Move it yourself
#
# Drag the slider, or give it the focus and press the arrow keys. Watch the mean stay while the amplified
# entries grow. **New seed** draws other masks.

# %%
explorer = mask_explorer(gradient, reserve_p=RESERVE_P, seed=SEED)
explorer

# %%
kept_before = explorer.mask
explorer.slider.value = 0.6  # what the slider does, done by a cell
print(
    f"{int(kept_before.sum())} entries kept at {RESERVE_P}, {int(explorer.mask.sum())} at 0.6"
)
assert (explorer.mask | ~kept_before).all(), "raising reserve_p only adds entries"
explorer.slider.value = RESERVE_P

# %% [markdown]
# Notice: with the seed unchanged, entries join as `reserve_p` rises and none leaves.

# %% [markdown]
# ## 6 · At 1.0 it is whole-model fine-tuning
#
# With `reserve_p = 1` every entry is kept and the amplifier is 1. That makes a useful test of any
# child-tuning code: it must then agree with plain fine-tuning, bit for bit.

# %%
torch.manual_seed(SEED)
keep_all = torch.bernoulli(torch.full((N_MASKS, 3, 3), 1.0)).bool()
whole = torch.where(keep_all, gradient / 1.0, 0.0)
held = torch.equal(whole, gradient.expand(N_MASKS, 3, 3))
claims["reserve_p = 1 is whole-model fine-tuning"] = held
print(
    f"{keep_all.float().mean():.0%} of {keep_all.numel():,} entries kept, all equal to the gradient's"
)
assert held

# %% [markdown]
# Notice: `torch.equal` allows no tolerance, and needs none.

# %% [markdown]
# ## 7 · A gradient mask cuts across layers
#
# The usual way to train a part of a model is to **freeze** the rest. Here are three layers of equal size;
# freezing two leaves a third of the weights to train. Ones train, zeros do not.

# %%
weights = [torch.nn.Linear(6, 6, bias=False).weight for _ in range(3)]
for weight in weights[:2]:
    weight.requires_grad_(False)
trained = [torch.full((6, 6), weight.requires_grad) for weight in weights]
figure, axes = new_axes(9, 3.3, columns=3)
for number, (matrix, ax) in enumerate(zip(trained, axes, strict=True), start=1):
    plot_matrix(
        matrix, title=f"layer {number}, freezing: {matrix.float().mean():.0%} train", ax=ax
    )

# %% [markdown]
# Notice the hard line between layers 2 and 3. A gradient mask with `reserve_p = 1/3` trains about as many
# weights:

# %%
torch.manual_seed(SEED)
drawn = [torch.bernoulli(torch.full((6, 6), 1 / 3)).bool() for _ in weights]
figure, axes = new_axes(9, 3.3, columns=3)
for number, (matrix, ax) in enumerate(zip(drawn, axes, strict=True), start=1):
    plot_matrix(
        matrix, title=f"layer {number}, masking: {matrix.float().mean():.0%} train", ax=ax
    )

# %%
shares = torch.stack(drawn).float().mean(dim=(1, 2))  # one a layer
tolerance = 4 * (1 / 3 * 2 / 3 / 36) ** 0.5  # four standard errors of a share over 36 entries
held = bool(((shares - 1 / 3).abs() < tolerance).all())
claims["at each step, a gradient mask trains a part of every layer"] = held
assert held
assert torch.stack(trained).float().mean(dim=(1, 2)).tolist() == [0, 0, 1]
for name, part in {"freezing": trained, "masking": drawn}.items():
    by_layer = ", ".join(f"{matrix.float().mean():.0%}" for matrix in part)
    print(
        f"{name} trains {by_layer} of the layers, {torch.stack(part).float().mean():.0%} of all"
    )

# %% [markdown]
# Notice: every layer can adapt, and none of them entirely.

# %% [markdown]
# ## 8 · And every step draws a new one
#
# Freezing keeps its line for the whole run. A gradient mask is drawn anew at each step, so an entry escapes
# `k` steps with chance `(1 - p)^k` only. **Predict:** how much of the weight has moved after ten?

# %%
torch.manual_seed(SEED)
moved = torch.zeros(100, 100, dtype=torch.bool)
for step in range(1, 11):
    moved |= torch.bernoulli(torch.full(moved.shape, RESERVE_P)).bool()
    if step in (1, 2, 5, 10):
        share, predicted = moved.float().mean().item(), 1 - (1 - RESERVE_P) ** step
        print(f"after {step:2} steps: {share:.1%} moved, {predicted:.1%} predicted")
assert abs(share - predicted) < 0.01
claims["over ten steps, it trains about a third of the weights"] = (
    abs(share - RESERVE_P) < 0.05
)

# %% [markdown]
# Notice: "it trains a third of the weights" is true of one step and false of a run: nearly all have moved after
# ten; with momentum, an entry once kept goes on moving. This claim does **not** hold, and the recap will say so.

# %% [markdown]
# ### Two modes
#
# Everything so far is **task-free** child-tuning (Child-Tuning_F): chance picks the child. The
# **task-dependent** mode (Child-Tuning_D) picks it once, by how much the task needs each weight (its Fisher
# information), and keeps it for the whole run, without an amplifier.

# %% [markdown]
# ## 9 · Break it, then fix it
#
# A gradient that overflows, as happens in half precision, holds an `inf`. Suppose the gradient mask drops
# just that entry. Multiplying by 0 should remove it …

# %% tags=["raises-exception"]
overflowed = gradient.clone()
overflowed[0, 0] = torch.inf
assert not keep[0, 0]  # the gradient mask drops this entry
weight = torch.nn.Parameter(torch.zeros(3, 3))
weight.grad = keep * overflowed / RESERVE_P
torch.nn.utils.clip_grad_norm_([weight], max_norm=1.0)
print(weight.grad)
assert weight.grad.isfinite().all(), "the dropped inf came back as NaN, and clipping spread it"

# %% [markdown]
# … and it does not: `0 * inf` is NaN, so the norm is NaN, and clipping scales all nine entries by it. The fix:
# **choose** entries, never multiply them away.

# %%
weight.grad = torch.where(keep, overflowed / RESERVE_P, 0.0)
norm = torch.nn.utils.clip_grad_norm_([weight], max_norm=1.0)
print(weight.grad)
print(f"norm before clipping {norm:.2f}, after {weight.grad.norm():.2f}")
assert norm.isfinite() and weight.grad.isfinite().all()

# %% [markdown]
# Notice: this is why section 2 used `where`. An overflow in an entry that is *kept* still shows, as it
# should.

# %% [markdown]
# ## Exercise 1 · The whole recipe
#
# Difficulty ●○○, 5 minutes. Write the recipe as one function: draw a gradient mask from `generator`,
# choose, amplify. A right answer keeps about 30 % of the checker's entries, each times 3.33, and survives
# an `inf`.


# %% tags=["exercise"]
def child_gradient_of(
    gradient: torch.Tensor, reserve_p: float, generator: torch.Generator
) -> torch.Tensor:
    """Return a new tensor: the gradient under a fresh gradient mask, amplified."""
    ### BEGIN SOLUTION
    probabilities = torch.full_like(gradient, reserve_p)
    keep = torch.bernoulli(probabilities, generator=generator).bool()
    return torch.where(keep, gradient / reserve_p, 0.0)
    ### END SOLUTION


check_child_gradient(child_gradient_of)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `torch.bernoulli` takes a tensor of probabilities and `generator=`. `torch.where(condition, this,
# otherwise)` chooses.
#
# </details>

# %% [markdown]
# ## Exercise 2 · Its variance
#
# Difficulty ●○○, 3 minutes. Return the variance of each entry of a child gradient: a tensor of the
# gradient's shape, all zeros at `reserve_p = 1`.


# %% tags=["exercise"]
def child_variance(gradient: torch.Tensor, reserve_p: float) -> torch.Tensor:
    """Return the predicted variance of each entry of the child gradient."""
    ### BEGIN SOLUTION
    return (1 - reserve_p) / reserve_p * gradient**2
    ### END SOLUTION


check_child_variance(child_variance)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# The mean of the squares is `p · (g / p)²`. Subtract the square of the mean, `g²`, and simplify.
#
# </details>

# %% [markdown]
# ## Exercise 3 · A few steps of descent
#
# Difficulty ●●○, 7 minutes. Take one step of plain gradient descent per gradient, each with its own
# gradient mask: `weight - lr * child_gradient`. In the checker, 6 steps at 0.25 move about 82 % of the
# entries.


# %% tags=["exercise"]
def masked_descent(
    weight: torch.Tensor,
    gradients: list[torch.Tensor],
    reserve_p: float,
    lr: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the weight after one masked step per gradient."""
    ### BEGIN SOLUTION
    for gradient in gradients:
        weight = weight - lr * child_gradient_of(gradient, reserve_p, generator)
    return weight
    ### END SOLUTION


check_masked_descent(masked_descent)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Loop over `gradients` and call your `child_gradient_of` inside the loop. If it stands before the loop, the
# same entries move each time and the others never do.
#
# </details>

# %% [markdown]
# ## In `ftkit`: gradient masks without a hidden state
#
# A generator's next mask depends on all that it drew before: on another number of processes, or after a
# restart, it differs. `ftkit` computes each mask from seed, step, parameter name and place alone.

# %%
from ftkit.child_tuning import gradient_mask

keyed = gradient_mask((3, 3), RESERVE_P, seed=SEED, step=1, name="layer.weight")
again = gradient_mask((3, 3), RESERVE_P, seed=SEED, step=1, name="layer.weight")
later = gradient_mask((3, 3), RESERVE_P, seed=SEED, step=2, name="layer.weight")
lower = gradient_mask(
    (3, 3),
    RESERVE_P,
    seed=SEED,
    step=1,
    name="layer.weight",
    region=(slice(1, 3), slice(0, 3)),
)
assert torch.equal(keyed, again) and not torch.equal(keyed, later)
assert torch.equal(lower, keyed[1:])  # a shard draws its own rows and no others

# %% [markdown]
# Notice: a process that holds only the two lower rows draws exactly its part of the whole. And a
# `reserve_p` of zero, where the amplifier would be `0 / 0`, is refused:

# %%
try:
    gradient_mask((3, 3), 0.0, seed=SEED, step=1, name="layer.weight")
except ValueError as refusal:
    print(refusal)
else:
    raise AssertionError("reserve_p = 0 was accepted")

# %% [markdown]
# ## Recap
#
# - A gradient mask keeps each entry with probability `reserve_p` and divides what it keeps by it.
# - The expectation stays; the variance is the price.
# - Choose with `where`: multiplying lets NaN through.
# - Over a run, nearly every weight moves.
#
# The claims that this notebook tested, with the verdicts that its cells computed:

# %%
from ftcourse.claims import Claim, show_claims

paper, demo = (
    "Xu et al. 2021, on Child-Tuning_F",
    "Wright 2022, the demo of transformer_central",
)
evidence = [  # in the order of `claims`: who says so, and what was measured
    (
        paper,
        f"off by {strayed.max():.1f} standard errors at most, over {N_MASKS:,} masks of seed {SEED}",
    ),
    (
        "follows from the recipe",
        f"{ratio.min():.2f} to {ratio.max():.2f} of the prediction, same masks",
    ),
    (paper, f"{whole.numel():,} entries, all equal to the gradient's, bit for bit"),
    (
        demo,
        f"{shares.min():.0%} to {shares.max():.0%} of each of {len(shares)} layers at p = 1/3",
    ),
    (
        "a possible reading of the demo",
        f"{share:.0%} had moved after ten steps at p = {RESERVE_P}",
    ),
]
tested = zip(claims.items(), evidence, strict=True)
show_claims(
    [Claim(text, source, held, measured) for (text, held), (source, measured) in tested]
)
assert list(claims.values()) == [True, True, True, True, False]

# %% [markdown]
# ## Recall
#
# 1. What does a child gradient hold where its gradient mask is False?
# 2. Why divide by `reserve_p`?
# 3. How large is the noise at `reserve_p = 0.5`, next to the entry?
# 4. What separates a gradient mask from freezing, within a step and over a run?
# 5. Why is `keep * gradient` dangerous?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: zero, whatever the gradient was, even `inf`.
# - 2: so that the expectation stays the gradient.
# - 3: as large: `sqrt(0.5 / 0.5) = 1`.
# - 4: it reaches into every layer, and it is drawn anew at each step.
# - 5: `0 * inf` is NaN, and NaN spreads.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Xu et al., [Raise a Child in Large Language Model](https://arxiv.org/abs/2109.05687), EMNLP 2021, and
#   [its code](https://github.com/alibaba/AliceMind/tree/main/ChildTuning).
# - Less Wright, [transformer_central](https://github.com/lessw2020/transformer_central): child-tuning for
#   PyTorch, and the demo that this notebook follows.
#
# ## Next
#
# [02_child_tuning](02_child_tuning.ipynb): gradient masks become an optimizer.
