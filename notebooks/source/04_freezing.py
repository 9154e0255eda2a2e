# %% [markdown]
# # 04 · Freezing: choose what trains
#
# Set one flag by the names of the parameters, count what is left to train, and measure what that saves, what
# it costs and what it keeps.
#
# - **Prerequisites:** [03_fisher_masks](03_fisher_masks.ipynb); a training loop.
# - **Hardware:** any processor; one core is enough.
# - **Time:** about 35 minutes with the exercises; its cells run in under 40 seconds on two cores.

# %% [markdown]
# ## You will be able to
#
# - **freeze** parameters by a pattern, and check what changed,
# - **choose** among the usual presets, BitFit among them,
# - **predict** the bytes that AdamW needs, and compare,
# - **explain** why a step's time does not follow the number of trained parameters,
# - **judge** whether training less transfers better, or forgets less.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import json
import re
import statistics
import textwrap
import warnings
from collections import defaultdict

import torch.distributed.fsdp  # and torch itself
import transformers
from ftcourse.claims import Claim, show_claims
from ftcourse.exercises.freezing import (
    check_first_two_blocks,
    check_moment_bytes,
    check_train_biases,
)
from ftcourse.explorers.freezing import PresetExplorer, plot_map, requires_grad_map
from ftcourse.plots import HATCHES, OKABE_ITO, new_axes, plot_matrix, use_course_style
from ftcourse.studies.freezing import RATES, SEEDS, TASK, apply_preset, optimizer_bytes
from ftcourse.studies.tasks import knowledge_by_domain, load_task
from tqdm import tqdm

from ftkit import freezing, load_base
from ftkit.batching import global_batch, steps_per_epoch
from ftkit.child_tuning import gradient_mask
from ftkit.freezing import freeze, unfreeze
from ftkit.models import data_dir
from ftkit.parameters import count_parameters, decay_groups

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
print(
    f"torch {torch.__version__}, transformers {transformers.__version__}, device: cpu (a small model)"
)

# %%
RESERVE_P = 0.3  # probability that a gradient entry is kept, for the mask that we compare with
SEED = 0  # of rows, order and masks in the live run; the stored runs have 0, 1 and 2
BATCH_SIZE = 16  # questions in a step
WEIGHT_DECAY = 0.01  # of matrices, as in the stored runs
claims = []  # what this notebook tested, each with its verdict; the recap prints them

# %% [markdown]
# ## 1 · One flag a tensor
#
# A parameter trains if its `requires_grad` is True. Otherwise it gets no gradient, and an optimizer passes it
# over. Names tell parameters apart, so a regular expression chooses among them.

# %%
model, tokenizer = load_base()
print(count_parameters(model))
for name, parameter in model.named_parameters():
    if re.search(r"mlp\.", name):
        parameter.requires_grad_(False)
print(count_parameters(model))

# %%
input_ids = torch.arange(10, 30).reshape(2, 10)  # any tokens will do
model(input_ids=input_ids, labels=input_ids).loss.backward()
without_gradient = {name for name, p in model.named_parameters() if p.grad is None}
print(f"{len(without_gradient)} tensors without a gradient, such as {min(without_gradient)}")
assert without_gradient == {name for name, _ in model.named_parameters() if "mlp." in name}

# %% [markdown]
# Notice: nearly half of this model is in its MLPs; their weights and biases got no gradient.
#
# That loop is `ftkit.freezing.freeze`, which also returns the names that **changed**: look at them.

# %%
print("freeze:", freeze(model, "mlp"))  # the loop froze them already
changed = unfreeze(model, r"layers\.0\.mlp\.up_proj")
print("unfreeze:", changed)
assert changed == [f"model.layers.0.mlp.up_proj.{own}" for own in ("weight", "bias")]
print(len(freeze(model, lambda name, parameter: parameter.ndim == 1)), "more vectors frozen")

# %% [markdown]
# Notice: a list without names says that nothing changed. Instead of a pattern, a function of name and parameter
# serves as well; here it chose biases and norms.
#
# A pattern that matches nothing would leave the whole model to train, and nobody would know. So it is an error:

# %%
try:
    freeze(model, "embed_token_s")
except ValueError as refusal:
    print(refusal)
else:
    raise AssertionError("a pattern that matches nothing was accepted")

# %% [markdown]
# ### Exercise 1 · a pattern
#
# Difficulty ●○○, 4 minutes. Return a regular expression for `freeze`, which finds the embeddings and blocks 0
# and 1 in names such as `model.layers.0.mlp.up_proj.weight`. Expected: 13 of the checker's 75 names; its model has
# **twelve** blocks.


# %% tags=["exercise"]
def first_two_blocks() -> str:
    """A pattern for model.embed_tokens, model.layers.0 and model.layers.1."""
    ### BEGIN SOLUTION
    return r"embed_tokens|layers\.[01]\."
    ### END SOLUTION


check_first_two_blocks(first_two_blocks)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `a|b` finds either, `[01]` one of two characters, `\.` a dot. What comes after the number?
#
# </details>

# %% [markdown]
# ## 2 · A hard line and a fine grain
#
# On the left, embeddings and the first two of four blocks are frozen; on the right is a gradient mask of task-free
# child-tuning, at one step. A row is a block. Squares are matrices and strips are vectors, of which the first
# 6 × 6 or 6 entries are drawn: filled ones train, hatched ones do not.

# %%
fresh = load_base()[0]  # stays as it is, to compare with
model, _ = load_base()
freezing.freeze_first_layers(model, 2)
line = requires_grad_map(model)
grain = {
    name: gradient_mask(p.shape, RESERVE_P, seed=SEED, step=1, name=name)
    for name, p in model.named_parameters()
}
figure, axes = new_axes(9.4, 4, columns=2)
plot_map(line, title="frozen: embeddings, blocks 0 and 1", ax=axes[0])
ax = plot_map(grain, title=f"gradient mask, reserve_p = {RESERVE_P}", ax=axes[1])

# %%
for label, mask in {"freezing": line, "masking": grain}.items():
    shares = {name: entries.float().mean().item() for name, entries in mask.items()}
    kept = sum(int(entries.sum()) for entries in mask.values())
    matrices = [share for name, share in shares.items() if mask[name].ndim == 2]
    print(
        f"{label}: {kept / count_parameters(model).total:.0%} of all entries; {min(matrices):.0%} to "
        f"{max(matrices):.0%} of each matrix"
    )
    assert (set(shares.values()) == {0.0, 1.0}) == (label == "freezing")

# %% [markdown]
# Notice: a hard line against a fine grain. The line runs between tensors and stays for the whole run; the grain
# goes through every tensor and is drawn anew at each step. So the line saves memory, and this mask does not: any
# entry may be drawn next, and AdamW keeps moments for all.

# %% [markdown]
# ## 3 · Seven presets
#
# | preset | what trains | known from |
# | --- | --- | --- |
# | everything | all: full fine-tuning | |
# | first half frozen | the upper blocks, the last norm, the head | Lee et al. 2019 |
# | embeddings and norms | the table of tokens, all norms | LongLoRA, beside its adapters |
# | head only | `lm_head` | |
# | added layers | two new fully connected layers before the head | |
# | biases only | every bias | BitFit |
# | norms only | the gains of the norms | |
#
# Choose a preset in the menu and look at its map.

# %%
maps, counts = {}, {}
for preset in RATES:
    model, _ = load_base()
    apply_preset(model, preset)
    maps[preset] = requires_grad_map(model)
    counts[preset] = count_parameters(model)
explorer = PresetExplorer(maps)
explorer

# %%
explorer.menu.value = "biases only"
print(f"{explorer.trainable:,} of {counts['biases only'].total:,} train")
assert explorer.trainable == counts["biases only"].trainable
explorer.menu.value = "everything"

# %%
added = load_base()[0]
apply_preset(added, "added layers")
with torch.no_grad():
    same = torch.equal(added(input_ids).logits, fresh(input_ids).logits)
print(f"the added layers change nothing before the first step: {same}")
assert same

# %% [markdown]
# Notice: the second of the added layers starts at zero, so the model says what it said before.
#
# AdamW keeps two moments for each trained parameter: at four bytes each, eight bytes. **Predict first:** how many
# bytes does BitFit (biases only) need, when full fine-tuning needs 8.2 million? The stored runs measured it.

# %%
records = [
    json.loads(line)
    for line in (data_dir() / "results" / "freezing.jsonl").open(encoding="utf-8")
]
runs = defaultdict(list)  # preset -> its runs with three seeds, at the better of two rates
for record in records:
    if record["model"] == "" and record["seed"] in SEEDS:
        runs[record["preset"]].append(record)

# %%
print(f"{'preset':20} trainable  share  predicted   measured (bytes)  ratio")
for preset, count in counts.items():
    predicted, measured = 8 * count.trainable, runs[preset][0]["optimizer_bytes"]
    share, ratio = count.trainable / count.total, measured / predicted
    print(
        f"{preset:20} {count.trainable:9,} {share:6.1%} {predicted:10,} {measured:10,} {ratio:14.3f}"
    )
    tensors = sum(bool(entries.all()) for entries in maps[preset].values())  # that train
    assert measured - predicted == 4 * tensors

# %% [markdown]
# Notice: the ratio is nearly 1. What is over is a step counter of four bytes for each tensor: in norms only, a
# tensor has 128 parameters and 1,024 bytes of moments. Frozen weights still lie in memory; their moments and
# gradients do not.

# %% [markdown]
# ### Exercise 2 · the moments
#
# Difficulty ●●○, 5 minutes. Return the bytes of AdamW's two moments for any model: each moment has the dtype
# of its parameter, and frozen parameters have none. Expected: 3,488 for the checker's model, which has a tied
# table, a bfloat16 layer and a frozen one.


# %% tags=["exercise"]
def moment_bytes(model: torch.nn.Module) -> int:
    """Bytes of both moments of everything that trains."""
    ### BEGIN SOLUTION
    return sum(2 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    ### END SOLUTION


check_moment_bytes(moment_bytes)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `parameter.numel()` counts, `parameter.element_size()` is in bytes. `model.parameters()` gives a tied tensor
# once.
#
# </details>

# %% [markdown]
# ## 4 · Ties, and biases that are not there
#
# Presets meet two surprises in newer models. Here is a tiny Qwen3: its head **is** its table of embeddings,
# one tensor under two names, and it has no biases.

# %%
config = transformers.Qwen3Config(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, head_dim=8,
    num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
)  # fmt: skip
qwen = transformers.Qwen3ForCausalLM(config)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    names = freezing.head_only(qwen)
print(names, *(str(warning.message) for warning in said), sep="\n")
assert qwen.lm_head.weight is qwen.model.embed_tokens.weight and len(said) == 1

# %% [markdown]
# Notice: who asks for the head gets the table as well, and is told. For the same reason, freezing the embeddings
# freezes the head.

# %%
try:
    freezing.bitfit(qwen)
except ValueError as refusal:
    print(refusal)
else:
    raise AssertionError("BitFit accepted a model without biases")

# %% [markdown]
# Notice: without this error, BitFit would freeze all of it and train nothing.

# %% [markdown]
# ### Exercise 3 · BitFit by hand
#
# Difficulty ●●○, 6 minutes. Let only biases train, whatever was frozen before, and return their names; refuse
# a model without any. Expected: three biases in the checker's model, and a `ValueError` for its twin.


# %% tags=["exercise"]
def train_biases(model: torch.nn.Module) -> list[str]:
    """Set requires_grad of every parameter; return the names that train. Raises ValueError for none."""
    ### BEGIN SOLUTION
    names = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    if not names:
        raise ValueError("no parameter is a bias")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return names
    ### END SOLUTION


check_train_biases(train_biases)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Collect the names first, with `name.endswith("bias")`. Then one loop sets the flag of **every** parameter.
#
# </details>

# %% [markdown]
# ## 5 · The same task under each preset
#
# 200 questions in the chat format, 7 epochs, judged on other questions of the same domains and on four domains
# never trained on. An answer is right when every token of it is. Each preset has the better of two learning rates,
# chosen on a fourth seed. We run BitFit here; the other runs are stored.

# %%
task = load_task(TASK, SEED)
freezing.bitfit(task.model)
lr = runs["biases only"][SEED]["lr"]
named = task.model.named_parameters()
optimizer = torch.optim.AdamW(decay_groups(named, WEIGHT_DECAY), lr=lr)
steps = task.epochs * steps_per_epoch(task.train, BATCH_SIZE)
warmup = round(0.1 * steps)
schedule = transformers.get_scheduler("linear", optimizer, warmup, steps)
print(f"lr {lr}, {steps} steps")

# %% tags=["nbval-ignore-output"]
for step in tqdm(range(steps), desc="BitFit"):
    batch = global_batch(task.train, step, BATCH_SIZE, SEED)
    task.loss(task.model, batch).backward()
    torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
task.model.eval()
with torch.no_grad():
    live = task.evaluate(task.model) | knowledge_by_domain(task.model, tokenizer)
print({measure: round(value, 3) for measure, value in live.items() if "pages" not in measure})

# %%
stored = runs["biases only"][SEED]
state = task.model.state_dict()
moved = {
    name for name, tensor in fresh.state_dict().items() if not torch.equal(tensor, state[name])
}
print(
    f"tensors moved: {len(moved)}, all of them biases: {all(n.endswith('bias') for n in moved)}"
)
for measure in ("test_loss", "heldout_domains_loss"):
    ratio = live[measure] / stored[measure]
    print(f"{measure} within a quarter of the stored run's: {abs(ratio - 1) < 0.25}")
print(f"optimizer bytes as stored: {optimizer_bytes(optimizer) == stored['optimizer_bytes']}")
assert moved == {name for name in fresh.state_dict() if name.endswith("bias")}

# %% [markdown]
# Notice: half a percent of the weights moved, and the rest are equal to the bit. Now all presets, three seeds
# each. *Old pages* are the facts that the base model read, in the form it read them in: does it still know them?
#
# **Predict first:** which preset answers most of the new questions?

# %%
measures = {
    "test_exact": "new questions\nright",
    "heldout_domains_exact": "new domains\nright",
    "heldout_domains_loss": "new domains\nloss (nats a token)",
    "pages_right": "old pages\nright",
}


def values(preset, measure):
    """One number a seed; of a measure by domain, the mean over domains."""
    found = [run[measure] for run in runs[preset]]
    return [statistics.fmean(v.values()) if isinstance(v, dict) else v for v in found]


# %%
figure, axes = new_axes(9, 3, columns=len(measures))
for ax, (measure, title) in zip(axes, measures.items(), strict=True):
    for row, preset in enumerate(RATES):
        seeds = values(preset, measure)
        mean = statistics.fmean(seeds)
        hatch = HATCHES[preset == "everything"]
        ax.barh(row, mean, color=OKABE_ITO[4], hatch=hatch, alpha=0.6)
        ax.plot(seeds, [row] * len(seeds), "o", color="black", markersize=3)
        place = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8}
        ax.annotate(f"{mean:.2f}", (1.03, row), **place)
    ax.set(title=title, ylim=(len(RATES) - 0.5, -0.5), xlim=(0, None))
    ax.set_yticks(range(len(RATES)), list(RATES) if ax is axes[0] else [])
    ax.title.set_fontsize(10)

# %% [markdown]
# Notice: bars are means, dots are seeds; full fine-tuning is hatched. In the third panel, less is better.

# %%
full = "everything"
partial = [preset for preset in RATES if preset != full]


def beats(one, other, measure):
    """Better with each seed; with equal seeds they share the data, so they compare in pairs."""
    sign = -1 if measure == "heldout_domains_loss" else 1  # of a loss, less is better
    pairs = zip(values(one, measure), values(other, measure), strict=True)
    return all(sign * mine > sign * theirs for mine, theirs in pairs)


names = ("new questions", "new domains", "loss on new domains", "old pages")
better = {
    where: [preset for preset in partial if beats(preset, full, measure)]
    for where, measure in zip(names, measures, strict=True)
}
for where, presets in better.items():
    print(f"{where}: better than full with every seed: {', '.join(presets) or 'none'}")
assert better["new domains"] == ["embeddings and norms", "biases only"]
bitfit, whole = (values(preset, "heldout_domains_exact") for preset in ("biases only", full))
assert min(mine - theirs for mine, theirs in zip(bitfit, whole, strict=True)) < 0.02
others = [measure for measure in measures if measure != "heldout_domains_exact"]
assert all(beats(full, preset, measure) for preset in partial for measure in others)

# %% [markdown]
# Notice: on new domains two presets give more right answers than full fine-tuning, which gives hardly any, although
# their loss there is worse; biases only is ahead by under 2 in 100 with one seed. By the other three measures full
# fine-tuning leads every preset with every seed.

# %% [markdown]
# ### Does training less transfer better?
#
# So it is often said of freezing and of adapters. Our test, for this and for forgetting: it holds where at least
# four of the six partial presets beat full fine-tuning with **each** seed.

# %%
places = [where for where in ("new questions", "new domains") if len(better[where]) >= 4]
narrowed = f"on {places[0]} only" if len(places) == 1 else ""
counted = ("new questions", "new domains", "loss on new domains")
measured = "of 6 presets, ahead of full with each of 3 seeds: "
measured += ", ".join(f"{where} {len(better[where])}" for where in counted)
claim = "fewer tuned parameters transfer better"
source = "said of freezing and sparse tuning, such as SAFT, Nguyen et al. 2024"
claims.append(Claim(claim, source, bool(places), measured, only_if=narrowed))

# %%
bitfit, whole = (
    statistics.fmean(values(preset, "test_exact")) for preset in ("biases only", full)
)
claim = "on small data, training biases only is competitive with the whole model"
measured = f"new questions right: {bitfit:.2f}, whole model {whole:.2f}; "
measured += "1 million parameters, 3 seeds"
source = "Ben Zaken et al. 2022, BitFit, of BERT"
claims.append(Claim(claim, source, whole - bitfit < 0.05, measured))

# %% [markdown]
# ### Forgetting, by domain
#
# How many facts of each domain are still right on the old pages?

# %%
with torch.no_grad():
    before = knowledge_by_domain(fresh.eval(), tokenizer)["pages_right"]
domains = list(before)
print(f"before: at least {min(before.values()):.0%} right in each domain")
assert min(before.values()) > 0.99


def mean_of_seeds(preset, domain):
    return statistics.fmean(run["pages_right"][domain] for run in runs[preset])


kept = [[mean_of_seeds(preset, domain) for domain in domains] for preset in RATES]
ax = new_axes(11.2, 4.4)[1]
plot_matrix(kept, title="facts right on old pages (mean of 3 seeds)", limit=1, ax=ax)
ax.set_xticks([i + 0.5 for i in range(len(domains))], domains, rotation=90)
_ = ax.set_yticks([i + 0.5 for i in range(len(RATES))], list(RATES))

# %% [markdown]
# Notice: on average full fine-tuning kept most. But each preset has the rate that answered better; look at both of
# its rates, on the seed that chose:

# %%
tried = [run for run in records if run["model"] == "" and run["seed"] not in SEEDS]
both = defaultdict(list)  # preset -> (rate, new questions, old pages), lower rate first
for run in sorted(tried, key=lambda run: run["lr"]):
    kept_pages = statistics.fmean(run["pages_right"].values())
    both[run["preset"]].append((run["lr"], run["test_exact"], kept_pages))
for preset, pair in both.items():
    texts = [f"lr {lr:<6g} {answered:4.0%} new, {old:4.0%} old" for lr, answered, old in pair]
    print(f"{preset:20} {'   '.join(texts)}")
assert all(low[2] >= high[2] for low, high in both.values())
_, answered, old = both[full][0]
assert all(answered > run[1] and old > run[2] for p in partial for run in both[p])
seeds = [f"{old:.0%}" for old in values("embeddings and norms", "pages_right")]
print(f"embeddings and norms on the other seeds: {', '.join(seeds)} old")

# %% [markdown]
# Notice: the lower rate never keeps less. With it, the head forgets next to nothing, and answers next to
# nothing; full fine-tuning answers more and keeps more than any partial run here. Seeds matter, too: where
# embeddings and norms kept nothing, three other seeds kept a third to a half.

# %%
keepers = len(better["old pages"])
measured = f"{keepers} of 6 presets keep more than full with each of 3 seeds, "
measured += "at the rates that answer better"
source = "Biderman et al. 2024, of LoRA: learns less and forgets less"
claims.append(Claim("training fewer parameters forgets less", source, keepers >= 4, measured))
factors = {preset: runs[preset][0]["lr"] / runs[full][0]["lr"] for preset in partial}
for preset, factor in factors.items():
    print(f"{preset:20} {factor:4.0f} times full fine-tuning's rate")

# %% [markdown]
# Notice: every partial preset answered best at a higher rate, which moves each weight further. That may be what
# harms the old pages; these runs do not tell.

# %% [markdown]
# ## 6 · What a step costs
#
# A step runs the model forward, runs back for the gradients, and updates. **Predict first:** BitFit trains one
# parameter in 200. Does its step take a hundredth of a full step's time, a third, or three quarters? Put your
# guess into the next cell.

# %%
my_guess = 0.01  # of a full step's time

# %%
cost = {preset: statistics.median(values(preset, "cpu_ms")) for preset in RATES}
ratio = {preset: cost[preset] / cost[full] for preset in RATES}
for preset in RATES:
    share = counts[preset].trainable / counts[preset].total
    print(
        f"{preset:20} {share:6.1%} of the parameters, {ratio[preset]:4.0%} of a full step's time"
    )
bitfit = ratio["biases only"]
answer = "right" if abs(my_guess - bitfit) < 0.15 else "another number"
print(f"you guessed {my_guess:.0%}, the stored runs took {bitfit:.0%}: {answer}")

# %% [markdown]
# Most of a step is three passes of about equal work: forward, gradients of the activations, gradients of the
# weights. Frozen weights save the third pass, which leaves two thirds. The second runs down to the **lowest**
# parameter that trains, and stops there.

# %%
assert ratio["biases only"] > 0.5 and ratio["head only"] < ratio["biases only"] - 0.1
assert ratio["first half frozen"] < ratio["biases only"] + 0.05
shares = {preset: count.trainable / count.total for preset, count in counts.items()}
follows = all(abs(ratio[preset] - shares[preset]) < 0.15 for preset in RATES)
claim = "a step's time follows the number of trained parameters"
measured = (
    f"biases only: {bitfit:.0%} of a full step's time with {shares['biases only']:.1%} of "
)
measured += "its parameters; stored runs, one processor"
claims.append(Claim(claim, "a possible reading of parameter counts", follows, measured))

# %% [markdown]
# Notice: where the trained parameters lie matters more than how many there are. Half of the model, if it is the
# upper half, costs no more than its biases; a head alone spares the way down.

# %% [markdown]
# ## 7 · History: one flag for a whole layer
#
# FSDP shards a model over several processes. PyTorch's first FSDP, of 2022, glued the parameters that one wrapper
# holds, say a block's, into one flat parameter with one `requires_grad`. Its docstring still says so:

# %%
doc = " ".join(torch.distributed.fsdp.FullyShardedDataParallel.__doc__.split())
quote = re.search(r"FSDP has some constraints when freezing.*?memory usage\.", doc)[0]
print(textwrap.fill(quote, 90))
assert "all frozen or all non-frozen" in quote


# %%
def mixed_units(trains):
    """Of the blocks, and of the rest (the root), those in which some tensors train and some do not."""
    flags = defaultdict(set)
    for name, entries in trains.items():
        found = re.search(r"layers\.\d+", name)
        flags[found[0] if found else "the rest"].add(bool(entries.all()))
    return [unit for unit, each in flags.items() if len(each) == 2]


for preset, trains in maps.items():
    print(f"{preset:20} mixed: {', '.join(mixed_units(trains)) or 'nothing'}")
assert not mixed_units(maps[full]) and len(mixed_units(maps["biases only"])) == 4
assert mixed_units(maps["first half frozen"]) == ["the rest"]

# %% [markdown]
# Notice: BitFit mixes in every block, so FSDP1 refused it; since torch 2.1 (2023) it takes a mixture with
# `use_orig_params=True`. FSDP2 shards each parameter by itself and takes any pattern:
# [13_ddp_to_fsdp](13_ddp_to_fsdp.ipynb) provokes that error, and trains a mixed model.

# %% [markdown]
# ## 8 · Break it, then fix it
#
# Freeze the embeddings by hand. The line looks right, and Python takes it …

# %% tags=["raises-exception"]
model, _ = load_base()
model.model.embed_tokens.requires_grad = False
count = count_parameters(model)
assert count.trainable < count.total, f"all {count.trainable:,} parameters still train"

# %% [markdown]
# … and nothing is frozen: `embed_tokens` is a module, so the line only hangs a new attribute on it. Tensors have
# the flag. The fix: `requires_grad_(False)` with its underscore, or `freeze`; and count afterwards.

# %%
changed = freeze(model, "embed_tokens")
print(changed, count_parameters(model))
frozen = count.total - count_parameters(model).trainable
assert frozen == model.model.embed_tokens.weight.numel()

# %% [markdown]
# ## Recap
#
# - Freezing is one flag a tensor; `freeze` and its kin return the names that changed, and refuse a pattern
#   that finds nothing.
# - Tied tensors freeze together; a model without biases cannot be tuned by them.
# - AdamW's bytes follow the trained parameters; a step's time follows where they lie.
# - The rates that answered best differ up to 300 times between presets: compare each at its own.
# - This is one task and one model of a million parameters; another may differ.

# %%
show_claims(claims)

# %% [markdown]
# ## Recall
#
# 1. What does `freeze` return, and what does it do with a pattern that matches nothing?
# 2. How many bytes of moments does AdamW keep for a frozen parameter?
# 3. Why does BitFit's step cost over half of a full one?
# 4. What else freezes when the embeddings of a tied model do?
# 5. Why could FSDP1 not train BitFit at first?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: the names that changed; it raises an error that lists near names.
# - 2: none.
# - 3: the forward pass and the gradients of the activations go through all blocks as before.
# - 4: the head, which is the same tensor.
# - 5: it glued each block into one flat parameter, which trains whole or not at all.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Ben Zaken et al. 2022, [BitFit](https://arxiv.org/abs/2106.10199): biases only.
# - Lee et al. 2019, [What Would Elsa Do?](https://arxiv.org/abs/1911.03090): freezing the first layers.
# - Chen et al. 2024, [LongLoRA](https://arxiv.org/abs/2309.12307): embeddings and norms train beside LoRA.
# - Nguyen et al. 2024, [SAFT](https://arxiv.org/abs/2407.03036): few parameters of CLIP, and other data.
# - Biderman et al. 2024, [LoRA Learns Less and Forgets Less](https://arxiv.org/abs/2405.09673).
# - PyTorch, [FullyShardedDataParallel](https://docs.pytorch.org/docs/stable/fsdp.html): FSDP1 and freezing;
#   [pull request 98221](https://github.com/pytorch/pytorch/pull/98221), 2023: a mixture is allowed.
#
# ## Next
#
# [05_chat_templates](05_chat_templates.ipynb): from conversations to tokens and labels.
