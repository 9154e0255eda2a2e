# %% [markdown]
# # 00 · Start here: the map of the course
#
# Fine-tuning, from nine numbers that you mask by hand to a model trained in shards on several processes. It
# all runs on a laptop, without a download; the same code runs on many GPUs.
#
# - **Prerequisites:** Python, and a rough idea of what a neural network and a gradient are.
# - **Hardware:** any processor; two cores and 4 GiB of free memory make it comfortable.
# - **Time:** about 10 minutes; its cells run in under 15 seconds on two cores.

# %% [markdown]
# ## You will be able to
#
# - **check** whether your machine is enough, and mend what is not,
# - **run** a notebook of this course, exercises included,
# - **choose** where to begin,
# - **bring** your own model and data.

# %% [markdown]
# ## Who this is for
#
# You can program and want to know what happens inside a fine-tune: which weights move, why a run fails, what
# memory it takes, how it spreads over devices. You need no GPU. What sources say about fine-tuning is tested
# here, and what does not hold is shown not holding.

# %% [markdown]
# ## Two commands
#
# In a terminal, in the folder of the course:
#
# | command | what it does |
# | --- | --- |
# | `make lab` | sets up `.venv` and opens this notebook in JupyterLab |
# | `make test` | runs every notebook and every test, and says which numbers still come out |

# %% [markdown]
# ## How a notebook works
#
# - **Ctrl-Enter** runs a cell, **Shift-Enter** runs it and goes on to the next; run them from top to bottom.
# - **Predict** first where you are asked to: guess, then run. Being wrong is how one notices.
# - One cell in each lesson **breaks on purpose**, and the next mends it. Any other error is worth a look.
# - An **exercise** has a `...` to replace and a checker in its last line. Hint and solution are folded below.
#
# Change whatever you like: *Kernel > Restart Kernel and Run All Cells* brings everything back.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import torch
from ftcourse.contents import claim_table, notebook_table, plot_contents, read_notebooks
from ftcourse.exercises.start_here import check_one_step
from ftcourse.machine import FINE, check_machine
from ftcourse.plots import use_course_style

from ftkit.conversations import find_chat
from ftkit.models import resolve_model

use_course_style()

# %% [markdown]
# ## 1 · Is this machine enough?
#
# Run this cell: the answers below it are another machine's until you do. *Fine* needs nothing; anything else
# comes with what to do.

# %% tags=["nbval-ignore-output"]
findings = check_machine()
findings

# %%
print(
    "nothing is missing"
    if findings.complete
    else "the course cannot run yet: see what to do above"
)
assert findings.complete
assert all(finding.remedy for finding in findings if finding.severity != FINE)

# %% [markdown]
# Notice: *too little* slows you down or limits the larger notebooks; only *missing* stops you. In a terminal,
# `.venv/bin/python -m ftcourse.machine` says the same.

# %% [markdown]
# ## 2 · Does it learn?
#
# Fine-tuning is many of these steps: predict, measure the loss, move the weights against the gradient.
# **Predict:** with a good step, will the loss after it be 0, smaller, or the same?

# %%
weight = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
loss = (weight**2).sum()
loss.backward()
with torch.no_grad():
    moved = weight - 0.1 * weight.grad
after = (moved**2).sum()
print(f"loss {loss.item():.2f} before the step, {after.item():.2f} after it")
assert 0 < after < loss

# %% [markdown]
# Notice: smaller, and not 0: a step follows the slope at one place only. Longer steps are not always better:
# with 1.0 instead of 0.1 the loss stays the same. Try it, then put 0.1 back.

# %% [markdown]
# ## 3 · An exercise, to see how they work
#
# Difficulty ●○○, 1 minute. Return the weight after one step: the weight less `lr` times its gradient. A right
# answer turns the line below the cell green. Try a wrong one too: the checker says what it sees.


# %% tags=["exercise"]
def one_step(weight: torch.Tensor, gradient: torch.Tensor, lr: float) -> torch.Tensor:
    """Return a new tensor: the weight after one step of gradient descent."""
    ### BEGIN SOLUTION
    return weight - lr * gradient
    ### END SOLUTION


check_one_step(one_step)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Section 2 takes this step, with `lr = 0.1` and `weight.grad` for the gradient.
#
# </details>

# %% [markdown]
# ## 4 · The walk
#
# Four parts. A filled stop is ready, a dashed ring is planned. The parts build on each other, and each notebook
# names the ones it needs.

# %%
walk = read_notebooks()
ax = plot_contents(walk)

# %%
print(f"{sum(row['ready'] for row in walk)} of {len(walk)} notebooks are ready")
notebook_table()

# %% [markdown]
# Notice: times are for two cores, without a GPU. No notebook needs one.

# %% [markdown]
# ## 5 · Your own model and data
#
# The course brings **pocket-base**, a tiny language model that has read a small almanac, and chats about the
# almanac. To use others, set two environment variables before JupyterLab starts:
#
# ```bash
# FTKIT_MODEL=$PWD/path/to/model FTKIT_DATA=$PWD/chats make lab
# ```

# %%
print(f"model: {resolve_model().rpartition('/')[2]}")
for split, path in find_chat().items():
    with path.open(encoding="utf-8") as lines:
        print(f"data, {split}: {sum(1 for _ in lines):,} conversations")

# %% [markdown]
# Notice: this is what `ftkit.load_base()` and `ftkit.load_chat()` will load.
#
# - `FTKIT_MODEL` is a folder with `config.json` and safetensors, or a Hugging Face name, which is downloaded.
# - `FTKIT_DATA` is a file of JSON lines, a conversation each:
#   `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`
#
# Notebooks 08 and 16 want a folder with `train.jsonl`, `test.jsonl` and `heldout_domains.jsonl`, and their
# checks are about pocket-base: with another model, expect some of them to fail.

# %% [markdown]
# ## 6 · If you are stuck
#
# - **An error out of nowhere:** *Kernel > Restart Kernel and Run All Cells*. Cells run out of order are the
#   usual cause.
# - **An exercise:** open the hint, then the solution; understanding it counts.
# - **A cell that does not end:** *Kernel > Interrupt Kernel*, then look at memory and cores in section 1.
# - **A picture is missing:** run its cell. JupyterLab shows no stored pictures in a notebook it does not trust.
# - **Your edits got in the way:** *File > Duplicate* first, next time; `git checkout notebooks` undoes them all.
# - **Is it you or the course?** `make test` tells: it runs everything as it was shipped.

# %% [markdown]
# ## 7 · What holds
#
# Each notebook tests what its sources claim. This is the ledger of all of them: verdicts are computed by the
# notebooks' cells, none is typed in.

# %%
claim_table()

# %% [markdown]
# Notice: *holds under conditions* names its condition, *outdated* was true once, *not reproduced* is what we
# could not find, and *not tested* wants hardware that nobody has run it on yet. Every row can be run again in its
# notebook.

# %% [markdown]
# ## Next
#
# [01_gradient_masks](01_gradient_masks.ipynb): nine numbers, and the idea behind child-tuning. If you would
# rather begin elsewhere, any notebook in the table of section 4 opens with a click.
