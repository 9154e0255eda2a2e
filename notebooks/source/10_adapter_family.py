# %% [markdown]
# # 10 · The adapter family: learning, forgetting, memory, speed
#
# LoRA has a large family. You compare full fine-tuning, LoRA and its relatives by what each learns, forgets and costs,
# take DoRA, LoRA+, NEFTune and QLoRA apart, and serve several adapters from one base.
#
# - **Prerequisites:** [09_lora_from_scratch](09_lora_from_scratch.ipynb).
# - **Hardware:** any processor; one core is enough.
# - **Time:** about 50 minutes with the exercises; its cells run in under a minute on one core.

# %% [markdown]
# ## You will be able to
#
# - **choose** a method by quality, forgetting, memory and speed, not by one number,
# - **read** a curve of learning against forgetting,
# - **quantise** a matrix to 4 bits by hand, and say what QLoRA saves and costs,
# - **write** DoRA's matrix, NEFTune's noise and LoRA+'s two learning rates,
# - **serve** three fine-tunes from one base, mixed in one batch.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import math
import os
import tempfile
import warnings
from dataclasses import replace

import torch
import transformers

# %% tags=["hide-input"]
from ftcourse.almanac import all_facts
from ftcourse.claims import EXACT, Ledger
from ftcourse.datasets import call_splits
from ftcourse.exercises.adapter_family import check_four_bits, check_front
from ftcourse.expected import expected_error
from ftcourse.explorers.adapter_family import (
    TradeOffExplorer,
    costs,
    in_units,
    learning_and_forgetting,
    plot_gains,
    plot_levels,
    plot_movement,
    plot_trade_off,
    real_results,
    results,
    searched,
)
from ftcourse.explorers.recipe import plot_learning_rates
from ftcourse.intervals import interval
from ftcourse.plots import new_axes, use_course_style
from ftcourse.studies import dora, records, trade_off
from ftcourse.studies.real_model import RealStudy
from ftcourse.studies.real_model import plot_learning_rates as plot_real_learning_rates
from ftcourse.studies.tasks import (
    BATCH_SIZE,
    WEIGHT_DECAY,
    knowledge_by_domain,
    load_task,
    training_steps,
)
from ftcourse.studies.trade_off import (
    BITFIT,
    DORA,
    FULL,
    LORA,
    LORAPLUS,
    NEFTUNE,
    ONE_RATE,
    OWN_RATE,
    PREFIX,
    PROMPTS,
    TOKENS,
    trial,
)
from peft import PeftModel
from transformers.utils import is_bitsandbytes_available

from ftkit import load_base
from ftkit.adapters import attach, load_adapter, make_optimizer, save_adapter
from ftkit.batching import pad
from ftkit.conversations import encode
from ftkit.evaluate import stop_token_ids
from ftkit.memory import MemoryPlan, estimate_memory, published_meta_model
from ftkit.memory.quantised import BLOCK, BLOCKS
from ftkit.models import data_dir
from ftkit.parameters import count_parameters

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # as in the stored runs
warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing", FutureWarning)  # names change
print(f"torch {torch.__version__}, transformers {transformers.__version__}, device: cpu")

# %%
SEED = 0  # of the live runs
SERVED_EPOCHS = 4  # passes over the data for two small adapters
POCKET = data_dir() / "pocket-base"
study = trade_off.read()
WITH_LORA = [TOKENS, ONE_RATE, OWN_RATE]  # what trains beside it, see notebook 09
FAMILY = [FULL, LORA, *WITH_LORA, DORA, LORAPLUS, NEFTUNE, BITFIT, PREFIX, PROMPTS]
ledger = Ledger("LoRA and its relatives")  # the claims tested here; the recap shows them

# %% [markdown]
# ## 1 · The family
#
# `attach(model, method)` returns the model to train, by PEFT where an adapter is needed. Every method can be counted
# before it runs.
#
# | method | what trains | can be merged |
# | --- | --- | --- |
# | LoRA, LoRA+, NEFTune | low-rank factors; LoRA+ and NEFTune change the optimizer or the input | yes |
# | DoRA | low-rank factors, and a length per output | yes |
# | BitFit | the biases that are there | nothing to merge |
# | prefix, LLaMA-Adapter | virtual tokens in every layer | no |

# %% [markdown]
# **Predict first:** LoRA at r = 8 trains `r · (in + out)` numbers beside each matrix of the layers. Which methods train
# fewer?

# %%
total = count_parameters(load_base()[0]).total
counts = {}
for method in ("full", "bitfit", "lora", "dora", "prefix", "llama-adapter"):
    counts[method] = count_parameters(attach(load_base()[0], method)).trainable
    print(f"{method:14} {counts[method]:>9,}  {counts[method] / total:7.2%}")

# %%
config = load_base()[0].config
linears = [m for m in load_base()[0].model.layers.modules() if isinstance(m, torch.nn.Linear)]
layers, D, r, tokens = config.num_hidden_layers, config.hidden_size, 8, 8
lora = sum(r * (m.in_features + m.out_features) for m in linears)
assert counts["lora"] == lora
assert counts["dora"] == lora + sum(m.out_features for m in linears)  # a length per output
assert counts["prefix"] == layers * 2 * tokens * D  # keys and values
assert counts["llama-adapter"] == layers * (tokens * D + 1)  # prompts, and a gate per layer
assert counts["bitfit"] == sum(m.out_features for m in linears)
print(f"DoRA trains {counts['dora'] - lora:,} parameters more than LoRA: one per output")

# %% [markdown]
# ## 2 · Learning against forgetting
#
# A fine-tune teaches something and damages something. Biderman et al. (2024) therefore plot one against the other. We
# do the same on pocket-base:
#
# - **learnt**: exact match on new chat questions, of `chat-96` as in notebook 09,
# - **kept**: the share of the almanac's facts that the model still answers in its pretraining format.

# %% [markdown]
# Each method is trained at learning rates a factor of 3 apart, until its best on validation questions has worse
# neighbours. Every learning rate is a point of its curve, the mean of two seeds.
#
# **Predict first:** full fine-tuning and LoRA reach about the same exact match. Which of them has forgotten less by
# then?

# %%
ax = plot_trade_off(study, [FULL, LORA, TOKENS])

# %% [markdown]
# Follow a line from the lowest learning rate, at the upper left: at first the model learns, then it also forgets, and
# at too high a learning rate it forgets and learns less. Filled markers are the best learning rates. A method is better
# if its line reaches further to the upper right.

# %% tags=["hide-input"]
at_best = {
    name: learning_and_forgetting(study, name)[study.best(trial(name))] for name in FAMILY
}
for name in (FULL, LORA, TOKENS):
    learnt, kept_here = at_best[name]
    print(f"{name}: {learnt:.0%} of the questions answered, {kept_here:.0%} of the facts kept")
assert abs(at_best[FULL][0] - at_best[LORA][0]) < 0.05 < at_best[FULL][1] - at_best[LORA][1]

# %% [markdown]
# Here LoRA forgets more: at about the same exact match full fine-tuning keeps more of the facts. If the chat tokens'
# rows train as well (notebook 09), LoRA keeps 83 %. That contradicts Biderman et al., whose models are thousands of
# times as large and whose data sets have 100,000 examples and more (see "What transfers").
#
# Compare another method with these two. "Whole" means that embedding, LM head and norms are fully trained beside the
# factors, at the factors' learning rate ("one rate") or at 1e-3 ("own rate"):

# %%
explorer = TradeOffExplorer(study, [FULL, LORA], ONE_RATE)
explorer

# %%
for name in FAMILY[2:]:
    explorer.menu.value = name
    learnt, kept_here = explorer.points[study.best(trial(name))]
    print(
        f"{name:22} {learnt:4.0%} of the questions answered, {kept_here:4.0%} of the facts kept"
    )
    assert (learnt, kept_here) == at_best[name]
explorer.menu.value = ONE_RATE

# %% [markdown]
# ### At the best learning rate of each
#
# The final runs have five other seeds, and test questions that no choice has seen. So the numbers differ from those on
# the curves: LoRA keeps 76 % of the facts here, 65 % there.

# %%
print(results(study, FAMILY))

# %% tags=["hide-input"]
_ = plot_gains(study, [name for name in FAMILY if name != LORA], LORA)

# %% [markdown]
# The figure shows differences from LoRA, paired by seed, with 95 % intervals. An interval that contains 0 means that
# five seeds cannot tell the two apart.

# %% [markdown]
# What makes a run forget? The learning rate, for one: on every curve but LLaMA-Adapter's the highest keeps least.
# Compare the two "whole" configurations. With 2.7e-3 for everything 96 % of the facts are kept. With 8.1e-3 for the
# factors 82 % are, although the rest then trains at a lower rate, 1e-3. Five seeds cannot tell their exact match apart:

# %%
whole = [study.best(trial(name)) for name in (ONE_RATE, OWN_RATE)]
gap = study.gain(trial(OWN_RATE), trial(ONE_RATE), "kept")
print(
    f"factors at {whole[1]:g} less factors at {whole[0]:g}: facts kept {gap.points} percentage points"
)
answers = study.gain(trial(OWN_RATE), trial(ONE_RATE), "test_exact")
print(f"exact match {answers.points} percentage points")
assert gap.high < 0 and answers.low < 0 < answers.high

# %% [markdown]
# So a comparison at one shared learning rate says little about the methods. Compare them on the curves, at equal exact
# match; and if two learning rates answer equally well, take the lower one.
#
# The methods' papers claim an advantage of one over another. The measured differences:

# %% tags=["hide-input"]
BIDERMAN = "Biderman et al. 2024, LoRA Learns Less and Forgets Less"
CLAIMS = [  # text, source, what should be ahead of what, and in which measure
    ("LoRA forgets less than full fine-tuning", BIDERMAN, LORA, FULL, "kept"),
    ("LoRA learns less than full fine-tuning", BIDERMAN, FULL, LORA, "test_exact"),
    ("DoRA is more accurate than LoRA", "Liu et al. 2024, DoRA", DORA, LORA, "test_exact"),
    (
        "LoRA+ is more accurate than LoRA at equal cost",
        "Hayou et al. 2024, LoRA+",
        LORAPLUS,
        LORA,
        "test_exact",
    ),
    ("NEFTune improves a fine-tune", "Jain et al. 2023, NEFTune", NEFTUNE, LORA, "test_exact"),
]
UNITS = {
    "test_exact": "exact match {} percentage points",
    "test_loss": "loss {} nats per token",
    "kept": "facts kept {} percentage points",
}
for text, source, one, other, measure in CLAIMS:
    gains = {key: study.gain(trial(one), trial(other), key) for key in UNITS}
    parts = [unit.format(in_units(gains[key], key)) for key, unit in UNITS.items()]
    measured = f"{one} less {other}, each at its best learning rate: {', '.join(parts)}"
    details = {"seeds": len(study.runs(trial(one))), "worthwhile": 0.02}
    ledger.add(text, source, gains[measure], measured, **details)
    print(
        f"{text}?\n    {one} less {other}: {UNITS[measure].format(in_units(gains[measure], measure))}"
    )

# %% [markdown]
# Only the first interval excludes 0, and it says the opposite of its claim; the recap states the verdicts.
#
# For the next exercise, the exact match and the facts kept of each method, means over the five seeds:

# %%
points = {
    name: tuple(sum(study.ends(trial(name), m)) / 5 for m in ("test_exact", "kept"))
    for name in FAMILY
}


# %% [markdown]
# ### Exercise 1 · which methods are worth a look
#
# Difficulty ●●○, 8 minutes. A method is **beaten** if another is at least as good in both measures and better in one.
# Return the names of those that are not beaten. The checker tries its own points first, then those of pocket-base.
# Expected: a set of names.


# %% tags=["exercise"]
def front(points: dict[str, tuple[float, float]]) -> set[str]:
    """Names of the methods that no other one beats, given (learnt, kept) of each."""

    ### BEGIN SOLUTION
    def beats(one, other):
        return one != other and one[0] >= other[0] and one[1] >= other[1]

    return {n for n in points if not any(beats(points[m], points[n]) for m in points)}
    ### END SOLUTION


check_front(front, points)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Write `beats(one, other)` for two points first: not equal, and no smaller in either measure.
#
# </details>

# %% [markdown]
# ## 3 · Memory and speed
#
# **Predict first:** how much longer than a step of LoRA does one of DoRA take, and how much shorter is one of BitFit,
# which trains a fifteenth of the parameters? From stored runs on two other tasks, three seeds each ("lora+ 16" is LoRA+
# with B's learning rate 16 times A's):

# %%
EARLIER = records.read_records(data_dir() / "results" / "adapters.jsonl")
ROWS = [
    "full",
    "lora",
    "dora",
    "lora+ 16",
    "lora, NEFTune",
    "bitfit",
    "prefix",
    "llama-adapter",
]
print(costs(EARLIER, ["chat-200", "calls-200"], ROWS, "lora"))

# %% [markdown]
# LoRA's step is no faster than full fine-tuning's. Frozen weights need no gradient of their own, which is a third of
# the products; but forward and the activations' gradients remain, and the factors add products and small operations.
# Methods without factors, as BitFit and prefix, keep that saving. DoRA takes 1.4 times as long (section 5 says why).
# These are times of a small model on a CPU; on a GPU small products weigh more, so measure there.

# %% [markdown]
# Memory is where adapters win. The library's estimate for Llama 3 8B, one sequence of 2,048 tokens on one GPU, with
# activation checkpointing and chunked cross-entropy (notebook 12 derives it):

# %%
large = published_meta_model("llama-3-8b")
common = {"compute_dtype": "bfloat16", "micro_batch_size": 1, "max_length": 2048,
          "activation_checkpointing": True, "loss_chunk": 1024, "kernel": "fused"}  # fmt: skip
bf16 = {"param_dtype": "bfloat16"}
PLANS = {
    "full, float32": MemoryPlan(**common),
    "LoRA r = 16, bfloat16 base": MemoryPlan(
        method="lora", options={"r": 16}, **bf16, **common
    ),
    "QLoRA r = 16, 4-bit base": MemoryPlan(
        method="lora", options={"r": 16}, base_dtype="nf4", **bf16, **common
    ),
}
GiB, memory = 2**30, {}
for name, plan in PLANS.items():
    estimate = memory[name] = estimate_memory(large, plan)
    states = estimate.states
    print(f"{name:27} weights {states.weights / GiB:5.1f}, gradients {states.gradients / GiB:4.1f}, "
          f"optimizer {states.optimizer / GiB:4.1f}, peak {estimate.peak / GiB:5.1f} GiB")  # fmt: skip

# %% [markdown]
# Full fine-tuning in float32 pays 16 bytes per parameter. LoRA keeps 2 bytes per frozen one, and moments for 42
# million; then the base's weights are nearly all that is left. That is what QLoRA shrinks.

# %% [markdown]
# ## 4 · QLoRA: a base in 4 bits
#
# QLoRA (Dettmers et al. 2023) stores the frozen matrices in 4 bits, dequantises one whenever it is used, and trains
# LoRA in 16 or 32 bits beside it. Four bits give 16 levels. Where should they lie?
#
# Weights are roughly normally distributed. **NF4**, 4-bit NormalFloat, places levels at quantiles of the normal
# distribution: close together where many weights are.


# %%
def normal_float(bits):
    """The 2 ** bits levels: quantiles of the normal distribution, 0 among them, scaled to -1 to 1."""
    n, quantile = 2 ** (bits - 1), torch.special.ndtri
    edge = 1 - (1 / (4 * n - 2) + 1 / (4 * n)) / 2  # the outermost; at 1 it would be infinite
    positive = quantile(torch.linspace(0.5, edge, n + 1, dtype=torch.float64)[1:])
    negative = -quantile(torch.linspace(0.5, edge, n, dtype=torch.float64)[1:])
    return torch.cat([negative.flip(0), torch.zeros(1), positive]) / positive.max()


nf4 = normal_float(4)
for half in nf4.split(8):
    print(" ".join(f"{level:+.3f}" for level in half))
assert len(nf4) == 16 and nf4[7] == 0 and nf4.min() == -1 and nf4.max() == 1

# %% tags=["hide-input"]
PUBLISHED = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
             0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)  # fmt: skip
worst = (nf4 - torch.tensor(PUBLISHED, dtype=torch.float64)).abs().max().item()
assert worst < 1e-5  # the table in the paper's appendix, which bitsandbytes uses

# %% [markdown]
# These are the levels of the paper's appendix, to five decimals. **Blockwise** quantisation divides every block of 64
# weights by its largest absolute value, its constant, and stores the index of the nearest level. By hand:


# %%
def quantise(W, levels, block=64):
    """Indices of the nearest levels (blocks, block), and a constant per block (blocks, 1)."""
    blocks = W.reshape(-1, block)
    constants = blocks.abs().amax(1, keepdim=True)
    scaled = (blocks / constants).contiguous()
    middle = (levels[1:] + levels[:-1]) / 2  # between two levels: where the nearest changes
    return torch.bucketize(scaled, middle.to(W.dtype)).to(torch.uint8), constants


def dequantise(codes, constants, levels, shape):
    return (levels.to(constants.dtype)[codes.int()] * constants).reshape(shape)


def error(W, levels, block=64):
    """Root of the mean squared error, as a fraction of the weights' own size."""
    restored = dequantise(*quantise(W, levels, block), levels, W.shape)
    return ((restored - W).norm() / W.norm()).item()


# %%
W = load_base()[0].model.layers[0].mlp.up_proj.weight.detach()  # (320, 128)
codes, constants = quantise(W, nf4)
print(
    f"{W.numel():,} weights -> {codes.numel():,} indices below {codes.max() + 1}, "
    f"{len(constants)} constants"
)
restored = dequantise(codes, constants, nf4, W.shape)
for row in range(2):
    print("before", " ".join(f"{v:+.3f}" for v in W[row, :4]), " after",
          " ".join(f"{v:+.3f}" for v in restored[row, :4]))  # fmt: skip

# %%
even = torch.linspace(-1, 1, 16, dtype=torch.float64)  # as 4-bit integers
scaled = (W.reshape(-1, 64) / constants).flatten()
_ = plot_levels(scaled, {"NF4": nf4, "even": even})

# %%
errors = {
    name: [error(m.weight.detach(), levels) for m in linears]
    for name, levels in (("NF4", nf4), ("even levels", even))
}
for name, found in errors.items():
    print(f"{name:11} off by {min(found):.1%} to {max(found):.1%} of the weights' size")
assert all(a < b for a, b in zip(*errors.values(), strict=True))

# %% tags=["hide-input"]
_ = ledger.add(
    "NF4 represents pretrained weights better than evenly spaced 4-bit levels",
    "Dettmers et al. 2023, QLoRA",
    all(a < b for a, b in zip(*errors.values(), strict=True)),
    f"root mean squared error in {len(linears)} of {len(linears)} matrices smaller: at most "
    f"{max(errors['NF4']):.1%} of the weights' size, {max(errors['even levels']):.1%} with even levels; blocks of 64",
)

# %% [markdown]
# NF4 is closer in every matrix, by a little.
#
# **Predict first:** why blocks? Make one weight 50 times as large as the largest, as outliers of large models are, and
# use one constant for the whole matrix:

# %%
outlier = W.clone()
outlier[0, 0] = 50 * W.abs().max()
others = torch.ones_like(W, dtype=torch.bool)
others[0, 0] = False
lost = {}
for block in (W.numel(), 64):
    restored = dequantise(*quantise(outlier, nf4, block), nf4, W.shape)
    lost[block] = ((restored - W)[others].norm() / W[others].norm()).item()
    print(
        f"blocks of {block:6,}: the other weights are off by {lost[block]:.0%} of their size"
    )
assert lost[W.numel()] > 0.9 and lost[64] < 0.15

# %% [markdown]
# The outlier stretches the levels so far apart that the other weights become 0. With blocks, only its 63 neighbours are
# affected.
#
# But constants cost memory: one float32 for 64 weights is half a bit per weight. **Double quantisation** stores the
# constants themselves in 8 bits, with one float32 for 256 of them:

# %%
plain = 4 + 32 / BLOCK
double = 4 + 8 / BLOCK + 32 / (BLOCK * BLOCKS)
weights = sum(
    m.weight.numel() for m in large.model.layers.modules() if type(m) is torch.nn.Linear
)
print(
    f"bits per weight: {plain:.3f}, with double quantisation {double:.3f}: {plain - double:.3f} saved"
)
for name, bits in (("bfloat16", 16), ("NF4", plain), ("NF4, double", double)):
    print(
        f"Llama 3 8B, {weights / 1e9:.2f} billion weights in its layers: "
        f"{name:11} {weights * bits / 8 / 1e9:5.2f} GB"
    )
assert (BLOCK, BLOCKS) == (64, 256) and round(plain - double, 3) == 0.373

# %% tags=["hide-input"]
_ = ledger.add(
    "double quantisation saves 0.37 bits per parameter",
    "Dettmers et al. 2023, QLoRA",
    round(plain - double, 2) == 0.37,
    f"{plain - double:.3f} bits per quantised weight, {weights * (plain - double) / 8 / 1e9:.2f} GB of Llama 3 8B",
    model=EXACT,
)

# %% [markdown]
# What does it do to a model? Quantise all matrices in pocket-base's layers, restore them, and ask for the facts.
# **Predict first:** how many are lost with 4, 3 and 2 bits?


# %%
@torch.no_grad()
def restored_base(levels, block=64):
    """pocket-base, with the matrices of its layers quantised and dequantised."""
    model, tokenizer = load_base(POCKET)
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            W = module.weight
            W.copy_(dequantise(*quantise(W, levels, block), levels, W.shape))
    return model.eval(), tokenizer


@torch.no_grad()
def facts_kept(model, tokenizer):
    right = knowledge_by_domain(model, tokenizer)["pages_right"].values()
    return sum(right) / len(right)


kept = {"float32": facts_kept(*load_base(POCKET))}
kept |= {bits: facts_kept(*restored_base(normal_float(bits))) for bits in (4, 3, 2)}

# %% tags=["nbval-ignore-output"]
for bits, share in kept.items():
    name = bits if bits == "float32" else f"{2**bits:2} levels, {bits} bits"
    print(f"{name:18} {share:.0%} of the facts")

# %%
assert kept[4] > 0.95 > 0.5 > kept[2]

# %% [markdown]
# Four bits keep the facts, two bits lose more than half.
#
# ### bitsandbytes
#
# In practice bitsandbytes packs two indices into a byte and dequantises in a kernel: `load_in_4bit` in transformers,
# `--load_in_4bit` of `ftkit finetune`. Where it is installed, this cell compares its result with ours.

# %% tags=["hide-input", "nbval-ignore-output"]
if is_bitsandbytes_available():
    from bitsandbytes import functional as bnb

    packed, state = bnb.quantize_4bit(W, blocksize=64, quant_type="nf4")
    theirs = bnb.dequantize_4bit(packed, state)
    ours = dequantise(*quantise(W, nf4), nf4, W.shape)
    same = torch.isclose(theirs, ours, atol=1e-4).float().mean().item()
    print(
        f"{packed.numel():,} bytes for {W.numel():,} weights; {same:.1%} restored to the same value as ours"
    )
    assert same > 0.99  # weights near the middle between two levels may round either way
else:
    print("bitsandbytes is not installed here: install it, then run this cell again")

# %% [markdown]
# The next exercise needs LoRA on both bases, in short runs:


# %%
def final_loss(quantised: bool, seed: int) -> float:
    """Validation loss, nats per token, of LoRA on 24 questions."""
    torch.manual_seed(seed)
    task = replace(load_task("chat-24", seed, POCKET, validation=True), epochs=6)
    if quantised:
        task.model.load_state_dict(restored_base(nf4)[0].state_dict())
    tuned = attach(task.model, "lora")
    optimizer = make_optimizer(
        tuned, "lora", study.best(trial(LORA)), weight_decay=WEIGHT_DECAY
    )
    list(training_steps(replace(task, model=tuned), optimizer, seed))
    with torch.no_grad():
        return task.evaluate(tuned.eval(), "validation")["validation_loss"]


# %% [markdown]
# ### Exercise 2 · what four bits cost
#
# Difficulty ●●●, 12 minutes; the runs take about 10 s. `final_loss(quantised, seed)` trains LoRA for 12 steps on a
# 4-bit or float32 base and returns the validation loss. Run both for each seed, and return "costs", "gains" or "cannot
# tell" by the 95 % interval of the paired differences (`interval(values)` has `low` and `high`). The checker tries
# made-up losses first. Expected: one of the three words.


# %% tags=["exercise"]
def four_bits(final_loss, seeds) -> str:
    """ "costs", "gains" or "cannot tell": the effect of a 4-bit base on the loss."""
    ### BEGIN SOLUTION
    found = interval([final_loss(True, seed) - final_loss(False, seed) for seed in seeds])
    return "costs" if found.low > 0 else "gains" if found.high < 0 else "cannot tell"
    ### END SOLUTION


check_four_bits(four_bits, final_loss)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# A difference for each seed, then `interval` of the differences. A cost is a higher loss, so an interval above 0.
#
# </details>

# %% [markdown]
# ## 5 · DoRA: length and direction apart
#
# LoRA adds `B @ A`, which changes the length and the direction of each output's weights together. **DoRA** (Liu et al.
# 2024) separates them: `B @ A` turns the direction, and a trained vector $m$ sets the length, row by row:
#
# $$m \odot \frac{W + s\,B A}{\lVert W + s\,B A \rVert}$$

# %%
A = torch.randn(8, W.shape[1], generator=torch.Generator().manual_seed(0)) / 10
B = torch.randn(W.shape[0], 8, generator=torch.Generator().manual_seed(1)) / 10
scaling = 16 / 8  # lora_alpha / r


def dora_matrix(W, A, B, magnitude, scaling):
    direction = W + scaling * B @ A  # (out, in)
    return magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)


magnitude = W.norm(dim=1)  # (out,): as it starts
assert torch.allclose(dora_matrix(W, A, 0 * B, magnitude, scaling), W, rtol=1e-5)

# %% [markdown]
# With B = 0 this is W. Does PEFT's layer compute this matrix, with the same A and B?

# %%
layer = attach(load_base()[0], "dora").base_model.model.model.layers[0].mlp.up_proj
with torch.no_grad():
    layer.lora_A["default"].weight.copy_(A)
    layer.lora_B["default"].weight.copy_(B)
    x = torch.randn(5, W.shape[1], generator=torch.Generator().manual_seed(2))
    ours = x @ dora_matrix(W, A, B, magnitude, scaling).T + layer.base_layer.bias
    with_lora = x @ (W + scaling * B @ A).T + layer.base_layer.bias
    apart = [((y - ours).abs().max() / ours.abs().max()).item() for y in (layer(x), with_lora)]
print(
    f"PEFT's DoRA layer differs from ours by less than {1e-5:.3%}, "
    f"LoRA with the same factors by {apart[1]:.0%}"
)
assert apart[0] < 1e-5 and apart[1] > 0.1

# %% [markdown]
# For the lengths, DoRA forms the whole `W + s * B @ A` in every forward pass, which LoRA never does. That is the extra
# time in section 3. (In the backward pass PEFT treats the length as a constant, as the paper does.)

# %% [markdown]
# ### Does DoRA move like full fine-tuning?
#
# The paper's figure 2 plots, for each matrix, ΔM, the mean change of length, over ΔD, the mean change of direction
# (1 - cosine). It finds them positively correlated under LoRA, and negatively under full fine-tuning and DoRA. Here is
# pocket-base at the end of each run: a point is a matrix, its colour and shape the seed.

# %% tags=["hide-input"]
MOVED = records.read_records(data_dir() / "results" / "dora.jsonl")
METHODS_MOVED = ("full", "lora", "dora")


def at_the_end(moment, matrix):
    return moment == dora.MOMENTS


correlations = {row: dora.correlation(MOVED, row, at_the_end) for row in METHODS_MOVED}
panels = {
    row: [dora.chosen_points(run, at_the_end) for run in MOVED if run["row"] == row]
    for row in METHODS_MOVED
}
notes = {row: f"correlation {min(c):+.2f} to {max(c):+.2f}" for row, c in correlations.items()}
_ = plot_movement(panels, notes)

# %% tags=["hide-input"]
DORA_PAPER = "Liu et al. 2024, DoRA, figure 2"
found = "correlations of ΔM and ΔD over 28 matrices: "
found += "; ".join(f"{row} {note.removeprefix('correlation ')}" for row, note in notes.items())
seeds = len(correlations["full"])
_ = ledger.add(
    "full fine-tuning changes lengths against directions, LoRA changes both together",
    DORA_PAPER,
    max(correlations["full"]) < 0 < min(correlations["lora"]),
    found,
    seeds=seeds,
)
_ = ledger.add(
    "DoRA changes lengths against directions, as full fine-tuning does",
    DORA_PAPER,
    max(correlations["dora"]) < 0,
    found,
    seeds=seeds,
)
assert max(correlations["full"]) < min(correlations["dora"])
assert max(correlations["dora"]) < min(correlations["lora"])

# %% [markdown]
# As in the paper, the correlation is negative under full fine-tuning and positive under LoRA. DoRA's is between the two
# and still positive: weaker than LoRA's, not reversed.
#
# Each method ran at its own best learning rate of section 2, and a higher one moves a matrix further. 28 small matrices
# of four layers are not the paper's model.

# %% [markdown]
# ## 6 · LoRA+, NEFTune and trained prompts
#
# **LoRA+** (Hayou et al. 2024) gives B a learning rate that is `ratio` times that of A. It is LoRA with other parameter
# groups:

# %%
tuned = attach(load_base()[0], "lora+")
optimizer = make_optimizer(tuned, "lora+", lr=1e-3, loraplus_lr_ratio=16)
named = {id(p): name for name, p in tuned.named_parameters()}
for group in optimizer.param_groups:
    kinds = {"lora_B" if "lora_B" in named[id(p)] else "lora_A" for p in group["params"]}
    if kinds:
        print(f"lr {group['lr']:g}: {len(group['params'])} tensors, {', '.join(kinds)}")
        assert kinds == ({"lora_B"} if group["lr"] > 2e-3 else {"lora_A"})

# %% [markdown]
# Search the learning rate again when you turn LoRA+ on. With A at LoRA's best learning rate, B would train at 16 times
# that. In the stored runs exact match falls already at a third of it. Open markers are seeds, the diamond is the best
# mean, and its two neighbours bound the grey range:

# %%
for name in (LORA, LORAPLUS):
    print(f"{name}: best learning rate of A {study.best(trial(name)):g}")
_, axes = new_axes(8.6, 2.6, columns=2)
for ax, name in zip(axes, (LORA, LORAPLUS), strict=True):
    plot_learning_rates(study.curve(trial(name)), best=study.best(trial(name)), ax=ax)
    ax.set(title=name, ylim=(0, 1), xlim=(1e-4, 1e-1))
axes[0].set_ylabel("validation, exact match")
_ = axes[1].set_xlabel("peak learning rate of A")

# %% [markdown]
# **NEFTune** (Jain et al. 2023) adds noise to the embedded tokens in training. Each entry gets a number drawn uniformly
# from $\pm \alpha / \sqrt{L\,D}$, with $L$ tokens in the sequence, padding included, and $D$ numbers per token.

# %%
ALPHA, L = 5.0, 64
tuned = attach(load_base()[0], "lora", neftune_alpha=ALPHA)
embed = tuned.get_base_model().get_input_embeddings()
ids = torch.arange(16 * L).reshape(16, L) % config.vocab_size
torch.manual_seed(0)
with torch.no_grad():
    clean = embed.eval()(ids)
    noise = embed.train()(ids) - clean  # (16, L, D)
    in_eval = (embed.eval()(ids) - clean).abs().max()
bound = ALPHA / math.sqrt(L * config.hidden_size)
print(
    f"largest noise {noise.abs().max():.4f} of a bound of {bound:.4f}; in evaluation {in_eval:.0f}"
)
assert noise.abs().max() <= bound < 1.01 * noise.abs().max() and in_eval == 0
assert abs(noise.std() - bound / math.sqrt(3)) < 0.01 * bound  # a uniform's, not a Gaussian's

# %% [markdown]
# Because L is the padded length, the same short sequence gets less noise in a batch with a long one. The paper reports
# gains in free conversation and none on the Open LLM Leaderboard's tasks; our short exact answers are of the second
# kind.

# %% [markdown]
# **Prefix-tuning** (Li and Liang 2021) puts trained keys and values in front of every layer's own. **LLaMA-Adapter**
# (Zhang et al. 2023) attends to trained prompts through a gate that starts at zero. **Predict first:** which of the two
# changes the model before the first step?

# %%
tokenizer = load_base()[1]


def conversations(rows):
    return [encode(tokenizer, row["messages"], tokenizer.chat_template) for row in rows]


batch = pad(conversations(call_splits(16)["train"]), tokenizer.pad_token_id)
moved = {}
with torch.no_grad():
    base_logits = load_base()[0](**batch).logits
    for method in ("prefix", "llama-adapter"):
        torch.manual_seed(0)
        logits = attach(load_base()[0], method).eval()(**batch).logits
        moved[method] = (
            (logits - base_logits)[batch["attention_mask"].bool()].abs().max().item()
        )
        print(
            f"{method:13} moves the logits by up to {moved[method]:.1f} before the first step"
        )
assert moved["prefix"] > 0.05 and moved["llama-adapter"] < 1e-3

# %% [markdown]
# The gate does what B = 0 does for LoRA. Neither method can be merged, because there is no matrix to merge into, and
# PEFT supports LLaMA-Adapter for a few architectures only:

# %%
tiny = transformers.Qwen3Config(
    num_hidden_layers=1, hidden_size=32, intermediate_size=32, vocab_size=64
)
model = transformers.AutoModelForCausalLM.from_config(tiny, trust_remote_code=False)
try:
    attach(model, "llama-adapter")
except ValueError as refusal:
    print(refusal)
else:
    raise AssertionError("PEFT knows a new architecture: say so here")

# %% [markdown]
# ## 7 · A real model: function calls
#
# SmolLM2-135M-Instruct learns to write spoken requests as function calls (SNIPS, Coucke et al. 2018; 192 examples, 48
# steps of 8, weights dequantised from four bits). A call counts as exact if name and all arguments are. Full AdamW and
# LoRA on all linear layers, each at its own bracketed learning rate:

# %% tags=["hide-input"]
real = RealStudy()
print(real.source().replace("; ", "\n"))
print(real_results(real))
ax = plot_real_learning_rates(real, searched(real))
_ = ax.legend(frameon=False, loc="lower right")  # away from the curves

# %%
if "LoRA" in searched(real):
    times = real.best_rate("LoRA") / real.best_rate("AdamW")
    print(f"LoRA's best learning rate is {times:.0f} times full fine-tuning's")
    gap = real.gain(("LoRA",), ("AdamW",))
    print(f"exact calls, LoRA less full: {gap.points} percentage points (3 seeds)")
    assert 3 < times < 30
else:
    print("LoRA's runs are not stored yet: python -m experiments.real_model.study makes them")

# %% [markdown]
# Dotted lines are the libraries' default learning rates. Each point is one run with 100 validation requests, so
# differences of a few percentage points are noise. What this model forgot was not measured.

# %% [markdown]
# ## 8 · One base, many adapters
#
# An adapter is a small file beside a base that nobody changes. **Predict first:** how large is LoRA with r = 16 on all
# linear layers of Llama 3 8B, and how large the model?

# %%
whole = count_parameters(published_meta_model("llama-3-8b")).total * 2  # bytes in bfloat16
adapter = (
    count_parameters(attach(published_meta_model("llama-3-8b"), "lora", r=16)).trainable * 2
)
print(f"Llama 3 8B in bfloat16 {whole / 1e9:.1f} GB, LoRA with r = 16 {adapter / 1e6:.0f} MB")
assert whole > 100 * adapter

# %% [markdown]
# Train three adapters on one base: chat, function calls, and bare facts. The first is the stored run of seed 0, made
# again.


# %%
def train(task, epochs):
    """LoRA on a fresh base, at the stored runs' learning rate."""
    torch.manual_seed(SEED)
    tuned = attach(task.model, "lora")
    lr = study.best(trial(LORA))
    optimizer = make_optimizer(tuned, "lora", lr, weight_decay=WEIGHT_DECAY)
    losses = list(training_steps(replace(task, model=tuned, epochs=epochs), optimizer, SEED))
    return tuned.eval(), losses


def terse(fact):
    """A question, and the bare fact."""
    question = {"role": "user", "content": fact.questions[0]}
    return {"messages": [question, {"role": "assistant", "content": fact.value}]}


# %% tags=["nbval-ignore-output"]
folder = tempfile.mkdtemp()
task = load_task(trade_off.TASK, SEED, POCKET, validation=True)
live, losses = train(task, task.epochs)
sets = {
    "calls": call_splits(200)["train"],
    "terse": [terse(fact) for fact in all_facts()[::2]],
}
trained = {"chat": live}
for name, rows in sets.items():
    data = replace(task, model=load_base(POCKET)[0], train=conversations(rows))
    trained[name] = train(data, SERVED_EPOCHS)[0]
for name, tuned in trained.items():
    save_adapter(tuned, f"{folder}/{name}")
    size = os.path.getsize(f"{folder}/{name}/adapter_model.safetensors")
    print(f"{name}: stored in {size:,} bytes")

# %%
stored = study.runs(trial(LORA))[SEED]
with torch.no_grad():
    scores = task.evaluate(live, "test")
print(
    f"{len(losses)} steps of {BATCH_SIZE}; exact match within 15 percentage points of the stored run's"
)
assert abs(scores["test_exact"] - stored["test_exact"]) < 0.15
assert all(abs(a - b) < 2e-3 * b for a, b in zip(losses, stored["first_losses"], strict=False))

# %%
served = load_adapter(load_base()[0], f"{folder}/chat", "chat").eval()
for name in sets:
    served.load_adapter(f"{folder}/{name}", adapter_name=name)
added = count_parameters(served).total - total
print(f"{sorted(served.peft_config)}: {total:,} parameters once, and {added:,} beside them")
assert added == 3 * counts["lora"]

# %% [markdown]
# A batch may name the adapter of each sequence; here one question goes to all of them. Does each sequence get what its
# adapter alone would give it?

# %%
WHO = dict.fromkeys([*served.peft_config, "__base__"], "What is 2 plus 3?")
asked = [[{"role": "user", "content": question}] for question in WHO.values()]
mixed = tokenizer.apply_chat_template(
    asked, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt",
    tokenizer_kwargs={"padding_side": "left"},
)  # fmt: skip
with torch.no_grad():
    together = served(**mixed, adapter_names=list(WHO)).logits[:, -1]
    for place, name in enumerate(served.peft_config):
        served.set_adapter(name)
        one = {key: value[place : place + 1] for key, value in mixed.items()}
        apart = (served(**one).logits[0, -1] - together[place]).abs().max()
        other = (together[place] - together[place - 1]).abs().max()
        print(
            f"{name}: logits alone and in the mixed batch differ by {apart:.2f}; "
            f"another adapter's by over 0.1"
        )
        assert apart < 1e-3 and other > 0.1

# %% tags=["nbval-ignore-output"]
ends = {"eos_token_id": stop_token_ids(served, tokenizer), "max_new_tokens": 20}
said = served.generate(**mixed, **ends, adapter_names=list(WHO), do_sample=False)
for name, row in zip(WHO, said, strict=True):
    answer = tokenizer.decode(row[mixed["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{name:8} {answer!r}")

# %% [markdown]
# One batch, three forms of answer, and the base model's continuation. Look at the form, not at the sums: the base model
# gets them wrong, too. To switch a whole model, call `set_adapter(name)`; it needs no second copy of the base.

# %% [markdown]
# ### Break it, then fix it
#
# An adapter belongs to **one** base. Its tensors fit any base of the same shape, but they were trained for these
# weights. Here the base has been changed a little, as in the next release of a model.

# %%
torch.manual_seed(0)
another = load_base()[0]
with torch.no_grad():
    for parameter in another.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.02)

# %% tags=["raises-exception"]
with expected_error(ValueError):
    load_adapter(another, f"{folder}/chat")

# %% [markdown]
# `save_adapter` stores a fingerprint of the base beside the adapter, and `load_adapter` compares. PEFT alone loads it
# without a message. The fix is the right base:

# %%
PeftModel.from_pretrained(another, f"{folder}/chat")  # no message
again = load_adapter(load_base()[0], f"{folder}/chat")
with torch.no_grad():
    apart = (again.eval()(**batch).logits - live(**batch).logits).abs().max()
print(f"on its own base the adapter's logits differ by {apart:.2f} from those after training")
assert apart < 1e-3

# %% [markdown]
# ### On your own model and data
#
# In a terminal, for any causal language model and conversations as JSON lines; after an interruption the same command
# continues:
#
# ```
# python -m ftcourse.studies.adapters --model MODEL --data chats.jsonl \
#     --rows full lora dora "lora, NEFTune"
# ```
#
# It searches each method's learning rate, runs three seeds, and writes a table as Markdown and JSON.

# %% [markdown]
# ## What transfers
#
# Measured here: pocket-base, 1.0 M parameters, width 128, a quarter of them in embedding and LM head, 96 questions, 60
# steps.
#
# | | transfers to 1B to 8B | does not |
# | --- | --- | --- |
# | forgetting | compare on the curve, at equal learning | the shares, and which method forgets more |
# | LoRA's relatives | search each one's learning rate anew; use several seeds | which one leads by a few percent |
# | BitFit, prompts | they train least | their scores: many models have no biases at all |
# | QLoRA | bits per weight, blocks, the error of NF4 | what four bits cost in quality |
# | serving | mixed batches, fingerprints | |

# %% [markdown]
# From the literature, not measured here: on Llama-2-7B, LoRA learns less than full fine-tuning in code and mathematics
# and keeps more of the base's abilities (Biderman et al. 2024). On small and medium instruction data it matches full
# fine-tuning up to its capacity (Schulman et al. 2025). QLoRA on 4-bit bases matches 16-bit fine-tuning, with adapters
# on all linear layers (Dettmers et al. 2023).

# %% [markdown]
# ## Numbers to take away
#
# - Full float32 fine-tuning: 16 bytes per parameter. LoRA on a bfloat16 base: 2 bytes per frozen parameter. QLoRA:
#   4.13 bits, about half a byte, per weight of the layers.
# - NF4 is off by about a tenth of a weight's size; double quantisation saves 0.37 bits per weight.
# - An adapter with r = 16 on all linear layers of an 8B model is below 100 MB in bfloat16.
# - LoRA+: ratio 16 of B to A (Hayou et al. 2024). NEFTune: alpha 5 to 15 (Jain et al. 2023). From the literature.

# %%
assert 15 < memory["full, float32"].states.weights * 4 / count_parameters(large).total < 17
assert 0.05 < max(errors["NF4"]) < 0.15 and adapter < 100e6 and round(double, 2) == 4.13

# %% [markdown]
# ## Recap
#
# - A method is a trade-off of learning, forgetting, memory and speed; draw learning against forgetting.
# - Forgetting rises with the learning rate of nearly every method: compare each at its own best, or at equal learning.
# - LoRA saves memory, hardly any time; QLoRA shrinks the frozen base, which is most of what remains.
# - 4-bit quantisation is a table of 16 levels, an index per weight and a constant per block.
# - DoRA separates length from direction, LoRA+ the learning rates of A and B, and NEFTune adds noise in training only.
# - One base serves many adapters in one batch; an adapter belongs to one base.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. Two methods were compared at one learning rate, and one forgot less. What do you ask?
# 2. Why does LoRA save much memory and little time?
# 3. Why are NF4's levels not evenly spaced, and why does every block of 64 weights have its own constant?
# 4. What must be searched anew when LoRA+ replaces LoRA?
# 5. Why can LLaMA-Adapter not harm the model before the first step, and why can it not be merged?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: how much each had learnt at that rate, and what the curves of both look like over the learning rate.
# - 2: frozen weights need no gradients and moments, but forward and the activations' gradients stay.
# - 3: weights are roughly normal, so most lie near 0; an outlier would use up the levels of all weights that share its
#   constant.
# - 4: the learning rate: B's is a multiple of A's.
# - 5: its gate starts at zero; it adds inputs to attention, not a change of a matrix.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Biderman et al., [LoRA Learns Less and Forgets Less](https://arxiv.org/abs/2405.09673), 2024; Schulman et al.,
#   [LoRA Without Regret](https://thinkingmachines.ai/blog/lora/), 2025.
# - Dettmers et al., [QLoRA](https://arxiv.org/abs/2305.14314), 2023: NF4, double quantisation.
# - Liu et al., [DoRA](https://arxiv.org/abs/2402.09353), 2024; Hayou et al., [LoRA+](https://arxiv.org/abs/2402.12354),
#   2024; Jain et al., [NEFTune](https://arxiv.org/abs/2310.05914), 2023.
# - Li and Liang, [Prefix-Tuning](https://arxiv.org/abs/2101.00190), 2021; Zhang et al.,
#   [LLaMA-Adapter](https://arxiv.org/abs/2303.16199), 2023; Ben Zaken et al.,
#   [BitFit](https://arxiv.org/abs/2106.10199), 2022.
# - Coucke et al., [Snips Voice Platform](https://arxiv.org/abs/1805.10190), 2018: the function calls' requests.
# - PEFT, [documentation](https://huggingface.co/docs/peft): every adapter here, and the mixed batch.
#
# ## Next
#
# [11_speed_ups](11_speed_ups.ipynb): what makes the same fine-tune faster, and where the memory goes.
