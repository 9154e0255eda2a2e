# %% [markdown]
# # 06 · Optimizer and schedule
#
# You write a training loop and measure what each of its settings is worth: learning rate, effective batch size,
# epochs, warmup, schedule, clipping, optimizer, weight decay.
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
    plot_learning_rates,
    plot_question,
    plot_real_learning_rates,
)
from ftcourse.explorers.schedules import learning_rates, plot_schedules, schedule_explorer
from ftcourse.intervals import interval
from ftcourse.plots import OKABE_ITO, new_axes, use_course_style
from ftcourse.studies.bracketing import SEEDS, BracketedStudy, best_learning_rate
from ftcourse.studies.recipe import BRACKETED, EPOCHS, EVERYTHING, Trial, usual, variants
from ftcourse.studies.tasks import load_task
from torch import nn
from transformers import get_scheduler

from ftkit import load_base
from ftkit.batching import global_batch, pad
from ftkit.models import data_dir
from ftkit.parameters import check_decay_groups, decay_groups, groups_by_name

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # as in the stored runs
print(f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}")

# %%
POCKET = data_dir() / "pocket-base"
LR, BATCH_SIZE, WARMUP, WEIGHT_DECAY = 1e-3, 16, 0.1, 0.01  # of the usual run
SEED = 0  # of the live run's examples and their order
ledger = Ledger("learning rate and optimizer")
study = BracketedStudy.read(BRACKETED, Trial)
print(f"{len(study.records)} stored runs of {len(study.methods)} methods")

# %% [markdown]
# The figures come from stored runs of pocket-base, 1.1 M parameters, on two tasks: **chat-96** is 96 questions seen ten
# times, **chat-500** is 500 questions seen twice. Both are about 60 steps of 16 examples. Exact match is the fraction of
# new questions whose whole answer, end of turn included, is right.
#
# `python -m ftcourse.studies.recipe` makes the runs again.

# %% [markdown]
# Every method gets its own learning rate. It is chosen on *validation* questions with two seeds, and the grid is extended
# until the best rate has worse ones within a factor of 3 on both sides. Then five other seeds run at that rate and are
# scored on *test* questions, which no choice has seen. Differences are paired by seed; brackets hold 95 % intervals.

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
print(f"in the loss: {int((labels != -100).sum())} tokens of {int(batches[0]['attention_mask'].sum())}")

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
# **Predict first.** Clipping at 1.0 shortens every gradient whose norm is above 1. In how many of the 60 steps will it do
# something: a few, half, nearly all?

# %% tags=["nbval-ignore-output"]
groups = decay_groups(task.model.named_parameters(), WEIGHT_DECAY)  # section 7
optimizer = torch.optim.AdamW(groups, lr=LR)
scheduler = get_scheduler("linear", optimizer, round(WARMUP * steps), steps)
history = train(task.model.train(), batches, optimizer, scheduler)
losses, norms = zip(*history, strict=True)
figure, axes = new_axes(8.5, 2.4, columns=2)
for ax, values, label in zip(axes, (losses, norms), ("loss (nats/token)", "gradient norm"), strict=True):
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
from transformers import TrainingArguments
from trl import SFTConfig

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
# A best rate at the edge of its grid has not been found; the true best may be far outside. The fix is to go on by factors
# of 3 until the curve turns down.

# %%
axes = plot_defaults(study)

# %%
for name in EPOCHS:
    curve = study.curve(usual(name))
    best = best_learning_rate(study.records, usual(name))
    scores = {lr: 100 * sum(values) / len(values) for lr, values in curve.items()}
    print(f"{name}: best {best:g} with {scores[best]:.0f} % exact match on validation;", end=" ")
    print(", ".join(f"{lr:g}: {score:.0f} %" for lr, score in scores.items() if lr != best))
    assert scores[best] > 10 + max(score for lr, score in scores.items() if lr < 1.2e-4)

# %% [markdown]
# Both defaults lie where this model has learned next to nothing after 60 steps, and one factor of 3 above the best costs
# more than most settings below. In steps of 10, a sweep would miss the peak.

# %% [markdown]
# ### Why 1e-3 here, and 1e-5 for 8B?
#
# AdamW divides each gradient entry by its own running size, so every weight moves by about the learning rate, however
# large the model is. An output sums as many of these moves as the layer is wide, and they pull in one direction. **Predict
# first:** by how much does one step at 1e-3 change the output of a layer of width 128? Of width 4,096, as in an 8B model?

# %%
moved = {}
for width in (128, 576, 4096):  # pocket-base, SmolLM2-135M, Llama 3 8B
    torch.manual_seed(0)
    layer, x = nn.Linear(width, width, bias=False), torch.randn(1, width)
    nn.init.normal_(layer.weight, std=width**-0.5)  # outputs as large as inputs
    before = layer(x).detach()
    layer(x).sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0).step()
    moved[width] = float((layer(x) - before).norm() / before.norm())
    print(f"width {width:5}: one step at 1e-3 moves the output by {moved[width]:.1f} times its size")
assert moved[4096] / moved[128] == torch.tensor(32.0).item() or 25 < moved[4096] / moved[128] < 40

# %% [markdown]
# Thirty-two times the width, thirty-two times the change: at 1e-3, a single step would replace every activation of the
# large model three times over. So the best rate of Adam falls about as 1 / width (Yang et al. 2022, μP), and 1e-3 at width
# 128 corresponds to about 3e-5 at 4,096.

# %% [markdown]
# ### The same curve on a real model
#
# SmolLM2-135M-Instruct, 576 wide, learns to write function calls for requests (notebook 08 has the data). Its weights
# were dequantised from four bits. `python -m experiments.real_model.study` makes these runs.

# %%
drawn = plot_real_learning_rates()

# %% [markdown]
# ## 3 · Effective batch size
#
# The effective batch is what one optimizer step averages over: examples per device × devices × accumulation steps. At equal
# epochs a batch four times as large makes a quarter of the steps. **Predict first:** is 4, 16 or 64 best, and which wants the
# highest learning rate?

# %% tags=["hide-input"]
axes = plot_question(study, "batch size")

# %%
print(effects(study, "batch size"))

# %% [markdown]
# «batch outcome»

# %% [markdown]
# ## 4 · Epochs
#
# An epoch shows every example once. With few examples you repeat them. **Predict first:** twice as many epochs cost twice
# as much. Do they pay, on 96 questions and on 500? Watch exact match and loss apart.

# %% tags=["hide-input"]
axes = plot_question(study, "epochs")

# %%
print(effects(study, "epochs"))

# %% [markdown]
# «epochs outcome»

# %% [markdown]
# ## 5 · Warmup and schedule
#
# Adam's first steps are its worst informed, because its running averages rest on a batch or two. **Warmup** keeps them small.
# A linear or cosine **decay** makes the last ones small again, because a large step cannot settle on a noisy gradient.

# %%
names = ("linear", "cosine", "constant_with_warmup")
ax = plot_schedules({name: learning_rates(name, 6, 60) for name in names})

# %% [markdown]
# Steps come from examples: `ceil(examples / batch) · epochs`. "100 warmup steps", copied from a large run into a small one,
# may outlast it. Move the slider.

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
# So give warmup as a share of the run; `warmup_steps=0.1` does that in transformers 5. **Predict first:** which is worth
# more, the warmup or the decay?

# %% tags=["hide-input"]
axes = plot_question(study, "warmup")

# %%
print(effects(study, "warmup"))

# %% tags=["hide-input"]
axes = plot_question(study, "schedule")

# %%
print(effects(study, "schedule"))

# %% [markdown]
# «schedule outcome»
