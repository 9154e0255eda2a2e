# %% [markdown]
# # 06 · Optimizer and schedule
#
# Four settings that every fine-tune has: what decays, the learning rate, its schedule, the optimizer. You check
# the first, and measure what each is worth on few data.
#
# - **Prerequisites:** you have seen a training loop; [05_chat_templates](05_chat_templates.ipynb) explains the data.
# - **Hardware:** any processor; two cores are enough.
# - **Time:** about 30 minutes with the exercises; its cells run in under 30 seconds on two cores.

# %% [markdown]
# ## You will be able to
#
# - **group** parameters into those that decay and those that do not, by name or by shape,
# - **check** that no norm gain, bias or forgotten parameter slips through,
# - **choose** a learning rate by a sweep, not by habit,
# - **draw** warmup and decay, and fit them to the number of steps.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import math
import statistics

import torch
import transformers
from ftcourse.claims import Claim, show_claims
from ftcourse.exercises.optimizer_and_schedule import (
    check_decays,
    check_rate_at,
    check_warmup_steps,
)
from ftcourse.explorers.schedules import learning_rates, plot_schedules, schedule_explorer
from ftcourse.intervals import interval
from ftcourse.plots import OKABE_ITO, new_axes, plot_loss, use_course_style
from ftcourse.studies.optimizer import (
    DECAYS,
    EVERYTHING,
    HIGH,
    LONG_WARMUP,
    MATRICES,
    RATES,
    SEEDS,
    SGD_RATES,
    STEPS,
    Trial,
    run,
)
from ftcourse.studies.records import read_records, trial_of

from ftkit import load_base
from ftkit.models import data_dir
from ftkit.parameters import check_decay_groups, decay_groups, groups_by_name, groups_by_shape

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # as in the stored runs
print(f"torch {torch.__version__}, transformers {transformers.__version__}, device: cpu")

# %%
WEIGHT_DECAY = 0.01  # AdamW shrinks what decays by lr · WEIGHT_DECAY at each step
LR = Trial(0).lr  # the usual peak learning rate of the stored runs
claims = []  # what this notebook tested, each with its verdict; the recap prints them
stored = read_records(data_dir() / "results" / "optimizer.jsonl")
records = {trial_of(record, Trial): record for record in stored}
print(f"{len(records)} stored runs, {SEEDS} seeds of each setting, of {', '.join(STEPS)}")

# %% [markdown]
# The figures here come from short fine-tunes on few questions: **chat-96** has 96, seen ten times in 60 steps;
# **chat-500** has 500, seen five times in 160 steps. `python -m ftcourse.studies.optimizer` made them. A score is the
# fraction of held-out questions answered exactly; a point is a hundredth. Two settings are compared seed by seed (on
# the same rows in the same order), and the mean difference is given with a 95 % interval.


# %%
def scores(measure="test_exact", **changes):
    """One number a seed, of the usual setting with `changes`."""
    return [records[Trial(seed, **changes)][measure] for seed in range(SEEDS)]


def gain(one, other, measure="test_exact"):
    """How much more `one` scores than `other`; both are changes to the usual setting."""
    pairs = zip(scores(measure, **one), scores(measure, **other), strict=True)
    return interval([a - b for a, b in pairs])


def plot_scores(rows, xlabel, ax):
    """Circles: seeds; diamond: their mean."""
    for y, values in enumerate(rows.values()):
        ax.plot(values, [y] * len(values), "o", color=OKABE_ITO[0], markerfacecolor="none")
        ax.plot(statistics.fmean(values), y, "D", color=OKABE_ITO[5])
    ax.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel=xlabel)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-0.03, 0.75))
    ax.grid(axis="x", color="#dddddd")


# %% [markdown]
# ## 1 · Who decays, by name
#
# Weight decay pulls weights towards zero. Matrices can bear that. A norm's **gain**, the vector that it multiplies
# by, sets a scale, and a bias sets a level, so both are usually spared, by a pattern on names. Here is one that was
# written for a CLIP, whose norms are called `ln_1`.

# %%
model, _ = load_base(data_dir() / "pocket-base")
PATTERN = r"bias|ln_.+weight|ln_.+bias"
groups = groups_by_name(model.named_parameters(), WEIGHT_DECAY, PATTERN)
for group in groups:
    names = [name for name, _ in group["params"]]
    print(
        f"decay {group['weight_decay']}: {len(names)} tensors, such as {', '.join(names[1:4])}"
    )

# %% [markdown]
# **Predict first.** The norms of a Llama are called `input_layernorm`, `post_attention_layernorm` and `norm`. How
# many of its nine gains does the pattern spare?


# %%
def decaying_gains(model, mark):
    """Of the gains, found by a mark in their names, those that the pattern lets decay, and the number of all."""
    decaying = {
        n for n, _ in groups_by_name(model.named_parameters(), 1.0, PATTERN)[0]["params"]
    }
    gains = [n for n, _ in model.named_parameters() if mark in n and n.endswith("weight")]
    return [name for name in gains if name in decaying], len(gains)


missed, of = decaying_gains(model, "norm")
print(f"{of} gains, {len(missed)} of them decay: {missed[0]}, …")
assert len(missed) == of == 9

# %% [markdown]
# Notice: nothing complained. A pattern that matches nothing is as quiet as one that matches all. On a GPT-2, whose
# names it was made for, it does its work:

# %%
tiny = transformers.GPT2Config(
    n_layer=2, n_embd=8, n_head=2, vocab_size=16, bos_token_id=0, eos_token_id=0
)
gpt2 = transformers.GPT2LMHeadModel(tiny)
gpt2_missed, gpt2_of = decaying_gains(gpt2, "ln_")
print(f"GPT-2: {gpt2_of} gains, {len(gpt2_missed)} of them decay")
claim = "the pattern ln_.+weight keeps norm gains from decaying"
measured = f"gains that decay: {len(gpt2_missed)} of {gpt2_of} in a GPT-2, {len(missed)} of {of} in a Llama"
spares = not gpt2_missed
only_if = "where norms are named ln_" if missed else ""
claims.append(Claim(claim, "fine-tunes of CLIP and GPT-2", spares, measured, only_if=only_if))

# %% [markdown]
# ## 2 · Break it, then fix it
#
# So let a check complain. `check_decay_groups` does not read names: a gain is what lies in a module whose class
# is a norm. It also counts: each parameter that trains must be in exactly one group.

# %% tags=["raises-exception"]
check_decay_groups(model, groups)

# %% [markdown]
# The fix: decide by **shape**. Gains and biases are vectors; what decays has two dimensions or more. `decay_groups`
# asks for the name as well, since a few biases have three (`bias_k` of torch's attention module).

# %%
for make in (groups_by_shape, decay_groups):
    groups = make(model.named_parameters(), WEIGHT_DECAY)
    check_decay_groups(model, groups)
    sizes = [sum(p.numel() for _, p in group["params"]) for group in groups]
    print(f"{make.__name__:15} {sizes[0]:,} weights decay, {sizes[1]:,} do not")
check_decay_groups(model, torch.optim.AdamW(groups, lr=1e-3).param_groups)

# %% [markdown]
# Notice: the check takes an optimizer's `param_groups` as well, so it can follow any library's set-up.

# %% [markdown]
# ## 3 · Does it matter?
#
# **Predict first:** the usual decay is 0.01. By how many points does sparing gains and biases change the score?
# Here it is, and for a large and an absurd decay.

# %%
decays = {
    f"{decay:g}, {what}": scores(weight_decay=decay, decays=what)
    for decay in DECAYS
    for what in (MATRICES, EVERYTHING)
}
figure, ax = new_axes(6.5, 2.8)
plot_scores(decays, "right on held-out questions (circles: seeds; diamond: mean)", ax)
_ = ax.set_ylabel("decay, and what decays")

# %%
sparing = {
    decay: gain({"weight_decay": decay}, {"weight_decay": decay, "decays": EVERYTHING})
    for decay in DECAYS
}
for decay, found in sparing.items():
    print(f"decay {decay:5g}: sparing gains and biases is worth {found.points} points")
usual = sparing[WEIGHT_DECAY]
measured = (
    f"sparing them is worth {usual.points} points at decay {WEIGHT_DECAY}; {SEEDS} seeds"
)
claim = "decaying biases and gains hurts a fine-tune"
source = "Hugging Face's example scripts, which spare them"
claims.append(Claim(claim, source, usual.low > 0, measured))
absurd = max(DECAYS)
measured = (
    f"sparing them is worth {sparing[absurd].points} points at decay {absurd:g}; {SEEDS} seeds"
)
claim = f"at a decay of {absurd:g}, decaying biases and gains hurts"
claims.append(Claim(claim, "this course", sparing[absurd].low > 0, measured))

# %%
shrunk = 1 - math.prod(1 - lr * WEIGHT_DECAY for lr in learning_rates("linear", 6, 60, LR))
print(
    f"all of decay {WEIGHT_DECAY} in the 60 steps of chat-96: weights shrink by {shrunk:.3%}"
)
assert shrunk < 0.001

# %% [markdown]
# Notice: a step shrinks a weight by `lr · weight_decay` of itself, and a fine-tune has few steps. Multiply before you
# worry. In a pre-training of 100,000 steps at a mean rate of 1e-4 and a decay of 0.1, the product is 1.

# %% [markdown]
# ## 4 · The learning rate
#
# "5e-5" stands in many scripts: it is the default of transformers' `TrainingArguments`. **Predict first:** which
# is best for our model of a million parameters, 5e-5, 1.5e-4, 5e-4, 1.5e-3 or 5e-3?

# %%
sweep = {task: {f"{lr:g}": scores(task=task, lr=lr) for lr in RATES} for task in STEPS}
figure, axes = new_axes(8.5, 2.6, columns=2)
for ax, (task, rows) in zip(axes, sweep.items(), strict=True):
    plot_scores(rows, f"right on held-out questions, {task}", ax)
axes[0].set_ylabel("peak learning rate")
_ = axes[1].set_yticklabels([])

# %%
best = {t: max(RATES, key=lambda lr: statistics.fmean(scores(task=t, lr=lr))) for t in STEPS}
behind = {t: gain({"task": t, "lr": best[t]}, {"task": t, "lr": min(RATES)}) for t in STEPS}
parts = [f"{t}: {best[t]:g} beats {min(RATES):g} by {behind[t].points} points" for t in STEPS]
print("\n".join(parts))
good = all(found.low <= 0 for found in behind.values())
measured = f"{'; '.join(parts)}; a model of a million parameters, {SEEDS} seeds"
source = "the default of transformers' TrainingArguments"
claims.append(Claim("5e-5 is a good learning rate for a fine-tune", source, good, measured))
assert all(min(RATES) < rate < max(RATES) for rate in best.values())

# %% [markdown]
# Notice: the best rates have worse ones on both sides, so they are **bracketed**; a best rate at the edge of a sweep
# has not been found. 5e-5 comes from models a hundred times larger and more; sweep on yours, in steps of about three.
#
# On chat-96 two rates lie close together: the upper one is the usual rate of these runs. It is run again here, live.

# %% tags=["nbval-ignore-output"]
again, before = run(Trial(0)), records[Trial(0)]
print(f"stored: {before['test_exact']:.2f} right; again: {again['test_exact']:.2f}")
rows = [{"step": n + 1, "loss": loss} for n, loss in enumerate(again["train_loss"])]
ax = plot_loss(rows)

# %%
gap = abs(again["test_loss"] - before["test_loss"])
print(
    f"loss on held-out questions within a tenth of the stored run's: {gap < 0.1 * before['test_loss']}"
)
assert gap < 0.1 * before["test_loss"]  # processors round otherwise, and training magnifies it

# %% [markdown]
# ## 5 · Warmup, then decay
#
# Adam's first steps are its worst informed: its averages rest on a batch or two. **Warmup** keeps them
# small; a linear or cosine **decay** makes the last ones small again. transformers' `get_scheduler` has them all.

# %%
names = ("linear", "cosine", "constant_with_warmup")
ax = plot_schedules({name: learning_rates(name, 6, 60) for name in names})
peaks = {name: max(learning_rates(name, 6, 60)) for name in names}
assert set(peaks.values()) == {1.0}

# %% [markdown]
# **Predict first:** which of the two is worth more here, the warmup or the decay?

# %%
variants = {
    "linear, warmup 10 %": {},
    "linear, no warmup": {"warmup": 0.0},
    "cosine, warmup 10 %": {"schedule": "cosine"},
    "constant, warmup 10 %": {"schedule": "constant_with_warmup"},
    "constant, no warmup": {"schedule": "constant", "warmup": 0.0},
}
figure, axes = new_axes(8.5, 2.4, columns=2)
for ax, lr in zip(axes, (LR, HIGH), strict=True):
    rows = {name: scores(lr=lr, **changes) for name, changes in variants.items()}
    plot_scores(rows, f"right on held-out questions, peak {lr:g}", ax)
_ = axes[1].set_yticklabels([])

# %%
for name, changes in list(variants.items())[1:]:
    print(f"linear, warmup 10 %, against {name}: {gain({}, changes).points} points")
high = max(statistics.fmean(scores(lr=HIGH, **changes)) for changes in variants.values())
usual = statistics.fmean(scores())
print(f"best mean at peak {HIGH:g}: {high:.2f}; with linear and warmup at {LR:g}: {usual:.2f}")
assert high < usual / 4

# %% [markdown]
# Notice: no schedule saves a rate that is too high (right). On the left the decay is worth points. But a decaying
# rate is also a lower one on average, and that alone may be it. So give each schedule the best of the five rates.


# %%
def at_its_best(rates, **changes):
    """The best rate, by the mean score, as a change to the usual setting; it must be bracketed."""
    best = max(rates, key=lambda lr: statistics.fmean(scores(**changes, lr=lr)))
    assert min(rates) < best < max(rates)
    return {**changes, "lr": best}


linear = at_its_best(RATES)
cold = at_its_best(RATES, warmup=0.0)
constant = at_its_best(RATES, schedule="constant_with_warmup")
warmup, decay = gain(linear, cold), gain(linear, constant)
source = "Hugging Face's example scripts, which have both"
ending = f"points, each at its best rate; {SEEDS} seeds"
measured = f"linear decay with and without it: {warmup.points} {ending}"
claims.append(Claim("warmup helps a fine-tune", source, warmup.low > 0, measured))
measured = f"linear decay against a constant rate, both after warmup: {decay.points} {ending}"
claim = "a decaying learning rate helps a fine-tune"
claims.append(Claim(claim, source, decay.low > 0, measured))
for name, chosen in (("linear", linear), ("no warmup", cold), ("constant", constant)):
    print(
        f"{name}: best rate {chosen['lr']:g}, mean score {statistics.fmean(scores(**chosen)):.2f}"
    )
print("\n".join(claim.measured for claim in claims[-2:]))

# %% [markdown]
# Notice: now the constant rate is ahead, and clear of zero. What looked like the worth of the decay was the worth of
# a lower rate. And warmup, with clipped gradients and weights that are trained already, cannot be told from none.
# A comparison at one rate may judge the rate.

# %% [markdown]
# ## 6 · The schedule depends on the data's size
#
# A schedule is written in steps, and steps come from rows: `ceil(rows / batch) · epochs`. Carry "100 warmup steps"
# from a large data set to a small one, and the run may end before its warmup does. Move the slider.

# %%
explorer = schedule_explorer(LONG_WARMUP)
explorer

# %%
for rows in (96, 512):
    explorer.slider.value = rows
    print(explorer.caption)
explorer.slider.value = 96
assert explorer.steps == STEPS["chat-96"]
beyond = 1 - STEPS["chat-96"] / STEPS["chat-500"]
print(f"the other way round, 60 steps planned and 160 done: {beyond:.0%} of them at rate 0")

# %% [markdown]
# **Predict first:** what do 100 steps of warmup cost on each of the two tasks, in place of a tenth of the run?

# %%
carried = {
    task: gain({"task": task, "warmup": LONG_WARMUP / steps}, {"task": task})
    for task, steps in STEPS.items()
}
parts = [f"{task}: {found.points} points" for task, found in carried.items()]
print("\n".join(parts))
worse = all(found.high < 0 for found in carried.values())
claim = "a schedule carried over from data of another size does harm"
source = "Karpathy 2019, A Recipe for Training Neural Networks"
measured = (
    f"{LONG_WARMUP} steps of warmup in place of a tenth, {'; '.join(parts)}, {SEEDS} seeds"
)
claims.append(Claim(claim, source, worse, measured))

# %% [markdown]
# Notice: neither score is clear of zero, for at this peak a lower rate costs little. What is certain is that you
# no longer know your learning rate. So give warmup as a share of the run. Karpathy's advice for a new task is
# simpler still: a constant rate, and the schedule last.

# %% [markdown]
# ## 7 · The optimizer itself
#
# pocket-base was pre-trained by AdamW with `beta2 = 0.95`, the constant of its running mean of squared gradients.
# Should a fine-tune keep the optimizer, and its settings? Each at the best of its rates.

# %%
kept = at_its_best(RATES, beta2=0.95)
sgd = at_its_best(SGD_RATES, optimizer="sgd")
optimizers = {
    f"AdamW, beta2 0.95, {kept['lr']:g}": scores(**kept),
    f"AdamW, beta2 0.999, {linear['lr']:g}": scores(**linear),
    f"SGD with momentum, {sgd['lr']:g}": scores(**sgd),
}
figure, ax = new_axes(6.5, 1.8)
plot_scores(optimizers, "right on held-out questions, chat-96", ax)

# %%
optimizer, moments = gain(kept, sgd), gain(kept, linear)
nats = gain(kept, sgd, "test_loss")
source = "a practitioner's procedure for fine-tuning"
measured = f"AdamW as in pre-training against SGD: {optimizer.points} {ending}"
claims.append(
    Claim("keep the optimizer of the pre-training", source, optimizer.low > 0, measured)
)
measured = f"beta2 0.95 against 0.999: {moments.points} {ending}"
claims.append(
    Claim("keep the moments' settings of the pre-training", source, moments.low > 0, measured)
)
print("\n".join(claim.measured for claim in claims[-2:]))
print(
    f"loss of AdamW less that of SGD: {nats.mean:+.3f} ({nats.low:+.3f} to {nats.high:+.3f}) nats"
)

# %% [markdown]
# Notice: on exact answers, five seeds do not tell them apart; on the loss, SGD is ahead. What mattered most above is
# the learning rate. So compare methods at the best rate of each. (All of these were chosen on the questions that are
# scored, which flatters each a little.)

# %% [markdown]
# ## Exercise 1 · What decays
#
# Difficulty ●○○, 3 minutes. Decide for one parameter. Expected: True for matrices, False for gains and biases,
# whatever their names.


# %% tags=["exercise"]
def decays(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether weight decay is for this parameter."""
    ### BEGIN SOLUTION
    return parameter.ndim >= 2
    ### END SOLUTION


check_decays(decays)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# How many dimensions has a gain, a bias, a matrix?
#
# </details>

# %% [markdown]
# ## Exercise 2 · Warmup steps
#
# Difficulty ●○○, 4 minutes. From the size of the data to the steps of warmup. Expected: 100 rows, batches of 16, 10
# epochs and a share of 0.1 make 7.


# %% tags=["exercise"]
def warmup_steps(rows: int, batch_size: int, epochs: int, share: float) -> int:
    """The share of the run's steps, rounded; an epoch's last batch may be smaller."""
    ### BEGIN SOLUTION
    return round(math.ceil(rows / batch_size) * epochs * share)
    ### END SOLUTION


check_warmup_steps(warmup_steps)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Count the steps of an epoch first, and round up: rows that are left over make a step.
#
# </details>

# %% [markdown]
# ## Exercise 3 · The rate at a step
#
# Difficulty ●●○, 6 minutes. Write the linear schedule as a formula. Expected: it agrees with transformers' at every
# step, 0 at both ends.


# %% tags=["exercise"]
def rate_at(step: int, peak: float, warmup: int, total: int) -> float:
    """The learning rate before step `step`, from 0 to `total`."""
    ### BEGIN SOLUTION
    if step < warmup:
        return peak * step / warmup
    return peak * (total - step) / (total - warmup)
    ### END SOLUTION


check_rate_at(rate_at)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Two straight lines: up from 0 at step 0 to the peak at `warmup`, then down to 0 at `total`.
#
# </details>

# %% [markdown]
# ## Recap
#
# - A pattern for names fits one family of models; check the groups by the modules.
# - A step shrinks what decays by `lr · weight_decay`: compare that with your number of steps.
# - Sweep the learning rate until the best is bracketed; give warmup as a share of the steps.
# - Compare optimizers, schedules, or anything else, at the best rate of each: at one rate, decay won here; at its
#   own best, the constant rate did.

# %%
show_claims(claims)

# %% [markdown]
# ## Recall
#
# 1. Why does `ln_.+weight` spare no gain of a Llama?
# 2. What tells a gain from a matrix if names do not?
# 3. By how much does one step of AdamW shrink a decaying weight?
# 4. What goes wrong with 100 warmup steps and 96 rows?
# 5. When has a sweep found the best rate?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: they are called `input_layernorm`, `post_attention_layernorm` and `norm`.
# - 2: its shape, a vector; or the class of its module.
# - 3: by `lr · weight_decay` of itself.
# - 4: the run ends before the warmup, and never reaches its peak.
# - 5: when the rates on both sides of it are worse.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Loshchilov and Hutter, [Decoupled Weight Decay Regularization](https://arxiv.org/abs/1711.05101), 2019.
# - Karpathy, [A Recipe for Training Neural Networks](https://karpathy.github.io/2019/04/25/recipe/), 2019.
# - transformers, [optimization](https://huggingface.co/docs/transformers/main_classes/optimizer_schedules): schedules.
#
# ## Next
#
# [07_overfit_one_batch](07_overfit_one_batch.ipynb): before a long run, one batch by heart.
