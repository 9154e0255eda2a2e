# %% [markdown]
# # 08 · Full fine-tuning: the recipe, and what it taught
#
# You take a base model that rambles, measure what it can do before any training, fine-tune all of its weights on
# conversations, and find out which of its answers the base already knew (**elicited**) and which the training added
# (**taught**). The same cells run on a model of your own.
#
# - **Prerequisites:** [05_chat_templates](05_chat_templates.ipynb) for the data,
#   [06_optimizer_and_schedule](06_optimizer_and_schedule.ipynb) for the learning rate.
# - **Hardware:** any processor; one core is enough. With a model of your own, a GPU.
# - **Time:** about 45 minutes with the exercises; its cells run in half a minute on one core.

# %% [markdown]
# ## You will be able to
#
# - **measure** the baselines that a fine-tune has to beat, a stop string among them,
# - **diagnose** labels and truncation before a run, because its loss does not show them,
# - **fine-tune** all weights, or LoRA on a base in bfloat16, by one recipe,
# - **separate** what training elicited from what it taught,
# - **compare** two models blind, export the evaluation, save, merge and talk to the result.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import gc
import os
import tempfile
from pathlib import Path

import torch
import yaml
from datasets import Dataset, concatenate_datasets

# %% tags=["hide-input"]
from ftcourse.almanac import faq_prompt  # the course's own: data, pictures, stored runs
from ftcourse.claims import Ledger
from ftcourse.evaluation import compare_exact, loss_by_domain, write_lm_eval_task
from ftcourse.exercises.full_fine_tune import check_diagnose, check_experiment, check_judge
from ftcourse.expected import expected_error
from ftcourse.explorers.answers import answer_explorer, blind_form
from ftcourse.intervals import interval
from ftcourse.plots import HATCHES, OKABE_ITO, new_axes, plot_loss, use_course_style
from ftcourse.progress import one_bar
from ftcourse.studies.chat_recipe import (
    FULL,
    FULL_LONG,
    FULL_SHORT,
    LORA,
    NEW_FACTS,
    SHORT,
    chat_token_ids,
    chats_about,
    invented_capitals,
    stored,
    trained_facts,
)

# %%
from trl import SFTConfig, SFTTrainer

from ftkit import attach, load_adapter, load_base, load_chat, merge_and_verify, save_adapter
from ftkit.adapters.saving import adapter_size_bytes
from ftkit.batching import pad
from ftkit.chat import end_of_turn_id
from ftkit.chat.talk import answer
from ftkit.conversations import encode
from ftkit.evaluate import (
    exact_match,
    generate_answers,
    stop_rate,
    stop_token_ids,
    stream_answer,
)
from ftkit.loading import load_for_training
from ftkit.loss import IGNORE_INDEX
from ftkit.parameters import count_parameters

# %% tags=["nbval-ignore-output"]
use_course_style()

import warnings  # these three are to be quiet

import datasets
import transformers

warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing", FutureWarning)  # names change
transformers.utils.logging.disable_progress_bar()
datasets.disable_progress_bars()
print(f"torch {torch.__version__}, transformers {transformers.__version__}")

# %%
OWN = os.environ.get("FTKIT_MODEL") or os.environ.get("FTKIT_DATA")
POCKET = not OWN  # another model, or other data, is measured, and nothing is expected of it
LR, LORA_LR = (1e-3, 1e-2) if POCKET else (2e-5, 2e-4)  # peak learning rates; section 3
MAX_STEPS = 48  # optimizer steps: on the almanac's chats just under one epoch
MICRO_BATCH, ACCUMULATION = 8, 2  # conversations in a forward pass; passes in a step
MAX_LENGTH = 128 if POCKET else 2048  # tokens of a conversation; section 2
EVALUATIONS = 12  # of the validation loss, in the run
MAX_NEW_TOKENS = 48  # tokens: an answer is cut off there; more than your longest has
SEED = 0  # of the order of the conversations
REPORT_TO = "none"  # or "trackio", "tensorboard", "wandb": one you have installed
OUTPUT = ""  # a folder for the trained model
PUSH_TO_HUB = (
    ""  # or "NAME/MODEL", after `hf auth login` in a terminal: no token in a notebook
)
ledger = Ledger("chat data and evaluation")

# %% [markdown]
# For a model of your own set `FTKIT_MODEL` to a folder or a hub name before you start Jupyter, for your own
# conversations `FTKIT_DATA` to a folder with `train.jsonl`, `test.jsonl` and `heldout_domains.jsonl`. The numbers in
# the text are pocket-base's: take both variables back before you go on to other notebooks.

# %% [markdown]
# ## 1 · Before training: the baselines
#
# **pocket-base** has a million parameters and was pretrained on one small almanac, much of it in pages of `Q:` and
# `A:`. Load it, and split the held-out questions: one half, **validation**, chooses settings; the other, **test**, is
# only for the verdict. A third set, the **held-out domains**, asks for kinds of facts that the training never
# mentions.

# %% tags=["nbval-ignore-output"]
loaded = load_for_training()
model, tokenizer, device = loaded.model, loaded.tokenizer, loaded.device
print(loaded)

# %%
chats = load_chat()
assert {"train", "test", "heldout_domains"} <= set(chats), "FTKIT_DATA wants these three files"
half = len(chats["test"])
VALIDATION, TEST = (list(chats["test"].select(range(first, half, 2))) for first in (0, 1))
DOMAINS = list(chats["heldout_domains"])
HELD_OUT = TEST + DOMAINS
sizes = {"train": chats["train"], "validation": VALIDATION, "test": TEST, "domains": DOMAINS}
print({name: len(rows) for name, rows in sizes.items()})


# %%
def question_of(row):
    return row["messages"][-2]["content"]


def answer_of(row):
    return row["messages"][-1]["content"].strip()


DEMO = [TEST[0], TEST[1], DOMAINS[0]]
trained = {message["content"] for row in chats["train"] for message in row["messages"]}
leaked = [row for row in HELD_OUT if {question_of(row), answer_of(row)} & trained]
print(f"held-out questions or answers that the training data contain: {len(leaked)}")
assert not leaked or OWN, "a demo on trained questions shows memory"

# %% [markdown]
# The three demo questions are held out, too. **Predict first.** The prompt ends with `A:`, as on a page of the
# pretraining corpus. What does the model write after a correct answer, and when does it stop?

# %% tags=["nbval-ignore-output"]
for row in DEMO:
    prompt = faq_prompt(question_of(row))
    print(prompt, end="")
    for piece in stream_answer(model, tokenizer, prompt, max_new_tokens=MAX_NEW_TOKENS):
        print(piece, end="", flush=True)
    print("\n" + "-" * 40)

# %% [markdown]
# Every first line is correct, then the next question follows, because on a page of questions that is what comes
# next. So the cheapest remedy needs no training: end generation at the **stop string** `"\nQ:"`. `generate` takes
# `stop_strings`; so do most serving engines. Measure it, and the chat template, before you train.


# %%
def in_base_format(rows):
    return [faq_prompt(question_of(row)) for row in rows]


def in_chat(rows):
    return [row["messages"][:-1] for row in rows]


def map_answers(rows):
    return [answer_of(row) for row in rows]


def measure(model, rows, prompts, **options):
    """Greedy answers, and the fractions that match exactly and that stop by themselves."""
    options = {"max_new_tokens": MAX_NEW_TOKENS} | options
    answers = generate_answers(model, tokenizer, prompts, **options)
    return answers, exact_match(answers, map_answers(rows)), stop_rate(answers)


STOP = {"stop_strings": ["\nQ:"]}

# %% tags=["nbval-ignore-output"]
baselines = {
    "base, own format": measure(model, TEST, in_base_format(TEST)),
    "base, own format, stop string": measure(model, TEST, in_base_format(TEST), **STOP),
    "base, chat template": measure(model, TEST, in_chat(TEST)),
}


def show(results):
    print(f"{'':32} exact match   stops")
    for name, (_, exact, stops) in results.items():
        print(f"{name:32} {exact:11.0%} {stops:7.0%}")


show(baselines)

# %%
(_, exact, stops), (_, stopped_exact, _), (before, chat_exact, chat_stops) = baselines.values()
assert OWN or (
    (exact, stops, stopped_exact) == (0, 0, 1) and max(chat_exact, chat_stops) < 0.1
)

# %% [markdown]
# Untrained, with a stop string and in its own format, the base answers **every** held-out question. No fine-tune
# below comes near that. This is an artefact of the toy, because the test asks in the very words of the pretraining
# corpus. Measure the same baseline for a real base model, with two or three examples in the prompt: that is the score
# which training has to beat.

# %% [markdown]
# ## 2 · The data: what is in the loss, and what truncation removes
#
# Labels outside the assistant's turns are `IGNORE_INDEX` (-100), so that the loss leaves them out
# ([05_chat_templates](05_chat_templates.ipynb)). Look at one example before each run: the end-of-turn token has to be
# in the loss, or the model never learns to stop.

# %%
template = tokenizer.chat_template
row = encode(tokenizer, chats["test"][0]["messages"], template)
for i, label in zip(row["input_ids"], row["labels"], strict=True):
    mark = "·" if label == IGNORE_INDEX else "in the loss"
    print(f"{tokenizer.convert_ids_to_tokens(i):16} {mark}")
end_id = end_of_turn_id(tokenizer)
assert end_id in row["labels"]

# %% [markdown]
# `max_length` cuts a conversation off at the end, where the answer and its end of turn are. TRL's `SFTConfig` cuts
# at 1,024 tokens unless you say otherwise, and does not report how many it cut. Count, then choose.

# %%
encoded = [encode(tokenizer, chat["messages"], template) for chat in chats["train"]]
lengths = [len(row["input_ids"]) for row in encoded]
print(
    f"longest: {max(lengths)} tokens; at {MAX_LENGTH}: {sum(n > MAX_LENGTH for n in lengths)} cut"
)
print("max_length   conversations cut   tokens lost from the loss")
for limit in (16, 32, 64, 128, 1024):
    cut = sum(n > limit for n in lengths) / len(lengths)
    lost = sum(label != IGNORE_INDEX for row in encoded for label in row["labels"][limit:])
    total = sum(label != IGNORE_INDEX for row in encoded for label in row["labels"])
    print(f"{limit:10} {cut:19.1%} {lost / total:27.1%}")
assert max(lengths) <= MAX_LENGTH, "raise MAX_LENGTH, or split your longest conversations"

# %% [markdown]
# These conversations are short. In yours, what is cut are the last answers of the longest conversations.
#
# To find out later what was *taught*, add facts that no pretraining can know: the capitals of 20 invented countries.
# Each is asked twice, once in each of two wordings; nearly every known fact is asked three times.

# %%
train = chats["train"].select_columns("messages")
new = chats_about(invented_capitals(NEW_FACTS, SEED)) if POCKET else []
if POCKET:
    train = concatenate_datasets([train, Dataset.from_list(new)])
    print(question_of(new[0]), answer_of(new[0]))
print(
    f"{len(train)} conversations; {MAX_STEPS * MICRO_BATCH * ACCUMULATION} fit into the steps"
)

# %% [markdown]
# Three faulty tools, A, B and C, prepare the conversation about Mexico. Tokens in brackets are in the loss. **Predict**
# what a model learns from each.


# %%
def labels_as_text(ids, labels):
    pairs = zip(tokenizer.convert_ids_to_tokens(ids), labels, strict=True)
    return " ".join(f"[{token}]" if label != IGNORE_INDEX else token for token, label in pairs)


ids, labels = row["input_ids"], row["labels"]
suspects = {
    "A": (ids[:-2], labels[:-2]),
    "B": (ids, [*labels[:-1], IGNORE_INDEX]),
    "C": (ids, [IGNORE_INDEX, *ids[1:]]),
}
for name, (some_ids, some_labels) in suspects.items():
    print(f"{name}: {labels_as_text(some_ids, some_labels)}")

# %% [markdown]
# <details><summary>What a model learns from A, B and C</summary>
#
# A is truncated, and B masks the end-of-turn token: from neither does a model learn to stop. C has the question in
# the loss, so that a model also learns to write users' questions.
#
# </details>

# %% [markdown]
# ### Exercise 1 · a diagnosis
#
# Difficulty ●●○, 8 minutes. Write a function that names the fault of one question and its answer: "truncated", "end
# masked", "question in the loss", or "healthy". An example has at most one fault, and its answer has begun. `end` is
# the id of the end-of-turn token, `assistant` that of the token that opens the answer. Expected: correct on 24
# examples that you have not seen.


# %% tags=["exercise"]
def diagnose(input_ids: list[int], labels: list[int], end: int, assistant: int) -> str:
    """What is wrong with the labels of one question and its answer."""
    ### BEGIN SOLUTION
    start = input_ids.index(assistant)
    if any(label != IGNORE_INDEX for label in labels[: start + 1]):
        return "question in the loss"
    if input_ids[-1] != end:
        return "truncated"
    return "healthy" if labels[-1] == end else "end masked"
    ### END SOLUTION


check_diagnose(diagnose)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Find the assistant token first: labels up to it should all be masked. Then ask whether the last token is `end`, and
# only then whether its label is.
#
# </details>

# %% [markdown]
# ## 3 · The settings
#
# **Memory first.** AdamW in float32 needs 16 bytes for each trained parameter: weight, gradient and two moments. A
# frozen weight needs only itself: 4 bytes, 2 in bfloat16, about half a byte in 4 bits. Activations come on top
# ([12_memory](12_memory.ipynb)).

# %%
count = count_parameters(model)
assert not count.on_meta and count.trainable == count.total
print(f"{'before activations':28} {'this model':>12} {'8 billion':>10}")
plans = {"full, AdamW in float32": 16, "LoRA, base in float32": 4}
plans |= {"LoRA, base in bfloat16": 2, "QLoRA, base in 4 bits": 0.55}
for plan, each in plans.items():
    print(f"{plan:28} {each * count.total / 1e6:9.1f} MB {each * 8e9 / 1e9:7.0f} GB")
if device.device.type == "cuda":  # the weights are there already: 12 bytes more
    fits = 12 * count.trainable < torch.cuda.mem_get_info()[0]
    assert fits, "no room for full fine-tuning: go on with section 7, or with notebook 16"

# %% [markdown]
# **The learning rate** has to be searched: 5e-5 is the default of transformers, 2e-5 that of TRL, and this model of a
# million parameters needs fifty times the latter. Stored runs bracket it on the validation half, as in
# [06_optimizer_and_schedule](06_optimizer_and_schedule.ipynb): two seeds at each learning rate, and the best (ringed)
# scores higher than its neighbours on both sides.

# %% tags=["hide-input"]
study = stored()
_, ax = new_axes(7.5, 3.2)
looks = {FULL: ("full, 48 steps", "o", "-"), FULL_LONG: ("full, 144 steps", "D", "--")}
looks |= {FULL_SHORT: ("full, 32 steps", "^", ":"), LORA: ("LoRA, 48 steps", "s", "-.")}
for n, (method, (label, marker, line)) in enumerate(looks.items()):
    means = {lr: 100 * sum(each) / len(each) for lr, each in study.curve(method).items()}
    style = {"color": OKABE_ITO[n], "linestyle": line}
    ax.plot(means.keys(), means.values(), marker=marker, label=label, **style)
    best = study.best(method)
    ax.plot(best, means[best], "o", ms=15, mfc="none", color=OKABE_ITO[n])
    print(
        f"{label}: best at {best:g}, {study.best(method) / study.best(FULL):.0f} x that of full, 48 steps"
    )
ax.set(xscale="log", xlabel="peak learning rate", ylabel="exact match (%), validation")
_ = ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))

# %%
ratio = study.best(LORA) / study.best(FULL)
ledger.add(
    "LoRA's best learning rate is about ten times that of full fine-tuning",
    "Schulman et al. 2025, LoRA Without Regret",
    10 / 3 <= ratio <= 30,  # the grid resolves a factor of three
    f"{ratio:.0f} times, on a grid of factors of 1.7 to 3, chosen on validation questions",
    topic="learning rate and optimizer",
    seeds=2,
)
assert OWN or (study.best(FULL), study.best(LORA)) == (LR, LORA_LR)
lora_scores = study.curve(LORA)
assert sum(lora_scores[2e-3]) < sum(lora_scores[study.best(LORA)]) / 2

# %% [markdown]
# The other settings are common ones: an effective batch of 16 in two micro-batches, 10 % warmup, linear decay,
# clipping at 1. `assistant_only_loss` masks the questions, and `max_length` is explicit. TRL turns gradient
# checkpointing on by default; here it is on only for a large model, because it costs time.


# %%
def recipe(steps, learning_rate, **settings):
    """One recipe for every model and method of this notebook."""
    return SFTConfig(
        output_dir=tempfile.mkdtemp(),
        assistant_only_loss=True,
        max_length=MAX_LENGTH,
        learning_rate=learning_rate,
        max_steps=steps,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        warmup_steps=steps // 10,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=2,
        save_strategy="no",
        seed=SEED,
        bf16=device.compute_dtype == torch.bfloat16,
        gradient_checkpointing=count.total > 100_000_000,
        use_cpu=device.device.type == "cpu",
        report_to=REPORT_TO,
        disable_tqdm=True,
        **settings,
    )


# %% [markdown]
# ## 4 · Train, and evaluate
#
# Before training, record what the base can do with each kind of fact: trained in the chats, held out, from held-out
# domains, and new. All but the new ones were in its pretraining.

# %%
kinds = {"held-out facts": TEST, "held-out domains": DOMAINS}
if POCKET:
    known = chats_about(trained_facts(list(chats["train"]))[::3], slice(0, 1))
    kinds = {"trained facts": known, **kinds, "new facts, trained": new[::2]}


def by_kind(model, prompts, **options):
    return {
        kind: measure(model, rows, prompts(rows), **options) for kind, rows in kinds.items()
    }


pages_before = by_kind(model, in_base_format, **STOP)
for kind, (_, exact, _) in pages_before.items():
    print(
        f"{kind:20} {len(kinds[kind]):3} questions, base in its own format: {exact:.0%} exact"
    )

# %% tags=["nbval-ignore-output"]
trainer = SFTTrainer(
    model=model,
    args=recipe(MAX_STEPS, LR, eval_strategy="steps", eval_steps=MAX_STEPS // EVALUATIONS),
    train_dataset=train,
    eval_dataset=Dataset.from_list([{"messages": row["messages"]} for row in VALIDATION]),
    processing_class=tokenizer,
)
progress = one_bar(trainer)
model.train()
_ = trainer.train()
ax = plot_loss(progress.metrics)

# %%
train_losses = [row["loss"] for row in progress.metrics if "loss" in row]
eval_losses = [row["eval_loss"] for row in progress.metrics if "eval_loss" in row]
print(f"{len(eval_losses)} evaluations on {len(VALIDATION)} validation conversations")
assert len(eval_losses) == EVALUATIONS
assert OWN or (train_losses[0] > 2 > 4 * train_losses[-1] and eval_losses[-1] < 0.8)

# %% tags=["nbval-ignore-output"]
if POCKET:  # what the validation loss is made of
    topics = ["Python" if row["domain"] == "python" else "other" for row in VALIDATION]
    rows = [encode(tokenizer, row["messages"], template) for row in VALIDATION]
    by_topic = loss_by_domain(model, rows, topics)
    for topic, loss in by_topic.items():
        print(f"{topics.count(topic):2} questions, {topic}: {loss:.1f} nats per token")
    assert by_topic["Python"] > 3 * by_topic["other"]
    assert "python" not in {row["domain"] for row in TEST}

# %% [markdown]
# Five questions about Python raise the validation loss. The test half has none, so compare losses within one half only.
#
# The curve flattens over the last third. Would two thirds of the steps have been enough? The curve cannot tell, because
# the learning rate decays to zero there, and a small learning rate flattens every curve. The fair comparison is a run
# whose **whole schedule** is that short, at its own best learning rate: from the stored study, on the test half.

# %%
lengths_compared = {
    f"after {SHORT} of {FULL.steps} steps": study.ends(FULL, "test_loss_early"),
    f"a schedule of {SHORT} steps": study.ends(FULL_SHORT, "test_loss"),
    f"a schedule of {FULL.steps} steps": study.ends(FULL, "test_loss"),
    f"a schedule of {FULL_LONG.steps} steps": study.ends(FULL_LONG, "test_loss"),
}
for name, losses in lengths_compared.items():
    print(f"{name:24} test loss {interval(losses).mean:.2f} nats per token, 5 seeds")
midway, short, full_length, long = (interval(each).mean for each in lengths_compared.values())
assert midway > short > full_length > long
assert study.gain(FULL_SHORT, FULL).high < 0 < study.gain(FULL_LONG, FULL).high
assert study.gain(FULL_LONG, FULL).low < 0
for name, other in {
    f"{SHORT} steps": FULL_SHORT,
    f"{FULL_LONG.steps} steps": FULL_LONG,
}.items():
    gain = study.gain(other, FULL)
    print(f"{name} instead of {FULL.steps}: exact match {gain.points} percentage points")

# %% [markdown]
# At step 32, the schedule of 32 steps has a lower loss than the schedule of 48, so the longer run's curve does not
# show what the shorter one would reach. Still, 32 steps were too few: exact match is lower, and the interval lies
# below zero. For 144 steps the interval contains zero, so that the gain is uncertain.

# %% [markdown]
# Now the demo questions in the chat template, failures included. The base knew all three answers, and the training
# contains neither these questions nor their answers. Where an answer is wrong, compare it with the question: which part
# is right?

# %% tags=["nbval-ignore-output"]
for row in DEMO:
    print(f"{question_of(row)}   (expected: {answer_of(row)})")
    for piece in stream_answer(model, tokenizer, row["messages"][:-1]):
        print(piece, end="", flush=True)
    print("\n" + "-" * 40)

# %% tags=["nbval-ignore-output"]
tuned = measure(model, TEST, in_chat(TEST))
show(baselines | {"tuned, chat template": tuned})

# %%
assert OWN or (tuned[2] > 0.95 and 0.3 < tuned[1] < 0.75)
before, after = (
    [a.text for a in each[0]] for each in (baselines["base, chat template"], tuned)
)
explorer = answer_explorer(
    [question_of(row) for row in TEST], {"before": before, "after": after}, map_answers(TEST)
)

# %% tags=["nbval-ignore-output"]
explorer

# %%
explorer.menu.value = len(TEST) - 1
assert explorer.index == len(TEST) - 1 and "expected" in explorer.picture.value

# %% [markdown]
# ## 5 · Elicited, taught, forgotten
#
# Most failures are well-formed facts that answer another question. So where do the *answers* come from? An answer is
# **elicited** if the base already gives it in its own format, and **taught** if the base does not. Ask each kind of
# fact in the chat template, and again in the base's own format, with the stop string: what is lost there is
# **forgotten**.

# %% tags=["nbval-ignore-output"]
chat_after, pages_after = by_kind(model, in_chat), by_kind(model, in_base_format, **STOP)
print(
    f"{'exact match':20} {'base, own format':>18} {'tuned, chat':>13} {'tuned, own format':>19}"
)
for kind in kinds:
    scores = [found[kind][1] for found in (pages_before, chat_after, pages_after)]
    print(f"{kind:20} {scores[0]:18.0%} {scores[1]:13.0%} {scores[2]:19.0%}")

# %%
if POCKET:
    chat = {kind: found[1] for kind, found in chat_after.items()}
    assert all(found[2] > 0.95 for found in chat_after.values())  # stops, whatever is asked
    assert chat["trained facts"] > 0.4 > chat["new facts, trained"] + 0.2
    assert pages_before["new facts, trained"][1] == 0

# %% [markdown]
# One run is one seed. The stored study repeats it with five, and adds three epochs, and LoRA on a float32 base. Bars
# are means over seeds, whiskers the 95 % interval of Student's t. The last group measures retention: all of the
# almanac's facts in the base's own format.

# %% tags=["hide-input"]
measures = {
    "trained\nfacts": "trained_exact",
    "held-out\nfacts": "test_exact",
    "held-out\ndomains": "heldout_domains_exact",
    "new facts,\ntrained": "new_exact",
    "retention, base's\nown format": "pages_exact",
}
shown = {"full, 1 epoch": FULL, "full, 3 epochs": FULL_LONG, "LoRA, 1 epoch": LORA}
_, ax = new_axes(9, 3.4)
for n, (label, method) in enumerate(shown.items()):
    found = [
        interval([100 * value for value in study.ends(method, m)]) for m in measures.values()
    ]
    places = [place + 0.27 * (n - 1) for place in range(len(measures))]
    bars = [each.mean for each in found]
    spread = [
        [e.mean - max(0, e.low) for e in found],
        [min(100, e.high) - e.mean for e in found],
    ]
    look = {"color": OKABE_ITO[n], "hatch": HATCHES[n], "edgecolor": "white", "label": label}
    ax.bar(places, bars, 0.25, yerr=spread, ecolor="#555555", capsize=3, **look)
ax.set_xticks(range(len(measures)), measures)
ax.set(ylabel="exact match (%)", ylim=(0, 105))
_ = ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))

# %%
names = {**measures, "stops, held-out\ndomains": "heldout_domains_stop"}
print(f"{'5 seeds, %':30}" + "".join(f"{label:>17}" for label in shown))
for name, measured in names.items():
    means = [interval(study.ends(method, measured)).mean for method in shown.values()]
    print(
        f"{name.replace(chr(10), ' '):30}" + "".join(f"{100 * mean:17.0f}" for mean in means)
    )

# %% [markdown]
# A single accuracy would hide four effects:
#
# - **Format is taught**, and carries over to domains never trained on: the model stops everywhere.
# - **Knowledge is elicited**: about half of the held-out facts come out in the new format. In other domains hardly any
#   do after one epoch of full fine-tuning, although the base knows them all.
# - **New knowledge is hardly taught**: after one epoch no new fact is recalled, after three (six exposures) about a
#   fifth. Known capitals are recalled after one epoch, from three exposures.
# - **Some is forgotten**: in the base's own format, 87 to 95 % are left.


# %%
def paired(one, other, method=FULL):
    """Difference of two measures of the same runs, over seeds."""
    runs = study.runs(method).values()
    return interval([run[one] - run[other] for run in runs])


def mean(measured, method=FULL):
    return interval(study.ends(method, measured)).mean


assert 0.4 < mean("test_exact") < 0.6 and mean("heldout_domains_exact") < 0.05
assert mean("new_exact") == 0 and 0.15 < mean("new_exact", FULL_LONG) < 0.25
assert mean("heldout_domains_stop") > 0.99 and mean("trained_capitals_exact") > 0.95
assert all(0.86 < mean("pages_exact", method) < 0.96 for method in shown.values())
elicited = paired("test_exact", "new_exact")
slower = paired("trained_capitals_exact", "new_exact")
ledger.add(
    "a model's knowledge comes from pretraining, tuning teaches the format of its use",
    "Zhou et al. 2023, LIMA",
    elicited,
    f"facts only pretrained minus facts only tuned on: {elicited.points} points of exact match",
    seeds=5,
)
ledger.add(
    "fine-tuning examples with new knowledge are learnt more slowly than known ones",
    "Gekhman et al. 2024, EMNLP",
    slower,
    f"known minus invented capitals, both trained, 1 epoch: {slower.points} points",
    seeds=5,
)
assert elicited.low > 0.2 and slower.low > 0.5

# %%
learns, forgets = study.gain(FULL, LORA), study.gain(LORA, FULL, "pages_exact")
ledger.add(
    "LoRA learns less than full fine-tuning",
    "Biderman et al. 2024, LoRA Learns Less and Forgets Less",
    learns,
    f"full minus LoRA, held-out facts: {learns.points} points of exact match, best rates",
    topic="LoRA and its relatives",
    seeds=5,
)
ledger.add(
    "LoRA forgets less than full fine-tuning",
    "Biderman et al. 2024, LoRA Learns Less and Forgets Less",
    forgets,
    f"LoRA minus full, facts in the base's format: {forgets.points} points, best rates",
    topic="LoRA and its relatives",
    seeds=5,
)
elsewhere = study.gain(LORA, FULL, "heldout_domains_exact")
print("LoRA minus full, percentage points of exact match, mean and 95 % interval:")
print(f"  held-out facts        {study.gain(LORA, FULL).points}")
print(f"  held-out domains      {elsewhere.points}")
print(f"  base's own format     {forgets.points}")
assert elsewhere.low > 0 and forgets.high < 0

# %% [markdown]
# Biderman et al. found that LoRA learns less and forgets less. Here, the interval for held-out facts contains zero, so
# five seeds do not separate the two; in the held-out domains LoRA answers more, but with a wide interval. It also
# forgets more, at a learning rate ten times as high: both claims depend on the learning rate and on the size of the
# model.

# %% [markdown]
# ## 6 · Save, load, talk
#
# **Break it, then fix it.** "It stopped in my notebook, but rambles when served" is a common complaint. Save the model
# as it is, load it from its folder, and generate with transformers alone.

# %%
folder = Path(OUTPUT or Path(tempfile.mkdtemp()) / "model")
model.eval().save_pretrained(folder)
tokenizer.save_pretrained(folder)


def plain_generate(folder, rows):
    """New token ids, by transformers and the files alone."""
    opened, own = load_base(folder)
    options = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}
    written = []
    for prompt in in_chat(rows):
        given = own.apply_chat_template(
            prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = opened.generate(**given, **options, pad_token_id=own.pad_token_id)
        written.append(output[0, given["input_ids"].shape[1] :].tolist())
    return written


# %% tags=["raises-exception"]
written = plain_generate(folder, TEST[:5])
full_length = sum(len(ids) == MAX_NEW_TOKENS for ids in written)
with expected_error(AssertionError):
    assert full_length == 0, f"{full_length} of {len(written)} answers run on to the limit"

# %% [markdown]
# `generate` stops at the `eos_token_id` of `generation_config.json`, and the base's file does not list the template's
# end-of-turn token. The model did learn to write that token, but `generate` does not stop at it. Add it to the file
# that you ship.

# %%
stop_ids = stop_token_ids(model, tokenizer)
model.generation_config.eos_token_id = stop_ids
model.save_pretrained(folder)
written = plain_generate(folder, TEST[:5])
ended = sum(ids[-1] in stop_ids for ids in written)
print(f"stop tokens: {tokenizer.convert_ids_to_tokens(stop_ids)}")
print(f"{ended} of {len(written)} answers end by themselves")
assert OWN or ended == 5
if PUSH_TO_HUB:
    model.push_to_hub(PUSH_TO_HUB, private=True)
    tokenizer.push_to_hub(PUSH_TO_HUB, private=True)

# %% [markdown]
# Talk to it: `ftkit chat-with FOLDER` in a terminal, or one turn from here. The folder is an ordinary Hugging Face
# model, so vLLM or `transformers serve` open it as well.

# %% tags=["nbval-ignore-output"]
reopened, own_tokenizer = load_base(folder)
said = answer(reopened.eval(), own_tokenizer, DEMO[0]["messages"][:-1], MAX_NEW_TOKENS)

# %%
answered = chat_after["held-out facts"][0] + chat_after["held-out domains"][0]  # HELD_OUT
full_texts = [each.text for each in answered]
assert OWN or said.strip() == full_texts[0]  # the saved model says what the trained one said

# %% [markdown]
# ### The same run as one command
#
# What the cells above did, as a program that also runs under `torchrun`, resumes, and writes the stop tokens itself:
#
# ```bash
# ftkit finetune --output runs/full --lr 1e-3 --max_steps 48 --batch_size 16 \
#   --micro_batch_size 8 --max_length 128 --weight_decay 0 --eval_every 4
# ftkit chat-with runs/full/model
# ```
#
# Add `--model`, `--data` and `--eval_data` for your own.

# %% [markdown]
# ## 7 · When full fine-tuning does not fit: LoRA on a bfloat16 base
#
# **LoRA** freezes the matrices and trains low-rank factors beside them
# ([09_lora_from_scratch](09_lora_from_scratch.ipynb)). It is chosen for memory, so the frozen base is loaded in
# **bfloat16**; only what trains is in float32. The base has never seen the chat template's tokens, so their embeddings
# are untrained: `trainable_token_indices` trains those rows of the embedding, and no others.

# %%
del loaded, model, trainer, reopened  # memory for the next one
gc.collect()
torch.cuda.empty_cache()
chat_tokens = chat_token_ids(tokenizer, encoded[0])
print(f"embedding rows that train: {tokenizer.convert_ids_to_tokens(chat_tokens)}")


def train_lora(learning_rate):
    """The model with a trained adapter, for `measure`."""
    torch.manual_seed(SEED)
    base = load_for_training(dtype=torch.bfloat16).model
    tied = base.config.tie_word_embeddings  # TRL's loss would miss trained rows of a tied head
    rows = None if tied else chat_tokens
    lora = attach(base, "lora", r=8, lora_alpha=16, trainable_token_indices=rows)
    trainer = SFTTrainer(
        model=lora,
        args=recipe(MAX_STEPS, learning_rate),
        train_dataset=train,
        processing_class=tokenizer,
    )
    one_bar(trainer)
    trainer.train()
    return lora.eval()


# %% tags=["nbval-ignore-output"]
lora = train_lora(LORA_LR)
lora_result = measure(lora, TEST, in_chat(TEST))
show(baselines | {"tuned fully": tuned, "tuned by LoRA": lora_result})

# %%
lora_count = count_parameters(lora)
rows_alone = lora.config.hidden_size * len(chat_tokens)
whole = 2 * lora.config.vocab_size * lora.config.hidden_size
print(f"LoRA trains {lora_count.trainable:,} of {count.total:,} parameters")
print(
    f"of them {rows_alone:,} in {len(chat_tokens)} embedding rows; all of embedding and head: {whole:,}"
)
dtypes = {str(p.dtype)[6:] for p in lora.parameters() if p.requires_grad}
print(f"what trains is in {', '.join(dtypes)}, the base in {str(lora.dtype)[6:]}")
assert dtypes == {"float32"}
assert OWN or (lora_result[2] > 0.9 and rows_alone < whole / 100)

# %% [markdown]
# For Llama 3 8B (vocabulary 128,256, width 4,096) embedding and head are 1.05 billion parameters, 17 GB to train in
# float32; four rows of the embedding are 16,384.
#
# Keep the **adapter**, which is small, or **merge** it into a copy of the base for serving. `merge_and_verify`
# compares logits, because a wrong merge fails silently; a bfloat16 base rounds the merged weights, so that a few may
# differ. Merge what was saved, on a fresh base: a trainer may have patched the model in memory.

# %% tags=["nbval-ignore-output"]
adapter = save_adapter(lora, Path(tempfile.mkdtemp()) / "adapter")
fresh = load_adapter(load_for_training(dtype=torch.bfloat16).model, adapter)
sample = pad([encode(tokenizer, row["messages"], template) for row in TEST[:8]], 0)
merged, report = merge_and_verify(fresh, sample)
print(report)

# %%
merged.generation_config.eos_token_id = stop_ids
merged.save_pretrained(adapter.parent / "merged")
whole_bytes = sum(p.numel() * p.element_size() for p in merged.parameters())
print(f"adapter {adapter_size_bytes(lora) / 1e6:.2f} MB in float32")
print(f"merged model {whole_bytes / 1e6:.2f} MB in {str(merged.dtype)[6:]}")
answered = lora_result[0] + measure(lora, DOMAINS, in_chat(DOMAINS))[0]
lora_texts = [each.text for each in answered]
assert OWN or (report.change > 1 and report.flips < 0.1 * report.positions)

# %% [markdown]
# On the command line, with the four embedding rows by their token ids:
#
# ```bash
# ftkit finetune --output runs/lora --method lora --trainable_token_indices 0,4,5,6 \
#   --lr 1e-2 --max_steps 48 --batch_size 16 --micro_batch_size 8 --max_length 128 \
#   --weight_decay 0 --compute_dtype bfloat16
# ftkit merge runs/lora/adapter runs/merged
# ```

# %% [markdown]
# ### Exercise 2 · one learning rate for both
#
# Difficulty ●●○, 10 minutes; the run takes about 15 s. Comparisons of methods often share one learning rate.
# **Predict** the winner, then train LoRA at `LR`, that of the full fine-tune, and compare the answers to `HELD_OUT`.
# `compare_exact(first, second, expected)` counts the questions that only one model answers; its `verdict` is "first",
# "second", or "cannot tell" if the 95 % interval of the first's share contains one half. Return "full", "LoRA" or
# "cannot tell". Then try `LORA_LR`.


# %% tags=["exercise"]
def lora_against_full(learning_rate: float) -> tuple[list[str], str]:
    """LoRA's answers to HELD_OUT, and the verdict: "full", "LoRA" or "cannot tell"."""
    ### BEGIN SOLUTION
    answers = measure(train_lora(learning_rate), HELD_OUT, in_chat(HELD_OUT))[0]
    texts = [each.text for each in answers]
    verdict = compare_exact(full_texts, texts, map_answers(HELD_OUT)).verdict
    return texts, {"first": "full", "second": "LoRA"}.get(verdict, verdict)
    ### END SOLUTION


check_experiment(lora_against_full(LR), full_texts, map_answers(HELD_OUT))

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `measure(train_lora(learning_rate), HELD_OUT, in_chat(HELD_OUT))` returns the answers first. Both models answer the
# same questions, so only those count where exactly one of them is right.
#
# </details>

# %% [markdown]
# At one shared learning rate you mostly measure which method it suits: in the figure of section 3, LoRA at 2e-3 is far
# below its best.

# %% [markdown]
# ## 8 · Beyond exact match
#
# Exact match rejects a correct answer in other words: it counts "The capital of Egypt is Cairo." as wrong for "Which
# country has Cairo as its capital?" And most tasks have no single answer. Three more measures: the **held-out loss**
# (section 4; it sees every token, but not what generation does), a **pairwise comparison**, and a **standard harness**.
#
# For the comparison, judge blind: names hidden, sides drawn at random, equal answers left out. Ten minutes of this
# teach more about a model than a benchmark.

# %% tags=["nbval-ignore-output"]
questions = [question_of(row) for row in HELD_OUT]
pairs = {"full": full_texts, "LoRA": lora_texts}
form = blind_form(questions, pairs, map_answers(HELD_OUT), seed=SEED, at_most=40)
form

# %% [markdown]
# ### Exercise 3 · a judge without a side
#
# Difficulty ●●○, 8 minutes. Programs judge, too. Language models as judges are known to prefer the first answer and the
# longer one (Zheng et al. 2023). Write a judge that ignores case, outer spaces and a final full stop, and whose verdict
# is mirrored when the answers are swapped. Return "left", "right", or "tie" if both or neither match.


# %% tags=["exercise"]
def judge(left: str, right: str, expected: str) -> str:
    """Which answer matches the expected one: "left", "right" or "tie"."""
    ### BEGIN SOLUTION
    left, right, expected = (
        text.strip().rstrip(".").strip().lower() for text in (left, right, expected)
    )
    if (left == expected) == (right == expected):
        return "tie"
    return "left" if left == expected else "right"
    ### END SOLUTION


check_judge(judge)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Normalise all three texts in the same way first. If both match, or neither does, it is a tie; only then look which
# one matches.
#
# </details>

# %% [markdown]
# So that the notebook runs through, exact match judges the form's pairs here; "the first" is the full fine-tune. Two
# wrong answers tie. If the interval contains one half, the pairs do not tell which model is better. Run the form's cell
# again to judge them yourself, and see whether you agree.


# %% tags=["nbval-ignore-output"]
def exact(question, left, right, expected):
    if (left == expected) == (right == expected):
        return "tie"
    return "left" if left == expected else "right"


form.judge_rest(exact)
print(form.result)

# %%
assert form.done and form.result.decided + form.result.ties == len(form.pairs)
low, high = form.result.interval
assert 0 <= low <= form.result.share <= high <= 1

# %% [markdown]
# **lm-evaluation-harness** runs the same task on any model, beside its hundreds of benchmarks. Export the test half;
# with `pip install lm-eval`, FOLDER the saved model and TASKS the folder of the exported task, the command is:
#
# ```bash
# lm_eval --model hf --model_args pretrained=FOLDER --tasks almanac_held_out \
#   --include_path TASKS --apply_chat_template
# ```
#
# The model needs the stop tokens of section 6: decoded text drops special tokens, so that `until` alone does not find
# them.

# %%
single = [row for row in TEST if len(row["messages"]) == 2]
end_token = tokenizer.convert_ids_to_tokens(end_id)
path = write_lm_eval_task(tempfile.mkdtemp(), "almanac_held_out", single, until=[end_token])
task = yaml.safe_load(path.read_text())
for name in ("task", "output_type", "doc_to_text", "doc_to_target", "generation_kwargs"):
    print(f"{name}: {task[name]}")
print(
    f"{len(path.with_suffix('.jsonl').read_text().splitlines())} questions in {path.stem}.jsonl"
)

# %% [markdown]
# ## What transfers
#
# **Measured here**, with five seeds on pocket-base: 1.0 million parameters, a quarter of them in embedding and head,
# and a vocabulary of 1,024 whose chat tokens are untrained. Expect these to transfer: the format carries over, new
# facts are learnt slowly, and a decayed curve is no plateau. Do not expect the best learning rates, the stop string's
# 100 %, or how little is elicited.

# %% [markdown]
# **From the literature, not measured here**, for 1B to 70B:
#
# - 1,000 curated conversations sufficed to tune a 65B model ([Zhou et al. 2023](https://arxiv.org/abs/2305.11206)).
# - New facts are learnt late, and as they are, the model invents more about old ones
#   ([Gekhman et al. 2024](https://arxiv.org/abs/2405.05904)): give them at inference, by retrieval.
# - LoRA learns less and forgets less on code and mathematics with 7B ([Biderman et al. 2024](https://arxiv.org/abs/2405.09673));
#   at about ten times the rate and on all layers it matches full fine-tuning on small sets
#   ([Schulman et al. 2025](https://thinkingmachines.ai/blog/lora/)).

# %% [markdown]
# ## Numbers to take away
#
# From the literature and common practice, not measured here, except where a section is named:
#
# | setting | start with |
# | --- | --- |
# | learning rate | full 1e-5 to 2e-5; LoRA ten times that; sweep by factors of 3 until bracketed |
# | epochs, effective batch | 1 to 3; 16 to 128 conversations |
# | warmup, clipping, weight decay | 3 to 10 % of the steps; 1.0; 0 to 0.1 |
# | LoRA | all linear layers, r 8 to 64, base in bfloat16 |
# | bytes per parameter (section 3) | 16 full in float32, 2 frozen in bfloat16, 0.5 to 0.6 in 4 bits |
# | `max_length` (section 2) | your longest conversation; TRL's default is 1,024 |

# %% [markdown]
# ## Recap
#
# - Measure the base in its own format first, with a stop string: it may be all you need.
# - Look at one example's labels and at the lengths before each run; the loss shows neither fault.
# - Tuning taught the format; most of the knowledge was elicited, and new facts were hardly taught.
# - Two runs of different length need two schedules.
# - The shipped `generation_config.json` has to name the end-of-turn token.
# - LoRA for memory means a bfloat16 base, and rows of tokens instead of whole embeddings.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. Which baseline should a chat fine-tune of a base model beat?
# 2. Why can't you read from a decaying run whether fewer steps would have done?
# 3. How do you find out whether an answer was elicited or taught?
# 4. Why does a model that learnt its end-of-turn token still ramble when served?
# 5. Why is a LoRA base loaded in bfloat16, but not the weights of a full fine-tune?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: the base in its own format, with examples and a stop string.
# - 2: the rate is small at the end, and flattens the curve; compare with a schedule of that length.
# - 3: ask the base in its own format first, and train on facts that it cannot know.
# - 4: generation stops at the `eos_token_id` of its configuration, which may not name that token.
# - 5: frozen weights need no update; bfloat16 would round small updates of trained ones away.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Zhou et al., [LIMA: Less Is More for Alignment](https://arxiv.org/abs/2305.11206), 2023.
# - Gekhman et al., [Does Fine-Tuning LLMs on New Knowledge Encourage Hallucinations?](https://arxiv.org/abs/2405.05904),
#   EMNLP 2024.
# - Biderman et al., [LoRA Learns Less and Forgets Less](https://arxiv.org/abs/2405.09673), TMLR 2024.
# - Schulman et al., [LoRA Without Regret](https://thinkingmachines.ai/blog/lora/), 2025.
# - TRL, [SFT trainer](https://huggingface.co/docs/trl/sft_trainer); PEFT,
#   [trainable tokens](https://huggingface.co/docs/peft/package_reference/trainable_tokens).
# - EleutherAI, [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness): guide to new tasks.
# - Zheng et al., [Judging LLM-as-a-Judge](https://arxiv.org/abs/2306.05685), 2023: judges' biases.
#
# ## Next
#
# [09_lora_from_scratch](09_lora_from_scratch.ipynb): the low-rank factors, written by hand. Or straight to
# [16_fsdp_fine_tune](16_fsdp_fine_tune.ipynb): the same conversations on several processes.
