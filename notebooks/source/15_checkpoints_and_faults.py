# %% [markdown]
# # 15 · Checkpoints and faults
#
# Long runs are interrupted: a process dies, a machine is withdrawn, a disk fills up. You save and load a sharded run
# with `torch.distributed.checkpoint`, kill a rank in the middle of a step, and compare the resumed run with an
# undisturbed one.
#
# - **Prerequisites:** [14_delayed_init_and_tensor_parallel](14_delayed_init_and_tensor_parallel.ipynb).
# - **Hardware:** any processor with two cores; a GPU is not used here. On Windows, use WSL 2.
# - **Time:** about 45 minutes with the exercises; its cells run in about a minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **save** and **load** a sharded model and its optimizer by `dcp.save`, `dcp.load`, `dcp.async_save`,
# - **restore** the data position and random states, so that a resumed run sees what it would have seen,
# - **test** a resume, and say when it can be bitwise identical,
# - **survive** `kill -9`, and save before the end on SIGTERM,
# - **choose** how often to save.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import json
import os
import shutil
import signal
import tempfile
import warnings
from pathlib import Path

from ftcourse.expected import expected_error
from ftcourse.runs import start

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the ranks of this notebook are the processor's
os.chdir(tempfile.mkdtemp())  # what this notebook writes lies there

# %%
RANKS = 2  # processes
STEPS = 10  # optimizer steps of a run
SAVE_EVERY = 3  # steps between two checkpoints
KILL_AT = 8  # the step in which rank 1 dies
ABOUT = {"model": "pocket-base", "optimizer": "adamw"}  # what a checkpoint belongs to
rank, world_size, mesh = 0, 1, None  # of this process; live ranks have their own

# %% [markdown]
# The live ranks of section 1 and a program under torchrun share one loop, so it goes into a file: a model that
# `fully_shard` distributes, AdamW, and a step on a batch that the step's number seeds. `fault` is called between
# gradients and update.

# %%
# %%writefile loop.py
import torch
import torch.distributed as dist

from ftkit import load_base
from ftkit.distributed.fsdp import apply_fsdp


def build(mesh=None):
    model = load_base()[0]
    if mesh is not None:
        apply_fsdp(model, mesh)  # fully_shard on layers and root, before the optimizer
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def one_step(model, optimizer, step, rank=0, world_size=1, fault=lambda: None):
    ids = torch.randint(0, 1024, (4, 16), generator=torch.Generator().manual_seed(step))
    loss = model(input_ids=ids[rank::world_size], labels=ids[rank::world_size]).loss
    loss.backward()
    fault()
    optimizer.step()
    optimizer.zero_grad()
    total = loss.detach().double()
    if world_size > 1:
        dist.all_reduce(total)
    return total.item() / world_size


# %% [markdown]
# The program under torchrun saves every third step and goes on from the newest checkpoint. In its first attempt rank 1
# kills itself in step 8. It starts now, runs beside the next sections, and is read in sections 3 and 4.

# %%
# %%writefile train.py
import os
import signal
import time
from pathlib import Path

from loop import build, one_step

from ftkit.distributed.checkpoint import Checkpoints
from ftkit.distributed.launch import run_distributed

ATTEMPT = int(os.environ["TORCHELASTIC_RESTART_COUNT"])  # torchrun's count of restarts


def killed():
    time.sleep(2)  # until the checkpoint before is complete, as with a larger model's steps
    os.kill(os.getpid(), signal.SIGKILL)


def main(context):
    model, optimizer = build(context.mesh)
    about = {"model": "pocket-base", "optimizer": "adamw"}
    checkpoints = Checkpoints(Path("killed/checkpoints"), about, context, keep=9)
    first = checkpoints.load(model, optimizer, {})["step"] if checkpoints.latest() else 0
    for step in range(first + 1, 11):
        fault = killed if (step, context.rank, ATTEMPT) == (8, 1, 0) else lambda: None
        loss = one_step(model, optimizer, step, context.rank, context.world_size, fault)
        if context.is_main_process:
            print(f"done {step} {ATTEMPT} {loss!r}", flush=True)
        if step % 3 == 0 or step == 10:
            checkpoints.save(step, model, optimizer, {})
    checkpoints.finish()


run_distributed(main)

# %%
killed_run = start("train.py", ranks=RANKS, folder="killed", max_restarts=1)

# %%
import torch
import torch.distributed.checkpoint as dcp
import transformers
from ftcourse.claims import Ledger
from ftcourse.exercises.checkpoints_and_faults import check_newest_whole, check_resume_test
from ftcourse.explorers.checkpoints import (
    interval_explorer,
    lost_share,
    plot_attempts,
    simulate_lost_share,
    young_interval,
)
from ftcourse.live_ranks.live import start_ranks
from ftcourse.plots import use_course_style
from loop import build, one_step
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from ftkit import load_base
from ftkit.distributed.checkpoint import Checkpoints, latest_checkpoint, load_weights
from ftkit.distributed.device import pick_device
from ftkit.distributed.mesh import DistributedContext
from ftkit.distributed.preemption import PreemptionHandler
from ftkit.finetune.export import to_hugging_face
from ftkit.models import resolve_model

ledger = Ledger("distributed training")  # the claims tested here; the recap shows them

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
warnings.filterwarnings("ignore", "torch.distributed is")  # this process is no rank
torch.set_num_threads(1)
print(f"torch {torch.__version__}, device: cpu, {os.cpu_count()} cores")

# %% [markdown]
# ## 1 · `dcp.save` and `dcp.load`
#
# **Distributed checkpoint** (DCP, `torch.distributed.checkpoint`) writes what each rank holds. Live ranks show it:
# three steps, then `get_state_dict`, which names the optimizer's states by parameter, and `dcp.save`.

# %%
ranks = start_ranks(RANKS, timeout=60)
_ = ranks.run(Path("loop.py").read_text())  # defines build and one_step on every rank

# %%
# %%px
import torch.distributed.checkpoint as dcp
import transformers
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

transformers.utils.logging.disable_progress_bar()
model, optimizer = build(mesh)
losses = {step: one_step(model, optimizer, step, rank, world_size) for step in (1, 2, 3)}
weights, moments = get_state_dict(model, optimizer)
_ = dcp.save({"model": weights, "optimizer": moments}, checkpoint_id="plain/step-3")

# %%
# %%px
name = "model.layers.0.mlp.up_proj.weight"
print(f"whole {tuple(weights[name].shape)}, here {tuple(weights[name].to_local().shape)}")
print(f"optimizer: {list(moments)}; of each parameter: {list(moments['state'][name])}")

# %% [markdown]
# **Predict first:** how many files lie in the folder, and how large is each, in sizes of the model's own weights?

# %%
folder = Path("plain/step-3")
model, optimizer = build()  # in this process: one rank, nothing sharded
size = sum(4 * parameter.numel() for parameter in model.parameters())  # bytes, float32
for path in sorted(folder.iterdir()):
    share = path.stat().st_size / size
    print(f"{path.name:14} {share:.1f} times the weights" if share > 0.1 else path.name)
    assert share < 0.1 or 1.4 < share < 1.7

# %% [markdown]
# Each rank wrote its half of the weights and of two moments, which is 1.5; the rest are headers, visible only in a
# model this small. `.metadata` says which slice of which tensor lies in which file:

# %%
metadata = dcp.FileSystemReader(folder).read_metadata()
entry = metadata.state_dict_metadata["model.model.layers.0.mlp.up_proj.weight"]
for chunk in entry.chunks:
    print(f"rows {chunk.offsets[0]:3} to {chunk.offsets[0] + chunk.sizes[0] - 1}")
print(f"{len(metadata.state_dict_metadata)} entries")
assert [chunk.offsets[0] for chunk in entry.chunks] == [0, 160]

# %% [markdown]
# ### Load on another number of ranks
#
# `dcp.load` fills tensors in place. You hand it a state dict with the names and shapes that you want, and each rank
# reads the slices that it needs now. `set_state_dict` then puts what is no tensor, such as the learning rate, into the
# optimizer. Here one process reads what two wrote.

# %%
state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
dcp.load(state, checkpoint_id=folder)
set_state_dict(
    model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
)
resumed = {step: one_step(model, optimizer, step) for step in range(4, STEPS + 1)}

# %% [markdown]
# **Predict first:** the two ranks go on to step 10, too. Will the losses of one process equal theirs?

# %%
# %%px
for step in range(4, 11):
    losses[step] = one_step(model, optimizer, step, rank, world_size)

# %%
undisturbed = ranks.get("losses")[0]
apart = max(abs(resumed[step] - undisturbed[step]) for step in resumed)
print(f"{len(resumed)} losses on one rank, each within 0.0001 of those on two")
assert len(resumed) == 7 and apart < 1e-4

# %% tags=["hide-input"]
_ = ledger.add(
    "a checkpoint resumes on another number of ranks",
    "PyTorch, distributed checkpoint",
    apart < 1e-4,
    f"written by 2 ranks, read by 1: {len(resumed)} losses within 0.0001",
)

# %% [markdown]
# Nothing was converted. The last digits differ, because one process adds the gradients of four sequences in another
# order than two ranks do, and AdamW may enlarge that.

# %% [markdown]
# ### `dcp.async_save`
#
# It copies the state into memory and returns; a thread writes the copy while the next steps run. It needs a process
# group of its own, because its collectives would mix with those of training. **Predict first:** all weights are set to
# zero right after the call. What will the checkpoint hold?

# %%
# %%px
group = dist.new_group(backend="gloo")
weights, moments = get_state_dict(model, optimizer)
norm = weights[name].full_tensor().norm().item()
writing = dcp.async_save(
    {"model": weights}, checkpoint_id="plain/step-10", process_group=group
)
torch._foreach_zero_([parameter.data.to_local() for parameter in model.parameters()])
_ = writing.result()  # waits until it is on disk, and raises what went wrong

# %%
copied = {"model": build()[0].state_dict()}
dcp.load(copied, checkpoint_id="plain/step-10")
saved = copied["model"]["model.layers.0.mlp.up_proj.weight"].norm().item()
now = ranks.get("weights[name].full_tensor().norm().item()")[0]
print(f"norm of a weight: {saved:.1f} in the checkpoint, {now:.1f} on the ranks")
copied_whole = abs(saved - ranks.get("norm")[0]) < 1e-4
assert copied_whole and now == 0
ranks.stop()

# %% tags=["hide-input"]
_ = ledger.add(
    "training may go on while a checkpoint is written",
    "PyTorch, async_save",
    copied_whole and now == 0,
    "weights set to zero after async_save returned; the checkpoint holds them as they were",
)

# %% [markdown]
# The price is a second copy of the state in the processor's memory. On a GPU the copy itself also takes time, which
# pinned memory shortens.

# %% [markdown]
# ## 2 · Data position and random states
#
# Weights and moments are not all. A resumed run must also go on in its data, with the random numbers that it would have
# drawn. The protocol is two methods, `state_dict` and `load_state_dict`; DCP calls them by itself on any object that
# has both (`Stateful`). torchdata's `StatefulDataLoader` is such a loader, with workers and prefetching.


# %%
class Shuffled:
    """Batches of example numbers, shuffled anew in each epoch."""

    def __init__(self, examples, batch_size):
        self.examples, self.batch_size = examples, batch_size
        self.epoch = self.position = 0

    def __next__(self):
        order = torch.randperm(
            self.examples, generator=torch.Generator().manual_seed(self.epoch)
        )
        batch = order[self.position : self.position + self.batch_size].tolist()
        self.position += self.batch_size
        if self.position >= self.examples:
            self.epoch, self.position = self.epoch + 1, 0
        return batch

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        self.epoch, self.position = state["epoch"], state["position"]


# %%
class RandomState:
    """torch's generator on the CPU, from which dropout draws."""

    def state_dict(self):
        return {"cpu": torch.get_rng_state()}  # with CUDA also torch.cuda.get_rng_state()

    def load_state_dict(self, state):
        torch.set_rng_state(state["cpu"])


# %% [markdown]
# Five of eight batches are done when the run stops. **Predict first:** a resumed run with a fresh loader does the other
# three batches of the epoch. How many examples of 32 has it seen twice, how many never?

# %%
torch.manual_seed(0)
loader, random_state = Shuffled(examples=32, batch_size=4), RandomState()
seen = [next(loader) for _ in range(5)]
_ = dcp.save({"loader": loader, "random": random_state}, checkpoint_id="plain/data")
straight = [next(loader) for _ in range(3)], torch.rand(2)

# %%
fresh = Shuffled(examples=32, batch_size=4)
forgetful = [next(fresh) for _ in range(3)]
used = [example for batch in seen + forgetful for example in batch]
print(f"fresh loader: {len(used) - len(set(used))} seen twice, {32 - len(set(used))} never")
loaded = Shuffled(examples=32, batch_size=4)
dcp.load({"loader": loaded, "random": random_state}, checkpoint_id="plain/data")
again = [next(loaded) for _ in range(3)], torch.rand(2)
used = [example for batch in seen + again[0] for example in batch]
print(f"loaded:       {len(used) - len(set(used))} seen twice, {32 - len(set(used))} never")
assert again[0] == straight[0] and torch.equal(again[1], straight[1])

# %% [markdown]
# Two traps with several ranks. Random states differ from rank to rank, so each needs a name of its own, such as
# `random-1`: DCP takes equal names for equal values and keeps one. And a loader with workers has fetched more batches
# than were trained on; only the loader itself can count that.
#
# `ftkit finetune` avoids both: batch and dropout are functions of seed and step, so the step is the position.

# %% [markdown]
# ## Exercise 1 · Does a resume go on exactly?
#
# Difficulty ●●○, 12 minutes. Test any trainer: `train(state, steps)` goes on from a checkpoint's `state` (None: from
# the start) and returns losses and new state. Run once without a stop, once with a stop after `stop` steps, and
# compare. The checker tries five trainers, four of which forget something. Expected: the first step, counted from 1,
# whose loss differs, or None.


# %% tags=["exercise"]
def resume_test(train, steps: int, stop: int) -> int | None:
    """The first step whose loss differs after a resume at `stop`, or None."""
    ### BEGIN SOLUTION
    straight, _ = train(None, steps)
    losses, state = train(None, stop)
    losses = losses + train(state, steps - stop)[0]
    for step in range(1, steps + 1):
        if losses[step - 1] != straight[step - 1]:
            return step
    return None
    ### END SOLUTION


check_resume_test(resume_test)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Three calls: `train(None, steps)`, `train(None, stop)`, `train(state, steps - stop)`. A forgotten schedule shows only
# when the learning rate begins to fall, so compare every step.
#
# </details>

# %% [markdown]
# ## 3 · What DCP leaves to you
#
# | fault | `dcp.save` alone | `Checkpoints` of ftkit |
# | --- | --- | --- |
# | a crash while writing | a folder that looks finished | the final name comes last, after every file |
# | a file cut short on disk | found while loading, or not | sizes recorded in `about.json`, checked first |
# | the checkpoint of another run | loads what fits by name | refused, by settings and every parameter's shape |
# | a failed write | in the future's result, on its rank | raised on all ranks, by the next `save` or `finish` |
# | disks fill up | everything is kept | `keep` of the newest, and the best |
# | which one is newest | you decide | rank 0 decides for all |

# %% [markdown]
# `Checkpoints` calls the functions of section 1 and adds these checks. The killed run used it:

# %%
killed_run.result()  # waits for the run to end
checkpoint = Path("killed/checkpoints/step-000003")
about = json.loads((checkpoint / "about.json").read_text())
print(sorted(path.name for path in checkpoint.iterdir()))
print(
    f"step {about['step']}, {about['ranks']} ranks, {len(about['parameters'])} parameters, "
    f"{len(about['files'])} files with their sizes"
)

# %% [markdown]
# **Predict first:** below, `step-000010` has lost half of a file, and `step-000011.incomplete` is whole but was never
# renamed. Which one does `latest_checkpoint` choose?

# %%
shutil.copytree("killed/checkpoints", "copies", dirs_exist_ok=True)
shutil.copytree("copies/step-000010", "copies/step-000011.incomplete", dirs_exist_ok=True)
damaged = Path("copies/step-000010/__1_0.distcp")
os.truncate(damaged, damaged.stat().st_size // 2)  # a disk that lost the end of a file
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    chosen = latest_checkpoint(Path("copies"))
print(f"chosen: {chosen.name}; the warning:\n{said[0].message}")
assert chosen.name == "step-000009" and "__1_0.distcp" in str(said[0].message)

# %% [markdown]
# On a local disk a rename happens or does not, so a final name can be trusted. Sizes find what is short or gone; wrong
# bytes of the right length show only while reading, if at all.

# %% [markdown]
# ### Break it, then fix it: another run's checkpoint
#
# Shapes that fit do not make it the same run. DCP looks only for the names that the new run asks for, and the saved
# `lr` and `weight_decay` replace yours. `Checkpoints` compares `about.json` first. Below, only the optimizer's name
# differs.

# %%
alone = DistributedContext(0, 1, pick_device(), None)  # this process, without torchrun
fresh_model = load_base()[0]
original = {name: tensor.clone() for name, tensor in fresh_model.state_dict().items()}
fresh = fresh_model, torch.optim.AdamW(fresh_model.parameters(), weight_decay=0.5)

# %% tags=["raises-exception"]
other = {**ABOUT, "optimizer": "child-tuning task-free"}
with expected_error(ValueError):
    Checkpoints(Path("killed/checkpoints"), other, alone).load(*fresh, {})

# %%
changed = sum(not torch.equal(t, original[n]) for n, t in fresh_model.state_dict().items())
saved = Checkpoints(Path("killed/checkpoints"), ABOUT, alone).load(*fresh, {})
decay = fresh[1].param_groups[0]["weight_decay"]
print(f"after the refusal {changed} tensors have changed")
print(f"with its own settings: step {saved['step']}; weight_decay 0.5 became {decay}")
assert changed == 0 and saved["step"] == STEPS and decay == 0.01

# %% [markdown]
# ## Exercise 2 · Which one is complete?
#
# Difficulty ●●○, 6 minutes. A folder is described by the file sizes noted when it was written (`None`: never finished)
# and those found now. Which checkpoint may be loaded? Expected: the newest complete one's name, or None. A folder still
# called `.incomplete` never counts, whatever its sizes.


# %% tags=["exercise"]
def newest_whole(folders: dict[str, dict]) -> str | None:
    """`folders[name]` is {"written": {file: bytes} or None, "found": {file: bytes}}."""
    ### BEGIN SOLUTION
    whole = [
        name
        for name, folder in folders.items()
        if not name.endswith(".incomplete") and folder["written"] == folder["found"]
    ]
    return max(whole, default=None)
    ### END SOLUTION


check_newest_whole(newest_whole)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Three conditions: the name is final, every file is there, every size is right. Step numbers have six digits, so names
# sort as their steps do.
#
# </details>

# %% [markdown]
# ## 4 · Kill -9, in the middle of a step
#
# SIGKILL cannot be caught: rank 1 was gone, with gradients computed and weights not yet updated. `torchrun
# --max-restarts` noticed, ended the other rank and started both again, and they went on from the newest complete
# checkpoint. **Predict first:** which steps were done twice?

# %%
rows = [
    line.split()[1:] for line in killed_run.result().splitlines() if line.startswith("done")
]
attempts = [[int(step) for step, attempt, _ in rows if attempt == str(n)] for n in (0, 1)]
survived = {int(step): float(loss) for step, _, loss in rows}
print(f"rank 1 was killed in step {KILL_AT}; the last finished step was {attempts[0][-1]}")
print(f"the second attempt did steps {attempts[1][0]} to {attempts[1][-1]}")
assert attempts[0][-1] == KILL_AT - 1 and attempts[1][-1] == STEPS
assert attempts[1][0] == 7  # it went on from the checkpoint of step 6

# %%
identical = sum(survived[step] == undisturbed[step] for step in undisturbed)
print(f"losses that are bitwise identical to the undisturbed run's: {identical} of {STEPS}")
assert identical == STEPS

# %% tags=["hide-input"]
_ = ledger.add(
    "after kill -9 a run restarts and resumes by itself",
    "torchrun",
    identical == STEPS and 1 < attempts[1][0] <= KILL_AT,
    f"2 ranks on a CPU, one killed: resumed from a checkpoint; {identical} of {STEPS} losses bitwise identical",
)

# %%
ax = plot_attempts(attempts, KILL_AT, SAVE_EVERY)

# %% [markdown]
# A restart costs new processes, their imports, the ranks' rendezvous and the loading: seconds here, minutes for a large
# model. Of the work only the steps since the last complete checkpoint are done again. A checkpoint that is still being
# written is lost.

# %% [markdown]
# ## 5 · Bitwise identical: under which conditions?
#
# The undisturbed run is that of the live ranks, launched separately. On the same number of processes and the same CPU,
# with one thread each, every sum has the same order, so all digits agree. Floating-point addition is not associative:

# %%
a, b, c = torch.tensor([1e8, -1e8, 1.0])
print(f"(a + b) + c = {(a + b) + c:.0f}, a + (b + c) = {a + (b + c):.0f}")
assert (a + b) + c != a + (b + c)

# %% [markdown]
# That is evidence from a CPU. CUDA does not promise it by default (PyTorch's notes on reproducibility; not measured
# here):
#
# | what may differ from run to run | what fixes it, for some speed |
# | --- | --- |
# | atomic additions, as in `index_add_` and `scatter_add_` | `torch.use_deterministic_algorithms(True)` |
# | cuBLAS with several streams | the environment's `CUBLAS_WORKSPACE_CONFIG=:4096:8` |
# | cuDNN choosing kernels by timing | `torch.backends.cudnn.benchmark = False` |
# | another GPU model, driver, library or number of GPUs | nothing: expect other last digits |

# %% [markdown]
# So test a resume on a CPU exactly, and on GPUs with a tolerance that you measured: run twice without a stop, and take
# the difference of those two as the scale. Forgotten moments change the losses
# far more than rounding does:

# %%
state = dict(zip(("model", "optimizer"), get_state_dict(*build()), strict=True))
forgot, new_optimizer = build()
dcp.load({"model": forgot.state_dict()}, checkpoint_id=folder)  # and not the moments
wrong = {step: one_step(forgot, new_optimizer, step) for step in range(4, STEPS + 1)}
off = max(abs(wrong[step] - undisturbed[step]) for step in wrong)
print("losses without the moments: off by more than 0.01; by rounding: less than 0.0001")
assert off > 0.01 and wrong[4] == resumed[4]

# %% [markdown]
# The first loss after the resume is still right, because it is computed before the first update.

# %% [markdown]
# ## 6 · SIGTERM: save, then leave
#
# Preemptible machines, Kubernetes and Slurm send SIGTERM before they end a job, and torchrun passes it on.
# `PreemptionHandler` only sets a flag; after the step all ranks agree on it, save, and leave. Here this process goes on
# with the run of section 1, and sends itself the signal.

# %%
checkpoints = Checkpoints(Path("one/checkpoints"), ABOUT, alone)
with PreemptionHandler() as preemption:
    for step in range(STEPS + 1, STEPS + 10):
        one_step(model, optimizer, step)
        if step == STEPS + 3:
            os.kill(os.getpid(), signal.SIGTERM)
        if preemption.requested(alone):
            checkpoints.save(step, model, optimizer, {})
            break
checkpoints.finish()
saved = latest_checkpoint(Path("one/checkpoints"))
print(f"left after step {step}; the newest checkpoint is {saved.name}")
assert step == STEPS + 3 and saved.name == f"step-{step:06d}"

# %% [markdown]
# torchrun waits 30 seconds before it kills the ranks, or as many as `TORCH_ELASTIC_SHUTDOWN_TIMEOUT` says, from torch
# 2.12 on. Whoever sent the signal may wait less. A step and a checkpoint must fit into both, or the work since the last
# one is lost. torchrun does not start again a run that left: give the same command once more, with `--resume` for
# `ftkit finetune`.

# %% [markdown]
# ## 7 · Export to a Hugging Face folder
#
# A checkpoint is for resuming; other programs need a folder that `from_pretrained` opens. One call in one process makes
# it, without ranks or a GPU. (`python -m torch.distributed.checkpoint.format_utils dcp_to_torch` makes a pickle
# instead.)

# %%
last = latest_checkpoint(Path("killed/checkpoints"))
shutil.rmtree("model", ignore_errors=True)
exported = to_hugging_face(last, resolve_model(), Path("model"))
print(f"{last.name} ->", *sorted(path.name for path in exported.iterdir()), sep="\n  ")
in_memory = load_base()[0]
load_weights(last, in_memory)
tensors = load_file(exported / "model.safetensors")
different = sum(not torch.equal(t, in_memory.state_dict()[n]) for n, t in tensors.items())
print(f"{len(tensors)} tensors, of which {different} differ from the shards")
assert different == 0 and load_base(exported)[0].config.model_type == "llama"

# %% [markdown]
# ## 8 · How often to save
#
# Saving too often costs writing; too rarely, work. With $C$ seconds to write, $M$ seconds between failures and $T$
# between checkpoints, the lost share is about $C/T + T/(2M)$, plus a restart for each failure. Young (1974) found the
# minimum: $T = \sqrt{2\,C M}$. A simulation, in which failures come by chance, checks it:

# %%
WRITE, BETWEEN, RESTART = 30.0, 6 * 3600.0, 300.0  # seconds: four failures a day
young = young_interval(WRITE, BETWEEN)
found = {
    factor: simulate_lost_share(factor * young, WRITE, BETWEEN, RESTART)
    for factor in (0.1, 0.25, 0.5, 1, 2, 4, 10)
}
for factor, share in found.items():
    print(
        f"every {factor * young / 60:6.1f} minutes ({factor:4} times Young's): {share:5.1%} lost"
    )
best = min(found, key=found.get)
formula = lost_share(young, WRITE, BETWEEN, RESTART)
print(f"the formula at Young's: {formula:.1%}")
assert best == 1 and abs(found[1] - formula) < 0.01
assert 0.005 < max(found[0.5], found[2]) - found[1] < 0.015

# %% tags=["hide-input"]
_ = ledger.add(
    "save every √(2·C·M) seconds",
    "Young, 1974",
    best == 1,
    f"simulated: of 7 intervals from 0.1 to 10 times Young's, least is lost at {best:g} ({found[best]:.1%})",
    model="any model: an identity or a count",
    seeds=1,
)

# %% [markdown]
# The minimum is flat: twice or half Young's interval costs about one percentage point more.
#
# **Predict first:** saving in the background makes a save cost 1 second in place of 30. What happens to the interval?

# %%
explorer = interval_explorer()
explorer

# %%
before = explorer.best, explorer.lost
explorer.write.value = 1  # what you do with the slider, done by a cell
print(f"interval, minutes: {before[0]:.0f} -> {explorer.best:.0f}")
print(f"time lost: {before[1]:.1%} -> {explorer.lost:.1%}")
explorer.write.value = 30
assert before[0] > 5 * young_interval(1, BETWEEN) / 60

# %% [markdown]
# Cheaper saves help twice: less time goes into writing, and less work is lost. More than half of what remains is
# restarts. A save in the background is complete only later; a failure before that costs one interval more.

# %% [markdown]
# ## What transfers
#
# - **Measured here:** formats, resuming, faults and equality, on two CPU ranks and pocket-base (1.0 M parameters,
#   vocabulary 1,024, a quarter of the parameters in embeddings and head). Files, names and protocols are the same at
#   any size.
# - **Not measured here:** GPUs, shared file systems, hundreds of ranks. Bitwise equality is CPU evidence.
# - **From the literature:** Llama 3's training on 16,384 GPUs had 419 unexpected interruptions in 54 days, one in three
#   hours (Llama team 2024).

# %% [markdown]
# ## Numbers to take away
#
# - A checkpoint with AdamW's states in float32 has 12 bytes per trained parameter: 96 GB for 8B, half a GB for its
#   LoRA.
# - Young's interval is $\sqrt{2\,C M}$: 19 minutes for 30 s and four failures a day.
# - Four times as many failures: half the interval.

# %%
assert round(young / 60) == 19 and round(12 * 8.03) == 96

# %% [markdown]
# ## Recap
#
# - `get_state_dict`, `dcp.save`; `dcp.load` in place, `set_state_dict`: any number of ranks to any other.
# - A resume needs weights, moments, schedule, data position and random states; test it against a run without a stop.
# - A checkpoint gets its name when it is complete.
# - kill -9 costs a restart and the steps since the last checkpoint; SIGTERM costs no step, if the save ends in time.
# - Save every $\sqrt{2\,C M}$ seconds.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. What does a run's state hold besides weights and moments?
# 2. What does `dcp.load` need from you before it reads anything?
# 3. Why does `async_save` get a process group of its own?
# 4. When is a resumed run bitwise identical, and what does CUDA not promise?
# 5. What happens to the best interval when failures become four times as frequent?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: step count and schedule, the position in the data, random states.
# - 2: a state dict of the tensors to fill, which says names and shapes; it fills them in place.
# - 3: its collectives run beside those of training, and would mix with them.
# - 4: on the same processes, where every sum has the same order; atomics and kernel choices on CUDA change the order.
# - 5: it is halved, as it goes with the square root of the time between failures.
#
# </details>

# %% [markdown]
# ## Sources
#
# - PyTorch, [distributed checkpoint](https://docs.pytorch.org/docs/stable/distributed.checkpoint.html),
#   [torchrun](https://docs.pytorch.org/docs/stable/elastic/run.html) and
#   [reproducibility](https://docs.pytorch.org/docs/stable/notes/randomness.html).
# - torchdata, [StatefulDataLoader](https://docs.pytorch.org/data/beta/stateful_dataloader_tutorial.html).
# - Young 1974, [A first order approximation to the optimum checkpoint interval](https://doi.org/10.1145/361147.361115).
# - Daly, [A higher order estimate of the optimum checkpoint interval for restart dumps](https://doi.org/10.1016/j.future.2004.11.016),
#   2006: better where writing takes long compared with the time between failures.
# - Llama team, [The Llama 3 Herd of Models](https://arxiv.org/abs/2407.21783), 2024.
#
# ## Next
#
# [16_fsdp_fine_tune](16_fsdp_fine_tune.ipynb): the whole program on several ranks.
