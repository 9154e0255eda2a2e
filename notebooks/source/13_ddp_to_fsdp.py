# %% [markdown]
# # 13 · From DDP to FSDP, with ranks you can look into
#
# Two processes that you can ask: what each holds, what it sends, and whether together they compute what one would.
#
# - **Prerequisites:** [12_memory](12_memory.ipynb) (weights, gradients, moments)
#   and [01_gradient_masks](01_gradient_masks.ipynb).
# - **Hardware:** any processor with two cores; a GPU is not used here. On Windows, use WSL 2.
# - **Time:** about 45 minutes with the exercises; its cells run in about a minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **start** ranks from a notebook and look into each of them,
# - **tell** what DDP, FSDP1 and `fully_shard` keep on a rank,
# - **count** gathered bytes and collectives for a way of wrapping,
# - **prove** on gradients that sharding changed nothing, with clipping and accumulation,
# - **read** the failure of one rank among many.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import os
import subprocess
import tempfile
import time

from ftcourse.claims import Ledger
from ftcourse.exercises.ddp_to_fsdp import (
    check_all_gathers,
    check_clip_factor,
    check_peak_gathered,
)
from ftcourse.explorers.fsdp import gather_explorer
from ftcourse.live_ranks.live import RankError, start_ranks
from ftcourse.plots import new_axes, plot_shards, use_course_style

# %% tags=["nbval-ignore-output"]
use_course_style()
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the ranks of this notebook are the processor's
os.chdir(tempfile.mkdtemp())  # what this notebook writes lies there
print(f"Python {sys.version.split()[0]}, device: cpu, {os.cpu_count()} cores")

# %%
RANKS = 2  # processes
# float32 keeps 7 digits; sums over rows and ranks in another order lose one or two of them.
TOLERANCE = 1e-4  # of the largest entry of each gradient
ledger = Ledger("distributed training")  # the claims tested here; the recap shows them

# %% [markdown]
# ## 1 · Ranks you can look into
#
# A **rank** is one of several processes that run the same program. `start_ranks` starts them beside this notebook;
# a cell that begins with `%%px` runs on every rank, not here. All of them know `rank`, `world_size` and `mesh`,
# which says how the ranks are arranged.

# %%
ranks = start_ranks(RANKS, timeout=60)

# %%
# %%px
import os

print(f"I am {rank} of {world_size}")
mesh

# %% [markdown]
# Notice: each line says who printed it.

# %%
pids = ranks.get("os.getpid()")  # a value from each rank, brought here
print(f"{len(set(pids))} processes, none of them this one: {os.getpid() not in pids}")
assert len(set(pids)) == RANKS and os.getpid() not in pids

# %% [markdown]
# Now a model, pocket-base, and 8 rows of text, of which every rank takes its part.

# %%
# %%px
import warnings
from copy import deepcopy

import torch
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
rows = torch.tensor(ids[: 8 * 48]).view(8, 48)  # (B, T)
mine = rows.chunk(world_size)[rank]
print(
    f"{sum(p.numel() for p in start.parameters()):,} parameters, {len(mine)} of {len(rows)} rows"
)


# %%
# %%px
def loss_of(model, rows):
    return model(input_ids=rows, labels=rows, use_cache=False).loss


def gradients(model):
    """Whole gradients by name, wherever they lie."""
    return {
        name.removeprefix("module.").replace("_checkpoint_wrapped_module.", ""): (
            p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        )
        for name, p in model.named_parameters()
        if p.grad is not None
    }


# %%
# %%px
def apart(found, wanted):
    """The largest difference, relative to the largest entry of each tensor."""
    assert found.keys() == wanted.keys(), "gradients of other parameters"
    far = [(found[n] - wanted[n]).abs().max() / wanted[n].abs().max() for n in wanted]
    return torch.stack(far).max().item()  # torch's max keeps NaN, Python's may lose it


alone = deepcopy(start)  # what a single process computes from all rows
loss_of(alone, rows).backward()
wanted = gradients(alone)

# %% [markdown]
# ## 2 · DDP: a whole copy on every rank
#
# **Distributed data parallel** keeps the whole model on each rank. Every rank computes gradients from its own rows;
# before the step they are exchanged by an **all-reduce**, after which every rank has the sum. A call which all ranks
# must make together is a **collective**. **Predict:** does DDP leave the sum on each rank, or the mean?

# %%
# %%px
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

own = deepcopy(start)
loss_of(own, mine).backward()  # this rank's rows only
replica = DistributedDataParallel(deepcopy(start))
loss_of(replica, mine).backward()
total = gradients(own)["lm_head.weight"].clone()
dist.all_reduce(total)  # the sum over ranks
shared = gradients(replica)["lm_head.weight"]
mean = torch.allclose(shared, total / world_size, atol=1e-7)  # float32's last digits
print(
    f"own rows alone differ: {apart(gradients(own), wanted) > 0.1}; DDP holds the mean: {mean}"
)

# %%
checksums = ranks.get("gradients(replica)['lm_head.weight'].double().sum().item()")
same = len(set(checksums)) == 1
equal = all(d < TOLERANCE for d in ranks.get("apart(gradients(replica), wanted)"))
summed = min(
    ranks.get("apart({n: world_size * g for n, g in gradients(replica).items()}, wanted)")
)
print(f"equal on all ranks: {same}; those of a single process: {equal}")
print(f"a sum in place of the mean would be noticed: {summed > 0.9}")
assert same and equal and summed > 0.9 and all(ranks.get("mean"))

# %%
ledger.add(
    "DDP's gradients are the mean over ranks, and those of a single process",
    "PyTorch's documentation of DDP",
    all(ranks.get("mean")) and equal,
    f"{RANKS} ranks, gradients within {TOLERANCE:g} of each tensor's largest entry",
    only_if="every rank has equally many labels",
)

# %% [markdown]
# Notice: equal, and whole on every rank. Each rank computed half of the rows, and saved no memory. **Predict:** does
# the mean of the ranks' means stay right when rank 0 has 2 rows and rank 1 has 6?

# %%
# %%px
uneven = DistributedDataParallel(deepcopy(start))
loss_of(uneven, rows[:2] if rank == 0 else rows[2:]).backward()
off = apart(gradients(uneven), wanted)
print(f"far from a single process's: {off > 0.01}")
assert off > 0.01

# %% [markdown]
# Notice: a row of the small part counts three times. With uneven parts divide a sum of losses by all ranks' tokens,
# as [16_fsdp_fine_tune](16_fsdp_fine_tune.ipynb) does.

# %% [markdown]
# ## 3 · FSDP1: one flat parameter
#
# The first **fully sharded data parallel** glued all parameters of a wrapper (the module that it is called on) into
# one long vector and gave each rank
# a piece. A vector has one `requires_grad`. **Predict:** what happens to a wrapper with a frozen and a trainable
# weight? It runs in a process of its own: FSDP1 is history.

# %%
# %%writefile fsdp1.py
import os
import warnings

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel

warnings.simplefilter("ignore")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for frozen, original in [(False, False), (True, False), (True, True)]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    model[0].requires_grad_(not frozen)
    try:
        wrapped = FullyShardedDataParallel(
            model, use_orig_params=original, device_id=torch.device("cpu")
        )
        shapes = [tuple(p.shape) for p in wrapped.parameters()]
        flags = {name: p.requires_grad for name, p in wrapped.named_parameters()}
        print(f"frozen={frozen}, use_orig_params={original}: {shapes}, {flags}")
    except ValueError as error:
        print(f"frozen={frozen}, use_orig_params={original}: {error}")
print(end="", flush=True)
os._exit(0)  # FSDP1 may abort when the interpreter ends

# %%
done = subprocess.run([sys.executable, "fsdp1.py"], capture_output=True, text=True)
assert done.returncode == 0, done.stderr[-800:]
flat, refused, mixed = done.stdout.splitlines()
print(done.stdout.replace("_fsdp_wrapped_module.", ""))
assert "[(23,)]" in flat and "uniform `requires_grad`" in refused
assert "weight': False" in mixed and "weight': True" in mixed

# %%
ledger.add(
    "FSDP1 cannot mix frozen and trainable parameters in one wrapper",
    "PyTorch's documentation of FullyShardedDataParallel",
    "uniform `requires_grad`" in refused,
    "a layer of two linear ones, the first frozen: refused, and taken with use_orig_params",
    only_if="use_orig_params=False, its default",
)

# %% [markdown]
# Notice: 12 + 3 + 6 + 2 numbers became one vector of 23. With `use_orig_params=True` each parameter keeps its name and
# flag; on several ranks its shape is lost to a piece of the vector.

# %% [markdown]
# ### What that meant for freezing
#
# With one wrapper per block, a preset of [04_freezing](04_freezing.ipynb) worked only if every block, and the root with
# all that lies outside the blocks, trained whole or not at all. **Predict:** which of these five did not?

# %%
import re
import textwrap

from torch.distributed.fsdp import FullyShardedDataParallel

from ftkit import freezing, load_base

doc = " ".join(FullyShardedDataParallel.__doc__.split())
quote = re.search(r"FSDP has some constraints when freezing.*?memory usage\.", doc)[0]
print(textwrap.fill(quote, 90), "\n")
for preset in ("everything", "head_only", "bitfit", "norms_only", "embeddings_and_norms"):
    model, _ = load_base()
    getattr(freezing, preset)(model)
    units = {}  # wrapper -> the flags in it
    for name, parameter in model.named_parameters():
        wrapper = re.search(r"layers\.\d+|$", name)[0] or "root"
        units.setdefault(wrapper, set()).add(parameter.requires_grad)
    mixed = [wrapper for wrapper, flags in units.items() if len(flags) == 2]
    print(f"{preset:21} mixed: {', '.join(mixed) or 'nothing'}")
    assert bool(mixed) == (preset != "everything")

# %% [markdown]
# Four of five: even the head alone shares the root with the frozen embedding. Since torch 2.1 (2023) FSDP1 accepts a
# mixture with `use_orig_params=True`, at the price of memory for gradients that its documentation names. FSDP2, next,
# shards each parameter by itself and takes any pattern.

# %% [markdown]
# ## 4 · `fully_shard`: every parameter by itself
#
# `fully_shard`, also called FSDP2, cuts each parameter by rows. What stays on a rank, its **shard**, is a **DTensor**:
# it knows the whole shape and holds a part. `Shard(dim=0)` says: cut by rows; `full_tensor()` gathers it. One call
# for each decoder layer, then one for the root with what is left.

# %%
# %%px
from torch.distributed.fsdp import fully_shard

sharded = deepcopy(start)
for layer in sharded.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(sharded, mesh=mesh)
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
# Notice: 320 rows became 160 and 160; even the norm's 128 numbers are cut.
#
# A layer computes with whole weights, so it gathers them first. **Predict:** how many bytes of layer 0 are whole
# before its forward pass, in it, and after it?


# %%
# %%px
def gathered(model):
    """Bytes of parameters that are whole on this rank."""
    return sum(
        p.numel() * p.element_size() for p in model.parameters() if not isinstance(p, DTensor)
    )


# %%
# %%px
layer = sharded.model.layers[0]
states = [gathered(layer)]
hook = layer.mlp.register_forward_hook(lambda *_: states.append(gathered(layer)))
loss = loss_of(sharded, mine)
hook.remove()
states.append(gathered(layer))
loss.backward()
whole = sum(p.numel() * 4 for p in alone.model.layers[0].parameters())
print(f"layer 0, whole bytes before, in and after: {states}; the layer has {whole}")
assert states == [0, whole, 0]

# %% [markdown]
# Notice: the whole layer exists for a moment. The gather before it is an **all-gather**; in the backward pass it comes
# again, and the gradients leave by a **reduce-scatter** (counted in section 5): the mean over ranks, of which each
# keeps its own rows.

# %% [markdown]
# ## 5 · What to wrap: memory against traffic
#
# The **wrapping** decides what is gathered at once. One call for the whole model, or one for each layer too: we follow
# a training step of both, and count.

# %%
# %%px
from ftcourse.instruments import CountCollectives


def wrap(model, each_layer=True, **options):
    for layer in model.model.layers if each_layer else []:
        fully_shard(layer, mesh=mesh, **options)
    root = {name: value for name, value in options.items() if name != "reshard_after_forward"}
    return fully_shard(model, mesh=mesh, **root)


def follow(model):
    """Bytes whole at each moment of the forward pass and after the step, and the step's collectives."""
    held = [gathered(model)]
    modules = [
        model.model.embed_tokens,
        *(layer.mlp for layer in model.model.layers),
        model.lm_head,
    ]
    hooks = [m.register_forward_hook(lambda *_: held.append(gathered(model))) for m in modules]
    with CountCollectives() as sent:
        loss_of(model, mine).backward()
    for hook in hooks:
        hook.remove()
    return [*held, gathered(model)], dict(sent.counts)


coarse, fine = follow(wrap(deepcopy(start), each_layer=False)), follow(wrap(deepcopy(start)))
print(f"whole model: at most {max(coarse[0]):,} bytes, {coarse[1]}")
print(f"each layer:  at most {max(fine[0]):,} bytes, {fine[1]}")

# %%
coarse, fine = ranks.get("(coarse, fine)")[0]
moments = [
    "before",
    "embeddings",
    *(f"in layer {i}" for i in range(4)),
    "head",
    "after backward",
]
explorer = gather_explorer({"whole model": coarse[0], "each layer": fine[0]}, moments)
explorer

# %%
explorer.slider.value = 3  # what the slider does, done by a cell
layers = 4
saved = explorer.here["whole model"] / explorer.here["each layer"]
print(f"{moments[3]}: {explorer.here}, {saved:.1f} times less")
assert saved > 1.5 and coarse[0][-1] == fine[0][-1] == 0
assert coarse[1] == {"all_gather": 1, "reduce_scatter": 1}
assert fine[1] == {"all_gather": 2 * layers + 1, "reduce_scatter": layers + 1}
root = fine[0][1]
layer = max(fine[0]) - root
eighty = (root + 80 * layer) / (root + layer)
print(f"with 80 such layers: {eighty:.0f} times less")
assert eighty > 30

# %%
ledger.add(
    "sharding by layers lowers the peak of gathered weights in the forward pass, and sends more often",
    "PyTorch's documentation of fully_shard",
    max(fine[0]) < max(coarse[0]) and fine[1]["all_gather"] > coarse[1]["all_gather"],
    f"{max(coarse[0]):,} bytes with {coarse[1]['all_gather']} all-gather, "
    f"{max(fine[0]):,} with {fine[1]['all_gather']}",
)

# %% [markdown]
# Notice: embeddings and head stay whole in the root, so four layers save less than eighty would. In the backward pass
# the next layer is fetched while one computes, and two layers' bytes are held for a while (on GPUs in the forward
# pass too).

# %% [markdown]
# ### Exercise 1 · the peak
#
# Difficulty ●○○, 4 minutes. How many bytes of parameters are whole at the peak of a forward pass? Expected: layers of
# 100, 300 and 200 bytes and a root of 50 peak at 350, or at 650 with a single wrapper.


# %% tags=["exercise"]
def peak_gathered(layers: list[int], root: int, per_layer: bool) -> int:
    """Bytes gathered at once; `root` is what belongs to no layer."""
    ### BEGIN SOLUTION
    return root + (max(layers) if per_layer else sum(layers))
    ### END SOLUTION


check_peak_gathered(peak_gathered)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# The root gathers first and stays. Wrapped layer by layer, one layer at a time joins it: which one is the worst?
#
# </details>

# %% [markdown]
# ### Exercise 2 · all-gathers in a step
#
# Difficulty ●●○, 5 minutes. By default (`reshard_after_forward=True`) a layer is cut up again after its forward pass;
# with `False` it stays whole until its backward pass. The root is left at its own default and stays whole. How many
# all-gathers does a step take? Expected, for 4 layers: 9 with `True`, 5 with `False`.


# %% tags=["exercise"]
def all_gathers(layers: int, reshard_after_forward: bool) -> int:
    """All-gathers of one training step, each layer and the root wrapped."""
    ### BEGIN SOLUTION
    return layers * (2 if reshard_after_forward else 1) + 1
    ### END SOLUTION


check_all_gathers(all_gathers)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Count for one layer: once before its forward pass. Is it still whole when its backward pass comes?
#
# </details>

# %% [markdown]
# ## 6 · The same gradients
#
# Compare gradients, not losses or weights: a sum in place of a mean leaves the first loss as it is, and AdamW
# divides it away. Here are both ways of wrapping, and **accumulation**: two micro-batches and one exchange. The loss
# of each is halved, because their gradients add up.

# %%
# %%px
weights, g = (
    [torch.zeros(3, requires_grad=True) for _ in range(2)],
    torch.tensor([1e-3, -2e-2, 5e-4]),
)
for weight, factor in zip(weights, (1, 2), strict=True):
    weight.grad = factor * g
    torch.optim.AdamW([weight], lr=1e-3).step()
print(f"a doubled gradient, the same step of AdamW: {torch.allclose(*weights, rtol=1e-4)}")
assert torch.allclose(*weights, rtol=1e-4)


# %%
# %%px
def trained(model, batches=(mine,), last_only=True):
    """Backward over the batches; exchange gradients at the last, or at each."""
    for number, batch in enumerate(batches):
        model.set_requires_gradient_sync(not last_only or number == len(batches) - 1)
        (loss_of(model, batch) / len(batches)).backward()
    return model


two = mine.chunk(2)
with CountCollectives() as once:
    accumulated = trained(wrap(deepcopy(start)), two)
with CountCollectives() as each:
    trained(wrap(deepcopy(start)), two, last_only=False)
distances = {
    "whole model": apart(gradients(trained(wrap(deepcopy(start), each_layer=False))), wanted),
    "each layer": apart(gradients(trained(wrap(deepcopy(start)))), wanted),
    "accumulated": apart(gradients(accumulated), wanted),
}
wrong = apart({n: world_size * g for n, g in gradients(accumulated).items()}, wanted)

# %%
found = ranks.get("distances")
near = {name: all(d[name] < TOLERANCE for d in found) for name in found[0]}
for name, is_near in near.items():
    print(f"{name}: gradients of a single process: {is_near}")
sent = ranks.get("(once.counts['reduce_scatter'], each.counts['reduce_scatter'])")[0]
print(f"reduce-scatters over two micro-batches: {sent[0]} at the end, or {sent[1]} at each")
print(f"a sum in place of the mean is noticed: {min(ranks.get('wrong')) > 0.9}")
assert all(near.values()) and min(ranks.get("wrong")) > 0.9
assert sent == (layers + 1, 2 * (layers + 1))

# %% [markdown]
# Clipping needs one norm over all shards. **Predict:** is the norm of a rank's own shards larger or smaller?

# %%
# %%px
local = torch.stack([p.grad.to_local().norm() for p in accumulated.parameters()]).norm().item()
norm = nn.utils.clip_grad_norm_(accumulated.parameters(), 0.5).full_tensor().item()
reference = deepcopy(alone)
for name, p in reference.named_parameters():
    p.grad = wanted[name].clone()
norm_alone = nn.utils.clip_grad_norm_(reference.parameters(), 0.5).item()
clipped = apart(gradients(accumulated), gradients(reference))
unclipped = apart(gradients(accumulated), wanted)
print(
    f"own shards have less: {local < 0.99 * norm}; gradients were clipped: {unclipped > 0.1}"
)

# %%
own, (norm, _) = ranks.get("local"), ranks.get("(norm, norm_alone)")[0]
whole = sum(n**2 for n in own) ** 0.5 / norm
print(
    f"own norms {[f'{n / norm:.0%}' for n in own]} of the whole; of their squares' sum: {whole:.3f}"
)
same_norm = all(abs(n / a - 1) < TOLERANCE for n, a in ranks.get("(norm, norm_alone)"))
same_clipped = all(d < TOLERANCE for d in ranks.get("clipped"))
print(f"norm as in a single process: {same_norm}, clipped gradients too: {same_clipped}")
assert abs(whole - 1) < TOLERANCE and same_norm and same_clipped
assert all(ranks.get("local < 0.99 * norm and unclipped > 0.1"))

# %%
ledger.add(
    "fully_shard's gradients are a single process's, accumulated and clipped too",
    "PyTorch's documentation of fully_shard",
    all(near.values()) and same_norm and same_clipped,
    f"{RANKS} ranks, all within {TOLERANCE:g} of each tensor's largest entry",
    only_if="every rank has equally many labels",
)

# %% [markdown]
# Notice: clipping is one process's line; accumulation needs `set_requires_gradient_sync`, and until the exchange every
# rank holds whole gradients, so traffic is saved with memory.

# %% [markdown]
# ### Exercise 3 · one norm for all
#
# Difficulty ●●○, 5 minutes. Each rank knows the norm of its shards. By which factor must all ranks multiply their
# gradients? Expected: norms 3 and 4, clipped to 1, give 0.2.


# %% tags=["exercise"]
def clip_factor(shard_norms: list[float], max_norm: float) -> float:
    """The factor of clipping, at most 1."""
    ### BEGIN SOLUTION
    norm = sum(shard_norm**2 for shard_norm in shard_norms) ** 0.5
    return min(1.0, max_norm / (norm + 1e-6))
    ### END SOLUTION


check_clip_factor(clip_factor)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Norms do not add, squares do. And a gradient that is small enough is left alone.
#
# </details>

# %% [markdown]
# ## 7 · bfloat16, checkpointing, freezing
#
# A **mixed precision policy** has `param_dtype`, in which a layer's weights and inputs are, and `reduce_dtype`, in
# which gradients travel. **Autocast** casts inside single operations. **Predict:** in which dtype is a gathered
# weight under each? And what a layer hands on?

# %%
# %%px
from contextlib import nullcontext

from torch.distributed.fsdp import MixedPrecisionPolicy


def look_into(model, context):
    """dtypes of a gathered weight, of what a layer hands on, and of the gradient; and the loss."""
    seen, layer = {}, model.model.layers[1]
    hooks = [
        layer.mlp.up_proj.register_forward_hook(
            lambda m, *_: seen.update(weight=m.weight.dtype)
        )
    ]
    hooks += [layer.register_forward_hook(lambda m, i, out: seen.update(handed_on=out.dtype))]
    with context:
        loss = loss_of(model, mine)
    loss.backward()
    for hook in hooks:
        hook.remove()
    weight = layer.mlp.up_proj.weight
    return seen | {"shard": weight.dtype, "gradient": weight.grad.dtype, "loss": loss.item()}


policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
by_policy = look_into(wrap(deepcopy(start), mp_policy=policy), nullcontext())
by_autocast = look_into(wrap(deepcopy(start)), torch.autocast("cpu", torch.bfloat16))
in_float32 = look_into(wrap(deepcopy(start)), nullcontext())

# %%
seen = ranks.get("(by_policy, by_autocast, in_float32)")[0]
for name, found in zip(("policy", "autocast", "float32"), seen, strict=True):
    near = abs(found["loss"] - seen[2]["loss"])
    dtypes = {k: str(v).removeprefix("torch.") for k, v in found.items() if k != "loss"}
    print(f"{name:8} {dtypes}, loss within 0.02 of float32's: {near < 0.02}")
    assert near < 0.02 and dtypes["gradient"] == "float32"
weights = [str(found["weight"]) for found in seen]
assert weights == ["torch.bfloat16", "torch.float32", "torch.float32"]
assert [str(found["handed_on"]) for found in seen] == weights
assert {str(found["shard"]) for found in seen} == {"torch.float32"}

# %%
ledger.add(
    "a mixed precision policy gathers in bfloat16, autocast does not",
    "PyTorch's documentation of MixedPrecisionPolicy",
    weights[:2] == ["torch.bfloat16", "torch.float32"],
    f"gathered as {weights[0]} and as {weights[1]}; losses within 0.02 of float32's",
)

# %% [markdown]
# Notice: both keep sharded weights and gradients in float32. The policy hands bfloat16 from layer to layer; autocast
# keeps that stream in float32.

# %% [markdown]
# **Activation checkpointing** drops a layer's activations and computes them again. A notebook of 2022 says: only after
# sharding. Is before wrong? And may a layer hold **frozen and trainable** weights?

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


def half_frozen(model):
    for name, p in model.named_parameters():
        p.requires_grad_("mlp" not in name)
    return model


before = apart(gradients(trained(wrap(checkpointed(deepcopy(start))))), wanted)
after = apart(gradients(trained(checkpointed(wrap(deepcopy(start))))), wanted)
attention_only = {name: g for name, g in wanted.items() if "mlp" not in name}
frozen = apart(gradients(trained(wrap(half_frozen(deepcopy(start))))), attention_only)
wrapped = checkpointed(wrap(deepcopy(start))).modules()
recomputed = sum(isinstance(module, CheckpointWrapper) for module in wrapped)
assert recomputed == len(start.model.layers), "no layer was checkpointed"

# %%
before, after, frozen = (
    all(d < TOLERANCE for d in ranks.get(name)) for name in ("before", "after", "frozen")
)
print(
    f"checkpointing before sharding: {before}, after: {after}; half a layer frozen: {frozen}"
)
assert before and after and frozen

# %%
ledger.add(
    "activation checkpointing must be applied after sharding",
    "L. Wright, FSDP activation checkpointing, 2022",
    not before,
    f"before and after: gradients within {TOLERANCE:g} of a single process's, {RANKS} ranks; "
    "FSDP1 was not run",
)

# %% [markdown]
# Notice: all equal. `apart` also demands the same names, so the frozen weights have no gradient at all.

# %% [markdown]
# ## 8 · Break it, then fix it
#
# Ranks meet in every collective. One that fails never comes, and left alone the others wait for torch's time-out: 10
# minutes with NCCL, 30 with gloo. Live ranks let them go at once, and tell you who failed and where.

# %% tags=["raises-exception"]
# %%px
x = torch.ones(1)
if rank == 1:
    raise ValueError("bad row in my part of the data")
dist.all_reduce(x)

# %% [markdown]
# Read such a message from its top: the first rank has the cause, the others only waited. The process group was
# re-initialised, so fix the cell and run it again:

# %%
# %%px
x = torch.ones(1)
dist.all_reduce(x)
print(x.item())
assert x.item() == world_size

# %% [markdown]
# The other way to hang raises nothing: a rank that skips a collective. `monitored_barrier` finds it: rank 0 waits for
# the others, two seconds here, and reports. It needs gloo, which these ranks use; beside NCCL make a group for it:
# `dist.new_group(backend="gloo")`.

# %%
skips = """
import datetime
if rank == 0:
    dist.monitored_barrier(timeout=datetime.timedelta(seconds=2))
"""
began = time.monotonic()
try:
    ranks.run(skips)
except RankError as error:
    print(*str(error).splitlines()[:3], sep="\n")
    assert "rank 1 never came there" in str(error)
else:
    raise AssertionError("nobody was missed")
assert time.monotonic() - began < 20

# %% [markdown]
# Notice: it ended in seconds. When you are done, stop the ranks; they end with the notebook in any case.

# %%
ranks.stop()
ranks

# %% [markdown]
# ## Recap
#
# - DDP copies the model and averages gradients; FSDP cuts it and gathers a layer while it computes.
# - Wrapping layer by layer trades memory for traffic.
# - Equality is shown on gradients, and must fail on a wrong factor; ours does, for a sum in place of the mean.
# - A rank that fails is the cause; those that waited are not.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. What does DDP save, and what does it not?
# 2. Why could FSDP1 not freeze half of a wrapper?
# 3. When is a layer whole on a rank, and which collective made it so?
# 4. Why compare gradients, and not weights after AdamW?
# 5. What is cast by a mixed precision policy, and what by autocast?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: each rank computes a part of the rows; every rank still holds the whole model.
# - 2: it made one flat vector of it, with one `requires_grad`.
# - 3: in its forward and its backward pass, after an all-gather.
# - 4: AdamW divides by the gradient's size, which hides a wrong factor.
# - 5: the gathered weights and a layer's inputs; the inputs of single operations.
#
# </details>

# %% [markdown]
# ## Sources
#
# - PyTorch, [fully_shard](https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html) and
#   [DistributedDataParallel](https://docs.pytorch.org/docs/stable/notes/ddp.html).
# - Zhao et al., [PyTorch FSDP](https://arxiv.org/abs/2304.11277): experiences on scaling, FSDP1.
# - PyTorch, [FullyShardedDataParallel](https://docs.pytorch.org/docs/stable/fsdp.html): `use_orig_params`;
#   [pull request 98221](https://github.com/pytorch/pytorch/pull/98221), 2023: a mixture is allowed.
# - Less Wright,
#   [FSDP activation checkpointing](https://github.com/lessw2020/transformer_central/tree/main/activation_checkpointing_tutorial),
#   2022.
# - [ipyparallel](https://ipyparallel.readthedocs.io), which carries `%%px`.
#
# ## Next
#
# [14_delayed_init_and_tensor_parallel](14_delayed_init_and_tensor_parallel.ipynb): models that
# no rank could load whole.
