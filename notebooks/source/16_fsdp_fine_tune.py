# %% [markdown]
# # 16 · A fine-tune on several processes
#
# Real ranks, real shards, no GPU: child-tuning on the conversations of notebook 08, as two processes that
# hold half of the model each. The same program is written for eight GPUs and for several machines.
#
# - **Prerequisites:** [08_full_fine_tune](08_full_fine_tune.ipynb) and
#   [12_memory](12_memory.ipynb) to [15_checkpoints_and_faults](15_checkpoints_and_faults.ipynb).
# - **Hardware:** any processor with two cores; a GPU is not used here.
# - **Time:** about 35 minutes with the exercises; its cells run in under two minutes on two cores.

# %% [markdown]
# ## You will be able to
#
# - **predict** which rows of a weight lie on which rank,
# - **run** a sharded child-tuning with `torchrun`, from shards of the base to an exported folder,
# - **prove** that sharded, tensor-parallel and packed runs give a single process's losses,
# - **choose** a mesh, and say which ranks see which rows,
# - **plan** a run on 8 GPUs or 4 machines: mesh, launch line and memory.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import json
import os
import re
import tempfile
from pathlib import Path

from ftcourse.runs import start

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the ranks of this notebook are the processor's
os.chdir(tempfile.mkdtemp())  # what this notebook writes lies there

# %%
RANKS = 2  # processes
STEPS = 60  # optimizer steps
COMPARED = 20  # of them are compared with one process's
BATCH_SIZE = 16  # conversations in a step, over all ranks
LR = 1e-3  # peak learning rate
RESERVE_P = 0.3  # child-tuning keeps a gradient entry with this probability

# %% [markdown]
# The run of section 2, where it is explained, begins now and trains while you read. It goes on when you interrupt a
# cell, and ends with the notebook.

# %%
FLAGS = ["--optimizer", "child-tuning", "--reserve_p", RESERVE_P, "--lr", LR]
FLAGS += ["--batch_size", BATCH_SIZE, "--max_steps", STEPS, "--eval_every", STEPS // 3]
FISHER = [
    "--optimizer",
    "child-tuning-d",
    "--fisher_rows",
    12,
    "--reserve_p",
    RESERVE_P,
    "--lr",
    LR,
]
FISHER += ["--batch_size", BATCH_SIZE, "--max_steps", 4, "--max_length", 128]
two = ["-m", "ftkit.finetune", *FLAGS, "--output", "two"]
shared = [
    "-m",
    "ftkit.finetune",
    *FISHER,
    "--mesh",
    "1,1,2",
    "--packing",
    "--output",
    "shared",
]
two_run = start(*two, ranks=RANKS, folder="two")

# %%
import torch
import transformers
from ftcourse.claims import Ledger
from ftcourse.exercises.fsdp_fine_tune import check_global_loss, check_shard_rows
from ftcourse.explorers.fsdp import shard_explorer
from ftcourse.plots import plot_loss, use_course_style
from safetensors.torch import load_file

from ftkit import load_base, load_chat
from ftkit.child_tuning import gradient_mask
from ftkit.distributed import tensor_parallel
from ftkit.distributed.checkpoint import load_weights
from ftkit.distributed.device import pick_device
from ftkit.distributed.mesh import ParallelDims
from ftkit.evaluate import exact_match, generate_answers, stop_rate
from ftkit.finetune import train
from ftkit.memory import MemoryPlan, estimate_memory, published_meta_model
from ftkit.memory.estimate import size
from ftkit.models import meta_model, resolve_model
from ftkit.parameters import count_parameters

ledger = Ledger("distributed training")  # the claims tested here; the recap shows them

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
torch.backends.mps.is_available = lambda: False  # nor does a single process use Apple's GPU
print(f"torch {torch.__version__}, device: {pick_device().device}, {os.cpu_count()} cores")

# %% [markdown]
# ## 1 · Why shard
#
# Training with AdamW holds four numbers for each parameter: weight, gradient and two moments. In float32 that
# is 16 bytes. A model of 7 billion parameters needs 112 GB before its first activation.

# %%
model, tokenizer = load_base()
count = count_parameters(model)
for name, parameters in {"pocket-base": count.total, "7 billion": 7_000_000_000}.items():
    held = [f"{16 * parameters / ranks / 1e6:,.0f}" for ranks in (1, 2, 8)]
    print(f"{name:12} MB a rank, on 1, 2 and 8 ranks: {' · '.join(held)}")

# %% [markdown]
# A **rank** is one of the processes that `torchrun` starts together; on a processor, **gloo** carries what
# they send each other. **FSDP** (fully sharded data parallel) cuts all four by the number of ranks. Each
# weight is cut by rows: every rank keeps a block of them, and gathers the whole only while its layer
# computes.

# %%
explorer = shard_explorer(rows=1024, columns=128, ranks=RANKS)
explorer

# %% [markdown]
# **Predict first:** of a bias with 5 entries, how many lie on each of 4 ranks? Then move this slider to 4.

# %%
small = shard_explorer(rows=5, columns=1, ranks=2)
small

# %%
explorer.slider.value = small.slider.value = 4
print(f"5 entries on 4 ranks: {small.rows_per_rank}")
assert explorer.rows_per_rank == [256] * 4 and small.rows_per_rank == [2, 2, 1, 0]

# %% [markdown]
# Notice: the blocks are cut as `torch.chunk` cuts: equal from the top, and the last rank may hold nothing.

# %% [markdown]
# ### Exercise 1 · who holds what
#
# Difficulty ●●○, 6 minutes. How many rows of a weight lie on each rank? Expected: `[3, 3, 3, 1]` for 10 rows
# on 4 ranks.


# %% tags=["exercise"]
def shard_rows(rows: int, world_size: int) -> list[int]:
    """The number of rows on rank 0, 1, ..."""
    ### BEGIN SOLUTION
    block = -(-rows // world_size)  # rounded up
    return [min(block, max(0, rows - rank * block)) for rank in range(world_size)]
    ### END SOLUTION


check_shard_rows(shard_rows)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# A block has `rows / world_size` rows, rounded **up**. Rank `r` starts at row `r * block`; what is left there
# may be less than a block, or nothing.
#
# </details>

# %% [markdown]
# ## 2 · The whole program
#
# Notebook 13 sharded by hand. `ftkit.finetune` is that with all that a run needs: every rank starts **on meta**
# (shapes without memory) and reads its own shards from the files; child-tuning; metrics; checkpoints; export.
# The run below began at the top of this notebook.
# **Predict:** will child-tuning draw the same gradient masks on two ranks as on one?

# %%
print("torchrun --nproc-per-node", RANKS, *two)

# %% tags=["nbval-ignore-output"]
whole_run = two_run.result()  # waits for the run to end
print(whole_run)

# %%
shared_run = start(*shared, ranks=RANKS, folder="shared")  # the run of section 4

# %% tags=["nbval-ignore-output"]
# The same program in this process: one rank, stopped early.
train.main([*map(str, FLAGS), "--stop_after", str(COMPARED), "--output", "one"])


# %% tags=["nbval-ignore-output"]
# All else equal, no gradient masks, stopped early.
PLAIN = ["--optimizer", "adamw", "--stop_after", "4", "--output", "unmasked"]
train.main([*map(str, FLAGS), *PLAIN])


# %%
def metrics(folder):
    return [
        json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()
    ]


def apart(one, many):
    """The largest difference of a step's loss between two runs, over the steps that both did."""
    return max(
        abs(a["loss"] - b["loss"]) for a, b in zip(metrics(one), metrics(many), strict=False)
    )


norms = [metrics(folder)[0]["grad_norm"] for folder in ("one", "two")]
same = apart("one", "two") < 1e-4 and abs(norms[0] / norms[1] - 1) < 1e-4
masked = apart("one", "unmasked") > 1e-3
print(f"{COMPARED} steps on one and two ranks; losses and first gradient norm agree: {same}")
print(f"without masks the losses are others: {masked}")
assert len(metrics("one")) == COMPARED and len(metrics("two")) == STEPS and same and masked

# %%
ledger.add(
    "child-tuning works under FSDP as in one process",
    "Wright 2022, transformer_central and its video on child-tuning under FSDP",
    same and masked,
    f"losses of {COMPARED} steps on 1 and 2 ranks {'within' if same else 'beyond'} 0.0001; "
    f"{'other' if masked else 'the same'} losses without masks",
    seeds=1,
)

# %% tags=["nbval-ignore-output"]
ax = plot_loss(metrics("two"))
print(
    f"largest difference of a step's loss between one and two ranks: {apart('one', 'two'):.1e}"
)

# %% [markdown]
# Notice: sums in another order differ in their last digits, and AdamW may enlarge that, so we allow 0.0001. The
# norm of the first gradient tells a sum from a mean, which AdamW would hide, as in notebook 13.
# The gradient masks must have been the same, and they are: each depends on seed, step, name and the element's
# place in the whole tensor.

# %%
name, shape = "model.layers.0.mlp.up_proj.weight", (320, 128)
drawn = {"seed": 0, "step": 1, "name": name}
whole_mask = gradient_mask(shape, RESERVE_P, **drawn)
on_rank_1 = gradient_mask(shape, RESERVE_P, **drawn, region=(slice(160, 320), slice(0, 128)))
print(f"rank 1 draws its rows of the whole mask: {torch.equal(on_rank_1, whole_mask[160:])}")
print(f"the two halves differ: {not torch.equal(whole_mask[:160], whole_mask[160:])}")
assert torch.equal(on_rank_1, whole_mask[160:]) and not torch.equal(
    whole_mask[:160], whole_mask[160:]
)

# %% [markdown]
# ### Exercise 2 · one loss for all ranks
#
# Difficulty ●●○, 5 minutes. Each rank reports its summed loss and its number of unmasked tokens. What is the
# loss of the global batch? Expected: sums 30, 2, 0 over 10, 2, 0 tokens give 2.67.


# %% tags=["exercise"]
def global_loss(sums: list[float], tokens: list[int]) -> float:
    """Mean loss over the unmasked tokens of all ranks."""
    ### BEGIN SOLUTION
    return sum(sums) / sum(tokens)
    ### END SOLUTION


check_global_loss(global_loss)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# A rank whose rows are short has few tokens. Its mean must not weigh as much as the mean of a rank with many.
#
# </details>

# %% [markdown]
# ## 3 · Checkpoint and export
#
# Each rank writes its own shards, weights and moments: a checkpoint that no rank has to assemble. The export
# is the other kind: one ordinary Hugging Face folder.

# %%
checkpoint = Path("two/checkpoints") / f"step-{STEPS:06d}"
sizes = sorted(path.stat().st_size for path in checkpoint.glob("*.distcp"))
print(sorted(path.name for path in checkpoint.iterdir()))
print(f"the two files differ by less than a tenth: {sizes[1] < 1.1 * sizes[0]}")
print(sorted(path.name for path in Path("two/model").iterdir()))
assert len(sizes) == RANKS and sizes[1] < 1.1 * sizes[0]

# %% [markdown]
# **Predict:** read the shards back in this one process, where nothing is sharded. Will the weights equal
# the exported ones to the bit?

# %%
tuned, _ = load_base("two/model")
in_memory, _ = load_base()
load_weights(checkpoint, in_memory)
pairs = list(zip(in_memory.state_dict().values(), tuned.state_dict().values(), strict=True))
same = all(torch.equal(shards, exported) for shards, exported in pairs)
print(f"all {len(pairs)} tensors are equal to the bit: {same}")
assert same

# %%
chats = load_chat()["test"].select(range(48))
prompts = [row["messages"][:-1] for row in chats]
wanted = [row["messages"][-1]["content"] for row in chats]
from_folder = generate_answers(tuned, tokenizer, prompts)
assert [a.text for a in generate_answers(in_memory, tokenizer, prompts)] == [
    a.text for a in from_folder
]
before = generate_answers(load_base()[0], tokenizer, prompts)
right = exact_match(from_folder, wanted)
print(f"a quarter to a half of the answers are right: {0.25 < right < 0.5}")
print(
    f"stop rate before under 10 %: {stop_rate(before) < 0.1}, after over 95 %: {stop_rate(from_folder) > 0.95}"
)
assert stop_rate(before) < 0.1 and stop_rate(from_folder) > 0.95 and 0.25 < right < 0.5

# %% tags=["nbval-ignore-output"]
for prompt, old, new in list(zip(prompts, before, from_folder, strict=True))[:3]:
    print(f"{prompt[0]['content']}\n  before: {old.text[:70]!r}\n  after:  {new.text!r}")
print(f"exact match: before {exact_match(before, wanted):.0%}, after {right:.0%}")

# %% [markdown]
# Notice: the folder opens with `from_pretrained` and says what the trained model said. It stops nearly every
# time, but after sixty steps fewer than half of the answers are right.

# %% [markdown]
# ## 4 · One program, many ways to train
#
# Most techniques of notebooks 02 to 15 are flags (`--help` lists them), and most combine; LoRA with tensor
# parallelism is refused. **Predict:** two ranks share every matrix (`--mesh 1,1,2`, tensor parallelism), rows
# are packed, and only the 30 % of weights with the largest Fisher information train: will the losses still be
# those of one process with padded rows?

# %%
print("torchrun --nproc-per-node", RANKS, *shared)

# %% tags=["nbval-ignore-output"]
shared_run.result()  # waits for it
train.main([*map(str, FISHER), "--output", "alone"])  # in this process: one rank, padded rows
train.main(
    [*map(str, FISHER), "--optimizer", "adamw", "--output", "all"]
)  # all else equal, no child

# %%
same = apart("alone", "shared") < 1e-4
other = apart("alone", "all") > 0.01
print(
    f"losses of 4 steps within 0.0001 of one process: {same}; without the child they differ: {other}"
)
assert same and other

# %%
start, ended = (
    load_file(f"{folder}/model.safetensors") for folder in (resolve_model(), "shared/model")
)
masks = load_file("shared/masks.safetensors")
outside = all(torch.equal(start[n][~masks[n]], ended[n][~masks[n]]) for n in masks)
share = sum(m.sum().item() for m in masks.values()) / sum(m.numel() for m in masks.values())
print(f"part of the weights in the child: {share:.3f}")
print(f"every weight outside it is equal to the bit: {outside}")
assert outside and abs(share - RESERVE_P) < 0.01

# %% [markdown]
# Notice: what trains decides the loss; how it is spread over ranks does not. LoRA (`--method lora`, not with
# tp) leaves `adapter/` and the merged `model/` in the output; this notebook does not run it.

# %% [markdown]
# ## 5 · Which mesh
#
# `--mesh dp_replicate,dp_shard,tp` says what the ranks share; the product is their number. Ranks of `tp`
# share each matrix and talk in every layer, so they sit in one machine; `dp_shard` cuts the states;
# `dp_replicate` repeats shards, for instance one copy a machine. One number may be -1: what is left.

# %%
for text in ("1,-1,1", "4,-1,1", "4,-1,2"):
    shape = ParallelDims.parse(text, world_size=32)
    parts = shape.dp_replicate * shape.dp_shard
    print(
        f"{text:7} on 32 ranks: copies {shape.dp_replicate}, shards {shape.dp_shard}, "
        f"ranks that share a matrix {shape.tp}; a batch in {parts} parts"
    )
    assert parts * shape.tp == 32

# %% [markdown]
# Notice: with tp 2 a batch has half as many parts, as two ranks see the same rows.

# %% [markdown]
# ### Break it, then fix it
#
# pocket-base has four attention heads, and two ranks are started. **Predict:** can three tensor-parallel ranks
# share its matrices? Can `--mesh 1,3,1` run?

# %% tags=["raises-exception"]
tensor_parallel.validate_tp_degree(model.config, 3)

# %% tags=["raises-exception"]
ParallelDims.parse("1,3,1", world_size=2)

# %%
tensor_parallel.validate_tp_degree(model.config, 2)
print(ParallelDims.parse("1,-1,1", world_size=2))
assert str(ParallelDims.parse("1,-1,1", world_size=2)) == "1,2,1"

# %% [markdown]
# Notice: each message names the numbers and what to change. `ftkit.finetune` checks both before it loads a model.

# %% [markdown]
# ## 6 · The same program for 2 processes, 8 GPUs and 4 machines
#
# No line of the program is written for one number of ranks. What changes is the launcher, the model and the
# mesh; `estimate_memory` of notebook 12 tells the memory.

# %%
COMMON = {"compute_dtype": "bfloat16", "activation_checkpointing": True}
COMMON |= {"micro_batch_size": 1, "max_length": 2048, "kernel": "foreach"}
plans = {
    "2 processes, pocket-base": ("pocket-base", MemoryPlan(mesh=(1, 2, 1))),
    "8 GPUs, 8 billion": ("llama-3-8b", MemoryPlan(mesh=(1, 8, 1), **COMMON)),
    "4 machines of 8, 70 billion": ("llama-3-70b", MemoryPlan(mesh=(1, 32, 1), **COMMON)),
}
peaks = {}
for setting, (name, plan) in plans.items():
    told = meta_model(resolve_model()) if name == "pocket-base" else published_meta_model(name)
    peaks[setting] = estimate_memory(told, plan).peak
    print(f"{setting:27} peak of a rank: {size(peaks[setting])}")
assert all(peak < 0.9 * 80e9 for peak in peaks.values())

# %% [markdown]
# Notice: by estimate, not measured on a GPU, all three fit 80 GB with a tenth to spare. The lines that launch them:
#
# ```
# torchrun --standalone --nproc-per-node 2 -m ftkit.finetune --output runs/a
# torchrun --standalone --nproc-per-node 8 --max-restarts 3 -m ftkit.finetune --output runs/a --model MODEL \
#     --data chats.jsonl --activation_checkpointing --micro_batch_size 1 --max_length 2048 --batch_size 8
# sbatch --nodes 4 deploy/slurm/finetune.sbatch --output /shared/a --model MODEL --data chats.jsonl \
#     --activation_checkpointing --micro_batch_size 1 --max_length 2048 --batch_size 32 --save_every 50
# ```

# %% [markdown]
# A run also tells its own memory. The first run told two numbers before it started: for the longest rows that it
# allows (512 tokens), and for the rows of its second step, which it then measured on rank 0:

# %%
(line,) = re.findall(r"peak memory of a rank: .* measured.*", whole_run)
off = abs(float(re.search(r"\(([+-][\d.]+)%\)", line)[1])) / 100
print(f"told and measured peak within 5 %: {off < 0.05}")
assert off < 0.05

# %% tags=["nbval-ignore-output"]
print(line)

# %% [markdown]
# ## Recap
#
# - FSDP cuts weights, gradients and moments by rows; a rank gathers a layer only while it computes.
# - Equality is proved on gradients; the loss is a mean over the tokens of all ranks.
# - Gradient masks do not depend on ranks.
# - A checkpoint is shards; an export is a folder that anyone can open.
# - Mesh and packing are flags that change memory and traffic, not results; optimizer and `--method` decide what
#   trains.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. What are the four numbers that training with AdamW holds for each parameter?
# 2. Why is the loss multiplied by the number of ranks before `backward`?
# 3. Why does comparing weights after AdamW hide a wrong factor in the gradient?
# 4. What makes a gradient mask the same on any number of ranks?
# 5. Of 32 ranks on a mesh of 4, 4, 2: into how many parts is a batch cut, and why not 32?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: weight, gradient, first and second moment.
# - 2: FSDP averages gradients over ranks, and we want the mean over all tokens.
# - 3: AdamW divides the gradient by its own size, so a constant factor cancels.
# - 4: it is drawn from seed, step, name and the element's place in the whole tensor.
# - 5: 16; the two ranks that share a matrix need the same rows to compute its one output.
#
# </details>

# %% [markdown]
# ## Sources
#
# - PyTorch, [fully_shard](https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html) and
#   [distributed checkpoint](https://docs.pytorch.org/docs/stable/distributed.checkpoint.html).
# - Zhao et al., [PyTorch FSDP](https://arxiv.org/abs/2304.11277): experiences on scaling, FSDP1.
# - Less Wright, [transformer_central](https://github.com/lessw2020/transformer_central) and PyTorch's
#   [FSDP tutorial](https://docs.pytorch.org/tutorials/intermediate/FSDP_advanced_tutorial.html) of 2022.
# - Xu et al., [Raise a Child in Large Language Model](https://arxiv.org/abs/2109.05687): child-tuning.
#
# ## Next
#
# [00_start_here](00_start_here.ipynb): the map, to choose where to go from here.
