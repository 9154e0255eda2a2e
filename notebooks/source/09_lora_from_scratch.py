# %% [markdown]
# # 09 · LoRA from scratch
#
# You write LoRA as a module of a dozen lines, measure why its B starts at zero and how much rank a fine-tune needs,
# merge it, and choose target modules, rank and learning rates for a model of your own.
#
# - **Prerequisites:** [08_full_fine_tune](08_full_fine_tune.ipynb); matrix products.
# - **Hardware:** any processor; one core is enough.
# - **Time:** about 45 minutes with the exercises; its cells run in under a minute on one core.

# %% [markdown]
# ## You will be able to
#
# - **read** LoRA as a module, and count what it trains,
# - **explain** why B starts at zero and A at random, and not the other way round,
# - **measure** how much of a fine-tune's ΔW a given rank holds,
# - **merge** an adapter into its base, and verify the merged model,
# - **choose** target modules, rank, lora_alpha and a learning rate for each kind of parameter.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import copy
import json
import statistics
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import peft
import torch

# %% tags=["hide-input"]
from ftcourse.almanac import corpus
from ftcourse.bars import Bar
from ftcourse.claims import Ledger
from ftcourse.exercises.lora import check_factor, check_merge, check_rate_ratio
from ftcourse.expected import expected_error
from ftcourse.explorers.adapter_family import in_units, plot_gains, results
from ftcourse.explorers.lora_rank import (
    RankExplorer,
    explained_variance,
    plot_schematic,
    plot_singular_values,
    plot_starts,
    random_like,
)
from ftcourse.plots import new_axes, plot_matrix, use_course_style
from ftcourse.studies import trade_off
from ftcourse.studies.tasks import BATCH_SIZE, WEIGHT_DECAY, load_task, training_steps
from ftcourse.studies.trade_off import trial
from safetensors.torch import load_file
from torch import nn
from transformers.utils import logging

from ftkit import load_base, load_chat
from ftkit.adapters import MergeError, attach, make_optimizer, merge_and_verify, save_adapter
from ftkit.batching import pad, steps_per_epoch
from ftkit.chat import end_of_turn_id
from ftkit.conversations import encode
from ftkit.evaluate import generate_answers, stop_rate
from ftkit.models import data_dir
from ftkit.parameters import count_parameters, decay_groups

# %% tags=["nbval-ignore-output"]
use_course_style()
logging.disable_progress_bar()
torch.set_num_threads(1)  # as in the stored runs
warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing", FutureWarning)  # names change
print(f"torch {torch.__version__}, peft {peft.__version__}, device: cpu (a small model)")

# %%
R, LORA_ALPHA = 8, 16  # rank, and the numerator of the scale 16 / 8
SEED = 0  # of random matrices and of the live runs
FULL_LR, FULL_EPOCHS = 1e-3, 4  # of the full fine-tune in section 3: 52 steps of 16 examples
RANKS = (1, 2, 4, 8, 16, 64, 128)  # tried in section 3; 128 is full rank
POCKET = data_dir() / "pocket-base"  # this course's model of a million parameters
ledger = Ledger("LoRA and its relatives")  # the claims tested here; the recap shows them

# %% [markdown]
# ## 1 · Low-rank factors beside a frozen matrix
#
# Full fine-tuning adds some $\Delta W$ to each matrix $W$ (out × in). **LoRA**, low-rank adaptation (Hu et al. 2021),
# freezes $W$ and trains $\Delta W$ as a product of two low-rank factors, $B$ (out × r) and $A$ (r × in), which PEFT
# calls `lora_B` and `lora_A`; $\alpha$ is its `lora_alpha`:
#
# $$W + \frac{\alpha}{r}\, B A$$

# %% tags=["hide-input"]
_ = plot_schematic(width=128, r=R)

# %% [markdown]
# The figure is to scale for a matrix of pocket-base, with 128 rows and columns. Here is LoRA as a module beside any
# `nn.Linear`. `forward` multiplies `x` by A first and by B then, so no out × in product is formed.


# %%
class LoRALinear(nn.Module):
    """A frozen linear layer with low-rank factors beside it."""

    def __init__(self, base: nn.Linear, r: int, lora_alpha: float):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(r, base.in_features) / base.in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r))
        self.scale = lora_alpha / r

    def forward(self, x):  # (batch, in) -> (batch, out)
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T * self.scale

    def delta(self):  # ΔW, (out, in)
        return self.scale * self.lora_B @ self.lora_A


# %%
torch.manual_seed(SEED)
base = nn.Linear(6, 4)
lora = LoRALinear(base, r=1, lora_alpha=1)
x = torch.randn(64, 6)
print(f"lora_B = 0: outputs differ from the base's by {(lora(x) - base(x)).abs().max():.1f}")
with torch.no_grad():
    lora.lora_B.copy_(torch.tensor([[1.0], [-0.5], [0.25], [2.0]]))
rank = torch.linalg.matrix_rank(lora.delta()).item()
print(f"another lora_B: by {(lora(x) - base(x)).abs().max():.1f}, and ΔW has rank {rank}")
assert rank == 1

# %%
_, axes = new_axes(9, 2.6, columns=3)
plot_matrix(lora.lora_B, title="lora_B (4 × 1)", limit=3, ax=axes[0])
plot_matrix(lora.lora_A, title="lora_A (1 × 6)", limit=3, ax=axes[1])
ax = plot_matrix(lora.delta(), title="lora_B @ lora_A (4 × 6)", limit=3, ax=axes[2])

# %% [markdown]
# At r = 1 every row of ΔW is a multiple of the one row of `lora_A`. At rank r, the rows are mixtures of r rows.
#
# **Predict first:** how many parameters train beside a matrix of 1,000 × 1,000 at r = 8?

# %%
wide = LoRALinear(nn.Linear(1000, 1000, bias=False), r=8, lora_alpha=16)
count = count_parameters(wide)
frozen = count.total - count.trainable
print(f"{frozen:,} frozen, {count.trainable:,} trainable: {count.trainable / frozen:.1%}")
assert count.trainable == 8 * (1000 + 1000) and frozen == 1_000_000

# %% [markdown]
# 8 rows of 1,000 and 8 columns of 1,000. Only these have gradients and AdamW's moments. The frozen million still takes
# part in every product, so LoRA saves memory far more than time.

# %% [markdown]
# ### What rank 8 means at another width
#
# The same r is a large part of a narrow matrix and a small part of a wide one:

# %%
print("           width   r = 8 is    trains beside W   6.25 % of full rank is")
for name, width in (("pocket-base", 128), ("SmolLM2-135M", 576), ("Llama 3 8B", 4096)):
    print(
        f"{name:12} {width:5}   {8 / width:7.2%}   {2 * 8 / width:16.2%}   r = {width // 16}"
    )

# %% [markdown]
# Relative to full rank, r = 8 on pocket-base corresponds to r = 256 on Llama 3 8B. So measurements on pocket-base do
# not say which r an 8B model needs; "Numbers to take away" quotes those who measured it.

# %% [markdown]
# ## 2 · Which of the two starts at zero
#
# Train the layer to produce another layer's outputs. With `G` the gradient that `W` itself would get, the chain rule
# gives
#
# `lora_A.grad = scale * lora_B.T @ G` and `lora_B.grad = scale * G @ lora_A.T`.
#
# **Predict first:** at the first step, which of the two is zero?

# %%
target = base(x).detach() + x @ torch.randn(6, 4)  # another layer's outputs


def fit(lora, optimizer, steps):
    """Train on the toy batch; the loss of each step, before it is taken."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(lora(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %%
def fresh(lora_alpha=4.0, r=2):
    torch.manual_seed(SEED)
    return LoRALinear(base, r, lora_alpha)


lora = fresh()
optimizer = torch.optim.SGD(lora.parameters(), lr=0.01)
norms = {}
for step in (1, 2):
    fit(lora, optimizer, steps=1)
    norms[step] = lora.lora_A.grad.norm().item(), lora.lora_B.grad.norm().item()
    print(f"step {step}: gradient norm of A {norms[step][0]:.2f}, of B {norms[step][1]:.1f}")
assert norms[1][0] == 0 < min(norms[1][1], *norms[2])

# %% [markdown]
# A waits for one step, until B is no longer zero. Then both learn. Now try all four starts:

# %%
found = {}
print("A       B       outputs move by   loss after 200 steps")
for start_A, start_B in ((0, 0), (0, 1), (1, 0), (1, 1)):
    lora = fresh()
    lora.lora_A.data *= start_A
    lora.lora_B.data += start_B * torch.randn(4, 2)
    moved = (lora(x) - base(x)).norm() / base(x).norm()
    losses = fit(lora, torch.optim.Adam(lora.parameters(), lr=0.01), steps=200)
    found[start_A, start_B] = moved.item(), losses[-1] / losses[0]
    names = [("zero", "random")[start] for start in (start_A, start_B)]
    print(
        f"{names[0]:8}{names[1]:8}{moved:15.0%}   {losses[-1] / losses[0]:7.0%} of the first"
    )
assert found[0, 0] == (0, 1) and found[1, 1][0] > 0.5
assert all(found[start][0] == 0 and found[start][1] < 0.9 for start in ((0, 1), (1, 0)))

# %% [markdown]
# Exactly one must be zero. With both at zero nothing ever trains, because each gradient is a product with the other
# factor. With neither, the model starts out changed: outputs move by four times their own size, and the last row's 4 %
# are of a higher first loss than the others'.
#
# At this width of 6, both starts with one zero learn equally well. **Predict first:** at larger widths, does it matter
# which of the two is zero?

# %% [markdown]
# ### The same at larger widths
#
# Adam changes every entry by about the learning rate. At a layer with n inputs, `A @ x` sums n such changes, and `B @
# (A @ x)` only r. So how large may the learning rate be, as n grows? We train with rates a factor of 2 apart, and call
# one stable if the loss ends below 0.9 of its start.


# %%
def final_loss(width, lr, start, r=4, steps=50):
    """Fit a random rank-r ΔW of a frozen layer by Adam; the loss after training / before."""
    draw = torch.Generator().manual_seed(SEED)
    x = torch.randn(32, width, generator=draw)
    y = x @ torch.randn(width, r, generator=draw) @ torch.randn(r, width, generator=draw)
    y /= y.std()
    A, B = torch.zeros(r, width), torch.zeros(width, r)
    random, size = (A, width**-0.5) if start == "A random, B = 0" else (B, r**-0.5)
    random.copy_(torch.randn(random.shape, generator=draw) * size)
    optimizer = torch.optim.Adam([A.requires_grad_(), B.requires_grad_()], lr=lr)
    for _ in range(steps):
        loss = (x @ A.T @ B.T - y).square().mean()  # the frozen W cancels
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (x @ A.T @ B.T - y).square().mean().item()


# %%
STARTS, WIDTHS = ("A random, B = 0", "A = 0, B random"), (64, 256, 1024)
LEARNING_RATES = [2.0**k for k in range(-12, 2)]
curves = {
    start: {n: {lr: final_loss(n, lr, start) for lr in LEARNING_RATES} for n in WIDTHS}
    for start in STARTS
}
_ = plot_starts(curves)

# %%
stable = {}
for start in STARTS:
    for n in WIDTHS:
        stable[start, n] = max(lr for lr, loss in curves[start][n].items() if loss < 0.9)
    listed = ", ".join(f"{stable[start, n]:.2g} at width {n:,}" for n in WIDTHS)
    print(f"{start}: highest stable learning rate {listed}")
shrink = {start: stable[start, 64] / stable[start, 1024] for start in STARTS}
print(
    f"from width 64 to 1,024 it falls {shrink[STARTS[0]]:.0f}-fold and {shrink[STARTS[1]]:.0f}-fold"
)
assert all(stable[STARTS[0], n] > stable[STARTS[1], n] for n in WIDTHS[1:])
assert shrink == {STARTS[0]: 4, STARTS[1]: 16}

# %% [markdown]
# So the choice matters. With B = 0 and A random, larger learning rates are stable, and the advantage grows with the
# width: at sixteen times the width the highest stable rate is 4 times lower, as $1/\sqrt{n}$, against 16 times, as
# $1/n$. That is what theory predicts (Hayou et al. 2024, *The Impact of Initialization*), and PEFT starts linear layers
# in this way.
#
# Now pocket-base: stored runs of both starts, each at its own learning rate.

# %% [markdown]
# **How the stored runs were made.** 96 questions, ten epochs, 60 steps (`chat-96`). The learning rate of each method is
# the best on *validation* questions, with worse ones a factor of 3 below and above. Five other seeds are then tested on
# other questions. `facts kept` is the share of pretraining facts that the model still answers. Differences are paired
# by seed; parentheses hold 95 % intervals (`python -m ftcourse.studies.trade_off`).

# %%
study = trade_off.read()
print(results(study, [trade_off.LORA, trade_off.ZERO_A]))
gains = {
    measure: study.gain(trial(trade_off.LORA), trial(trade_off.ZERO_A), measure)
    for measure in ("test_exact", "test_loss")
}
for measure, label in (("test_exact", "exact match"), ("test_loss", "loss")):
    unit = "percentage points" if label == "exact match" else "nats per token"
    print(f"B = 0 less A = 0: {label} {in_units(gains[measure], measure)} {unit}")

# %% tags=["hide-input"]
rates = [study.best(trial(name)) for name in (trade_off.LORA, trade_off.ZERO_A)]
assert rates[0] > 2 * rates[1] and gains["test_exact"].low < 0 < gains["test_exact"].high
_ = ledger.add(
    "B = 0 with A random allows larger learning rates than A = 0 with B random",
    "Hayou et al. 2024, The Impact of Initialization",
    rates[0] > rates[1] and shrink[STARTS[0]] < shrink[STARTS[1]],
    f"best learning rate {rates[0]:g} against {rates[1]:g}; highest stable one of a toy layer, from width 64 to 1,024, "
    f"{shrink[STARTS[0]]:.0f} times lower against {shrink[STARTS[1]]:.0f} times",
    seeds=2,
)
_ = ledger.add(
    "LoRA learns better from B = 0 with A random than from A = 0 with B random",
    "Hayou et al. 2024, The Impact of Initialization",
    gains["test_exact"],  # an interval
    f"each at its own learning rate: exact match {gains['test_exact'].points} percentage points, "
    f"loss {in_units(gains['test_loss'], 'test_loss')} nats per token",
    seeds=len(study.ends(trial(trade_off.LORA))),
    worthwhile=0.02,
)

# %% [markdown]
# At this width of 128 the best learning rate from B = 0 is three times that from A = 0. Each at its own, five seeds
# cannot tell the exact match of the two starts apart. A shared learning rate decides which of them looks better:

# %%
starts = (trade_off.LORA, trade_off.ZERO_A)
for lr in rates[::-1]:
    exact = [statistics.fmean(study.curve(trial(name))[lr]) for name in starts]
    print(f"at {lr:g}: B = 0 {exact[0]:.0%}, A = 0 {exact[1]:.0%} of the validation questions")

# %% [markdown]
# ### What lora_alpha does
#
# The scale multiplies ΔW, and in the backward pass the gradient as well. **Predict first:** with twice the
# `lora_alpha`, how many times as large is the first step's ΔW with SGD, and with Adam, which divides by the gradient's
# size?


# %%
def delta_after(optimizer, steps=1, lora_alpha=4.0, lr=1e-3, start=1.0):
    lora = fresh(lora_alpha)
    lora.lora_A.data *= start
    fit(lora, optimizer([lora.lora_A, lora.lora_B], lr=lr), steps)
    return lora.delta().detach()


times = {}
for optimizer in (torch.optim.SGD, torch.optim.Adam):
    plain = delta_after(optimizer).norm()
    alpha = (delta_after(optimizer, lora_alpha=8.0).norm() / plain).item()
    rate = (delta_after(optimizer, lr=2e-3).norm() / plain).item()
    times[optimizer.__name__] = (round(alpha, 2), round(rate, 2))
    print(f"{optimizer.__name__:5} twice lora_alpha: {alpha:.2f} times; twice lr: {rate:.2f}")
assert times == {"SGD": (4.0, 2.0), "Adam": (2.0, 2.0)}

# %%
by_alpha = delta_after(torch.optim.Adam, 200, lora_alpha=8.0)
by_rate = delta_after(torch.optim.Adam, 200, lr=2e-3)
root = 2**0.5
by_both = delta_after(torch.optim.Adam, 200, lr=root * 1e-3, start=root)
apart = [((other - by_alpha).norm() / by_alpha.norm()).item() for other in (by_rate, by_both)]
print(f"after 200 steps, twice lr differs from twice lora_alpha by {apart[0]:.0%} of ΔW")
print(f"√2 times lr, from an A that is √2 times as large, by {apart[1]:.0%}")
assert apart[0] > 0.1 and apart[1] < 1e-4

# %% tags=["hide-input"]
_ = ledger.add(
    "with Adam, tuning lora_alpha is tuning the learning rate, if the start is scaled too",
    "Hu et al. 2021, LoRA",
    apart[1] < 1e-4,
    f"ΔW after 200 steps differs by {apart[1]:.0%}, without scaling the start by {apart[0]:.0%}",
    model="one layer of 6 × 4",
)

# %% [markdown]
# At Adam's first step both have the same effect. Later they differ, because twice the learning rate also changes A
# twice as fast. So tune one of the two: fix `lora_alpha`, and sweep the learning rate.
#
# The scale `lora_alpha / r` also falls as r grows. Measure ΔW after one step of Adam, at a fixed learning rate:


# %%
def first_step(r, rslora, width=256):
    """Size of ΔW after one step of Adam from B = 0, lora_alpha = 16."""
    draw = torch.Generator().manual_seed(SEED)
    A = torch.randn(r, width, generator=draw) / width**0.5
    B = 1e-3 * torch.randn(width, r, generator=draw).sign()  # what Adam does: ± the rate
    return ((LORA_ALPHA / (r**0.5 if rslora else r)) * B @ A).norm().item()


print("r        lora_alpha / r   lora_alpha / √r")
for r in (8, 32, 128):
    parts = [first_step(r, rslora) / first_step(8, rslora) for rslora in (False, True)]
    print(f"{r:3} {parts[0]:15.2f} {parts[1]:17.2f}   times ΔW at r = 8")
    assert abs(parts[0] - (8 / r) ** 0.5) < 0.03 and abs(parts[1] - 1) < 0.05

# %% [markdown]
# With `lora_alpha / r`, the first step at sixteen times the rank is a quarter as large. **Rank-stabilised** LoRA,
# rsLoRA, divides by $\sqrt{r}$ instead, so that the step does not depend on r (Kalajdzievski 2023; `use_rslora=True` in
# PEFT). Use it, or scale `lora_alpha` with r, when you compare ranks at one learning rate.

# %% [markdown]
# ## 3 · How much rank does a fine-tune need?
#
# LoRA assumes that ΔW is nearly of low rank. Look at the ΔW of full fine-tuning: train all of pocket-base on 200
# conversations, and subtract the weights before from those after.


# %%
def train(task, optimizer, label):
    """Train for the task's epochs, under a bar; the loss of each step."""
    steps = task.epochs * steps_per_epoch(task.train, BATCH_SIZE)
    return list(
        Bar(training_steps(task, optimizer, SEED), desc=label, total=steps, unit="steps")
    )


task = replace(load_task("chat-200", SEED, POCKET), epochs=FULL_EPOCHS)
tuned = attach(task.model, "full")
before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
optimizer = make_optimizer(tuned, "full", FULL_LR, weight_decay=WEIGHT_DECAY)

# %% tags=["nbval-ignore-output"]
losses = train(task, optimizer, "full fine-tune")
print(f"loss {losses[0]:.2f} at the first step, {losses[-1]:.2f} at the last (nats per token)")

# %% [markdown]
# The **singular value decomposition** writes a matrix as a sum of rank-1 matrices, the largest first. The sum of the
# first r is the nearest matrix of rank r. Its share of the sum of all squared singular values is the **explained
# variance**.

# %%
change = {name: p.detach() - before[name] for name, p in tuned.named_parameters()}
matrices = [name for name, each in change.items() if "layers" in name and each.ndim == 2]
parts = {name: torch.linalg.svd(change[name], full_matrices=False) for name in matrices}
shares = [explained_variance(parts[name].S, R) for name in matrices]
noise = [explained_variance(random_like(change[name]), R) for name in matrices]
share = statistics.median(shares)
print(f"{len(matrices)} matrices; variance explained at r = {R}, median:")
print(f"ΔW {share:.1f}, random matrices of the same shapes {statistics.median(noise):.1f}")
assert len(matrices) == 28 and share > 0.5 and statistics.median(noise) < 0.3

# %% [markdown]
# Eight of 128 directions explain most of ΔW, but not all of it. Is the rest needed? Truncate every ΔW to rank r, add it
# to the base, and evaluate on held-out questions. All else (embedding, LM head, norms, biases) keeps its change.
# **Predict first:** from which r on is the loss that of the full ΔW?


# %%
@torch.no_grad()
def truncate(r, others=True):
    """Base + ΔW truncated to rank r in each matrix; `others`: all else changes too."""
    for name, weight in tuned.named_parameters():
        if name in parts:
            U, S, V = parts[name]
            weight.copy_(before[name] + U[:, :r] * S[:r] @ V[:r])
        else:
            weight.copy_(before[name] + others * change[name])
    return tuned.eval()


with torch.no_grad():
    truncated = {r: task.evaluate(truncate(r)) for r in RANKS}
    alone = task.evaluate(truncate(RANKS[-1], others=False))
losses = {r: found["test_loss"] for r, found in truncated.items()}

# %% tags=["nbval-ignore-output"]
for r, found in truncated.items():
    exact = found["test_exact"]
    print(
        f"r = {r:3}, {r / 128:6.1%} of full rank: loss {losses[r]:.2f}, exact match {exact:4.0%}"
    )
print(f"full ΔW of the matrices, nothing else changed: loss {alone['test_loss']:.2f}")
axes = plot_singular_values(change[matrices[0]], losses, R, name="block 0, q_proj: ΔW")

# %%
lost = {r: losses[r] - losses[RANKS[-1]] for r in RANKS}  # nats per token
gap = alone["test_loss"] - losses[RANKS[-1]]
assert lost[1] > 0.3 and lost[8] < 0.1 and lost[16] < 0.05 and gap > 0.3

# %% tags=["hide-input"]
_ = ledger.add(
    "the ΔW of a fine-tune has a low intrinsic rank: truncated to it, it does as well",
    "Hu et al. 2021, after Aghajanyan et al. 2020",
    share > 0.5 and lost[8] < 0.1,
    f"truncated to r = {R}, {R / 128:.1%} of full rank: loss on new questions less than 0.1 nats per token higher",
    seeds=1,
    only_if="with the full change of embeddings, norms and biases",
)

# %% [markdown]
# At r = 16 hardly anything is lost; r = 8 costs little loss and some right answers; r = 1 is too little. Without the
# change of embedding, LM head, norms and biases, even the full ΔW of the matrices is about as bad as r = 1.

# %% [markdown]
# Truncation after training shows that a low rank *can* suffice, not that training finds it. Biderman et al. 2024 find a
# far higher rank in the ΔW of Llama-2-7B, trained on code and mathematics: 10 to 100 times that of usual LoRA.
#
# Move the rank, and choose another matrix:

# %% tags=["nbval-ignore-output"]
short = {f"block {n.split('.')[2]} {n.split('.')[4]}": change[n] for n in matrices}
explorer = RankExplorer(short, losses)
explorer

# %%
explorer.slider.value, less = R, explorer.explained
explorer.menu.value = "block 3 down_proj"  # of whose ΔW rank 8 explains more
assert explorer.explained > less and "at rank 8" in explorer.picture.value

# %% [markdown]
# ### Exercise 1 · factors from ΔW
#
# Difficulty ●●○, 7 minutes. Turn a ΔW into an adapter: return `lora_A` (r × in) and `lora_B` (out × r) so that
# `lora_alpha / r * lora_B @ lora_A` is the nearest matrix of rank r. Expected: the checker's 7 × 5 matrix, truncated to
# rank 2.


# %% tags=["exercise"]
def factor(
    delta: torch.Tensor, r: int, lora_alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(lora_A, lora_B) of ΔW (out, in)."""
    ### BEGIN SOLUTION
    U, S, V = torch.linalg.svd(delta, full_matrices=False)
    return V[:r], U[:, :r] * S[:r] / (lora_alpha / r)
    ### END SOLUTION


check_factor(factor)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `U, S, V = torch.linalg.svd(delta, full_matrices=False)`, and `U[:, :r] * S[:r] @ V[:r]` is the truncated matrix.
# Which of its factors takes the place of which, and what does the layer multiply with afterwards?
#
# </details>

# %% [markdown]
# ## 4 · Merge and unmerge
#
# The factors cost two more matrix products in each forward pass. **Merging** adds ΔW to `W` once, and the layer is as
# fast as before. Try it on a matrix of pocket-base, with a `lora_B` about as large as a trained one.

# %%
model, tokenizer = load_base(POCKET)
q_proj = model.model.layers[0].self_attn.q_proj
W = q_proj.weight.detach().clone()
torch.manual_seed(SEED)
mine = LoRALinear(q_proj, R, LORA_ALPHA)
nn.init.normal_(mine.lora_B, std=0.02)
hidden = torch.randn(32, q_proj.in_features)


# %%
@torch.no_grad()
def merged_error(dtype, scale):
    """Largest difference in the outputs, in units of the dtype's smallest step at 1."""
    pair, inputs = copy.deepcopy(mine).to(dtype), hidden.to(dtype)
    weight = pair.base.weight + scale * pair.lora_B @ pair.lora_A
    merged = nn.functional.linear(inputs, weight, pair.base.bias)
    return ((merged - pair(inputs)).abs().max() / torch.finfo(dtype).eps).item()


# %% [markdown]
# Merged and unmerged layers sum the same products in another order. Each output is a sum of 128 products, so some ten
# units of rounding are expected. We allow 1,000; a scale that is wrong by 1 % is off by far more in both precisions.

# %% tags=["nbval-ignore-output"]
errors = {
    dtype: [merged_error(dtype, factor * mine.scale) for factor in (1, 1.01)]
    for dtype in (torch.float32, torch.float64)
}
for dtype, (right, wrong) in errors.items():
    print(
        f"{dtype}: merged off by {right:.0f} units of rounding; scale off by 1 %: {wrong:.0e}"
    )

# %%
assert all(right < 1000 < wrong for right, wrong in errors.values())
there_and_back = W + mine.delta().detach() - mine.delta().detach()
same = (there_and_back == W).float().mean().item()
off = ((there_and_back - W).abs().max() / torch.finfo(W.dtype).eps).item()
largest = (W.abs().max() + mine.delta().abs().max()).item()
print(
    "ΔW added and subtracted again: more than half of the entries are bitwise as before, not all"
)
assert 0.5 < same < 1 and off <= largest and torch.equal(q_proj.weight, W)

# %% tags=["hide-input"]
_ = ledger.add(
    "subtracting ΔW from the merged weights recovers the base weights",
    "Hu et al. 2021, LoRA",
    off <= largest,
    "float32, 128 × 128: off by rounding; more than half of the entries bitwise equal",
    only_if="up to rounding, not bitwise",
)

# %% [markdown]
# `W + ΔW` is rounded, and no subtraction brings the lost bits back. Keep a copy of the base, or leave the adapter
# unmerged.

# %% [markdown]
# ### Exercise 2 · merge at a lower precision
#
# Difficulty ●●○, 5 minutes. Large bases are stored in bfloat16, which has 8 bits of precision, and adapters in float32.
# Add in float32 and round **once**. Expected: a new tensor in `W`'s dtype.


# %% tags=["exercise"]
def merge(
    W: torch.Tensor, A: torch.Tensor, B: torch.Tensor, lora_alpha: float, r: int
) -> torch.Tensor:
    """The merged weight (out, in), in W's dtype; W itself stays as it is."""
    ### BEGIN SOLUTION
    return (W.float() + lora_alpha / r * B @ A).to(W.dtype)
    ### END SOLUTION


check_merge(merge)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `W.float()` is a copy with more bits, `.to(W.dtype)` rounds. Where in the line do the two belong?
#
# </details>

# %% [markdown]
# ## 5 · The same with PEFT
#
# `ftkit.adapters.attach` calls PEFT, which puts such factors beside every target matrix. Copy our factors into the
# first:

# %%
adapted = attach(model, "lora", r=R, lora_alpha=LORA_ALPHA)
theirs = model.model.layers[0].self_attn.q_proj
print(theirs)
assert not theirs.lora_B["default"].weight.any() and theirs.lora_A["default"].weight.all()
with torch.no_grad():
    theirs.lora_A["default"].weight.copy_(mine.lora_A)
    theirs.lora_B["default"].weight.copy_(mine.lora_B)
    apart = (theirs(hidden) - mine(hidden)).abs().max()
print(f"largest difference from our module's outputs: {apart:.1f}")
assert apart == 0

# %% [markdown]
# `merge_and_verify` merges a copy of the whole model and compares logits and likeliest tokens with the adapter's, in
# float32. It refuses a merge that is off by more than rounding and a thousandth of what the adapter changes.

# %% tags=["nbval-ignore-output"]
page = ["Q: What is the capital of France?\nA:", "Q: What sound does a cow make?\nA:"]
batch = tokenizer(page, padding=True, return_tensors="pt")
merged, report = merge_and_verify(adapted, batch)
print(report)

# %%
left = [name for name, _ in merged.named_parameters() if "lora" in name]
print(f"greedy tokens that differ: {report.flips}; LoRA tensors left: {len(left)}")
assert report.logit_error < 1e-3 and report.flips == 0 and not left

# %% [markdown]
# Would it notice a wrong merge? Give one layer a merge that forgets the scale:

# %%
theirs.get_delta_weight = lambda name: theirs.lora_B[name].weight @ theirs.lora_A[name].weight
try:
    merge_and_verify(adapted, batch)
except MergeError as error:
    print("MergeError:", str(error).partition(" by ")[0])
else:
    raise AssertionError("a merge without the scale was accepted")
del theirs.get_delta_weight

# %% [markdown]
# ## 6 · Targets, and a learning rate for each kind of parameter
#
# Three decisions: which matrices get factors (`target_modules`), what else trains, and at which learning rate. The chat
# template's tokens, `<|end|>` among them, never occurred in pocket-base's corpus, so their rows in embedding and LM
# head are untrained, and factors on the layers cannot move them.

# %% [markdown]
# Two ways to train those rows beside LoRA:
#
# - `modules_to_save` trains whole modules: embedding, LM head and norms, a quarter of pocket-base;
# - `trainable_token_indices` trains chosen rows only.
#
# **Predict first:** how many parameters does each of them train?

# %%
METHODS = [trade_off.LORA, trade_off.ATTENTION, trade_off.TOKENS, trade_off.OWN_RATE]
for name in METHODS:
    fresh_task = load_task(trade_off.TASK, SEED, POCKET)
    adapter = trade_off.prepare(name, fresh_task, tokenizer)
    trainable = [(n, p.numel()) for n, p in adapter.named_parameters() if p.requires_grad]
    factors = sum(size for n, size in trainable if "lora_" in n)
    rest = sum(size for _, size in trainable) - factors
    print(f"{name:22} {factors:7,} in low-rank factors, {rest:7,} in rows or whole matrices")

# %% [markdown]
# Factors and whole matrices need different learning rates: full fine-tuning of this model is best at about 1e-3, LoRA
# at about ten times that. One rate for both is wrong for at least one of them. So give the optimizer separate groups:


# %%
def separate_groups(model, lora_lr, whole_lr):
    """Optimizer groups: low-rank factors at one learning rate, all else that trains at another."""
    groups = []
    for group in decay_groups(model.named_parameters(), WEIGHT_DECAY):
        for is_lora, lr in ((True, lora_lr), (False, whole_lr)):
            chosen = [(n, p) for n, p in group["params"] if ("lora_" in n) == is_lora]
            groups += [{**group, "params": chosen, "lr": lr}] if chosen else []
    return groups


for group in separate_groups(adapter, lora_lr=1e-2, whole_lr=FULL_LR):
    names = sorted({name.split(".default")[0].split(".")[-1] for name, _ in group["params"]})
    print(
        f"lr {group['lr']:g}, decay {group['weight_decay']}: "
        f"{len(group['params'])} tensors of {', '.join(names)}"
    )
assert {group["lr"] for group in separate_groups(adapter, 1e-2, FULL_LR)} == {1e-2, FULL_LR}

# %% [markdown]
# Train two of them here: LoRA alone, and LoRA with the chat tokens' rows. The learning rates are those of the stored
# runs.

# %%
lora_rates = {name: study.best(trial(name)) for name in (trade_off.LORA, trade_off.TOKENS)}
live, tasks = {}, {}
for name in lora_rates:
    torch.manual_seed(SEED)
    tasks[name] = load_task(trade_off.TASK, SEED, POCKET, validation=True)
    live[name] = trade_off.prepare(name, tasks[name], tokenizer)

# %% tags=["nbval-ignore-output"]
for name, lr in lora_rates.items():
    groups = separate_groups(live[name], lr, trade_off.WHOLE_LR)
    train(replace(tasks[name], model=live[name]), torch.optim.AdamW(groups, lr=lr), name)
    with torch.no_grad():
        scores = tasks[name].evaluate(live[name].eval(), "test")
    stored = study.runs(trial(name))[SEED]
    print(f"{name}: exact match {scores['test_exact']:.0%}, stored {stored['test_exact']:.0%}; "
          f"loss {scores['test_loss']:.2f}, stored {stored['test_loss']:.2f}")  # fmt: skip
    assert abs(scores["test_exact"] - stored["test_exact"]) < 0.15

# %% [markdown]
# ### How sure is it of the end?
#
# With greedy decoding, which takes the likeliest token, both models stop after nearly every answer. **Predict first:**
# how probable is `<|end|>` where an answer should end?

# %%
test = load_chat(data_dir() / "chat")["test"]["messages"]
END = end_of_turn_id(tokenizer)
ends = pad([encode(tokenizer, messages, tokenizer.chat_template) for messages in test], 0)
labels = ends.pop("labels")[:, 1:]


@torch.no_grad()
def at_the_end(model):
    """Probability of each token where an answer should end: (answers, vocabulary)."""
    return model(**ends).logits[:, :-1].softmax(-1)[labels == END]


found = {name: at_the_end(model) for name, model in live.items()}
found["full, section 3"] = at_the_end(truncate(RANKS[-1]))

# %% tags=["nbval-ignore-output"]
for name, p in found.items():
    likeliest = (p.argmax(-1) == END).float().mean()
    print(
        f"{name:18} <|end|> is the likeliest in {likeliest:.0%}; "
        f"its mean probability: {p[:, END].mean():.1%}"
    )

# %%
likeliest = [(p.argmax(-1) == END).float().mean().item() for p in found.values()]
mean = [p[:, END].mean().item() for p in found.values()]
head = load_base(POCKET)[0].lm_head.weight.detach()
twins = torch.cosine_similarity(head, head[[END]]) > 0.99
seen = {token for page in corpus(500) for token in tokenizer.encode(page)}
occur = sum(token in seen for token in twins.nonzero().flatten().tolist())
print(
    f"{int(twins.sum())} of {len(head)} rows of the LM head point where <|end|>'s does (cosine > 0.99)"
)
print(f"of their tokens, {occur} occur in 500 pages of the base model's corpus")
assert min(likeliest) > 0.9 and mean[0] < 0.05 and 5 * mean[0] < mean[1] < 0.5 < mean[2]
assert twins.sum() > 100 and occur == 0
assert found[trade_off.LORA][:, twins].sum(-1).mean() > 0.8

# %% [markdown]
# With LoRA alone `<|end|>` is the likeliest token, but its probability is below 5 %. Hundreds of tokens that
# pretraining never met have rows that point in the same direction, so a frozen LM head cannot tell them apart, and they
# share the probability. Greedy decoding hides this; a sampled answer would go on. Training the rows raises it many
# times; after section 3's full fine-tune, which trained the whole LM head on more conversations, it is highest.

# %% [markdown]
# ### The configurations side by side
#
# The stored runs, each at its own learning rate for the low-rank factors. Fully trained parameters beside them have
# 1e-3, unless a name says "one rate".

# %%
ALL = [trade_off.FULL, *METHODS, trade_off.ONE_RATE]
print(results(study, ALL))

# %% tags=["hide-input"]
_ = plot_gains(study, [name for name in ALL if name != trade_off.LORA], trade_off.LORA)

# %% [markdown]
# The figure shows each configuration's difference from LoRA on all linear layers, paired by seed, with 95 % intervals.
# Read both measures: exact match depends on greedy decoding alone, the loss on the probabilities that sampling uses.

# %%
tokens = study.gain(trial(trade_off.TOKENS), trial(trade_off.LORA), "test_loss")
print(
    f"chat tokens' rows trained as well: loss {in_units(tokens, 'test_loss')} nats per token"
)
ratio = study.best(trial(trade_off.LORA)) / study.best(trial(trade_off.FULL))
print(f"LoRA's best learning rate is {ratio:.0f} times full fine-tuning's")
lora_loss = statistics.fmean(study.ends(trial(trade_off.LORA), "test_loss"))
own = {
    measure: study.gain(trial(trade_off.OWN_RATE), trial(trade_off.ONE_RATE), measure)
    for measure in ("test_loss", "kept")
}
print(
    f"own rate less one rate: loss {in_units(own['test_loss'], 'test_loss')} nats per token,\n"
    f"facts kept {own['kept'].points} percentage points"
)
assert own["test_loss"].high < 0 and own["kept"].high < 0
assert tokens.high < 0 and 0.25 < -tokens.mean / lora_loss < 0.4 and 10 / 3 < ratio < 30

# %% tags=["hide-input"]
_ = ledger.add(
    "LoRA's best learning rate is about ten times that of full fine-tuning",
    "Schulman et al. 2025, LoRA Without Regret",
    10 / 3 < ratio < 30,
    f"{study.best(trial(trade_off.LORA)):g} against {study.best(trial(trade_off.FULL)):g}: "
    f"{ratio:.0f} times, on a grid of factors of 3",
    seeds=2,
)
targets = study.gain(trial(trade_off.LORA), trial(trade_off.ATTENTION))
loss = study.gain(trial(trade_off.LORA), trial(trade_off.ATTENTION), "test_loss")
_ = ledger.add(
    "LoRA on all linear layers does better than on attention alone",
    "Schulman et al. 2025, LoRA Without Regret",
    targets,
    f"exact match {targets.points} percentage points, loss {in_units(loss, 'test_loss')} nats per token, each at its "
    f"own learning rate, r = {R} for both",
    seeds=5,
    worthwhile=0.02,
)

# %% [markdown]
# Training the chat tokens' rows as well, a thousand parameters, removes a third of the loss. The ratio of learning
# rates agrees with the literature, as far as a grid in factors of 3 can tell. Factors on attention alone give a higher
# loss; five seeds cannot tell the exact match apart.
#
# With whole matrices beside LoRA, separate learning rates give a lower loss than a shared one and keep fewer facts: the
# factors then train at three times the shared rate. Notebook 10 looks at that trade-off.

# %% [markdown]
# ### And the rank?
#
# Runs at r = 1, 8 and 64, with `lora_alpha` = 2r, so that the scale is 2 for all. **Predict first:** by section 2's
# measurement ΔW's first step grows with $\sqrt{r}$ at a fixed scale. How then does the best learning rate depend on r?

# %%
BY_RANK = {1: trade_off.RANK_1, 8: trade_off.LORA, 64: trade_off.RANK_64}
print(results(study, list(BY_RANK.values())))
for r in (1, 64):
    gain = study.gain(trial(BY_RANK[r]), trial(trade_off.LORA))
    print(f"r = {r} less r = 8: exact match {gain.points} percentage points")
best = [study.best(trial(name)) for name in BY_RANK.values()]
assert all(2.5 < best[place] / best[place + 1] < 3.5 for place in (0, 1))

# %% [markdown]
# At eight times the rank the best learning rate is a third; $1/\sqrt{8}$ is 0.35. So a comparison of ranks at one
# learning rate mostly compares learning rates. Each at its own, five seeds cannot tell r = 64, half of full rank, from
# r = 8, and not even r = 1 for certain, which keeps fewer facts.

# %% [markdown]
# The next exercise needs short runs to sweep:


# %%
def validation_loss(method: str, lr: float) -> float:
    """Fine-tune on 24 questions for 12 steps; return the validation loss in nats per token."""
    torch.manual_seed(SEED)
    short = replace(load_task("chat-24", SEED, POCKET, validation=True), epochs=6)
    tuned = attach(short.model, method)
    optimizer = make_optimizer(tuned, method, lr, weight_decay=WEIGHT_DECAY)
    for _ in training_steps(replace(short, model=tuned), optimizer, SEED):
        pass
    with torch.no_grad():
        return short.evaluate(tuned.eval(), "validation")["validation_loss"]


# %% [markdown]
# ### Exercise 3 · how many times higher?
#
# Difficulty ●●●, 12 minutes; the runs take about 15 s. `validation_loss(method, lr)` trains pocket-base for 12 steps.
# Sweep both methods, "full" and "lora", by factors of 3 until each best is bracketed, and return LoRA's best learning
# rate divided by full fine-tuning's. The checker tries made-up losses first. Expected on pocket-base: between 3 and 30.


# %% tags=["exercise"]
def rate_ratio(validation_loss) -> float:
    """LoRA's best learning rate divided by full fine-tuning's."""
    ### BEGIN SOLUTION
    best = {}
    for method in ("full", "lora"):
        losses = {lr: validation_loss(method, lr) for lr in (1e-3, 3e-3)}
        while (lr := min(losses, key=losses.get)) in (min(losses), max(losses)):
            new = lr / 3 if lr == min(losses) else lr * 3
            losses[new] = validation_loss(method, new)
        best[method] = lr
    return best["lora"] / best["full"]
    ### END SOLUTION


check_rate_ratio(rate_ratio, validation_loss)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Keep a dict from learning rate to loss for each method. While the best is the lowest or the highest rate tried, train
# at one more, a factor of 3 beyond.
#
# </details>

# %% [markdown]
# ## Break it, then fix it
#
# An adapter's file holds tensors, so a script that merges them looks easy: add `lora_B @ lora_A` to each matrix. Save
# the live adapter, and do that.

# %%
adapter = live[trade_off.LORA]
folder = save_adapter(adapter, Path(tempfile.mkdtemp()) / "adapter")
saved = load_file(folder / "adapter_model.safetensors")


@torch.no_grad()
def merge_by_script(scale=1.0):
    model, _ = load_base(POCKET)
    weights = dict(model.named_parameters())
    for key, lora_A in saved.items():
        if "lora_A" in key:
            lora_B = saved[key.replace("lora_A", "lora_B")]
            name = key.removeprefix("base_model.model.").replace(".lora_A", "")
            weights[name] += scale * lora_B @ lora_A
    return model.eval()


@torch.no_grad()
def logits_apart(one, other):
    """Largest difference between two models' logits on real tokens of the batch."""
    difference = one(**batch).logits - other(**batch).logits
    return difference[batch["attention_mask"].bool()].abs().max().item()


# %%
def ask(model):
    """Greedy answers to the held-out questions."""
    return generate_answers(model, tokenizer, [messages[:-1] for messages in test])


answers, by_script = ask(adapter), merge_by_script()
said = ask(by_script)
same = [a.text == b.text for a, b in zip(answers, said, strict=True)]
merged, report = merge_and_verify(adapter, batch)

# %% tags=["nbval-ignore-output"]
print(f"stop rate: adapter {stop_rate(answers):.0%}, the script's model {stop_rate(said):.0%}")
print(f"answers that are the adapter's: {sum(same)} of {len(same)}")

# %% tags=["raises-exception"]
with expected_error(AssertionError):
    assert logits_apart(by_script, merged) < 1e-3, "this is not the model that was trained"

# %% [markdown]
# The script's model loads and answers without an error, but it is another model. The scale is not among the tensors:
# it is in `adapter_config.json`, as `lora_alpha`, `r` and `use_rslora`. The fix: read it there, and compare with the
# adapter, as `merge_and_verify` does.

# %%
config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
print({name: config[name] for name in ("lora_alpha", "r", "use_rslora")})
divisor = config["r"] ** 0.5 if config["use_rslora"] else config["r"]
fixed = merge_by_script(config["lora_alpha"] / divisor)
now_same = sum(a.text == b.text for a, b in zip(answers, ask(fixed), strict=True))
print(f"the fixed script: {now_same} of {len(answers)} answers are the adapter's")
assert logits_apart(fixed, merged) < 1e-3 and now_same == len(answers) > sum(same)

# %% [markdown]
# A wrong merge fails silently. Compare logits before you throw the adapter away.

# %% [markdown]
# ## What transfers
#
# Measured here: pocket-base, 1.0 M parameters, width 128, vocabulary 1,024, a quarter of all parameters in embedding
# and LM head, 60 steps on short answers.
#
# | | transfers to 1B to 8B | does not |
# | --- | --- | --- |
# | start | B = 0 and A random; its advantage grows with width | the values of stable rates |
# | rank | look at the spectrum of your own ΔW | r = 8 as enough: it is 6 % of full rank here, 0.2 % at 4,096 |
# | learning rates | LoRA needs its own, several times full fine-tuning's; separate groups | the values |
# | chat tokens | untrained rows must train, or be tokens that the model knows | how much they weigh in the loss |
# | merging | verify it | |

# %% [markdown]
# Large base models have seen most template tokens or leave reserved rows for them. Check your own: `check_tokenizer`
# and `trainable_token_indices` (notebooks 05 and 08) matter only where a token is new. Training whole embeddings of
# 128,256 tokens costs a billion parameters on Llama 3 8B; training four rows costs 32,768.

# %%
rows = 4 * 4096 * 2  # four tokens, in embedding and LM head
whole = 128_256 * 4096 * 2
print(f"Llama 3 8B: embedding and LM head {whole:,} parameters, four rows of both {rows:,}")
assert rows == 32_768 and whole > 1e9

# %% [markdown]
# PEFT's own defaults are cautious. Read them from the installed package:

# %%
fields = peft.LoraConfig.__dataclass_fields__
for name in ("r", "lora_alpha", "lora_dropout", "target_modules"):
    print(f"LoraConfig.{name}: {fields[name].default}")

# %% [markdown]
# `target_modules` of None means a default by architecture, for Llama the query and value projections only. Set
# `"all-linear"` yourself.

# %% [markdown]
# ## Numbers to take away
#
# From the literature, not measured here, to begin with on 7B to 8B:
#
# - Target all linear layers, attention and MLP (Dettmers et al. 2023; Biderman et al. 2024; Schulman et al. 2025).
# - r 8 to 64; more for large data sets: LoRA falls behind once the data exceed its capacity (Schulman et al. 2025).
# - `lora_alpha` fixed while you sweep: 2r, as in adapters that Biderman et al. published (r 256, alpha 512), or 32 at
#   any r (Schulman et al. 2025); rsLoRA for comparisons of ranks.
# - Learning rate about ten times full fine-tuning's, up to 15 times in runs under 100 steps (Schulman et al. 2025);
#   2e-4 for 7B and 13B (Dettmers et al. 2023).
# - LoRA tolerates large batches less than full fine-tuning does (Schulman et al. 2025).
#
# Counted here: a matrix of n × n at rank r trains 2r / n of its size; r = 8 at 4,096 is 0.4 %.

# %% [markdown]
# ## Recap
#
# - LoRA adds `lora_alpha / r * lora_B @ lora_A` to a frozen matrix, and trains r × (in + out) numbers.
# - B = 0 and A random: the model is unchanged at the start, and larger learning rates are stable than with A = 0.
# - Tune the learning rate and leave `lora_alpha` fixed; keep the step independent of r with rsLoRA.
# - Low-rank factors and fully trained parameters get separate groups and learning rates.
# - Train the rows of new tokens, and look at the end token's probability, not only at greedy answers.
# - Merging is exact up to rounding; verify it on logits.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. How many parameters does LoRA train beside a matrix of 4,096 × 1,024 at r = 16?
# 2. Why does B, and not A, start at zero?
# 3. What happens to Adam's first step if you go from r = 8 to r = 128 and leave `lora_alpha`?
# 4. Why do embeddings that train beside LoRA need a learning rate of their own?
# 5. A model tuned by LoRA alone stops after every greedy answer. What else do you look at, and why?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: 16 × (4,096 + 1,024) = 81,920.
# - 2: either leaves the model unchanged, but `A @ x` sums n changes and `B @ (A @ x)` only r: with B = 0 the output
#   moves less at first, so larger learning rates are stable.
# - 3: it shrinks to a quarter, because the scale falls with $1/r$ and the sum grows with $\sqrt{r}$.
# - 4: LoRA's best learning rate is about ten times that of fully trained parameters.
# - 5: the probability of the end token; if its row was never trained, others like it share what the layers raise.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Hu et al., [LoRA](https://arxiv.org/abs/2106.09685), 2021; Aghajanyan et al., [Intrinsic
#   Dimensionality](https://arxiv.org/abs/2012.13255), 2020.
# - Hayou et al., [The Impact of Initialization on LoRA Finetuning Dynamics](https://arxiv.org/abs/2406.08447), 2024.
# - Kalajdzievski, [A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA](https://arxiv.org/abs/2312.03732),
#   2023: rsLoRA.
# - Biderman et al., [LoRA Learns Less and Forgets Less](https://arxiv.org/abs/2405.09673), 2024.
# - Dettmers et al., [QLoRA](https://arxiv.org/abs/2305.14314), 2023.
# - Schulman et al., [LoRA Without Regret](https://thinkingmachines.ai/blog/lora/), 2025.
# - PEFT, [LoRA](https://huggingface.co/docs/peft/package_reference/lora): names and options, `trainable_token_indices`
#   among them.
#
# ## Next
#
# [10_adapter_family](10_adapter_family.ipynb): DoRA, LoRA+, QLoRA and others: what each learns, forgets and costs.
