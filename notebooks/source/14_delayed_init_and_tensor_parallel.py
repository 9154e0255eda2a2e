# %% [markdown]
# # 14 · Too large for one host: delayed initialisation and tensor parallelism
#
# A model that no machine can hold must never be whole anywhere: not while it is loaded, and not in a single
# matrix. You measure three ways of loading, prove that nothing was left unset, and cut matrices by hand.
#
# - **Prerequisites:** [13_ddp_to_fsdp](13_ddp_to_fsdp.ipynb).
# - **Hardware:** any processor with two cores; a GPU is not used here.
# - **Time:** about 35 minutes with the exercises; its cells run in about a minute on two cores.

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
    # %pip install -q ftkit
    print("Colab: ftkit is installed")

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from ftkit import load_base
from ftkit.checks.delayed_init_and_tensor_parallel import (
    check_loading_peaks,
    check_row_parallel,
    check_shard_shapes,
)
from ftkit.claims import Claim, show_claims
from ftkit.distributed import tensor_parallel
from ftkit.distributed.clip import clip_grad_norm
from ftkit.distributed.delayed_init import assert_initialized, poison
from ftkit.distributed.shard_loading import tensor_files
from ftkit.plots import HATCHES, OKABE_ITO, new_axes, use_course_style
from ftkit.pocket import empty_base, find_base
from ftkit.tensor_parallel_map import layer_shards
from ftkit.torch_private import restore_buffers

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the ranks of this notebook are the processor's
os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # freed tensors go back to the system at once
folder = (
    tempfile.TemporaryDirectory()
)  # what this notebook writes lies there, and goes at its end
os.chdir(folder.name)
print(f"torch {torch.__version__}, device: cpu, {os.cpu_count()} cores")

# %%
RANKS = 2  # processes that load
TOLERANCE = 1e-4  # float32 keeps 7 digits; sums in another order lose two or three of them
claims = []  # what this notebook tested, each with its verdict; the recap prints them

# %% [markdown]
# ## 1 · Three ways to load
#
# A sharded model starts **on meta**: names and shapes without memory. Three ways fill it. *Every rank* loads the
# whole model, then keeps its shard. *Rank 0* loads it and sends each rank its part: the scheme of 2022, then
# `sync_module_states=True`. Or each rank reads only *its shards* from the files.

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
# Every rank ends with its shard. Ask what else it holds at the worst moment: the whole model, or nothing. On
# rank 0 both are there, while it sends.
#
# </details>

# %% [markdown]
# Now measure. Here is a Llama of 27 million random parameters, saved in bfloat16 in several files; the ranks
# want it in float32.

# %%
config = LlamaConfig(hidden_size=512, intermediate_size=2048, vocab_size=2048)
config.num_hidden_layers = 6
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
# %%writefile routes.py
from functools import partial

import torch
from transformers import AutoModelForCausalLM

from ftkit.distributed.delayed_init import load_from_rank0
from ftkit.distributed.shard_loading import load_shards
from ftkit.distributed.sharding import shard
from ftkit.pocket import empty_base


def routes(ranks):
    """Each way to load, as a function without arguments."""
    read_all = partial(AutoModelForCausalLM.from_pretrained, "big")
    full, empty = partial(read_all, dtype=torch.float32), partial(empty_base, "big")
    cut, cpu = partial(shard, mesh=ranks.mesh), ranks.compute.device
    return {
        "files' own dtype": partial(read_all, dtype=torch.bfloat16),
        "every rank": lambda: cut(full()),
        "rank 0": lambda: load_from_rank0(empty, full, cut, cpu),
        "shards": lambda: load_shards(empty, cut, "big", cpu),
    }


# %%
# %%writefile loading.py
import json
from pathlib import Path

import torch
import torch.distributed as dist
from routes import routes

from ftkit.distributed.forked import run_forked
from ftkit.distributed.host_memory import peak_own_bytes

ids = torch.arange(64).view(2, 32)


def main(ranks):
    measured = {}
    for name, route in routes(ranks).items():
        with peak_own_bytes() as peak:
            model = route()
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()
        del model
        peaks = [None] * ranks.world_size
        dist.all_gather_object(peaks, peak[0] / 1e6)
        measured[name] = {"MB": peaks, "loss": loss}
    if ranks.is_first:
        Path("peaks.json").write_text(json.dumps(measured))


run_forked(main, ranks=2)


# %%
def run(program):
    """What a program of several ranks prints."""
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


run("loading.py")
measured = json.loads(Path("peaks.json").read_text())

# %% tags=["nbval-ignore-output"]
share = full / RANKS
expected = {
    "every rank": [full, full],
    "rank 0": [full + share, share],
    "shards": [share, share],
}
ax = new_axes(7, 3)[1]
ax.set(yticks=[0.19, 1.19, 2.19], yticklabels=list(expected), xlim=(0, 2 * full))
ax.set(xlabel="peak of a rank's own host memory (MB); black: predicted", ylim=(2.75, -0.3))
for place, (route, guess) in enumerate(expected.items()):
    found = measured[route]["MB"]
    print(
        f"{route:10} predicted {guess[0]:3.0f} {guess[1]:3.0f}   measured {found[0]:3.0f} {found[1]:3.0f} MB"
    )
    for rank in range(RANKS):
        y = place + 0.38 * rank
        ax.barh(y, found[rank], 0.34, color=OKABE_ITO[rank], hatch=HATCHES[rank], alpha=0.5)
        ax.text(found[rank], y, f" {found[rank]:.0f} MB, rank {rank}", va="center")
        ax.plot([guess[rank]] * 2, [y - 0.17, y + 0.17], color="black", linewidth=2)

# %%
peaks = {route: [part / full for part in found["MB"]] for route, found in measured.items()}
whole_everywhere = min(peaks["every rank"]) > 0.9
first_pays = peaks["rank 0"][0] > 1.3 and peaks["rank 0"][1] < 0.8
only_shards = max(peaks["shards"]) < 0.8
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
claims.append(
    Claim(
        "letting only rank 0 load saves host memory",
        "Accelerate, fsdp_cpu_ram_efficient_loading; FSDP talks of 2022",
        first_pays,
        f"2 ranks, {full:.0f} MB: rank 0 above 1.3 times the model, the other below 0.8 times",
        only_if="rank 0 still needs room for the whole model and its own shard",
    )
)

# %%
claims.append(
    Claim(
        "no rank needs to hold the whole model while loading",
        "PyTorch, distributed checkpoint; Hugging Face, safetensors",
        only_shards,
        f"2 ranks, {full:.0f} MB: each below 0.8 times the model, half of it being its shard",
    )
)

# %% [markdown]
# Notice: rank 0 sets how large a machine must be, and more ranks help only the others. The programs here start ranks
# by `run_forked`, as copies of one process, to save seconds; under `torchrun` they would end in `mesh.run(main)`.
#
# **Predict:** the files hold bfloat16. How much own memory does `from_pretrained` take for a bfloat16 model?

# %%
flattered = (
    max(peaks["files' own dtype"]) < 0.25
)  # of float32's size; the model has half of it
print(f"less than half of what its tensors have: {flattered}")
assert flattered or sys.platform != "linux"

# %% [markdown]
# Notice: nearly nothing, for its tensors are pages of the files. That flatters the first way: the pages become a
# rank's own once the dtype changes, a weight is updated, or a tensor goes to a GPU.

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
# `load_shards` does this for every tensor: torch tells which block of the whole a rank holds, also where FSDP cuts
# what tensor parallelism has cut already. Names, shapes and files are compared first, so a checkpoint of another
# model is refused before any memory is taken:

# %%
some_file = sorted(Path("big").glob("*.safetensors"))[1]
some_file.rename("elsewhere")
try:
    tensor_files("big")
except FileNotFoundError as error:
    print(error)
os.rename("elsewhere", some_file)

# %% [markdown]
# Notice: each rank finds such a fault by itself, so no rank waits for one that has stopped.

# %% [markdown]
# ## 3 · Break it, then fix it: what the files do not hold
#
# **Predict:** a model comes from meta, and `load_state_dict` says that all keys matched. Is it complete?

# %%
model = empty_base(find_base()).to_empty(device="cpu")
print(model.load_state_dict(load_file(Path(find_base(), "model.safetensors"))))
for buffer in model.buffers():
    buffer.zero_()  # fresh memory holds anything, and often zeros
ids = torch.arange(256).view(8, 32)  # (B, T)
reference, tokenizer = load_base()
with torch.no_grad():
    right = reference(input_ids=ids, labels=ids).loss.item()
    found = model(input_ids=ids, labels=ids).loss.item()
print(f"loss is finite: {found < 1e9}; loss is right: {abs(found - right) < 1e-3}")
assert found < 1e9 and not abs(found - right) < 1e-3

# %% [markdown]
# The rotary frequencies are **buffers** that no checkpoint holds; the class computes them, and on meta there was
# nothing to compute. Such a model trains, and is wrong. So fill everything with NaN first, and look afterwards:

# %%
model = empty_base(find_base()).to_empty(device="cpu")
poison(model)
print(model.load_state_dict(load_file(Path(find_base(), "model.safetensors"))))
with torch.no_grad():
    print(f"loss: {model(input_ids=ids, labels=ids).loss.item()}")

# %% tags=["raises-exception"]
assert_initialized(model)

# %% [markdown]
# The fix: let transformers compute its buffers again.

# %%
restore_buffers(model)
assert_initialized(model)
with torch.no_grad():
    mended = model(input_ids=ids, labels=ids).loss.item()
print(f"loss equals that of from_pretrained: {mended == right}")
assert mended == right


# %%
def planted(name):
    """Whether the check names the one tensor that we spoil."""
    tensor = {**dict(model.named_parameters()), **dict(model.named_buffers())}[name]
    keep = tensor.detach().clone()
    tensor.data.view(-1)[-1] = float("nan")
    try:
        assert_initialized(model)
    except RuntimeError as error:
        return f"1 tensors were left unset by loading: {name}" in str(error)
    finally:
        tensor.data.copy_(keep)
    return False


# %%
faults = ["model.rotary_emb.inv_freq", "model.norm.weight", "lm_head.weight"]
caught = [planted(name) for name in faults]
print(f"planted faults named: {sum(caught)} of {len(faults)}")
assert all(caught)

# %%
claims.append(
    Claim(
        "a look at all parameters and buffers finds what delayed initialisation left unset",
        "FSDP programs of 2023, validate_params_and_buffers_inited",
        all(caught),
        f"{sum(caught)} of {len(faults)} planted faults named, one entry each",
        only_if="memory is filled with NaN beforehand: with zeros in the buffer the loss was finite and wrong",
    )
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
# feature. **One** sum serves the whole MLP. In attention the features are heads: each rank computes some of them.

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
# ## 5 · On four ranks, with FSDP2
#
# A **2-D mesh** does both: 2 × 2 ranks, where pairs that see the same rows share each matrix, and each part is
# sharded once more across pairs that see other rows. What every case does with its model:

# %%
# %%writefile step.py
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from ftkit.distributed.clip import clip_grad_norm


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def step(model, ids, name, ranks):
    """One step of SGD; rank 0 saves gradients and weights, and prints the mean loss and the norm."""
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    found = {f"grad {n}": whole(p.grad) for n, p in model.named_parameters()}
    norm = clip_grad_norm(model.parameters(), 0.5)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    found |= {f"weight {n}": whole(p) for n, p in model.named_parameters()}
    mean = ranks.sum(loss.item()) / ranks.data_size
    if ranks.is_first:
        save_file(found, f"{name}.safetensors")
        print(f"{name}: loss {mean:.6f}, norm {norm:.6f}")


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


# %%
# %%writefile two_d.py
import torch
from by_hand import by_hand
from step import step
from torch.distributed.tensor import Partial

from ftkit.distributed.forked import run_forked
from ftkit.distributed.shard_loading import load_shards
from ftkit.distributed.sharding import shard
from ftkit.distributed.tensor_parallel import parallelize
from ftkit.pocket import empty_base, find_base


def main(ranks):
    ids = torch.arange(256).view(8, 32)
    step(by_hand(ranks.tp_mesh), ids, "by_hand", ranks)
    step(by_hand(ranks.tp_mesh, output_layouts=Partial()), ids, "no_sum", ranks)

    def cut(model):
        return shard(parallelize(model, ranks.tp_mesh), ranks.mesh)

    base = find_base()
    model = load_shards(lambda: empty_base(base), cut, base, ranks.compute.device)
    step(model, ids.chunk(ranks.data_size)[ranks.data_rank], "two_d", ranks)
    if ranks.is_first:
        w = model.model.layers[0].self_attn.o_proj.weight
        print(f"o_proj lies {w.placements}, {tuple(w.to_local().shape)} of {tuple(w.shape)}")


run_forked(main, ranks=4, mesh="1,2,2")

# %% [markdown]
# `by_hand` is tensor parallelism alone, in each pair: columns, rows, and nothing else is cut. `no_sum` is our
# mutation: each rank keeps its part of the sum. `two_d` reads its shards from the files, for both cuts at once.

# %%
said = run("two_d.py")
spoken = {
    name: (float(loss), float(norm))
    for name, loss, norm in re.findall(r"(\w+): loss (\S+), norm (\S+)", said)
}
print(re.search(r"o_proj lies .*", said)[0])
assert list(spoken) == ["by_hand", "no_sum", "two_d"] and "(64, 64) of (128, 128)" in said

# %% [markdown]
# **Predict:** which of loss, gradients, norm and weights will be wrong without the sum? Here is the same step in this
# process.

# %%
loss = reference(input_ids=ids, labels=ids).loss
loss.backward()
own = {f"grad {n}": p.grad.clone() for n, p in reference.named_parameters()}
norm = clip_grad_norm(reference.parameters(), 0.5)
torch.optim.SGD(reference.parameters(), lr=0.1).step()
own |= {f"weight {n}": p.detach().clone() for n, p in reference.named_parameters()}


# %%
def farthest(name, kind, factor=1.0):
    """The largest difference from this process, relative to the largest entry of each tensor.

    A key's bias has no gradient but rounding; it is held against a thousandth of the largest entry of all.
    """
    found = load_file(f"{name}.safetensors")
    mine = {n: tensor for n, tensor in own.items() if n.startswith(kind)}
    floor = 1e-3 * max(tensor.abs().max() for tensor in mine.values())
    return max(
        ((factor * found[n] - t).abs().max() / t.abs().max().clamp(min=floor)).item()
        for n, t in mine.items()
    )


# %%
def agrees(name):
    """What of a case equals this process's."""
    apart = {"loss": abs(spoken[name][0] - loss.item())}
    apart |= {"norm": abs(spoken[name][1] / norm - 1)}
    apart |= {"gradients": farthest(name, "grad"), "weights": farthest(name, "weight")}
    return {what: distance < TOLERANCE for what, distance in apart.items()}


# %%
for name in spoken:
    print(f"{name:8}", agrees(name))
print(f"halved gradients would be seen: {farthest('two_d', 'grad', 0.5) > 0.4}")
assert all(agrees("by_hand").values()) and all(agrees("two_d").values())
assert not any(agrees("no_sum").values()) and farthest("two_d", "grad", 0.5) > 0.4

# %%
claimed = {
    "by_hand": (
        "column- and row-parallel layers compute what whole layers do",
        "Shoeybi et al., 2019",
    ),
    "two_d": ("a model's own tp_plan is enough, also under FSDP2", "transformers, tp_plan"),
}
for name, (claim, source) in claimed.items():
    held = all(agrees(name).values())
    measured = "loss, gradients, clip norm, weights after a step: "
    measured += "all within 0.0001, 1 seed" if held else "not all within 0.0001"
    claims.append(Claim(claim, source, held, measured))

# %% [markdown]
# Notice: `two_d` clips by `ftkit`'s norm. Matrices lie on both axes of the mesh and norms on one, and torch's
# `clip_grad_norm_` refuses to add over two meshes; ours sums over each mesh, then adds the squares.

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
# **Predict:** 8 heads share 2 key-value heads. Which tensor-parallel degrees are possible?

# %%
grouped = LlamaConfig(num_attention_heads=8, num_key_value_heads=2, intermediate_size=64)
for tp in (2, 4):
    try:
        tensor_parallel.check(grouped, tp)
        print(f"tp = {tp} is possible")
    except ValueError as error:
        print(error)

# %% [markdown]
# On eight GPUs in each of two machines, tensor parallelism stays inside a machine, for it sums in every layer, and
# FSDP spans them: `--mesh 1,2,8` means one replica, sharded over 2, with matrices shared by 8.

# %% [markdown]
# ## Recap
#
# - While rank 0 loads, it must hold the whole model; when each rank reads its shards, nobody does.
# - A checkpoint is not the whole model: buffers outside it must be computed again.
# - NaN first, then look: that proves that all was set. "All keys matched" does not.
# - Column then row: one sum for an MLP, one for attention.
# - Equality is proved on gradients, for each cut, with a mutation that breaks it.

# %%
show_claims(claims)
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
# - PyTorch, [FSDP tutorial](https://docs.pytorch.org/tutorials/intermediate/FSDP_advanced_tutorial.html) of 2022 and
#   [tensor parallelism](https://docs.pytorch.org/docs/stable/distributed.tensor.parallel.html).
# - Hugging Face, [Accelerate: FSDP](https://huggingface.co/docs/accelerate/usage_guides/fsdp)
#   (`fsdp_cpu_ram_efficient_loading`) and [safetensors](https://huggingface.co/docs/safetensors).
# - Shoeybi et al., [Megatron-LM](https://arxiv.org/abs/1909.08053): columns and rows.
#
# ## Next
#
# [15_checkpoints_and_faults](15_checkpoints_and_faults.ipynb): save what the ranks hold, lose one, and go on.
