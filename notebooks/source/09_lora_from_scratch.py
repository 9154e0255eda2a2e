# %% [markdown]
# # 09 · LoRA from scratch: a thin pair beside a frozen matrix
#
# LoRA trains two thin matrices beside a frozen one. You build it in a dozen lines, see why one of the two starts at
# zero, how much rank a real fine-tune needs, how to merge without a slip, and what to put it beside.
#
# - **Prerequisites:** [08_full_fine_tune](08_full_fine_tune.ipynb); matrix products.
# - **Hardware:** any processor; one core is enough.
# - **Time:** about 40 minutes with the exercises; its cells run in under a minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **read** LoRA as a module, and count what it trains,
# - **explain** why exactly one of its two matrices starts at zero,
# - **measure** how much of a fine-tune a given rank holds,
# - **merge** an adapter into its base, and prove that nothing changed but rounding,
# - **choose** the target matrices, and tell when embeddings must train too.

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
from ftcourse.almanac import corpus
from ftcourse.claims import Ledger
from ftcourse.exercises.lora import check_count, check_factor, check_merge
from ftcourse.explorers.lora_rank import (
    RankExplorer,
    explained_variance,
    plot_singular_values,
    random_like,
)
from ftcourse.plots import HATCHES, OKABE_ITO, new_axes, plot_matrix, use_course_style
from ftcourse.studies.tasks import BATCH_SIZE, WEIGHT_DECAY, load_task, training_steps
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm
from transformers.utils import logging

from ftkit import load_base, load_chat
from ftkit.adapters import MergeError, attach, make_optimizer, merge_and_verify, save_adapter
from ftkit.batching import pad, steps_per_epoch
from ftkit.evaluate import exact_match, generate_answers, stop_rate
from ftkit.models import data_dir
from ftkit.parameters import count_parameters

# %% tags=["nbval-ignore-output"]
use_course_style()
logging.disable_progress_bar()
warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing", FutureWarning)  # names change
print(f"torch {torch.__version__}, peft {peft.__version__}, device: cpu (a small model)")

# %%
R, LORA_ALPHA = 8, 16  # rank of the change, and its numerator: the change is scaled by 16 / 8
SEED = 0  # of random matrices and of the live runs; the stored runs have 0, 1 and 2
FULL_LR, FULL_EPOCHS = 1e-3, 4  # of the full fine-tune in section 3: 52 steps of 16 questions
RANKS = (1, 2, 4, 8, 16, 64, 128)  # tried in section 3; 128 is the whole of a matrix
POCKET = data_dir() / "pocket-base"  # this course's model of a million parameters
ledger = Ledger("LoRA and its relatives")  # the claims tested here; the recap shows them

# %% [markdown]
# ## 1 · A thin pair
#
# Full fine-tuning adds a **change** to each matrix `W` (out × in). **LoRA**, low-rank adaptation, freezes `W` and
# writes the change as a product of two thin matrices, `lora_B` (out × r) and `lora_A` (r × in):
#
# `W + (lora_alpha / r) * lora_B @ lora_A`
#
# Here it is, as a module beside any `nn.Linear`.


# %%
class LoRALinear(nn.Module):
    def __init__(self, base: nn.Linear, r: int, lora_alpha: float):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(r, base.in_features) / base.in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r))
        self.scale = lora_alpha / r

    def forward(self, x):  # (batch, in) -> (batch, out); no out × in product is made
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T * self.scale

    def change(self):  # (out, in)
        return self.scale * self.lora_B @ self.lora_A


# %%
torch.manual_seed(SEED)
base = nn.Linear(6, 4)
lora = LoRALinear(base, r=1, lora_alpha=1)
x = torch.randn(64, 6)
unchanged = torch.equal(lora(x), base(x))
print(f"with lora_B = 0, equal to the base to the bit: {unchanged}")
assert unchanged

claim = "LoRA changes nothing before its first step"
measured = f"outputs equal to the bit: {unchanged}; a layer of 6 × 4, 64 inputs"
ledger.add(claim, "Hu et al. 2021, LoRA", unchanged, measured)

# %%
with torch.no_grad():
    lora.lora_B.copy_(torch.tensor([[1.0], [-0.5], [0.25], [2.0]]))
print(f"with another lora_B: {torch.equal(lora(x), base(x))}")
assert not torch.equal(lora(x), base(x)) and torch.linalg.matrix_rank(lora.change()) == 1
_, axes = new_axes(9, 2.6, columns=3)
plot_matrix(lora.lora_B, title="lora_B (4 × 1)", limit=3, ax=axes[0])
plot_matrix(lora.lora_A, title="lora_A (1 × 6)", limit=3, ax=axes[1])
ax = plot_matrix(lora.change(), title="lora_B @ lora_A (4 × 6)", limit=3, ax=axes[2])

# %% [markdown]
# Notice: at r = 1 every row of the change is a multiple of the one row of `lora_A`. That is what **rank 1** means; at
# rank r the rows are mixtures of r rows.
#
# **Predict first:** how many parameters train beside a matrix of 1,000 × 1,000 at r = 8?

# %%
my_guess = 64_000

# %%
wide = LoRALinear(nn.Linear(1000, 1000, bias=False), r=8, lora_alpha=16)
count = count_parameters(wide)
frozen = count.total - count.trainable
print(f"{frozen:,} frozen, {count.trainable:,} trainable: {count.trainable / frozen:.1%}")
print(
    f"you guessed {my_guess:,}: {'right' if my_guess == count.trainable else 'another number'}"
)
assert count.trainable == wide.lora_A.numel() + wide.lora_B.numel() == 16_000
assert frozen == 1_000_000

# %% [markdown]
# Notice: 8 rows of 1,000 and 8 columns of 1,000. Only these 16,000 have gradients and AdamW's moments. The frozen
# million still takes part in every product, so a step saves far less time than memory (notebook 04 measured it).

# %% [markdown]
# ### Exercise 1 · count
#
# Difficulty ●○○, 3 minutes. Given the shapes (out, in) of the target matrices, how many parameters train? Expected:
# 16,000 for the matrix above.


# %% tags=["exercise"]
def count_lora_parameters(shapes: list[tuple[int, int]], r: int) -> int:
    """Numbers in all lora_A and lora_B, one pair for each shape (out, in)."""
    ### BEGIN SOLUTION
    return sum(r * (out_features + in_features) for out_features, in_features in shapes)
    ### END SOLUTION


check_count(count_lora_parameters)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `lora_A` is r × in and `lora_B` is out × r. Sum over the shapes.
#
# </details>

# %% [markdown]
# ## 2 · One of the two starts at zero
#
# Let the layer learn another layer's outputs. With `G` the gradient that `W` itself would get, the chain rule gives
#
# `lora_A.grad = scale * lora_B.T @ G` and `lora_B.grad = scale * G @ lora_A.T`.
#
# **Predict first:** at the first step, which of the two is zero?


# %%
target = base(x).detach() + x @ torch.randn(6, 4)  # what another layer would say


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


whole = nn.Linear(6, 4)
whole.load_state_dict(base.state_dict())
nn.functional.mse_loss(whole(x), target).backward()
G = whole.weight.grad

# %%
lora = fresh()
optimizer = torch.optim.SGD(lora.parameters(), lr=0.01)
for step in (1, 2):
    fit(lora, optimizer, steps=1)
    zero = {name: not p.grad.any() for name, p in lora.named_parameters() if "lora" in name}
    print(f"step {step}, gradient is zero: {zero}")
    if step == 1:  # to float32's rounding of sums of a few numbers
        by_formula = lora.scale * G @ lora.lora_A.T  # lora_A has not moved yet
        agree = torch.allclose(lora.lora_B.grad, by_formula, atol=1e-5)
        assert zero == {"lora_A": True, "lora_B": False} and agree
assert zero == {"lora_A": False, "lora_B": False}

# %% [markdown]
# Notice: `lora_A` waits for one step, until `lora_B` is no longer zero. Then both learn.
#
# Must it be `lora_B` that starts at zero? Try all four starts:

# %%
found = {}
print("lora_A  lora_B  unchanged at the start  learns in 200 steps")
for start_A, start_B in ((0, 0), (0, 1), (1, 0), (1, 1)):
    lora = fresh()
    lora.lora_A.data *= start_A
    lora.lora_B.data += start_B * torch.randn(4, 2)
    unchanged = torch.equal(lora(x), base(x))
    losses = fit(lora, torch.optim.Adam(lora.parameters(), lr=0.01), steps=200)
    found[start_A, start_B] = unchanged, losses[-1] < 0.9 * losses[0]
    names = [("zero", "random")[start] for start in (start_A, start_B)]
    print(f"{names[0]:8}{names[1]:8}{unchanged!s:24}{losses[-1] < 0.9 * losses[0]}")
assert found[0, 0] == (True, False) and found[1, 1] == (False, True)
assert found[0, 1] == found[1, 0] == (True, True)

# %% [markdown]
# Notice: exactly one. With both at zero each gradient is a product with the other factor, so zero, and nothing ever
# trains; with neither, the model starts out changed. Which of the two is a convention: Hu et al. and PEFT take
# `lora_B`.

# %% [markdown]
# ### What lora_alpha does
#
# The scale multiplies the change, and in the backward pass also the gradient. **Predict first:** twice the
# `lora_alpha`: how many times as large is the change of the first step with plain gradient descent (SGD), and with
# Adam, which divides by the gradient's size?


# %%
def change_after(optimizer, steps=1, lora_alpha=4.0, lr=1e-3, start=1.0):
    lora = fresh(lora_alpha)
    lora.lora_A.data *= start
    fit(lora, optimizer([lora.lora_A, lora.lora_B], lr=lr), steps)
    return lora.change().detach()


# %%
times = {}
for optimizer in (torch.optim.SGD, torch.optim.Adam):
    plain = change_after(optimizer).norm()
    alpha = change_after(optimizer, lora_alpha=8.0).norm() / plain
    rate = change_after(optimizer, lr=2e-3).norm() / plain
    times[optimizer.__name__] = (round(alpha.item(), 2), round(rate.item(), 2))
    print(
        f"{optimizer.__name__:5} twice lora_alpha: {alpha:.2f} times; twice lr: {rate:.2f} times"
    )
assert times == {"SGD": (4.0, 2.0), "Adam": (2.0, 2.0)}

# %%
apart = {}
for steps in (1, 200):
    by_alpha = change_after(torch.optim.Adam, steps, lora_alpha=8.0)
    by_rate = change_after(torch.optim.Adam, steps, lr=2e-3)
    apart[steps] = ((by_alpha - by_rate).norm() / by_rate.norm()).item()
    print(
        f"after {steps} steps of Adam, the two changes differ by over 10 %: {apart[steps] > 0.1}"
    )
assert apart[1] < 1e-4 and apart[200] > 0.1

# %%
by_alpha = change_after(torch.optim.Adam, 200, lora_alpha=8.0)
root = 2**0.5
by_both = change_after(torch.optim.Adam, 200, lr=root * 1e-3, start=root)
same = ((by_alpha - by_both).norm() / by_alpha.norm()).item() < 1e-4  # float32, 200 steps
print(f"twice lora_alpha is √2 times the rate from a lora_A of √2 times the size: {same}")
claim = "with Adam, tuning lora_alpha is tuning the learning rate, if the start is scaled too"
measured = "toy layer, 200 steps: over 10 % apart by the rate alone: "
measured += f"{apart[200] > 0.1}; equal with the start scaled: {same}"
ledger.add(claim, "Hu et al. 2021, LoRA", same, measured)
assert same

# %% [markdown]
# Notice: at Adam's first step twice `lora_alpha` does what twice the rate does. Later they part, for twice the rate
# also moves `lora_A` twice as fast; with its start scaled as well, they are one. One of the two is enough to tune:
# fix `lora_alpha`, and tune the rate.
#
# `lora_alpha / r` also shrinks as r grows; **rank-stabilised** LoRA (`use_rslora` in PEFT) divides by √r, and a large r
# keeps more of its step:

# %%
for r in (1, 8, 64):
    print(
        f"r = {r:2}: lora_alpha / r = {LORA_ALPHA / r:5.2f}, / √r = {LORA_ALPHA / r**0.5:5.2f}"
    )

# %% [markdown]
# ## 3 · How much rank does a fine-tune need?
#
# LoRA bets that the change is nearly of low rank. Look at a real one: fine-tune all of pocket-base on 200
# conversations, and subtract the weights before from those after.


# %%
def train(task, optimizer, label):
    """Train for the task's epochs, under a bar; the loss of each step."""
    steps = task.epochs * steps_per_epoch(task.train, BATCH_SIZE)
    return list(tqdm(training_steps(task, optimizer, SEED), desc=label, total=steps))


task = replace(load_task("chat-200", SEED, POCKET), epochs=FULL_EPOCHS)
tuned = attach(task.model, "full")
before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
optimizer = make_optimizer(tuned, "full", FULL_LR, weight_decay=WEIGHT_DECAY)

# %% tags=["nbval-ignore-output"]
losses = train(task, optimizer, "full fine-tune")
print(f"loss {losses[0]:.2f} at the first step, {losses[-1]:.2f} at the last (nats a token)")

# %% [markdown]
# The **singular value decomposition** writes a matrix as a sum of matrices of rank 1, each with its size, the
# **singular value**, the largest first. The sum of the first r is the nearest matrix of rank r; the share of the
# squared singular values that they have is the **energy** kept.

# %%
change = {name: p.detach() - before[name] for name, p in tuned.named_parameters()}
matrices = [name for name, each in change.items() if "layers" in name and each.ndim == 2]
parts = {name: torch.linalg.svd(change[name], full_matrices=False) for name in matrices}
share = statistics.median(explained_variance(parts[name].S, R) for name in matrices)
noise = statistics.median(
    explained_variance(random_like(change[name]), R) for name in matrices
)
print(f"{len(matrices)} matrices; energy kept at r = {R}, median, in tenths:")
print(
    f"of the change {round(10 * share)}, of random matrices of its shapes {round(10 * noise)}"
)
assert len(matrices) == 28 and share > 0.5 and noise < 0.3

# %% [markdown]
# Notice: the change is far from random, and far from rank 8. Is the rest needed? Cut every matrix's change to rank r,
# add it to the base, and ask the held-out questions. All else (embeddings, output matrix, norms, biases) keeps its
# change. **Predict first:** from which r on is the loss that of the whole change?


# %%
@torch.no_grad()
def cut_to(r, others=True):
    """Base + change cut to rank r in each matrix; `others`: all else changes too."""
    for name, weight in tuned.named_parameters():
        if name in parts:
            U, S, V = parts[name]
            weight.copy_(before[name] + U[:, :r] * S[:r] @ V[:r])
        else:
            weight.copy_(before[name] + others * change[name])
    return tuned.eval()


# %%
with torch.no_grad():
    cut = {r: task.evaluate(cut_to(r)) for r in RANKS}
    alone = task.evaluate(cut_to(RANKS[-1], others=False))
losses = {r: found["test_loss"] for r, found in cut.items()}

# %% tags=["nbval-ignore-output"]
for r, found in cut.items():
    print(
        f"r = {r:3}: loss {found['test_loss']:.2f}, exactly right {found['test_exact']:4.0%}"
    )
print(f"matrices alone, all of their change: loss {alone['test_loss']:.2f}")
axes = plot_singular_values(change[matrices[0]], losses, R, name="block 0, q_proj: its change")

# %%
lost = {r: losses[r] - losses[RANKS[-1]] for r in RANKS}  # nats a token
eight, sixteen = lost[8] < 0.1, lost[16] < 0.05
print(f"loss at r = 1, more than 0.3 nats above the whole change's: {lost[1] > 0.3}")
print(f"at r = 8, less than 0.1 above: {eight}; at r = 16, less than 0.05: {sixteen}")
gap = alone["test_loss"] - losses[RANKS[-1]]
print(f"with the matrices' change alone, more than 0.3 above: {gap > 0.3}")
assert lost[1] > 0.3 and eight and sixteen and gap > 0.3

# %%
held = share > 0.5 and eight
measured = f"full fine-tune cut to r = {R} of 128, 1 seed: energy over 50 %: {share > 0.5}; "
measured += f"loss on new questions within 0.1 nats: {eight}; without all else, within 0.3: {gap < 0.3}"
condition = "with the change of embeddings, norms and biases left whole" if gap > 0.3 else ""
claim = "the change of a fine-tune has a low intrinsic rank: a cut to it does as well"
source = "Hu et al. 2021, after Aghajanyan et al. 2020"
ledger.add(claim, source, held, measured, only_if=condition)

# %% [markdown]
# Notice: about three tenths of the energy are cut at r = 8 and hardly missed, r = 1 is too little, and r = 16 of 128
# is as good as all. But even at full rank the matrices' change **alone** stays more than 0.3 nats behind. And a cut
# after training says that a low rank can suffice, not that training will find it.
#
# Move the rank, and choose another matrix:

# %% tags=["nbval-ignore-output"]
short = {f"block {n.split('.')[2]} {n.split('.')[4]}": change[n] for n in matrices}
explorer = RankExplorer(short, losses)
explorer

# %%
explorer.slider.value, less = R, explorer.explained
explorer.menu.value = "block 3 down_proj"
print(explorer)
assert explorer.explained > less and "at rank 8" in explorer.picture.value

# %% [markdown]
# ### Exercise 2 · a pair from a change
#
# Difficulty ●●○, 7 minutes. Turn a change into an adapter: return `lora_A` (r × in) and `lora_B` (out × r) so that
# `lora_alpha / r * lora_B @ lora_A` is the nearest matrix of rank r. Expected: the checker's 7 × 5 matrix, cut to
# rank 2.


# %% tags=["exercise"]
def factor(
    change: torch.Tensor, r: int, lora_alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(lora_A, lora_B) of the change (out, in)."""
    ### BEGIN SOLUTION
    U, S, V = torch.linalg.svd(change, full_matrices=False)
    return V[:r], U[:, :r] * S[:r] / (lora_alpha / r)
    ### END SOLUTION


check_factor(factor)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `U, S, V = torch.linalg.svd(change, full_matrices=False)`, and `U[:, :r] * S[:r] @ V[:r]` is the cut matrix. Which of
# its factors takes the place of which, and what does the layer multiply with afterwards?
#
# </details>

# %% [markdown]
# ## 4 · Merge and unmerge
#
# A pair costs two more products at each call. **Merging** adds the change to `W`, once; the layer is then as fast as
# it was. Here beside a real matrix of pocket-base, with a `lora_B` of about a trained one's size.

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
# Merged and unmerged take the same sums in another order. Each output is a sum of 128 products, so some ten units of
# rounding are expected. We allow 1,000; a scale wrong by 1 % makes tens of thousands in float32, and far more in
# float64.

# %%
for dtype in (torch.float32, torch.float64):
    right, wrong = (merged_error(dtype, factor * mine.scale) for factor in (1, 1.01))
    print(f"{dtype}: merged equals unmerged to rounding: {right < 1000}")
    print(f"    and with a scale wrong by 1 %: {wrong < 1000}")
    assert right < 1000 < wrong

# %% [markdown]
# Notice: exact to rounding, in each precision, and not to the bit.
#
# Hu et al. switch tasks by subtracting one change and adding another. **Predict first:** after adding and
# subtracting the same change, is every bit of `W` back?

# %%
there_and_back = W + mine.change().detach() - mine.change().detach()
same = (there_and_back == W).float().mean().item()
largest = (W.abs().max() + mine.change().abs().max()).item()
to_rounding = (there_and_back - W).abs().max().item() <= torch.finfo(W.dtype).eps * largest
print(f"entries restored to the bit: more than half {same > 0.5}, all {same == 1}")
print(f"what is off is rounding: {to_rounding}")
print(f"the frozen matrix itself is as it was: {torch.equal(q_proj.weight, W)}")
assert 0.5 < same < 1 and to_rounding and torch.equal(q_proj.weight, W)

# %%
claim = "subtracting the change recovers the base weights"
measured = f"float32, 128 × 128: to rounding {to_rounding}, to the bit {same == 1}"
condition = "" if same == 1 else "to rounding, not to the bit"
ledger.add(claim, "Hu et al. 2021, LoRA", to_rounding, measured, only_if=condition)

# %% [markdown]
# Notice: `W + change` is rounded, and no subtraction brings the lost bits back. Keep a copy of the base, or leave the
# pair beside it.

# %% [markdown]
# ### Exercise 3 · merge at a lower precision
#
# Difficulty ●●○, 5 minutes. Large bases lie in bfloat16, which has 8 bits of precision, and adapters in float32. Add
# in float32 and round **once**. Expected: a new tensor in `W`'s dtype.


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
# ## 5 · The same by PEFT
#
# `ftkit.adapters.attach` calls PEFT, which puts such a pair beside every target matrix. Copy ours into its first one:

# %%
adapted = attach(model, "lora", r=R, lora_alpha=LORA_ALPHA)
theirs = model.model.layers[0].self_attn.q_proj
print(theirs)
started_at_zero = bool((theirs.lora_B["default"].weight == 0).all())
with torch.no_grad():
    theirs.lora_A["default"].weight.copy_(mine.lora_A)
    theirs.lora_B["default"].weight.copy_(mine.lora_B)
    equal = torch.equal(theirs(hidden), mine(hidden))
    base_alone = torch.equal(theirs.base_layer(hidden), mine(hidden))
print(f"PEFT's lora_B started at zero: {started_at_zero}")
print(f"outputs equal to the bit: {equal}; without the pair: {base_alone}")
assert started_at_zero and equal and not base_alone

# %% [markdown]
# Notice: the same two matrices, the same scale, the same bits.
#
# `merge_and_verify` merges a copy of the whole model and compares logits and likeliest tokens with the adapter's in
# float32. It refuses a merge that is off by more than rounding and a thousandth of what the adapter changes.

# %% tags=["nbval-ignore-output"]
page = ["Q: What is the capital of France?\nA:", "Q: What sound does a cow make?\nA:"]
batch = tokenizer(page, padding=True, return_tensors="pt")
merged, report = merge_and_verify(adapted, batch)
print(report)

# %%
print(
    f"logits differ by under 0.001: {report.logit_error < 1e-3}; greedy tokens that differ: {report.flips}"
)
left = [name for name, _ in merged.named_parameters() if "lora" in name]
print(f"LoRA tensors left in the merged model: {len(left)}")
assert report.logit_error < 1e-3 and report.flips == 0 and not left

# %% [markdown]
# Would it notice a wrong merge? Give one layer a merge that forgets the scale:

# %%
theirs.get_delta_weight = lambda name: theirs.lora_B[name].weight @ theirs.lora_A[name].weight
try:
    merge_and_verify(adapted, batch)
except MergeError as error:
    print("MergeError:", str(error).partition(":")[2].partition(";")[0].strip())
else:
    raise AssertionError("a merge without the scale was accepted")
del theirs.get_delta_weight

# %% [markdown]
# ## 6 · What to put it beside
#
# Hu et al. adapt attention matrices only; later practice takes the MLPs as well. And `modules_to_save` trains
# modules **whole**: here embedding, output matrix and norms. What trains in each case?

# %%
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
WHOLE = ["embed_tokens", "lm_head", "input_layernorm", "post_attention_layernorm", "norm"]
TARGETS = {  # name in the stored runs -> target_modules, modules_to_save
    "lora attention": (ATTENTION, None),
    "lora": ("all-linear", None),  # attention and MLPs; not the output matrix
    "lora attention, embeddings and norms": (ATTENTION, WHOLE),
    "lora, embeddings and norms": ("all-linear", WHOLE),
}


def with_lora(model, row):
    names = dict(zip(("target_modules", "modules_to_save"), TARGETS[row], strict=True))
    return attach(model, "lora", r=R, lora_alpha=LORA_ALPHA, **names)


# %%
for row in TARGETS:
    adapter = with_lora(load_base(POCKET)[0], row)
    free = any(p.requires_grad and "embed_tokens" in n for n, p in adapter.named_parameters())
    trainable = count_parameters(adapter).trainable
    print(f"{row:37}{trainable:8,} trainable, the embedding among them: {free}")
    assert free == ("embeddings" in row)

# %% [markdown]
# The chat template's tokens, `<|end|>` among them, never occurred in pocket-base's corpus. Their rows in embedding and
# output matrix are untrained, and LoRA on the layers cannot move them. **Predict first:** of these four, and full
# fine-tuning, which answer best, and which learn to stop?
#
# Train the first of the four here, at the rate that its stored runs chose:

# %%
from ftcourse.studies.adapters.table import final_runs
from ftcourse.studies.records import read_records

records = read_records(data_dir() / "results" / "adapters.jsonl")
ROWS = ["full", *TARGETS]
runs = {
    row: final_runs(records, "chat-200", row) for row in ROWS
}  # seeds 0, 1, 2, in this order
LIVE = "lora attention"
stored = runs[LIVE][SEED]
task = load_task("chat-200", SEED, POCKET)
torch.manual_seed(SEED)  # of lora_A
live = with_lora(task.model, LIVE)
optimizer = make_optimizer(live, "lora", stored["lr"], weight_decay=WEIGHT_DECAY)
assert stored["seed"] == SEED and count_parameters(live).trainable == stored["trainable"]

# %% tags=["nbval-ignore-output"]
_ = train(replace(task, model=live), optimizer, LIVE)

# %%
test = load_chat(data_dir() / "chat")["test"]["messages"]
wanted = [messages[-1]["content"] for messages in test]


def ask(model):
    """Greedy answers to the held-out questions."""
    return generate_answers(model, tokenizer, [messages[:-1] for messages in test])


answers = ask(live.eval())

# %% tags=["nbval-ignore-output"]
print(f"exactly right {exact_match(answers, wanted):.0%}, stopped {stop_rate(answers):.0%}")
print(f"stored: {stored['test_exact']:.0%}, {stored['test_stop']:.0%}")

# %%
close = abs(exact_match(answers, wanted) - stored["test_exact"]) < 0.15
stops = abs(stop_rate(answers) - stored["test_stop"]) < 0.15
print(f"within 15 points of the stored run: exactly right {close}, stopped {stops}")
assert close and stops and stop_rate(answers) > 0.9

# %% [markdown]
# Now all rows, three seeds each, at the rate that answered best with another seed; `lora` by itself is on attention and
# MLPs. Bars are means, dots are seeds, and full
# fine-tuning is hatched. In the third panel, less is better.


# %%
def values(row, measure):
    return [run[measure] for run in runs[row]]


def draw(measure, title, ax):
    for at, row in enumerate(ROWS):
        mean = statistics.fmean(values(row, measure))
        ax.barh(at, mean, color=OKABE_ITO[4], hatch=HATCHES[row == "full"], alpha=0.6)
        ax.plot(values(row, measure), [at] * len(runs[row]), "o", color="black", markersize=3)
        place = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8}
        ax.annotate(f"{mean:.2f}", (1.03, at), **place)
    ax.set(title=title, xlim=(0, None), ylim=(len(ROWS) - 0.5, -0.5), yticks=range(len(ROWS)))
    ax.set_yticklabels([row.replace(", ", ",\n") for row in ROWS] if ax is axes[0] else [])


# %%
_, axes = new_axes(8.8, 3, columns=3)
draw("test_exact", "exactly right", axes[0])
draw("test_stop", "stopped", axes[1])
draw("test_loss", "loss (nats a token)", axes[2])
assert all([run["seed"] for run in runs[row]] == [0, 1, 2] for row in ROWS)

# %%
print(f"{'':37}    lr   exactly right    stopped          loss")
for row in ROWS:
    exact, stop = (
        " ".join(f"{value:4.0%}" for value in values(row, measure))
        for measure in ("test_exact", "test_stop")
    )
    loss = " ".join(f"{value:.2f}" for value in values(row, "test_loss"))
    print(f"{row:37}{runs[row][0]['lr']:6g}   {exact}   {stop}   {loss}")
frozen = values("lora attention", "test_loss") + values("lora", "test_loss")
trained = [run["test_loss"] for row in ("full", *ROWS[3:]) for run in runs[row]]
assert all(run["test_stop"] > 0.9 for row in ROWS for run in runs[row])
assert min(frozen) > max(trained)

# %% [markdown]
# Notice: at that rate every row stops, and LoRA on all layers answers as many questions exactly as full
# fine-tuning. By the loss it is the other way round: wherever the embeddings are frozen it is higher than in any run in
# which they train. How can a model answer well and be so unsure?

# %% [markdown]
# ### How sure is it of the end?
#
# The live model stops in nearly every answer, for greedy decoding takes the likeliest token. **Predict first:** where
# an answer should end, how probable is `<|end|>`: in the live model, and in the full fine-tune of section 3?

# %%
from ftkit.chat import end_of_turn_id
from ftkit.conversations import encode

END = end_of_turn_id(tokenizer)
ends = pad([encode(tokenizer, messages, tokenizer.chat_template) for messages in test], 0)
labels = ends.pop("labels")[:, 1:]


@torch.no_grad()
def at_the_end(model):
    """Probability of each token where an answer should end: (answers, vocabulary)."""
    return model(**ends).logits[:, :-1].softmax(-1)[labels == END]


found = {LIVE: at_the_end(live), "full": at_the_end(cut_to(RANKS[-1]))}

# %% tags=["nbval-ignore-output"]
for row, each in found.items():
    print(f"{row:15} mean probability of <|end|>: {each[:, END].mean():.1%}")

# %%
likeliest = {
    row: (p.argmax(-1) == END).float().mean().item() > 0.9 for row, p in found.items()
}
sure = {row: p[:, END].mean().item() > 0.5 for row, p in found.items()}
print(f"<|end|> is the likeliest in over 90 % of the answers: {likeliest}")
print(f"and has over half of the probability: {sure}")
assert likeliest == {LIVE: True, "full": True} and sure == {LIVE: False, "full": True}

# %% [markdown]
# Notice: the likeliest of all, and improbable. Greedy decoding hides it; a **sampled** answer would go on. Who has the
# rest? Look for rows of the base's output matrix that point where the row of `<|end|>` does:

# %%
head = load_base(POCKET)[0].lm_head.weight.detach()
twins = torch.cosine_similarity(head, head[[END]]) > 0.99
seen = {token for page in corpus(500) for token in tokenizer.encode(page)}
occur = sum(token in seen for token in twins.nonzero().flatten().tolist())
shared = found[LIVE][:, twins].sum(-1).mean().item()
print(f"{int(twins.sum())} of {len(head)} rows have a cosine over 0.99 with that of <|end|>")
print(f"of their tokens, {occur} occur in 500 pages of the base model's corpus")
print(f"together they have over 90 % of the probability: {shared > 0.9}")
assert twins.sum() > 100 and occur == 0 and shared > 0.9

# %% [markdown]
# Notice: none of these tokens is in 500 pages. Tokens that pretraining never meets are only ever pushed down, which
# explains the one direction. While the output matrix is
# frozen, the layers can raise them together, not one alone, and `<|end|>` wins by a hair. Rows that train can part.

# %% [markdown]
# ### Three rules of thumb
#
# Equal seeds see equal data, so rows are compared seed by seed, by two measures. A mean difference counts from 5 points
# of exact answers on, and from 0.1 nats of loss. Where a rule holds in part, the verdict says where.


# %%
MEASURES = {  # its name in a record, a factor that makes more better, what counts, unit
    "exact answers": ("test_exact", 100, 5, "points"),
    "loss": ("test_loss", -1, 0.1, "nats"),
}


def judge(claim, source, pairs, sign):
    """Add the claim. It holds where `one` is ahead of `other` by more than `sign` times what counts."""
    holds, found = [], []
    for measure, (key, factor, counts, unit) in MEASURES.items():
        for where, (one, other) in pairs.items():
            both = zip(values(one, key), values(other, key), strict=True)
            gains = [factor * (mine - theirs) for mine, theirs in both]
            mean, low, high = (f"{f(gains):+.2f}" for f in (statistics.fmean, min, max))
            found.append(f"by {measure}, {where}: {mean} {unit} ({low} to {high})")
            if statistics.fmean(gains) > sign * counts:
                holds.append(f"by {measure}, {where}")
    measured = f"ahead {'; '.join(found)}; mean and range of 3 seeds"
    part = "; ".join(holds) if 0 < len(holds) < len(found) else ""
    ledger.add(claim, source, bool(holds), measured, only_if=part)
    print(*[ledger.claims[-1].verdict, *found], sep="\n    ")


# %%
ATTENTION_WHOLE, BOTH_WHOLE = list(TARGETS)[2:]
pairs = {
    "embeddings frozen": ("lora attention", "lora"),
    "embeddings trained": (ATTENTION_WHOLE, BOTH_WHOLE),
}
source = "a possible reading of Hu et al. 2021, who adapt attention only"
judge("LoRA on attention alone is as good as on all layers", source, pairs, -1)

# %%
pairs = {
    "on attention": (ATTENTION_WHOLE, "lora attention"),
    "on attention and MLPs": (BOTH_WHOLE, "lora"),
}
claim = "where chat tokens are new, LoRA needs embeddings and norms trained beside it"
judge(claim, "a rule among practitioners", pairs, +1)

# %%
pairs = {
    "embeddings frozen": ("lora", "full"),
    "embeddings trained": (BOTH_WHOLE, "full"),
}
source = "Hu et al. 2021; Biderman et al. 2024 find that it learns less"
judge("LoRA is as good as full fine-tuning", source, pairs, -1)

# %% [markdown]
# Notice: the two measures disagree. On all layers more answers are exactly right with embeddings frozen, by 8 points;
# on attention the 3 points do not count. The loss, which asks how likely, is far lower where the new tokens could be
# learnt. Decide by what
# you will do with the model: greedy answers, or sampled ones.

# %% [markdown]
# ## Break it, then fix it
#
# An adapter's file holds tensors. To merge them by a script of one's own looks easy: add `lora_B @ lora_A` to each
# matrix. Save the live adapter, and do that.

# %%
folder = save_adapter(live, Path(tempfile.mkdtemp()) / "adapter")
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
by_script = merge_by_script()
merged, report = merge_and_verify(live, batch)
said = ask(by_script)
print(f"the adapter stops in over 90 % of the answers: {stop_rate(answers) > 0.9}")
print(f"the script's model: {stop_rate(said) > 0.9}")

# %% tags=["raises-exception"]
assert logits_apart(by_script, merged) < 1e-3, "this is not the model that was trained"

# %% [markdown]
# The script's model loads and answers, and no message says that it is another one. The scale is not among the tensors:
# it is in `adapter_config.json`, as `lora_alpha`, `r` and `use_rslora`. The fix: read it there, and compare with the
# adapter, as `merge_and_verify` does.

# %%
config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
print({name: config[name] for name in ("lora_alpha", "r", "use_rslora")})
divisor = config["r"] ** 0.5 if config["use_rslora"] else config["r"]
mended = merge_by_script(config["lora_alpha"] / divisor)
agree = logits_apart(mended, merged) < 1e-3
print(f"logits within 0.001 of merge_and_verify's: {agree}")
same = [a.text for a in ask(mended)] == [a.text for a in answers]
print(f"answers are the adapter's, by the mended script: {same}")
print(f"by the broken one: {[a.text for a in said] == [a.text for a in answers]}")
assert agree and same and [a.text for a in said] != [a.text for a in answers]

# %% [markdown]
# Notice: a wrong merge is a model, too. Compare before you throw the adapter away.

# %% [markdown]
# ## Recap
#
# - LoRA adds `lora_alpha / r * lora_B @ lora_A` to a frozen matrix, and trains r × (in + out) numbers.
# - Exactly one factor starts at zero: the model is unchanged, and a gradient gets through.
# - At Adam's first step twice `lora_alpha` does what twice the rate does; later they part.
# - Merging is exact to rounding; only a copy brings the base back to the bit.
# - LoRA on all layers, embeddings frozen, equals full fine-tuning by greedy answers, and has twice its loss. With
#   embeddings and norms trained beside it the loss is near, and fewer answers are right.
# - Greedy answers hide how sure a model is of `<|end|>`: LoRA on the layers moves no row of
#   the output matrix.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. How many parameters does LoRA train beside a matrix of 4,096 × 1,024 at r = 16?
# 2. Why is the gradient of `lora_A` zero at the first step, and what if `lora_A` started at zero as well?
# 3. What does twice the `lora_alpha` do to Adam's first step?
# 4. In what sense is a merged model equal to its adapter?
# 5. A model tuned by LoRA alone stops in every greedy answer. What else do you look at, and why?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: 16 × (4,096 + 1,024) = 81,920.
# - 2: it is `lora_B.T` times something, and `lora_B` is zero; with both at zero neither ever gets a gradient.
# - 3: it doubles the change, as twice the learning rate would.
# - 4: to the rounding of its precision, not to the bit.
# - 5: the probability of the end token; if its row was never trained, others like it share what the layers raise.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Hu et al., [LoRA](https://arxiv.org/abs/2106.09685), 2021.
# - Aghajanyan et al., [Intrinsic Dimensionality](https://arxiv.org/abs/2012.13255), 2020: few directions suffice to
#   fine-tune.
# - Biderman et al., [LoRA Learns Less and Forgets Less](https://arxiv.org/abs/2405.09673), 2024.
# - Kalajdzievski, [A Rank Stabilization Scaling Factor](https://arxiv.org/abs/2312.03732), 2023: rank-stabilised LoRA.
# - PEFT, [LoRA](https://huggingface.co/docs/peft/package_reference/lora): names and options.
#
# ## Next
#
# 10_adapter_family: DoRA, LoRA+, prefixes and others on the same questions, side by side.
