# %% [markdown]
# # 07 · Overfit one batch
#
# A model that cannot learn eight rows by heart will not learn a data set. You try that before a long run, and
# read from what happens what is wrong.
#
# - **Prerequisites:** [01_gradient_masks](01_gradient_masks.ipynb) helps; you have seen a training loop.
# - **Hardware:** any processor; two cores are enough.
# - **Time:** about 30 minutes with the exercises; its cells run in under one minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **drive** one batch to zero loss, and say why that is no success,
# - **judge** a curve by where it begins and where it can end,
# - **recognise** five bugs, and the two that a curve cannot tell apart,
# - **compute** how low the loss of a batch can fall,
# - **use** `overfit_one_batch` on a model of your own.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import math

import ipywidgets
import torch
import transformers
from ftcourse.claims import Claim, show_claims
from ftcourse.exercises.overfit_one_batch import (
    check_fixed_labels,
    check_loss_floor,
    check_token_accuracy,
    plant_sixth_bug,
)
from ftcourse.plots import OKABE_ITO, figure_svg, new_axes, use_course_style

from ftkit import load_base
from ftkit.batching import pad, read_rows
from ftkit.chat import end_of_turn_id
from ftkit.conversations import find_chat
from ftkit.evaluate import generate_answers, stop_rate
from ftkit.loss import IGNORE_INDEX
from ftkit.overfit import loss_floor, overfit_one_batch

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
print(f"torch {torch.__version__}, transformers {transformers.__version__}, device: cpu")

# %%
LR = 3e-3  # of AdamW; high, for a batch that is to be learnt by heart
STEPS = 40  # optimizer steps, at most
ROWS = 8  # conversations in the batch
VALIDATION_ROWS = 24  # held-out conversations
MAX_TOKENS = 128  # of a conversation; longer ones would be cut off
claims = []  # what this notebook tested, each with its verdict; the recap prints them

# %% [markdown]
# ## 1 · One batch, again and again
#
# Take eight conversations, and no others. Whatever else is true of a model, it can learn eight short answers
# by heart, if its labels, its gradients and its learning rate work together. A **label** is the token that is
# to be learnt at its place; -100 says that there is none, as in questions and padding.

# %%
model, tokenizer = load_base()
files = find_chat()
rows = read_rows(files["train"], tokenizer, MAX_TOKENS).rows
rows = [row for row in rows if len(row["input_ids"]) < 40]  # short ones, to be quick
batch = pad(rows[:ROWS], tokenizer.pad_token_id)
held_out = read_rows(files["test"], tokenizer, MAX_TOKENS).rows[:VALIDATION_ROWS]
validation = pad(held_out, tokenizer.pad_token_id)
print({name: tuple(tensor.shape) for name, tensor in batch.items()})
print(f"labels to learn: {int((batch['labels'] != IGNORE_INDEX).sum())}")


# %% [markdown]
# Besides the loss we watch the **token accuracy**: for how many labels the right token is the likeliest. The
# model's output at one token is a guess of the next, so outputs and labels are compared one place apart.


# %%
def token_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the labels, without IGNORE_INDEX, that are the likeliest next token."""
    guesses, wanted = logits[:, :-1].argmax(-1), labels[:, 1:]  # (B, T - 1)
    learnt = wanted != IGNORE_INDEX
    return (guesses == wanted)[learnt].float().mean().item()


def look(model, batch):
    with torch.no_grad():
        output = model(**batch)
    return output.loss.item(), token_accuracy(output.logits, batch["labels"])


# %% [markdown]
# **Predict first.** Once the batch is learnt to the last token, what does the loss on held-out conversations
# do: fall on, stay, or rise?

# %%
optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
history = {"step": [], "training": [], "accuracy": [], "validation": []}
for step in range(STEPS + 1):
    if step % 4 == 0:
        history["step"].append(step)
        loss, accuracy = look(model, batch)
        history["training"].append(loss)
        history["accuracy"].append(accuracy)
        history["validation"].append(look(model, validation)[0])
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()

# %% tags=["nbval-ignore-output"]
figure, (left, right) = new_axes(9, 3, columns=2)
figure.get_layout_engine().set(wspace=0.1)
for name, colour, style in (
    ("training", OKABE_ITO[0], "-o"),
    ("validation", OKABE_ITO[5], "--s"),
):
    left.plot(history["step"], history[name], style, color=colour, label=name, markersize=4)
left.set(xlabel="optimizer step", ylabel="loss (nats a token)", ylim=(0, None))
left.legend(frameon=False)
right.plot(history["step"], history["accuracy"], "-o", color=OKABE_ITO[0], markersize=4)
_ = right.set(xlabel="optimizer step", ylabel="token accuracy on the batch", ylim=(0, 1.05))

# %%
training, best = history["training"], min(history["validation"])
learnt = training[-1] < 0.02 and history["accuracy"][-1] == 1
gained = best < 0.9 * history["validation"][0]
worse = history["validation"][-1] > 1.2 * best
print(f"loss under 0.02 nats, accuracy 100 %: {learnt}")
print(f"validation loss first falls by over a tenth: {gained}")
print(f"validation loss ends over a fifth above its least: {worse}")
assert learnt and gained and worse

# %% [markdown]
# Notice: at a loss of 0.02 nats a label, the right token has a chance of about 98 %. Validation first gains, perhaps
# because eight rows teach the form of an answer; then it loses. Zero loss here is a test that was passed. It is
# not a model to keep.

# %%
recipe = "Karpathy 2019, A Recipe for Training Neural Networks"
claim = "a healthy model drives one batch to zero loss and 100 % accuracy"
measured = (
    f"under 0.02 nats and all of {ROWS} answers right within {STEPS} steps: {learnt}; 1 batch"
)
claims.append(Claim(claim, recipe, learnt, measured))

claim = "while a batch is overfitted, validation gets worse"
measured = f"{VALIDATION_ROWS} held-out answers end over 20 % above their least loss: {worse}; 1 batch"
claims.append(Claim(claim, "the usual account of overfitting", worse, measured))

# %% [markdown]
# ## 2 · Where a curve begins
#
# Guessing evenly among `V` tokens costs `ln(V)` nats. A pre-trained model should begin below that line, and an
# untrained one close to it. Whoever begins **above** it is confident and wrong: suspect labels that do not belong
# to the inputs.

# %%
chance = math.log(model.config.vocab_size)
print(f"guessing evenly: ln({model.config.vocab_size}) = {chance:.2f} nats")
print(f"this curve began below it: {training[0] < chance}")
torch.manual_seed(0)
untrained = type(model)(model.config)  # the same model with weights at random
near = abs(look(untrained, batch)[0] / chance - 1) < 0.05
print(f"an untrained model begins within 5 % of it: {near}")
assert training[0] < chance and near

# %% [markdown]
# ## 3 · Five bugs, five curves
#
# Now plant bugs. Three are in the labels; each is a mistake that users report.

# %%
labels = batch["labels"]
nothing = torch.full_like(labels[:, :1], IGNORE_INDEX)
padding = batch["attention_mask"] == 0
broken = {
    "wrong pad": torch.where(padding, tokenizer.pad_token_id, labels),  # not -100
    "shifted": torch.cat([labels[:, 1:], nothing], dim=1),  # the model shifts, too
    "all -100": torch.full_like(labels, IGNORE_INDEX),  # a loss mask that masks all
}


def around_answer(values):
    """Row 0 from the end of its question to its padding, in columns."""
    return " ".join(f"{value:4}" for value in values[0, 9:21].tolist())


print(f"{'tokens of row 0':23} {around_answer(batch['input_ids'])}")
for name, values in {"healthy": labels, **broken}.items():
    count = int((values != IGNORE_INDEX).sum())
    print(f"{name:11} {count:3} labels: {around_answer(values)}")

# %% [markdown]
# Notice: healthy labels stand where their tokens stand. With the wrong pad, padding is to be learnt; shifted labels
# stand one place too early.

# %% [markdown]
# The other two are in the run: every parameter frozen, and a learning rate 1,000 times too high. We train on
# each with `overfit_one_batch`, which stops when the batch is learnt or when nothing moves the loss, and first look
# at its curves only.
#
# **Predict first:** which of the five will be learnt to zero loss in spite of its bug?

# %%
base, _ = load_base()
verdicts = {"healthy": overfit_one_batch(base, batch, LR, STEPS)}
for name, values in broken.items():
    verdicts[name] = overfit_one_batch(base, {**batch, "labels": values}, LR, STEPS)
verdicts["frozen"] = overfit_one_batch(base.requires_grad_(False), batch, LR, STEPS)
base.requires_grad_(True)
verdicts["rate × 1000"] = overfit_one_batch(base, batch, 1000 * LR, STEPS)
runs = {name: verdict.run for name, verdict in verdicts.items()}


# %%
def draw(name):
    """The loss of one run beside that of the healthy one, on a scale that holds both."""
    figure, ax = new_axes(6, 3)
    ax.plot(runs["healthy"].losses, "-", color="#888888", label="healthy")
    shown = [loss for loss in runs[name].losses if math.isfinite(loss)]
    if name != "healthy" and shown:
        ax.plot(shown, "--o", color=OKABE_ITO[5], markersize=4, label=name)
    elif not shown:
        ax.text(16, 1, f"{name}: NaN at the first step", color=OKABE_ITO[5])
    ax.axhline(chance, color="black", linewidth=1, linestyle=":", label="guessing evenly")
    ax.set(xlabel="optimizer step", ylabel="loss (nats a label)", yscale="symlog")
    top = 1.3 * max([chance, *shown])
    ticks = [tick for tick in (0, 1, 2, 5, 10, 100, 1000) if tick < top]
    ax.set_yticks(ticks, ticks)
    ax.set(xlim=(-1, STEPS), ylim=(0, top))
    ax.legend(frameon=False)
    return figure


# %% [markdown]
# Run the cell and choose a bug from the menu, with the mouse or the arrow keys. Ask of each curve: where does it
# begin, which way does it go, where does it end?


# %% tags=["nbval-ignore-output"]
menu = ipywidgets.Dropdown(options=list(runs), value="wrong pad", description="bug")
picture = ipywidgets.HTML()


def redraw(_change=None):
    title = f"loss by step: {menu.value} and healthy"
    picture.value = figure_svg(draw(menu.value), title=title)


menu.observe(redraw, names="value")
redraw()
ipywidgets.VBox([menu, picture])

# %%
before = picture.value
menu.value = "shifted"  # what you do with the menu, done by a cell
assert picture.value != before and "shifted" in picture.value


# %% [markdown]
# In words, a curve has a start, a direction and an end:


# %%
def shape(run):
    """What a curve looks like, in words that do not depend on the processor."""
    first, last = run.losses[0], run.losses[-1]
    if not math.isfinite(first):
        return "no curve: NaN from the first step"
    if len(set(run.losses)) == 1:
        return "flat, to the last digit"
    if not last < first:
        return "rises, or ends in NaN"
    start = "begins above guessing" if first > chance else "begins below guessing"
    return f"{start}, {'is learnt' if run.fitted else 'is not learnt'}"


shapes = {name: shape(run) for name, run in runs.items()}
for name, words in shapes.items():
    print(f"{name:12} {words}")
assert shapes["wrong pad"] == shapes["shifted"] == "begins above guessing, is learnt"

# %% [markdown]
# Notice: a model can learn wrong labels by heart as well. Two of the five end near zero, and both begin above
# guessing: the start gives them away, and only the labels say which it is.

# %%
learnt_bugs = [name for name in shapes if name != "healthy" and runs[name].fitted]
claim = "a batch that is overfitted means that there is no bug"
measured = f"learnt in spite of a planted bug: {', '.join(learnt_bugs)}; 1 batch"
claims.append(Claim(claim, "a possible reading of the recipe", not learnt_bugs, measured))

distinct = len(set(shapes.values())) == len(shapes)
claim = "each of five usual bugs is recognised by the shape of its curve"
measured = f"{len(set(shapes.values()))} shapes for {len(shapes)} runs, the healthy one among them; 1 batch"
claims.append(Claim(claim, "this course", distinct, measured))

# %% [markdown]
# ## 4 · A verdict instead of a look
#
# `overfit_one_batch` therefore looks at three things: the labels beside the tokens, what trains, and the
# curve. After a failure it tries other rates, to tell a wrong rate from another fault. The model is left as it
# was.

# %%
for name, verdict in verdicts.items():
    remedy = verdict.finding.remedy.split(" towards")[0]  # without the rate, which may differ
    print(f"{name}: {verdict.finding.code}\n    remedy: {remedy}")
findings = [verdict.finding.code for verdict in verdicts.values()]
assert verdicts["healthy"].healthy and len(set(findings)) == len(findings)
fresh = load_base()[0].state_dict()
assert all(torch.equal(value, fresh[name]) for name, value in base.state_dict().items())

# %% tags=["nbval-ignore-output"]
print(verdicts["rate × 1000"])

# %% [markdown]
# Notice: `str(verdict)` says what was observed, the likely cause and a remedy. "Likely" is meant: a rate is blamed
# because another one worked, and labels because they differ from their tokens.
#
# On a model of your own: `print(overfit_one_batch(model, batch, lr=your_rate))`.

# %% [markdown]
# ## 5 · Not learnt, and no bug
#
# Ask one question and give two answers. Nothing is broken, and no model can be certain of both. The best that it
# can do is guess each token with its share among those that follow the same beginning: a toss of a coin costs
# `-ln(1/2) = ln(2)` nats. The mean of `-ln(share)` over all labels is the **floor** of the batch, the least loss that
# any model can reach.


# %%
def asked_and_answered(answer):
    chat = [{"role": "user", "content": "Name a planet."}]
    chat += [{"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]


pair = [asked_and_answered(planet) for planet in ("Mars", "Venus")]
# Up to here the two are alike; from here on there are labels.
start = next(i for i, (a, b) in enumerate(zip(*pair, strict=False)) if a != b)
answers = [{"input_ids": i, "labels": [IGNORE_INDEX] * start + i[start:]} for i in pair]
torn = pad(answers, tokenizer.pad_token_id)

# %%
verdict = overfit_one_batch(base, torn, lr=1e-3)
torn_labels = int((torn["labels"] != IGNORE_INDEX).sum())
print(f"{torn_labels} labels, of which the first of each answer is a toss of a coin")
print(f"floor: 2 · ln(2) / {torn_labels} = {2 * math.log(2) / torn_labels:.3f} nats")
print(f"computed from the batch: {verdict.floor.loss:.3f} nats")
print(f"best accuracy, with one of the two guessed wrong: {verdict.floor.accuracy:.0%}")
loss = verdict.run.losses[-1]
at_floor = 0.02 < loss < verdict.floor.loss + 0.02
print(
    f"the run ended above zero and near the floor: {at_floor}; verdict: {verdict.finding.code}"
)
assert math.isclose(verdict.floor.loss, 2 * math.log(2) / torn_labels)
assert at_floor and verdict.healthy

# %% [markdown]
# Notice: this batch is healthy, although its loss stays above zero. `overfit_one_batch` compares with the floor.

# %%
stuck = [name for name in runs if not runs[name].fitted]
explained = verdict.floor.loss > 0.02 and "healthy" not in stuck
claim = "a batch that cannot be overfitted to zero means a bug"
measured = f"{len(stuck)} runs not learnt, each with a planted bug; "
measured += f"floor {verdict.floor.loss:.2f} for two answers"
condition = "no two rows begin alike and go on differently" if explained else ""
short = "short for Karpathy 2019, who says: the lowest achievable loss"
claims.append(Claim(claim, short, explained, measured, only_if=condition))

# %%
all_tokens = {**batch, "labels": batch["input_ids"].masked_fill(padding, IGNORE_INDEX)}
floors = [loss_floor(b, next_token=True) for b in (batch, all_tokens)]
answers_only, everything = (floor.loss for floor in floors)
print(f"floor of the eight rows, answers learnt: {answers_only:.2f}")
print(f"floor of the eight rows, questions learnt too: {everything:.2f}")
assert answers_only == 0 < everything

# %% [markdown]
# Notice: where questions are learnt too, the floor is above zero, for all rows begin alike and no model can know
# what will be asked.

# %% [markdown]
# ## 6 · Break it, then fix it
#
# One more wrong pad: the token that ends an answer also pads, and the labels mask every pad token. Learn that
# batch by heart, and let the model give those very answers. The **stop rate** is the share of answers that it ends
# itself.

# %%
end_id = end_of_turn_id(tokenizer)
endless = pad(rows[:ROWS], end_id)
endless["labels"] = endless["labels"].masked_fill(endless["input_ids"] == end_id, IGNORE_INDEX)


def question(row):
    """The text up to the first label, without the token that opens every text."""
    first = next(i for i, label in enumerate(row["labels"]) if label != IGNORE_INDEX)
    return tokenizer.decode(row["input_ids"][1:first])


questions = [question(row) for row in rows[:ROWS]]
print(questions[0])


# %%
def learn_and_ask(batch):
    """Learn a batch by heart; returns the loss at the end and the answers to the batch's questions."""
    model, _ = load_base()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    for _ in range(20):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    answers = generate_answers(model, tokenizer, questions, max_new_tokens=24)
    return look(model, batch)[0], answers


# %% tags=["raises-exception"]
loss, never = learn_and_ask(endless)
assert loss < 0.1, "not learnt"
assert stop_rate(never) > 0.9, (
    f"learnt by heart, and stop rate under 10 %: {stop_rate(never) < 0.1}"
)

# %% [markdown]
# The batch was learnt, all but the token that ends an answer: it was masked together with the padding. The
# verdict names it, for it looks at the labels. The fix is a pad token of its own, masked by position, as in the
# batch that we began with.

# %%
verdict = overfit_one_batch(base, endless, LR, STEPS)
print(f"curve: {shape(verdict.run)}; verdict: {verdict.finding.code}")
assert shape(verdict.run) == shapes["healthy"] and not verdict.healthy
loss, stops = learn_and_ask(batch)
print(f"mended: loss under 0.1: {loss < 0.1}, stop rate over 90 %: {stop_rate(stops) > 0.9}")
assert loss < 0.1 and stop_rate(stops) > 0.9

# %% [markdown]
# Notice: the curve of the broken batch has the healthy shape. No loss shows a label that is not there.

# %% [markdown]
# ## Exercise 1 · Token accuracy
#
# Difficulty ●○○, 4 minutes. Write the function of section 1 yourself, without looking it up: compare each output
# with the next label, and leave out labels of -100. Expected: 0.60 for the checker's batch.


# %% tags=["exercise"]
def my_token_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """logits (B, T, V), labels (B, T): the share of right guesses among the labels that count."""
    ### BEGIN SOLUTION
    guesses, wanted = logits[:, :-1].argmax(-1), labels[:, 1:]
    learnt = wanted != IGNORE_INDEX
    return (guesses == wanted)[learnt].float().mean().item()
    ### END SOLUTION


check_token_accuracy(my_token_accuracy)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Drop the last output and the first label: then they stand opposite each other. Index with a boolean mask
# before you take the mean.
#
# </details>

# %% [markdown]
# ## Exercise 2 · The floor
#
# Difficulty ●●○, 7 minutes. `pairs` holds for each label its beginning, which is all that stands before it, and its
# token. Return the least mean loss, in nats. Expected: 0 where each beginning has one continuation; 0.35 for a coin
# toss in half of the pairs.


# %% tags=["exercise"]
def my_loss_floor(pairs: list[tuple[str, str]]) -> float:
    """The mean over all pairs of -ln(share of this continuation among those of its beginning)."""
    ### BEGIN SOLUTION
    total = 0.0
    for beginning, token in pairs:
        follow = [t for b, t in pairs if b == beginning]
        total -= math.log(follow.count(token) / len(follow))
    return total / len(pairs)
    ### END SOLUTION


check_loss_floor(my_loss_floor)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# The best guess after a beginning is how often each continuation follows it. A pair costs minus the logarithm of
# its own share.
#
# </details>

# %% [markdown]
# ## What is wrong here?
#
# The next batch has a bug that is none of the five. Which is it? Look at the curve first, then at the labels of
# the first rows.

# %%
sixth = {**batch, "labels": plant_sixth_bug(labels)}
verdict = overfit_one_batch(base, sixth, LR, STEPS)
print(shape(verdict.run))
for row in range(3):
    wanted = sixth["labels"][row][sixth["labels"][row] != IGNORE_INDEX]
    held = tokenizer.decode(sixth["input_ids"][row], skip_special_tokens=True)
    print(f"row {row} holds: {held}\n       labels: {tokenizer.decode(wanted)}")

# %% [markdown]
# ## Exercise 3 · A sixth bug
#
# Difficulty ●●○, 8 minutes. Write a function that mends the labels of any batch with the sixth bug; the checker
# has one of its own. Expected: each row's labels are its own tokens, or -100.


# %% tags=["exercise"]
def fixed_labels(labels: torch.Tensor) -> torch.Tensor:
    """labels (B, T) of a batch with the sixth bug -> the right ones."""
    ### BEGIN SOLUTION
    return labels.roll(-1, 0)
    ### END SOLUTION


check_fixed_labels(fixed_labels)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Row 1's labels answer the question of row 0, and row 2's that of row 1. `Tensor.roll(shifts, dims)` moves rows
# round.
#
# </details>

# %% [markdown]
# ## Recap
#
# - Learn one batch by heart before a long run: it takes a few dozen steps.
# - Judge a curve by its start (guessing costs `ln(V)`), its direction and its floor.
# - Wrong labels can be learnt by heart, too: look at a row's labels beside its tokens.
# - A batch that stays above its floor means a bug, a wrong rate or too few steps. At a floor above zero, the data
#   disagree.

# %%
show_claims(claims)
assert [claim.verdict for claim in claims[:3]] == ["holds", "holds", "not reproduced"]

# %% [markdown]
# ## Recall
#
# 1. Why is a model with zero loss on one batch not worth keeping?
# 2. What does a loss that begins above `ln(V)` say?
# 3. Which bugs leave a curve that ends at zero?
# 4. How can a batch without any bug stay above zero?
# 5. How do you tell a learning rate that is too high from other faults?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: it learnt eight answers by heart; its validation loss rose.
# - 2: the model is confident and wrong; most likely labels and inputs do not belong together.
# - 3: those in the labels, as long as something is left to learn: padding, shifts, other rows' labels, a masked end.
# - 4: two rows begin alike and go on differently; the entropy of that is the floor.
# - 5: try the same batch at other rates: if one works, it was the rate.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Karpathy, [A Recipe for Training Neural Networks](https://karpathy.github.io/2019/04/25/recipe/), 2019: overfit
#   one batch down to the lowest achievable loss; verify the loss at the start.
# - transformers, [loss of causal language models](https://github.com/huggingface/transformers/blob/main/src/transformers/loss/loss_utils.py):
#   where labels are shifted.
#
# ## Next
#
# [08_full_fine_tune](08_full_fine_tune.ipynb): a batch is learnt by heart; now all of the data.
