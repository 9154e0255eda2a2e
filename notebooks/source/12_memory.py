# %% [markdown]
# # 12 · What fits, and how long it takes
#
# From a model's shapes you estimate how many bytes each rank holds, and from given speeds how long a step takes. You
# compare memory with measurements, byte by byte, and time with ranks that are slowed down on purpose. Then you ask the
# same of models of up to 405 billion parameters.
#
# - **Prerequisites:** [08_full_fine_tune](08_full_fine_tune.ipynb); [11_speed_ups](11_speed_ups.ipynb) for
#   checkpointing, the chunked loss and FLOPs.
# - **Hardware:** any processor; two cores are enough. On Windows, use WSL 2. What GPUs hold is computed, not run.
# - **Time:** about 50 minutes with the exercises; its cells run in about a minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **name** the collectives of sharded training and the bytes that each sends,
# - **count** what training keeps: weights, gradients, moments,
# - **find** the peak of a step, and say what it is made of,
# - **choose** the flag that makes a model fit,
# - **predict** how much of a step waits for the network, on one node and on many.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import json
import logging
import textwrap
import warnings
from dataclasses import replace
from itertools import combinations

import torch
import torch.distributed as dist
import transformers

# %%
from ftcourse.claims import Ledger
from ftcourse.exercises.memory import (
    check_fewest_changes,
    check_forward_seconds,
    check_largest_micro_batch,
)
from ftcourse.expected import expected_error
from ftcourse.explorers.memory import MemoryExplorer, plot_collectives, plot_memory
from ftcourse.explorers.timeline import TimelineExplorer, plot_exposed, plot_timeline
from ftcourse.measured_memory import measure_memory
from ftcourse.plots import use_course_style
from ftcourse.studies import memory as study
from ftcourse.studies.memory_plans import plan_of
from ftcourse.timeline import Cluster, Event, Plan, end_of, exposed, plan_of_model, timeline
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, GPT2Config

from ftkit import load_base
from ftkit.memory import MemoryPlan, compare, estimate_memory, published_meta_model, table
from ftkit.memory.estimate import persistent_bytes
from ftkit.memory.step import apply_method
from ftkit.memory.trace import copy_to_meta
from ftkit.memory.tracker import MemoryTracker
from ftkit.models import data_dir
from ftkit.parameters import count_parameters

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing", FutureWarning)  # PEFT's
logging.disable(logging.WARNING)  # transformers warns of tokens that a tiny vocabulary lacks
model, _ = load_base(data_dir() / "pocket-base")
print(f"torch {torch.__version__}, device: cpu")

# %%
MIB, GIB = 2**20, 2**30  # bytes
ROWS, TOKENS = 8, 64  # sequences of a micro-batch, and tokens of each
FLOPS = 400e12  # a second, that an H100 reaches in bfloat16 training: 40 % of its peak
ledger = Ledger("speed and memory")  # the claims tested here; the recap shows them

# %%
NUMBERS = (0, 2, 4)  # of study.CASES[2]: DDP, FSDP, and FSDP in bfloat16 with checkpointing
# Two processes take these steps for section 5 while you read.
measuring = study.start_measuring(2, NUMBERS)

# %% [markdown]
# ## 1 · Words for many ranks
#
# A **rank** is one process, on one GPU. Ranks exchange tensors by **collectives**, which all of them call together:
#
# - **all-gather**: each rank has a shard of a tensor, and each gets the full tensor,
# - **reduce-scatter**: each rank has a full tensor, and each gets a shard of their sum,
# - **all-reduce**: each rank has a full tensor, and each gets their full sum.

# %% tags=["hide-input"]
axes = plot_collectives()

# %% [markdown]
# Numbers are parts of one tensor, Σ is the sum over ranks. **DDP** keeps everything on each rank and all-reduces the
# gradients. **FSDP** (`fully_shard`) keeps a shard of everything: it all-gathers a layer's weights before the layer
# computes, frees them afterwards, and reduce-scatters the gradients.
#
# **Predict first:** the full tensor has S bytes. How many does each of n ranks send in each collective?

# %%
shards = [torch.tensor([float(rank)]) for rank in range(4)]
wholes = [torch.arange(4.0) + 10 * rank for rank in range(4)]
gathered = torch.cat(shards)  # on every rank
reduced = [sum(whole[rank] for whole in wholes) for rank in range(4)]  # one on each rank
assert torch.equal(
    torch.stack(reduced), sum(wholes)
)  # reduce-scatter, then all-gather: all-reduce


# %%
def sent(n):
    """What each of n ranks sends in a ring, in units of S."""
    once = (n - 1) / n  # all of the n parts but one
    return {"all-gather": once, "reduce-scatter": once, "all-reduce": 2 * once}


for n in (2, 4, 64):
    print(
        f"{n:2} ranks:", ", ".join(f"{name} {share:.2f} S" for name, share in sent(n).items())
    )

# %% [markdown]
# In a ring each rank passes parts on to its neighbour: all parts but one, S (n - 1) / n bytes. An all-reduce is a
# reduce-scatter and then an all-gather, so twice that. With many ranks this tends to S and 2 S: adding ranks does not
# reduce what each of them sends.

# %% [markdown]
# A **mesh** arranges ranks in a grid and names its axes. `--mesh 2,4,1` is dp_replicate 2, dp_shard 4, tp 1: two
# copies of the model, each sharded over four ranks (HSDP). tp, tensor parallelism, comes in notebook 14.

# %% [markdown]
# ## 2 · What training keeps
#
# Between two steps, training keeps each weight and AdamW's two **moments**, running means of its gradient and of the
# gradient's square. After the backward pass there is a **gradient** as well. Together they are the **model states**; in
# float32 each takes 4 bytes. **Predict:** pocket-base has about a million weights. How many MiB are its model states?

# %%
my_guess = 4  # MiB: put your own here

# %%
parameters = count_parameters(model).total
kept = {"weights": 4 * parameters, "gradients": 4 * parameters, "optimizer": 8 * parameters}
for kind, size in kept.items():
    print(f"{kind:10} {size:12,} bytes")
total = sum(kept.values()) / MIB
print(f"together   {total:.2f} MiB; your guess: {my_guess} MiB")

# %% [markdown]
# Now measure: `measure_memory` trains for two steps and adds up every live tensor of the second, because AdamW
# allocates its moments during the first.

# %%
plan = MemoryPlan(micro_batch_size=ROWS, max_length=TOKENS)  # float32, AdamW, one process
measured = measure_memory(load_base(data_dir() / "pocket-base")[0], plan)
for kind, size in kept.items():
    print(f"{kind:10} predicted {size:12,}   measured {getattr(measured, kind):12,}")
    assert size == getattr(measured, kind)
print(f"{'peak':10} {measured.peak / MIB:.1f} MiB")
assert measured.peak > 2 * sum(kept.values())

# %% [markdown]
# The states take exactly 16 bytes per weight. But the peak is more than twice their sum. What else is there?

# %% [markdown]
# ## 3 · The peak of a step
#
# The rest is **activations**, which forward saves for backward, and the **logits**. `estimate_memory` predicts them: it
# runs the step on *fake* tensors, which have shapes but no memory, and counts their bytes.

# %%
estimate = estimate_memory(model, plan)
for phase, size in estimate.phases.items():
    found = measured.phases[phase]
    print(f"{phase:36} predicted {size / MIB:6.2f} MiB, measured {found / MIB:6.2f}")
assert abs(estimate.peak / measured.peak - 1) < 0.05
ax = plot_memory(estimate.splits, unit="MiB")

# %% [markdown]
# The peak comes when backward begins, at the LM head. From there on activations are freed faster than gradients are
# added. That is typical of a small model with many tokens per weight. A large model with few tokens peaks at the end of
# backward, when all gradients are there, or in the optimizer's step (section 7).
#
# Where do activations come from? Count what a layer of this architecture saves for each token:

# %%
config = model.config
D, inner, T = config.hidden_size, config.intermediate_size, TOKENS
H = config.num_attention_heads
Q = H * config.head_dim
norms = 2 * (2 * D + 1)  # the normed token, times γ, and one inverse length, twice
attention = 4 * Q + H + T  # q, k, v, output; a sum per head; this token's row of the mask
mlp = 4 * inner  # gate, its activation, up, their product
floats = norms + attention + mlp + 2 * D  # and the two sums of the residual stream
by_hand = 4 * floats * ROWS * TOKENS * config.num_hidden_layers
share = by_hand / estimate.splits["forward"]["activations"]
print(f"{floats:,} floats per token and layer, {by_hand / MIB:.2f} MiB")
print(f"that is {share:.0%} of the estimated activations")
assert 0.9 < share <= 1

# %% [markdown]
# The formula holds for this architecture alone (here every head has its own keys); a trace with fake tensors works for
# any model. The missing 4 % are the embedding, the last norm and the mask, once each.

# %% [markdown]
# ## 4 · Sequences, checkpointing, chunks
#
# Activations grow with tokens; states do not. **Predict:** is the peak of four times the sequences four times as high?

# %%
more = {"micro_batch_size": 4 * ROWS}
again = {**more, "activation_checkpointing": True}
changes = {"as before": {}, "4 × sequences": more, "checkpointing": again}
changes["and a chunked loss"] = {**again, "loss_chunk": 256}
found = {name: estimate_memory(model, replace(plan, **c)) for name, c in changes.items()}
ax = plot_memory({name: e.at_peak for name, e in found.items()}, unit="MiB")

# %%
for name, e in found.items():
    print(f"{name:20} {e.peak / MIB:6.1f} MiB, in phase: {e.phase}")
peaks = [e.peak for e in found.values()]
assert peaks[1] < 4 * peaks[0] and peaks[3] == peaks[2] < peaks[1]
assert "layer" in found["and a chunked loss"].phase

# %% [markdown]
# Less than four times, because the states stay. With checkpointing only a layer's input is kept, `D` numbers per token,
# and the peak moves to the one layer that is recomputed in backward. Chunks then save nothing, because the logits are
# no longer in the peak. With Llama 3's vocabulary of 128,256 they often are: LoRA on 8B falls from 21.4 to 17.5 GiB
# (section 9).

# %% [markdown]
# Pocket-base is unlike a large model in another way: a quarter of it is embedding and LM head. How much is that in a
# large one?

# %%
for name in ("", "llama-3-8b", "llama-3-70b"):
    meta = published_meta_model(name or str(data_dir() / "pocket-base"))
    ends = sum(p.numel() for p in meta.parameters())
    ends -= sum(p.numel() for p in meta.model.layers.parameters())
    share = ends / count_parameters(meta).total
    print(
        f"{name or 'pocket-base':12} {ends / 1e6:8.1f} M in embedding, head and last norm: {share:.0%}"
    )

# %% [markdown]
# Under `fully_shard` these belong to the root module, which gathers them at the start of a step and keeps them until
# its end: 2 GiB in bfloat16 for Llama-3-8B, on every rank, however many ranks there are. Notebook 13 wraps them apart.

# %% [markdown]
# ### Exercise 1 · The fewest changes
#
# Difficulty ●●○, 8 minutes. `peak_of(chosen)` estimates the peak in bytes under `chosen`, a list of names from
# `changes`. Return the shortest list whose peak is at most `capacity`; of lists of equal length, the one whose changes
# come first in `changes`. Adding changes one by one while the peak falls does not find it, because the peak is a
# maximum over phases. Expected: a list, `[]` if the plan fits as it is; in the checker's cases some list fits.


# %% tags=["exercise"]
def fewest_changes(peak_of, changes: list[str], capacity: int) -> list[str]:
    """The fewest changes under which `peak_of` is at most `capacity`."""
    ### BEGIN SOLUTION
    for count in range(len(changes) + 1):
        for chosen in combinations(changes, count):
            if peak_of(chosen) <= capacity:
                return list(chosen)
    return list(changes)
    ### END SOLUTION


check_fewest_changes(fewest_changes)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `combinations(changes, count)` gives all choices of `count` changes, the first ones first. Start with a count of 0.
#
# </details>

# %% [markdown]
# ## 5 · On several ranks
#
# DDP keeps everything on each rank, and adds buckets in which gradients are sent. `fully_shard` keeps shards, and
# gathers a layer while it computes. Two real processes have trained for two steps meanwhile, in three configurations.
# Compare with what this process predicts:

# %% tags=["nbval-ignore-output"]
live = study.measured(measuring)  # waits for them
print(f"{len(live)} cases measured on 2 ranks")

# %%
predictions, NEAR = {}, 0.05  # of the predicted peak
HOW = ("DDP", "fully_shard", "fully_shard, bfloat16, checkpointing")
for number, everyone, how in zip(NUMBERS, live, HOW, strict=True):
    case = study.CASES[2][number]
    predicted = predictions[number] = study.predict(case)
    for kind in ("weights", "gradients", "optimizer"):
        assert predicted[kind] == everyone[0][kind]
    highest = max(rank["peak"] for rank in everyone)
    assert abs(predicted["peak"] / highest - 1) < NEAR
    print(f"{case[0]:11} {how:36} {predicted['peak'] / MIB:6.2f} MiB predicted")

# %% [markdown]
# Two models: pocket-base, and a Llama of 0.2 M parameters. The assertions hold the measured states to the prediction
# exactly, and the peaks within 5 %, because the sending threads may hold a buffer a moment longer. The prediction ran
# in this process, as rank 0 of a group whose second rank does not exist.
#
# The same was measured for three architectures on 1, 2 and 4 ranks, and stored. Every fourth of these runs:

# %%
rows = json.loads((data_dir() / "results" / "memory.json").read_text())["rows"]
apart = [
    row["predicted"]["peak"] / max(r["peak"] for r in row["measured"]) - 1 for row in rows
]
states = ("weights", "gradients", "optimizer")
exact = all(
    row["predicted"][kind] == row["measured"][0][kind] for row in rows for kind in states
)
for row in rows[::4]:
    settings = ", ".join(f"{k} {v}" for k, v in row["plan"].items() if k != "options")
    peak = row["predicted"]["peak"] / MIB
    print(f"{row['ranks']} × {row['model']:11} {peak:6.2f} MiB  {settings or 'defaults'}")
print(f"{len(rows)} plans: states exact, peaks at most {max(map(abs, apart)):.2%} off")
assert exact

# %%
close = exact and max(map(abs, apart)) < 0.05
condition = (
    "tensors alone, not what kernels and allocators take; states compared on rank 0; "
    "CUDA not measured"
)
_ = ledger.add(
    "a step's memory can be estimated without running it on its hardware",
    "torch.distributed._tools, the FSDP2 memory tracker of torch",
    close,
    f"{len(rows)} plans on 1, 2 and 4 ranks of a CPU: states exact, "
    f"peaks within {max(map(abs, apart)):.2%}",
    model="pocket-base and three small models",
    only_if=condition if close else "",
)

# %% [markdown]
# ### DDP: 20 bytes per weight, or 16
#
# DDP's buckets hold every gradient a second time, 4 bytes more per weight. With `gradient_as_bucket_view=True` the
# gradients are views into the buckets. **Predict** the bytes per weight with it. One rank is enough to measure them:


# %%
def ddp_bytes(**options):
    """Bytes per weight after a backward pass under DDP, with the moments that AdamW adds."""
    with MemoryTracker() as tracker:
        net = load_base(data_dir() / "pocket-base")[0]
        tracker.label(net.parameters(), "weights")
        replica = DistributedDataParallel(net, **options)
        ids = torch.arange(32)[None]
        for _ in range(2):  # buckets are rebuilt after the first
            replica(ids, labels=ids).loss.backward()
    return (tracker.now + 8 * parameters) / parameters


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
views = {view: ddp_bytes(gradient_as_bucket_view=view) for view in (False, True)}
dist.destroy_process_group()
for view, size in views.items():
    print(f"gradient_as_bucket_view={view!s:5} {size:.1f} bytes per weight")
assert 19.5 < views[False] < 20.5 and 15.5 < views[True] < 16.5

# %% [markdown]
# ### Break it, then fix it
#
# "Two GPUs, so half of everything." Try that on the second of the measured cases, pocket-base under `fully_shard`:

# %% tags=["raises-exception"]
alone = study.predict(study.CASES[1][0])  # the same model and sequences on one rank
sharded = predictions[2]
guess = alone["peak"] / 2
with expected_error(AssertionError):
    assert abs(guess / sharded["peak"] - 1) < 0.05, f"off by {guess / sharded['peak'] - 1:.0%}"

# %% [markdown]
# Only weights, gradients and moments are halved. Each rank has the activations of its own sequences, and unsharded
# layers while they compute. Compare one rank with two at the end of forward, when there are no gradients yet:

# %%
one, split, four = (
    estimate_memory(model, study.plan_of(("pocket-base", {"mesh": (1, n, 1)}))).splits[
        "forward"
    ]
    for n in (1, 2, 4)
)
before = {
    "weights and moments": one["weights"] + one["optimizer"],
    "activations and logits": one["activations"] + one["logits"],
    "unsharded layers, buffers": 0,
}
parts = before | {
    "weights and moments": before["weights and moments"] / 2,
    "unsharded layers, buffers": split.get("unsharded", 0) + split["communication"],
}
for name, size in parts.items():
    print(f"{name:26} {before[name] / MIB:6.2f} MiB on one rank, {size / MIB:5.2f} on two")
print(
    f"{'together':26} {sum(one.values()) / MIB:6.2f} MiB on one rank, "
    f"{sum(split.values()) / MIB:5.2f} on two"
)
assert abs(sum(parts.values()) / sum(split.values()) - 1) < 0.01

# %%
print(f"buffers on 2 ranks {split['communication']:,} bytes, on 4 {four['communication']:,}")
assert four["communication"] == split["communication"]
assert four["weights"] * 2 == split["weights"]

# %% [markdown]
# Unsharded layers and the buffers beside them do not shrink with the number of ranks.

# %% [markdown]
# ## 6 · Method and precision
#
# What does not train has neither gradient nor moments. **8-bit AdamW** keeps each moment in a byte, with a scale per
# block of 256. **QLoRA** keeps the frozen matrices in 4 bits (notebook 10). Task-driven child-tuning
# keeps moments for a tenth of the weights and 4 bytes each for their places.
#
# **Predict** the bytes per weight of each, on Llama-3-8B:

# %%
half = {"param_dtype": "bfloat16", "compute_dtype": "bfloat16"}
methods = {
    "full, float32": {},
    "full, AdamW in 8 bits": {"moment_dtype": "8bit"},
    "full, bfloat16 and a master copy": {**half, "master_copy": True},
    "child of 10 %, compact": {
        "method": "child-tuning",
        "child_state": "compact",
        "reserve_p": 0.1,
    },
    "LoRA, r = 16, bfloat16 base": {"method": "lora", "options": {"r": 16}, **half},
    "QLoRA, r = 16, 4-bit base": {
        "method": "lora",
        "options": {"r": 16},
        "base_dtype": "nf4",
        **half,
    },
}

# %%
big = published_meta_model("llama-3-8b")
weights_8b, kept_by = count_parameters(big).total, {}
for name, change in methods.items():
    changed = replace(plan, **change)
    held = persistent_bytes(apply_method(copy_to_meta(big), changed), changed)  # shapes alone
    kept_by[name] = [getattr(held, kind) for kind in states]
    text = " + ".join(f"{size / weights_8b:5.2f}" for size in kept_by[name])
    each = sum(kept_by[name]) / weights_8b
    print(
        f"{name:33} {text} = {each:5.2f} bytes per weight, {sum(kept_by[name]) / GIB:6.1f} GiB"
    )
assert sum(kept_by["full, bfloat16 and a master copy"]) == 16 * weights_8b
assert sum(kept_by["QLoRA, r = 16, 4-bit base"]) < 0.5 * sum(
    kept_by["LoRA, r = 16, bfloat16 base"]
)

# %% [markdown]
# Weights + gradients + moments. Mixed precision with a master copy keeps 16 bytes per weight, as float32 does; it saves
# activations, not states. A 4-bit base does not fall to half a byte, because embedding and LM head stay in 16 bits.
# 8-bit AdamW (`--optimizer adamw_8bit`) and a 4-bit base (`--load_in_4bit`) run on one rank here.

# %%
plan_16 = replace(plan, **half, master_copy=True)
less = estimate_memory(model, plan_16)
ratio = less.at_peak["activations"] / estimate.at_peak["activations"]
print(f"with a master copy: activations {ratio:.0%}, peak {less.peak / estimate.peak:.0%}")
assert less.peak < estimate.peak and ratio < 0.7

# %% [markdown]
# ## 7 · Three questions of size, worked out
#
# Does 0.7 B fit under DDP on GPUs of 16 GiB, 3 B under FSDP on four of them, and Llama-2-7B on one of 80 GiB? We build
# models of these sizes, empty (on **meta**: shapes without memory), and ask.
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
    "Llama-2-7B alone": (published_meta_model("llama-2-7b"), replace(ask, kernel="fused")),
}

# %%
answers = {name: estimate_memory(*question) for name, question in asked.items()}
for name, e in answers.items():
    billions = count_parameters(asked[name][0]).total / 1e9
    print(
        f"{name:18} {billions:5.2f} B parameters, peak {e.peak / GIB:6.1f} GiB, in: {e.phase}"
    )
gpus = dict(zip(answers, (16 * GIB, 16 * GIB, 80 * GIB), strict=True))
ax = plot_memory({name: e.at_peak for name, e in answers.items()}, capacity=gpus)

# %%
ROOM = 0.9  # of a GPU; the rest is for the CUDA context, libraries and fragmentation
ddp, fsdp, seven = (e.peak for e in answers.values())
small = count_parameters(asked["0.7 B, DDP on 4"][0]).total
three = count_parameters(asked["3 B, FSDP on 4"][0]).total
weights_7b = count_parameters(asked["Llama-2-7B alone"][0]).total
print(
    f"0.7 B under DDP: {ddp / GIB:.1f} GiB; with gradients as bucket views {(ddp - 4 * small) / GIB:.1f}"
)
print(f"3 B under DDP: {20 * three / GIB:.0f} GiB before any activation")
print(f"Llama-2-7B all in bfloat16: {8 * weights_7b / GIB:.0f} GiB of states")
assert ddp < ROOM * 16 * GIB and fsdp < ROOM * 16 * GIB < 16 * three
assert seven > ROOM * 80 * GIB > 8 * weights_7b

# %% [markdown]
# 0.7 B and 3 B fit, Llama-2-7B in float32 does not. Under DDP 0.7 B is about the largest model for 16 GiB; gradients
# that are views of the buckets leave 2.6 GiB more. AdamW's kernel matters, too: torch's default on CUDA, foreach, has 4
# bytes per weight of temporaries, the fused kernel none (measured in notebook 11). `ftkit finetune` takes the fused
# one, and never DDP: `--mesh 4,1,1` replicates under `fully_shard`.

# %%
added = ledger.add(
    "full fine-tuning of a 7B model in float32 with AdamW takes 16 bytes per parameter, over 100 GiB",
    "Rajbhandari et al. 2020, ZeRO",
    16 * weights_7b <= seven < 20 * weights_7b and seven > 100 * GIB,
    f"Llama-2-7B, 512 tokens, checkpointing, chunked loss: {seven / GIB:.0f} GiB by estimate",
    model="Llama-2-7B, 6.7 B parameters, on meta",
)

# %% [markdown]
# ## 8 · How long does it take?
#
# Memory decides whether a plan runs; computing and communication decide how fast. On a GPU two streams work at once:
# one computes, the other communicates. FSDP gathers the next layer while one computes, so an all-gather costs no time
# if it takes less than the layer that computes meanwhile.
#
# **Predict first:** of eight layers each computes for 3 ms in forward, and an all-gather takes 2 ms. How long does
# forward take? And if an all-gather takes 5 ms?


# %%
def layers_of(forward, moved, layers=8, **changes):
    """A plan of equal layers whose forward pass and all-gather take so many milliseconds."""
    size, tokens, ranks = 1_000_000, 1000, 2
    speeds = {"flops": 2 * size * tokens / (forward / 1e3), "bandwidth": size / (moved / 1e3)}
    return Plan(layers, size, size, tokens, ranks, **speeds, **changes)


fast, slow = timeline(layers_of(3, 2)), timeline(layers_of(3, 5))
ax = plot_timeline({"all-gather 2 ms": fast, "5 ms": slow})

# %%
for name, events in {"2 ms": fast, "5 ms": slow}.items():
    whole, waiting = 1e3 * end_of(events), 1e3 * exposed(events)
    print(
        f"all-gather of {name}: step {whole:.0f} ms, of which {waiting:.0f} ms wait for the network"
    )
assert exposed(fast) < 0.2 * end_of(fast) and exposed(slow) > 0.4 * end_of(slow)

# %% [markdown]
# Numbers are layers, R is the root module (embedding, last norm, head). With 2 ms compute waits only for the first
# all-gathers, and at the end the last reduce-scatters remain: these are **exposed**. With 5 ms every layer waits, most
# of all in backward, where gradients (4 bytes each) are sent besides weights (2 bytes).

# %% [markdown]
# ### Exercise 2 · A forward pass in time
#
# Difficulty ●●○, 10 minutes. `gather[i]` and `compute[i]` are seconds of layer i. The first all-gather is issued at 0.
# Layer i starts once it is gathered and layer i - 1 is done; at that moment the all-gather of layer i + 1 is issued.
# Expected: the time at which the last layer is done: 10.0 for three layers with all-gathers of 1 s and 3 s of compute.


# %% tags=["exercise"]
def forward_seconds(gather: list[float], compute: list[float]) -> float:
    """When the forward pass ends, with one layer gathered ahead."""
    ### BEGIN SOLUTION
    now, arrives = 0.0, gather[0]
    for i, seconds in enumerate(compute):
        now = max(now, arrives)
        if i + 1 < len(gather):
            arrives = now + gather[i + 1]
        now += seconds
    return now
    ### END SOLUTION


check_forward_seconds(forward_seconds)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Keep two times: `now`, until which layers have computed, and `arrives`, when the next layer's weights are there. When
# a layer starts, set `arrives` for the one after it.
#
# </details>

# %% [markdown]
# ### Is the prediction right?
#
# torch's own `fully_shard` ran on 2 and 4 gloo ranks, with 12 plans. Compute and network were emulated by sleeping:
# each layer takes a given time, and a collective arrives after bytes / bandwidth. So the schedule is tested, that is,
# which collective is issued when and what waits for it (`python -m experiments.fsdp_timeline`), not the speed of a GPU.

# %%
checked = json.loads((data_dir() / "results" / "fsdp_timeline.json").read_text())["rows"]
off = []
for row in checked:
    predicted = end_of(timeline(Plan(**row["plan"])))
    assert abs(predicted - row["predicted"]) < 1e-3
    off.append(predicted / row["measured"] - 1)
    print(
        f"{row['name']:32} {predicted:.3f} seconds predicted, "
        f"{row['measured']:.3f} measured, {off[-1]:+.1%}"
    )
print(f"{len(off)} plans, largest difference {max(map(abs, off)):.1%}")

# %%
row = next(row for row in checked if row["name"] == "slow network")
recorded = [Event(*event) for event in row["events"]]
ax = plot_timeline({"predicted": timeline(Plan(**row["plan"])), "recorded": recorded})

# %%
within = max(map(abs, off)) < 0.1
_ = ledger.add(
    "FSDP hides communication behind compute by prefetching the next layer",
    "Zhao et al. 2023, PyTorch FSDP",
    within,
    f"{len(off)} plans on 2 and 4 ranks: steps predicted from that schedule "
    f"within {max(map(abs, off)):.1%}",
    model="layers and a network of stated speed, emulated by sleeping",
    only_if="an all-gather is shorter than the layer that computes meanwhile"
    if within
    else "",
)

# %% [markdown]
# ### Node-aware bandwidth
#
# GPUs of a node are linked by NVLink: 450 GB/s each way on an H100. Nodes are linked by network cards, commonly one of
# 400 Gb/s (50 GB/s) per GPU, eight per node. A ring enters each node once and goes on inside over NVLink, so a
# collective uses *all* cards of a node together: 400 GB/s, not 50.

# %%
for cluster in (Cluster(8), Cluster(64), Cluster(64, cards=1)):
    gb = 2 * 70.6e9 * (cluster.gpus - 1) / cluster.gpus / 1e9
    print(
        f"{cluster.gpus:3} GPUs, {cluster.nodes} node(s), {cluster.cards} card(s) per node: ",
        end="",
    )
    print(
        f"{cluster.bandwidth / 1e9:.0f} GB/s; "
        f"to gather 70B in bfloat16: {gb / cluster.bandwidth * 1e9:.2f} seconds"
    )

# %% [markdown]
# Published: 46 to 48 GB/s per card, 366 GB/s on four nodes of eight, 476 GB/s in a node
# ([nccl-tests 290](https://github.com/NVIDIA/nccl-tests/issues/290),
# [309](https://github.com/NVIDIA/nccl-tests/issues/309)). Nodes with one card, as many cloud machines have, are eight
# times slower.
#
# **Predict:** for how many seconds per step does each of 64 GPUs send, if they train 70B? Does that slow the step down?

# %%
stored = json.loads((data_dir() / "results" / "memory_plans.json").read_text())
last = list(dict.fromkeys(r["change"] for r in stored))[-1]
for row in stored:
    if row["method"] == "full" and row["change"] == last and row["gpus"] in (64, 1024):
        bus = Cluster(row["gpus"]).bandwidth
        print(
            f"{row['model']:13} {row['gpus']:5} GPUs: {row['peak'] / GIB:6.1f} GiB per rank, ",
            end="",
        )
        print(
            f"{row['sent'] / 1e9:5.0f} GB sent per step, {row['sent'] / bus:4.1f} seconds at 400 GB/s"
        )
sent_70b = next(r for r in stored if (r["model"], r["gpus"]) == ("llama-3-70b", 64))["sent"]
assert 1.3 < sent_70b / Cluster(64).bandwidth < 1.5

# %%
seventy = published_meta_model("llama-3-70b")
curves = {}
for label, cluster in {
    "8 nodes, 8 cards each": Cluster(64),
    "8 nodes, 1 card each": Cluster(64, cards=1),
}.items():
    curves[label] = {}
    for batch in (1, 2, 4, 8, 16):
        given = {"batch": batch, "length": 2048, "flops": FLOPS, "recompute": True}
        events = timeline(plan_of_model(seventy, cluster, **given))
        curves[label][2048 * batch] = exposed(events) / end_of(events)
ax = plot_exposed(curves)

# %%
for label, points in curves.items():
    shares = ", ".join(f"{share:.0%} at {tokens:,}" for tokens, share in points.items())
    print(f"{label}: {shares} tokens")
assert curves["8 nodes, 8 cards each"][2048] < 0.1 > curves["8 nodes, 1 card each"][8192]
assert 0.4 < curves["8 nodes, 1 card each"][4096] < 0.6

# %% [markdown]
# A rank of 70B sends for 1.4 s per step, on 64 GPUs as on 1,024 (section 1 says why). At 400 TFLOP/s, with all eight
# cards, 2,048 tokens per GPU hide nearly all of it. With one card per node half of the step waits at 4,096 tokens;
# 8,192 hide it. The remedies: more tokens per GPU and step; or HSDP, `--mesh 8,8,1`, which gathers within a node and
# sends only gradients between nodes, but divides the states by 8 instead of 64.

# %% tags=["nbval-ignore-output"]
time_explorer = TimelineExplorer(FLOPS)
time_explorer

# %%
time_explorer.gpus.value = 64
waits = {}
for cards in (8, 1):
    time_explorer.cards.value = cards
    waits[cards] = time_explorer.waiting / time_explorer.seconds
    print(
        f"8B, 64 GPUs, {cards} card(s): {waits[cards]:.0%} of {time_explorer.seconds:.2f} seconds waits"
    )
assert waits[1] > 3 * waits[8]

# %% [markdown]
# How does that compare with real GPUs? torchtitan's 8B (notebook 11) runs at 5,762 tokens per second and GPU on 8 GPUs
# and at 5,605 on 128, 3 % slower. The timeline predicts:

# %%
waiting = []
for gpus in (8, 128):
    given = {"batch": 2, "length": 8192, "flops": 0.35 * 989e12}
    events = timeline(plan_of_model(big, Cluster(gpus), **given))
    waiting.append(exposed(events) / end_of(events))
    print(f"{gpus:3} GPUs: {waiting[-1]:.1%} of the step waits for the network")
assert max(waiting) < 0.03

# %% [markdown]
# Both say that nearly all communication is hidden. The timeline leaves out latency, stragglers, and the GPU cores that
# collectives occupy. Use it to see *whether* the network matters, and measure by how much.

# %% [markdown]
# ## 9 · Choose for yourself
#
# Estimates for Llama 3 at 2 sequences of 2,048 tokens, under `fully_shard`. Weights are kept in float32 and gathered in
# bfloat16 (LoRA's base is kept in bfloat16). Each bar adds a change to those above it. The line is the GPU's memory, of
# which a plan may use nine tenths.

# %%
explorer = MemoryExplorer(stored)
explorer.gpus.value = 8
explorer

# %%
for method, gpus, gib in (
    ("full", 1, 80),
    ("full", 8, 80),
    ("LoRA, r = 16", 1, 80),
    ("full", 8, 40),
):
    explorer.method.value, explorer.gpus.value, explorer.gib.value = method, gpus, gib
    print(f"8 B, {method}, {gpus} × {gib} GiB: {explorer.verdict}")
assert "activation checkpointing" in explorer.verdict

# %% [markdown]
# Where it does not fit, the verdict names the first change that makes it fit. A change saves nothing if it lowers
# another phase than the peak's: under full fine-tuning, with checkpointing, the loss in chunks does not help, because
# the peak is in a layer's backward; choose LoRA, and it does.
#
# Each change is a flag of `ftkit finetune` and `ftkit memory`, cheap ones first:
#
# | change | flag | costs |
# | --- | --- | --- |
# | fewer sequences per pass | `--micro_batch_size 1` | speed, on a GPU |
# | recompute activations | `--activation_checkpointing` | up to a third more FLOPs |
# | chunked loss | `--loss_chunk 512` | 2 % more FLOPs |
# | fused AdamW | taken on CUDA by itself | nothing |
# | shard over more ranks | `--mesh 1,8,1` | communication |
# | 8-bit moments, one rank | `--optimizer adamw_8bit` | a little precision |
# | adapters, 4-bit base | `--method lora --load_in_4bit` | what adapters can learn |

# %% [markdown]
# A live estimate of 8B on 64 GPUs, with all these changes:

# %%
eight = estimate_memory(big, plan_of("full", 64, 3))  # 3: all changes
print(table(eight))
peak_of_64 = next(
    r["peak"]
    for r in stored
    if (r["model"], r["gpus"], r["change"]) == ("llama-3-8b", 64, last)
)
assert abs(eight.peak / peak_of_64 - 1) < 0.03

# %% [markdown]
# A plan that cannot run is refused at once. Three tensor-parallel ranks cannot share 32 attention heads:

# %%
try:
    estimate_memory(big, replace(ask, mesh=(1, 8, 3)))
except ValueError as error:
    print(textwrap.fill(str(error), 95))

# %% [markdown]
# `ftkit finetune` prints such a line after its second step. This is the one for the step of section 2:

# %%
print(compare(estimate, measured.peak))

# %% [markdown]
# ### Exercise 3 · The largest micro-batch
#
# Difficulty ●●○, 7 minutes. `peak_of(rows)` estimates the bytes of a micro-batch of `rows` sequences, linearly here. It
# is slow, so call it at most three times. Return the most rows whose peak is at most `capacity`, 0 if not even one
# fits. Expected: 7, if the peak is 100 + 7 · rows bytes and the capacity 150.


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
# second in forward. Take two estimates whose `.phase` is the same, and estimate your answer once more.

# %% [markdown]
# ## What transfers
#
# Measured here: pocket-base and three small models, under 1.1 M parameters, on CPU ranks. Sizes of 7B and more are
# estimates, times of GPUs are computed from stated speeds; no GPU was measured.
#
# | | transfers to 1B to 8B | does not |
# | --- | --- | --- |
# | states | bytes per weight, exactly | |
# | peak | that it is a maximum over phases | which phase: tokens per weight decide |
# | chunked loss | what it saves | that it saves nothing here |
# | CUDA | | context, libraries, fragmentation: leave a tenth free |
# | timeline | what is hidden, what is exposed | seconds, unless FLOP/s and bandwidth are yours |

# %% [markdown]
# ## Numbers to take away
#
# Computed here:
#
# - 16 bytes per trained weight in float32 with AdamW (20 under DDP without bucket views), 10 with 8-bit moments, 2
#   frozen in bfloat16; QLoRA keeps 8B in about 6 GiB.
# - A step under FSDP sends about 8 bytes per weight on each rank: 2 + 2 gathered, 4 reduced.
# - 64 GPUs with 400 Gb/s each: 400 GB/s per collective; 70B sends for 1.4 s per step, which 2,048 tokens per GPU
#   hide.
#
# From the literature, not measured here:
#
# - 46 to 48 GB/s per 400 Gb/s card; 366 to 476 GB/s for collectives over nodes of eight (nccl-tests).

# %% [markdown]
# ## Recap
#
# - All-gather and reduce-scatter send S (n - 1) / n bytes per rank; adding ranks does not reduce that.
# - The peak adds activations and logits, or the optimizer's temporaries: look which phase it is.
# - Sharding divides model states; activations, and the layers gathered for computing, stay.
# - Each change is a flag; take the fewest that fit, cheap ones first.
# - Communication costs no time while it is shorter than the layer that computes meanwhile.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. Which 16 bytes does a trained weight take, and where do 4 more come from under DDP?
# 2. Why does twice the sequences not mean twice the peak?
# 3. What does `fully_shard` not divide?
# 4. Why is a collective over eight nodes of eight GPUs not limited to one card's 50 GB/s?
# 5. When does the network slow an FSDP step down?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: itself, its gradient and two moments, 4 bytes each; the buckets hold gradients a second time.
# - 2: weights and moments stay as they are.
# - 3: activations, logits, and layers while they are gathered, with the buffers beside them.
# - 4: it enters each node through all eight cards together, and goes on inside over NVLink.
# - 5: when moving a layer takes longer than computing one; more tokens per step hide it.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Rajbhandari et al., [ZeRO](https://arxiv.org/abs/1910.02054), 2020: what training keeps, and how to divide it.
# - Zhao et al., [PyTorch FSDP](https://arxiv.org/abs/2304.11277), 2023: prefetching and overlap.
# - PyTorch 2.13, `torch.distributed.fsdp._fully_shard`: the schedule; `torch.distributed._tools`: memory by fake
#   tensors.
# - Korthikanti et al., [Reducing Activation Recomputation in Large Transformer
#   Models](https://arxiv.org/abs/2205.05198), 2022: activations by formula.
# - Dettmers et al., [8-bit Optimizers](https://arxiv.org/abs/2110.02861), 2021;
#   [QLoRA](https://arxiv.org/abs/2305.14314), 2023.
# - NVIDIA, [nccl-tests 290](https://github.com/NVIDIA/nccl-tests/issues/290) and
#   [309](https://github.com/NVIDIA/nccl-tests/issues/309): measured bus bandwidths.
# - Touvron et al., [Llama 2](https://arxiv.org/abs/2307.09288), 2023; Grattafiori et al.,
#   [The Llama 3 Herd of Models](https://arxiv.org/abs/2407.21783), 2024: the sizes.
#
# ## Next
#
# [13_ddp_to_fsdp](13_ddp_to_fsdp.ipynb): the same bytes, seen on live ranks.
