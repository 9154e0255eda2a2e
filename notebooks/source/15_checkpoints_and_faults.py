# %% [markdown]
# # 15 · Checkpoints and faults: nothing is lost
#
# Long runs are interrupted: a process dies, a machine is withdrawn, a disk fills up. Here a rank is
# killed in the middle of a step, and the run ends with the very numbers of one that nobody disturbed.
#
# - **Prerequisites:** [14_delayed_init_and_tensor_parallel](14_delayed_init_and_tensor_parallel.ipynb).
# - **Hardware:** any processor with two cores; a GPU is not used here. On Windows, use WSL 2.
# - **Time:** about 35 minutes with the exercises; its cells run in about a minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **read** what lies in a sharded checkpoint,
# - **resume** on another number of ranks, and say by how much losses may differ,
# - **tell** a whole checkpoint from a torn one,
# - **survive** `kill -9`, and **leave** in order on SIGTERM,
# - **choose** how often to save.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import json
import math
import os
import random
import shutil
import signal
import tempfile
import time
import warnings
from pathlib import Path

from ftcourse.runs import start

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the ranks of this notebook are the processor's
os.chdir(tempfile.mkdtemp())  # what this notebook writes lies there

# %%
RANKS = 2  # processes
STEPS = 10  # optimizer steps of a run
SAVE_EVERY = 3  # steps between two checkpoints
KILL_AT = 8  # the step in which rank 1 dies
ABOUT = {"model": "pocket-base", "optimizer": "adamw"}  # what a checkpoint belongs to

# %% [markdown]
# Processes take seconds to start, so the program that two ranks run comes first. `Checkpoints` finds the latest
# checkpoint, loads, saves, and at the end waits; the `{}` is room for more, such as a schedule. `PreemptionHandler`
# is for section 6; `keep=9` keeps every checkpoint for our experiments.

# %%
# %%writefile train.py
import sys
from pathlib import Path

import torch
from step import note, one_step, start

from ftkit import load_base
from ftkit.distributed.checkpoint import Checkpoints
from ftkit.distributed.fsdp import apply_fsdp
from ftkit.distributed.preemption import PreemptionHandler

folder, steps, save_every, kill_at = Path(sys.argv[1]), *map(int, sys.argv[2:])
folder.mkdir(exist_ok=True)


def main(context):
    model = load_base()[0]
    if context.is_distributed:
        apply_fsdp(model, context.mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    about = {"model": "pocket-base", "optimizer": "adamw"}
    checkpoints = Checkpoints(folder / "checkpoints", about, context, keep=9)
    first = checkpoints.load(model, optimizer, {})["step"] if checkpoints.latest() else 0
    with PreemptionHandler() as preemption:
        for step in range(first + 1, steps + 1):
            loss = one_step(folder, model, optimizer, step, context, kill_at)
            leave = preemption.requested(context)
            note(folder, context, step=step, loss=loss, left=leave)
            if step % save_every == 0 or step == steps or leave:
                checkpoints.save(step, model, optimizer, {})
            if leave:
                break
        checkpoints.finish()


start(main)

# %% [markdown]
# And its step, cut in two by the fault that comes later: rank 1 may kill itself between gradient and update.

# %%
# %%writefile step.py
import json
import os
import signal
import time

import torch

from ftkit.distributed import launch
from ftkit.distributed.launch import run_forked

ATTEMPT = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))  # torchrun's count of restarts


def one_step(folder, model, optimizer, step, context, kill_at):
    ids = torch.randint(0, 1024, (4, 16), generator=torch.Generator().manual_seed(step))
    mine = ids[context.rank :: context.world_size]
    loss = model(input_ids=mine, labels=mine).loss
    loss.backward()
    if step == kill_at and context.rank == 1 and ATTEMPT == 0:
        time.sleep(2)  # a larger model's steps last: the checkpoint before this one is whole
        note(folder, context, killed=step)
        os.kill(os.getpid(), signal.SIGKILL)
    optimizer.step()
    optimizer.zero_grad()
    return context.sum(loss.item()) / context.world_size


def note(folder, context, **event):
    event |= {"rank": context.rank, "attempt": ATTEMPT, "time": time.time()}
    with (folder / f"events-{context.rank}.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")


def start(main):
    if "RANK" in os.environ:  # torchrun has started this rank
        launch.run_distributed(main)
    else:
        run_forked(main, ranks=2)


# %%
def events(name, rank=0):
    return [
        json.loads(line)
        for line in Path(name, f"events-{rank}.jsonl").read_text().splitlines()
    ]


def losses(name):
    """The last loss of each step."""
    return {event["step"]: event["loss"] for event in events(name) if "loss" in event}


# %% [markdown]
# Two runs of it begin now and go on while you read: one that nobody disturbs, whose ranks are forks as in notebook 14,
# and one under torchrun, in which rank 1 kills itself in step 8. Sections 1 and 6 open what they leave.
# They go on when you interrupt a cell, and end with the notebook.

# %%
often = (STEPS, SAVE_EVERY)
undisturbed_run = start("train.py", "undisturbed", *often, 0, ranks=None, folder="undisturbed")
killed_run = start(
    "train.py", "killed", *often, KILL_AT, ranks=RANKS, folder="killed", max_restarts=1
)

# %%
import ipywidgets
import torch
import transformers
from ftcourse.claims import Ledger
from ftcourse.exercises.checkpoints_and_faults import check_best_interval, check_newest_whole
from ftcourse.plots import OKABE_ITO, figure_svg, new_axes, use_course_style
from safetensors.torch import load_file

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
print(f"torch {torch.__version__}, device: cpu, {os.cpu_count()} cores")

# %% [markdown]
# ## 1 · What a sharded checkpoint is made of
#
# To go on exactly, a run needs its weights, the optimizer's state (two moments and a step count) and its place in
# the data (here: the step, which seeds the batch); with a schedule or dropout, those states too. In torch's
# **distributed checkpoint** (DCP) every rank writes what it holds.

# %%
undisturbed_run.result()  # waits for the run to end
undisturbed = losses("undisturbed")
checkpoint = Path("undisturbed/checkpoints/step-000003")
print(sorted(path.name for path in checkpoint.iterdir()))

# %% [markdown]
# **Predict first:** two ranks share pocket-base under AdamW. How does each `.distcp` file compare in size with the
# model's own weights?

# %%
about = json.loads((checkpoint / "about.json").read_text())
weights = sum(4 * math.prod(shape) for shape in about["parameters"].values())  # bytes, float32
shares = [size / weights for name, size in about["files"].items() if name.endswith("distcp")]
print(
    f"written by {about['ranks']} ranks; each file, in sizes of the model: {shares[0]:.1f}, {shares[1]:.1f}"
)
assert all(1.4 < share < 1.7 for share in shares)

# %% [markdown]
# Notice: half of three times the weights (parameters and two moments) is 1.5; the rest is a header for every slice,
# which shows only in so small a model. `.metadata` says which slice lies where; `about.json` is ours: the run's
# settings, its parameters' shapes, the size of every file.

# %% [markdown]
# ## 2 · Save while training goes on
#
# `save` copies the state into memory and returns; a thread writes it while the next steps run. **Predict:** the
# weights are set to zero while the file is still being written. What will it hold?

# %%
alone = DistributedContext(0, 1, pick_device(), None)  # this process, without torchrun
model = load_base()[0]
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
checkpoints = Checkpoints(Path("alone"), ABOUT, alone)
original = {name: tensor.clone() for name, tensor in model.state_dict().items()}


def save_and_zero(step):
    """Save, then set all weights to zero; whether the checkpoint was not whole yet when they were."""
    model.load_state_dict(original)
    checkpoints.save(step, model, optimizer, {})
    torch._foreach_zero_([p.data for p in model.parameters()])
    return not Path("alone", f"step-{step:06d}").exists()


start = time.perf_counter()
# Once is enough; on a busy machine the writer may be done before this process goes on.
unfinished = any(save_and_zero(step) for step in (1, 2, 3))
returned = time.perf_counter() - start
checkpoints.finish()
written = time.perf_counter() - start

# %% tags=["nbval-ignore-output"]
print(
    f"`save` returned after {returned:.3f} s; the checkpoint was whole after {written:.3f} s"
)

# %%
load_weights(checkpoints.latest(), model)
kept = all(torch.equal(tensor, original[name]) for name, tensor in model.state_dict().items())
print(f"the weights were zero before the checkpoint was whole: {unfinished}")
print(f"it holds them as they were at `save`: {kept}")
assert kept and unfinished

# %%
measured = "weights set to zero while the file was written; read back, all equal to the bit"
ledger.add(
    "training may go on while a checkpoint is written",
    "PyTorch, async_save",
    kept and unfinished,
    measured,
)

# %% [markdown]
# Notice: the price is a second copy of the state in the processor's memory. A failed write, such as a full disk, is
# raised by the next `save` or by `finish`, on every rank.

# %% [markdown]
# ## 3 · Resume on another number of ranks
#
# The run of section 1 went to step 10. Now take only its checkpoint of step 3, and go on from there with **one**
# rank. **Predict:** will its losses equal those of the two ranks to the bit?

# %%
from step import one_step

shutil.copytree(checkpoint, "one/checkpoints/step-000003", dirs_exist_ok=True)
model = load_base()[0]
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
checkpoints = Checkpoints(Path("one/checkpoints"), ABOUT, alone)
first = checkpoints.load(model, optimizer, {})["step"]
resumed = {}
for step in range(first + 1, STEPS + 1):
    resumed[step] = one_step(Path("one"), model, optimizer, step, alone, kill_at=0)

# %%
apart = max(abs(resumed[step] - undisturbed[step]) for step in resumed)
print(f"steps done after the resume: {sorted(resumed)}")
print(f"losses on one rank within 0.0001 of those on two: {apart < 1e-4}")
assert sorted(resumed) == list(range(4, STEPS + 1)) and apart < 1e-4

# %% tags=["nbval-ignore-output"]
to_the_bit = sum(resumed[step] == undisturbed[step] for step in resumed)
print(f"equal to the bit: {to_the_bit} of {len(resumed)}")

# %% [markdown]
# Notice: nothing was converted: each rank reads the slices that it needs now. Sums in another order differ in their
# last digits, which AdamW may enlarge; hence 0.0001. On the **same** number of ranks there is no such excuse, and
# section 6 asks for equality to the bit.

# %%
ledger.add(
    "a checkpoint resumes on another number of ranks",
    "PyTorch, distributed checkpoint",
    apart < 1e-4,
    f"written by 2 ranks, read by 1: {len(resumed)} losses {'within' if apart < 1e-4 else 'beyond'} 0.0001",
)

# %% [markdown]
# ## 4 · A torn checkpoint is passed over
#
# A crash during a write leaves half of a file. So a checkpoint is written as `step-N.incomplete`; when every byte of
# every rank is on disk, `about.json` records the sizes and the folder gets its name. **Predict** what
# `latest_checkpoint` chooses below.

# %%
shutil.copytree("undisturbed/checkpoints", "torn", dirs_exist_ok=True)
shutil.copytree(
    "torn/step-000010", "torn/step-000011.incomplete", dirs_exist_ok=True
)  # a crash just before the rename
damaged = Path("torn/step-000010/__1_0.distcp")
os.truncate(damaged, damaged.stat().st_size // 2)  # a disk that lost the end of a file
print(sorted(path.name for path in Path("torn").iterdir()))

# %%
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    chosen = latest_checkpoint(Path("torn"))
print(
    f"chosen: {chosen.name}; a warning names the damaged file: {'__1_0' in str(said[0].message)}"
)
assert chosen.name == "step-000009" and "__1_0.distcp" in str(said[0].message)

# %% [markdown]
# Notice: on a local disk a rename happens or does not, so the final name can be trusted; a file "done" written before
# the data could lie. Sizes find what is short or gone; wrong bytes of the right length show only while reading.

# %% [markdown]
# ### Exercise 1 · which one is whole
#
# Difficulty ●●○, 6 minutes. A folder is described by the file sizes noted when it was written (`None`: never
# finished) and those found now. Which checkpoint may be loaded? Expected: the newest whole one's name, or None.
# A folder still called `.incomplete` is never whole, whatever its sizes.


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
# Three conditions: the name is final, every file is there, every size is right. Step numbers have six digits, so
# names sort as their steps do.
#
# </details>

# %% [markdown]
# ## 5 · Break it, then fix it: another run's checkpoint
#
# Shapes that fit do not make it the same run. Torch only looks for the names that the new run asks for: child-tuning's
# moments would load into AdamW without a word, and the saved `lr` and `weight_decay` replace yours. So `Checkpoints`
# compares `about` first. Below, only that differs.

# %%
fresh_model = load_base()[0]
fresh = fresh_model, torch.optim.AdamW(fresh_model.parameters(), weight_decay=0.5)

# %% tags=["raises-exception"]
other = {**ABOUT, "optimizer": "child-tuning task-free"}
Checkpoints(Path("undisturbed/checkpoints"), other, alone).load(*fresh, {})

# %%
untouched = all(torch.equal(t, original[n]) for n, t in fresh_model.state_dict().items())
saved = Checkpoints(Path("undisturbed/checkpoints"), ABOUT, alone).load(*fresh, {})
decay = fresh[1].param_groups[0]["weight_decay"]
print(f"the refusal changed nothing: {untouched}")
print(
    f"with its own settings it loads, at step {saved['step']}; weight_decay 0.5 became {decay}"
)
assert untouched and saved["step"] == STEPS and decay == 0.01

# %% [markdown]
# Notice: it was refused before anything was loaded, by what `about.json` says: the run's settings, and every
# parameter's name and whole shape.

# %% [markdown]
# ## 6 · Kill -9, in the middle of a step
#
# SIGKILL cannot be caught: rank 1 is gone, with gradients computed and weights not yet updated. `torchrun
# --max-restarts` notices, ends the other ranks and starts all again. That run began at the top of this notebook.
# **Predict:** which steps were done twice?

# %%
killed_run.result()
survived = losses("killed")
attempts = [
    [e["step"] for e in events("killed") if e["attempt"] == n and "step" in e] for n in (0, 1)
]
again = KILL_AT - attempts[1][0]  # steps that were done already
print(
    f"killed in step {KILL_AT}; fewer than {2 * SAVE_EVERY} steps done again: {again < 2 * SAVE_EVERY}"
)
same = [survived[step] == undisturbed[step] for step in range(1, STEPS + 1)]
print(f"losses equal to the bit: {sum(same)} of {len(same)}")
assert all(same) and attempts[1][-1] == STEPS and again < 2 * SAVE_EVERY


# %%
def weights_of(folder):
    model = load_base()[0]
    load_weights(latest_checkpoint(Path(folder, "checkpoints")), model)
    return model.state_dict()


pair = weights_of("undisturbed"), weights_of("killed")
equal = all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])
print(f"weights after step {STEPS} equal to the bit: {equal}")
assert equal
resumed_itself = 1 < attempts[1][0] <= KILL_AT and attempts[1][-1] == STEPS
held = equal and all(same) and resumed_itself
print(f"the second attempt went on from a checkpoint: {resumed_itself}")
assert held

# %%
measured = (
    f"2 ranks, one killed: the second attempt went on from a checkpoint: {resumed_itself}; "
    f"losses and weights equal to the bit: {equal and all(same)}"
)
ledger.add("after kill -9 a run restarts and resumes by itself", "torchrun", held, measured)

# %% tags=["nbval-ignore-output"]
(killed,) = [event["time"] for event in events("killed", rank=1) if "killed" in event]
restarted = min(event["time"] for event in events("killed") if event["attempt"] == 1)
print(f"done twice: steps {list(range(attempts[1][0], KILL_AT))}; begun twice: step {KILL_AT}")
print(f"from the kill to the end of the next step: {restarted - killed:.1f} s")


# %%
def draw_attempts():
    """A row for each attempt with a mark for each step that it did, and a cross where a rank was killed."""
    _, ax = new_axes(7.5, 2.1)
    for row, steps in enumerate(attempts):
        ax.plot(
            steps, [row] * len(steps), color=OKABE_ITO[2 * row], marker="os"[row], markersize=7
        )
    ax.plot(KILL_AT, 0, "x", color=OKABE_ITO[5], markersize=13, mew=3)
    above = {"xytext": (0, 11), "textcoords": "offset points", "ha": "center"}
    ax.annotate("SIGKILL", (KILL_AT, 0), **above)
    for step in range(SAVE_EVERY, STEPS, SAVE_EVERY):
        ax.axvline(step, color="0.6", linestyle=":", zorder=0)
    ax.set(yticks=(0, 1), yticklabels=["first attempt", "second attempt"], ylim=(1.5, -0.7))
    ax.set(xticks=range(1, STEPS + 1), xlabel="step; dotted: a checkpoint is saved after it")
    return ax


# %% tags=["nbval-ignore-output"]
ax = draw_attempts()

# %% [markdown]
# Notice: a restart costs seconds: new processes, their imports, ranks finding each other (the *rendezvous*), the
# loading. Of the work only the steps since the last whole checkpoint are done again. A checkpoint that is still being
# written is lost.

# %% [markdown]
# **SIGTERM** is the polite kind: preemptible machines, Kubernetes and Slurm send it before they end a job, and
# torchrun passes it on to its ranks. `PreemptionHandler` only sets a flag; after the step all ranks agree on it, save,
# and leave. Here this process goes on with the run of section 3, and sends itself the signal.

# %%
with PreemptionHandler() as preemption:
    for step in range(STEPS + 1, STEPS + 10):
        one_step(Path("one"), model, optimizer, step, alone, kill_at=0)
        if step == STEPS + 3:
            os.kill(os.getpid(), signal.SIGTERM)
        if preemption.requested(alone):
            checkpoints.save(step, model, optimizer, {})
            break
checkpoints.finish()

# %%
saved = latest_checkpoint(Path("one/checkpoints"))
clean = step == STEPS + 3 and saved.name == f"step-{step:06d}"
print(f"left after step {step}, and that step is saved: {clean}")
assert clean

# %% [markdown]
# Notice: torchrun kills after 30 seconds (`--shutdown-timeout`) what has not left, and whoever sent the signal may
# wait less. A step and a checkpoint must fit into that. A run that left is not started again by torchrun: give the
# same command once more.

# %% [markdown]
# ## 7 · From shards to a folder
#
# A checkpoint is for going on; others want a folder that `from_pretrained` opens. One call in one process, with no
# ranks and no GPU, makes it.

# %%
last = latest_checkpoint(Path("killed/checkpoints"))
shutil.rmtree("model", ignore_errors=True)
folder = to_hugging_face(last, resolve_model(), Path("model"))
print(f"{last.name} -> {sorted(path.name for path in folder.iterdir())}")
opened = load_file(folder / "model.safetensors")
same_bits = opened.keys() == pair[1].keys() and all(
    torch.equal(tensor, pair[1][name]) for name, tensor in opened.items()
)
print(f"{len(opened)} tensors equal to the shards' to the bit: {same_bits}")
assert same_bits and load_base(folder)[0].config.model_type == "llama"

# %% [markdown]
# Notice: the shards of two ranks became one file; the optimizer's state stays behind, so a run cannot go on from it.

# %% [markdown]
# ## 8 · How often to save
#
# Saving too often costs writing; too rarely, work. With `C` seconds to write, `M` seconds between failures and `T`
# between checkpoints, the lost share is about `C/T + T/(2M)`, plus a restart for each failure. Young (1974) found
# the least of it: `T = √(2·C·M)`.


# %%
def lost_share(interval, write, between_failures, restart):
    """The share of time that is lost to writing, to work done again and to restarts (all in seconds)."""
    return write / interval + (interval / 2 + restart) / between_failures


def simulated(interval, write, between_failures, restart, segments=20_000, seed=0):
    """The same by chance: a failure within an interval or its write undoes it."""
    rng, spent = random.Random(seed), 0.0
    for _ in range(segments):
        while (failure := rng.expovariate(1 / between_failures)) < interval + write:
            spent += failure + restart
        spent += interval + write
    return 1 - segments * interval / spent


# %%
WRITE, BETWEEN, RESTART = 30.0, 6 * 3600.0, 300.0  # seconds: four failures a day
young = math.sqrt(2 * WRITE * BETWEEN)
found = {
    factor: simulated(factor * young, WRITE, BETWEEN, RESTART)
    for factor in (0.1, 0.25, 0.5, 1, 2, 4, 10)
}

# %%
for factor, share in found.items():
    print(
        f"{factor * young / 60:6.1f} minutes between checkpoints: {share:.1%} of the time is lost"
    )
best = min(found, key=found.get)
close = abs(found[1] - lost_share(young, WRITE, BETWEEN, RESTART)) < 0.01
print(
    f"least at Young's {young / 60:.0f} minutes: {best == 1}; there the formula is within 1 point: {close}"
)
rough = lost_share(10 * young, WRITE, BETWEEN, RESTART)
assert best == 1 and close and 0.27 < rough < 0.29 and found[10] < 0.27
measured = f"simulated, 1 seed: of 7 intervals from 0.1 to 10 times Young's, least is lost at {best:g}"
ledger.add("save every √(2·C·M) seconds", "Young, 1974", best == 1, measured)

# %% [markdown]
# Notice: far from the least the formula is rough: at 10 times Young's interval it says 28 %.


# %%
def draw_lost(write, between_failures, restart):
    """The curve of lost time; also Young's interval in seconds, and what is lost there."""
    best = math.sqrt(2 * write * between_failures)
    lost = lost_share(best, write, between_failures, restart)
    minutes = [2 ** (k / 8) for k in range(80)]
    shares = [lost_share(60 * m, write, between_failures, restart) for m in minutes]
    figure, ax = new_axes(6.5, 2.8)
    ax.plot(minutes, [100 * share for share in shares], color=OKABE_ITO[0])
    ax.plot(best / 60, 100 * lost, "o", color=OKABE_ITO[5], markersize=9)
    above = {"xytext": (0, 12), "textcoords": "offset points", "ha": "center"}
    ax.annotate(f"every {best / 60:.0f} min: {lost:.1%}", (best / 60, 100 * lost), **above)
    ax.set(xscale="log", ylim=(0, 60), xlabel="minutes between checkpoints")
    ax.set_xticks([1, 3, 10, 30, 100, 300], ["1", "3", "10", "30", "100", "300"])
    ax.minorticks_off()
    ax.set_ylabel("time lost, %")
    return figure, best, lost


# %%
def interval_explorer():
    """Sliders over that curve; `best` is Young's interval in minutes."""
    write = ipywidgets.IntSlider(30, 1, 300, description="write, s")
    failures = ipywidgets.IntSlider(4, 1, 48, description="failures/day")
    restart = ipywidgets.IntSlider(5, 0, 60, description="restart, min")
    picture = ipywidgets.HTML()
    box = ipywidgets.VBox([write, failures, restart, picture])

    def redraw(_change=None):
        drawn = draw_lost(write.value, 86_400 / failures.value, 60 * restart.value)
        box.best, box.lost = drawn[1] / 60, drawn[2]
        picture.value = figure_svg(
            drawn[0], title=f"time lost, least at {box.best:.0f} minutes"
        )

    for control in (write, failures, restart):
        control.observe(redraw, names="value")
    redraw()
    return box


# %% tags=["nbval-ignore-output"]
explorer = interval_explorer()
explorer

# %% [markdown]
# **Predict:** saving in the background makes a save cost 1 second in place of 30. What happens to the interval?

# %%
before = explorer.best, explorer.lost
explorer.children[0].value = 1  # what you do with the slider, done by a cell
print(
    f"interval, minutes: {before[0]:.0f} -> {explorer.best:.0f}; lost: {before[1]:.1%} -> {explorer.lost:.1%}"
)
assert explorer.best < before[0] / 5 and explorer.lost < before[1]
assert 0.5 < RESTART / BETWEEN / explorer.lost < 0.7

# %% [markdown]
# Notice: cheap saves pay twice: less time goes into writing, and less work is lost. More than half of what remains is
# restarts. (A save in the background is whole only later; a failure before that costs one interval more.)

# %% [markdown]
# ### Exercise 2 · your interval
#
# Difficulty ●○○, 4 minutes. Seconds to write and failures a day are given. How many seconds should lie between two
# checkpoints? Expected: 1,610 seconds for 30 seconds and two failures a day.


# %% tags=["exercise"]
def best_interval(write_seconds: float, failures_a_day: float) -> float:
    """Young's interval, in seconds."""
    ### BEGIN SOLUTION
    return math.sqrt(2 * write_seconds * 86_400 / failures_a_day)
    ### END SOLUTION


check_best_interval(best_interval)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `M` is the time between two failures: 86,400 seconds, divided by the failures of a day.
#
# </details>

# %% [markdown]
# ## Recap
#
# - A sharded checkpoint is what each rank holds, and a list of what lies where.
# - It is written while training goes on, and gets its name when it is whole.
# - Any number of ranks can go on from it; the same number goes on to the bit.
# - kill -9 costs a restart and the steps since the last checkpoint; SIGTERM costs no step.
# - Save every √(2·C·M) seconds.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. Which parts of a run's state does a checkpoint hold besides its place in the data?
# 2. Why does the folder get its final name only at the end?
# 3. Why are losses equal to the bit after a resume on two ranks, and not on one?
# 4. Which steps are done again after kill -9?
# 5. What happens to the best interval when failures become four times as frequent?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: the parameters, and the optimizer's two moments and step count.
# - 2: a rename happens or does not, so a folder with its name is whole; half of a write never has it.
# - 3: with the same ranks every sum has the same order; with others its last digits differ.
# - 4: those since the last checkpoint that was whole when the rank died.
# - 5: it is halved, as it goes with the square root of the time between failures.
#
# </details>

# %% [markdown]
# ## Sources
#
# - PyTorch, [distributed checkpoint](https://docs.pytorch.org/docs/stable/distributed.checkpoint.html) and
#   [torchrun](https://docs.pytorch.org/docs/stable/elastic/run.html).
# - Young, [A first order approximation to the optimum checkpoint interval](https://doi.org/10.1145/361147.361115),
#   1974.
# - Daly, [A higher order estimate of the optimum checkpoint interval for restart dumps](https://doi.org/10.1016/j.future.2004.11.016),
#   2006: better where writing takes long compared with the time between failures.
#
# ## Next
#
# [16_fsdp_fine_tune](16_fsdp_fine_tune.ipynb): the whole program on several ranks.
