# %% [markdown]
# # 11 · Speed-ups: what Unsloth and Liger do
#
# The same training, faster and in less memory: you build three tricks behind these libraries (a loss in chunks, fused
# operations, computing again), prove that the results stay the same, and learn what a step that is twice as fast is
# worth to a whole run.
#
# - **Prerequisites:** a training loop and cross-entropy; [08_full_fine_tune](08_full_fine_tune.ipynb) helps.
# - **Hardware:** any processor; two cores are enough. The last comparison wants an NVIDIA GPU, and is otherwise
#   read from a record.
# - **Time:** about 45 minutes with the exercises; its cells run in less than a minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **predict** the bytes of the logits, and find them at the peak of a training step,
# - **write** a cross-entropy that never holds all logits, with the same loss and gradients,
# - **count** operations and the bytes they move, and say what fusing them saves,
# - **trade** stored activations for computing them again,
# - **judge** a speed-up: of a step, of a whole run, and against which baseline.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import os
import tempfile
import time
import weakref
from collections import Counter

import ipywidgets
import torch
import transformers
from ftcourse.claims import Ledger
from ftcourse.exercises.speed_ups import (
    check_chunked_loss,
    check_logits_bytes,
    check_whole_speed_up,
)
from ftcourse.plots import HATCHES, OKABE_ITO, figure_svg, new_axes, use_course_style
from ftcourse.studies.lora_speed import loss_gap, memory_ratio, read_record, speed_up, table
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from trl.trainer.utils import add_fused_lm_head

from ftkit import load_base, load_chat
from ftkit.batching import global_batch, pad
from ftkit.conversations import encode, training_template
from ftkit.loss import IGNORE_INDEX
from ftkit.models import data_dir
from ftkit.parameters import count_parameters

# %% tags=["nbval-ignore-output"]
use_course_style()
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()  # what torch.compile writes
transformers.utils.logging.disable_progress_bar()
print(f"torch {torch.__version__}, device: cpu")

# %%
MIB, GIB = 2**20, 2**30  # bytes
BATCH = 8  # conversations in a batch
ROWS, WIDTH = 1024, 128  # tokens of a batch, and the hidden size
VOCABULARY = 16_384  # as of a small real model
CHUNKS = (16, 64, 256, 1024)  # rows of logits at a time
SEED = 0  # of every tensor drawn here
ledger = Ledger("speed and memory")  # the claims tested here; the recap shows them

# %% [markdown]
# ## 1 · The tensor that eats the memory
#
# The last layer compares each token's hidden state with every token of the vocabulary. The result, the **logits**,
# has shape (B, T, V): batch, tokens, vocabulary. Its bytes are `B * T * V * itemsize`. Here is what that comes to in
# models as they are used, built on the meta device: shapes without numbers.


# %%
def parameters(config):
    """Parameters of a model that is never filled."""
    with torch.device("meta"):
        return count_parameters(
            AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        ).total


layers = {"intermediate_size": 14_336, "num_hidden_layers": 32, "num_key_value_heads": 8}
llama = LlamaConfig(vocab_size=128_256, hidden_size=4096, **layers)
layers = {"intermediate_size": 6912, "num_hidden_layers": 26, "num_key_value_heads": 1}
gemma = Gemma3TextConfig(vocab_size=262_144, hidden_size=1152, num_attention_heads=4, **layers)
assert parameters(llama) == 8_030_261_248  # as its publisher says

# %%
model, tokenizer = load_base()
this = model.config.get_text_config()
for name, config in {"Llama 3 8B": llama, "Gemma 3 1B": gemma, "this model": this}.items():
    weights = 2 * parameters(config)  # bytes in bfloat16
    logits = BATCH * 2048 * config.vocab_size * 4  # in float32
    print(f"{name}: weights {weights / GIB:6.3f} GiB, ", end="")
    print(f"logits of {BATCH} × 2,048 tokens {logits / GIB:6.3f} GiB")

# %% [markdown]
# Notice: for the Gemma, one copy of the logits takes more than eight times as much as all weights. Loss functions
# compute in float32, so a model in bfloat16 does not make them smaller.
#
# ### Exercise 1 · the bytes of the logits
#
# Difficulty ●○○, 3 minutes. Expected: 4 rows of 512 tokens, a vocabulary of 32,000 and bfloat16 make 131,072,000
# bytes.


# %% tags=["exercise"]
def logits_bytes(batch: int, tokens: int, vocabulary: int, dtype: torch.dtype) -> int:
    """Bytes of one tensor of logits."""
    ### BEGIN SOLUTION
    return batch * tokens * vocabulary * dtype.itemsize
    ### END SOLUTION


check_logits_bytes(logits_bytes)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Multiply the shape to get how many numbers there are. `torch.bfloat16.itemsize` is 2.
#
# </details>

# %% [markdown]
# ### A meter for bytes
#
# The process's memory is too noisy to tell. But every operation passes through torch's dispatcher, so a
# `TorchDispatchMode` can watch: it counts operations, the bytes they read and write, and the bytes that are alive.


# %%
def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Meter(TorchDispatchMode):
    """Operations that compute, the bytes they move, the bytes alive; what is inside one goes unseen."""

    def __init__(self):
        super().__init__()
        self.operations, self.moved, self.alive, self.sizes = Counter(), 0, [0], {}

    def freed(self, where):
        self.alive.append(self.alive[-1] - self.sizes.pop(where, 0))

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        read, given = tensors(args), tensors((args, kwargs))
        result = operation(*args, **(kwargs or {}))
        before = {tensor.untyped_storage().data_ptr() for tensor in given}
        made = tensors(result)
        new = [t for t in made if t.untyped_storage().data_ptr() not in before]
        _, name, variant = str(operation).split(".")  # as aten.add_.Tensor: in place
        works = new or name.endswith("_") or variant.endswith("out")
        if works and "empty" not in name:  # to reserve memory moves nothing
            self.operations[name] += 1
            self.moved += sum(tensor.nbytes for tensor in (*read, *made))
        for storage in (tensor.untyped_storage() for tensor in new):
            self.sizes[storage.data_ptr()] = storage.nbytes()
            self.alive.append(self.alive[-1] + storage.nbytes())
            weakref.finalize(storage, self.freed, storage.data_ptr())
        return result


# %% [markdown]
# Now take hidden states, output matrix and labels of eight conversations of the almanac.

# %%
chats = load_chat(data_dir() / "chat")["train"].select(range(BATCH))
template = training_template(tokenizer)
batch = pad([encode(tokenizer, row["messages"], template) for row in chats], 0)
with torch.no_grad():
    states = model.base_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
labels = batch["labels"][:, 1:].flatten()  # each state predicts the next token
hidden = states[:, :-1].flatten(0, 1).float().requires_grad_()  # (B * T, D)
head = model.get_output_embeddings().weight.detach().float().requires_grad_()  # (V, D)
print(f"{len(hidden)} rows, {(labels != IGNORE_INDEX).sum()} with a label; V = {len(head)}")


# %% [markdown]
# **Predict first.** A forward pass makes the logits, the backward pass their gradient. How many tensors of the logits'
# size are alive at the worst moment: one, two, or four?


# %%
def full_loss(hidden, head, labels):
    """Mean cross-entropy, and its backward pass."""
    logits = hidden @ head.T  # (B * T, V); alive to the end, as in what a model returns
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)
    loss.backward()
    return loss.detach()


# %%
def metered(function, *args):
    """Run it and give its meter; gradients from earlier runs are let go of first."""
    for tensor in args:
        if isinstance(tensor, torch.Tensor):
            tensor.grad = None
    with Meter() as meter:
        function(*args)
    return meter


# %%
one = len(hidden) * len(head) * 4  # bytes, float32
meter = metered(full_loss, hidden, head, labels)
peak = max(meter.alive)
print(f"four copies: {4 * one / MIB:.3f} MiB predicted")
print(f"at the peak: {peak / MIB:.3f} MiB measured, {peak / (4 * one):.3f} of the prediction")
print(dict(meter.operations))
assert 4 * one <= peak < 4 * one + 2 * (hidden.nbytes + head.nbytes)

# %% [markdown]
# Notice: four. The logits; their log-softmax, kept for the backward pass; the gradient of that; and the gradient of
# the logits. A model in bfloat16 adds its own copy in 2 bytes. Now with your own sizes: all against the weights of a
# Llama 3 with this vocabulary.


# %%
def draw_bytes(rows, vocabulary, dtype):
    """Bars: the weights, one tensor of logits, and what is alive at the peak of the loss."""
    body = parameters(llama) - 2 * llama.vocab_size * llama.hidden_size
    weights = (body + 2 * vocabulary * llama.hidden_size) * dtype.itemsize
    one = rows * vocabulary * dtype.itemsize
    peak = 4 * rows * vocabulary * 4 + (one if dtype.itemsize < 4 else 0)
    bars = {"weights": weights, "logits": one, "peak of the loss": peak}
    figure, ax = new_axes(6, 2)
    drawn = ax.barh(list(bars), [size / GIB for size in bars.values()], alpha=0.7)
    for patch, colour, hatch in zip(drawn, OKABE_ITO, HATCHES, strict=False):
        patch.set(facecolor=colour, hatch=hatch, edgecolor="black")
    ax.bar_label(drawn, [f" {size / GIB:.2f}" for size in bars.values()])
    ax.set(xlabel="GiB", xlim=(0, 1.2 * max(bars.values()) / GIB))
    ax.invert_yaxis()
    return figure, bars


# %%
def logits_explorer():
    """Controls for batch, tokens, vocabulary and dtype over the bars; `bars` holds their bytes."""
    batch = ipywidgets.IntSlider(value=8, min=1, max=64, description="batch")
    tokens = ipywidgets.Dropdown(options=[512, 2048, 8192], value=2048, description="tokens")
    vocabulary = ipywidgets.Dropdown(
        options=[1024, 32_000, 128_256, 262_144], value=128_256, description="vocabulary"
    )
    kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    dtype = ipywidgets.Dropdown(options=list(kinds), description="dtype")
    picture = ipywidgets.HTML()
    box = ipywidgets.VBox([batch, tokens, vocabulary, dtype, picture])

    def redraw(_change=None):
        rows = batch.value * tokens.value
        figure, box.bars = draw_bytes(rows, vocabulary.value, kinds[dtype.value])
        title = ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in box.bars.items())
        picture.value = figure_svg(figure, title=title)

    for control in box.children[:-1]:
        control.observe(redraw, names="value")
    redraw()
    return box


# %% tags=["nbval-ignore-output"]
explorer = logits_explorer()
explorer

# %%
batch_size, tokens, vocabulary, dtype, picture = explorer.children
before = dict(explorer.bars)
batch_size.value = 16
assert (
    explorer.bars["logits"] == 2 * before["logits"]
    and explorer.bars["weights"] == before["weights"]
)
dtype.value = "float32"
assert explorer.bars["peak of the loss"] == 4 * explorer.bars["logits"]
assert explorer.bars["peak of the loss"] > explorer.bars["weights"] and "<svg" in picture.value
batch_size.value, dtype.value = 8, "bfloat16"
print({name: f"{size / GIB:.1f} GiB" for name, size in explorer.bars.items()})

# %% [markdown]
# Notice: 16,384 tokens through a Llama 3 need more memory for the loss alone than for all its weights. No layer is
# to blame, and LoRA does not help: the logits are as large however few parameters train.

# %% [markdown]
# ## 2 · A cross-entropy that never holds all logits
#
# Each row's loss, and the gradient of its logits, `(softmax - one_hot) / count`, depend on that row alone. So take a
# few rows, make their logits, turn them in place into their gradient, add what that gives for hidden states and
# output matrix, and use the same buffer for the next rows. The gradients are ready before the backward pass begins.


# %%
class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean loss of (N, D) hidden states, a (V, D) output matrix and (N,) labels; logits: (chunk, V)."""

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
            learnt = (y != IGNORE_INDEX).to(h.dtype)[:, None]
            picked = logits.gather(1, label)
            total = logits.exp_().sum(1, keepdim=True)
            loss += ((total.log() - picked) * learnt).sum() / count
            logits /= total  # softmax
            logits.scatter_add_(1, label, -torch.ones_like(total))  # less one_hot
            logits *= learnt / count
            torch.mm(logits, head, out=grad)
            grad_head.addmm_(logits.T, h)
        ctx.save_for_backward(grad_hidden, grad_head)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        return *(gradient.mul_(upstream) for gradient in ctx.saved_tensors), None, None


# %% [markdown]
# Is it the same? In float64, and where it may go wrong: a chunk size that does not divide the rows, chunks without
# any label, and a factor that arrives from above.


# %%
def gap(ours, full):
    """The largest difference, as a part of the largest number."""
    return ((ours - full).abs().max() / full.abs().max()).item()


def worst_gap(hidden, head, labels, chunk):
    """Of loss and gradients, against the full cross-entropy; 3 stands for what comes from above."""
    losses = (
        ChunkedCrossEntropy.apply(hidden, head, labels, chunk),
        F.cross_entropy(hidden @ head.T, labels),
    )
    gradients = [torch.autograd.grad(3 * loss, (hidden, head)) for loss in losses]
    return max(gap(*losses), *(gap(*pair) for pair in zip(*gradients, strict=True)))


# %%
wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, head)]
sizes = (1, 7, 100, len(hidden), len(hidden) + 5)
equal = {}
for chunk in sizes:
    equal[chunk] = worst_gap(*wide, labels, chunk) < 1e-12  # float64 has 16 digits
print(f"float64, equal to 12 digits: {equal}")
short = worst_gap(hidden, head, labels, 64) < 1e-5
print(f"float32, equal to 5 digits: {short}")
assert all(equal.values()) and short

# %%
nothing = torch.full_like(labels, IGNORE_INDEX)
empty = ChunkedCrossEntropy.apply(hidden, head, nothing, 64)
zero = not any(gradient.any() for gradient in torch.autograd.grad(empty, (hidden, head)))
torchs = F.cross_entropy(hidden @ head.T, nothing)
print(f"no label at all: loss {empty.item()}, gradients all zero: {zero}; by torch: {torchs}")
assert empty == 0 and zero

# %% [markdown]
# Notice: equal. float32 has seven digits and both ways add in another order, so the last one or two differ; that is
# why five are asked for. Without any label torch divides 0 by 0; ours gives 0, and a batch that is all masked does no
# harm.
#
# **Predict:** at the peak, one buffer and the two gradients are alive: `chunk * V + N * D + V * D` numbers. Take a
# vocabulary of 16,384.

# %%
torch.manual_seed(SEED)
many = torch.randn(ROWS, WIDTH, requires_grad=True)
matrix = (0.05 * torch.randn(VOCABULARY, WIDTH)).requires_grad_()
targets = torch.randint(VOCABULARY, (ROWS,))
targets[torch.rand(ROWS) < 0.5] = IGNORE_INDEX


def chunked_loss_backward(hidden, head, labels, chunk):
    ChunkedCrossEntropy.apply(hidden, head, labels, chunk).backward()


# %%
whole = metered(full_loss, many, matrix, targets)
meters = {c: metered(chunked_loss_backward, many, matrix, targets, c) for c in CHUNKS}
for chunk, meter in meters.items():
    predicted = 4 * (chunk * VOCABULARY + ROWS * WIDTH + VOCABULARY * WIDTH)
    ratio = max(meter.alive) / predicted
    print(f"chunk {chunk:4}: {predicted / MIB:6.2f} MiB predicted, measured {ratio:.3f} of it")
    assert 1 <= ratio < 1.02  # the rest are columns of N numbers
saving = max(whole.alive) / max(meters[64].alive)
print(f"all rows at once: {max(whole.alive) / MIB:.2f} MiB")

# %% [markdown]
# What is alive after each operation, from the first to the last:

# %%
figure, ax = new_axes(7, 3)
curves = [("all rows at once", whole, "-", 0), ("chunks of 256", meters[256], "--", 5)]
for label, meter, style, colour in curves:
    alive = [size / MIB for size in meter.alive]
    places = [i / (len(alive) - 1) for i in range(len(alive))]
    ax.step(places, alive, style, where="post", color=OKABE_ITO[colour], label=label)
ax.set(xlabel="part of the operations done", ylabel="alive (MiB)", ylim=(0, None))
_ = ax.legend(frameon=False)

# %% [markdown]
# Notice: the line of the chunks is flat. The chunk sets it, and the gradients, which a training needs anyway. More
# rows add only `N * D`, not `N * V`. And what does it cost in time?


# %%
def seconds(function, *args, repeats=2):
    """The fastest of a few runs: what other programs do only ever adds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(*args)
        times.append(time.perf_counter() - start)
    return min(times)


# %% tags=["nbval-ignore-output"]
at_once = seconds(full_loss, many, matrix, targets)
times = [seconds(chunked_loss_backward, many, matrix, targets, chunk) for chunk in CHUNKS]
figure, ax = new_axes(6, 3)
ax.plot(CHUNKS, times, "o-", color=OKABE_ITO[5], label="in chunks")
ax.axhline(at_once, linestyle="--", color=OKABE_ITO[0], label="all rows at once")
ax.set(xlabel="rows in a chunk", ylabel="forward and backward (s)", ylim=(0, None))
ax.set_xscale("log", base=2)
ax.set_xticks(CHUNKS, CHUNKS)
_ = ax.legend(frameon=False, loc="lower right")

# %%
about = max(times[1:]) < 2 * at_once
print(f"chunks of 64 rows and more take less than twice the time: {about}")
claim = "a cross-entropy in chunks is exact: the same loss, the same gradients"
measured = "the function above, not Liger's kernel; 5 chunk sizes, ragged ones too: 12 digits in float64, 5 in float32"
exact = all(equal.values()) and short
ledger.add(
    claim, "Liger Kernel, README", exact, measured, only_if="to rounding" if exact else ""
)
claim = "a loss in chunks takes the logits out of the peak"
peaks = f"{max(whole.alive) / MIB:.0f} MiB whole, {max(meters[64].alive) / MIB:.0f} MiB in chunks of 64"
measured = f"{ROWS:,} rows, V = {VOCABULARY:,}, peak: {peaks}"
ledger.add(claim, "Hsu et al. 2024, Liger Kernel", saving > 10, measured)

# %% [markdown]
# Notice: times differ from machine to machine; what is tested is less than twice the time, from 64 rows on. On ours
# chunks were even faster. Liger's kernel works in this way. Cut cross-entropy goes further and leaves even a chunk's
# logits in the GPU's own fast memory. And the baseline has moved: **TRL's trainer** computes its loss in tiles of
# 4,096 tokens by 32,768 of the vocabulary, by itself.

# %%
torch.manual_seed(SEED)
shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1}
thin = LlamaConfig(vocab_size=262_144, num_hidden_layers=1, **shape)
thin = AutoModelForCausalLM.from_config(thin, trust_remote_code=False)
some = torch.randint(262_144, (1, 64))
add_fused_lm_head(thin)  # what SFTTrainer does to every model
peaks = {}
for by, how in {"the model": {}, "TRL": {"fused_lm_head": True}}.items():
    meter = metered(lambda how=how: thin(some, labels=some, **how).loss.backward())
    thin.zero_grad()
    peaks[by] = max(meter.alive)

# %%
moved = peaks["TRL"] < peaks["the model"] / 2
print(f"TRL's own loss has less than half the peak of the model's: {moved}")
claim = "training with TRL's SFTTrainer holds the logits of all tokens at once"
measured = f"TRL's loss peaks under half of the model's own, which holds them; 64 tokens, V = 262,144: {moved}"
why = "SFTTrainer computes its loss in tiles" if moved else ""
ledger.add(claim, "Hsu et al. 2024, Liger Kernel", not moved, measured, outdated_by=why)
assert moved

# %% [markdown]
# Notice: a comparison with plain TRL from a year ago is one with another program. With `use_liger_kernel`, TRL 1.16
# even switches Liger's own fused loss off, says that the option is deprecated, and takes Liger's layers only.

# %% [markdown]
# ## Break it, then fix it
#
# The tempting way to write a loss in chunks: take each chunk's mean, and the mean of those. In a chat, labels stand
# in some rows and not in others.


# %%
def mean_of_means(hidden, head, labels, chunk):
    """Wrong: every chunk counts the same, however few of its rows have a label."""
    losses = [
        F.cross_entropy(h @ head.T, y)
        for h, y in zip(hidden.split(chunk), labels.split(chunk), strict=True)
        if (y != IGNORE_INDEX).any()
    ]
    return torch.stack(losses).mean()


counts = [int((y != IGNORE_INDEX).sum()) for y in labels.split(32)]
print(f"labels in each chunk of 32 rows: {counts}")

# %% tags=["raises-exception"]
with torch.no_grad():
    wrong = mean_of_means(hidden, head, labels, 32)
    right = F.cross_entropy(hidden @ head.T, labels)
assert abs(wrong - right) < 1e-5, "the mean of the chunks' means is another number"

# %% [markdown]
# Notice: it would train, and nothing would fail. The loss is off, a little differently in each batch, and so is each
# gradient: tokens in chunks with few labels weigh more. The fix: sum in the chunks, and divide once, by the count of
# the whole batch. Gradient accumulation in transformers had the same mistake, mended by its pull request 34191.


# %%
def sum_over_count(hidden, head, labels, chunk):
    """Right: sums from the chunks, one division at the end."""
    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    total = sum(F.cross_entropy(h @ head.T, y, reduction="sum") for h, y in parts)
    return total / (labels != IGNORE_INDEX).sum()


with torch.no_grad():
    mended = sum_over_count(hidden, head, labels, 32)
print(f"mended, equal to 5 digits: {abs(mended / right - 1).item() < 1e-5}")
print(f"before, off by more than one in a hundred: {abs(wrong / right - 1).item() > 0.01}")
assert abs(mended / right - 1) < 1e-5 < abs(wrong / right - 1)

# %% [markdown]
# ## 3 · Fused and eager
#
# A norm computes little and moves much: each operation reads its tensor from memory and writes another. **Fused**
# means that one pass reads once, does everything, and writes once. This is RMSNorm, as models have it:


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
for name, way in ways.items():
    meter = metered(way, x, weight)
    count = sum(meter.operations.values())
    print(f"{name:12} {count} operations, moves {meter.moved / x.nbytes:.1f} times x")
by_hand, library, fused = (metered(way, x, weight).moved for way in ways.values())
both = [ways[name](x, weight) for name in ("F.rms_norm", "by hand")]
assert torch.allclose(*both, atol=1e-5)  # of numbers about 1
assert round(by_hand / x.nbytes) == 7 and round(fused / x.nbytes) == 2

# %% [markdown]
# Notice: seven passes against two. A name is no promise: on a processor `F.rms_norm` is the same six operations, on
# CUDA one kernel; LayerNorm is one operation on both. `torch.compile` writes the missing one, in C++ here, in Triton on
# a GPU. Moving 3.5 times less, how much faster will it be?

# %% tags=["nbval-ignore-output"]
compiled = torch.compile(rms_norm)
try:
    agree = torch.allclose(compiled(x, weight), rms_norm(x, weight), atol=1e-5)  # of about 1
    eager, fast = (seconds(way, x, weight, repeats=9) for way in (rms_norm, compiled))
    print(
        f"eager {1e3 * eager:.2f} ms, compiled {1e3 * fast:.2f} ms: {eager / fast:.1f} times faster"
    )
    print(f"predicted from the bytes: {by_hand / fused:.1f} times")
except Exception as error:  # no C++ compiler or no Python headers; the type varies
    agree = None
    print(f"torch.compile cannot build here ({type(error).__name__}); nothing below needs it")
assert agree is not False

# %% [markdown]
# Notice: the direction is right, the number is not: bytes count passes, not what else an eager operation costs, and
# times vary. Unsloth and Liger bring such kernels written by hand, for norms, rotary embeddings, SwiGLU and the loss.

# %% [markdown]
# The **rotary embedding** shows that a better formula also saves passes: transformers turns each vector by building a
# swapped copy of it, and two halves need none.


# %%
def rotary(q, cos, sin):
    """(B, heads, T, d), angles of (T, d / 2): both halves turned, written once."""
    first, second = q.chunk(2, dim=-1)
    turned = torch.empty_like(q)
    a, b = turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=a).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=b).addcmul_(first, sin)
    return turned


# %%
q = torch.randn(4, 8, 128, 64)
angles = torch.outer(torch.arange(128.0), 10_000.0 ** -(torch.arange(0, 64, 2) / 64))
cos, sin = angles.cos(), angles.sin()
doubled = [torch.cat([t, t], dim=-1)[None] for t in (cos, sin)]  # as transformers passes them
theirs = apply_rotary_pos_emb(q, q, *doubled)[0]
same = torch.allclose(rotary(q, cos, sin), theirs, atol=1e-5)  # of about 1
usual = metered(lambda q: apply_rotary_pos_emb(q, q[:, :0], *doubled), q).moved / q.nbytes
halves = metered(rotary, q, cos, sin).moved / q.nbytes
print(f"equal: {same}; bytes moved: {usual:.1f} times q, and by halves {halves:.1f}")
assert same and halves < usual / 1.5

# %% [markdown]
# ## 4 · Compute it again instead of storing it
#
# The backward pass wants what the forward pass had. What is cheap to compute need not be kept: keep its input and do
# it again. A Llama's MLP, **SwiGLU**, is `down(silu(gate(x)) * up(x))`. **Predict:** D = 128 and I = 320 per row;
# what does autograd keep of it?


# %%
def kept_bytes(function, *inputs, besides=()):
    """Bytes that autograd keeps, without the parameters `besides`, and the gradients."""
    kept, known = {}, {p.untyped_storage().data_ptr() for p in besides}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = function(*inputs)
    gradients = torch.autograd.grad(output.square().mean(), (*inputs, *besides))
    return sum(size for where, size in kept.items() if where not in known), gradients


# %%
class SiluMul(torch.autograd.Function):
    """silu(gate) * up, which keeps gate and up, and computes silu(gate) again."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, upstream):
        gate, up = ctx.saved_tensors
        sigmoid = gate.sigmoid()
        slope = sigmoid * (1 + gate * (1 - sigmoid))  # of silu
        return upstream * up * slope, upstream * gate * sigmoid


# %%
torch.manual_seed(SEED)
INNER = 320  # I
shapes = [(WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH)]
gate, up, down = (torch.nn.Linear(*shape, bias=False) for shape in shapes)
weights = [layer.weight for layer in (gate, up, down)]
x = torch.randn(ROWS, WIDTH, requires_grad=True)
mlps = {
    "plain": lambda x: down(F.silu(gate(x)) * up(x)),
    "silu again": lambda x: down(SiluMul.apply(gate(x), up(x))),
    "all again": lambda x: checkpoint(mlps["plain"], x, use_reentrant=False),
}

# %%
inner, outer = 4 * ROWS * INNER, 4 * ROWS * WIDTH  # bytes of one tensor inside, and of x
predicted = {"plain": 4 * inner + outer, "silu again": 3 * inner + outer, "all again": outer}
found = {name: kept_bytes(mlp, x, besides=weights) for name, mlp in mlps.items()}
for name, (size, gradients) in found.items():
    pairs = zip(gradients, found["plain"][1], strict=True)
    same = all(gap(*pair) < 1e-5 for pair in pairs)  # float32
    ratio = size / predicted[name]
    print(
        f"{name:10} keeps {size / MIB:.2f} MiB, {ratio:.2f} of the prediction; same gradients: {same}"
    )
    assert same and ratio == 1

# %% [markdown]
# Notice: the same gradients. Autograd keeps x and four tensors of size I. Computing silu again takes no matrix
# product and saves nearly a quarter; computing all again keeps an eleventh, for a second forward pass: that is
# **gradient checkpointing**, and Unsloth moreover parks what is kept in the host's memory. FlashAttention does it to
# attention: the T × T probabilities are never stored, but computed again, tile by tile. torch has it built in:

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
(stored, gradients), (less, again) = (kept_bytes(way, *qkv) for way in (attention, built_in))
pairs = zip(again, gradients, strict=True)
agree = all(gap(*pair) < 1e-4 for pair in pairs)  # of float32's 7 digits
square = 4 * 4 * T * T  # bytes of the probabilities of 4 heads
print(f"probabilities: {square / MIB:.2f} MiB; gradients agree: {agree}")
print(f"kept by hand: {stored / MIB:.2f} MiB, by torch's attention: {less / MIB:.2f} MiB")
assert agree and less < square < stored

# %% [markdown]
# ### Exercise 2 · chunks by checkpoint
#
# Difficulty ●●○, 8 minutes. A loss in chunks without a backward pass of your own: let `checkpoint` compute each chunk
# again. Sum in the chunks, divide once. Expected: loss and gradients of `F.cross_entropy`, and never more than `chunk`
# rows of logits.


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
# `sum_over_count` above is nearly it. Write the loss of one chunk as a function of its rows and labels, and call it
# as `checkpoint(part, h, y, use_reentrant=False)`.
#
# </details>

# %% [markdown]
# ## 5 · What a faster step is worth
#
# A run is more than its steps. Where evaluation takes the share `e` of it, and steps become `s` times faster, the whole
# becomes `1 / (e + (1 - e) / s)` times faster: **Amdahl's law**. However fast the steps, `1 / e` is the end.
#
# ### Exercise 3 · Amdahl
#
# Difficulty ●○○, 3 minutes. Expected: steps twice as fast and half the time spent on evaluation make 1.33.


# %% tags=["exercise"]
def whole_speed_up(step_speed_up: float, evaluation_share: float) -> float:
    """How many times faster the run is; evaluation_share: of the old run's time, from 0 to 1."""
    ### BEGIN SOLUTION
    return 1 / (evaluation_share + (1 - evaluation_share) / step_speed_up)
    ### END SOLUTION


check_whole_speed_up(whole_speed_up)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Say that the old run takes 1. Evaluation still takes its share; the rest is divided by the step's speed-up. The
# speed-up is old time over new.
#
# </details>

# %% [markdown]
# How large is `e`? Take a run like notebook 08's: 40 steps of 32 conversations and 20 evaluations, but each on all
# 108 held-out questions, three times as many as there. **Predict** `e`: a backward pass costs about two forward passes.

# %%
pocket, own = load_base(data_dir() / "pocket-base")
optimizer = torch.optim.AdamW(pocket.parameters(), lr=1e-5)
splits = load_chat(data_dir() / "chat")
train, test = (
    [encode(own, row["messages"], own.chat_template) for row in splits[name]]
    for name in ("train", "test")
)


# %%
def step(number):
    pocket(**pad(global_batch(train, number, 32, SEED), own.pad_token_id)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def evaluate():
    for start in range(0, len(test), BATCH):  # the trainer's own batch size for evaluation
        pocket(**pad(test[start : start + BATCH], own.pad_token_id))


# %% tags=["nbval-ignore-output"]
steps, evaluations = 40 * seconds(step, 0), 20 * seconds(evaluate)
share = evaluations / (steps + evaluations)
print(f"steps {steps:.1f} s, evaluations {evaluations:.1f} s: e = {share:.2f}")
print(f"steps 2 times faster make the run {1 / (share + (1 - share) / 2):.2f} times faster")

# %%
figure, ax = new_axes(6, 3)
shares = [i / 100 for i in range(101)]
for factor, style, colour in ((2, "-", 0), (5, "--", 1), (1000, ":", 5)):
    runs = [1 / (e + (1 - e) / factor) for e in shares]
    label = f"steps {factor:,} times faster"
    ax.plot(shares, runs, style, color=OKABE_ITO[colour], label=label)
ax.set(
    xlabel="share of evaluation in the old run",
    ylabel="whole run, times faster",
    ylim=(1, 5.2),
)
_ = ax.legend(frameon=False)

# %%
between = 0.1 < share < 0.6
hidden_gain = 1 / (share + (1 - share) / 2) < 1.85
print(f"evaluation took between 10 and 60 % of the run: {between}")
print(f"so steps 2 times faster make it less than 1.85 times faster: {hidden_gain}")

# %%
claim = "a run that is timed with its evaluations hides part of what a faster step gains"
source = "a chat fine-tune that compares LoRA, DoRA, LoRA+, NEFTune and Unsloth"
held = between and hidden_gain
measured = (
    f"20 evaluations of 108 questions among 40 steps of 32 take between 10 and 60 % of the run: {between}; "
    f"steps 2 times faster make it less than 1.85 times faster: {hidden_gain}"
)
only_if = "evaluation takes a tenth of the run or more" if held else ""
ledger.add(claim, source, held, measured, only_if=only_if)

# %% [markdown]
# Notice: a comparison that times whole runs measures its evaluations too, and these use neither backward pass nor
# optimizer. Time steps; leave out the first ones, which compile and warm up; switch evaluation off; and look at the
# losses: a faster step that learns something else is no speed-up.

# %% [markdown]
# ## 6 · The real thing
#
# `experiments.lora_speed` trains the same LoRA by plain TRL, by TRL with Liger's layers and by Unsloth: a process for
# each, the same rows in the same order, without evaluation, warm-up steps apart. It needs an NVIDIA GPU, and stores
# every step's seconds and loss. This is the record, if there is one:

# %%
record = read_record(data_dir() / "results" / "gpu_lora.json")
COMMAND = "python -m experiments.lora_speed --model MODEL --unsloth-python unsloth/bin/python"

# %%
if record is None:
    print(f"None is recorded yet. On a machine with an NVIDIA GPU:\n    {COMMAND}")
else:
    print(table(record))
    figure, ax = new_axes(6, 3)
    for name, style in zip(record["contenders"], ("-", "--", ":"), strict=False):
        ax.plot(record["contenders"][name]["losses"], style, label=name)
    ax.set(xlabel="step", ylabel="loss (nats per token)")
    ax.legend(frameon=False)


# %%
def judged(record, name):
    """(speed, memory, measured): the two verdicts on a contender, None where nothing is recorded."""
    if record is None or not {"trl", name} <= set(record["contenders"]):
        return None, None, f"no run is recorded: it needs an NVIDIA GPU; {COMMAND}"
    speed, memory, gap = (judge(record, name) for judge in (speed_up, memory_ratio, loss_gap))
    device = record["contenders"][name]["device"]
    where = f"{device}, {record['date']}, against TRL of that day"
    text = f"{speed:.2f}× a step, {memory:.0%} of the memory, losses within {gap:.3f}; {where}"
    return speed >= 1.8, memory <= 0.3, text


# %%
speed, memory, measured = judged(record, "unsloth")
source = "Unsloth 2026.10.9, README"
ledger.add("Unsloth trains about 2× faster", source, speed, measured)
ledger.add("Unsloth trains with 70 % less memory", source, memory, measured)

# %% [markdown]
# Notice: where nothing was measured, the verdict is *not tested*. A figure from elsewhere was measured against someone
# else's baseline.

# %% [markdown]
# ### Before you choose
#
# What holds for **Unsloth 2026.10.9**, and the file of the package that says so:
#
# - **Import it first**, before trl, transformers and peft, or it warns that they stay unpatched (`_gpu_init.py`).
# - **Devices:** GPUs of NVIDIA, AMD and Intel, Ascend NPUs, Apple by MLX; on a CPU it takes stock libraries with a loss
#   in chunks, none of its kernels (`device_type.py`, `_cpu_init.py`).
# - **Several devices:** listed as supported; its own FSDP2 is asked for by `UNSLOTH_FSDP2=1` under torchrun (README,
#   `fsdp2_launch.py`).
# - **Designs:** paths of its own for Llama, Mistral, Gemma 1 and 2, Qwen 2 and 3; a general one for the others
#   (`models/loader.py`).
# - **Replaces** attention, norms, rotary embeddings, MLP, LoRA's products, the loss and TRL's trainers (`kernels/`,
#   `models/`).
# - **Full fine-tuning:** `full_finetuning=True` (`models/loader.py`).
# - **Checkpointing:** `"unsloth"` parks activations in the host's memory; under 512 tokens it takes torch's
#   (`models/_utils.py`).
# - **Needs** trl ≤ 1.15.0, transformers ≤ 5.17.0 and datasets < 5 (`METADATA`): older than this course's, so give it
#   an environment of its own, with the pins in `experiments/lora_speed/unsloth.txt`.
#
# And **Liger 0.8.5** needs torch and Triton only, and so runs where Triton does. It replaces norms, rotary embeddings,
# MLP and loss in some fifty designs (`transformers/monkey_patch.py`), and works with FSDP, DDP and DeepSpeed (README).

# %% [markdown]
# ## Recap
#
# - The logits are B × T × V numbers, and four such tensors are alive at the peak of the loss.
# - A loss in chunks gives the same gradients and holds a chunk; sum in the chunks, divide once.
# - Fused means fewer passes over memory, and less time; by how much, the bytes alone did not predict.
# - What is cheap to compute need not be stored: checkpointing, a SwiGLU that computes silu again, and FlashAttention
#   do.
# - Time steps, not runs; name the baseline and its version; compare the losses.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. Which tensor of a training step grows with the vocabulary, and how many copies of it are alive at the peak?
# 2. Why can a loss in chunks compute gradients in its forward pass?
# 3. When does the mean of the chunks' means go wrong?
# 4. Why is a fused norm faster, although it computes the same?
# 5. Evaluation takes half of a run. How much faster can faster steps make it at most?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: the logits; four: themselves, their log-softmax, and the gradients of both.
# - 2: the gradient of a row's logits needs that row, its label and the count of labels, and nothing of later rows.
# - 3: when chunks hold unequally many labels.
# - 4: it reads and writes the tensor once; several operations do it several times.
# - 5: twice.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Hsu et al., [Liger Kernel](https://arxiv.org/abs/2410.10989), 2024, and the README and source of its 0.8.5.
# - Wijmans et al., [Cut Your Losses in Large-Vocabulary Language Models](https://arxiv.org/abs/2411.09009), 2024:
#   cut cross-entropy.
# - [Unsloth](https://github.com/unslothai/unsloth), README, METADATA and source of 2026.10.9.
# - Dao et al., [FlashAttention](https://arxiv.org/abs/2205.14135), 2022: attention computed again, tile by tile.
# - Chen et al., [Training Deep Nets with Sublinear Memory Cost](https://arxiv.org/abs/1604.06174), 2016.
# - Amdahl, Validity of the single processor approach to achieving large scale computing capabilities, AFIPS 1967.
# - TRL 1.16, `trl/trainer/sft_trainer.py` and `trl/kernels/chunked_logprob.py`: its loss in tiles.
#
# ## Next
#
# [12_memory](12_memory.ipynb): what a run will need, told before it starts.
