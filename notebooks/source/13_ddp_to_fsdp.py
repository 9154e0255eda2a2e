# %% [markdown]
# # 13 · From DDP to FSDP, with ranks you can look into
#
# Two processes train one model, and you can ask each of them what it holds, what it sends and in which order. You check
# that together they compute what one process would, and find out why when they do not answer.
#
# - **Prerequisites:** [12_memory](12_memory.ipynb) (parameters, gradients, optimizer states)
#   and [01_gradient_masks](01_gradient_masks.ipynb).
# - **Hardware:** any processor with two cores; a GPU is not used here. On Windows, use WSL 2.
# - **Time:** about 50 minutes with the exercises; its cells run in about a minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **start** ranks from a notebook and look into each of them,
# - **read** a training step as a timeline: all-gather, compute, reshard, reduce-scatter, prefetch,
# - **choose** what to wrap, from measured memory and collectives,
# - **prove** on gradients that sharding changed nothing, with clipping and accumulation,
# - **find** the rank and the collective at which a run hangs.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import os
import re
import tempfile

import torch
import transformers
from ftcourse.claims import Ledger
from ftcourse.exercises.ddp_to_fsdp import check_choose_wrapping, check_find_desync
from ftcourse.explorers.fsdp import held_explorer, order, plot_step, read_steps
from ftcourse.instruments import CountCollectives
from ftcourse.live_ranks.live import start_ranks
from ftcourse.plots import new_axes, plot_shards, use_course_style
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from ftkit import freezing, load_base
from ftkit.divergence import compare
from ftkit.memory import fake_ranks

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the ranks of this notebook use the CPU
os.chdir(tempfile.mkdtemp())  # what this notebook writes lies there
print(f"Python {sys.version.split()[0]}, device: cpu, {os.cpu_count()} cores")

# %%
RANKS = 2  # processes
# float32 has 7 digits; sums over examples and ranks in another order lose one or two of them.
TOLERANCE = 1e-4  # of the largest entry of each gradient
ledger = Ledger("distributed training")  # the claims tested here; the recap shows them

# %% [markdown]
# ## 1 · Ranks you can look into
#
# A **rank** is one of several processes that run the same program. `start_ranks` starts them beside this notebook; a
# cell that begins with `%%px` runs on all of them, and not here. Each rank knows `rank`, `world_size` and `mesh`, the
# arrangement of the ranks. A training run is started by `torchrun` instead
# ([16_fsdp_fine_tune](16_fsdp_fine_tune.ipynb)); live ranks are for looking in.

# %%
ranks = start_ranks(RANKS, timeout=60)

# %%
# %%px
import os

print(f"I am {rank} of {world_size}")
mesh

# %%
pids = ranks.get("os.getpid()")  # a value from each rank, brought here
others = set(pids) - {os.getpid()}
print(f"{len(others)} processes besides this one")
assert len(others) == RANKS

# %% [markdown]
# Now a model, pocket-base, and 8 sequences of text, of which every rank takes its part.

# %%
# %%px
import warnings
from copy import deepcopy

import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.tensor import DTensor

from ftkit import load_base
from ftkit.conversations import find_chat

transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("ignore")

# %%
# %%px
start, tokenizer = load_base()
ids = tokenizer(find_chat()["train"].read_text(encoding="utf-8")[:800]).input_ids
batch = torch.tensor(ids[: 8 * 48]).view(8, 48)  # (B, T)
mine = batch.chunk(world_size)[rank]
print(
    f"{sum(p.numel() for p in start.parameters()):,} parameters, {len(mine)} of {len(batch)} sequences"
)

# %% [markdown]
# Three helpers for all that follows. `apart` is the yardstick: the largest difference between two sets of gradients,
# relative to the largest entry of each tensor.


# %% tags=["hide-input"]
# %%px
def loss_of(model, examples):
    return model(input_ids=examples, labels=examples, use_cache=False).loss


def gradients(model):
    """Full gradients by name, wherever they are."""
    return {
        name.removeprefix("module.").replace("_checkpoint_wrapped_module.", ""): (
            p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        )
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def apart(found, expected):
    """The largest difference, relative to the largest entry of each tensor."""
    assert found.keys() == expected.keys(), "gradients of other parameters"
    far = [(found[n] - expected[n]).abs().max() / expected[n].abs().max() for n in expected]
    return torch.stack(far).max().item()  # torch's max keeps NaN, Python's may lose it


# %%
# %%px
alone = deepcopy(start)  # what a single process computes from all sequences
loss_of(alone, batch).backward()
expected = gradients(alone)

# %% [markdown]
# ## 2 · DDP: a full copy on every rank
#
# A call that all ranks must make together is a **collective**. In **distributed data parallel** (DDP) every rank keeps
# the whole model and computes gradients from its own examples; an **all-reduce** then gives all ranks the same
# gradients. **Predict:** does DDP leave the sum of the ranks' gradients on each rank, or their mean?

# %%
# %%px
from torch.nn.parallel import DistributedDataParallel

own = deepcopy(start)
loss_of(own, mine).backward()  # this rank's examples only
replica = DistributedDataParallel(deepcopy(start))
loss_of(replica, mine).backward()
total = gradients(own)["lm_head.weight"].clone()
dist.all_reduce(total)  # the sum over ranks
shared = gradients(replica)["lm_head.weight"]
distances = {
    "own examples alone": apart(gradients(own), expected),
    "DDP": apart(gradients(replica), expected),
    "DDP, times the ranks": apart(
        {n: world_size * g for n, g in gradients(replica).items()}, expected
    ),
}
from_mean = ((shared - total / world_size).abs().max() / shared.abs().max()).item()


# %%
def shown(distance: float) -> str:
    return f"under {TOLERANCE:.2%}" if distance < TOLERANCE else f"{distance:.0%}"


everywhere = ranks.get("distances")  # a dict from each rank
found = {name: max(d[name] for d in everywhere) for name in everywhere[0]}
print("largest distance from a single process's gradients")
for name in ("own examples alone", "DDP", "DDP, times the ranks"):
    print(f"  {name:22} {shown(found[name])}")
from_mean = max(ranks.get("from_mean"))
print(f"lm_head.weight: {shown(from_mean)} from the mean of the ranks' gradients")
sums = ranks.get("gradients(replica)['lm_head.weight'].double().sum().item()")
assert len(set(sums)) == 1 and max(found["DDP"], from_mean) < TOLERANCE
assert found["own examples alone"] > 0.1 and found["DDP, times the ranks"] > 0.9

# %% tags=["hide-input"]
_ = ledger.add(
    "DDP's gradients are the mean over ranks, and those of a single process",
    "PyTorch's documentation of DDP",
    max(found["DDP"], from_mean) < TOLERANCE,
    f"{RANKS} ranks, gradients within {TOLERANCE:g} of each tensor's largest entry",
    only_if="every rank has equally many labels",
)

# %% [markdown]
# The mean, bitwise identical on all ranks. Each rank computed half of the examples and saved no memory.
#
# **Predict:** is the mean of the ranks' means still right when rank 0 has 2 sequences and rank 1 has 6?

# %%
# %%px
uneven = DistributedDataParallel(deepcopy(start))
loss_of(uneven, batch[:2] if rank == 0 else batch[2:]).backward()
off = apart(gradients(uneven), expected)
print(f"{off:.0%} from a single process's gradients")
assert off > 0.01

# %% [markdown]
# No: a sequence of the smaller part counts three times, without any error message. With uneven parts, sum the losses
# and divide by the tokens of all ranks, as `ftkit finetune` does.

# %% [markdown]
# ## 3 · Buckets: send while you compute
#
# The backward pass computes the last layer's gradients first. DDP collects gradients in **buckets**, in about this
# reversed order, and starts a bucket's all-reduce as soon as it is full: the network works while earlier layers
# still compute. A hook shows when each bucket leaves. **Predict:** with buckets of 1 MB, which parameters are in the
# first?

# %%
# %%px
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook


def buckets_of(megabytes):
    """Each bucket's bytes, first and last parameter, and number of gradients when it is sent."""
    model, ready, seen = deepcopy(start), [], []
    names = {p: name for name, p in model.named_parameters()}
    for p in names:
        p.register_post_accumulate_grad_hook(lambda p: ready.append(names[p]))
    replica = DistributedDataParallel(model, bucket_cap_mb=megabytes)

    def send(group, bucket):
        inside = [names[p] for p in bucket.parameters()]
        seen.append((bucket.buffer().nbytes, inside[0], inside[-1], len(ready)))
        return allreduce_hook(group, bucket)

    replica.register_comm_hook(None, send)
    for _ in range(2):  # the first step finds the order of the gradients, the second uses it
        ready.clear(), seen.clear()
        loss_of(replica, mine).backward()
    return seen, len(names)


# %%
sent = {megabytes: ranks.get(f"buckets_of({megabytes})")[0] for megabytes in (1, 25)}
for megabytes, (buckets, gradients) in sent.items():
    print(f"bucket_cap_mb={megabytes}: size, gradients ready when it is sent, parameters")
    for size, first, last, ready in buckets:
        print(f"  {size / 1e6:4.2f} MB  {ready / gradients:4.0%}  {first} … {last}")
for buckets, _ in sent.values():
    assert (
        "lm_head" in buckets[0][1] + buckets[0][2]
        and "embed" in buckets[-1][1] + buckets[-1][2]
    )
early = [ready / gradients for _, _, _, ready in sent[1][0]]
assert early == sorted(early) and early[0] < 0.5 < early[-1] == 1

# %% [markdown]
# Small buckets leave early and overlap with the rest of the backward pass; large ones use the network better, because
# each message has a fixed cost. The last bucket can overlap with nothing. The default, 25 MB after a first bucket of
# 1 MiB, suits models far larger than this one.
#
# What a bucket is for DDP, a *wrapped module* will be for FSDP: the piece that travels while another is computed.

# %% [markdown]
# ## 4 · FSDP1: one flat parameter
#
# DDP needs memory for all states on each rank. The first **fully sharded data parallel** (FSDP1) flattened all
# parameters of a wrapper, the module that it is called on, into one vector and gave each rank a piece. A vector has one
# `requires_grad`. **Predict:** what happens to a wrapper with a frozen and a trainable weight?

# %%
# %%px
from torch.distributed.fsdp import FullyShardedDataParallel

flat = {}
for frozen, original in [(False, False), (True, False), (True, True)]:
    two = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))  # 12 + 3 + 6 + 2 weights
    two[0].requires_grad_(not frozen)
    options = {"use_orig_params": original, "device_id": torch.device("cpu")}
    try:
        wrapped = FullyShardedDataParallel(two, **options)
        flat[frozen, original] = [tuple(p.shape) for p in wrapped.parameters()]
    except ValueError as error:
        flat[frozen, original] = str(error)

# %%
flat = ranks.get("flat")[0]
for (frozen, original), outcome in flat.items():
    state = "half of it frozen" if frozen else "all trainable"
    print(f"{state}, use_orig_params={original}:\n  {outcome}")
assert flat[False, False] == [(12,)] and "uniform `requires_grad`" in flat[True, False]
assert len(flat[True, True]) == 4

# %% tags=["hide-input"]
_ = ledger.add(
    "FSDP1 cannot mix frozen and trainable parameters in one wrapper",
    "PyTorch's documentation of FullyShardedDataParallel",
    "uniform `requires_grad`" in flat[True, False],
    "two linear layers, the first frozen: refused, and taken with use_orig_params",
    model="two linear layers, 23 parameters",
    only_if="use_orig_params=False, its default",
)

# %% [markdown]
# 23 weights became one vector, padded to 24 and halved. With `use_orig_params=True` each parameter keeps its name and
# its flag, but on a rank its shape is whatever part of it lies in that rank's piece.
#
# With a wrapper per decoder layer, which presets of [04_freezing](04_freezing.ipynb) put frozen and trainable weights
# into one wrapper?

# %%
mixed = {}
for preset in ("everything", "head_only", "bitfit", "norms_only", "embeddings_and_norms"):
    model, _ = load_base()
    getattr(freezing, preset)(model)
    units = {}  # wrapper -> the flags in it
    for name, parameter in model.named_parameters():
        wrapper = re.search(r"layers\.\d+|$", name)[0] or "root"
        units.setdefault(wrapper, set()).add(parameter.requires_grad)
    mixed[preset] = sum(len(flags) == 2 for flags in units.values())
    print(f"{preset:21} {mixed[preset]} of {len(units)} wrappers mixed")
assert mixed.pop("everything") == 0 and all(mixed.values())

# %% [markdown]
# All but `everything`: even the head alone shares the root with the frozen embedding. FSDP1 is deprecated; what follows
# shards each parameter by itself and takes any pattern of frozen and trainable weights.

# %% [markdown]
# ## 5 · `fully_shard`: each parameter by itself
#
# `fully_shard`, also called FSDP2, splits each parameter along its rows. What a rank keeps, its **shard**, is a
# **DTensor**: it knows the whole shape and holds a part. Each call makes one **unit**, whose parameters travel in one
# message. Here the embedding, each decoder layer, and the head with the norm before it are units; the root, called
# last, takes what is left.


# %%
# %%px
from torch.distributed.fsdp import fully_shard


def wrap_all(model):
    fully_shard(model.model.embed_tokens, mesh=mesh)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard([model.model.norm, model.lm_head], mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh)


sharded = wrap_all(deepcopy(start))
weight = sharded.model.layers[0].mlp.up_proj.weight
print(type(weight.data).__name__, tuple(weight.shape), weight.placements)
print("held here:", tuple(weight.to_local().shape))

# %%
held = ranks.get("[p.to_local().shape[0] for p in (weight, sharded.model.norm.weight)]")
figure, axes = new_axes(9, 2.4, columns=2)
plot_shards([h[0] for h in held], columns=128, title="up_proj.weight", ax=axes[0])
plot_shards([h[1] for h in held], columns=1, title="norm.weight", ax=axes[1])
assert [sum(column) for column in zip(*held, strict=True)] == [320, 128]

# %% [markdown]
# `Shard(dim=0)` means split along rows: 320 rows became 160 and 160, and even the 128 norm weights are halved.
#
# A layer computes with unsharded weights. **Predict:** how many bytes of layer 0 are unsharded before its forward pass,
# in it, and after it?


# %%
# %%px
def unsharded(model):
    """Bytes of this rank's unsharded parameters."""
    return sum(
        p.numel() * p.element_size() for p in model.parameters() if not isinstance(p, DTensor)
    )


layer = sharded.model.layers[0]
states = [unsharded(layer)]
hook = layer.mlp.register_forward_hook(lambda *_: states.append(unsharded(layer)))
loss = loss_of(sharded, mine)
hook.remove()
states.append(unsharded(layer))
loss.backward()
print("unsharded bytes of layer 0 before, in and after its forward pass:", *states)
assert states == [0, sum(p.numel() * 4 for p in alone.model.layers[0].parameters()), 0]

# %% [markdown]
# The whole layer exists only while it computes.

# %% [markdown]
# ## 6 · One step, event by event
#
# torch names FSDP's actions in its profiler, and hooks tell when each module computes. This is one step of pocket-base
# on two ranks, as rank 0 recorded it (`python -m ftcourse.studies.fsdp_step`). Read each row from left to right.

# %%
steps = read_steps()
events, _ = steps["embedding and head too"]
ax = plot_step(events, "fully_shard on embedding, layers and head")

# %% [markdown]
# - **G, all-gather**: the ranks exchange their shards, and the unit is unsharded (grey).
# - **F, forward**: the module computes. Then it is **resharded**: the other ranks' parts are freed, and the grey ends.
# - **B, backward**: gathered again first. The head stays, because its backward pass comes next.
# - **S, reduce-scatter**: gradients are averaged over the ranks, and each keeps those of its own shard.

# %% [markdown]
# Look at the right half: layer 2's all-gather is issued *before* layer 3's backward pass. That is the **prefetch**. On
# a GPU, collectives run in a stream of their own, so layer 2 arrives while layer 3 computes, and two layers are
# unsharded for a while.
#
# Is the stored record what happens here, now? Record the same step on the live ranks and compare the order.

# %%
# %%px
from itertools import pairwise

from ftcourse.fsdp_steps import record_step


def step():
    loss_of(sharded, mine).backward()


recorded = record_step(sharded, step)

# %%
live = ranks.get("recorded")
for rank, own in enumerate(live):
    print(f"rank {rank}: {len(own)} events, the first {', '.join(e.kind for e in own[:3])}")
    assert order(own) == order(events)

# %% [markdown]
# Both ranks went through the stored order. In the forward pass nothing is prefetched here: this CPU issues an
# all-gather and waits for it. On a GPU the CPU runs ahead and issues the next all-gather while the GPU computes.
# Where it cannot run ahead, request the prefetch **explicitly**. **Predict:** what moves in the picture?


# %%
# %%px
units = [sharded.model.embed_tokens, *sharded.model.layers, sharded.model.norm]
for unit, following in pairwise(units):
    unit.set_modules_to_forward_prefetch([following])
prefetched = record_step(sharded, step)

# %%
events, _ = steps["embedding and head too, forward prefetch"]
ax = plot_step(events, "the same with set_modules_to_forward_prefetch")
assert all(order(own) == order(events) for own in ranks.get("prefetched"))

# %% [markdown]
# In the left half each all-gather moved before the previous unit's forward pass. A list of two modules prefetches two
# ahead and holds one more unsharded. `set_modules_to_backward_prefetch` does the same for the backward pass.

# %% [markdown]
# ## 7 · What to wrap
#
# The wrapping decides what travels at once. With one call for the whole model there is nothing to overlap: the first
# module waits for all parameters, and the network waits for the last gradient. Move the slider: the lines are the
# unsharded parameters and gradients while each module computes. **Predict first:** where is the peak of each?

# %%
ways = ("whole model", "each layer", "embedding and head too")
explorer = held_explorer({way: steps[way] for way in ways})
explorer.slider.value = 6  # the head's backward pass
explorer

# %%
explorer.slider.value = 8  # layer 2's backward pass
parameters, gradients = explorer.here["each layer"]
print(
    f"each layer: {parameters / 1e6:.2f} MB of parameters, {gradients / 1e6:.2f} MB of gradients"
)
print("peak of both together:")
for way in ways:
    print(f"  {way:23} {explorer.peak(way) / 1e6:.2f} MB")
peaks = [explorer.peak(way) for way in ways]
assert peaks == sorted(peaks, reverse=True)
explorer.slider.value = 6

# %% [markdown]
# All peaks are in the backward pass, where gradients add to the parameters. Count the collectives of a step, too:

# %%
# %%px
from ftcourse.fsdp_steps import wrap
from ftcourse.instruments import CountCollectives


def collectives(model):
    with CountCollectives() as sent:
        loss_of(model, mine).backward()
    return dict(sent.counts)


counted = {
    way: collectives(wrap(deepcopy(start), mesh, way))
    for way in ("whole model", "each layer", "embedding and head too")
}

# %%
counted = ranks.get("counted")[0]
for way in ways:
    gathers, scatters = counted[way]["all_gather"], counted[way]["reduce_scatter"]
    print(f"{way:23} {gathers:2} all-gathers, {scatters} reduce-scatters")
layers = 4
assert counted["whole model"] == {"all_gather": 1, "reduce_scatter": 1}
assert counted["each layer"] == {"all_gather": 2 * layers + 1, "reduce_scatter": layers + 1}

# %% tags=["hide-input"]
coarse, fine = (explorer.peak(way) for way in ways[:2])
_ = ledger.add(
    "calling fully_shard layer by layer, not only on the root, saves peak memory",
    "PyTorch's documentation of fully_shard",
    fine < coarse,
    f"unsharded parameters and gradients at the peak {fine / 1e6:.1f} against {coarse / 1e6:.1f} MB, "
    f"with {counted['each layer']['all_gather']} all-gathers against 1",
)

# %% [markdown]
# Layers as units halve the peak, embedding and head as units halve it again, because they are a quarter of this model.
# For Llama 3 8B in bfloat16, put its sizes into the same order of events; more layers repeat the pattern.

# %%
sizes_8b = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336}
heads_8b = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
with torch.device("meta"):
    large = LlamaForCausalLM(LlamaConfig(**sizes_8b, **heads_8b))
parts = {
    "embedding": large.model.embed_tokens,
    "layer": large.model.layers[0],
    "head": large.lm_head,
}
gigabytes = {n: sum(p.numel() for p in m.parameters()) * 2 / 1e9 for n, m in parts.items()}
whole = sum(p.numel() for p in large.parameters()) * 2 / 1e9
ends = gigabytes["embedding"] + gigabytes["head"]
print(*(f"{name} {size:.2f} GB" for name, size in gigabytes.items()), sep=", ")
print(f"embedding and head: {ends:.1f} of {whole:.1f} GB, {ends / whole:.0%}")
assert round(ends / whole, 2) == 0.13

# %%
peak_8b = {}
for way in ways:
    events, sizes = steps[way]
    root = {"whole model": whole, "each layer": ends}.get(way, 0)
    known = {**gigabytes, "root": root}
    scaled = {u: round(1e9 * known["layer" if u.startswith("layer") else u]) for u in sizes}
    peak_8b[way] = held_explorer({way: (events, scaled)}).peak(way) / 1e9
    print(f"{way:23} {peak_8b[way]:4.1f} GB of unsharded parameters and gradients at the peak")
assert peak_8b["embedding and head too"] < 0.75 * peak_8b["each layer"]

# %% [markdown]
# In the root, embedding and head are unsharded for the whole step, and their gradients leave together at its end. As
# units of their own, only one of them is there at a time. torchtitan and transformers' FSDP plan wrap like this.
# `ftkit`'s program leaves both in the root. **Tied** embedding and head must share a unit, because a weight belongs to
# one unit.

# %% tags=["hide-input"]
# %%px
from ftcourse.fsdp_steps import LAYERS, WRAPPINGS, held_bytes, unit_bytes
from torch.distributed.fsdp import FSDPModule


def measured(name):
    how = name if name in WRAPPINGS else LAYERS
    options = {"reshard_after_forward": False} if name == "each layer, kept" else {}
    model = wrap(deepcopy(start), mesh, how, **options)
    for module in model.modules():
        if name == "each layer, summed" and isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    sent = collectives(model)
    error = apart(gradients(model), expected)
    happened = record_step(model, lambda: loss_of(model, mine).backward())
    peak = max(map(sum, held_bytes(happened, unit_bytes(model, how))))
    return peak, sum(sent.values()), error


# %%
WAYS = [*ways, "each layer, kept", "each layer, summed"]  # kept: reshard_after_forward=False


def measure(name: str) -> tuple[int, int, float]:
    """Peak bytes, collectives and error of a step on the live ranks."""
    found = ranks.get(f"measured({name!r})")
    return max(f[0] for f in found), found[0][1], max(f[2] for f in found)


# %% [markdown]
# ### Exercise 1 · choose by measuring
#
# Difficulty ●●○, 8 minutes. `measure(name)` trains a step on the live ranks and returns `(peak bytes, collectives,
# error)`, the error being the distance from right gradients. Return the way with the fewest collectives that fits into
# `limit` bytes *and* computes the right gradients; None if none does. Call `measure` once per name. Expected: one of
# `WAYS`, for 4.5 MB.


# %% tags=["exercise"]
def choose_wrapping(measure, names: list[str], limit: int) -> str | None:
    """Of those that fit and have an error below 1e-4, the name with the fewest collectives, or None."""
    ### BEGIN SOLUTION
    table = {name: measure(name) for name in names}
    good = {name: m for name, m in table.items() if m[0] <= limit and m[2] < 1e-4}
    return min(good, key=lambda name: good[name][1], default=None)
    ### END SOLUTION


check_choose_wrapping(choose_wrapping, measure, WAYS, 4_500_000)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# First build a table of all measurements, then drop what does not fit or is wrong, then take the smallest number of
# collectives. `nan < 1e-4` is False.
#
# </details>

# %% [markdown]
# ## 8 · The same gradients
#
# Compare gradients, not losses or weights: a sum in place of a mean leaves the first loss as it is, and AdamW divides
# the factor away.

# %%
weights = [torch.zeros(3, requires_grad=True) for _ in range(2)]
for weight, factor in zip(weights, (1, 2), strict=True):
    weight.grad = factor * torch.tensor([1e-3, -2e-2, 5e-4])
    torch.optim.AdamW([weight], lr=1e-3).step()
    print(f"gradient times {factor}: AdamW's first step is", *(f"{w:+.5f}" for w in weight))
assert torch.allclose(*weights, rtol=1e-4)

# %% [markdown]
# Four ways to get the gradients of one batch, compared with the single process. **Accumulation** runs two micro-batches
# and exchanges gradients once, after the second; each loss is halved, because their gradients add up.


# %%
# %%px
def trained(model, batches=(mine,), last_only=True):
    """Backward over the batches; exchange gradients at the last, or at each."""
    for number, examples in enumerate(batches):
        model.set_requires_gradient_sync(not last_only or number == len(batches) - 1)
        (loss_of(model, examples) / len(batches)).backward()
    return model


halves = mine.chunk(2)
with CountCollectives() as once:
    accumulated = trained(wrap_all(deepcopy(start)), halves)
with CountCollectives() as each:
    trained(wrap_all(deepcopy(start)), halves, last_only=False)
distances = {
    way: apart(gradients(trained(wrap(deepcopy(start), mesh, way))), expected)
    for way in WRAPPINGS
}
distances["accumulated"] = apart(gradients(accumulated), expected)
doubled = {name: world_size * g for name, g in gradients(accumulated).items()}
distances["a sum in place of the mean"] = apart(doubled, expected)

# %%
everywhere = ranks.get("distances")
found = {name: max(d[name] for d in everywhere) for name in everywhere[0]}
for name in (*ways, "accumulated", "a sum in place of the mean"):
    print(f"{name:27} {shown(found[name])} from a single process's gradients")
sent = ranks.get("(once.counts['reduce_scatter'], each.counts['reduce_scatter'])")[0]
print(f"reduce-scatters over two micro-batches: {sent[0]} at the end, or {sent[1]} at each")
wrong = found.pop("a sum in place of the mean")
assert max(found.values()) < TOLERANCE and wrong > 0.9
assert sent == (layers + 2, 2 * (layers + 2))

# %% [markdown]
# Until the exchange every rank holds unsharded gradients of all units: accumulation without communication costs memory.
#
# Clipping needs one norm over all shards. **Predict:** is the norm of a rank's own shards larger or smaller?

# %%
# %%px
local = torch.stack([p.grad.to_local().norm() for p in accumulated.parameters()]).norm().item()
norm = nn.utils.clip_grad_norm_(accumulated.parameters(), 0.5).full_tensor().item()
reference = deepcopy(alone)
for name, p in reference.named_parameters():
    p.grad = expected[name].clone()
norm_alone = nn.utils.clip_grad_norm_(reference.parameters(), 0.5).item()
clipped = apart(gradients(accumulated), gradients(reference))

# %%
own, (norm, norm_alone) = ranks.get("local"), ranks.get("(norm, norm_alone)")[0]
print(f"own shards' norms: {', '.join(f'{n / norm:.0%}' for n in own)} of the whole norm")
print(f"root of their squares' sum: {(sum(n**2 for n in own) ** 0.5) / norm:.3f} of it")
clipped = max(ranks.get("clipped"))
print(f"clipped gradients: {shown(clipped)} from a single process's")
assert max(own) < 0.99 * norm and abs(norm / norm_alone - 1) < TOLERANCE > clipped

# %% tags=["hide-input"]
_ = ledger.add(
    "fully_shard's gradients are a single process's, accumulated and clipped too",
    "PyTorch's documentation of fully_shard",
    max(*found.values(), clipped) < TOLERANCE,
    f"{RANKS} ranks, {len(ways)} ways of wrapping, within {TOLERANCE:g} of each tensor's largest entry",
    only_if="every rank has equally many labels",
)

# %% [markdown]
# Norms do not add, squares do. `clip_grad_norm_` on DTensors does that with the line that a single process uses.

# %% [markdown]
# ### Find where two runs diverge
#
# Your own loop on two ranks should compute what one process computes. `record` stores, for a few steps, what every
# module computes: outputs, their gradients, the parameters' gradients, and parameters after the step. `compare` names
# the first tensor that differs.

# %%
WORK = tempfile.mkdtemp()
_ = ranks.run(f"work = {WORK!r}")


# %%
# %%px
from ftkit.divergence import record


def train(name, examples, reduce, rounding=False):
    model = deepcopy(start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with record(f"{work}/{name}", model, optimizer, steps=2, rounding=rounding):
        for _ in range(2):
            loss_of(model, examples).backward()
            for parameter in model.parameters():
                reduce(parameter.grad)
            optimizer.step()
            optimizer.zero_grad()
    return loss_of(model, batch).item()


# %% [markdown]
# Which difference is rounding? It is measured: the reference runs once more with `rounding=True`, which adds noise of
# the size of rounding errors to every output and gradient (the idea of TTrace, 2025). A difference ten times as large
# as that noise makes is reported.


# %%
# %%px
def keep(grad):
    """The reference: each rank takes all examples, and nothing is reduced."""


def mean(grad):
    dist.all_reduce(grad)
    grad /= world_size


single = train("single", batch, keep)
train("single", batch, keep, rounding=True)
averaged = train("averaged", mine, mean)

# %%
report = compare(f"{WORK}/single", f"{WORK}/averaged")
print("first difference of two ranks from one process:", report.first or "none")
assert report.first is None

# %% [markdown]
# Now `all_reduce` alone, without the division: a sum in place of a mean. **Predict:** does the loss show it?

# %%
# %%px
summed = train("summed", mine, dist.all_reduce)
print(f"loss after two steps: {averaged:.2f} with the mean, {summed:.2f} with the sum")
assert abs(summed - averaged) < 0.01

# %%
first = compare(f"{WORK}/single", f"{WORK}/summed").first
print(f"first difference: step {first.step}, {first.kind}, factor {first.factor:.2f}")
assert (first.step, first.kind) == (0, "gradient") and abs(first.factor - 2) < 1e-3

# %% [markdown]
# Both losses agree in all printed digits, because AdamW divides the factor away. The report names step 0, the
# parameters' gradients and the factor 2; outputs agree, so the fault is in how the ranks' gradients are combined.
#
# From the command line: `ftkit finetune --record 3 --output one`, the same under torchrun with `--output two`, then
# `ftkit compare-runs one two`.

# %% [markdown]
# ## 9 · bfloat16
#
# A **mixed precision policy** has `param_dtype`, in which a unit's parameters are gathered and computed with, and
# `reduce_dtype`, in which gradients travel. **Autocast** casts inside single operations. **Predict:** in which dtype is
# a gathered weight under each? And what a layer hands on?

# %%
# %%px
from contextlib import nullcontext

from torch.distributed.fsdp import MixedPrecisionPolicy


def dtypes(model, context):
    """Of a gathered weight, of a layer's output, of the shard and of its gradient; and the loss."""
    seen, layer = {}, model.model.layers[1]
    linear = layer.mlp.up_proj
    hooks = [
        linear.register_forward_hook(lambda m, *_: seen.update(gathered=m.weight.dtype)),
        layer.register_forward_hook(lambda m, i, out: seen.update(output=out.dtype)),
    ]
    with context:
        loss = loss_of(model, mine)
    loss.backward()
    for hook in hooks:
        hook.remove()
    seen |= {"shard": linear.weight.dtype, "gradient": linear.weight.grad.dtype}
    return {k: str(v).removeprefix("torch.") for k, v in seen.items()}, loss.item()


# %%
# %%px
policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
by_policy = dtypes(wrap(deepcopy(start), mesh, LAYERS, mp_policy=policy), nullcontext())
by_autocast = dtypes(
    wrap(deepcopy(start), mesh, LAYERS), torch.autocast("cpu", torch.bfloat16)
)
in_float32 = dtypes(wrap(deepcopy(start), mesh, LAYERS), nullcontext())

# %%
seen = dict(
    zip(
        ("policy", "autocast", "float32"),
        ranks.get("(by_policy, by_autocast, in_float32)")[0],
        strict=True,
    )
)
for name, (types, _) in seen.items():
    print(f"{name:9}", ", ".join(f"{what} {dtype}" for what, dtype in types.items()))
for types, loss in seen.values():
    assert (
        types["gradient"] == types["shard"] == "float32"
        and abs(loss - seen["float32"][1]) < 0.02
    )
assert seen["policy"][0]["gathered"] == seen["policy"][0]["output"] == "bfloat16"
assert seen["autocast"][0]["gathered"] == seen["autocast"][0]["output"] == "float32"

# %% [markdown]
# Both keep shards and their gradients in float32. Only the policy gathers in bfloat16, which halves the bytes that
# travel, and hands bfloat16 from layer to layer.

# %% [markdown]
# ## 10 · Checkpointing and freezing
#
# **Activation checkpointing** drops a layer's activations and recomputes them in the backward pass. A tutorial of 2022
# says of FSDP1: only *after* sharding. Does the order still matter? Compare gradients, and count collectives: a
# recomputation that gathers once more would show there.

# %%
# %%px
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointWrapper,
    apply_activation_checkpointing,
)

Block = type(
    start.model.layers[0]
)  # sharding renames classes, so ask isinstance, not for a name


def checkpointed(model):
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, Block))
    return model


def sharded_layers(model):
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


orders = {}
for name, model in (
    ("none", sharded_layers(deepcopy(start))),
    ("before sharding", sharded_layers(checkpointed(deepcopy(start)))),
    ("after sharding", checkpointed(sharded_layers(deepcopy(start)))),
):
    wrappers = sum(isinstance(module, CheckpointWrapper) for module in model.modules())
    orders[name] = (wrappers, collectives(model), apart(gradients(model), expected))

# %%
orders = ranks.get("orders")[0]
expected_counts = {"all_gather": 2 * layers + 1, "reduce_scatter": layers + 1}
same = {}
for name, checkpointed_layers in (("none", 0), ("before sharding", 4), ("after sharding", 4)):
    wrappers, sent, distance = orders[name]
    print(
        f"{name:16} {wrappers} layers checkpointed, gradients {shown(distance)} off,", end=" "
    )
    print(f"{sent['all_gather']} all-gathers, {sent['reduce_scatter']} reduce-scatters")
    assert wrappers == checkpointed_layers
    same[name] = sent == expected_counts and distance < TOLERANCE
assert all(same.values())

# %% tags=["hide-input"]
_ = ledger.add(
    "activation checkpointing must be applied after sharding",
    "L. Wright, FSDP activation checkpointing, 2022",
    not same["before sharding"],
    f"{RANKS} ranks: in both orders {expected_counts['all_gather']} all-gathers, "
    f"{expected_counts['reduce_scatter']} reduce-scatters and gradients within {TOLERANCE:g}",
    outdated_by="fully_shard (FSDP2), which replaces the wrappers of FSDP1",
)

# %% [markdown]
# Outdated: FSDP2 uses hooks instead of wrappers, and both orders give the same gradients with the same collectives.
# torchtitan's order is a good default: tensor parallelism, checkpointing, `torch.compile`, then `fully_shard`.
#
# And may one unit hold frozen and trainable weights? Freeze every MLP, and compare the remaining gradients.


# %%
# %%px
half = deepcopy(start)
for name, p in half.named_parameters():
    p.requires_grad_("mlp" not in name)
trained(wrap_all(half))
attention_only = {name: g for name, g in expected.items() if "mlp" not in name}
frozen = apart(gradients(half), attention_only)  # also demands the same names
print(f"{len(gradients(half))} of {len(expected)} tensors have gradients")
assert frozen < 1e-4

# %% [markdown]
# ## 11 · HSDP: replicas of sharded models
#
# With several machines, plain FSDP gathers every layer over the slow network. **Hybrid sharding** (HSDP) shards inside
# a machine and replicates across machines. The mesh has two dimensions and a name for each; `fully_shard` shards along
# the last. Sixteen ranks do not fit here, so a fake process group stands in: shapes and calls are real, but nothing is
# sent.

# %%
counts = {}
for shape in ((1, 16), (2, 8)):
    with fake_ranks(16):
        grid = init_device_mesh("cpu", shape, mesh_dim_names=("dp_replicate", "dp_shard"))
        model, _ = load_base()
        for layer in model.model.layers:
            fully_shard(layer, mesh=grid if shape[0] > 1 else grid["dp_shard"])
        fully_shard(model, mesh=grid if shape[0] > 1 else grid["dp_shard"])
        weight = model.model.layers[0].mlp.up_proj.weight
        examples = torch.arange(32).view(1, 32)
        with CountCollectives() as sent:
            model(input_ids=examples, labels=examples).loss.backward()
        counts[shape] = dict(sent.counts)
        print(
            f"{shape[0]} × {shape[1]}: {weight.placements}, {tuple(weight.to_local().shape)} here"
        )
        print("   ", ", ".join(f"{n} {name}" for name, n in sorted(counts[shape].items())))
assert "all_reduce" not in counts[1, 16] and counts[2, 8]["all_reduce"] == layers + 1

# %% [markdown]
# All-gathers and reduce-scatters now stay among eight ranks, inside a machine. Only an all-reduce of each *shard's*
# gradient, an eighth of the parameters, crosses the network, once a step. The price is memory: a rank holds an eighth
# of the states instead of a sixteenth. In `ftkit`'s program this mesh is `--mesh 2,8,1`.

# %% [markdown]
# ## 12 · Reading a failure, and reading a hang
#
# Ranks meet in every collective. When one fails, the others wait for it until torch's time-out: 10 minutes with NCCL,
# 30 with gloo. Live ranks abort the others at once and report who failed and where.

# %% tags=["raises-exception"]
# %%px --raises
x = torch.ones(1)
if rank == 1:
    raise ValueError("bad example in my part of the data")
dist.all_reduce(x)

# %% [markdown]
# Read such a message from its top: the first rank has the cause, the others only waited. In the output of `torchrun`,
# too, look for the rank that failed *first*. The process group was re-initialised, so fix the cell and run it again:

# %%
# %%px
x = torch.ones(1)
dist.all_reduce(x)
print(x.item())
assert x.item() == world_size

# %% [markdown]
# A **hang** raises nothing: one rank skips a collective, or calls another one. Here rank 1 skips an all-reduce, for
# instance because it had no batch left. **Predict:** after the time-out, 2 seconds in this group, what does the other
# rank's error say: who is missing, or only that time is up?

# %%
# %%px
import re
from datetime import timedelta

impatient = dist.new_group(timeout=timedelta(seconds=2))
error = None
if rank == 0:
    try:
        dist.all_reduce(x, group=impatient)
    except RuntimeError as raised:
        error = re.sub(r"\[.*?\] ", "", str(raised))  # without the line of gloo's source

# %%
error = ranks.get("error")[0]
print(error)
assert "Timed out" in error and "ank 1" not in error

# %% [markdown]
# Only that time is up. Three tools say more. The first is a debug level, `TORCH_DISTRIBUTED_DEBUG=DETAIL` in the
# environment: before each collective, ranks compare what they are about to call. Here one calls an all-reduce and the
# other a broadcast; then one calls an all-reduce and the other nothing.


# %%
# %%px
def with_detail(calls):
    """The error of this rank's call in a group of the debug level DETAIL."""
    dist.set_debug_level(dist.DebugLevel.DETAIL)
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=2))
    dist.set_debug_level(dist.DebugLevel.OFF)
    try:
        if rank in calls:
            calls[rank](group)
    except RuntimeError as raised:
        return str(raised)


def sums(group):
    dist.all_reduce(torch.ones(4), group=group)


def sends(group):
    dist.broadcast(torch.ones(4), src=0, group=group)


mismatch = with_detail({0: sums, 1: sends})
skipped = with_detail({0: sums})

# %%
mismatch, skipped = (ranks.get(name)[0] for name in ("mismatch", "skipped"))
kinds = re.findall(
    r"Rank (\d) is running collective: .*?OpType=(\w+), TensorShape=(\[\d+\])", mismatch
)
print(mismatch.split(". ")[0])
for number, kind, shape in kinds:
    print(f"  rank {number}: {kind}, shape {shape}")
print(skipped.split("\n")[0])
assert (
    kinds == [("0", "ALLREDUCE", "[4]"), ("1", "BROADCAST", "[4]")] and "1 failed" in skipped
)

# %% [markdown]
# Now both the mismatch and the missing rank are named. The check costs a synchronisation per collective, so keep it for
# debugging. `dist.monitored_barrier(timeout=…)`, placed by hand, does the same at one point of a program; beside NCCL
# it needs a group of its own, `dist.new_group(backend="gloo")`.

# %% [markdown]
# ### The flight recorder
#
# The second tool has been running all the time: each rank keeps its last 2,000 collectives in a ring buffer, with
# sequence number, name, shapes and time. Suppose rank 1 leaves a training loop one step early:


# %%
# %%px
from ftcourse.instruments import flight_record

loop = dist.new_group(timeout=timedelta(seconds=2))
already = len(flight_record())
for number in range(3):
    if rank == 1 and number == 2:
        break
    try:
        dist.all_reduce(torch.ones(8), group=loop)  # a gradient
        dist.all_reduce(torch.ones(1), group=loop)  # a loss
    except RuntimeError:
        break
dump = flight_record()[already:]

# %%
dumps = dict(enumerate(ranks.get("dump")))
for rank, entries in dumps.items():
    print(f"rank {rank}:")
    for entry in entries:
        print(
            f"  {entry['collective_seq_id']} {entry['profiling_name']} {entry['input_sizes']}"
        )
assert [len(entries) for entries in dumps.values()] == [5, 4]

# %% [markdown]
# Rank 0 waits in collective 5, an all-reduce of 8 numbers, so of a gradient; rank 1's last was 4. That is all one needs
# to find the line of code. With NCCL the recorder is written to files when the watchdog's time is up:
#
# | variable | what it does |
# | --- | --- |
# | `TORCH_FR_BUFFER_SIZE` | entries kept, 2,000 by default; formerly `TORCH_NCCL_TRACE_BUFFER_SIZE` |
# | `TORCH_NCCL_DUMP_ON_TIMEOUT=1` | write them when a collective times out |
# | `TORCH_FR_DUMP_TEMP_FILE=/shared/fr_rank_` | where: this prefix and the rank |
# | `TORCH_DISTRIBUTED_DEBUG=DETAIL` | compare calls before each collective |
# | `NCCL_DEBUG=INFO` | third tool: NCCL's own log of rings, network cards and errors |

# %% [markdown]
# `torchfrtrace /shared --prefix fr_rank_` reads the files of all ranks and names the first collective out of step.
#
# ### Exercise 2 · read the recorders
#
# Difficulty ●●○, 8 minutes. `dumps` maps each rank to its entries. Find the first sequence number at which ranks differ
# in name or sizes. Return it with the list of ranks that never entered it, or None if the ranks agree. A ring buffer
# may have dropped its oldest entries: begin where all ranks have some. Expected: `(5, [1])` for the recorders above.


# %% tags=["exercise"]
def find_desync(dumps: dict[int, list[dict]]) -> tuple[int, list[int]] | None:
    """The first sequence number out of step, and the ranks that never entered it."""
    ### BEGIN SOLUTION
    calls = {
        rank: {
            e["collective_seq_id"]: (e["profiling_name"], str(e["input_sizes"]))
            for e in entries
        }
        for rank, entries in dumps.items()
    }
    first = max(min(own) for own in calls.values())
    last = max(max(own) for own in calls.values())
    for number in range(first, last + 1):
        if len({own.get(number) for own in calls.values()}) > 1:
            return number, [rank for rank, own in calls.items() if number not in own]
    return None
    ### END SOLUTION


check_find_desync(find_desync, dumps)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Turn each rank's list into a dict from sequence number to (name, sizes). Then go through the numbers and compare what
# the ranks have there: `own.get(number)` is None where a rank never came.
#
# </details>

# %% [markdown]
# The ranks end with this notebook, however it ends; `ranks.stop()` ends them now.

# %% [markdown]
# ## What transfers
#
# Measured here: pocket-base, 1.0 M parameters, on two CPU processes over gloo. Equalities, shapes, the order of events
# and the counts of collectives are the same for 8B on eight GPUs, because they follow from how modules are wrapped.
# Bytes were counted from shapes.

# %% [markdown]
# Nothing here says how long a step takes: whether communication hides behind computation depends on bandwidth, batch
# and layer size ([12_memory](12_memory.ipynb)).
#
# Embedding and head are a quarter of pocket-base and 13 % of Llama 3 8B; section 7 gives the peaks of both.

# %% [markdown]
# From the literature, not measured here:
#
# - Zhao et al. (2023) report near-linear scaling of FSDP1 in TFLOPS, with communication overlapped by prefetching.
# - torchtitan (December 2024): Llama 3.1 8B with FSDP2 alone on 8 H100, 5,762 tokens per second and GPU, and 5,605 on
#   128: sharding over 16 times as many GPUs cost 3 %.
# - Li et al. (2020) chose DDP's buckets so that communication overlaps with the backward pass.

# %% [markdown]
# ## Numbers to take away
#
# - DDP and FSDP average gradients over ranks; with uneven numbers of labels that is not the mean over tokens.
# - A step of L wrapped layers with a root: 2L + 1 all-gathers and L + 1 reduce-scatters.
# - Unsharded at once: two units while prefetching, and whatever the root holds, all the time.
# - Llama 3 8B: embedding and head are 2.1 of 16.1 GB in bfloat16.
# - Time-outs: 10 minutes with NCCL, 30 with gloo. Set your own.

# %% [markdown]
# ## Recap
#
# - DDP copies the model and averages gradients in buckets; FSDP shards it and gathers a unit while it computes.
# - Units are what overlaps: wrap layers, embedding and head; one call for the whole model overlaps nothing.
# - Equality is shown on gradients, and the comparison must fail for a sum in place of the mean.
# - A rank that fails is the cause; those that waited are not. For a hang, compare the ranks' last collectives.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. Why do DDP's first buckets hold the last layers?
# 2. Which four things happen to a unit of `fully_shard` in a step, and when is it unsharded?
# 3. What does a forward prefetch change, and what does it cost?
# 4. Why compare gradients, and not weights after AdamW?
# 5. Rank 3 of 8 hangs. What do you read first, and what would the flight recorder show?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: the backward pass computes their gradients first, so they can be sent while the others are computed.
# - 2: all-gather, compute, reshard, and after the backward pass reduce-scatter; unsharded from all-gather to reshard.
# - 3: the next all-gather is issued before this unit computes; one more unit is unsharded.
# - 4: AdamW divides by the gradient's size, which hides a wrong factor.
# - 5: the first error of any rank; the first sequence number that one rank has not entered, or entered differently.
#
# </details>

# %% [markdown]
# ## Sources
#
# - PyTorch, [fully_shard](https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html),
#   [DistributedDataParallel](https://docs.pytorch.org/docs/stable/notes/ddp.html),
#   [FullyShardedDataParallel](https://docs.pytorch.org/docs/stable/fsdp.html) (`use_orig_params`) and
#   [flight recorder](https://docs.pytorch.org/tutorials/prototype/flight_recorder_tutorial.html).
# - Li et al., [PyTorch Distributed](https://arxiv.org/abs/2006.15704), 2020: DDP's buckets.
# - Zhao et al., [PyTorch FSDP](https://arxiv.org/abs/2304.11277), 2023: FSDP1, prefetching, hybrid sharding.
# - torchtitan, [parallelize.py](https://github.com/pytorch/torchtitan/blob/main/torchtitan/models/llama3/parallelize.py)
#   (order and wrapping) and [benchmarks of December
#   2024](https://github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md).
# - Less Wright,
#   [FSDP activation checkpointing](https://github.com/lessw2020/transformer_central/tree/main/activation_checkpointing_tutorial),
#   2022; [pytorch issue 82203](https://github.com/pytorch/pytorch/issues/82203), 2022: FSDP1 inside a checkpoint
#   wrapper fails.
# - [TTrace](https://arxiv.org/abs/2506.09280), 2025: rounding errors measured by noise, to find faults in distributed
#   training.
# - [ipyparallel](https://ipyparallel.readthedocs.io), which carries `%%px`.
#
# ## Next
#
# [14_delayed_init_and_tensor_parallel](14_delayed_init_and_tensor_parallel.ipynb): models that no rank can hold.
