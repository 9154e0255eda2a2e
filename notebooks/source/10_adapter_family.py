# %% [markdown]
# # 10 · The adapter family: what each one trains, and what it is worth
#
# Nine methods by one call, three of them taken apart, and all of them measured side by side on two tasks: how well
# they answer, what they forget, what a step costs, and what has to be stored.
#
# - **Prerequisites:** [09_lora_from_scratch](09_lora_from_scratch.ipynb).
# - **Hardware:** any processor; two cores are enough.
# - **Time:** about 45 minutes with the exercises; its cells run in about one minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **count** what each method trains, before you run it,
# - **write** DoRA's matrix, NEFTune's noise and LoRA+'s two rates by hand,
# - **read** a comparison of methods, and see where it was not fair,
# - **serve** three fine-tunes from one base, mixed in one batch,
# - **compare** methods on your own model and data by one command.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q ftkit trl
    print("Colab: ftkit and trl are installed")

import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from IPython.display import Markdown
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config

from ftkit import load_base
from ftkit.adapters import attach, load_adapter, make_optimizer, save_adapter
from ftkit.almanac import data_dir
from ftkit.almanac_calls import call_splits
from ftkit.almanac_sets import low_resource_chat, topic_task
from ftkit.batches import pad
from ftkit.checks.adapter_family import (
    check_dora_weight,
    check_loraplus_rates,
    check_neftune,
)
from ftkit.claims import Claim, show_claims
from ftkit.conversations import encode
from ftkit.evaluate import exact_match, generate_answers, stop_rate
from ftkit.family_figures import ForgettingExplorer, plot_family
from ftkit.params import count_parameters
from ftkit.plots import OKABE_ITO, new_axes, use_course_style
from ftkit.studies.adapters.rows import BASE, FAMILY
from ftkit.studies.adapters.table import judged, markdown, of_task, summarise
from ftkit.studies.intervals import interval
from ftkit.studies.records import read_records
from ftkit.studies.tasks import Task
from ftkit.studies.training import train_by_step

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
print(f"torch {torch.__version__}, transformers {transformers.__version__}, device: cpu")

# %%
CHAT, CALLS = "chat-200", "calls-200"  # the two tasks: 200 conversations each
ROUNDS = 12  # steps of each method when two are timed against each other
LIVE_SEED = 0  # of the run made here; the stored runs have 0, 1 and 2
SERVED_EPOCHS = 4  # passes over the data for each of three small adapters
RUNS = read_records(data_dir() / "results" / "adapters.jsonl")
claims = []  # what this notebook tested, each with its verdict; the recap prints them

# %% [markdown]
# ## 1 · One call, nine methods
#
# `attach(model, method)` gives back what to train. Behind it is PEFT, except where no adapter is needed: BitFit trains
# the biases that are there. Every method can be counted before it is run.
#
# **Predict first:** LoRA puts `r · (in + out)` numbers beside each matrix. Which methods train fewer?

# %%
METHODS = ["full", "head only", "bitfit", "lora", "dora", "prefix", "llama-adapter"]
total = count_parameters(load_base()[0]).total
counts = {}
for method in METHODS:
    tuned = attach(load_base()[0], method)
    counts[method] = count_parameters(tuned).trainable
    print(f"{method:14} {counts[method]:>9,}  {counts[method] / total:7.2%}")

# %%
model = load_base()[0]
config = model.config
linears = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
layers, D, r, tokens = config.num_hidden_layers, config.hidden_size, 8, 8
by_hand = {
    "lora": sum(r * (m.in_features + m.out_features) for m in linears),
    "dora": sum(r * (m.in_features + m.out_features) + m.out_features for m in linears),
    "prefix": layers * 2 * tokens * D,  # keys and values, in every layer
    "llama-adapter": layers * (tokens * D + 1),  # prompts, and one gate a layer
    "bitfit": sum(m.out_features for m in linears),
}
print({method: f"{n:,}" for method, n in by_hand.items()})
assert all(counts[method] == n for method, n in by_hand.items())

# %% [markdown]
# Notice: the formulas give what PEFT makes, to the last parameter. DoRA adds one number for each output to LoRA's.
# Child-tuning and LoRA+ are missing, for they are not in the model: they are optimizers, `make_optimizer(model,
# method, lr)`.

# %% [markdown]
# ## 2 · DoRA: length and direction apart
#
# LoRA adds `B·A`, and that changes the length and the direction of each output's weights at once. **DoRA** takes them
# apart: `B·A` turns the direction, and a vector of magnitudes `m`, which trains too, sets the length:
# `m · (W + s·B·A) / ‖W + s·B·A‖`, row by row.

# %%
W = model.model.layers[0].mlp.up_proj.weight.detach()  # (out, in)
A = torch.randn(8, W.shape[1], generator=torch.Generator().manual_seed(0)) / 10
B = torch.zeros(W.shape[0], 8)
scaling = 16 / 8  # lora_alpha / r


def dora_matrix(W, A, B, magnitude, scaling):
    direction = W + scaling * B @ A  # (out, in)
    return magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)


magnitude = W.norm(dim=1)  # (out,): the length it has
start = dora_matrix(W, A, B, magnitude, scaling)
print(f"at the start W moves by {(start - W).abs().max():.0e}: rounding")
assert torch.allclose(start, W, rtol=1e-5)

# %% [markdown]
# Now the same numbers in PEFT's layer, after a pretended training of B. Does it compute this matrix?

# %%
peft_model = attach(load_base()[0], "dora")
layer = peft_model.base_model.model.model.layers[0].mlp.up_proj
B = torch.randn(W.shape[0], 8, generator=torch.Generator().manual_seed(1)) / 10
with torch.no_grad():
    layer.lora_A["default"].weight.copy_(A)
    layer.lora_B["default"].weight.copy_(B)
x = torch.randn(5, W.shape[1], generator=torch.Generator().manual_seed(2))
ours = x @ dora_matrix(W, A, B, magnitude, scaling).T + layer.base_layer.bias
theirs = layer(x)
print(f"outputs differ by {(ours - theirs).abs().max() / ours.abs().max():.0e} of the largest")
assert torch.allclose(ours, theirs, atol=1e-5)
assert not torch.allclose(
    theirs, x @ (W + scaling * B @ A).T + layer.base_layer.bias, atol=0.1
)

# %% [markdown]
# Notice: equal to rounding, and far from LoRA's (the last line). For the lengths DoRA needs the whole `W + s·B·A` in
# every forward pass, which LoRA never forms. **Predict first:** how much longer does a step take?

# %%
chat_row = low_resource_chat(16)["train"]
tokenizer = load_base()[1]
rows = [encode(tokenizer, row["messages"], tokenizer.chat_template) for row in chat_row]
batch = pad(rows, tokenizer.pad_token_id)


def step(tuned, optimizer):
    """One step on the batch; returns the processor's seconds."""
    began = time.process_time()
    tuned(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - began


# %% tags=["nbval-ignore-output"]
contenders = {}
for method in ("lora", "dora"):
    tuned = attach(load_base()[0], method).train()
    contenders[method] = (tuned, make_optimizer(tuned, method, 1e-3))
times = {method: [] for method in contenders}
for _ in range(ROUNDS):  # taking turns: both see the same weather
    for method, contender in contenders.items():
        times[method].append(step(*contender))
ratio = statistics.median(times["dora"]) / statistics.median(times["lora"])
print(f"a step of DoRA takes {ratio:.2f} times as long as LoRA's")

# %%
print("DoRA's step is dearer:", ratio > 1.05)


def paired(row, other, measure, task=CHAT):
    """Ratios of a measure, seed by seed, at the best rate of each."""
    pairs = zip(judged(RUNS, task, row), judged(RUNS, task, other), strict=True)
    return [a[measure] / b[measure] for a, b in pairs]


slower = paired("dora", "lora", "step_ms") + paired("dora", "lora", "step_ms", CALLS)
print(f"stored runs: {min(slower):.2f} to {max(slower):.2f} times, {len(slower)} pairs")
claims.append(
    Claim(
        "DoRA is slower than LoRA by a factor of two",
        "a chat fine-tune that compares LoRA, DoRA, LoRA+ and NEFTune",
        min(slower) > 1.8,
        f"{min(slower):.2f} to {max(slower):.2f} times LoRA's step, on a CPU, {len(slower)} pairs of runs",
    )
)

# %% [markdown]
# Notice: dearer, and less than the source found, whose model and GPU were others. The larger the batch, the more the
# work on W, which does not depend on it, is hidden.

# %% [markdown]
# ### Does DoRA move like full fine-tuning?
#
# DoRA's paper says so. It plots, for a matrix at a moment of training, how far the lengths moved against how far the
# directions did. Under full fine-tuning the two went against each other; under LoRA they rose together; and DoRA was
# like full fine-tuning. Here is pocket-base.

# %%
MOVED = read_records(data_dir() / "results" / "dora.jsonl")


def correlation(row, wanted):
    """Over the points of each run that are wanted: mean, least and most over the seeds."""
    found = []
    for run in MOVED:
        if run["row"] == row:
            points = [
                (turn, length) for *where, length, turn in run["points"] if wanted(*where)
            ]
            found.append(statistics.correlation(*zip(*points, strict=True)))
    return statistics.fmean(found), min(found), max(found)


def last(moment, name):
    return moment == 4


def queries(moment, name):
    return name.endswith("q_proj")


figure, axes = new_axes(9, 2.6, columns=3)
for ax, row in zip(axes, ("full", "lora", "dora"), strict=True):
    for mark, colour, seed in zip("osD", OKABE_ITO, range(3), strict=False):
        run = next(run for run in MOVED if (run["row"], run["seed"]) == (row, seed))
        points = [(turn, length) for *where, length, turn in run["points"] if last(*where)]
        ax.plot(*zip(*points, strict=True), mark, markersize=4, alpha=0.7, color=colour)
    ax.set_title(f"{row}: correlation {correlation(row, last)[0]:+.2f}")
    ax.set_xlabel("turn (1 - cosine)")
    ax.set_xlim(0, None)
    ax.set_ylim(0, None)
_ = axes[0].set_ylabel("change of length")

# %%
results = {}
for name, wanted in (("at the end, every matrix", last), ("queries, four moments", queries)):
    results[name] = {row: correlation(row, wanted) for row in ("full", "lora", "dora")}
    shown = "; ".join(
        f"{row} {mean:+.2f} ({low:+.2f} to {high:+.2f})"
        for row, (mean, low, high) in results[name].items()
    )
    print(f"{name}: {shown}")
    results[name]["shown"] = shown
end, paper = results["at the end, every matrix"], results["queries, four moments"]
claims.append(
    Claim(
        "lengths and directions move against each other in full fine-tuning and DoRA, together in LoRA",
        "Liu et al. 2024, DoRA, figure 2",
        all(
            found["full"][2] < 0 < found["lora"][1] and found["dora"][2] < 0
            for found in (end, paper)
        ),
        f"correlations, 3 seeds: at the end {end['shown']}; queries at four moments {paper['shown']}",
    )
)
assert end["full"][0] < end["dora"][0] < end["lora"][0]

# %% [markdown]
# Notice: over all matrices at the end, DoRA lies between the two, and the paper's signs hold for full fine-tuning and
# LoRA only. Over the queries at four moments, which is the paper's way, all three rise: as training goes on, both
# grow. Four small layers are not the paper's model.

# %% [markdown]
# ## 3 · LoRA+: two learning rates
#
# B starts at zero and A does not, so they need not learn at one rate. **LoRA+** gives B a rate that is `ratio` times
# A's. It is LoRA, with other groups in the optimizer, by PEFT's own helper.

# %%
tuned = attach(load_base()[0], "lora+")
optimizer = make_optimizer(tuned, "lora+", lr=1e-3, loraplus_lr_ratio=16)
named = {id(p): name for name, p in tuned.named_parameters()}
for group in optimizer.param_groups:
    kinds = {"lora_B" if "lora_B" in named[id(p)] else "lora_A" for p in group["params"]}
    if kinds:
        print(f"rate {group['lr']:g}: {len(group['params'])} tensors, {', '.join(kinds)}")
        assert kinds == ({"lora_B"} if group["lr"] > 2e-3 else {"lora_A"})

# %% [markdown]
# **Predict first:** take LoRA's best rate for A, and let B learn 20 times as fast. What comes out? And what if the rate
# is searched anew for each ratio?

# %%
RATIOS = (2, 4, 16, 20)
lora_rate = judged(RUNS, CHAT, "lora")[0]["lr"]


def kept_rate(ratio, task=CHAT):
    """LoRA+ at the rate that is best for LoRA, the seeds 0 to 2."""
    lr = judged(RUNS, task, "lora")[0]["lr"]
    runs = [r for r in of_task(RUNS, task) if r["row"] == f"lora+ {ratio}" and r["seed"] < 100]
    return [run for run in runs if run["lr"] == lr]


def exact(runs):
    return statistics.fmean(run["test_exact"] for run in runs)


print(f"LoRA at {lora_rate:g}: {exact(judged(RUNS, CHAT, 'lora')):.0%} exact")
for ratio in RATIOS:
    own = judged(RUNS, CHAT, f"lora+ {ratio}")
    print(
        f"ratio {ratio:>2}: at that rate {exact(kept_rate(ratio)):4.0%}, at its own, {own[0]['lr']:g}, {exact(own):4.0%}"
    )

# %%
tasks = (CHAT, CALLS)
broken = all(
    exact(kept_rate(20, task)) < exact(judged(RUNS, task, "lora")) / 4 for task in tasks
)
fine = all(
    exact(judged(RUNS, task, "lora+ 20")) > exact(judged(RUNS, task, "lora")) / 2
    for task in tasks
)
shown = "; ".join(
    f"{task} {exact(kept_rate(20, task)):.0%} exact at LoRA's best rate, {exact(judged(RUNS, task, 'lora+ 20')):.0%} "
    f"at its own, LoRA {exact(judged(RUNS, task, 'lora')):.0%}"
    for task in tasks
)
print(shown)
claims.append(
    Claim(
        "LoRA+ at a ratio of 20 is unstable",
        "a chat fine-tune that compares LoRA, DoRA, LoRA+ and NEFTune",
        broken,
        f"{shown}; 3 seeds",
        only_if="at the rate that is best for LoRA; at a rate of its own it is not"
        if broken and fine
        else "",
    )
)

# %% [markdown]
# Notice: the ratio alone is not the reason. What breaks the run is B's rate, 20 times one that was chosen to be as
# high as LoRA bears. Lower A's rate, and the same ratio is fine. A ratio is compared at the best rate of each.

# %% [markdown]
# ## 4 · NEFTune: noise on the embeddings
#
# **NEFTune** adds noise to the embedded tokens, in training only. Each entry gets a number drawn **uniformly** from
# `±alpha / √(L·D)`, with L tokens in the row, padding included, and D numbers a token. One source calls the noise
# Gaussian. Look at it.

# %%
ALPHA, L = 5.0, 64
tuned = attach(load_base()[0], "lora", neftune_alpha=ALPHA)
embed = tuned.get_base_model().get_input_embeddings()
ids = torch.arange(16 * L).reshape(16, L) % config.vocab_size
torch.manual_seed(0)
with torch.no_grad():
    clean = embed.eval()(ids)
    noise = embed.train()(ids) - clean  # (16, L, D)
    assert torch.equal(embed.eval()(ids), clean)
bound = ALPHA / math.sqrt(L * config.hidden_size)
beyond = float((noise.abs() > noise.std() * math.sqrt(3) * 1.02).float().mean())
print(f"largest {noise.abs().max():.4f}, bound {bound:.4f}; in evaluation none at all")
print(f"spread {noise.std():.4f}, of a uniform {bound / math.sqrt(3):.4f}")
print(
    f"beyond the bound: {beyond:.1%}; a Gaussian of this spread has {math.erfc(1.02 * math.sqrt(1.5)):.1%}"
)

# %%
gaussian = beyond > 0.01
claims.append(
    Claim(
        "NEFTune's noise is Gaussian",
        "an explanation of NEFTune for a chat fine-tune",
        gaussian,
        f"{beyond:.0%} of {noise.numel():,} draws beyond √3 standard deviations; a Gaussian has 8%",
    )
)
assert not gaussian and noise.abs().max() <= bound

# %% [markdown]
# Notice: uniform, with a sharp bound. L is the length after padding: the same short row gets **less** noise in a batch
# with a long one. Now what it is worth, seed by seed, each method at its best rate.

# %%
gains = {}
for task in tasks:
    for row in ("lora", "dora"):
        with_noise = judged(RUNS, task, f"{row}, NEFTune")
        pairs = list(zip(with_noise, judged(RUNS, task, row), strict=True))
        loss = interval([a["test_loss"] - b["test_loss"] for a, b in pairs])
        gains[task, row] = loss
        cost = statistics.fmean(a["step_ms"] / b["step_ms"] for a, b in pairs)
        print(
            f"{task}, {row}: loss {loss.mean:+.3f} ({loss.low:+.3f} to {loss.high:+.3f}) nats, step {cost:.2f}×"
        )
measured = "; ".join(
    f"{task} {row} {g.mean:+.2f} ({g.low:+.2f} to {g.high:+.2f})"
    for (task, row), g in gains.items()
)
claims.append(
    Claim(
        "NEFTune lowers the validation loss at no cost",
        "a chat fine-tune that compares LoRA, DoRA, LoRA+ and NEFTune",
        all(g.high < 0 for g in gains.values()),
        f"validation loss with it less that without, nats: {measured}; 3 seeds",
    )
)

# %% [markdown]
# Notice: an interval that holds zero means that three seeds cannot tell the two apart.

# %% [markdown]
# ## 5 · Prompts that train
#
# Two methods touch no matrix. **Prefix-tuning** puts keys and values of tokens that do not exist before the row, in
# every layer. **LLaMA-Adapter** lets the layers attend to trained prompts too, but through a gate, and the gate
# starts at zero. **Predict first:** which of the two changes the model before the first step?

# %%
with torch.no_grad():
    base_logits = load_base()[0](**batch).logits
    for method in ("prefix", "llama-adapter"):
        torch.manual_seed(0)
        logits = attach(load_base()[0], method).eval()(**batch).logits
        moved = (logits - base_logits)[batch["attention_mask"].bool()].abs().max()
        print(f"{method}: logits moved by more than rounding before training: {moved > 1e-3}")
        assert (moved > 1e-3) == (method == "prefix")

# %% [markdown]
# Notice: the gate makes LLaMA-Adapter begin as the base model, as `B = 0` does for LoRA. Prefix-tuning begins with a
# disturbance. Neither can be merged, for there is no matrix to merge into, and not every model can take them:

# %%
try:
    attach(
        transformers.AutoModelForCausalLM.from_config(
            Qwen3Config(num_hidden_layers=1, vocab_size=64)
        ),
        "llama-adapter",
    )
except ValueError as refusal:
    print(refusal)
else:
    raise AssertionError("PEFT knows a new architecture: say so here")

# %% [markdown]
# ## 6 · Side by side
#
# Two tasks of 200 conversations: **chat**, where the answer must be right to the character, and **calls**, where a
# question must become a function call with the right name and arguments. Each method got a search for its own learning
# rate, then three seeds. One run is made here, and compared with its stored record.

# %% tags=["nbval-ignore-output"]
stored = next(run for run in judged(RUNS, CHAT, "lora") if run["seed"] == LIVE_SEED)


def conversations(rows):
    return [encode(tokenizer, row["messages"], tokenizer.chat_template) for row in rows]


def loss_of(model, rows):
    return model(**pad(rows, tokenizer.pad_token_id), use_cache=False).loss


def train(rows, epochs, lr, seed=0):
    """A LoRA on a fresh base; returns it, and the losses by step."""
    torch.manual_seed(seed)
    tuned = attach(load_base()[0], "lora")
    optimizer = make_optimizer(tuned, "lora", lr, weight_decay=0.01)
    task = Task(tuned, conversations(rows), epochs, loss_of, judge=dict)
    return tuned, list(train_by_step(task, optimizer, seed))


splits = low_resource_chat(200, LIVE_SEED)
live, losses = train(splits["train"], stored["epochs"], stored["lr"], LIVE_SEED)
prompts = [row["messages"][:-1] for row in splits["test"]]
wanted = [row["messages"][-1]["content"] for row in splits["test"]]
answers = generate_answers(live, tokenizer, prompts)
right, stopped = exact_match(answers, wanted), stop_rate(answers)
print(f"live: {right:.0%} exact, {stopped:.0%} stopped; stored: {stored['test_exact']:.0%}")

# %%
near = abs(right - stored["test_exact"]) < 0.12  # processors sum in different orders
print(f"{len(losses)} steps; as the stored run: {near}; it stops by itself: {stopped > 0.9}")
assert len(losses) == len(stored["train_loss"]) and near

# %%
lines = {task: summarise(RUNS, task) for task in tasks}
shown = {
    task: [line for line in lines[task] if line["row"] in (BASE, *FAMILY)] for task in tasks
}
Markdown("\n".join(f"**{task}**\n\n{markdown(shown[task])}" for task in tasks))

# %% [markdown]
# In brackets the least and the most of three seeds. "Facts forgotten" asks, in the form of the base model's own pages,
# for everything it knew. Step time is the processor's, relative to LoRA's. The same as a figure, every seed a dot:

# %%
names = [name for name in FAMILY]


def by_seed(task, value):
    return {name: [value(run) for run in judged(RUNS, task, name)] for name in names}


def kept(run):
    return statistics.fmean(run["pages_right"].values())


panels = {
    "chat: exact": by_seed(CHAT, lambda run: run["test_exact"]),
    "calls: exact": by_seed(CALLS, lambda run: run["test_calls"]),
    "chat: facts kept": by_seed(CHAT, kept),
    "chat: validation loss": by_seed(CHAT, lambda run: run["test_loss"]),
}
_ = plot_family(panels, percent=["chat: exact", "calls: exact", "chat: facts kept"])

# %% [markdown]
# Notice: the seeds of one method lie apart as far as many methods do. Then look at what was forgotten, domain by
# domain, and move the menu.

# %%
explorer = ForgettingExplorer(lines[CHAT])
explorer

# %%
for row in ("full", "lora", "llama-adapter"):
    explorer.menu.value = row
    print(explorer.caption)
    assert 0 <= max(explorer.lost.values()) <= 1
explorer.menu.value = "lora"

# %% [markdown]
# ### What the sources said

# %%
forgets = interval(
    [
        100 * (kept(a) - kept(b))
        for a, b in zip(judged(RUNS, CHAT, "lora"), judged(RUNS, CHAT, "full"), strict=True)
    ]
)
measured = f"facts kept on chat-200, LoRA less full: {forgets.mean:+.0f} ({forgets.low:+.0f} to {forgets.high:+.0f}) points, each at its best rate; 3 seeds"
print(measured)
claims.append(
    Claim(
        "LoRA forgets less than full fine-tuning",
        "Biderman et al. 2024, LoRA Learns Less and Forgets Less",
        forgets.low > 0,
        measured,
    )
)

lora_losses = [run["test_loss"] for run in judged(RUNS, CHAT, "lora")]
width = (max(lora_losses) - min(lora_losses)) / statistics.fmean(lora_losses)
better = 1 - 0.856 / 0.86
measured = f"three seeds of LoRA on chat-200 differ by {width:.1%} of their loss; 0.856 against 0.86 is {better:.1%}"
print(measured)
claims.append(
    Claim(
        "a validation loss of 0.856 in place of 0.86 is an improvement",
        "a chat fine-tune that compares LoRA, DoRA, LoRA+ and NEFTune",
        width < better,
        measured,
    )
)
measured = f"1.12, 1.21 and 1.22 are {1.22 / 1.12 - 1:.0%} apart, as much as its methods; three seeds here {width:.1%}"
print(measured)
claims.append(
    Claim(
        "its LoRA baseline is one number",
        "the same comparison: the baseline is 1.12, 1.21 and 1.22 in its parts",
        1.22 / 1.12 - 1 < width,
        measured,
    )
)

# %% [markdown]
# Notice: a difference counts when it is larger than what another seed does. The source ran each method once.

# %% [markdown]
# ## 7 · One base, many adapters
#
# An adapter is a small file beside a base that nobody changes. **Predict first:** how large is a LoRA with r = 8 on
# every matrix of the layers of a Llama 2 7B, and how large the model?

# %%
with torch.device("meta"):
    large = LlamaForCausalLM(LlamaConfig(dtype=torch.bfloat16))  # its defaults are Llama 7B's
whole = count_parameters(large).total * 2  # bytes in bfloat16
adapter = count_parameters(attach(large, "lora")).trainable * 2
print(
    f"model {whole / 1e9:.1f} GB, adapter {adapter / 1e6:.0f} MB, {whole / adapter:.0f} times smaller"
)
here = {row: judged(RUNS, CHAT, row)[0]["adapter_bytes"] for row in ("full", "lora")}
print(
    f"pocket-base: {here['full']:,} bytes and {here['lora']:,}, {here['full'] / here['lora']:.0f} times smaller"
)
claims.append(
    Claim(
        "an adapter is stored in megabytes, the model in gigabytes",
        "a chat fine-tune that compares LoRA, DoRA, LoRA+ and NEFTune",
        whole > 1e9 > 100e6 > adapter,
        f"Llama 7B in bfloat16 {whole / 1e9:.1f} GB, LoRA with r = 8 on every matrix of its layers {adapter / 1e6:.0f} MB, counted",
    )
)

# %% [markdown]
# So serve three from one base: the chat adapter from above, one that writes calls, and one that names a text's topic.


# %% tags=["nbval-ignore-output"]
def topics(rows):
    return [
        {
            "messages": [
                {"role": "user", "content": row["text"]},
                {"role": "assistant", "content": row["label"]},
            ]
        }
        for row in rows
    ]


folder = Path(tempfile.mkdtemp())
save_adapter(live, folder / "chat")
sets = {
    "calls": call_splits(200)["train"],
    "topic": topics(topic_task(200, n_test=20)["train"]),
}
for name, rows in sets.items():
    save_adapter(train(rows, SERVED_EPOCHS, 1e-2)[0], folder / name)
    print(name, "trained")
for name in ("chat", *sets):
    print(name, f"{(folder / name / 'adapter_model.safetensors').stat().st_size:,} bytes")

# %%
served = load_adapter(load_base()[0], folder / "chat").eval()
for name in sets:
    served.load_adapter(folder / name, adapter_name=name)
print(
    sorted(served.peft_config),
    f"{count_parameters(served.get_base_model()).total:,} parameters in all",
)

# %% [markdown]
# A batch may name the adapter of each row. Is each row's answer the one that its adapter gives alone?

# %%
asked = [
    "What is 2 plus 3?",
    "What is 2 plus 3?",
    "What is 2 plus 3?",
    "How many legs does a cat have?",
]
who = ["chat", "calls", "topic", "__base__"]
prompts = [
    tokenizer.apply_chat_template(
        [{"role": "user", "content": q}], add_generation_prompt=True, tokenize=False
    )
    for q in asked
]
mixed = tokenizer(
    prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
)
mixed.pop("token_type_ids", None)
with torch.no_grad():
    together = served(**mixed, adapter_names=who).logits[:, -1]
    for i, name in enumerate(who):
        row = {key: value[i : i + 1] for key, value in mixed.items()}
        if name == "__base__":
            with served.disable_adapter():
                alone = served(**row).logits[:, -1]
        else:
            served.set_adapter(name)
            alone = served(**row).logits[:, -1]
        error = (together[i] - alone[0]).abs().max()
        print(f"{name:8} the same alone and in the mixed batch: {error < 1e-3}")
        assert error < 1e-3

# %% tags=["nbval-ignore-output"]
said = served.generate(**mixed, adapter_names=who, max_new_tokens=16, do_sample=False)
for name, question, row in zip(who, asked, said, strict=True):
    print(
        f"{name:8} {question} → {tokenizer.decode(row[mixed['input_ids'].shape[1] :], skip_special_tokens=True)!r}"
    )

# %% [markdown]
# Notice: one question, three adapters, three kinds of answer, in one batch; and the base model beside them. Swapping
# is `set_adapter(name)`, and costs no copy of the base.

# %% [markdown]
# ### Break it, then fix it
#
# An adapter is numbers to be added to **one** base. On another one of the same shape they fit, and mean nothing. Here
# the base has been trained a little further, as the next release of a model is.

# %%
torch.manual_seed(0)
another = load_base()[0]
with torch.no_grad():
    for parameter in another.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.02)

# %% tags=["raises-exception"]
load_adapter(another, folder / "chat")

# %% [markdown]
# Notice: PEFT alone would have loaded it without a word. `save_adapter` puts a fingerprint of the base beside the
# adapter, and `load_adapter` compares. The fix is the right base:

# %%
again = load_adapter(load_base()[0], folder / "chat")
with torch.no_grad():
    assert torch.allclose(again.eval()(**batch).logits, live.eval()(**batch).logits, atol=1e-4)
print("on its own base the adapter says what it said")

# %% [markdown]
# ### On your own model and data
#
# In a terminal, for any causal language model and conversations as JSON lines; interrupted, the same command goes on:
#
# ```
# python -m ftkit.adapters compare --model MODEL --data chats.jsonl --rows full lora dora "lora, NEFTune"
# ```
#
# It searches each method's rate, runs three seeds, and writes the table above as Markdown and JSON.

# %% [markdown]
# ## Exercise 1 · DoRA's matrix
#
# Difficulty ●○○, 5 minutes. Without looking up. Expected: each row has the length in `magnitude`, and the direction of
# `W + scaling·B·A`.


# %% tags=["exercise"]
def dora_weight(W, A, B, magnitude, scaling):
    """The matrix (out, in) of a DoRA layer. W (out, in), A (r, in), B (out, r), magnitude (out,)."""
    ### BEGIN SOLUTION
    direction = W + scaling * B @ A
    return magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    ### END SOLUTION


check_dora_weight(dora_weight)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `norm(dim=1, keepdim=True)` has the lengths of the rows as a column.
#
# </details>

# %% [markdown]
# ## Exercise 2 · NEFTune's noise
#
# Difficulty ●●○, 5 minutes. Expected: uniform noise within `alpha / √(L·D)`, its own for every entry.


# %% tags=["exercise"]
def neftune(embeddings, alpha):
    """The embeddings (B, L, D) with NEFTune's noise added."""
    ### BEGIN SOLUTION
    _, L, D = embeddings.shape
    bound = alpha / math.sqrt(L * D)
    return embeddings + torch.empty_like(embeddings).uniform_(-bound, bound)
    ### END SOLUTION


check_neftune(neftune)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `torch.empty_like(x).uniform_(low, high)` draws one number an entry. The batch size is not in the formula.
#
# </details>

# %% [markdown]
# ## Exercise 3 · The rates of LoRA+
#
# Difficulty ●○○, 4 minutes. Names look like `….q_proj.lora_B.default.weight`. Expected: `lr` for A, `ratio · lr` for B.


# %% tags=["exercise"]
def loraplus_rates(names: list[str], lr: float, ratio: float) -> dict[str, float]:
    """The learning rate of each parameter, by its name."""
    ### BEGIN SOLUTION
    return {name: lr * ratio if ".lora_B." in name else lr for name in names}
    ### END SOLUTION


check_loraplus_rates(loraplus_rates)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# A dict comprehension over the names; `.lora_B.` with its dots stands in the names of B only.
#
# </details>

# %% [markdown]
# ## Recap
#
# - Count what a method trains before you choose it; `attach` and `make_optimizer` make every one of them.
# - DoRA sets the length of each output's weights apart from their direction, and pays for it in every step.
# - LoRA+ is LoRA with a higher rate for B: search the rate anew, or the ratio is blamed for it.
# - NEFTune's noise is uniform, and there in training only.
# - Compare methods at the best rate of each, over seeds, and look at what was forgotten.
# - One base serves many adapters, mixed in one batch; an adapter belongs to one base.

# %%
show_claims(claims)

# %% [markdown]
# ## Recall
#
# 1. How many numbers does DoRA train beside LoRA's?
# 2. Why can LLaMA-Adapter not hurt the model before the first step?
# 3. What does NEFTune add in evaluation?
# 4. Why is LoRA+ unstable at LoRA's best rate?
# 5. When is one method's loss better than another's?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: one for each output of each matrix.
# - 2: its gate starts at zero, so nothing of the prompts comes through.
# - 3: nothing.
# - 4: that rate is as high as LoRA bears, and B gets a multiple of it.
# - 5: when the difference is larger than what another seed makes, each at its best rate.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Liu et al., [DoRA](https://arxiv.org/abs/2402.09353), 2024; Hayou et al., [LoRA+](https://arxiv.org/abs/2402.12354),
#   2024; Jain et al., [NEFTune](https://arxiv.org/abs/2310.05914), 2023.
# - Li and Liang, [Prefix-Tuning](https://arxiv.org/abs/2101.00190), 2021; Zhang et al.,
#   [LLaMA-Adapter](https://arxiv.org/abs/2303.16199), 2023; Ben Zaken et al.,
#   [BitFit](https://arxiv.org/abs/2106.10199), 2022.
# - Biderman et al., [LoRA Learns Less and Forgets Less](https://arxiv.org/abs/2405.09673), 2024.
# - PEFT, [documentation](https://huggingface.co/docs/peft): every adapter here, and the mixed batch.
#
# ## Next
#
# [11_speed_ups](11_speed_ups.ipynb): what makes the same fine-tune faster, and where the memory goes.
