# %% [markdown]
# # 06 · Optimizer and schedule
#
# You write a training loop and measure what each of its settings is worth: learning rate, effective batch size, epochs,
# warmup, schedule, clipping, optimizer, weight decay.
#
# - **Prerequisites:** [05_chat_templates](05_chat_templates.ipynb), where questions and answers become tokens and
#   labels of -100 mask what is not trained on.
# - **Hardware:** any processor; two cores are enough.
# - **Time:** about 40 minutes with the exercises; its cells run in under 30 seconds on one core.

# %% [markdown]
# ## You will be able to
#
# - **write** a training loop: forward, loss over unmasked tokens, backward, clip, step, schedule, zero,
# - **find** a learning rate by a sweep whose best is bracketed on both sides,
# - **accumulate** gradients so that micro-batches give the gradient of the whole batch,
# - **choose** epochs, warmup, schedule and clipping, and know which of them matter,
# - **judge** whether a comparison of two methods compares the methods or their learning rates.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import torch
import transformers
import trl
from ftcourse.claims import Ledger
from ftcourse.exercises.optimizer_and_schedule import check_accumulate, check_sweep
from ftcourse.explorers.recipe import (
    effects,
    in_nats,
    plot_defaults,
    plot_question,
    plot_real_learning_rates,
    plot_worth,
    tasks_of,
    worth,
)
from ftcourse.explorers.schedules import learning_rates, plot_schedules, schedule_explorer
from ftcourse.intervals import interval
from ftcourse.plots import OKABE_ITO, new_axes, use_course_style
from ftcourse.studies.bracketing import BracketedStudy, best_learning_rate
from ftcourse.studies.recipe import BRACKETED, EPOCHS, Trial, usual, variants
from ftcourse.studies.tasks import load_task
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from trl import SFTConfig

from ftkit import load_base
from ftkit.batching import global_batch, pad
from ftkit.models import data_dir
from ftkit.parameters import check_decay_groups, decay_groups, groups_by_name

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # as in the stored runs
print(
    f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}"
)

# %%
POCKET = data_dir() / "pocket-base"
LR, BATCH_SIZE, WARMUP, WEIGHT_DECAY = 1e-3, 16, 0.1, 0.01  # of the usual run
SEED = 0  # of the live run's examples and their order
ledger = Ledger("learning rate and optimizer")
study = BracketedStudy.read(BRACKETED, Trial)
print(f"{len(study.records)} stored runs of {len(study.methods)} methods")

# %% [markdown]
# The figures come from stored runs of pocket-base, 1.0 M parameters, on two tasks: **chat-96** is 96 questions seen ten
# times, **chat-500** is 500 questions seen twice. Both are about 60 steps of 16 examples. Exact match is the fraction
# of new questions whose whole answer, end of turn included, is right.
#
# `python -m ftcourse.studies.recipe` makes the runs again.

# %% [markdown]
# Every method gets its own learning rate. It is chosen on *validation* questions with two seeds, and the grid is
# extended until the best rate has worse ones within a factor of 3 on both sides. Then five other seeds, ten where five
# left a sign open, run at that rate and are scored on *test* questions, which no choice has seen. Differences are
# paired by seed; brackets hold 95 % intervals.

# %% [markdown]
# ## 1 · The training loop
#
# A batch is padded to its longest example. `labels` repeat the ids where the assistant speaks and hold -100 elsewhere:
# prompt and padding are not trained on.

# %%
task = load_task("chat-96", SEED, POCKET, validation=True)
steps = EPOCHS["chat-96"] * len(task.train) // BATCH_SIZE
batches = [pad(global_batch(task.train, step, BATCH_SIZE, SEED), 0) for step in range(steps)]
labels = batches[0]["labels"]
print(f"{steps} batches; the first has {tuple(labels.shape)} tokens")
print(
    f"in the loss: {int((labels != -100).sum())} tokens of {int(batches[0]['attention_mask'].sum())}"
)

# %% [markdown]
# This is the whole loop. Everything that this notebook measures is an argument of it, or a property of `batches`.
#
# The shift by one is there because position t predicts token t + 1.


# %%
def train(model, batches, optimizer, scheduler, max_grad_norm=1.0):
    history = []  # (loss, norm of the gradient before clipping), a pair for each step
    for batch in batches:
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        targets = batch["labels"][:, 1:].flatten()
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets)  # skips -100
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        history.append((loss.item(), norm.item()))
    return history


# %% [markdown]
# **Predict first.** Clipping at 1.0 shortens every gradient whose norm is above 1. In how many of the 60 steps will it
# do something: a few, half, nearly all?

# %% tags=["nbval-ignore-output"]
groups = decay_groups(task.model.named_parameters(), WEIGHT_DECAY)  # section 7
optimizer = torch.optim.AdamW(groups, lr=LR)
scheduler = get_scheduler("linear", optimizer, round(WARMUP * steps), steps)
history = train(task.model.train(), batches, optimizer, scheduler)
losses, norms = zip(*history, strict=True)
figure, axes = new_axes(8.5, 2.4, columns=2)
for ax, values, label in zip(
    axes, (losses, norms), ("loss (nats/token)", "gradient norm"), strict=True
):
    ax.plot(range(1, steps + 1), values, color=OKABE_ITO[0])
    ax.set(xlabel="optimizer step", ylabel=label, ylim=(0, None))
_ = axes[1].axhline(1.0, color=OKABE_ITO[5], linestyle="--")

# %%
clipped = sum(norm > 1 for norm in norms)
print(f"clipped: about {round(clipped, -1)} of {steps} steps, all of the first 20")
assert min(norms[:20]) > 1 and 25 < clipped < 45
stored = study.runs(usual("chat-96"))[SEED]
assert stored["lr"] == LR
for live, recorded in zip(losses, stored["first_losses"], strict=False):
    assert abs(live - recorded) < 2e-3 * recorded

# %% [markdown]
# The first losses are those of the stored run with the same seed: this loop is the one that made the records. While a
# gradient is clipped, only its direction counts.

# %% [markdown]
# ## 2 · The learning rate
#
# The setting that matters most. Two defaults that you will meet, read from the installed packages:

# %%
for config in (TrainingArguments, SFTConfig):
    default = {name: field.default for name, field in config.__dataclass_fields__.items()}
    print(
        f"{config.__name__:18} learning_rate {default['learning_rate']:g}, "
        f"{default['lr_scheduler_type']}, warmup {default['warmup_steps']}, "
        f"epochs {default['num_train_epochs']:g}, clip {default['max_grad_norm']:g}"
    )

# %% [markdown]
# **Predict first.** Sweep around them, from 1.2e-5 to 1.1e-4. Where will the best rate be for pocket-base?
#
# `best_learning_rate` takes the best mean validation score, and looks at its neighbours.

# %% tags=["raises-exception"]
narrow = [record for record in study.records if record["lr"] < 1.2e-4]
best_learning_rate(narrow, usual("chat-96"))

# %% [markdown]
# A best rate at the edge of its grid has not been found; the true best may be far outside. The fix is to go on by
# factors of 3 until the curve turns down.

# %%
axes = plot_defaults(study)

# %%
for name in EPOCHS:
    curve = study.curve(usual(name))
    best = best_learning_rate(study.records, usual(name))
    scores = {lr: 100 * sum(values) / len(values) for lr, values in curve.items()}
    print(
        f"{name}: best {best:g} with {scores[best]:.0f} % exact match on validation;", end=" "
    )
    print(", ".join(f"{lr:g}: {score:.0f} %" for lr, score in scores.items() if lr != best))
    assert scores[best] > 10 + max(score for lr, score in scores.items() if lr < 1.2e-4)

# %% [markdown]
# Both defaults lie where this model has learned next to nothing after 60 steps, and one factor of 3 above the best
# costs more than most settings below. In steps of 10, a sweep would miss the peak.

# %% [markdown]
# ### Why 1e-3 here, and 1e-5 for 8B?
#
# AdamW divides each gradient entry by its own running size, so every weight moves by about the learning rate, however
# large the model is. An output sums as many of these moves as the layer is wide, and they pull in one direction.
# **Predict first:** by how much does one step at 1e-3 change the output of a layer of width 128? Of width 4,096, as in
# an 8B model?

# %%
moved = {}
for width in (128, 576, 4096):  # pocket-base, SmolLM2-135M, Llama 3 8B
    torch.manual_seed(0)
    layer, x = nn.Linear(width, width, bias=False), torch.randn(1, width)
    nn.init.normal_(layer.weight, std=width**-0.5)  # outputs as large as inputs
    before = layer(x).detach()
    layer(x).sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0).step()
    moved[width] = ((layer(x) - before).norm() / before.norm()).item()
    print(
        f"width {width:5}: one step at 1e-3 moves the output by {moved[width]:.1f} times its size"
    )
assert 25 < moved[4096] / moved[128] < 40

# %% [markdown]
# Thirty-two times the width, thirty-two times the change: at 1e-3, one step would overwrite the output of a layer of
# the 8B model three times over. So Adam's best learning rate falls about as 1 / width (Yang et al. 2022, μP): 1e-3 at
# width 128 corresponds to 3e-5 at width 4,096.

# %% [markdown]
# In this layer all moves pull in one direction, the worst case. In a network most do, because one gradient drives them.
# The 1 / width law says which way to go and about how far; it does not replace the sweep.

# %% [markdown]
# ### The same curve on a real model
#
# SmolLM2-135M-Instruct, 576 wide, learns to write function calls for requests (notebook 08 has the data). Its weights
# were dequantised from four bits. `python -m experiments.real_model.study` makes these runs.

# %% tags=["hide-input"]
drawn = plot_real_learning_rates()

# %% [markdown]
# ## 3 · Effective batch size
#
# The effective batch is what one optimizer step averages over: examples per device × devices × accumulation steps. At
# equal epochs a batch four times as large makes a quarter of the steps. **Predict first:** is 4, 16 or 64 best, and
# which wants the highest learning rate?

# %% tags=["hide-input"]
axes = plot_question(study, "batch size")

# %%
print(effects(study, "batch size"))
for name in tasks_of(study, "batch size"):
    rates = [study.best(trial) for trial in variants(name, "batch size").values()]
    assert rates == sorted(rates)

# %% [markdown]
# At equal epochs a smaller batch takes more steps, and here more steps learn more. The best learning rate rises with
# the batch, about threefold for a fourfold batch. For Adam, theory expects the square root, twofold (Malladi et al.
# 2022); a grid of factors of 3 cannot tell the two apart.
#
# On a GPU a larger batch also takes less time per example, until the GPU is busy: choose it for throughput, then sweep.

# %% [markdown]
# A batch that does not fit is split into micro-batches whose gradients add up. They should give the gradient of the
# whole batch. `cross_entropy` averages over the labels of *its* micro-batch, and micro-batches hold different numbers
# of them.
#
# **Predict first:** by how much is the gradient wrong if you average the micro-batches' means? If you forget to divide?


# %%
def gradient(model, weighted_batches):
    """Sum the gradients of each batch's mean loss, times its weight."""
    model.zero_grad()
    for weight, batch in weighted_batches:
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[
            :, :-1
        ]
        targets = batch["labels"][:, 1:].flatten()
        (weight * nn.functional.cross_entropy(logits.flatten(0, 1), targets)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


# %%
model, _ = load_base(POCKET)
micro = [
    {name: t[first : first + 4] for name, t in batches[0].items()} for first in (0, 4, 8, 12)
]
counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in micro]
whole = gradient(model, [(1, batches[0])])
by_labels = gradient(
    model, [(n / sum(counts), batch) for n, batch in zip(counts, micro, strict=True)]
)
mean_of_means = gradient(model, [(1 / 4, batch) for batch in micro])
summed = gradient(model, [(1, batch) for batch in micro])
off = [
    float((found - whole).norm() / whole.norm())
    for found in (by_labels, mean_of_means, summed)
]
print(f"labels of the four micro-batches: {counts}")
print(
    f"weighted by labels: off by {off[0]:.1%}; mean of means: {off[1]:.0%}; summed: {off[2]:.0%}"
)
assert off[0] < 1e-4 < off[1] < 1 < off[2]

# %% [markdown]
# The mean of means is quietly wrong, because a label counts more in a micro-batch that has few. transformers' Trainer
# did this until [October 2024](https://github.com/huggingface/transformers/pull/34191); it now divides by the labels of
# all micro-batches. The sum is four times too large. AdamW and clipping hide that, since both normalise the gradient;
# SGD diverges.

# %% [markdown]
# ## 4 · Epochs
#
# An epoch shows every example once. With few examples you repeat them. **Predict first:** twice as many epochs cost
# twice as much. Do they pay, on 96 questions and on 500? Watch exact match and loss apart.

# %% tags=["hide-input"]
axes = plot_question(study, "epochs")

# %%
print(effects(study, "epochs"))

# %% [markdown]
# Too few epochs cost more than any setting but the learning rate. On 96 questions, more epochs keep paying in exact
# match, while the loss turns up after 10: the model grows surer of its wrong answers faster than it gets answers right.
# InstructGPT's authors report the same parting of ways and trained on (Ouyang et al. 2022). Stop by the measure that
# you care about, on validation data.

# %% [markdown]
# ## 5 · Warmup and schedule
#
# Adam's first steps are its worst informed, because its running averages rest on a batch or two. **Warmup** keeps them
# small. A linear or cosine **decay** makes the last ones small again, because a large step cannot settle on a noisy
# gradient.

# %%
names = ("linear", "cosine", "constant_with_warmup")
ax = plot_schedules({name: learning_rates(name, 6, 60) for name in names})

# %% [markdown]
# Steps come from examples: `ceil(examples / batch) · epochs`. "100 warmup steps", copied from a large run into a small
# one, may outlast it. Move the slider.

# %%
explorer = schedule_explorer(warmup=100)
explorer

# %%
for examples in (96, 512):
    explorer.slider.value = examples
    print(explorer.caption)
explorer.slider.value = 96
assert explorer.steps == 60 and explorer.reached < 0.6

# %% [markdown]
# So give warmup as a share of the run; `warmup_steps=0.1` does that in transformers 5. **Predict first:** which is
# worth more, the warmup or the decay?

# %% tags=["hide-input"]
axes = plot_question(study, "warmup")

# %%
print(effects(study, "warmup"))

# %% tags=["hide-input"]
axes = plot_question(study, "schedule")

# %%
print(effects(study, "schedule"))
for name in tasks_of(study, "schedule"):
    constant = variants(name, "schedule")["constant"]
    assert study.gain(constant, usual(name), "test_loss").low > 0  # a higher loss
    none = study.gain(variants(name, "warmup")["0 %"], usual(name), "test_loss")
    assert none.low > -0.03 and none.high < 0.03

# %% [markdown]
# With or without warmup, the loss is the same to within 0.03 nats: the weights are trained already, and the first
# gradients are clipped.
#
# The decay lowers the loss on both tasks, by a few hundredths; exact match cannot tell a decayed rate from a constant
# one. It seemed to: look at the first five seeds alone.

# %%
constant, linear = (variants("chat-96", "schedule")[label] for label in ("constant", "linear"))
gaps = [a - b for a, b in zip(study.ends(constant), study.ends(linear), strict=True)]
first, all_seeds = interval(gaps[:5]), interval(gaps)
print(
    f"constant against linear, chat-96, exact match in percentage points, {len(gaps)} seeds:"
)
print(f"  first five: {first.points}; all: {all_seeds.points}")
assert first.low > 0 > all_seeds.low

# %% [markdown]
# Of twenty 95 % intervals that should hold zero, one does not. So repeat what surprises you, with new seeds, before you
# believe it, and prefer the measure that varies less: the loss.

# %% [markdown]
# ## 6 · Gradient clipping
#
# Clipping scales the whole gradient down to a norm of 1.0. In section 1 it did so in about half of the steps. **Predict
# first:** what happens without it, and what at 0.3, where it does so in nearly all?

# %% tags=["hide-input"]
axes = plot_question(study, "clipping")

# %%
print(effects(study, "clipping"))
for name in tasks_of(study, "clipping"):
    unclipped = variants(name, "clipping")["none"]
    assert study.gain(unclipped, usual(name), "test_exact").high < 0

# %% [markdown]
# Without clipping the model gets fewer answers right on both tasks, though Adam divides by the gradient's size anyway.
# A possible reason: the first gradients are over ten times as long as the last, and beta2 = 0.999 remembers them for
# about a thousand steps, longer than this run, so that later steps are too small. Clipping at 1.0 costs nothing and is
# a default; keep it.

# %% [markdown]
# ## 7 · The optimizer and its groups
#
# SGD needs one moment per weight or none, AdamW two: 8 bytes per parameter in float32. **Predict first:** each at its
# own learning rate, how far does SGD with momentum fall behind AdamW?

# %% tags=["hide-input"]
axes = plot_question(study, "optimizer")

# %%
print(effects(study, "optimizer"))
for name in tasks_of(study, "optimizer"):
    adamw, sgd = variants(name, "optimizer").values()
    assert study.best(sgd) > 10 * study.best(adamw)
    assert study.gain(sgd, adamw, "test_loss").high < 0.05
    assert study.gain(sgd, adamw, "test_exact").mean < 0

# %% [markdown]
# The two measures disagree again: SGD's loss is level or lower, its exact match is lower where there are more
# questions. It comes nearer to AdamW than it would on a large model; "What transfers" says why. And mind the axis:
# SGD's best learning rate is over ten times AdamW's, so at one shared rate you would compare rates.

# %% [markdown]
# ### Decay groups
#
# Weight decay shrinks weights by lr · weight_decay per step. A norm weight or a bias sets a scale or a level and is
# usually spared. `Trainer` builds these groups itself, by names; in your own loop, `decay_groups` does.

# %%
by_trainer = set(Trainer.get_decay_parameter_names(None, model))
decaying, spared = decay_groups(model.named_parameters(), WEIGHT_DECAY)
print(
    f"decay: {len(decaying['params'])} matrices; spared: {len(spared['params'])} biases, norms"
)
assert by_trainer == {name for name, _ in decaying["params"]}
check_decay_groups(model, [decaying, spared])  # each parameter once, no norm or bias decays

clip_pattern = r"bias|ln_.+weight"  # written for a CLIP, whose norms are called ln_1
decaying = groups_by_name(model.named_parameters(), WEIGHT_DECAY, clip_pattern)[0]
wrong = [name for name, _ in decaying["params"] if "norm" in name]
print(f"with {clip_pattern!r}, {len(wrong)} norm weights decay, such as {wrong[0]}")

# %% [markdown]
# A pattern that matches nothing raises no error; `check_decay_groups` looks at the modules' classes and does. How much
# is at stake? Multiply: total shrinkage is about Σ lr · weight_decay.

# %%
for name, peak, decay, count in (
    ("this run", LR, 0.1, 60),
    ("8B, 1,000 steps", 2e-5, 0.1, 1000),
):
    shrunk = sum(learning_rates("linear", count // 10, count, peak)) * decay
    print(f"{name}: weights shrink by {shrunk:.2%} in all, at weight decay {decay}")
    assert shrunk < 0.005
print(effects(study, "weight decay"))

# %% [markdown]
# Multiplied out, a fine-tune decays weights by a few thousandths, so decaying norm weights and biases too changes
# nothing that can be seen. In a pre-training of 100,000 steps it would.

# %% [markdown]
# ### What each setting is worth
#
# The loss of a question's worst variant less that of its best, each at its own learning rate. The first bar is a
# learning rate that is 3 times too high or too low.

# %% tags=["hide-input"]
costs = {name: worth(study, name) for name in EPOCHS}
axes = plot_worth(costs)
for found in costs.values():
    assert min(found["epochs"], found["batch size"], found["learning rate, 3× off"]) > max(
        found[other] for other in ("schedule", "warmup", "weight decay") if other in found
    )

# %% [markdown]
# Spend your runs in this order: learning rate, number of steps (epochs and batch size), and then the rest, which is
# worth a default.

# %% [markdown]
# ## What the sources claim
#
# Four claims are tested on test loss and exact match, averaged over the tasks and paired by seed. Where only one of the
# two measures agrees, the verdict says which. Less than 0.02 nats per token would not be worth a setting. The claim
# about epochs is tested on exact match.


# %% tags=["hide-input"]
def mean_gain(question, better, worse, measure):
    """How much more of a test measure `better` has: by seed, the mean over the tasks."""
    gaps = {}
    tasks = tasks_of(study, question)
    for name in tasks:
        ours, theirs = (
            study.runs(variants(name, question)[label]) for label in (better, worse)
        )
        for seed in ours.keys() & theirs.keys():
            gaps.setdefault(seed, []).append(ours[seed][measure] - theirs[seed][measure])
    return [sum(each) / len(each) for each in gaps.values() if len(each) == len(tasks)]


# %% tags=["hide-input"]
def claim(text, source, question, better, worse):
    gaps = mean_gain(question, worse, better, "test_loss")  # positive where `better` is better
    loss, exact = interval(gaps), interval(mean_gain(question, better, worse, "test_exact"))
    held, only_if = loss, ""
    if (loss.low > 0) != (exact.low > 0):
        held = loss if loss.low > 0 else exact
        only_if = (
            "in loss, not in exact match" if held is loss else "in exact match, not in loss"
        )
    measured = f"{better} against {worse}, {' and '.join(tasks_of(study, question))}: "
    measured += f"loss lower by {in_nats(loss)} nats per token, "
    measured += f"exact match {exact.points} percentage points"
    details = {"seeds": len(gaps), "only_if": only_if, "worthwhile": 0.02}
    added = ledger.add(text, source, held, measured, **details)
    print(f"{added.verdict}: {text}\n    {measured}")


# %% tags=["hide-input"]
longer, usual_run = variants("chat-96", "epochs")["20"], usual("chat-96")
points = study.gain(longer, usual_run, "test_exact")
more = study.gain(longer, usual_run, "test_loss")
assert more.low > 0
added = ledger.add(
    "epochs after the minimum of the held-out loss still improve the answers",
    "Ouyang et al. 2022, InstructGPT",
    points,  # an interval
    f"20 epochs against 10, chat-96: exact match {points.points} percentage points, "
    f"loss {in_nats(more)} nats per token",
    seeds=len(study.ends(longer)),
)

# %% tags=["hide-input"]
claim(
    "Adam needs a warmup, because its first running averages are noisy",
    "Liu et al. 2020, RAdam",
    "warmup",
    "10 %",
    "0 %",
)
claim(
    "a learning rate that decays linearly to zero beats other schedules",
    "Bergsma et al. 2025, for pre-training",
    "schedule",
    "linear",
    "constant",
)
claim(
    "Adam beats gradient descent on language models, whose tokens are heavy-tailed",
    "Kunstner et al. 2024",
    "optimizer",
    "AdamW",
    "SGD",
)
claim("clipping the gradient's norm helps", "Pascanu et al. 2013", "clipping", "1.0", "none")


# %%
def validation_loss(lr: float) -> float:
    """Fine-tune pocket-base on 24 questions for 12 steps; return its validation loss in nats per token."""
    task = load_task("chat-24", SEED, POCKET, validation=True)
    short = [pad(global_batch(task.train, step, 8, SEED), 0) for step in range(12)]
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=lr)
    train(task.model.train(), short, optimizer, get_scheduler("linear", optimizer, 1, 12))
    with torch.no_grad():
        return task.evaluate(task.model.eval(), "validation")["validation_loss"]


# %% [markdown]
# ## Exercise 1 · A sweep that brackets its best
#
# Difficulty ●●○, 8 minutes. Train at the given learning rates; while the best is at an edge, train at one more, a
# factor of 3 beyond it. A diverged run's loss is NaN and counts as worst. The checker then runs your sweep on
# pocket-base, from the defaults' 2e-5 on, in a few seconds. Expected: a dict of losses whose minimum is inside.


# %% tags=["exercise"]
def sweep(validation_loss, learning_rates: list[float]) -> dict[float, float]:
    """Return the loss of each learning rate that was trained, extended until the best is bracketed."""
    ### BEGIN SOLUTION
    losses = {lr: validation_loss(lr) for lr in learning_rates}
    while True:
        finite = {lr: loss for lr, loss in losses.items() if loss < float("inf")}  # NaN is not
        best = min(finite, key=finite.get)
        if min(losses) < best < max(losses):
            return losses
        new = best / 3 if best == min(losses) else best * 3
        losses[new] = validation_loss(new)
    ### END SOLUTION


check_sweep(sweep, validation_loss)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Find the best of what you have. Is it the lowest or the highest rate tried? Then train once more beyond it, and look
# again. `loss < float("inf")` is False for NaN.
#
# </details>

# %% [markdown]
# ## Exercise 2 · Gradient accumulation
#
# Difficulty ●●○, 8 minutes. Leave in `model` the gradient of the mean loss over all unmasked labels of all
# micro-batches, one backward pass each. Expected: the gradient of one large batch. The checker tells you which batch
# you computed instead: the sum, the mean of means, or one that counts masked positions.


# %% tags=["exercise"]
def accumulate(model: nn.Module, micro_batches: list[dict[str, torch.Tensor]]) -> None:
    """`model(input_ids)` returns logits (B, T, V); position t predicts `labels[:, t + 1]`, -100 is masked."""
    ### BEGIN SOLUTION
    total = sum((batch["labels"][:, 1:] != -100).sum() for batch in micro_batches)
    for batch in micro_batches:
        logits, targets = model(batch["input_ids"])[:, :-1], batch["labels"][:, 1:]
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum"
        )
        (loss / total).backward()
    ### END SOLUTION


check_accumulate(accumulate)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Count the labels of all micro-batches before the first backward. `reduction="sum"` leaves the division to you.
#
# </details>

# %% [markdown]
# ## What transfers
#
# Measured here: pocket-base, 1.0 M parameters, width 128, a quarter of them in embedding and head, 60 steps on short
# answers.
#
# | | transfers to 1B to 8B | does not |
# | --- | --- | --- |
# | learning rate | the shape of the curve, and sweeping until bracketed | the value: 1e-3 is far too high |
# | batch size | a larger batch wants a higher rate | its exact ratio |
# | epochs | loss and exact match part ways | the number: 1 to 3 there, because data is plenty |
# | schedule | compare each at its own rate | which one wins in 60 steps |
# | optimizer | one learning rate for both is no comparison | that SGD keeps up |

# %% [markdown]
# Why the toy flatters SGD: large vocabularies are full of rare tokens, whose loss SGD hardly lowers, while Adam
# normalises each weight's gradient (Kunstner et al. 2024). Our vocabulary has 1,024 tokens, and the answers use few of
# them. Do not take SGD to an 8B model because of this figure.

# %% [markdown]
# ## Numbers to take away
#
# From the literature, not measured here:
#
# - Full fine-tuning of 7B to 8B: 2e-5 (Llama 2-Chat) or 5e-6 (Tülu 3); LoRA on all linear layers about ten times full
#   fine-tuning's rate (Schulman et al. 2025).
# - Effective batch 16 to 128; 1 to 3 epochs (Llama 2-Chat: 64, 2 epochs); warmup 3 to 10 %, then linear or cosine
#   decay.
# - Clip at 1.0; weight decay 0 to 0.1; AdamW, beta2 0.999 or 0.95.
#
# Measured here: a learning rate off by a factor of 3 costs more than any other setting.

# %% [markdown]
# ## Recap
#
# - The loop is a dozen lines; every setting is an argument of one of them, or a property of the batches.
# - Sweep the learning rate by factors of 3 until the best has worse neighbours, on validation data; test once.
# - Adam's best rate falls with width, so take no rate from a model of another size.
# - Divide accumulated losses by the labels of all micro-batches.
# - Compare methods at the best rate of each, over seeds, with an interval.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. In what order do clip, step, schedule and zero come, and why is clip before step?
# 2. When has a sweep found the best learning rate?
# 3. Why does Adam's best learning rate fall with the model's width?
# 4. Four micro-batches have 10, 10, 10 and 2 labels. What is wrong with the mean of their means?
# 5. Why choose on validation data and report on test data?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: backward, clip, step, schedule, zero; clipping after the step would change nothing.
# - 2: when the rates on both sides of it, within a factor of 3, are worse.
# - 3: every weight moves by about the learning rate, and an output sums over the width.
# - 4: a label of the last counts five times as much as one of the others.
# - 5: the best of several noisy scores is partly luck, and new data do not share it.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Loshchilov and Hutter, [Decoupled Weight Decay Regularization](https://arxiv.org/abs/1711.05101), 2019.
# - Yang et al., [Tensor Programs V](https://arxiv.org/abs/2203.03466), 2022: μP, learning rates across widths.
# - Malladi et al., [On the SDEs and Scaling Rules for Adaptive Gradient Algorithms](https://arxiv.org/abs/2205.10287),
#   2022.
# - Liu et al., [On the Variance of the Adaptive Learning Rate and Beyond](https://arxiv.org/abs/1908.03265), 2020.
# - Kalra and Barkeshli, [Why Warmup the Learning Rate?](https://arxiv.org/abs/2406.09405), 2024.
# - Bergsma et al., [Straight to Zero](https://arxiv.org/abs/2502.15938), 2025: linear decay.
# - Pascanu et al., [On the difficulty of training recurrent neural networks](https://arxiv.org/abs/1211.5063), 2013:
#   clipping.
# - Kunstner et al., [Heavy-Tailed Class Imbalance](https://arxiv.org/abs/2402.19449), 2024: Adam against gradient
#   descent.
# - Ouyang et al., [InstructGPT](https://arxiv.org/abs/2203.02155), 2022: epochs beyond the minimum of the validation
#   loss.
# - Touvron et al., [Llama 2](https://arxiv.org/abs/2307.09288), 2023; Lambert et al., [Tülu
#   3](https://arxiv.org/abs/2411.15124), 2024: published recipes.
# - Schulman et al., [LoRA Without Regret](https://thinkingmachines.ai/blog/lora/), 2025.
#
# ## Next
#
# [07_overfit_one_batch](07_overfit_one_batch.ipynb): before a long run, memorise one batch.
