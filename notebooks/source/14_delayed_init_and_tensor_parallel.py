# %% [markdown]
# # 14 · Too large for one machine: delayed initialisation and tensor parallelism
#
# A model that no rank can hold must not be complete on any of them while it is loaded. You measure the standard ways to
# load one, prove that nothing was left unset, then split the matrices themselves, and find out when that is worth it.
#
# - **Prerequisites:** [13_ddp_to_fsdp](13_ddp_to_fsdp.ipynb).
# - **Hardware:** any processor with two cores; a GPU is not used here. On Windows, use WSL 2.
# - **Time:** about 40 minutes with the exercises; its cells run in about a minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **predict** and **measure** what loading costs each rank in host memory,
# - **load** only a rank's own shards, with torch's and with transformers' own calls,
# - **prove** that loading left no parameter and no buffer unset,
# - **write** a tensor-parallel plan, with sequence and loss parallelism, and count what it sends,
# - **decide** whether a model needs tensor parallelism at all.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import os
import tempfile
import textwrap
from pathlib import Path

import torch
import transformers
from ftcourse.claims import Ledger
from ftcourse.exercises.delayed_init_and_tensor_parallel import (
    check_layer_plan,
    check_loading_peaks,
)
from ftcourse.expected import expected_error
from ftcourse.explorers.tensor_parallel import layer_shards
from ftcourse.live_ranks.live import start_ranks
from ftcourse.plots import HATCHES, OKABE_ITO, new_axes, use_course_style
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from ftkit import load_base
from ftkit.distributed import tensor_parallel
from ftkit.distributed.loading import (
    assert_initialized,
    fill_with_nan,
    restore_buffers,
    tensor_files,
)
from ftkit.models import meta_model, resolve_model

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the ranks of this notebook use the CPU
os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # freed tensors go back to the system at once
folder = tempfile.TemporaryDirectory()  # for what this notebook writes, until its end
os.chdir(folder.name)
print(f"torch {torch.__version__}, device: cpu, {os.cpu_count()} cores")

# %%
RANKS = 4  # processes; in sections 5 to 7 they are two pairs
TOLERANCE = 1e-4  # float32 has 7 digits; sums in another order lose two or three of them
ledger = Ledger("distributed training")  # the claims tested here; the recap shows them
reference, tokenizer = load_base()


def shown(distance: float) -> str:
    return f"under {TOLERANCE:.2%}" if distance < TOLERANCE else f"{distance:.0%}"


# %% [markdown]
# ## 1 · The problem
#
# A program for one process begins with `from_pretrained`. Started on every GPU of a machine, it holds one copy of the
# model per rank in host memory, before anything is sharded. Eight ranks load in float32, for the optimizer's sake:

# %%
sizes = {"8B": 8.03e9, "70B": 70.6e9}  # parameters of Llama 3
for name, parameters in sizes.items():
    copy = 4 * parameters / 1e9
    print(f"{name:4} {copy:4.0f} GB per copy, {8 * copy:5,.0f} GB on a machine with 8 ranks")

# %% [markdown]
# 2.3 TB for a model whose shards, spread over the same ranks, are 35 GB each. Three ways:
#
# - **every rank** loads the whole model and splits it tensor by tensor, keeping its shard of each;
# - **rank 0** alone loads, and sends each rank its part;
# - **shards**: each rank reads only its own part of the files.
#
# For the last two, the ranks begin **on meta**: a model with names and shapes and no memory.

# %% [markdown]
# ### Exercise 1 · predict the peaks
#
# Difficulty ●●○, 6 minutes. What does each rank hold at its peak, in host memory? `route` is `"every rank"`, `"rank 0"`
# or `"shards"`; leave out buffers of messages and files. Expected: 16 GB on 4 ranks, read as shards: `[4, 4, 4, 4]`.


# %% tags=["exercise"]
def loading_peaks(route: str, full: float, ranks: int) -> list[float]:
    """The peak of rank 0, 1, … in the unit of `full`, the size of the whole model."""
    ### BEGIN SOLUTION
    share = full / ranks
    if route == "every rank":
        return [full] * ranks
    first = full + share if route == "rank 0" else share
    return [first] + [share] * (ranks - 1)
    ### END SOLUTION


check_loading_peaks(loading_peaks)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Every rank ends with its shard. Ask what else it holds at the worst moment. A tensor that has been split is freed, so
# whole and shards never lie side by side where every rank loads. On rank 0 both are there, while it sends.
#
# </details>

# %% [markdown]
# ## 2 · The standard calls, measured
#
# Four live ranks as in [13_ddp_to_fsdp](13_ddp_to_fsdp.ipynb). They have the environment variables that `torchrun`
# sets, so every line below works in a program, too. The model: a Llama of 18 million random parameters, saved in
# bfloat16 in several files. The ranks want it in float32.

# %%
ranks = start_ranks(RANKS, timeout=60)
config = LlamaConfig(hidden_size=256, intermediate_size=1024, vocab_size=3200)
config.num_hidden_layers = 16
torch.manual_seed(0)
big = LlamaForCausalLM(config)
full = 4 * sum(p.numel() for p in big.parameters()) / 1e6  # MB in float32
big.bfloat16().save_pretrained("big", max_shard_size="20MB")
del big
print(f"{full:.0f} MB in float32, {len(list(Path('big').glob('*.safetensors')))} files")
_ = ranks.run(f"import os; os.chdir({folder.name!r})")

# %%
# %%px
import warnings
from copy import deepcopy

import torch
import torch.distributed as dist
import transformers
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from ftkit import load_base
from ftkit.distributed.loading import restore_buffers
from ftkit.models import meta_model, resolve_model

transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("ignore")


def shard(model):
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


# %% [markdown]
# **Every rank.** Three lines, and each rank holds the whole model once.


# %%
# %%px
def every_rank():
    full = AutoModelForCausalLM.from_pretrained(
        "big", dtype=torch.float32, trust_remote_code=False
    )
    return shard(full)


# %% [markdown]
# **Rank 0.** All ranks build the model on meta, shard it and only then allocate memory: `to_empty` allocates shards,
# with nothing written into them. `set_model_state_dict` with `broadcast_from_rank0=True` sends tensor by tensor from
# rank 0. `restore_buffers` is section 4's subject.

# %%
# %%px
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict


def empty_shards():
    model = shard(meta_model("big")).to_empty(device="cpu")
    restore_buffers(model)
    return model


def rank_0():
    model, full = empty_shards(), {}
    if rank == 0:
        full = AutoModelForCausalLM.from_pretrained(
            "big", dtype=torch.float32, trust_remote_code=False
        ).state_dict()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, full, options=options)
    return model


# %% [markdown]
# **Shards, with torch.** Distributed checkpoint (DCP) reads a Hugging Face folder, too. It asks each DTensor of the
# state dict which part it holds, and reads that part in place.

# %%
# %%px
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader


def shards_dcp():
    model = empty_shards()
    dcp.load(model.state_dict(), storage_reader=HuggingFaceStorageReader("big"))
    return model


# %% [markdown]
# **Shards, with transformers.** One argument: `fsdp_size` wraps by the model's own plan, `tp_size` adds tensor
# parallelism. (`tp_plan="auto"`, the older argument for the latter, is deprecated.)

# %%
# %%px
from transformers.distributed import DistributedConfig


def shards_transformers():
    return AutoModelForCausalLM.from_pretrained(
        "big",
        dtype=torch.float32,
        distributed_config=DistributedConfig(fsdp_size=4),
        trust_remote_code=False,
    )


# %% [markdown]
# **Shards, with `ftkit`.** What its program uses. It compares names, shapes and files before any memory is taken, fills
# the shards with NaN, reads, and checks that no NaN is left (section 4).

# %%
# %%px
from ftkit.distributed.loading import load_sharded_model


def shards_ftkit():
    return load_sharded_model(lambda: meta_model("big"), shard, "big", torch.device("cpu"))


# %% [markdown]
# How to measure it? A file that is mapped into memory makes a process look large, though the system may
# drop those pages at any time. So count a rank's **unique set size**, the pages that belong to it alone, every 2 ms.

# %%
# %%px
from ftcourse.instruments import peak_uss

ids = torch.arange(32).view(2, 16)


def measured(route):
    with peak_uss() as peak:
        model = globals()[route]()
    with torch.no_grad():
        return peak[0] / 1e6, model(input_ids=ids, labels=ids).loss.item()


# %%
ROUTES = ("every_rank", "rank_0", "shards_dcp", "shards_transformers", "shards_ftkit")
measured = {route: ranks.get(f"measured({route!r})") for route in ROUTES}
peaks = {route: [megabytes for megabytes, _ in found] for route, found in measured.items()}
losses = [loss for found in measured.values() for _, loss in found]
assert max(losses) - min(losses) < 1e-4

# %% tags=["nbval-ignore-output"]
share = full / RANKS
predicted = {"every_rank": [4, 4, 4, 4], "rank_0": [5, 1, 1, 1]}
shards = {
    route: [round(megabytes / share) for megabytes in found] for route, found in peaks.items()
}
print(f"peaks of ranks 0 to 3, rounded to shards of {share:.0f} MB")
for route, found in shards.items():
    print(f"{route:20} measured {found}   predicted {predicted.get(route, [1, 1, 1, 1])}")

# %% tags=["hide-input", "nbval-ignore-output"]
ax = new_axes(8, 3.4)[1]
for place, found in enumerate(shards.values()):
    for number, (label, height) in enumerate(
        (("rank 0", found[0]), ("the others", max(found[1:])))
    ):
        y = place + 0.38 * number
        look = {"color": OKABE_ITO[number], "hatch": HATCHES[number], "alpha": 0.5}
        ax.barh(y, height, 0.34, label=label if place == 0 else None, **look)
        ax.text(height + 0.05, y, f"{height * share:.0f} MB", va="center", fontsize=9)
ax.axvline(RANKS, color="black", linestyle="--", linewidth=1)
ax.text(RANKS, -0.35, " the whole model", va="bottom", fontsize=9)
ax.set(yticks=[place + 0.19 for place in range(len(shards))], yticklabels=list(shards))
ax.set(xlabel="peak of a rank's own host memory, in shards", xlim=(0, 6.5), ylim=(4.8, -0.8))
_ = ax.legend(frameon=False, loc="lower right")

# %% [markdown]
# Buffers of messages and files, which the prediction leaves out, are smaller than half a shard. All five models compute
# the same loss. In relation to the model's size, and as ranges that hold on any machine:

# %%
parts = {route: [megabytes / full for megabytes in found] for route, found in peaks.items()}
expected = {"every_rank": (0.9, 1.6), "rank_0": (1.1, 2.0)}
for route in ROUTES:
    at_least, at_most = expected.get(route, (0.2, 0.6))
    print(f"{route:20} rank 0's peak is {at_least} to {at_most} times the model")
    assert at_least < parts[route][0] < at_most
spared = max(parts["rank_0"][1:]) < 0.6 < min(parts["every_rank"])
only_shards = max(max(parts[route]) for route in ROUTES[2:]) < 0.6
assert spared and only_shards

# %% [markdown]
# With n ranks on a machine, loading on rank 0 takes about two models together instead of n. But rank 0 sets how much
# memory a machine must have. Where ranks read their shards, no rank ever holds the model.

# %% tags=["hide-input"]
_ = ledger.add(
    "letting only rank 0 load spares the other ranks the whole model",
    "Accelerate, fsdp_cpu_ram_efficient_loading",
    spared,
    f"{RANKS} ranks, {full:.0f} MB: peaks of the others below 0.6 of the model",
    model="a Llama of 18 M random parameters",
    only_if="rank 0 holds the whole model and its shard",
)
_ = ledger.add(
    "no rank needs to hold the whole model while loading",
    "PyTorch, distributed checkpoint",
    only_shards,
    f"{RANKS} ranks, {full:.0f} MB, DCP, transformers and ftkit: each rank below 0.6 of it, a shard being 0.25",
    model="a Llama of 18 M random parameters",
)

# %% [markdown]
# ## 3 · Which bytes are mine
#
# A safetensors file begins with a table: name, dtype, shape and place of each tensor. So a rank can read a block of
# rows, as FSDP wants it, or of columns, as section 5 will, and nothing else.

# %%
name = "model.layers.0.mlp.down_proj.weight"
with safe_open(tensor_files("big")[name], framework="pt") as file:
    whole = file.get_slice(name)
    rows, columns = whole.get_shape()
    top, left, everything = whole[: rows // 2], whole[:, : columns // 2], whole[:]
print(f"half the rows {tuple(top.shape)}, half the columns {tuple(left.shape)}")
assert torch.equal(top, everything[: rows // 2])
assert torch.equal(left, everything[:, : columns // 2])

# %% [markdown]
# A folder from which a file is missing is found before anything is read. Each rank finds it by itself, so all stop and
# none waits for another.

# %%
some_file = sorted(Path("big").glob("*.safetensors"))[1]
some_file.rename("elsewhere")
try:
    tensor_files("big")
except FileNotFoundError as error:
    print(error)
else:
    raise AssertionError("a missing file went unseen")
finally:
    os.rename("elsewhere", some_file)

# %% [markdown]
# ## 4 · Break it, then fix it: what the files do not hold
#
# **Predict:** a model comes from meta, and `load_state_dict` reports that all keys matched. Is it complete?

# %%
checkpoint = load_file(Path(resolve_model(), "model.safetensors"))
question = "Q: What planets are in our solar system?\n"
answer = "A: Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune.\n"
ids = torch.tensor([tokenizer(4 * (question + answer)).input_ids])  # (1, T)


def loss_of(model):
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).loss.item()


# %%
model = meta_model(resolve_model()).to_empty(device="cpu")  # nothing is written into it
print(model.load_state_dict(checkpoint))
for buffer in model.buffers():
    buffer.zero_()  # fresh memory holds anything, and often zeros
right, found = loss_of(reference), loss_of(model)
print(f"loss {found:.1f}, and {right:.1f} where from_pretrained loaded the model")
assert found > right + 0.1
assert_initialized(model)  # passes, because zeros are finite

# %% [markdown]
# The rotary frequencies are **non-persistent buffers**: tensors that are no parameters and that no checkpoint holds.
# The class computes them when it is built, and on meta there was nothing to compute. Such a model runs without an
# error, and is wrong. A search for unset values finds nothing, because zeros look set. So fill everything with NaN
# first:

# %%
model = meta_model(resolve_model()).to_empty(device="cpu")
fill_with_nan(model)
print(model.load_state_dict(checkpoint))
print(f"loss: {loss_of(model)}")

# %% tags=["raises-exception"]
with expected_error(RuntimeError):
    assert_initialized(model)

# %% [markdown]
# The fix: `restore_buffers` passes each module with such buffers to the model's own initialisation once more, as
# `from_pretrained` does. That may draw weights anew as well, so it comes before reading.

# %%
model = meta_model(resolve_model()).to_empty(device="cpu")
fill_with_nan(model)
restore_buffers(model)
model.load_state_dict(checkpoint)
assert_initialized(model)
print(
    f"loss {loss_of(model):.1f}, {abs(loss_of(model) - right):.1f} from that of from_pretrained"
)
assert loss_of(model) == right

# %% [markdown]
# Does the check find whatever loading leaves out? Plant such faults: load without one parameter, in a way that does
# not complain, or without the buffers, of which there are two.


# %%
def named_if_missing(name, unset):
    """Whether the check names a tensor that nothing has set, among `unset` of them."""
    model = meta_model(resolve_model()).to_empty(device="cpu")
    fill_with_nan(model)
    if name in checkpoint:
        restore_buffers(model)
    model.load_state_dict({n: t for n, t in checkpoint.items() if n != name}, strict=False)
    try:
        assert_initialized(model)
    except RuntimeError as error:
        return str(error).startswith(f"{unset} tensors were left unset by loading: {name}")
    return False


# %%
faults = {"model.norm.weight": 1, "model.layers.0.self_attn.k_proj.bias": 1}
faults |= {"lm_head.weight": 1, "model.rotary_emb.inv_freq": 2}
caught = [named_if_missing(name, unset) for name, unset in faults.items()]
print(f"planted faults named: {sum(caught)} of {len(faults)}")
assert all(caught)

# %% tags=["hide-input"]
_ = ledger.add(
    "a look at all parameters and buffers finds what delayed initialisation left unset",
    "Amazon SageMaker SMP v2, DelayedParamIniter, validate_params_and_buffers_inited",
    all(caught),
    f"{sum(caught)} of {len(faults)} planted faults named: three parameters, and the buffers",
    only_if="memory is filled with NaN beforehand: with zeros in the buffer the look found nothing",
)

# %% [markdown]
# ## 5 · Columns and rows
#
# FSDP stores a matrix in parts but computes with the whole. **Tensor parallelism** (TP) computes in parts, on the same
# batch. *Column-parallel* gives each rank some output features; *row-parallel* some input features, and the ranks'
# outputs must be summed: an **all-reduce**. The names are of `x @ W`; torch stores `W` as (out, in).

# %%
mlp = reference.model.layers[0].mlp
x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))  # (tokens, hidden)
gates, ups = mlp.gate_proj.weight.chunk(2), mlp.up_proj.weight.chunk(2)  # output features
gate_biases, up_biases = mlp.gate_proj.bias.chunk(2), mlp.up_proj.bias.chunk(2)
downs = mlp.down_proj.weight.chunk(2, dim=1)  # input features
outputs = []
for rank in range(2):
    gate = torch.nn.functional.silu(x @ gates[rank].T + gate_biases[rank])
    inner = gate * (x @ ups[rank].T + up_biases[rank])  # (4, 160): half of the features
    outputs.append(inner @ downs[rank].T)  # (4, 128): a part of the sum
summed = sum(outputs) + mlp.down_proj.bias  # the bias once, after the sum
distance = ((summed - mlp(x)).abs().max() / mlp(x).abs().max()).item()
print(f"two halves of an MLP: {shown(distance)} from the whole")
assert distance < TOLERANCE

# %% [markdown]
# Between column and row the ranks need nothing of each other, because SiLU and the product work feature by feature.
# **One** sum serves the whole MLP. In attention the features are heads: each rank computes some of them.

# %%
explorer = layer_shards(reference.config)
explorer

# %% [markdown]
# **Predict first:** with 4 ranks, what shape is a rank's part of `down_proj`? And can 3 ranks share 4 heads? Then
# move the slider.

# %%
explorer.slider.value = 4
assert explorer.shapes["down_proj"] == (128, 80) and explorer.shapes["q_proj"] == (32, 128)
explorer.slider.value = 3
print(textwrap.fill(explorer.caption, 95))
assert explorer.shapes == {}
explorer.slider.value = 2

# %% [markdown]
# ### On the ranks: a plan
#
# In torch a **plan** names a style for each module, and `parallelize_module` applies it. The four ranks are two pairs
# that share matrices; the mesh names the pairs' dimension `tp`. torch's `CommDebugMode` counts collectives.
# **Predict:** how many does the other order take, row-parallel first, then column-parallel?

# %% tags=["hide-input"]
# %%px
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

start, _ = load_base()
batch = torch.arange(256).view(8, 32)  # (B, T)
hidden = start.model.embed_tokens(batch).detach()


def sent(counter):
    return {str(op).split(".")[-1]: n for op, n in counter.get_comm_counts().items()}


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


# %%
# %%px
grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp_shard", "tp"))


def run_mlp(plan):
    """The collectives of forward and backward, and the distance from the whole MLP."""
    whole = start.model.layers[0].mlp
    mlp = parallelize_module(deepcopy(whole), grid["tp"], plan)
    with CommDebugMode() as forward:
        out = mlp(hidden.clone().requires_grad_())
    with CommDebugMode() as backward:
        out.sum().backward()
    return sent(forward), sent(backward), relative(out, whole(hidden))


first, last = ("gate_proj", "up_proj"), "down_proj"
column_row = run_mlp(dict.fromkeys(first, ColwiseParallel()) | {last: RowwiseParallel()})
row_column = run_mlp(
    dict.fromkeys(first, RowwiseParallel(input_layouts=Replicate()))
    | {last: ColwiseParallel(output_layouts=Replicate())}
)

# %%
plans = dict(
    zip(
        ("column, then row", "row, then column"),
        ranks.get("(column_row, row_column)")[0],
        strict=True,
    )
)
for name, (forward, backward, distance) in plans.items():
    print(
        f"{name}: {shown(distance)} from the whole MLP\n  forward {forward}\n  backward {backward}"
    )
totals = [sum(forward.values()) for forward, _, _ in plans.values()]
assert totals[0] == 1 < totals[1] and max(d for *_, d in plans.values()) < TOLERANCE

# %% [markdown]
# Both orders are right, and only the first is cheap: column-parallel followed by row-parallel needs a single all-reduce
# in the forward pass. In the backward pass gate and up each sum a gradient of their common input; a program that
# fuses them sums once.


# %% tags=["hide-input"]
# %%px
def tried(plan):
    """The plan on layer 0: distance from the whole layer, and all-reduces of the forward pass."""
    styles = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    whole = start.model.layers[0]
    owners = {n.split(".")[-1]: n for n, _ in whole.named_modules()}
    layer = parallelize_module(
        deepcopy(whole), grid["tp"], {owners[n]: styles[s]() for n, s in plan.items()}
    )
    positions = torch.arange(32).unsqueeze(0)
    rotary = start.model.rotary_emb(hidden, positions)
    with torch.no_grad():
        expected = whole(hidden, position_embeddings=rotary)
        with CommDebugMode() as counter:
            found = layer(hidden, position_embeddings=rotary)
    return {
        "error": relative(found, expected),
        "all_reduces": sent(counter).get("all_reduce", 0),
    }


# %%
def try_plan(plan: dict[str, str]) -> dict:
    """Distance from the whole layer, and all-reduces of the forward pass, on the live ranks."""
    return ranks.get(f"tried({plan!r})")[0]


# %% [markdown]
# ### Exercise 2 · a plan for a decoder layer
#
# Difficulty ●●○, 6 minutes. Give each of the seven matrices of a decoder layer a style, so that the forward pass needs
# two all-reduces. `try_plan` runs your plan on the live ranks. Expected: a dict from `q_proj`, `k_proj`, `v_proj`,
# `o_proj`, `gate_proj`, `up_proj` and `down_proj` to `"colwise"` or `"rowwise"`.


# %% tags=["exercise"]
def layer_plan() -> dict[str, str]:
    """A style for each matrix of a decoder layer."""
    ### BEGIN SOLUTION
    columns = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    return dict.fromkeys(columns, "colwise") | dict.fromkeys(
        ("o_proj", "down_proj"), "rowwise"
    )
    ### END SOLUTION


check_layer_plan(layer_plan, try_plan)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Attention is like an MLP: queries, keys and values first, head by head, then `o_proj`, which mixes the heads.
#
# </details>

# %% [markdown]
# ## 6 · What plain tensor parallelism leaves undivided
#
# Between two all-reduces every rank holds all tokens' hidden states, and norms and dropout do the same work on each.
# **Sequence parallelism** splits them by tokens instead: the all-reduce becomes a reduce-scatter, after which each rank
# has its tokens, and an all-gather before the next matrices. **Predict:** does it send more?

# %%
# %%px
from collections import OrderedDict

layer = start.model.layers[0]
whole = torch.nn.Sequential(OrderedDict(norm=layer.post_attention_layernorm, mlp=layer.mlp))
tensor = dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), ColwiseParallel())
sequence = tensor | {
    "norm": SequenceParallel(),  # dimension 1, the tokens
    "mlp": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate()),
    "mlp.down_proj": RowwiseParallel(output_layouts=Shard(1)),
}
tensor |= {"mlp.down_proj": RowwiseParallel()}

# %%
# %%px
mine = hidden.chunk(2, dim=1)[grid.get_local_rank("tp")]  # half of the tokens
blocks = {}
for name, plan, given in (("tensor", tensor, hidden), ("sequence", sequence, mine)):
    block = parallelize_module(deepcopy(whole), grid["tp"], plan)
    with CommDebugMode() as counter, torch.no_grad():
        out = block(given)
        expected = whole(given)
    blocks[name] = (sent(counter), tuple(given.shape), relative(out, expected))

# %%
blocks = ranks.get("blocks")[0]
for name in ("tensor", "sequence"):
    collectives, shape, distance = blocks[name]
    print(
        f"{name:9} the norm sees {shape}, {shown(distance)} from the whole\n    sends {collectives}"
    )
assert blocks["tensor"][0] == {"all_reduce": 1}
assert set(blocks["sequence"][0].values()) == {1} and len(blocks["sequence"][0]) == 2
assert max(distance for *_, distance in blocks.values()) < TOLERANCE

# %% [markdown]
# No: an all-reduce *is* a reduce-scatter followed by an all-gather, so the bytes are the same, and the activations that
# each rank saves for the backward pass shrink. Korthikanti et al. (2022) introduced it; torchtitan always uses it
# with TP. transformers does not yet: its plans keep hidden states replicated.

# %% [markdown]
# With a large vocabulary, the logits are the largest activation. A plan that gathers them (`colwise_gather_output`,
# transformers' default) gives every rank all of the vocabulary. **Loss parallelism** computes the cross-entropy from
# logits that stay split, and sends per token a maximum, a sum and the label's logit.

# %%
# %%px
from torch.nn.functional import cross_entropy

targets = batch.flatten()
own_head = deepcopy(start.lm_head)
expected = cross_entropy(own_head(hidden).flatten(0, 1), targets)
expected.backward()
style = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
head = parallelize_module(deepcopy(start.lm_head), grid["tp"], style)
with loss_parallel():
    logits = head(hidden).flatten(0, 1)
    loss = cross_entropy(logits, targets)
    loss.backward()
split = {
    "logits here": tuple(logits.to_local().shape),
    "loss": abs(loss.full_tensor().item() / expected.item() - 1),
    "gradient": relative(head.weight.grad.full_tensor(), own_head.weight.grad),
}

# %%
split = ranks.get("split")[0]
vocabulary = reference.config.vocab_size
print(f"logits on a rank: {split['logits here']}, of a vocabulary of {vocabulary}")
print(
    f"loss {shown(split['loss'])} and gradient {shown(split['gradient'])} from one process's"
)
print(
    f"8,192 tokens of Llama 3 in float32: {8192 * 128256 * 4 / 1e9:.1f} GB, over 8 ranks",
    end=" ",
)
print(f"{8192 * 128256 * 4 / 8e9:.1f} GB")
assert split["logits here"] == (256, vocabulary // 2)
assert max(split["loss"], split["gradient"]) < TOLERANCE

# %% [markdown]
# ## 7 · Two dimensions: FSDP × TP
#
# On the mesh `grid`, pairs share each matrix and see the same examples; each part is sharded once more across pairs,
# which see different examples. TP first, then `fully_shard`. Five cases take the same step of SGD:
#
# - `by_hand`, TP alone by a plan, and `no_sum`, its negative control: row-parallel outputs stay `Partial()`;
# - `transformers`, one argument, and `ftkit`, its program's two functions, both in two dimensions;
# - `same_examples`: both pairs see the same half of the batch.


# %% tags=["hide-input"]
# %%px
from ftkit.distributed.fsdp import apply_fsdp
from ftkit.distributed.grad_clip import clip_grad_norm_
from ftkit.distributed.tensor_parallel import apply_tensor_parallel


def full_of(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def step(model, examples):
    """A step of SGD: mean loss over the ranks, gradients, their norm, the weights afterwards."""
    loss = model(input_ids=examples, labels=examples, use_cache=False).loss
    loss.backward()
    mean = loss.detach().clone()
    if dist.is_initialized() and isinstance(next(model.parameters()), DTensor):
        dist.all_reduce(mean, op=dist.ReduceOp.AVG)
    grads = {n: full_of(p.grad) for n, p in model.named_parameters()}
    norm = torch.tensor(clip_grad_norm_(model.parameters(), 0.5))
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return {
        "loss": {"": mean},
        "gradients": grads,
        "norm": {"": norm},
        "weights": {n: full_of(p) for n, p in model.named_parameters()},
    }


# %%
# %%px
def by_hand(**row_options):
    model = deepcopy(start)
    for layer in model.model.layers:
        columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        plan = dict.fromkeys((*columns, "mlp.gate_proj", "mlp.up_proj"), ColwiseParallel())
        plan |= dict.fromkeys(
            ("self_attn.o_proj", "mlp.down_proj"), RowwiseParallel(**row_options)
        )
        parallelize_module(layer, grid["tp"], plan)
    return model


def with_transformers():
    sizes = DistributedConfig(fsdp_size=2, tp_size=2)
    return AutoModelForCausalLM.from_pretrained(
        resolve_model(), dtype=torch.float32, distributed_config=sizes, trust_remote_code=False
    )


def with_ftkit():
    def split(model):
        return apply_fsdp(apply_tensor_parallel(model, grid["tp"]), grid["dp_shard"])

    base = resolve_model()
    return load_sharded_model(lambda: meta_model(base), split, base, torch.device("cpu"))


# %%
# %%px
halves = batch.chunk(2)
own = halves[grid.get_local_rank("dp_shard")]
alone = step(deepcopy(start), batch)
two_d = with_ftkit()
weight = two_d.model.layers[0].self_attn.o_proj.weight
lies = (weight.placements, tuple(weight.to_local().shape), tuple(weight.shape))

# %%
# %%px
cases = {
    "by_hand": step(by_hand(), batch),
    "no_sum": step(by_hand(output_layouts=Partial()), batch),
    "ftkit": step(two_d, own),
    "same_examples": step(with_ftkit(), halves[0]),
}
try:
    cases["transformers"] = step(with_transformers(), own)
except ValueError as error:  # transformers 5.15, Colab's, takes one of the two sizes
    assert "not supported yet" in str(error)
distances = {
    case: {
        kind: max(relative(found[kind][n], t) for n, t in alone[kind].items())
        for kind in alone
    }
    for case, found in cases.items()
}

# %%
placements, here, whole = ranks.get("lies")[0]
print(f"o_proj.weight lies {placements}, {here} of {whole}")
distances = ranks.get("distances")[0]
print(f"\nlargest distance from one process: {', '.join(distances['by_hand'])}")
for case, found in distances.items():
    print(f"{case:14}", "  ".join(f"{shown(d):>11}" for d in found.values()))
    if case in ("no_sum", "same_examples"):
        assert min(found.values()) > TOLERANCE
    else:
        assert max(found.values()) < TOLERANCE
assert here == (64, 64)

# %% [markdown]
# The placements name a split for each dimension of the mesh: FSDP splits tensor dimension 0, the rows, and TP dimension
# 1, the columns of a row-parallel weight; a quarter each. Both negative controls are wrong in all four.

# %% tags=["hide-input"]
for claim, source, case in (
    (
        "column- and row-parallel layers compute what whole layers do",
        "Shoeybi et al., 2019",
        "by_hand",
    ),
    (
        "a model's own tp_plan is enough, also under FSDP2",
        "transformers, DistributedConfig",
        "transformers",
    ),
):
    held, measured_as = (
        None,
        "this version of transformers takes fsdp_size or tp_size, not both",
    )
    if case in distances:
        held = max(distances[case].values()) < TOLERANCE
        measured_as = f"loss, gradients, clip norm, weights after a step: all within {TOLERANCE:g}, 4 ranks"
    ledger.add(claim, source, held, measured_as)

# %% [markdown]
# One call of torch fails here. Norm weights lie on FSDP's dimension alone, matrices on
# both, and `clip_grad_norm_` does not add over two meshes. `ftkit`'s sums over each mesh, then adds the squares.

# %%
# %%px
with_grads = with_ftkit()
with_grads(input_ids=own, labels=own, use_cache=False).loss.backward()
try:
    torch.nn.utils.clip_grad_norm_(with_grads.parameters(), 0.5)
except RuntimeError as error:
    print(str(error).partition(", but got")[0])
else:
    raise AssertionError("torch can clip on two meshes now: drop ftkit's")

# %% [markdown]
# ### A model's own plan
#
# `transformers` and `ftkit` were given no names, because a transformers model carries its plan:

# %%
for layer, style in reference.tp_plan.items():
    print(f"{layer:36} {style}")
assert sum(style == "rowwise" for style in reference.tp_plan.values()) == 2

# %% [markdown]
# In many models several heads share one **key-value head**: the keys and values that they attend to. Each rank needs
# whole heads of both kinds. **Predict:** 8 heads share 2 key-value heads. Which tensor-parallel degrees does `ftkit`
# take?

# %%
grouped = LlamaConfig(num_attention_heads=8, num_key_value_heads=2, intermediate_size=64)
tensor_parallel.validate_tp_degree(grouped, 2)
print("tp = 2 is taken")
try:
    tensor_parallel.validate_tp_degree(grouped, 4)
except ValueError as error:
    print(textwrap.fill(str(error), 95))
else:
    raise AssertionError("4 ranks cannot share 2 key-value heads")

# %% [markdown]
# The limit is `ftkit`'s. Programs that give several ranks a copy of a key-value head go beyond it.

# %% [markdown]
# ## 8 · When not to use tensor parallelism
#
# TP is needed when *one layer* or its activations do not fit on a GPU, or when there are so many GPUs that each would
# get less than one example. For an 8B model on eight GPUs, neither is the case. Count what a layer of Llama 3 8B sends
# on each GPU in one step, for FSDP over 8 and for TP over 8.

# %%
hidden, inner, kv = 4096, 14336, 1024  # Llama 3 8B
layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner
ring = 7 / 8  # of a tensor, sent by each of 8 GPUs in an all-gather or reduce-scatter


def fsdp_bytes() -> float:
    """Two all-gathers in bfloat16 and a reduce-scatter in float32, of the layer's parameters."""
    return ring * layer * (2 + 2 + 4)


def tp_bytes(tokens: int) -> float:
    """Four all-reduces of hidden states in bfloat16, each a reduce-scatter and an all-gather."""
    return ring * 4 * 2 * (2 * tokens * hidden)


# %%
states = 16 * 8.03e9 / 8 / 1e9
print(
    f"states of 8B over 8 GPUs: {states:.0f} GB each, and one layer {2 * layer / 1e9:.2f} GB"
)
for tokens in (1024, 4096, 16384):  # of each GPU; with TP all 8 work on the tokens of all
    sent = fsdp_bytes() / 1e9, tp_bytes(8 * tokens) / 1e9
    print(f"{tokens:6,} tokens per GPU: FSDP {sent[0]:.1f} GB per layer, TP {sent[1]:.1f} GB")
break_even = layer * 8 / (4 * 2 * 2 * hidden) / 8
print(f"equal at {break_even:,.0f} tokens per GPU")
assert tp_bytes(8 * 4096) > fsdp_bytes() > tp_bytes(8 * 1024)

# %% [markdown]
# Above about 3,300 tokens per GPU, TP sends more, and worse: FSDP's all-gathers run ahead while other layers compute,
# but a TP layer cannot go on before its sums have arrived. So 8B on 8 GPUs: FSDP alone. `ftkit`'s default mesh,
# `1,-1,1`, is that.

# %% [markdown]
# ## What transfers
#
# Measured here: pocket-base, 1.0 M parameters, width 128, 4 heads, and a random Llama of 18 M, on four CPU processes
# over gloo. Equalities, shapes and counts of collectives are the same at 8B; megabytes of loading scale with the model;
# no time was measured.

# %% [markdown]
# From the literature, not measured here:
#
# - torchtitan (December 2024) trains Llama 3.1 8B on 8 and on 128 H100 with FSDP alone; TP appears with 70B on 256 GPUs
#   (FSDP 32 × TP 8) and 405B on 512 (FSDP 8 × TP 8 × PP 8).
# - Keep TP inside a machine: its all-reduces need NVLink (Shoeybi et al. 2019 use at most 8).
# - Sequence parallelism with selective recomputation saves five times the activation memory (Korthikanti et al. 2022).

# %% [markdown]
# ## Numbers to take away
#
# - Loading, host memory on a machine of n ranks: n models, two (one of them on rank 0), or one.
# - A checkpoint of a Llama lacks its rotary frequencies; fill with NaN, then load, then check.
# - Column then row: one all-reduce per MLP and one per attention in the forward pass; the same again in the backward
#   pass, if the gradients of a common input are summed once.
# - 8B on 8 GPUs: 16 GB of states each, FSDP alone.

# %% [markdown]
# ## Recap
#
# - `from_pretrained` on every rank costs a model per rank; on meta, then DCP or `distributed_config`, costs a shard.
# - `set_model_state_dict(broadcast_from_rank0=True)` needs one rank that can hold the model.
# - "All keys matched" says nothing about buffers; NaN does.
# - Sequence and loss parallelism divide what plain TP leaves on every rank.
# - Equality is proved on gradients, for each split, with a negative control.

# %%
ledger.show()
os.chdir(Path(folder.name).parent)
folder.cleanup()

# %% [markdown]
# ## Recall
#
# 1. Why does loading on rank 0 not help with a model that no machine can hold?
# 2. Which tensors does a checkpoint of a Llama leave out?
# 3. Why must memory be filled with NaN before loading, and not only looked at afterwards?
# 4. Why is a row-parallel bias added after the sum?
# 5. Why is FSDP alone the better choice for 8B on eight GPUs?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: rank 0 itself holds all of it, and its shard.
# - 2: the rotary frequencies, which are non-persistent buffers.
# - 3: memory that nobody set may hold finite numbers.
# - 4: otherwise every rank adds it, and the sum holds it several times.
# - 5: a layer fits, FSDP's messages overlap with computation and do not grow with the batch; TP's do neither.
#
# </details>

# %% [markdown]
# ## Sources
#
# - PyTorch, [loading on rank 0 under FSDP1](https://github.com/pytorch/pytorch/issues/105840),
#   [distributed checkpoint](https://docs.pytorch.org/docs/stable/distributed.checkpoint.html) and
#   [tensor parallelism](https://docs.pytorch.org/docs/stable/distributed.tensor.parallel.html).
# - Hugging Face, [Accelerate: FSDP](https://huggingface.co/docs/accelerate/usage_guides/fsdp)
#   (`fsdp_cpu_ram_efficient_loading`), [safetensors](https://huggingface.co/docs/safetensors) and
#   [a model's `tp_plan`](https://huggingface.co/docs/transformers/v5.17.0/tensor_parallelism).
# - Amazon, [delayed parameter
#   initialization](https://docs.aws.amazon.com/sagemaker/latest/dg/model-parallel-core-features-v2-delayed-param-init.html)
#   in SageMaker SMP v2.
# - Shoeybi et al., [Megatron-LM](https://arxiv.org/abs/1909.08053), 2019: columns and rows.
# - Korthikanti et al., [Reducing Activation Recomputation](https://arxiv.org/abs/2205.05198), 2022: sequence
#   parallelism.
# - torchtitan, [benchmarks of December
#   2024](https://github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md).
#
# ## Next
#
# [15_checkpoints_and_faults](15_checkpoints_and_faults.ipynb): save what the ranks hold, lose one, and go on.
