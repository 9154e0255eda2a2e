# %% [markdown]
# # 07 · Overfit one batch
#
# A model that cannot memorise eight examples will not learn a data set. You try that before every long run, and
# read from the loss what is wrong.
#
# - **Prerequisites:** [05_chat_templates](05_chat_templates.ipynb) for labels and -100; you have seen a training
#   loop.
# - **Hardware:** any processor; one core is enough.
# - **Time:** about 40 minutes with the exercises; its cells run in under one minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **drive** one batch to zero loss, and say why that is no success,
# - **explain** a first loss label by label: text, first token, end-of-turn token,
# - **judge** a first loss without `ln(V)`, on a vocabulary of any size,
# - **recognise** five bugs by their curves, and know which curves look healthy,
# - **compute** how low the loss of a batch can fall.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import json
import math

import torch
import transformers
from ftcourse.claims import Ledger
from ftcourse.exercises.overfit_one_batch import (
    CAUSES,
    check_diagnoses,
    check_loss_floor,
    plant_unknown_bugs,
)
from ftcourse.expected import expected_error
from ftcourse.explorers.label_losses import LabelLossExplorer
from ftcourse.plots import OKABE_ITO, new_axes, use_course_style

from ftkit import load_base
from ftkit.batching import pad, read_rows
from ftkit.chat import end_of_turn_id
from ftkit.conversations import find_chat
from ftkit.evaluate import generate_answers
from ftkit.loss import IGNORE_INDEX, token_losses
from ftkit.models import data_dir
from ftkit.overfit import loss_floor, overfit_one_batch, start_loss

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
print(f"torch {torch.__version__}, transformers {transformers.__version__}, device: cpu")

# %%
LR = 3e-3  # of AdamW; high, because a model of a million parameters memorises a batch
STEPS = 40  # optimizer steps, at most
ROWS = 8  # conversations in the batch
VALIDATION_ROWS = 24  # held-out conversations
MAX_TOKENS = 128  # of a conversation; longer ones would be truncated
ledger = Ledger("chat data and evaluation")  # the claims that this notebook tests

# %% [markdown]
# ## 1 · One batch, again and again
#
# Take eight conversations and no others. Whatever else is true of a model, it can memorise eight short answers if its
# labels, its gradients and its learning rate work together. A **label** is the token to predict at its place; -100
# means none, as in questions and padding.
#
# The model is pocket-base, a Llama of a million parameters that has read a small almanac, but no chats.

# %%
model, tokenizer = load_base()
files = find_chat()
rows = read_rows(files["train"], tokenizer, MAX_TOKENS).rows
rows = [row for row in rows if len(row["input_ids"]) < 40]  # short ones, to be quick
batch = pad(rows[:ROWS], tokenizer.pad_token_id)
held_out = read_rows(files["test"], tokenizer, MAX_TOKENS).rows[:VALIDATION_ROWS]
validation = pad(held_out, tokenizer.pad_token_id)
in_loss = batch["labels"][:, 1:] != IGNORE_INDEX  # (B, T - 1)
print({name: tuple(tensor.shape) for name, tensor in batch.items()})
print(f"tokens in the loss: {int(in_loss.sum())}")

# %% [markdown]
# Besides the loss we watch the **token accuracy**, the share of labels whose token is the likeliest. The output at
# one token predicts the next one, so outputs and labels are compared one place apart. We keep the loss of every
# single label as well, for section 2.


# %%
@torch.no_grad()
def look(model, batch):
    """Loss of each label in nats (N,), and the token accuracy."""
    logits, labels = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
    kept = labels != IGNORE_INDEX
    accuracy = (logits.argmax(-1) == labels)[kept].float().mean().item()
    return token_losses(logits, labels)[kept], accuracy


# %% [markdown]
# **Predict first.** Once the batch is memorised, what does the loss on held-out conversations do: keep falling,
# stay, or rise?

# %%
optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
by_label, accuracies, held = {}, {}, {}  # step -> what was seen there
for step in range(STEPS + 1):
    if step < 4 or step % 4 == 0:
        by_label[step], accuracies[step] = look(model, batch)
        held[step] = look(model, validation)[0].mean().item()
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
training = {step: losses.mean().item() for step, losses in by_label.items()}

# %% tags=["hide-input", "nbval-ignore-output"]
figure, (left, right) = new_axes(9, 3, columns=2)
figure.get_layout_engine().set(wspace=0.1)
for name, values, colour, style in (
    ("training", training, OKABE_ITO[0], "-o"),
    ("held out", held, OKABE_ITO[5], "--s"),
):
    left.plot(
        list(values), list(values.values()), style, color=colour, label=name, markersize=4
    )
left.set(xlabel="optimizer step", ylabel="loss (nats per label)", ylim=(0, None))
left.legend(frameon=False)
right.plot(list(accuracies), list(accuracies.values()), "-o", color=OKABE_ITO[0], markersize=4)
right.set(xlabel="optimizer step", ylabel="token accuracy on the batch", ylim=(0, 1.05))
best = min(held, key=held.get)
print(
    f"training: {training[0]:.2f} nats, {accuracies[0]:.0%} right -> {training[STEPS]:.2f}, {accuracies[STEPS]:.0%}"
)
print(f"held out: {held[0]:.2f} nats -> {held[best]:.2f} at step {best} -> {held[STEPS]:.2f}")

# %%
memorised = training[STEPS] < 0.02 and accuracies[STEPS] == 1
worse = held[STEPS] > 1.2 * held[best]
assert memorised and worse and held[best] < 0.9 * held[0]
_ = ledger.add(
    "overfit a single batch of a few examples, to the lowest achievable loss",
    "Karpathy 2019, A Recipe for Training Neural Networks",
    memorised,
    f"{ROWS} conversations: under 0.02 nats per label and all labels right within {STEPS} steps",
    seeds=1,
)

# %% [markdown]
# The loss on the batch ends below 0.02 nats per label, a probability of over 98 % for the right token. The held-out
# loss first falls, because eight examples teach the format of an answer, and then rises, because they teach nothing
# else. Zero loss here is a test that was passed, not a model to keep.

# %% [markdown]
# ## 2 · 62 % right, at 5.1 nats?
#
# Look at the very first values again. A model that predicts more than half of all labels correctly has a mean loss
# of 5.1 nats, as if each label had a probability of 0.6 %. How can both be true?
#
# **Predict first.** Which labels cost the most: the first of an answer, its text, or its end?

# %%
labels = batch["labels"][:, 1:][in_loss]
edge = torch.nn.functional.pad(in_loss, (1, 1))  # an answer is a run of labels
starts, ends = (in_loss & ~edge[:, :-2])[in_loss], (in_loss & ~edge[:, 2:])[in_loss]
places = {"first": starts, "inside": ~starts & ~ends, "last": ends}
fresh, _ = load_base()
losses, _ = look(fresh, batch)
print("place   labels  nats each  share of the loss")
for name, chosen in places.items():
    mean, share = losses[chosen].mean(), losses[chosen].sum() / losses.sum()
    print(f"{name:7} {int(chosen.sum()):6} {mean:10.1f} {share:10.0%}")
print(f"all     {len(losses):6} {losses.mean():10.1f}")
assert (
    losses[ends].min() > 20 > 13.5 > losses[starts].max()
    and losses[places["inside"]].mean() < 1
)

# %% [markdown]
# The eight conversations have ten answers. Their end-of-turn tokens `<|end|>` make up nearly two thirds of the loss:
# 24 nats each, a probability of 3 in 100 billion. The first labels cost 10 nats, because an answer begins after an
# untrained role token, and without the space that stood before each answer in pre-training
# ([05_chat_templates](05_chat_templates.ipynb), section 4). The text inside the answers costs 0.8 nats, which is why
# most of it is right.

# %% [markdown]
# 24 nats is far worse than a uniform guess, which costs $\ln 1024 = 6.9$. The token never occurred in pre-training.
# Each training step lowers the logits of the tokens that do not come next, and a token that **never** comes next is
# only ever lowered. Compare the logits after an answer's last word:

# %%
with torch.no_grad():
    logits = fresh(**batch).logits[:, :-1][in_loss][ends]  # (10, V): <|end|> should follow
end_id = end_of_turn_id(tokenizer)
strangers = tokenizer.convert_tokens_to_ids(
    ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
)
likeliest = logits.max(dim=-1).values.mean()
print(f"likeliest token: logit {likeliest:.0f}")
print(f"median of all {logits.shape[-1]} tokens: {logits.median(dim=-1).values.mean():.0f}")
print(f"the four tokens that never occurred: {logits[:, strangers].mean():.0f}")
print(f"what is likeliest: {tokenizer.decode(logits.argmax(-1).mode().values)!r}")
assert likeliest - logits[:, strangers].mean() > 20

# %% [markdown]
# The model expects a line break, as in its pre-training, where questions and answers stood as `Q:` and `A:`. Ask for
# the same facts in that format, and see what the answers cost:

# %%
facts = {
    "How does a rooster sound?": " A rooster crows.",
    "What is 0 plus 9?": " 0 plus 9 is 9.",
    "Where is Uruguay?": " Uruguay is in South America.",
}
costs = []
for question, answer in facts.items():
    before = len(tokenizer(f"Q: {question}\nA:")["input_ids"])
    ids = torch.tensor([tokenizer(f"Q: {question}\nA:{answer}\n")["input_ids"]])
    with torch.no_grad():
        costs.append(token_losses(fresh(ids).logits[:, :-1], ids[:, 1:])[0, before - 1 :])
print(f"answers in the format of pre-training: {torch.cat(costs).mean():.2f} nats per token")
assert torch.cat(costs).mean() < 0.02

# %% [markdown]
# So the 5.1 nats are the price of a new format, not of missing knowledge. Move the slider to see what is learnt
# first: each bar is one label of the first three answers.

# %% tags=["nbval-ignore-output"]
shown = int(ends.cumsum(0).tolist().index(3)) + 1  # the labels of three answers
names = [
    "first" if s else "last" if e else "inside" for s, e in zip(starts, ends, strict=True)
]
explorer = LabelLossExplorer(
    [tokenizer.decode([label]) for label in labels[:shown]],
    names[:shown],
    {step: values[:shown].tolist() for step, values in by_label.items()},
)
explorer

# %%
before = explorer.picture.value
explorer.step_slider.value = 2  # what you do with the mouse, done by a cell
assert explorer.picture.value != before and "Step 2" in explorer.caption
explorer.step_slider.value = 0

# %% tags=["hide-input", "nbval-ignore-output"]
figure, ax = new_axes(6.5, 3)
for (name, chosen), colour, style in zip(
    places.items(),
    (OKABE_ITO[1], OKABE_ITO[0], OKABE_ITO[5]),
    ("--s", "-o", ":^"),
    strict=True,
):
    means = [values[chosen].mean().item() for values in by_label.values()]
    ax.plot(list(by_label), means, style, color=colour, label=name, markersize=5)
ax.set(xlabel="optimizer step", ylabel="loss (nats per label)", ylim=(0, None), xlim=(0, 16))
_ = ax.legend(frameon=False, title="place in the answer")

# %%
one, four = ({n: by_label[at][c].mean().item() for n, c in places.items()} for at in (1, 4))
assert one["last"] < 12 and four["last"] > 10 * four["inside"]

# %% [markdown]
# One step takes the end-of-turn token from 24 nats to below 12, and the mean with it: all ten labels push one row of
# the LM head the same way. Yet it is the last to be learnt. So a steep first fall proves little. In a real run, log a
# second curve: the loss of the end-of-turn token alone.

# %% [markdown]
# ## 3 · Where should a curve begin?
#
# The usual advice compares the first loss with the uniform baseline `ln(V)`. It is right for an **untrained** model,
# which is what it was given for:

# %%
torch.manual_seed(0)
untrained = type(model)(model.config)  # the same model with random weights
uniform = math.log(model.config.vocab_size)
first = look(untrained, batch)[0].mean().item()
print(f"untrained: {first:.1f} nats; ln({model.config.vocab_size}) = {uniform:.1f}")
assert abs(first / uniform - 1) < 0.05
_ = ledger.add(
    "at initialisation the loss is that of a uniform guess: -log(1/number of classes)",
    "Karpathy 2019, A Recipe for Training Neural Networks",
    abs(first / uniform - 1) < 0.05,
    f"random weights: {first:.1f} nats per label, ln(V) = {uniform:.1f}",
    seeds=1,
)

# %% [markdown]
# For a **pretrained** model it is a poor alarm, because `ln(V)` grows with the vocabulary and a healthy first loss
# does not. Try it on three bugs: labels **shifted** by one place, labels of **another row** of the batch, and the
# **padding in the loss**. Here are stored first losses of SmolLM2-135M-Instruct (weights dequantised from 4 bits) on
# eight of this course's chats about the almanac, and on eight requests of SNIPS, a data set for voice assistants.

# %%
record = json.loads((data_dir() / "results" / "chat_facts.json").read_text(encoding="utf-8"))
for size in (model.config.vocab_size, 49_152, 128_256, 151_936):
    print(f"vocabulary {size:7,}: ln(V) = {math.log(size):4.1f}")
for source, measured in record["batches"].items():
    last = measured["starts"]["healthy"]["last"]
    print(
        f"SmolLM2 on {source}, {measured['accuracy']:.0%} right, end-of-turn token {last:.1f} nats:"
    )
    for bug, start in measured["starts"].items():
        print(f"    {bug:20} begins at {start['overall']:4.1f}")
silent = [
    start["overall"] for m in record["batches"].values() for start in m["starts"].values()
    if start["overall"] < math.log(151_936)
]  # fmt: skip
assert (
    len(silent) == 5
)  # two healthy, and three bugs that ln(V) of a large vocabulary would not notice

# %% [markdown]
# Padding in the loss begins at 3.7 and 5.7 nats, far below $\ln 49152 = 10.8$. With a vocabulary of 150,000, the
# shifted labels' 11.8 would be below $\ln V$, too. So compare with something that the same model measures.
#
# **The check.** Context makes text easier to predict. So the labels inside an answer should cost **no more with their
# context than without it**. `start_loss` reads each answer twice: in its conversation, and alone, with nothing before
# it.

# %%
nothing = torch.full_like(batch["labels"][:, :1], IGNORE_INDEX)
padding = batch["attention_mask"] == 0
broken = {
    "shifted": torch.cat([batch["labels"][:, 1:], nothing], dim=1),  # the model shifts, too
    "another row's": batch["labels"].roll(1, 0),
    "padding in the loss": torch.where(padding, tokenizer.pad_token_id, batch["labels"]),
}
start = start_loss(fresh, batch)
print(start)
print()
here = {"healthy": start._asdict()}
for name, wrong in broken.items():
    here[name] = start_loss(fresh, {**batch, "labels": wrong})._asdict()
for name, values in here.items():
    print(f"{name:20} inside {values['inside']:4.1f}, without context {values['alone']:4.1f}")
assert not start.too_high and here["shifted"]["inside"] > 10 * here["shifted"]["alone"]

# %% tags=["hide-input"]
panels = {f"pocket-base, V = {model.config.vocab_size:,}": (uniform, here)}
for source, m in record["batches"].items():
    panels[f"SmolLM2, {source}, V = 49,152"] = (m["uniform"], m["starts"])
figure, axes = new_axes(9, 2.8, columns=3)
for number, ((title, (base_line, starts_of)), ax) in enumerate(
    zip(panels.items(), axes, strict=True)
):
    bugs = list(starts_of)[::-1]
    for place, bug in enumerate(bugs):
        values = {place: round(loss, 2) for place, loss in starts_of[bug].items()}
        ax.plot([values["alone"], values["inside"]], [place, place], color="#999999")
        ax.plot(
            values["alone"],
            place,
            "o",
            color=OKABE_ITO[0],
            markerfacecolor="white",
            markersize=8,
        )
        ax.plot(values["inside"], place, "D", color=OKABE_ITO[5], markersize=6)
    ax.axvline(base_line, color="black", linestyle=":", linewidth=1)
    ax.text(base_line, len(bugs) - 0.45, "ln(V)", ha="center", fontsize=8)
    ax.set(
        title=title,
        xlim=(0, 18),
        ylim=(-0.5, len(bugs) - 0.3),
        xlabel="nats per label, inside answers",
    )
    ax.set_yticks(range(len(bugs)), bugs if number == 0 else [""] * len(bugs))
    ax.title.set_fontsize(9)
axes[2].plot([], [], "o", color=OKABE_ITO[0], markerfacecolor="white", label="without context")
axes[2].plot([], [], "D", color=OKABE_ITO[5], label="with context")
_ = figure.legend(frameon=False, loc="outside lower center", ncols=2)

# %%
pairs = {
    (name, bug): s for name, (_, starts_of) in panels.items() for bug, s in starts_of.items()
}
healthy = [s for (_, bug), s in pairs.items() if bug == "healthy"]
misplaced = [s for (_, bug), s in pairs.items() if bug in ("shifted", "another row's")]
assert all(s["inside"] < s["alone"] for s in healthy)
assert all(s["inside"] > 2.5 * s["alone"] for s in misplaced)
highest = max(s["inside"] / s["alone"] for s in healthy)
lowest = min(s["inside"] / s["alone"] for s in misplaced)
print(f"healthy labels: at most {highest:.1f} times the loss without context")
print(f"labels in the wrong place: at least {lowest:.1f} times")

# %% [markdown]
# A healthy diamond lies left of its circle, for either model and either data set; labels in the wrong place lie far
# to the right. Padding in the loss is the exception: its diamond may lie on either side. So compare the labels with
# the attention mask as well, as `overfit_one_batch` does.

# %% [markdown]
# ## 4 · Five bugs, five curves
#
# Plant five common bugs: three in the labels, one in what is trained, one in the learning rate. First the labels,
# beside the tokens of the first conversation:

# %%
del broken["another row's"]  # its start was shown above
broken["all -100"] = torch.full_like(batch["labels"], IGNORE_INDEX)  # a mask that masks all
columns = {"token": batch["input_ids"], "healthy": batch["labels"], **broken}


def cell(value):
    if value == IGNORE_INDEX:
        return "-100"
    return tokenizer.convert_ids_to_tokens(value).replace("Ġ", "·")  # a space


print("".join(f"{name:21}" for name in columns).rstrip())
for place in range(9, 20):  # from the end of the question to the padding
    print("".join(f"{cell(int(v[0, place])):21}" for v in columns.values()).rstrip())
counts = [f"{int((v != IGNORE_INDEX).sum())} labels" for v in columns.values()]
print(f"{'in the batch':21}" + "".join(f"{count:21}" for count in counts[1:]).rstrip())

# %% [markdown]
# Healthy labels equal the token in their line. Shifted ones stand one line too early, although the model shifts by
# itself, and padding in the loss goes on after the answer. `overfit_one_batch` trains on each until the batch is
# memorised or nothing moves the loss.
#
# **Predict first:** which of the five will reach zero loss in spite of its bug?

# %%
base, _ = load_base()
verdicts = {"healthy": overfit_one_batch(base, batch, LR, STEPS)}
for name, values in broken.items():
    verdicts[name] = overfit_one_batch(base, {**batch, "labels": values}, LR, STEPS)
verdicts["all frozen"] = overfit_one_batch(base.requires_grad_(False), batch, LR, STEPS)
base.requires_grad_(True)
verdicts["learning rate × 1000"] = overfit_one_batch(base, batch, 1000 * LR, STEPS)
runs = {name: verdict.run for name, verdict in verdicts.items()}

# %% tags=["hide-input", "nbval-ignore-output"]
from matplotlib import pyplot

figure, axes = pyplot.subplots(2, 3, figsize=(9, 4.8), sharex=True)
for (name, run), ax in zip(runs.items(), axes.flat, strict=True):
    shown = [loss for loss in run.losses if math.isfinite(loss)]
    ax.plot(runs["healthy"].losses, "-", color="#999999", linewidth=3, label="healthy")
    if name != "healthy" and shown:
        ax.plot(shown, "--o", color=OKABE_ITO[5], markersize=4, label="with the bug")
    elif not shown:
        ax.text(20, 3, "NaN from the first step", ha="center", color=OKABE_ITO[5])
    top = 10 if not shown else max(10, 1.3 * max(shown))
    ticks = [tick for tick in (0, 1, 3, 10, 30, 100, 1000) if tick <= top]
    ax.set(title=name, yscale="symlog", xlim=(-1, STEPS), ylim=(0, top))
    ax.set_yticks(ticks, ticks)
for ax in axes[:, 0]:
    ax.set_ylabel("nats per label (log above 2)")
for ax in axes[1]:
    ax.set_xlabel("optimizer step")
_ = axes[0, 1].legend(frameon=False)


# %%
def shape(run):
    """What a curve looks like, in words that do not depend on the processor."""
    if not math.isfinite(run.losses[0]):
        return "NaN from the first step"
    if len(set(run.losses)) == 1:
        return "flat, to the last digit"
    if not run.losses[-1] < run.losses[0]:
        return "rises, or ends in NaN"
    return "reaches zero" if run.fitted else "falls, and does not reach zero"


print(f"{'':21} {'first loss':>10}  curve")
for name, run in runs.items():
    print(f"{name:21} {run.losses[0]:10.1f}  {shape(run)}")
fitted = [name for name, run in runs.items() if run.fitted]
assert fitted == ["healthy", "shifted", "padding in the loss"]

# %% [markdown]
# Two bugs of five reach zero: a model memorises wrong labels, too. Only the start gives them away, and only the
# labels say which bug it is. The other three are seen at a glance: NaN, a flat line, a curve that explodes.

# %% [markdown]
# ## 5 · A function that diagnoses
#
# `overfit_one_batch` compares the labels with the tokens, looks at what is trained, and at the curve. After a failure
# it tries other learning rates, to tell a wrong one from another bug. At the end it restores the model.

# %%
for name, verdict in verdicts.items():
    remedy = verdict.finding.remedy.split(" towards")[0]  # without the rate, which may differ
    print(f"{name}: {verdict.finding.code}\n    remedy: {remedy}")
findings = [verdict.finding.code for verdict in verdicts.values()]
assert verdicts["healthy"].healthy and len(set(findings)) == len(findings)
original = load_base()[0].state_dict()
assert all(torch.equal(value, original[name]) for name, value in base.state_dict().items())

# %% tags=["nbval-ignore-output"]
print(verdicts["learning rate × 1000"])

# %% [markdown]
# "Likely cause" is meant literally: the learning rate is blamed because another one worked. For a model of your own:
# `print(overfit_one_batch(model, batch, lr=your_lr))`. It needs the memory of full fine-tuning with AdamW, 16 bytes
# per trained parameter; attach LoRA first where that is too much.

# %% [markdown]
# ## 6 · Above zero, and no bug
#
# Ask one question and give two answers. Nothing is broken, and no model can be certain of both. The best it can do is
# to give each continuation its share. A toss of a coin costs $-\ln \frac{1}{2} = \ln 2$ nats. The mean of
# $-\ln(\text{share})$ over all labels is the **entropy floor** of the batch.


# %%
def asked_and_answered(answer):
    chat = [{"role": "user", "content": "Name a planet."}]
    chat += [{"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]


pair = [asked_and_answered(planet) for planet in ("Mars", "Venus")]
# Up to here the two are alike; from here on there are labels.
begin = next(i for i, (a, b) in enumerate(zip(*pair, strict=False)) if a != b)
answers = [{"input_ids": i, "labels": [IGNORE_INDEX] * begin + i[begin:]} for i in pair]
two_answers = pad(answers, tokenizer.pad_token_id)

# %%
verdict = overfit_one_batch(base, two_answers, lr=1e-3)
count = int((two_answers["labels"] != IGNORE_INDEX).sum())
print(f"{count} labels; the first of each answer is a toss of a coin")
print(f"floor: 2 · ln(2) / {count} = {2 * math.log(2) / count:.2f} nats per label")
print(f"computed from the batch: {verdict.floor.loss:.2f}")
print(f"the run ended at {verdict.run.losses[-1]:.1f}; finding: {verdict.finding.code}")
assert math.isclose(verdict.floor.loss, 2 * math.log(2) / count)
assert verdict.healthy and 0.02 < verdict.run.losses[-1] < verdict.floor.loss + 0.02

# %% [markdown]
# So the lowest loss need not be zero. It is above zero as soon as two sequences begin alike and go on differently:
# contradicting answers, or questions in the loss, because nothing tells which question comes.

# %%
all_tokens = {**batch, "labels": batch["input_ids"].masked_fill(padding, IGNORE_INDEX)}
floors = [loss_floor(b, next_token=True).loss for b in (batch, all_tokens)]
print(f"floor of the eight conversations, answers in the loss: {floors[0]:.2f}")
print(f"the same with the questions in the loss: {floors[1]:.2f}")
assert floors[0] == 0 < floors[1]

# %% [markdown]
# ## 7 · Break it, then fix it
#
# The padding bug of [05_chat_templates](05_chat_templates.ipynb), seen in the loss: the token that ends an answer is
# also the pad token, and the labels mask every pad token. Memorise that batch, then ask its own questions. How many
# of the eight answers does the model end by itself?

# %%
endless = pad(rows[:ROWS], end_id)
endless["labels"] = endless["labels"].masked_fill(endless["input_ids"] == end_id, IGNORE_INDEX)


def question(row):
    """The text up to the first label, without the token that opens every text."""
    first = next(i for i, label in enumerate(row["labels"]) if label != IGNORE_INDEX)
    return tokenizer.decode(row["input_ids"][1:first])


questions = [question(row) for row in rows[:ROWS]]
print(questions[0])


# %%
def memorise_and_ask(batch):
    """Memorise a batch; returns the last loss, and how many questions get an answer that stops."""
    model, _ = load_base()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    for _ in range(20):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    answers = generate_answers(model, tokenizer, questions, max_new_tokens=24)
    return look(model, batch)[0].mean().item(), sum(answer.stopped for answer in answers)


# %% tags=["raises-exception"]
loss, stopped = memorise_and_ask(endless)
assert loss < 0.1, "not memorised"
with expected_error(AssertionError):
    assert stopped == ROWS, f"memorised, and {stopped} of {ROWS} answers stop"

# %% [markdown]
# Every label was memorised, but the token that ends an answer had no label. The fix is a pad token of its own, masked
# by position, as in the batch that we began with. What would have shown the bug before training?

# %%
verdict = overfit_one_batch(base, endless, LR, STEPS)
print(f"curve: {shape(verdict.run)}; finding: {verdict.finding.code}")
print(
    f"last labels of the answers at the start: {verdict.start.last:.1f} nats, not {start.last:.1f}"
)
loss, stopped = memorise_and_ask(batch)
print(f"with the fix, {stopped} of {ROWS} answers stop")
assert verdict.start.last < 5 and loss < 0.1 and stopped == ROWS

# %% [markdown]
# The broken curve looks healthy, even better, because its most expensive labels are gone. **A first loss that is
# suspiciously low on a base model is a finding, too**: a new end-of-turn token should be expensive, as it is here
# with 24 nats.

# %% [markdown]
# ## Exercise 1 · The floor
#
# Difficulty ●●○, 7 minutes. `pairs` holds for each label its prefix, which is all that stands before it, and its
# token. Return the least mean loss, in nats. Expected: 0 where each prefix has one continuation; 0.35 for a coin
# toss in half of the pairs.


# %% tags=["exercise"]
def my_loss_floor(pairs: list[tuple[str, str]]) -> float:
    """The mean over all pairs of -ln(share of this continuation among those of its prefix)."""
    ### BEGIN SOLUTION
    total = 0.0
    for prefix, token in pairs:
        followers = [t for p, t in pairs if p == prefix]
        total -= math.log(followers.count(token) / len(followers))
    return total / len(pairs)
    ### END SOLUTION


check_loss_floor(my_loss_floor)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# The best prediction after a prefix is how often each continuation follows it. A pair costs minus the logarithm of
# its own share.
#
# </details>

# %% [markdown]
# ## Four runs with unknown bugs
#
# Four training runs, each with a bug that you cannot see. Call `unknown["A"]` with a learning rate: it trains a copy
# and returns `losses`, `accuracies` and `start`, the `start_loss` of its batch. Here are their curves at this
# notebook's learning rate, beside the healthy one in grey. Two reach zero, two do not.

# %% tags=["nbval-ignore-output"]
unknown = plant_unknown_bugs(base, batch)
curves = {name: run(LR, steps=25) for name, run in unknown.items()}
figure, axes = new_axes(9, 2.2, columns=4)
for (name, curve), ax in zip(curves.items(), axes, strict=True):
    ax.plot(runs["healthy"].losses, "-", color="#999999", linewidth=3, label="healthy")
    ax.plot(curve.losses, "--o", color=OKABE_ITO[5], markersize=4)
    ax.set(title=f"run {name}", xlabel="optimizer step", ylim=(0, 30), xlim=(0, 25))
axes[0].set_ylabel("loss (nats per label)")
axes[0].legend(frameon=False)
for name, curve in curves.items():
    print(f"{name} ends at {curve.losses[-1]:.2f} nats, {curve.accuracies[-1]:.0%} right")

# %%
for name, curve in curves.items():
    at = curve.start
    print(f"run {name}: first loss {at.overall:.1f}, last labels {at.last:.1f},", end=" ")
    print(f"inside answers {at.inside:.1f}, without context {at.alone:.1f}")
print("possible causes:", *CAUSES, sep="\n- ")

# %% [markdown]
# ## Exercise 2 · Diagnose them
#
# Difficulty ●●●, 15 minutes. Run them at other learning rates, compare their starts with the healthy one of section
# 3, and give each its cause. Expected: four letters, four different causes; one cause is left over.


# %% tags=["exercise"]
def my_diagnoses() -> dict[str, str]:
    """The cause of each run: "A", "B", "C" and "D", each with a member of CAUSES."""
    ### BEGIN SOLUTION
    found = {}
    for name, run in unknown.items():
        start, lower, higher = curves[name].start, run(LR / 100, 15), run(10 * LR, 15)
        fits = curves[name].accuracies[-1] == 1
        if fits:
            found[name] = CAUSES[0] if start.inside > 5 * start.alone else CAUSES[1]
        elif lower.losses[-1] < 1:
            found[name] = CAUSES[2]
        else:
            found[name] = CAUSES[3] if higher.accuracies[-1] == 1 else CAUSES[4]
    return found
    ### END SOLUTION


check_diagnoses(my_diagnoses)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Of the two that reach zero: which has labels inside its answers that cost more with context than without, and which
# has no label that costs 24 nats? Of the two that do not: run both at `LR / 100`.
#
# </details>

# %% [markdown]
# ## What transfers
#
# **Measured here:** pocket-base, 1.0 million parameters, a vocabulary of 1,024 of which some tokens never occurred;
# and first losses of SmolLM2-135M-Instruct (weights dequantised from four bits), eight conversations each. Overfitting
# one batch works the same at any size; start_loss was tested on these two models only.

# %% [markdown]
# **Does not transfer:** a learning rate of 3e-3 (full fine-tuning of 1B to 8B models is usually run at 1e-5 to 2e-5,
# LoRA at about ten times that: from the literature, not measured here); 24 nats for the end-of-turn token (an instruct
# model has learnt it: 0.0 nats on SmolLM2); zero loss in 20 steps, which takes longer at smaller rates.

# %% [markdown]
# ## Numbers to take away
#
# | what | number |
# | --- | --- |
# | first loss, here: all labels, inside answers, end-of-turn token | 5.1, 0.8, 24 nats |
# | first loss of an instruct model, SmolLM2-135M | 0.8 and 3.0 nats, and `ln(V)` is 10.8 |
# | healthy labels, with context against without | at most 0.8 times the loss |
# | labels in the wrong place | at least 3 times |
# | bugs of the five that still reach zero loss | 2 |
# | floor of one question with two answers of one word | 2 · ln(2) / number of labels |

# %%
assert round(highest, 1) == 0.8 and round(lowest) == 3  # the table above
assert (
    round(start.overall, 1) == 5.1
    and round(start.inside, 1) == 0.8
    and round(start.last) == 24
)

# %% [markdown]
# ## Recap
#
# - Overfit one batch before a long run: it takes a few dozen steps.
# - Split the first loss by place: untrained tokens hide everything else in the mean.
# - Compare it with the same answers without context, not with `ln(V)`.
# - Wrong labels can be memorised, too: print an example's labels beside its tokens.
# - A batch that stays above its floor means a bug, a wrong learning rate or too few steps.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. Why is a model with zero loss on one batch not worth keeping?
# 2. How can 62 % of the labels be right at a mean loss of 5.1 nats?
# 3. Why does a token that never occurred cost more than a uniform guess?
# 4. Which comparison of the first loss does not depend on the size of the vocabulary?
# 5. Which bugs leave a curve that reaches zero, and what shows them?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: it memorised eight answers; its held-out loss rose.
# - 2: the mean is made by a few labels that are almost impossible, here ten end-of-turn tokens at 24 nats.
# - 3: pre-training lowered its logit at every step and never raised it.
# - 4: the labels inside the answers, with and without their context.
# - 5: those in the labels: shifts, labels of other examples, padding, a masked end; print labels beside tokens.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Karpathy, [A Recipe for Training Neural Networks](https://karpathy.github.io/2019/04/25/recipe/), 2019: verify the
#   loss at the start, overfit one batch.
# - transformers, [loss of causal language models](https://github.com/huggingface/transformers/blob/main/src/transformers/loss/loss_utils.py):
#   where labels are shifted.
# - Allal et al., [SmolLM2](https://arxiv.org/abs/2502.02737), 2025; Coucke et al.,
#   [SNIPS](https://arxiv.org/abs/1805.10190), 2018.
#
# ## Next
#
# [08_full_fine_tune](08_full_fine_tune.ipynb): one batch is memorised; now all of the data.
