# %% [markdown]
# # 14 · Too large for one host: delayed initialisation and tensor parallelism
#
# A model that no machine can hold must not be whole anywhere while it is loaded. You measure three ways of loading,
# prove that nothing was left unset, and then cut the matrices themselves, so that no rank computes with a whole one.
#
# - **Prerequisites:** [13_ddp_to_fsdp](13_ddp_to_fsdp.ipynb).
# - **Hardware:** any processor with two cores; a GPU is not used here. On Windows, use WSL 2.
# - **Time:** about 35 minutes with the exercises; its cells run in half a minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **predict** and **measure** what loading costs each rank in host memory,
# - **load** only a rank's own shards from safetensors files,
# - **prove** that loading left no parameter and no buffer unset,
# - **cut** a layer by columns and rows, and say where the ranks must sum,
# - **combine** tensor parallelism with FSDP2 from a model's own plan, and check it against one process.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import json
import os
import tempfile
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the ranks of this notebook are the processor's
os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # freed tensors go back to the system at once
folder = (
    tempfile.TemporaryDirectory()
)  # what this notebook writes lies there, and goes at its end
os.chdir(folder.name)

# %% [markdown]
# A program of several ranks imports torch and transformers in each of them, which takes seconds a rank. Here one
# process imports all once, while you read, and the ranks of each program below are copies of it (`run_forked`).
# Elsewhere `torchrun` starts such a program, and it ends in `ftkit.distributed.launch.run_distributed(main)`.

# %%
from ftcourse.starter import Starter

own = ("ftcourse.instruments", "ftkit.distributed.launch", "ftkit.distributed.loading")
model_class = "transformers.models.llama.modeling_llama"
starter = Starter(model_class, *own, "ftkit.distributed.tensor_parallel")

# %%
import torch
import transformers
from ftcourse.claims import Ledger
from ftcourse.exercises.delayed_init_and_tensor_parallel import (
    check_loading_peaks,
    check_row_parallel,
    check_shard_shapes,
)
from ftcourse.explorers.tensor_parallel import layer_shards
from ftcourse.plots import HATCHES, OKABE_ITO, new_axes, use_course_style
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from ftkit import load_base
from ftkit._compat import restore_buffers
from ftkit.distributed import tensor_parallel
from ftkit.distributed.grad_clip import clip_grad_norm_
from ftkit.distributed.loading import (
    assert_initialized,
    fill_with_nan,
    load_sharded_model,
    tensor_files,
)
from ftkit.models import meta_model, resolve_model

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
print(f"torch {torch.__version__}, device: cpu, {os.cpu_count()} cores")

# %%
RANKS = 2  # processes that load
TOLERANCE = 1e-4  # float32 keeps 7 digits; sums in another order lose two or three of them
ledger = Ledger("distributed training")  # the claims tested here; the recap shows them
reference, _ = load_base()

# %% [markdown]
# ## 1 · Three ways to load
#
# *Every rank* loads the whole model and cuts it tensor by tensor, keeping its shard of each. Or the ranks start **on
# meta**, with names and shapes and no memory: then *rank 0* loads the whole and sends each its part (the scheme of
# FSDP1, `sync_module_states=True`), or each rank reads only *its shards* from the files.

# %% [markdown]
# ### Exercise 1 · predict the peaks
#
# Difficulty ●●○, 6 minutes. What does each rank hold at its peak, in host memory? `route` is `"every rank"`,
# `"rank 0"` or `"shards"`; leave out small change. Expected: 16 GB on 4 ranks, read as shards: `[4, 4, 4, 4]`.


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
# Every rank ends with its shard. Ask what else it holds at the worst moment. A tensor that has been cut is freed, so
# whole and shards never lie side by side where every rank loads. On rank 0 both are there, while it sends.
#
# </details>

# %% [markdown]
# Now measure. Here is a Llama of 20 million random parameters, saved in bfloat16 in several files; the ranks
# want it in float32.

# %%
config = LlamaConfig(hidden_size=512, intermediate_size=2048, vocab_size=3200)
config.num_hidden_layers = 4
torch.manual_seed(0)
big = LlamaForCausalLM(config)
full = 4 * sum(p.numel() for p in big.parameters()) / 1e6  # MB in float32
big.bfloat16().save_pretrained("big", max_shard_size="20MB")
del big
print(f"{full:.0f} MB in float32, {len(list(Path('big').glob('*.safetensors')))} files")

# %% [markdown]
# Which measure is honest? A file that is mapped into memory makes a process look large, though the system may drop
# those pages at any time. We count only a rank's **own** pages, at their peak, by looking every 2 ms.

# %%
# %%writefile stored.py
from functools import partial

import torch
from transformers import AutoModelForCausalLM

load = partial(AutoModelForCausalLM.from_pretrained, "big", trust_remote_code=False)
stored = partial(load, dtype=torch.bfloat16)


def updated():
    model = stored()
    for parameter in model.parameters():
        parameter.data *= 0.5
    return model


# %%
# %%writefile routes.py
from functools import partial

import torch
from stored import load, stored, updated

from ftkit.distributed.fsdp import apply_fsdp
from ftkit.distributed.loading import load_from_rank0, load_sharded_model
from ftkit.models import meta_model

full = partial(load, dtype=torch.float32)


def routes(context):
    """Each way to load, as a function without arguments; the last two shard nothing."""
    start, cut, cpu = (
        partial(meta_model, "big"),
        partial(apply_fsdp, mesh=context.mesh),
        context.device,
    )
    return {
        "every rank": lambda: cut(full()),
        "rank 0": lambda: load_from_rank0(start, full, cut, cpu),
        "shards": lambda: load_sharded_model(start, cut, "big", cpu),
        "stored": stored,
        "updated": updated,
    }


# %%
# %%writefile loading.py
import json
from pathlib import Path

import torch
import torch.distributed as dist
from ftcourse.instruments import peak_uss
from routes import routes

from ftkit.distributed.launch import run_forked

ids = torch.arange(32).view(2, 16)


def main(context):
    measured = {}
    for name, route in routes(context).items():
        with peak_uss() as peak:
            model = route()
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()
        del model
        peaks = [None] * context.world_size
        dist.all_gather_object(peaks, peak[0] / 1e6)
        measured[name] = {"MB": peaks, "loss": loss}
    if context.is_main_process:
        Path("peaks.json").write_text(json.dumps(measured))


run_forked(main, ranks=2)

# %%
starter.run("loading.py")
measured = json.loads(Path("peaks.json").read_text())
peaks = {route: [part / full for part in found["MB"]] for route, found in measured.items()}
rough = {
    route: [5 * round(part / 5) for part in found["MB"]] for route, found in measured.items()
}

# %% tags=["nbval-ignore-output"]
share = full / RANKS
expected = {
    "every rank": [full, full],
    "rank 0": [full + share, share],
    "shards": [share, share],
}
for route, guess in expected.items():
    found = rough[route]
    print(
        f"{route:10} predicted {guess[0]:3.0f} {guess[1]:3.0f}   measured {found[0]:3.0f} {found[1]:3.0f} MB"
    )

# %% tags=["nbval-ignore-output"]
ax = new_axes(7, 3)[1]
ax.set(yticks=[0.19, 1.19, 2.19], yticklabels=list(expected), xlim=(0, 2 * full))
ax.set(xlabel="peak of a rank's own host memory, to 5 MB; black: predicted", ylim=(2.75, -0.3))
for place, (route, guess) in enumerate(expected.items()):
    for rank, found in enumerate(rough[route]):
        y = place + 0.38 * rank
        ax.barh(y, found, 0.34, color=OKABE_ITO[rank], hatch=HATCHES[rank], alpha=0.5)
        ax.text(found, y, f" {found} MB, rank {rank}", va="center")
        ax.plot([guess[rank]] * 2, [y - 0.17, y + 0.17], color="black", linewidth=2)

# %%
whole_everywhere = min(peaks["every rank"]) > 0.9
first_pays = peaks["rank 0"][0] > 1.4 and peaks["rank 0"][1] < 0.65
only_shards = max(peaks["shards"]) < 0.65
print(f"every rank: each holds the whole model: {whole_everywhere}")
print(
    f"rank 0: it holds the whole and a shard, the other little more than a shard: {first_pays}"
)
print(f"shards: nobody holds much more than a shard: {only_shards}")
assert whole_everywhere and first_pays and only_shards

# %%
losses = [measured[route]["loss"] for route in expected]
print(f"the three models compute the same loss: {max(losses) - min(losses) < 1e-5}")
assert max(losses) - min(losses) < 1e-5

# %%
spared = peaks["rank 0"][1] < 0.6 * peaks["every rank"][1]
saved = 1 - sum(peaks["rank 0"]) / sum(peaks["every rank"])
print(f"rank 0: the other rank holds less than 0.6 of what it held: {spared}")
print(f"rank 0 holds more than it held: {peaks['rank 0'][0] > peaks['every rank'][0]}")
print(f"two ranks together save less than a fifth: {saved < 0.2}")
assert spared and peaks["rank 0"][0] > peaks["every rank"][0] and saved < 0.2

# %% [markdown]
# Notice: rank 0 sets how large a machine must be. With n ranks on a machine the sum is 2 models instead of n (its
# whole, and n shards): a saving from three ranks on, and none with two.

# %%
ledger.add(
    "letting only rank 0 load spares the other ranks the whole model",
    "Accelerate, fsdp_cpu_ram_efficient_loading",
    spared,
    f"2 ranks, {full:.0f} MB: rank 1's peak below 0.6 of that with every rank loading",
    only_if="rank 0 holds more than before, so two ranks together save little",
)
ledger.add(
    "no rank needs to hold the whole model while loading",
    "PyTorch, distributed checkpoint; Hugging Face, safetensors",
    only_shards,
    f"2 ranks, {full:.0f} MB: each below 0.65 times the model, half of it being its shard",
)

# %% [markdown]
# **Predict:** the files hold bfloat16. How much own memory does `from_pretrained` take for a bfloat16 model of
# half as many MB? And once every weight has been updated?

# %% tags=["nbval-ignore-output"]
for route in ("stored", "updated"):
    print(f"{route:8} {' '.join(f'{found:3}' for found in rough[route])} MB")

# %%
flattered, written = max(peaks["stored"]) < 0.25, min(peaks["updated"]) > 0.45
print(f"as stored, less than half of what its tensors have: {flattered}")
print(f"after an update, all of it: {written}")
assert written and (flattered or sys.platform != "linux")

# %% [markdown]
# Notice: at first the tensors are pages of the files, and that flatters the first way. Pages become a rank's own when
# the dtype changes on the host or a weight is updated.

# %% [markdown]
# ## 2 · Which bytes are mine
#
# A safetensors file opens with a table: name, dtype, shape and place of each tensor. So a rank can read a block of
# rows, as FSDP wants it, or of columns, as section 4 will, and nothing else.

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
# `load_sharded_model` does this for every tensor: torch tells which block of the whole a rank holds, also where
# FSDP cuts what tensor parallelism has cut already. Names, shapes and files are compared first, so a checkpoint of
# another model is refused before any memory is taken:

# %%
try:
    load_sharded_model(
        lambda: meta_model(resolve_model()), lambda model: model, "big", torch.device("cpu")
    )
except ValueError as error:
    print(error)
else:
    raise AssertionError("another model's checkpoint was taken")

# %% [markdown]
# And so is a folder from which a file is missing:

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
# Notice: each rank finds such a fault by itself. Where all of them read the same folder, all stop, and none waits for
# another.

# %% [markdown]
# ## 3 · Break it, then fix it: what the files do not hold
#
# **Predict:** a model comes from meta, and `load_state_dict` says that all keys matched. Is it complete?

# %%
checkpoint = load_file(Path(resolve_model(), "model.safetensors"))
ids = torch.arange(256).view(8, 32)  # (B, T)
with torch.no_grad():
    right = reference(input_ids=ids, labels=ids).loss.item()


def loss_of(model):
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).loss.item()


# %%
model = meta_model(resolve_model()).to_empty(
    device="cpu"
)  # memory, and nothing written into it
print(model.load_state_dict(checkpoint))
for buffer in model.buffers():
    buffer.zero_()  # fresh memory holds anything, and often zeros
found = loss_of(model)
print(f"loss is finite: {found < 1e9}; loss is right: {abs(found - right) < 1e-3}")
assert found < 1e9 and not abs(found - right) < 1e-3
assert_initialized(model)  # it passes: zeros are numbers

# %% [markdown]
# The rotary frequencies are **non-persistent buffers**: tensors that are no parameters and that no checkpoint holds.
# The class computes them when it is built, and on meta there was nothing to compute. Such a model runs without an
# error, and is wrong. A look for what is unset finds nothing either, so fill everything with NaN before loading:

# %%
model = meta_model(resolve_model()).to_empty(device="cpu")
fill_with_nan(model)
print(model.load_state_dict(checkpoint))
print(f"loss: {loss_of(model)}")

# %% tags=["raises-exception"]
assert_initialized(model)

# %% [markdown]
# The fix: `restore_buffers` gives each module with such buffers to the model's own initialisation once more, as
# `from_pretrained` does. That may draw weights anew as well, so it comes before reading.

# %%
model = meta_model(resolve_model()).to_empty(device="cpu")
fill_with_nan(model)
restore_buffers(model)
model.load_state_dict(checkpoint)
assert_initialized(model)
print(f"loss equals that of from_pretrained: {loss_of(model) == right}")
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

# %%
ledger.add(
    "a look at all parameters and buffers finds what delayed initialisation left unset",
    "Amazon SageMaker SMP v2, DelayedParamIniter, validate_params_and_buffers_inited",
    all(caught),
    f"{sum(caught)} of {len(faults)} planted faults named: three parameters, and the buffers",
    only_if="memory is filled with NaN beforehand: with zeros in the buffer the look found nothing",
)

# %% [markdown]
# ## 4 · Columns and rows
#
# FSDP stores a matrix in parts but computes with the whole. **Tensor parallelism** computes in parts, on the same
# batch. *Column-parallel* gives each rank some output features; *row-parallel* some input features, and the outputs
# must be summed over ranks: an **all-reduce**. The names are of `x @ W`; torch keeps `W` as (out, in).

# %%
mlp = reference.model.layers[0].mlp
x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))  # (tokens, hidden)
gates, ups = mlp.gate_proj.weight.chunk(2), mlp.up_proj.weight.chunk(2)  # output features
gate_biases, up_biases = mlp.gate_proj.bias.chunk(2), mlp.up_proj.bias.chunk(2)
downs = mlp.down_proj.weight.chunk(2, dim=1)  # rows: input features
parts = []
for rank in range(2):
    gate = torch.nn.functional.silu(x @ gates[rank].T + gate_biases[rank])
    inner = gate * (x @ ups[rank].T + up_biases[rank])  # (4, 160): half of the features
    parts.append(inner @ downs[rank].T)  # (4, 128): a part of the sum
summed = parts[0] + parts[1] + mlp.down_proj.bias
print(f"two halves of an MLP equal the whole: {torch.allclose(summed, mlp(x), atol=1e-5)}")
assert torch.allclose(summed, mlp(x), atol=1e-5)

# %% [markdown]
# Notice: between column and row the ranks need nothing of each other, for SiLU and the product work feature by
# feature. **One** sum serves the whole MLP in the forward pass. In attention the features are heads: each rank
# computes some of them.

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
print(explorer.caption)
assert explorer.shapes == {}
explorer.slider.value = 2

# %% [markdown]
# ### Exercise 2 · a rank's shapes
#
# Difficulty ●○○, 5 minutes. One rank's weight and bias, as torch keeps them. Expected: `"column"`, 12 out, 8 in, 4
# ranks: `((3, 8), (3,))`.


# %% tags=["exercise"]
def shard_shapes(
    kind: str, out_features: int, in_features: int, tp: int
) -> tuple[tuple, tuple]:
    """The shapes of weight and bias on one of `tp` ranks; `kind` is "column" or "row"."""
    ### BEGIN SOLUTION
    if kind == "column":
        return (out_features // tp, in_features), (out_features // tp,)
    return (out_features, in_features // tp), (out_features,)
    ### END SOLUTION


check_shard_shapes(shard_shapes)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# A weight is (out, in). A bias has one number for each output feature: it is cut if those are.
#
# </details>

# %% [markdown]
# ### Exercise 3 · a row-parallel layer
#
# Difficulty ●●○, 5 minutes. From each rank's input features and weight, the whole layer's output. Expected: what
# one `Linear` gives.


# %% tags=["exercise"]
def row_parallel(
    x_parts: list[torch.Tensor], weight_parts: list[torch.Tensor], bias: torch.Tensor
) -> torch.Tensor:
    """x_parts[r]: (B, in / tp); weight_parts[r]: (out, in / tp); bias: (out,); returns (B, out)."""
    ### BEGIN SOLUTION
    parts = [x @ weight.T for x, weight in zip(x_parts, weight_parts, strict=True)]
    return sum(parts) + bias
    ### END SOLUTION


check_row_parallel(row_parallel)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Each rank's product has the full shape (B, out) and holds a part of every sum. Does each rank add the bias?
#
# </details>

# %% [markdown]
# ## 5 · On two ranks, and on four with FSDP2
#
# Four cases take the same step. `by_hand` is tensor parallelism alone, on a pair of ranks; `no_sum` is its mutation,
# in which a row-parallel layer's output stays `Partial()`: each rank keeps its part of the sum. `two_d` adds FSDP2;
# `same_rows` is its mutation, in which all ranks see the same half of the batch.

# %%
# %%writefile step.py
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from ftkit.distributed.grad_clip import clip_grad_norm_


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def step(model, ids, name, context):
    """One step of SGD; rank 0 saves mean loss, gradients, their norm and the weights."""
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    found = {"loss": torch.tensor(context.sum(loss.item()) / context.dp_size)}
    found |= {f"grad {n}": whole(p.grad) for n, p in model.named_parameters()}
    found["norm"] = torch.tensor(clip_grad_norm_(model.parameters(), 0.5))
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    found |= {f"weight {n}": whole(p) for n, p in model.named_parameters()}
    if context.is_main_process:
        save_file(found, f"{name}.safetensors")


# %%
# %%writefile by_hand.py
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from ftkit import load_base

COLUMN = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
COLUMN += ["mlp.gate_proj", "mlp.up_proj"]
ROW = ["self_attn.o_proj", "mlp.down_proj"]


def by_hand(tp_mesh, **row_options):
    model, _ = load_base()
    for layer in model.model.layers:
        plan = {name: ColwiseParallel() for name in COLUMN}
        plan |= {name: RowwiseParallel(**row_options) for name in ROW}
        parallelize_module(layer, tp_mesh, plan)
    return model


# %% [markdown]
# A mesh is named by three numbers, whose product is the number of ranks: replicas, shards of FSDP, ranks that share
# each matrix. `1,1,2` is tensor parallelism alone. Torch's `CommDebugMode` counts what an MLP sends:

# %%
# %%writefile pair.py
import json
from pathlib import Path

import torch
from by_hand import by_hand
from step import step
from torch.distributed.tensor import Partial
from torch.distributed.tensor.debug import CommDebugMode

from ftkit.distributed.launch import run_forked


def main(context):
    ids = torch.arange(256).view(8, 32)
    step(by_hand(context.tp_mesh, output_layouts=Partial()), ids, "no_sum", context)
    model = by_hand(context.tp_mesh)
    step(model, ids, "by_hand", context)
    with CommDebugMode() as forward:
        out = model.model.layers[0].mlp(torch.ones(4, 128, requires_grad=True))
    with CommDebugMode() as backward:
        out.sum().backward()
    if context.is_main_process:
        sums = {"forward": forward.get_total_counts(), "backward": backward.get_total_counts()}
        Path("sums.json").write_text(json.dumps(sums))


run_forked(main, ranks=2, mesh="1,1,2")

# %%
starter.run("pair.py")
sums = json.loads(Path("sums.json").read_text())
print(f"all-reduces of an MLP: {sums}")
assert sums == {"forward": 1, "backward": 2}

# %% [markdown]
# Notice: in the backward pass gate and up each sum a gradient of their common input; a program that fuses them sums
# once.
#
# Now a **2-D mesh**, `1,2,2`: pairs that see the same rows share each matrix, and each part is sharded once more
# across pairs that see other rows.

# %%
# %%writefile both_cuts.py
from ftkit.distributed.fsdp import apply_fsdp
from ftkit.distributed.loading import load_sharded_model
from ftkit.distributed.tensor_parallel import apply_tensor_parallel
from ftkit.models import meta_model, resolve_model


def both_cuts(context):
    """The base model of which each rank has read its part, cut by the model's own plan and by FSDP2."""

    def cut(model):
        return apply_fsdp(apply_tensor_parallel(model, context.tp_mesh), context.mesh)

    base = resolve_model()
    return load_sharded_model(lambda: meta_model(base), cut, base, context.device)


# %%
# %%writefile two_d.py
from pathlib import Path

import torch
from both_cuts import both_cuts
from step import step

from ftkit.distributed.launch import run_forked


def main(context):
    rows = torch.arange(256).view(8, 32).chunk(context.dp_size)
    step(both_cuts(context), rows[0], "same_rows", context)
    model = both_cuts(context)
    step(model, rows[context.dp_rank], "two_d", context)
    w = model.model.layers[0].self_attn.o_proj.weight
    said = f"o_proj lies {w.placements}, {tuple(w.to_local().shape)} of {tuple(w.shape)}"
    try:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    except RuntimeError as error:
        said += f"\ntorch's clip_grad_norm_: {str(error).splitlines()[0]}"
    if context.is_main_process:
        Path("said.txt").write_text(said)


run_forked(main, ranks=4, mesh="1,2,2")

# %%
starter.run("two_d.py")
said = Path("said.txt").read_text()
print(said)
assert "(64, 64) of (128, 128)" in said and "same mesh" in said

# %% [markdown]
# Notice: the placements name a cut for each axis of the mesh. FSDP cuts tensor dim 0, the rows, and tensor
# parallelism dim 1, the columns of a row-parallel weight: a quarter each. Norms lie on FSDP's axis alone, and torch's
# `clip_grad_norm_` refuses to add over two meshes; `ftkit`'s sums over each mesh, then adds the squares.
#
# **Predict:** which of loss, gradients, norm and weights will each mutation get wrong? Here is the same step in this
# process.

# %%
loss = reference(input_ids=ids, labels=ids).loss
loss.backward()
own = {"loss": loss.detach()}
own |= {f"grad {n}": p.grad.clone() for n, p in reference.named_parameters()}
own["norm"] = torch.tensor(clip_grad_norm_(reference.parameters(), 0.5))
torch.optim.SGD(reference.parameters(), lr=0.1).step()
own |= {f"weight {n}": p.detach().clone() for n, p in reference.named_parameters()}


# %%
def farthest(case, kind, factor=1.0):
    """The largest difference from this process, relative to the largest entry of each tensor."""
    found = load_file(f"{case}.safetensors")
    mine = {name: tensor for name, tensor in own.items() if name.startswith(kind)}
    return max(
        ((factor * found[n] - t).abs().max() / t.abs().max()).item() for n, t in mine.items()
    )


def agrees(case):
    """What of a case equals this process's."""
    kinds = ("loss", "grad", "norm", "weight")
    return {kind: farthest(case, kind) < TOLERANCE for kind in kinds}


# %%
for case in ("by_hand", "no_sum", "two_d", "same_rows"):
    print(f"{case:9}", agrees(case))
print(f"halved gradients would be seen: {farthest('two_d', 'grad', 0.5) > 0.4}")
assert all(agrees("by_hand").values()) and all(agrees("two_d").values())
assert not any(agrees("no_sum").values()) and not any(agrees("same_rows").values())
assert farthest("two_d", "grad", 0.5) > 0.4

# %%
claimed = {
    "by_hand": (
        "column- and row-parallel layers compute what whole layers do",
        "Shoeybi et al., 2019",
    ),
    "two_d": ("a model's own tp_plan is enough, also under FSDP2", "transformers, tp_plan"),
}
for case, (claim, source) in claimed.items():
    held = all(agrees(case).values())
    measured = "loss, gradients, clip norm, weights after a step: "
    measured += f"{'all' if held else 'not all'} within {TOLERANCE:g}, 1 seed"
    ledger.add(claim, source, held, measured)

# %% [markdown]
# ## 6 · A model's own plan
#
# `two_d` was told no names: every transformers model that knows its plan carries it.

# %%
for layer, style in reference.tp_plan.items():
    print(f"{layer:36} {style}")
assert sum(style == "rowwise" for style in reference.tp_plan.values()) == 2

# %% [markdown]
# Notice: the embedding is cut by vocabulary, and so is the head, whose logits are gathered. A tied pair is cut in
# the same way, so it stays tied.
#
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
    print(error)
else:
    raise AssertionError("4 ranks cannot share 2 key-value heads")

# %% [markdown]
# Notice: the limit is `ftkit`'s. Programs that give several ranks a copy of a key-value head go beyond it.
#
# On eight GPUs in each of two machines, tensor parallelism stays inside a machine: a layer cannot go on before its
# sums have arrived, while FSDP gathers the next layer's weights ahead. `--mesh 1,2,8` means one replica, sharded over
# 2, with matrices shared by 8.

# %% [markdown]
# ## Recap
#
# - While rank 0 loads, it must hold the whole model; when each rank reads its shards, nobody does.
# - A checkpoint is not the whole model: buffers outside it must be computed again.
# - NaN first, then look: that proves that all was set. "All keys matched" does not.
# - Column then row: one sum for an MLP and one for attention, in the forward pass.
# - Equality is proved on gradients, for each cut, with a mutation that breaks it.

# %%
ledger.show()
starter.stop()
os.chdir(Path(folder.name).parent)
folder.cleanup()

# %% [markdown]
# ## Recall
#
# 1. Why does loading on rank 0 not help with a model that no machine can hold?
# 2. Which tensors does a checkpoint of a Llama leave out?
# 3. Why must memory be filled with NaN before loading, and not only looked at afterwards?
# 4. Why is a row-parallel bias added after the sum?
# 5. Why do tensor-parallel ranks see the same rows of the batch?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: rank 0 itself holds all of it, and its shard.
# - 2: the rotary frequencies, which are non-persistent buffers.
# - 3: memory that nobody set may hold finite numbers.
# - 4: every rank would add it, and the sum would hold it several times.
# - 5: each computes a part of the features of the same tokens, and the parts are summed.
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
# - Shoeybi et al., [Megatron-LM](https://arxiv.org/abs/1909.08053): columns and rows.
#
# ## Next
#
# [15_checkpoints_and_faults](15_checkpoints_and_faults.ipynb): save what the ranks hold, lose one, and go on.
