# %% [markdown]
# # 12 · What fits: memory told in advance
#
# Before a run is started, shapes alone tell how many bytes of tensors each rank will hold. You predict them for a small
# model, measure it to the byte, and then ask the same of models of 405 billion parameters on a thousand GPUs.
#
# - **Prerequisites:** [08_full_fine_tune](08_full_fine_tune.ipynb); [11_speed_ups](11_speed_ups.ipynb) for
#   checkpointing and the loss in chunks.
# - **Hardware:** any processor; two cores are enough. On Windows, use WSL 2. What GPUs hold is computed, not run.
# - **Time:** about 40 minutes with the exercises; its cells run in about a minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **count** what training keeps: weights, gradients, moments,
# - **find** the peak of a step, and say what it is made of,
# - **predict** what rows, tokens, checkpointing and sharding change,
# - **check** a prediction against a step that really ran, on two processes too,
# - **name** the first change that makes a model fit.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import json
import logging
from dataclasses import replace

import torch
from ftcourse.claims import Ledger
from ftcourse.exercises.memory import (
    check_kept_bytes,
    check_largest_micro_batch,
    check_rank_bytes,
)
from ftcourse.explorers.memory import MemoryExplorer, plot_memory
from ftcourse.measured_memory import measure_memory
from ftcourse.plots import use_course_style
from ftcourse.studies import memory as study
from ftcourse.studies.memory_plans import plan_of
from transformers import AutoModelForCausalLM, GPT2Config

from ftkit import load_base
from ftkit.memory import MemoryPlan, compare, estimate_memory, published_meta_model, table
from ftkit.memory.estimate import persistent_bytes
from ftkit.memory.step import apply_method
from ftkit.memory.trace import copy_to_meta
from ftkit.models import data_dir
from ftkit.parameters import count_parameters

# %% tags=["nbval-ignore-output"]
use_course_style()

import warnings  # PEFT asks a model by a name that changes

warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing", FutureWarning)
logging.disable(logging.WARNING)  # transformers warns of tokens that a tiny vocabulary lacks
model, _ = load_base(data_dir() / "pocket-base")
print(f"torch {torch.__version__}, device: cpu")

# %%
MIB, GIB = 2**20, 2**30  # bytes
ROWS, TOKENS = 8, 64  # of a micro-batch, and of each row
BANDWIDTH = 50e9  # bytes a second that a GPU sends to others: one 400 Gb/s network card
ledger = Ledger("speed and memory")  # the claims tested here; the recap shows them

# %%
NUMBERS = (0, 2, 4)  # of study.CASES[2]: DDP, FSDP, and FSDP in bfloat16 with checkpointing
# Two processes take these steps for section 4 while you read.
measuring = study.start_measuring(2, NUMBERS)

# %% [markdown]
# ## 1 · What training keeps
#
# Between two steps, training keeps for each weight: the weight itself, and AdamW's two **moments**, running means of
# its gradient and of the gradient's square. After the backward pass there is a **gradient** as well. Together they are
# the **states**; in float32 each takes 4 bytes. **Predict:** pocket-base has about a million weights. How many MiB?

# %%
my_guess = 4  # MiB

# %%
parameters = count_parameters(model).total
kept = {"weights": 4 * parameters, "gradients": 4 * parameters, "optimizer": 8 * parameters}
for kind, size in kept.items():
    print(f"{kind:10} {size:12,} bytes")
total = sum(kept.values()) / MIB
print(
    f"together   {total:.2f} MiB: your guess is {'right' if abs(my_guess - total) < 1 else 'off'}"
)

# %% [markdown]
# Now train it for two steps and look: `measure_memory` adds up every live tensor of the second.

# %%
plan = MemoryPlan(micro_batch_size=ROWS, max_length=TOKENS)  # float32, AdamW, one process
measured = measure_memory(load_base(data_dir() / "pocket-base")[0], plan)
for kind, size in kept.items():
    print(f"{kind:10} predicted {size:12,}   measured {getattr(measured, kind):12,}")
    assert size == getattr(measured, kind)
print(f"{'peak':10} {measured.peak / MIB:.1f} MiB")
assert measured.peak > 2 * sum(kept.values())

# %% [markdown]
# Notice: exact, 16 bytes a weight. And the peak is more than twice that: something else was there.

# %% [markdown]
# ## 2 · The peak of a step
#
# The rest are **activations**, which the forward pass saves for the backward pass, and the **logits**. To predict them,
# `estimate_memory` runs the step in *fake* tensors, which have shapes and no memory, and counts.

# %%
estimate = estimate_memory(model, plan)
for phase, size in estimate.phases.items():
    print(
        f"{phase:36} predicted {size / MIB:6.2f} MiB, measured {measured.phases[phase] / MIB:6.2f}"
    )
assert abs(estimate.peak / measured.peak - 1) < 0.05
ax = plot_memory(estimate.splits, unit="MiB")

# %% [markdown]
# Notice: the peak comes at the end of the forward pass. Going backward, gradients (there are none before) grow more
# slowly than activations go. With many more weights for each token, the optimizer's step would be the peak.
#
# Where do activations come from? Count what a layer of this design saves for each token:

# %%
config = model.config
D, inner, T = config.hidden_size, config.intermediate_size, TOKENS
H = config.num_attention_heads
Q = H * config.head_dim
norms = 2 * (2 * D + 1)  # the normed row, times the gain, and one inverse length, twice
attention = 4 * Q + H + T  # q, k, v, output; a sum a head; this token's row of the mask
mlp = 4 * inner  # gate, its activation, up, their product
floats = norms + attention + mlp + 2 * D  # and the two sums of the residual stream
by_hand = 4 * floats * ROWS * TOKENS * config.num_hidden_layers
share = by_hand / estimate.splits["forward"]["activations"]
print(
    f"{floats:,} floats a token and layer; {by_hand / MIB:.2f} MiB: {share:.0%} of the activations"
)
assert 0.9 < share <= 1

# %% [markdown]
# Notice: the formula holds for this design alone (every head has its own keys here); a trace in fake tensors follows
# any model. What is left are the
# embedding, the last norm and the mask, once each.

# %% [markdown]
# ## 3 · Rows, tokens, checkpointing, chunks
#
# Activations grow with tokens; what is kept does not. **Predict:** four times the rows: four times the peak?

# %%
changes = {
    "as before": {},
    "4 × rows": {"micro_batch_size": 4 * ROWS},
    "checkpointing": {"micro_batch_size": 4 * ROWS, "activation_checkpointing": True},
    "and the loss in chunks": {
        "micro_batch_size": 4 * ROWS,
        "activation_checkpointing": True,
        "loss_chunk": 256,
    },
}
found = {
    name: estimate_memory(model, replace(plan, **change)) for name, change in changes.items()
}
ax = plot_memory({name: e.at_peak for name, e in found.items()}, unit="MiB")

# %%
peaks = [e.peak for e in found.values()]
print("peaks in MiB:", ", ".join(f"{peak / MIB:.1f}" for peak in peaks))
assert peaks[1] < 4 * peaks[0] and peaks[3] == peaks[2] < peaks[1]
print(f"4 × rows: {peaks[1] / peaks[0]:.1f} × the peak")
print(
    f"checkpointing leaves {peaks[2] / peaks[1]:.0%} of it, and chunks take nothing more away"
)
phase = found["and the loss in chunks"].phase
print(f"the peak is then in: {phase}")
assert "layer" in phase

# %% [markdown]
# Less than four times, because the states stay. Checkpointing saves `D` numbers per token and layer, and the peak moves
# to one layer, which is recomputed in the backward pass. It is larger than the logits of this vocabulary of 1,024, so
# computing the loss in chunks saves nothing here. With the 128,256 tokens of Llama 3 the logits are the peak.

# %% [markdown]
# ## 4 · On several ranks
#
# **DDP** copies everything to each rank, and adds buckets in which gradients travel. `fully_shard` cuts weights,
# gradients and moments into one slice a rank, and gathers a layer while it computes. `mesh` counts ranks: copies,
# slices, and parts of each layer (notebook 14); `(1, 2, 1)` is `fully_shard` on two, and `(2, 1, 1)` here DDP
# (`ddp=True`). Two real processes have taken the steps that were named at the start. Compare:

# %% tags=["nbval-ignore-output"]
live = study.measured(measuring)  # waits for them
print(f"{len(live)} cases measured on 2 ranks")

# %%
worst, told = 0.0, {}
for number, everyone in zip(NUMBERS, live, strict=True):
    case = study.CASES[2][number]
    predicted = told[number] = study.predict(case)
    first, peak = everyone[0], max(rank["peak"] for rank in everyone)
    for kind in ("weights", "gradients", "optimizer"):
        assert predicted[kind] == first[kind]
    worst = max(worst, abs(predicted["peak"] / peak - 1))
    print(
        f"mesh {case[1]['mesh']}: states exact, peak within 5 %: {abs(predicted['peak'] / peak - 1) < 0.05}"
    )
assert worst < 0.05

# %% [markdown]
# Notice: the prediction ran in this process, as rank 0 of a group whose second rank does not exist. The same was done
# for models of three designs on 1, 2 and 4 ranks; the record holds the raw bytes.

# %%
rows = json.loads((data_dir() / "results" / "memory.json").read_text())["rows"]
exact = all(
    row["predicted"][kind] == row["measured"][0][kind]
    for row in rows
    for kind in ("weights", "gradients", "optimizer")
)
apart = [
    abs(row["predicted"]["peak"] / max(r["peak"] for r in row["measured"]) - 1) for row in rows
]

# %%
for row in rows[::4]:
    plan_text = ", ".join(f"{k} {v}" for k, v in row["plan"].items()) or "defaults"
    print(
        f"{row['ranks']} rank(s) {row['model']:12} {row['predicted']['peak'] / MIB:5.2f} MiB  {plan_text[:60]}"
    )
print(
    f"{len(rows)} combinations: states exact: {exact}; peaks apart by {max(apart):.2%} at most"
)

# %%
told_right = exact and max(apart) < 0.05
condition = "tensors alone, not what kernels and allocators take; states compared on rank 0; CUDA not measured"
ledger.add(
    "a step's memory can be told without running it on its hardware",
    "torch.distributed._tools, the FSDP2 memory tracker of torch",
    told_right,
    f"{len(rows)} plans on 1, 2 and 4 ranks of a CPU: states exact, peaks within {max(apart):.2%}",
    only_if=condition if told_right else "",
)

# %% [markdown]
# ### Break it, then fix it
#
# "Two GPUs, so half of everything." Try that on the second of these cases, pocket-base under `fully_shard`:

# %% tags=["raises-exception"]
alone = study.predict(study.CASES[1][0])  # the same model and rows on one rank
sharded = told[2]
guess = alone["peak"] / 2
assert abs(guess / sharded["peak"] - 1) < 0.05, f"off by {guess / sharded['peak'] - 1:.0%}"

# %% [markdown]
# Only weights, gradients and moments are halved. Each rank has activations of its own rows, and whole layers while they
# compute. Look at the forward pass, at whose end there are no gradients yet:

# %%
one, split, four = (
    estimate_memory(model, study.plan_of(("pocket-base", {"mesh": (1, n, 1)}))).splits[
        "forward"
    ]
    for n in (1, 2, 4)
)
halved = (one["weights"] + one["optimizer"]) / 2
own = one["activations"] + one["logits"]
gathered = split.get("unsharded", 0) + split["communication"]
together, whole = halved + own + gathered, sum(split.values())
print(f"weights and moments  {halved / MIB:6.2f} MiB")
print(f"activations, logits  {own / MIB:6.2f}")
print(f"gathered and buffers {gathered / MIB:6.2f}")
print(f"together             {together / MIB:6.2f}, of {whole / MIB:.2f}")
assert abs(together / whole - 1) < 0.01

# %%
print(f"on 4 ranks: buffers the same: {four['communication'] == split['communication']}")
assert four["communication"] == split["communication"]
assert four["weights"] * 2 == split["weights"]

# %% [markdown]
# Notice: gathered weights and the buffers beside them do not shrink with the number of ranks.

# %% [markdown]
# ## 5 · Method and precision
#
# What does not train has neither gradient nor moments. A **child** (task-dependent child-tuning) keeps moments for a
# tenth of the weights and 4 bytes more for each to say where it is. bfloat16 halves what it stores; a float32
# **master copy** takes that back.

# %%
methods = {
    "full, float32": {},
    "full, moments in bfloat16": {"moment_dtype": "bfloat16"},
    "bfloat16 and a master copy": {"param_dtype": "bfloat16", "master_copy": True},
    "child of 10 %, compact": {
        "method": "child-tuning",
        "child_state": "compact",
        "reserve_p": 0.1,
    },
    "LoRA, r = 8": {"method": "lora", "options": {"r": 8}},
}
kept_by = {}
for name, change in methods.items():
    changed = replace(plan, **change)
    held = persistent_bytes(
        apply_method(copy_to_meta(model), changed), changed
    )  # from shapes alone
    kept_by[name] = {k: getattr(held, k) for k in ("weights", "gradients", "optimizer")}
    text = "  ".join(f"{k} {v / parameters:5.2f}" for k, v in kept_by[name].items())
    print(f"{name:27} {text}  bytes a weight")
assert sum(kept_by["bfloat16 and a master copy"].values()) == 16 * parameters

# %%
half = replace(plan, param_dtype="bfloat16", compute_dtype="bfloat16", master_copy=True)
less = estimate_memory(model, half)
ratio = less.at_peak["activations"] / estimate.at_peak["activations"]
print(f"with a master copy: activations {ratio:.0%}, peak {less.peak / estimate.peak:.0%}")
assert less.peak < estimate.peak and ratio < 0.7

# %% [markdown]
# Notice: mixed precision with a master copy keeps 16 bytes a weight, as float32 does; it saves activations, not states.

# %% [markdown]
# ## 6 · Three questions of size, worked out
#
# Talks on FSDP gave sizes. Does 0.7 B fit under DDP on GPUs of 16 GiB, 3 B under FSDP on four of them, and Llama-2-7B
# on one of 80 GiB? We build models of these sizes, empty (on **meta**: shapes without memory), and ask. AdamW's
# `kernel` says how it steps: `foreach` (torch's default on CUDA) with a copy of its size, `fused` without.
#
# The step is traced with the operations of a CPU; a GPU's attention may take a little more or less.


# %%
def gpt(width, layers):
    """A GPT-2 of this shape, on meta."""
    with torch.device("meta"):
        shape = GPT2Config(n_embd=width, n_layer=layers, n_head=width // 64)
        return AutoModelForCausalLM.from_config(
            shape, dtype=torch.float32, trust_remote_code=False
        )


# %%
ask = MemoryPlan(
    micro_batch_size=1, max_length=512, activation_checkpointing=True, loss_chunk=128
)
asked = {
    "0.7 B, DDP on 4": (gpt(1280, 32), replace(ask, mesh=(4, 1, 1), ddp=True, kernel="fused")),
    "3 B, FSDP on 4": (gpt(2560, 36), replace(ask, mesh=(1, 4, 1), kernel="fused")),
    "Llama-2-7B alone": (published_meta_model("llama-2-7b"), ask),
}

# %%
answers = {name: estimate_memory(*question) for name, question in asked.items()}
for name, e in answers.items():
    billions = count_parameters(asked[name][0]).total / 1e9
    print(
        f"{name:18} {billions:5.2f} B parameters, peak {e.peak / GIB:6.1f} GiB, in: {e.phase}"
    )

# %%
ax = plot_memory({name: e.at_peak for name, e in answers.items()}, capacity=16 * GIB)

# %%
ROOM = 0.9  # of a GPU; the rest is for CUDA's context, libraries and fragmentation
small_gpu, large_gpu = ROOM * 16 * GIB, ROOM * 80 * GIB
ddp, fsdp, seven = (e.peak for e in answers.values())
three = count_parameters(asked["3 B, FSDP on 4"][0]).total
too_much = 20 * three  # 16 bytes a weight, and 4 in buckets, before any activation
source = "this course's question, from talks on FSDP"
condition = (
    "one row of 512 tokens, checkpointing, chunked loss, and an AdamW without temporaries"
)

# %%
ledger.add(
    "a model of 700 M parameters trains on GPUs of 16 GiB under DDP",
    source,
    ddp < small_gpu,
    f"{ddp / GIB:.1f} GiB by estimate, float32; a tenth of the GPU left free",
    only_if=condition if ddp < small_gpu else "",
)
ledger.add(
    "a model of 3 B trains on four GPUs of 16 GiB under FSDP",
    source,
    fsdp < small_gpu < too_much,
    f"{fsdp / GIB:.1f} GiB by estimate; under DDP {too_much / GIB:.0f} GiB before any activation",
    only_if=condition if fsdp < small_gpu < too_much else "",
)

# %%
weights_7b = count_parameters(asked["Llama-2-7B alone"][0]).total
in_bfloat16 = 8 * weights_7b  # weight, gradient and moments of 2 bytes each
alone = f"float32; all in bfloat16 would keep {in_bfloat16 / GIB:.0f} GiB"
ledger.add(
    "full fine-tuning of Llama-2-7B does not fit on one GPU of 80 GiB",
    source,
    seven > large_gpu,
    f"{seven / GIB:.0f} GiB by estimate, float32 with AdamW",
    only_if=alone if seven > large_gpu else "",
)
assert ddp < too_much and seven > large_gpu > in_bfloat16

# %%
small = count_parameters(asked["0.7 B, DDP on 4"][0]).total
default = (20 + 4) * small  # AdamW's foreach kernel has a copy of the second moments
print(f"0.7 B under DDP in AdamW's default step on CUDA: {default / GIB:.1f} GiB")
assert ddp < small_gpu < default

# %% [markdown]
# Notice: 0.7 B under DDP keep 20 bytes a weight (16, and 4 in buckets) before any activation. So this is about the
# largest. torch's default AdamW on CUDA has another 4 bytes a weight while it steps, and leaves less than a tenth free.

# %% [markdown]
# ## 7 · Choose for yourself
#
# Estimates for Llama 3 at 2 rows of 2,048 tokens, under `fully_shard`, computed before
# (`ftcourse.studies.memory_plans`).
# Weights are kept in float32 and gathered in bfloat16 (LoRA's base is in bfloat16). Each bar adds a change to those
# above it. The line is the GPU; a tenth of it is left for other things.

# %%
stored = json.loads((data_dir() / "results" / "memory_plans.json").read_text())
explorer = MemoryExplorer(stored)
explorer

# %%
explorer.model.value, explorer.method.value = "llama-3-8b", "full"
for gpus in (1, 8, 64):
    explorer.gpus.value = gpus
    print(f"8 B, full, {gpus} × 80 GiB: {explorer.verdict}")
explorer.gpus.value = 1
explorer.method.value = "LoRA, r = 16"
print(f"8 B, LoRA, 1 × 80 GiB: {explorer.verdict}")
alone_verdict = explorer.verdict
explorer.method.value = "full"
assert explorer.verdict != alone_verdict
explorer.gpus.value, explorer.gib.value = 8, 40
print(f"8 B, full, 8 × 40 GiB: {explorer.verdict}")
assert "activation checkpointing" in explorer.verdict
explorer.gib.value = 80

# %% [markdown]
# Notice: where it does not fit, the verdict names the first change that makes it fit: a bar further down, more GPUs, or
# another method.

# %% [markdown]
# ### On paper: 8 B, 70 B, 405 B
#
# A step also *sends*: layers are gathered twice, gradients reduced once. The stored bytes over a stated bandwidth give
# a time that no step goes below, even where all sending overlaps with computing. Eight GPUs of one machine have a
# faster link, so these rows start at 64.

# %%
for row in stored:
    if row["method"] == "full" and row["change"].startswith("the loss") and row["gpus"] > 8:
        seconds = row["sent"] / BANDWIDTH
        print(
            f"{row['model']:13} {row['gpus']:5} GPUs: {row['peak'] / GIB:7.1f} GiB a rank, "
            f"{row['sent'] / GIB:6.0f} GiB sent a step, at 50 GB/s {seconds:5.1f} seconds"
        )
peak_of = {(r["model"], r["gpus"], r["method"], r["change"]): r["peak"] for r in stored}
last = list(dict.fromkeys(r["change"] for r in stored))[-1]
sent = [
    r["sent"]
    for r in stored
    if (r["model"], r["method"], r["change"]) == ("llama-3-70b", "full", last)
    and r["gpus"] > 1
]
assert sent == sorted(sent)
assert (
    peak_of["llama-3-70b", 8, "full", last]
    > 80 * GIB
    > peak_of["llama-3-70b", 64, "full", last]
)

# %% [markdown]
# Notice: from some number of GPUs on, more of them hardly lower the peak, as gathered layers and activations stay, and
# the bytes sent do not fall at all. Tensor parallelism, which cuts layers as they compute, is then the next step.
#
# A live estimate of one of these, and a plan that this model cannot follow: 3 ranks cannot share 32 heads:

# %%
eight = estimate_memory(
    published_meta_model("llama-3-8b"), plan_of("full", 64, 3)
)  # 3: all changes
print(table(eight))
near = eight.peak / peak_of["llama-3-8b", 64, "full", last]
print(f"stored and live agree within 3 %: {abs(near - 1) < 0.03}")
assert abs(near - 1) < 0.03
try:
    estimate_memory(published_meta_model("llama-3-8b"), replace(ask, mesh=(1, 8, 3)))
except ValueError as error:
    print(error)

# %% [markdown]
# `ftkit.finetune` prints this line after its second step; here it is for the step of section 1:

# %%
print(compare(estimate, measured.peak))

# %% [markdown]
# ## Exercise 1 · What is kept
#
# Difficulty ●○○, 3 minutes. Bytes of weights, gradients and AdamW's moments in float32. A right answer gives 17,200 for
# 1,000 trained and 300 frozen weights.


# %% tags=["exercise"]
def kept_bytes(trained: int, frozen: int) -> int:
    """Bytes that training keeps, gradients included."""
    ### BEGIN SOLUTION
    return 16 * trained + 4 * frozen
    ### END SOLUTION


check_kept_bytes(kept_bytes)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# A frozen weight is a weight and nothing else.
#
# </details>

# %% [markdown]
# ## Exercise 2 · What a rank holds
#
# Difficulty ●●○, 6 minutes. `layers` are parameter counts; all train in float32 with AdamW. Each rank keeps its
# slice. While it computes, the largest layer and another of that size are gathered, in bfloat16. A right answer gives
# 44,000 bytes for layers of 1,000, 4,000 and 2,000 on 4 ranks.


# %% tags=["exercise"]
def rank_bytes(layers: list[int], ranks: int) -> float:
    """Bytes of slices and of two gathered layers."""
    ### BEGIN SOLUTION
    return 16 * sum(layers) / ranks + 2 * 2 * max(layers)
    ### END SOLUTION


check_rank_bytes(rank_bytes)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Divide only the first of the two parts by the ranks.
#
# </details>

# %% [markdown]
# ## Exercise 3 · The largest micro-batch
#
# Difficulty ●●○, 7 minutes. `peak_of(rows)` is an estimate in bytes, here linear in rows, and slow: ask it at most
# three times. Return the most rows that fit, 0 if none does.


# %% tags=["exercise"]
def largest_micro_batch(peak_of, capacity: int) -> int:
    """The most rows whose peak is at most `capacity` bytes."""
    ### BEGIN SOLUTION
    first, second = peak_of(1), peak_of(2)
    per_row = second - first
    return max(0, (capacity - (first - per_row)) // per_row)
    ### END SOLUTION


check_largest_micro_batch(largest_micro_batch)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# The difference of two estimates is the cost of a row. Take that off the first, and what is left was there without any.
#
# </details>

# %% [markdown]
# A real peak is linear only while it stays in one phase: pocket-base's first row peaks in the optimizer's step, its
# second in the forward pass. Take two estimates whose `.phase` is the same, and estimate your answer once more.

# %% [markdown]
# ## Recap
#
# - Training in float32 with AdamW keeps 16 bytes for each trained weight, 4 for a frozen one.
# - The peak adds activations and logits, or the optimizer's temporaries: look which phase it is.
# - Sharding divides what is kept; activations, and layers while they are gathered, stay.
# - Change one thing at a time: checkpointing, a loss in chunks, the optimizer's kernel, more ranks, LoRA.
#
# `python -m ftkit.memory` does this for a causal language model and a plan; `--help` lists the options.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. Which 16 bytes does a trained weight take?
# 2. Why does twice the rows not mean twice the peak?
# 3. What does `fully_shard` not divide?
# 4. What does mixed precision with a master copy save?
# 5. Where do 4 bytes a weight more come from under DDP?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: itself, its gradient and two moments, 4 bytes each.
# - 2: weights and moments stay as they are.
# - 3: activations, logits, and layers while they are gathered, with the buffers beside them.
# - 4: activations; what is kept stays at 16 bytes.
# - 5: from the buckets in which gradients are added up over ranks.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Rajbhandari et al., [ZeRO](https://arxiv.org/abs/1910.02054), 2020: what training keeps, and how to divide it.
# - Zhao et al., [PyTorch FSDP](https://arxiv.org/abs/2304.11277), 2023.
# - PyTorch, `torch.distributed._tools` (`MemTracker`, `FSDPMemTracker`): the same idea, in torch.
# - Korthikanti et al., [Reducing Activation Recomputation in Large Transformer Models](https://arxiv.org/abs/2205.05198),
#   2022: activations by formula.
# - Touvron et al., [Llama 2](https://arxiv.org/abs/2307.09288), 2023; Grattafiori et al.,
#   [The Llama 3 Herd of Models](https://arxiv.org/abs/2407.21783), 2024: the sizes.
#
# ## Next
#
# [13_ddp_to_fsdp](13_ddp_to_fsdp.ipynb): the same bytes, seen on live ranks.
