# %% [markdown]
# # 11 · Speed-ups: what makes a step fast
#
# You measure how fast a training step is and where its time and memory go, and try what speeds it up: less padding, a
# chunked loss, fused operations, a compiler, recomputation. Each has to give the same gradients.
#
# - **Prerequisites:** a training loop and cross-entropy; [08_full_fine_tune](08_full_fine_tune.ipynb) helps.
# - **Hardware:** any processor; two cores are enough. GPU figures are quoted with their source.
# - **Time:** about 45 minutes with the exercises; its cells run in less than a minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **compute** tokens per second and MFU, and say whether a figure is good,
# - **remove** padding by grouping or packing,
# - **find** the logits at the peak of a step, and keep them out of it,
# - **read** a profiler trace: which phase, which operation, which gap,
# - **judge** a speed-up: of a step, of a run, and against which baseline.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import contextlib
import inspect
import json
import os
import re
import tempfile
import textwrap
import time
import warnings
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
import transformers

# %%
from ftcourse import traces
from ftcourse.claims import Ledger
from ftcourse.exercises.speed_ups import (
    check_chunked_loss,
    check_make_batches,
    check_time_both,
)
from ftcourse.expected import expected_error
from ftcourse.explorers.logits import PER_LOGIT, LogitsExplorer
from ftcourse.meter import metered
from ftcourse.plots import HATCHES, OKABE_ITO, new_axes, use_course_style
from IPython.utils.capture import capture_output
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig
from trl.trainer.utils import add_fused_lm_head

from ftkit import load_base, load_chat
from ftkit.batching import global_batch, pack, packed_micro_batches, pad
from ftkit.conversations import encode, training_template
from ftkit.finetune.train import main as finetune
from ftkit.loss import IGNORE_INDEX, summed_cross_entropy
from ftkit.memory import published_meta_model
from ftkit.models import data_dir

# %% tags=["nbval-ignore-output"]
use_course_style()
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()  # what torch.compile writes
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing", FutureWarning)
torch.set_num_threads(1)
print(f"torch {torch.__version__}, device: cpu")

# %%
MIB, GIB = 2**20, 2**30  # bytes
BATCH = 16  # conversations in a batch
ROWS, WIDTH = 1024, 128  # tokens of a batch, and the hidden size
VOCABULARY = 16_384  # as of a small real model
SEED = 0  # of every tensor drawn here
ledger = Ledger("speed and memory")  # the claims tested here; the recap shows them
model, tokenizer = load_base(data_dir() / "pocket-base")
config = model.config

# %% [markdown]
# ## 1 · How fast is fast?
#
# Two figures say how fast training is. **Tokens per second** counts tokens of the data, without padding. **MFU**, model
# FLOPs utilisation, divides the FLOPs that the model needs by those that the hardware could have done meanwhile
# (Chowdhery et al. 2022):
#
# $$\text{MFU} = \frac{\text{tokens per second} \times \text{FLOPs per token}}{\text{peak FLOP/s}}$$
#
# A matrix multiplies and adds once per parameter and token: 2 FLOPs forward, 4 backward.


# %%
def flops_per_token(config, parameters, length):
    """FLOPs of a training step: 6 per parameter in a matrix product, and attention's."""
    attention = 12 * config.num_hidden_layers * config.hidden_size * length
    return 6 * parameters + attention


# %% [markdown]
# **Predict first:** the formula needs the parameters in matrix products. The embedding is a look-up, so it is left out.
# Does the result agree with torch's own count of a step?

# %%
in_products = (
    sum(p.numel() for p in model.parameters()) - model.model.embed_tokens.weight.numel()
)
ids = torch.randint(1024, (4, 128), generator=torch.Generator().manual_seed(SEED))
model.set_attn_implementation("eager")  # which torch can count
with FlopCounterMode(display=False) as counter:
    model(ids, labels=ids).loss.backward()
model.zero_grad()
by_formula = flops_per_token(config, in_products, 128) * ids.numel()
print(f"formula {by_formula / 1e9:.2f} GFLOPs, counted {counter.get_total_flops() / 1e9:.2f}")
assert abs(by_formula / counter.get_total_flops() - 1) < 0.01

# %% [markdown]
# They agree within 1 %: "6 FLOPs per parameter and token" is the usual rule. **Predict:** what is left of the 6 if the
# matrices are frozen, as under LoRA? And with activation checkpointing?


# %%
def counted():
    """FLOPs per parameter and token of a step, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids).loss.backward()
    model.zero_grad()
    return 6 * counter.get_total_flops() / by_formula


# The embedding stays trainable, so that backward runs through all layers, as it does for LoRA's factors.
model.requires_grad_(False).model.embed_tokens.requires_grad_(True)
frozen = counted()
model.requires_grad_(True).train().gradient_checkpointing_enable({"use_reentrant": False})
recomputed = counted()
model.gradient_checkpointing_disable()
model.set_attn_implementation("sdpa")
print(f"frozen matrices: {frozen:.1f} FLOPs; layers recomputed: {recomputed:.1f}")
assert 3.9 < frozen < 4.6 and 7 < recomputed <= 8

# %% [markdown]
# A frozen matrix needs no gradient of its own, but has to pass the gradient on to the layers below: 4 of the 6 FLOPs
# stay, besides attention's. So a LoRA step is at most 1.5 times faster. Recomputation adds the layers' forward pass, 2
# more FLOPs; 7.4 and not 8, because the LM head and each layer's last product are not computed again.

# %% [markdown]
# MFU divides by the hardware's peak FLOP/s. Here we measure it with one large matrix product; on a GPU, take the data
# sheet's *dense* figure (989 TFLOP/s in bfloat16 for an H100 SXM, not the 1,979 with sparsity).


# %%
def seconds(function, *args, repeats=5):
    """The median of a few runs, after one that warms up."""
    function(*args)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(*args)
        times.append(time.perf_counter() - start)
    return median(times)


# %%
square = torch.randn(1024, 1024)
peak_flops = 2 * 1024**3 / seconds(torch.mm, square, square)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)


def train_step(batch):
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


full = {"input_ids": ids, "labels": ids}  # no padding
speed = ids.numel() / seconds(train_step, full)
mfu = speed * flops_per_token(config, in_products, 128) / peak_flops

# %% [markdown]
# These are the figures of your machine; see them with `print(f"{speed:,.0f} tokens/s, MFU {mfu:.0%}")` in a new cell.
# They differ from run to run, so the cells below print recorded ones (`python -m ftcourse.step_speeds`):

# %%
recorded = json.loads((data_dir() / "results" / "step_speeds.json").read_text())
share = recorded["full"] * flops_per_token(config, in_products, 128) / recorded["flops"]
print(f"{recorded['processor']}: peak {recorded['flops'] / 1e9:.0f} GFLOP/s")
print(f"pocket-base: {recorded['full']:,.0f} tokens per second, MFU {share:.0%}")
assert 0.1 < share < 0.7

# %% [markdown]
# MFU cannot exceed 1, and padding, small matrices, data loading and waiting all lower it. What do others reach?
# torchtitan publishes tokens per second of Llama 3.1 8B on eight H100s under FSDP2 at 8,192 tokens
# ([table](https://github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md)). **Predict
# their MFU** from 5,762 and, with `torch.compile`, 6,667 tokens per second and GPU.

# %%
llama = published_meta_model("llama-3-8b")
of_llama = sum(p.numel() for p in llama.parameters()) - llama.model.embed_tokens.weight.numel()
published = {}
for name, tokens_per_second in {"FSDP2": 5762, "FSDP2 and torch.compile": 6667}.items():
    needed = flops_per_token(llama.config, of_llama, 8192)
    published[name] = tokens_per_second * needed / 989e12
    print(
        f"{name:24} {tokens_per_second:,} tokens per second and GPU: MFU {published[name]:.0%}"
    )
assert [round(100 * share) for share in published.values()] in ([33, 39], [34, 39])
assert 6500 < 0.4 * 989e12 / needed < 7500

# %% [markdown]
# torchtitan states 33 to 39 %; the Llama 3 report 38 to 43 % for 405B. So 35 to 45 % is good on H100s; at 10 %, look
# for what is wrong. One number to remember: at 40 % MFU, an H100 trains an 8B model on about 7,000 tokens per
# second.

# %% [markdown]
# ## 2 · Padding and packing
#
# A batch is as wide as its longest example. Shorter ones are padded: padding is computed, then masked. These are the
# chats about the almanac, in batches of 16. **Predict first:** how much of what the model computes is padding?

# %%
template = training_template(tokenizer)
chats = load_chat(data_dir() / "chat")["train"]
examples = [encode(tokenizer, row["messages"], template) for row in chats]
lengths = [len(example["input_ids"]) for example in examples]
steps = len(examples) // BATCH
print(
    f"{len(lengths)} conversations of {min(lengths)} to {max(lengths)} tokens, "
    f"median {median(lengths):.0f}"
)

# %%
shuffled = [global_batch(examples, step, BATCH, SEED) for step in range(steps)]
by_length = sorted(examples, key=lambda example: len(example["input_ids"]))
grouped = [by_length[i : i + BATCH] for i in range(0, steps * BATCH, BATCH)]
# Packing puts the conversations of a batch into sequences of up to 256 tokens together.
packed = [pack(batch, 256) for batch in shuffled]
larger = [global_batch(examples, step, 4 * BATCH, SEED) for step in range(steps // 4)]


def real(batch):
    """Tokens of the data in a batch."""
    return sum(len(example["input_ids"]) for example in batch)


def places(batch):
    """Tokens that are computed for a padded batch."""
    return len(batch) * max(len(example["input_ids"]) for example in batch)


def packed_places(batches):
    """Tokens that are computed for packed batches, each as wide as its longest sequence."""
    return sum(len(bins) * max(real(part) for part in bins) for bins in batches)


# %%
total = sum(real(batch) for batch in shuffled)
computed = {
    "shuffled, padded": sum(places(batch) for batch in shuffled),
    "grouped by length": sum(places(batch) for batch in grouped),
    "packed": packed_places(packed),
    "packed, 64 at a time": packed_places([pack(batch, 256) for batch in larger]),
}
# These two leave a few conversations out, so they have a total of their own.
kept = {"grouped by length": grouped, "packed, 64 at a time": larger}
kept = {name: sum(real(batch) for batch in batches) for name, batches in kept.items()}
waste = {name: 1 - kept.get(name, total) / size for name, size in computed.items()}
for name, share in waste.items():
    print(f"{name:20} {share:.0%} of the computed tokens are padding")
assert waste["shuffled, padded"] > 2 * waste["packed"] > 2 * waste["packed, 64 at a time"]

# %% tags=["hide-input"]
figure, axes = new_axes(8, 2.6, columns=2)
axes[0].hist(
    lengths, bins=range(0, max(lengths) + 5, 5), color=OKABE_ITO[0], edgecolor="white"
)
axes[0].set(xlabel="tokens of a conversation", ylabel="conversations")
bars = axes[1].barh(list(waste), [100 * share for share in waste.values()], color=OKABE_ITO[1])
for bar, hatch in zip(bars, HATCHES, strict=False):
    bar.set(hatch=hatch, edgecolor="white")
axes[1].bar_label(bars, [f" {share:.0%}" for share in waste.values()])
axes[1].set(xlabel="% of the computed tokens are padding", xlim=(0, 100))
axes[1].invert_yaxis()

# %% [markdown]
# Grouping by length wastes least, but changes which examples share a batch. Packing keeps the batch; the more examples
# it can choose from, the fuller the sequences. `ftkit finetune --packing` packs, with the same mean over the same
# labels. Packing needs a mask, so that each conversation attends to itself alone ([05](05_chat_templates.ipynb)
# measures what leaks otherwise). The masks of one packed sequence:

# %% tags=["hide-input"]
bins = max(packed, key=lambda bins: len(bins[0]))[0]
edges = [0]
for example in bins:
    edges.append(edges[-1] + len(example["input_ids"]))
figure, axes = new_axes(8, 3.2, columns=2)
for ax, ends, title in zip(
    axes,
    (edges, [0, edges[-1]]),
    ("with position_ids that restart", "without: they leak"),
    strict=True,
):
    for number, (a, b) in enumerate(pairwise(ends)):
        ax.fill([a, a, b], [a, b, b], color=OKABE_ITO[(0, 2)[number % 2]])
    ax.set(
        title=title,
        xlabel="attends to token",
        ylabel="token",
        xlim=(0, edges[-1]),
        ylim=(edges[-1], 0),
    )
    ax.set_aspect("equal")

# %% [markdown]
# Is it faster, too? Take the batch with the most padding, train on it padded and packed, and count the tokens of the
# data per second.

# %%
some = max(shuffled, key=lambda batch: places(batch) / real(batch))
[in_bins] = packed_micro_batches(some, BATCH, 256, 0, 0, 1)
speeds = {"padded": seconds(train_step, pad(some, 0)), "packed": seconds(train_step, in_bins)}
print(f"of the padded batch {1 - real(some) / places(some):.0%} are padding")

# %%
for name in ("padded", "packed"):
    print(f"{name}: {recorded[name]:,.0f} tokens per second, recorded")
print(f"packed is {recorded['packed'] / recorded['padded']:.1f} times as fast")
assert recorded["packed"] > 2 * recorded["padded"]

# %% [markdown]
# Only a third of the padded batch is data, which accounts for a factor of about 3.
#
# `ftkit finetune` leaves padding out of its tokens per second, so the figure rises when padding goes. A program that
# counts padding hides its waste: ask what is counted before you compare.

# %% [markdown]
# ### Exercise 1 · Batches with little padding
#
# Difficulty ●●○, 8 minutes. Sorted examples would train on short ones first and on long ones last. So put examples of
# similar length into a batch, and the batches into random order. Expected: lists of at most `batch_size` indices; each
# index once; at most 20 % padding for the checker's lengths, where the given order has over 40 %.


# %% tags=["exercise"]
def make_batches(
    lengths: list[int], batch_size: int, generator: torch.Generator
) -> list[list[int]]:
    """Indices of examples, a list per batch; `generator` draws the order."""
    ### BEGIN SOLUTION
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    ### END SOLUTION


check_make_batches(make_batches)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Sort the indices by length, cut the sorted list into batches, and shuffle the batches with
# `torch.randperm(len(batches), generator=generator)`.
#
# </details>

# %% [markdown]
# ## 3 · The logits
#
# The LM head compares each token's hidden state with every token of the vocabulary: **logits** of shape (B, T, V). The
# loss then makes tensors of the same shape. `metered` counts the live bytes after every operation, in torch's
# dispatcher. We compare transformers' loss, the same without a reference to `outputs`, and ftkit's.
#
# **Predict first:** how many bytes per logit does transformers' Llama have at the peak, in bfloat16?


# %%
def thin_llama(dtype, vocabulary=VOCABULARY):
    """A Llama of which little but the vocabulary is left."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1}
    thin = LlamaConfig(vocab_size=vocabulary, num_hidden_layers=1, **shape)
    return AutoModelForCausalLM.from_config(thin, dtype=dtype, trust_remote_code=False)


def by_transformers(thin, ids):
    outputs = thin(ids, labels=ids)  # whose logits live until the function returns
    outputs.loss.backward()


def logits_dropped(thin, ids):
    thin(ids, labels=ids).loss.backward()


def by_ftkit(thin, ids):
    summed_cross_entropy(thin(ids).logits[:, :-1], ids[:, 1:]).backward()


# %%
long = torch.randint(1024, (1, 500), generator=torch.Generator().manual_seed(SEED))
per_logit = {}
for dtype in (torch.float32, torch.bfloat16):
    for way in (by_transformers, logits_dropped, by_ftkit):
        peak = metered(way, thin_llama(dtype), long).peak
        per_logit[way, dtype] = peak / (long.numel() * VOCABULARY)
        print(
            f"{way.__name__:16} {str(dtype)[6:]:9} {per_logit[way, dtype]:5.1f} bytes per logit"
        )
assert abs(per_logit[by_transformers, torch.bfloat16] - PER_LOGIT) < 0.5
assert abs(per_logit[logits_dropped, torch.bfloat16] - (PER_LOGIT - 2)) < 0.5
assert per_logit[by_ftkit, torch.bfloat16] < per_logit[logits_dropped, torch.bfloat16]

# %% [markdown]
# 14 bytes in bfloat16: the logits (2); their log-softmax in float32 (4); its gradient (4); and the gradient of the
# float32 logits (4). The float32 *copy* of the logits is freed by then; whoever counts it gets 18. A loop that keeps no
# reference to `outputs` needs 2 bytes less. ftkit's loss recomputes the softmax instead of keeping it.
#
# The same with the sizes of Llama 3 8B, a batch of 8 sequences of 2,048 tokens:

# %%
explorer = LogitsExplorer()
explorer

# %%
for name, size in explorer.bars.items():
    print(f"{name:28} {size / GIB:4.1f} GiB")
before = dict(explorer.bars)
explorer.batch.value = 16
assert explorer.bars["peak of the loss"] == 2 * before["peak of the loss"]
explorer.batch.value = 8
assert before["peak of the loss"] == PER_LOGIT * 8 * 2048 * 128_256
assert before["peak of the loss"] > before["all weights, bfloat16"]

# %% [markdown]
# 16,384 tokens through a Llama 3 need more memory for the loss than for all weights. LoRA does not help: the logits are
# as large however few parameters train.

# %% [markdown]
# ### A cross-entropy that never holds all logits
#
# Each token's loss, and the gradient of its logits, `(softmax - one_hot) / count`, depend on that token alone (`count`
# is the number of labels). So compute the logits of a few tokens, turn them in place into their gradient, add what
# follows for hidden states and LM head, and use the same buffer for the next tokens. Liger's kernel works this way.


# %%
class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean loss of (N, D) hidden states, a (V, D) LM head and (N,) labels; logits: (chunk, V)."""

    @staticmethod
    def forward(ctx, hidden, head, labels, chunk):
        count = (labels != IGNORE_INDEX).sum().clamp(min=1)  # of the whole batch
        loss = hidden.new_zeros(())
        grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(head)
        buffer = hidden.new_empty(min(chunk, len(hidden)), len(head))
        parts = (tensor.split(chunk) for tensor in (hidden, labels, grad_hidden))
        for h, y, grad in zip(*parts, strict=True):
            logits = torch.mm(h, head.T, out=buffer[: len(h)])
            logits -= logits.amax(1, keepdim=True)  # exp cannot overflow
            label = y.clamp(min=0)[:, None]
            in_loss = (y != IGNORE_INDEX).to(h.dtype)[:, None]
            picked = logits.gather(1, label)
            total = logits.exp_().sum(1, keepdim=True)
            loss += ((total.log() - picked) * in_loss).sum() / count
            logits /= total  # softmax
            logits.scatter_add_(1, label, -torch.ones_like(total))  # less one_hot
            logits *= in_loss / count
            torch.mm(logits, head, out=grad)
            grad_head.addmm_(logits.T, h)
        ctx.save_for_backward(grad_hidden, grad_head)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        return *(gradient.mul_(upstream) for gradient in ctx.saved_tensors), None, None


# %% [markdown]
# Does it equal the full cross-entropy? Test it in float64 and float32, with chunks that do not divide the tokens, and
# with an upstream gradient other than 1:


# %%
def gap(ours, full):
    """The largest difference, as a part of the largest number."""
    return ((ours - full).abs().max() / full.abs().max()).item()


def worst_gap(hidden, head, labels, chunk):
    """Of loss and gradients, against the full cross-entropy; the factor 3 is the upstream gradient."""
    losses = (
        ChunkedCrossEntropy.apply(hidden, head, labels, chunk),
        F.cross_entropy(hidden @ head.T, labels),
    )
    gradients = [torch.autograd.grad(3 * loss, (hidden, head)) for loss in losses]
    return max(gap(*losses), *(gap(*pair) for pair in zip(*gradients, strict=True)))


# %%
batch = pad(examples[:8], 0)
with torch.no_grad():
    states = model.base_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
labels = batch["labels"][:, 1:].flatten()  # each state predicts the next token
hidden = states[:, :-1].flatten(0, 1)  # (B (T - 1), D)
wide = [t.detach().double().requires_grad_() for t in (hidden, model.lm_head.weight)]
sizes = (1, 7, 100, len(hidden), len(hidden) + 5)
worst = max(worst_gap(*wide, labels, chunk) for chunk in sizes)
narrow = [t.detach().float().requires_grad_() for t in wide]
short = worst_gap(*narrow, labels, 64)
exact, rounded = 1e-12, 1e-5  # parts of the largest number, in float64 and float32
assert worst < exact and short < rounded
print(f"chunks of {sizes}: off by less than {exact:g} in float64, {rounded:g} in float32")

# %% [markdown]
# They agree to the precision of each format. How much memory does it need? At the peak one buffer and two gradients are
# live: $\text{chunk} \cdot V + N D + V D$ numbers. **Predict** the peak in chunks of 256, for N = 1,024 tokens, D = 128
# and a vocabulary of V = 16,384.

# %%
torch.manual_seed(SEED)
many = torch.randn(ROWS, WIDTH, requires_grad=True)
matrix = (0.05 * torch.randn(VOCABULARY, WIDTH)).requires_grad_()
targets = torch.randint(VOCABULARY, (ROWS,))


def full_loss(hidden, head, labels):
    F.cross_entropy(hidden @ head.T, labels).backward()


def chunked(hidden, head, labels, chunk):
    ChunkedCrossEntropy.apply(hidden, head, labels, chunk).backward()


# %%
whole = metered(full_loss, many, matrix, targets)
meters = {
    chunk: metered(chunked, many, matrix, targets, chunk) for chunk in (16, 64, 256, 1024)
}
print(f"all tokens at once: {whole.peak / MIB:6.1f} MiB")
for chunk, meter in meters.items():
    predicted = 4 * (chunk * VOCABULARY + ROWS * WIDTH + VOCABULARY * WIDTH)
    print(
        f"chunks of {chunk:4}: {meter.peak / MIB:14.1f} MiB, predicted {predicted / MIB:.1f}"
    )
    assert 1 <= meter.peak / predicted < 1.02  # the rest are columns of N numbers

# %% tags=["hide-input"]
figure, ax = new_axes(7, 3)
curves = [("all tokens at once", whole, "-", 0), ("chunks of 256", meters[256], "--", 5)]
for label, meter, style, colour in curves:
    alive = [size / MIB for size in meter.alive]
    done = [100 * i / (len(alive) - 1) for i in range(len(alive))]
    ax.step(done, alive, style, where="post", color=OKABE_ITO[colour], label=label)
ax.set(xlabel="% of the operations done", ylabel="live memory (MiB)", ylim=(0, None))
_ = ax.legend(frameon=False)

# %%
peaks = f"{whole.peak / MIB:.0f} MiB whole, {meters[64].peak / MIB:.0f} MiB in chunks of 64"
measured = (
    "the function above, not Liger's kernel; 5 chunk sizes: 12 digits in float64, 5 in float32"
)
same = worst < 1e-12 and short < 1e-5
ledger.add(
    "a chunked cross-entropy is exact: the same loss, the same gradients",
    "Liger Kernel, README",
    same,
    measured,
    only_if="to rounding" if same else "",
)
_ = ledger.add(
    "a chunked loss takes the logits out of the peak",
    "Hsu et al. 2024, Liger Kernel",
    whole.peak > 10 * meters[64].peak,
    f"{ROWS:,} tokens, V = {VOCABULARY:,}, peak: {peaks}",
    model="one loss on random hidden states",
)

# %% [markdown]
# ### Exercise 2 · Chunks by checkpoint
#
# Difficulty ●●○, 8 minutes. A chunked loss without a backward pass of your own: let `checkpoint` recompute each chunk's
# logits. Sum the loss over the chunks and divide once by the number of labels, because chunks have different numbers of
# labels. Expected: loss and gradients of `F.cross_entropy`, and never more than `chunk` rows of logits.


# %% tags=["exercise"]
def chunked_loss(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, chunk: int
) -> torch.Tensor:
    """Mean loss over the labels that are not IGNORE_INDEX."""

    ### BEGIN SOLUTION
    def part(h, y):
        return F.cross_entropy(h @ head.T, y, reduction="sum")

    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    total = sum(checkpoint(part, h, y, use_reentrant=False) for h, y in parts)
    return total / (labels != IGNORE_INDEX).sum()
    ### END SOLUTION


check_chunked_loss(chunked_loss)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Write the loss of one chunk as a function of its rows and labels, with `reduction="sum"`, and call it as
# `checkpoint(part, h, y, use_reentrant=False)`.
#
# </details>

# %% [markdown]
# ### As the program uses it
#
# `ftkit finetune --loss_chunk N` does what Exercise 2 does, with N tokens at once, for full tuning and LoRA, packed or
# not, on one rank or many. It prints its estimated peak and compares it with step 2. Here is a model with the
# vocabulary of 16,384, before and after:

# %% tags=["hide-input"]
folder = Path(tempfile.mkdtemp())
torch.manual_seed(SEED)
shape = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
wide_config = LlamaConfig(vocab_size=VOCABULARY, **shape)
AutoModelForCausalLM.from_config(wide_config, trust_remote_code=False).save_pretrained(
    folder / "wide"
)
tokenizer.save_pretrained(folder / "wide")


def run_program(model, **flags):
    """`ftkit finetune` in this process: what it printed, and the metrics of its steps."""
    output = folder / f"run{len(list(folder.iterdir()))}"
    given = {"model": folder / model, "data": data_dir() / "chat", "output": output, **flags}
    with capture_output() as said, contextlib.suppress(SystemExit):  # with which it refuses
        finetune([word for name, value in given.items() for word in (f"--{name}", str(value))])
    metrics = output / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.open()] if metrics.exists() else []
    return said.stdout + said.stderr, [line for line in lines if "loss" in line]


# %%
two_steps = {"max_steps": 2, "batch_size": 16, "micro_batch_size": 16}
without, steps_without = run_program("wide", **two_steps)
with_chunks, steps_with = run_program("wide", loss_chunk=128, **two_steps)
peaks = {}
for name, said in {"all tokens at once": without, "--loss_chunk 128": with_chunks}.items():
    line = re.search(r"peak memory.*?([\d.]+) MiB estimated.*?([\d.]+) MiB measured", said)
    peaks[name] = [float(size) for size in line.groups()]
    print(f"{name:19} estimated {peaks[name][0]:.1f} MiB, measured {peaks[name][1]:.1f} MiB")
for one, other in zip(steps_without, steps_with, strict=True):
    assert abs(one["loss"] - other["loss"]) < 1e-3
    assert abs(one["grad_norm"] / other["grad_norm"] - 1) < 1e-3
    print(f"step {one['step']}: loss {one['loss']:.2f} and {other['loss']:.2f}")
assert peaks["--loss_chunk 128"][1] < 0.7 * peaks["all tokens at once"][1]
assert all(abs(told / found - 1) < 0.01 for told, found in peaks.values())

# %% [markdown]
# The same losses with about a third of the memory, estimated before the run. The price: the logits are computed twice,
# one more product of hidden states and LM head. **Predict** for Llama-3-8B: what does that add to the FLOPs of a step,
# and what does it save? From the stored estimates of notebook [12](12_memory.ipynb):

# %%
head = llama.lm_head.weight.numel()
more = 2 * head / flops_per_token(llama.config, of_llama, 2048)
plans = json.loads((data_dir() / "results" / "memory_plans.json").read_text())
adapter = [row for row in plans if row["model"] == "llama-3-8b" and row["gpus"] == 1]
adapter = {row["change"]: row for row in adapter if row["method"].startswith("LoRA")}
saved = list(adapter.values())[-2:]
print(f"FLOPs: {more:+.1%}")
for row in saved:
    print(
        f"LoRA of 8B, 2 × 2,048 tokens, with {row['change']:32} {row['peak'] / GIB:5.1f} GiB"
    )
assert more < 0.03 and saved[1]["peak"] < 0.85 * saved[0]["peak"]

# %% [markdown]
# `--loss_chunk 512` costs 2 % more FLOPs and saves 4 GiB of 21. It pays when the logits are in the peak: with a large
# vocabulary, many tokens and checkpointed layers.
#
# TRL has a chunked loss of its own: `SFTTrainer` of version 1.16 computes the loss in tiles. Compare its peak with that
# of the model's own loss, for 64 tokens and a vocabulary of 262,144:

# %%
few = torch.randint(1024, (1, 64), generator=torch.Generator().manual_seed(SEED))
thin = thin_llama(torch.float32, 262_144)
add_fused_lm_head(thin)  # what SFTTrainer does to every model
tiled = {}
for by, how in {"the model": {}, "TRL": {"fused_lm_head": True}}.items():
    meter = metered(lambda how=how: thin(few, labels=few, **how).loss.backward())
    thin.zero_grad()
    tiled[by] = meter.peak / MIB
    print(f"loss of {by:9} peak {tiled[by]:4.0f} MiB")
moved = tiled["TRL"] < tiled["the model"] / 2
_ = ledger.add(
    "training with TRL's SFTTrainer holds the logits of all tokens at once",
    "Hsu et al. 2024, Liger Kernel",
    not moved,
    f"64 tokens, V = 262,144: peak {tiled['the model']:.0f} MiB by the model's loss, "
    f"{tiled['TRL']:.0f} MiB by TRL's",
    model="a thin Llama of one layer",
    outdated_by="SFTTrainer computes its loss in tiles" if moved else "",
)

# %% [markdown]
# ### Break it, then fix it
#
# A chunked loss has to compute the same logits as the model. Gemma 2 caps them: $c \tanh(z / c)$, with the cap $c$.
# What happens if a chunked loss uses the LM head alone, as ours does?

# %%
shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
capped = Gemma2Config(
    vocab_size=1024, final_logit_softcapping=0.5, pad_token_id=0, **shape, **heads
)
torch.manual_seed(SEED)
gemma = AutoModelForCausalLM.from_config(capped, trust_remote_code=False).eval()
with torch.no_grad():
    gemma.lm_head.weight.mul_(20)  # as large as those of a trained model
    own = summed_cross_entropy(gemma(ids).logits[:, :-1], ids[:, 1:]) / ids[:, 1:].numel()
    states = gemma.model(ids).last_hidden_state[:, :-1]
    bare = summed_cross_entropy(gemma.lm_head(states), ids[:, 1:]) / ids[:, 1:].numel()

# %% tags=["raises-exception"]
with expected_error(AssertionError):
    assert abs(own - bare) < 1e-3, (
        "the head alone gives another loss: nothing else would tell you"
    )

# %% [markdown]
# It would train without an error, on the wrong loss. The fix: apply the cap inside each chunk, or compare before
# training. `ftkit finetune` compares the two losses on a few tokens first, and refuses:

# %%
with torch.no_grad():
    logits = gemma.lm_head(states)
    fixed = (
        summed_cross_entropy(0.5 * torch.tanh(logits / 0.5), ids[:, 1:]) / ids[:, 1:].numel()
    )
assert abs(own - fixed) < 1e-5
gemma.save_pretrained(folder / "capped")
tokenizer.save_pretrained(folder / "capped")
said, _ = run_program("capped", loss_chunk=64, estimate_memory=False)
sentence = said.strip().splitlines()[-1]
print(textwrap.fill(re.sub(r"[\d.]+ in place of [\d.]+: ", "", sentence), 95))
assert "--loss_chunk: Gemma2ForCausalLM has another loss" in sentence

# %% [markdown]
# ## 4 · Fused and eager
#
# A norm computes little and moves much: each operation reads its tensor from memory and writes another. **Fused** means
# that one pass reads once, does everything, and writes once. This is RMSNorm, as models have it:


# %%
def rms_norm(x, weight, eps=1e-6):
    """(N, D) and (D,) -> (N, D): each row divided by its root mean square."""
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


torch.manual_seed(SEED)
x, weight = torch.randn(4096, 512), torch.rand(512)
ways = {
    "by hand": rms_norm,
    "F.rms_norm": lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-6),
    "F.layer_norm": lambda x, weight: F.layer_norm(x, weight.shape, weight),
}

# %% [markdown]
# **Predict:** how often are 4,096 × 512 numbers read or written? `pow`, `mean` and two multiplications each read them;
# three of these write as many. One pass for all reads once and writes once.

# %%
passes = {}
for name, way in ways.items():
    meter = metered(way, x, weight)
    passes[name] = meter.moved / x.nbytes
    print(
        f"{name:12} {sum(meter.operations.values())} operations, moves {passes[name]:.1f} times x"
    )
assert torch.allclose(
    ways["F.rms_norm"](x, weight), rms_norm(x, weight), atol=1e-5
)  # of about 1
assert round(passes["by hand"]) == 7 and round(passes["F.layer_norm"]) == 2

# %% [markdown]
# Seven passes against two. A function of torch need not be fused: on a CPU `F.rms_norm` is the same six operations, on
# CUDA one kernel. `torch.compile` generates a fused kernel, in C++ here, in Triton on a GPU. Unsloth and Liger bring
# such kernels written by hand, for norms, rotary embeddings, SwiGLU and the loss.

# %% tags=["nbval-ignore-output"]
compiled = torch.compile(rms_norm)
try:
    agree = torch.allclose(compiled(x, weight), rms_norm(x, weight), atol=1e-5)  # of about 1
except Exception as error:  # no C++ compiler or no Python headers; the type varies
    agree = None
    print(f"torch.compile cannot build here ({type(error).__name__}); nothing below needs it")

# %%
assert agree is not False
eager, fast = recorded["eager_ms"], recorded["compiled_ms"]
print(
    f"recorded, in milliseconds: eager {eager}, compiled {fast}; {eager / fast:.1f} times faster"
)
print(f"the bytes alone predict {passes['by hand'] / passes['F.layer_norm']:.1f} times")

# %% [markdown]
# The count of bytes is an upper bound: arithmetic takes time as well, and caches serve part of the traffic.
#
# For a model, compile each decoder layer, not the whole: the layers are alike, so one compilation serves all, and
# FSDP's hooks stay between them. `ftkit finetune --compile` does that, with dynamic shapes, so that a batch of another
# length does not compile again. On eight H100s torchtitan's 8B gains 16 % (6,667 against 5,762).

# %% [markdown]
# ### The optimizer's step
#
# AdamW reads and writes four tensors per parameter. torch has three ways to do it: a **loop** over tensors, **foreach**
# (one operation for many tensors at once) and **fused** (one kernel for everything). **Predict:** how many operations
# does pocket-base's step take, and how much extra memory?

# %%
grown = {}
for name, kernel in {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}.items():
    net, _ = load_base(data_dir() / "pocket-base")
    adamw = torch.optim.AdamW(net.parameters(), lr=1e-4, **kernel)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    adamw.step()  # which allocates the moments
    meter = metered(adamw.step)
    grown[name] = sum(meter.operations.values()), meter.peak
    print(
        f"{name:8} {grown[name][0]:4} operations, {meter.peak / MIB:5.2f} MiB of temporaries"
    )
assert (
    grown["fused"][0] < grown["foreach"][0] < grown["loop"][0]
    and grown["fused"][1] < 1e5 < grown["foreach"][1]
)

# %% [markdown]
# On a GPU each operation is at least one kernel launch, and a loop over many small tensors spends its time on launches.
# Fused has the fewest and needs no temporaries; foreach, torch's default on CUDA, needs 4 bytes per parameter, 3.90 MiB
# here. `ftkit finetune` uses the fused kernel by itself.

# %% [markdown]
# ## 5 · Read a trace
#
# A profiler says where the time goes. `torch.profiler` records every operation with its start and duration;
# `record_function` adds names of your own. This is the step that was recorded:

# %%
print(inspect.getsource(traces.marked_step))

# %% [markdown]
# The trace of two steps is stored with the course. Open `data/results/step_trace.json.gz` at
# [ui.perfetto.dev](https://ui.perfetto.dev) (the file stays on your machine) or at `chrome://tracing`. Here is its
# first step as Perfetto draws it: time to the right, what an operation calls below it.

# %%
spans = traces.spans(traces.read_trace(data_dir() / "results" / traces.STORED))
ax = traces.plot_trace(spans)

# %% [markdown]
# **Predict:** which phase is the longest, and by how much is backward longer than forward? Here are the phases of that
# step; then the operations in backward that take most time of their own:

# %%
marked = traces.phases(spans)[: len(traces.PHASES)]
step_ms = sum(span.duration for span in marked)
for span in marked:
    operations = [s for s in traces.within(spans, span) if s.name.startswith("aten::")]
    print(
        f"{span.name:10} {span.duration:6.1f} milliseconds  "
        f"{span.duration / step_ms:4.0%}  {len(operations):4} calls"
    )
backward, forward = (
    next(s for s in marked if s.name == name) for name in ("backward", "forward")
)
assert 0.8 < backward.duration / forward.duration < 4

# %%
for name, calls, own in traces.heaviest(traces.within(spans, backward)):
    print(f"{name:54} {calls:3} calls, {own:5.1f} milliseconds of its own")

# %% [markdown]
# Three things to look for:
#
# - **The heaviest operations.** Here `aten::mm`, matrix products: that is what a step is for. If copies, casts or norms
#   lead, fuse them.
# - **Gaps.** On a GPU the trace has a row for the CPU, which launches, and one for the GPU, which works. A gap in the
#   GPU's row while the CPU is busy: too many small operations. A gap in both: waiting for data or for another rank.
# - **Synchronisations.** `.item()` or `print(loss)` in each step stop the CPU until the GPU has caught up.

# %% [markdown]
# ## 6 · Recompute instead of storing
#
# Backward needs the activations of forward. Instead of storing them, store the input and recompute them. A Llama's MLP,
# SwiGLU, is `down(silu(gate(x)) * up(x))`. **Predict:** with D = 128 and an inner width of 320, what does autograd
# keep, and by how much do the FLOPs grow if everything is recomputed?


# %% tags=["hide-input"]
def kept_bytes(function, *inputs, besides=()):
    """Bytes that autograd keeps, without the parameters `besides`; the gradients; and the FLOPs of both passes."""
    kept, known = {}, {p.untyped_storage().data_ptr() for p in besides}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    leaves = (*inputs, *besides)
    for leaf in leaves:
        leaf.grad = None
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = function(*inputs)
        output.square().mean().backward()
    gradients = [leaf.grad for leaf in leaves]
    size = sum(size for where, size in kept.items() if where not in known)
    return size, gradients, counter.get_total_flops()


# %%
torch.manual_seed(SEED)
INNER = 320
shapes = [(WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH)]
gate, up, down = (torch.nn.Linear(*shape, bias=False) for shape in shapes)
weights = [layer.weight for layer in (gate, up, down)]
x = torch.randn(ROWS, WIDTH, requires_grad=True)


def mlp(x):
    return down(F.silu(gate(x)) * up(x))


def recomputed(x):
    return checkpoint(mlp, x, use_reentrant=False)


# %%
inner, outer = 4 * ROWS * INNER, 4 * ROWS * WIDTH  # bytes of one tensor inside, and of x
stored, again = (kept_bytes(way, x, besides=weights) for way in (mlp, recomputed))
for name, (size, _, flops) in {"stored": stored, "recomputed": again}.items():
    print(f"{name:11} keeps {size / MIB:.2f} MiB, {flops / stored[2]:.2f} times the FLOPs")
assert stored[0] == 4 * inner + outer and again[0] == outer
assert all(gap(a, b) < 1e-5 for a, b in zip(again[1], stored[1], strict=True))

# %% [markdown]
# The same gradients from an eleventh of the memory, for 22 % more FLOPs. A whole layer under
# `--activation_checkpointing` costs up to a third more (a second forward pass: 8 instead of 6 FLOPs per parameter and
# token). MFU counts the model's 6 alone, so it falls although the hardware works as hard.

# %% [markdown]
# FlashAttention does the same to attention: the T × T probabilities are never stored, but computed again, tile by tile
# (Dao et al. 2022). torch has it built in, and transformers uses it (`sdpa`) by default.
# **Predict:** what does backward keep for 4 heads, 512 tokens and 32 numbers per head, by hand and by torch?

# %%
T = 512
qkv = [torch.randn(1, 4, T, 32, requires_grad=True) for _ in range(3)]
future = torch.ones(T, T, dtype=torch.bool).triu(1)


def attention(q, k, v):
    scores = (q @ k.mT / 32**0.5).masked_fill(future, float("-inf"))
    return scores.softmax(-1) @ v


def built_in(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


# %%
(stored, gradients, _), (less, again, _) = (
    kept_bytes(way, *qkv) for way in (attention, built_in)
)
print(f"kept by hand: {stored / MIB:.2f} MiB, by torch's attention: {less / MIB:.2f} MiB")
assert all(
    gap(*pair) < 1e-4 for pair in zip(again, gradients, strict=True)
)  # float32 has 7 digits
assert less < 4 * 4 * T * T < stored  # bytes of the probabilities of 4 heads

# %% [markdown]
# By hand 4 of the 5 MiB are probabilities, which grow with T². torch's attention keeps q, k, v, the output and one
# number per row, which grow with T.

# %% [markdown]
# ## 7 · What a speed-up is worth
#
# A run is more than its steps. If evaluation takes the share $e$ of it, steps that are $s$ times faster make the run
# $1 / (e + (1 - e) / s)$ times faster: Amdahl's law. **Predict:** half of the time is evaluation, and steps become
# twice as fast. And a thousand times?

# %%
for share in (0.1, 0.25, 0.5):
    runs = [1 / (share + (1 - share) / factor) for factor in (1.16, 2, 1000)]
    said = ", ".join(f"{run:.2f}" for run in runs)
    print(
        f"evaluation {share:.0%}: steps 1.16, 2 and 1,000 times faster make the run {said} times faster"
    )

# %% [markdown]
# So time steps, not runs; leave out the first ones, which compile and warm up; and compare the losses: a step that
# learns something else is no speed-up. To compare two ways on a machine that does other work, too, let them take turns.

# %% [markdown]
# ### Exercise 3 · A fair comparison
#
# Difficulty ●●○, 10 minutes. How many times faster is `new` than `old`? Call each once without measuring. Then let them
# take turns for `rounds` rounds, and return the median time of `old` divided by that of `new`. Expected: within 4 % of
# the truth on a simulated machine whose first calls are slow, that gets slower while you measure, and on which another
# program interferes twice.


# %% tags=["exercise"]
def time_both(old, new, clock, rounds: int) -> float:
    """How many times faster `new()` is than `old()`; `clock()` returns seconds."""
    ### BEGIN SOLUTION
    times = {old: [], new: []}
    for number in range(rounds + 1):
        for function in (old, new):
            start = clock()
            function()
            if number:  # the first round warms up
                times[function].append(clock() - start)
    return median(times[old]) / median(times[new])
    ### END SOLUTION


check_time_both(time_both)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# A loop over rounds; in each round, time `old` and then `new`, and append to two lists. Throw the first round away.
# `statistics.median` is imported.
#
# </details>

# %% [markdown]
# Try it on your machine, if `torch.compile` can build there: `time_both(lambda: rms_norm(x, weight), lambda:
# compiled(x, weight), time.perf_counter, 20)`. Is a compiled norm worth its compilation? At the recorded 1.1 ms saved
# per call, five seconds of compiling pay after about 4,500 calls.

# %% [markdown]
# ### Unsloth and Liger
#
# `python -m experiments.lora_speed` compares plain TRL, TRL with Liger and Unsloth step by step on your own NVIDIA GPU.
# No run on a GPU is recorded yet, so the recap lists the packages' claims as *not tested*.

# %% tags=["hide-input"]
source = "Unsloth 2026.10.9, README"
measured = (
    "no run is recorded: python -m experiments.lora_speed on a machine with an NVIDIA GPU"
)
none = "no model yet"
ledger.add("Unsloth trains about 2× faster", source, None, measured, model=none)
_ = ledger.add("Unsloth trains with 70 % less memory", source, None, measured, model=none)

# %% [markdown]
# From the packages' own README and metadata (Unsloth 2026.10.9, Liger 0.8.5):
#
# - Unsloth replaces attention, norms, rotary embeddings, MLP, LoRA's products and the loss. Import it before trl,
#   transformers and peft, or they stay unpatched.
# - It needs trl ≤ 1.15.0, transformers ≤ 5.17.0 and datasets < 5, older than the versions here: give it an
#   environment of its own (`experiments/lora_speed/unsloth.txt`).
# - Liger needs torch and Triton only. It replaces norms, rotary embeddings, MLP and loss in some fifty architectures,
#   and works with FSDP, DDP and DeepSpeed.

# %% [markdown]
# ## What transfers
#
# Measured here: pocket-base, 1.0 M parameters, vocabulary 1,024, on one CPU core.
#
# | | transfers to 1B to 8B | does not |
# | --- | --- | --- |
# | FLOPs, MFU | the formula, and what lowers MFU | the value: a CPU's peak is easier to reach |
# | padding, packing | the method | the share: it depends on your lengths |
# | chunked loss | bytes per logit | its gain: large vocabularies gain more |
# | fused, compiled | fewer passes over memory, fewer launches | times: they are for a CPU |
# | recomputation | what is kept, the FLOPs | when it pays: when memory is short |

# %% [markdown]
# ## Numbers to take away
#
# Computed here:
#
# - 6 FLOPs per parameter and token; 8 with all layers recomputed; 4 with a frozen base.
# - 14 bytes per logit at the peak of transformers' loss in bfloat16: 8 × 2,048 tokens of Llama 3 need 27 GiB.
# - A chunked loss costs an 8B model about 2 % more FLOPs.
#
# From the literature, not measured here:
#
# - 33 to 39 % MFU for 8B under FSDP2 on H100s (torchtitan); 38 to 43 % for Llama 3 405B. `torch.compile`: 16 % faster.

# %% [markdown]
# ## Recap
#
# - Tokens per second without padding, and MFU, say how fast training is.
# - Group or pack before you optimise anything else.
# - The logits' bytes grow with tokens and vocabulary; `--loss_chunk` keeps them out of the peak at equal gradients.
# - Fused means fewer passes over memory: compile per layer, the fused optimizer, FlashAttention.
# - Read a trace before you guess; time steps, take turns, compare the losses.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. What does MFU divide by what, and which tokens count?
# 2. Which tensors make 14 bytes per logit?
# 3. Why can a chunked loss compute gradients in its forward pass?
# 4. Why is a fused norm faster, although it computes the same?
# 5. Evaluation takes half of a run. How much faster can faster steps make it at most?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: tokens per second times the model's FLOPs per token, by the hardware's peak FLOP/s; padding does not count.
# - 2: the logits (2), their log-softmax (4), its gradient (4), the gradient of the float32 logits (4).
# - 3: the gradient of a token's logits needs its hidden state, its label and the count of labels, nothing else.
# - 4: it reads and writes the tensor once; several operations do it several times.
# - 5: twice.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Chowdhery et al., [PaLM](https://arxiv.org/abs/2204.02311), 2022: MFU. Grattafiori et al.,
#   [The Llama 3 Herd of Models](https://arxiv.org/abs/2407.21783), 2024: 38 to 43 %.
# - torchtitan, [Llama 3.1 on
#   H100](https://github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md), December 2024.
# - Hsu et al., [Liger Kernel](https://arxiv.org/abs/2410.10989), 2024, and the README and source of its 0.8.5.
# - Wijmans et al., [Cut Your Losses](https://arxiv.org/abs/2411.09009), 2024: a chunk's logits in fast memory alone.
# - [Unsloth](https://github.com/unslothai/unsloth), README, METADATA and source of 2026.10.9.
# - Dao et al., [FlashAttention](https://arxiv.org/abs/2205.14135), 2022. Chen et al.,
#   [Sublinear Memory Cost](https://arxiv.org/abs/1604.06174), 2016: checkpointing.
# - Amdahl, Validity of the single processor approach to achieving large scale computing capabilities, AFIPS 1967.
# - TRL 1.16, `trl/trainer/sft_trainer.py` and `trl/kernels/chunked_logprob.py`: its loss in tiles.
#
# ## Next
#
# [12_memory](12_memory.ipynb): what a run will need, estimated before it starts.
