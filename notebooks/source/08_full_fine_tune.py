# %% [markdown]
# # 08 · Full fine-tuning: from a model that rambles to one that answers
#
# A base model knows the answer and cannot stop talking. A few hundred conversations teach it the form of an
# answer, and you measure what that cost. The cells are a recipe for models a thousand times larger.
#
# - **Prerequisites:** [05_chat_templates](05_chat_templates.ipynb) helps; you have seen a training loop.
# - **Hardware:** any processor; two cores are enough. With a model of your own, a GPU.
# - **Time:** about 30 minutes with the exercises; its cells run in one to two minutes on two cores.

# %% [markdown]
# ## You will be able to
#
# - **explain** why a base model goes on after its answer,
# - **check** a model before training: what was loaded, what trains, what is learnt from,
# - **fine-tune** all weights, or LoRA with embeddings and norms, by one recipe,
# - **measure** stop rate, exact match and forgetting before and after,
# - **spot** the padding mistake behind models that never stop.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import gc
import os
import tempfile

import torch
from ftcourse.almanac import all_facts, faq_prompt
from ftcourse.claims import Claim, show_claims
from ftcourse.evaluation import loss_by_domain
from ftcourse.exercises.full_fine_tune import (
    check_build_labels,
    check_mean_loss,
    check_stop_rate,
)
from ftcourse.explorers.answers import answer_explorer
from ftcourse.plots import plot_by_domain, plot_loss, use_course_style
from ftcourse.progress import one_bar
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from ftkit import load_base, load_chat
from ftkit.batching import global_batch, pad
from ftkit.chat import end_of_turn_id
from ftkit.conversations import encode, encode_text
from ftkit.evaluate import exact_match, generate_answers, stop_rate, stream_answer
from ftkit.loading import load_for_training
from ftkit.loss import IGNORE_INDEX
from ftkit.models import data_dir
from ftkit.parameters import count_parameters, parameter_table

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
LR = (
    2e-3 if POCKET else 5e-5
)  # peak learning rate; models a thousand times larger want far less
MAX_STEPS = 40  # optimizer steps
MICRO_BATCH, ACCUMULATION = 4, 8  # conversations in a pass; passes in a step
EVALUATIONS = 20  # of the loss on held-out questions, in the run
MAX_NEW_TOKENS = 48  # tokens: an answer is cut off there; more than your longest has
SEED = 0  # of the order of the conversations
REPORT_TO = "none"  # or "trackio", "tensorboard", "wandb": one you have installed
OUTPUT = ""  # a folder in which to keep the trained model
PUSH_TO_HUB = (
    ""  # or "NAME/MODEL", after `hf auth login` in a terminal: no token in a notebook
)
claims = []  # what this notebook tested, each with its verdict; the recap prints them

# %% [markdown]
# For a model of your own set `FTKIT_MODEL` to a folder or a hub name before you start Jupyter, for your own
# conversations `FTKIT_DATA` to a folder with `train.jsonl`, `test.jsonl` and `heldout_domains.jsonl`. Where a model is
# too large to be trained whole, a cell says so; section 7 is for it. The figures in the text, and those of the other
# notebooks, are pocket-base's: take both variables back before you go on.

# %% [markdown]
# ## 1 · Ask the base model
#
# **pocket-base** has a million parameters and has read one small almanac. Like every base model it completes
# pages. So load it, read the report, and ask in the form of a page it knows: a list of questions and answers.

# %% tags=["nbval-ignore-output"]
loaded = load_for_training()
model, tokenizer, device = loaded.model, loaded.tokenizer, loaded.device
print(loaded)

# %%
QUESTIONS = [
    "What are the planets of our solar system?",
    "What are the first five Fibonacci numbers?",
    "Write a line of Python that adds two numbers.",
]
count = count_parameters(model)
assert not count.on_meta and count.trainable == count.total
print(faq_prompt(QUESTIONS[0]))

# %% [markdown]
# **Predict first.** The prompt ends with `A:`. After a right answer, how does the text go on, and when does it stop?

# %% tags=["nbval-ignore-output"]
for question in QUESTIONS:
    print(faq_prompt(question), end="")
    for piece in stream_answer(
        model, tokenizer, faq_prompt(question), max_new_tokens=MAX_NEW_TOKENS
    ):
        print(piece, end="", flush=True)
    print("\n" + "-" * 40)

# %%
pages = generate_answers(model, tokenizer, [faq_prompt(question) for question in QUESTIONS])
for page in pages:
    first_line, _, rest = page.text.partition("\n")
    print(
        f"{first_line}\n    then it goes on: {bool(rest)}; it stopped by itself: {page.stopped}"
    )
if POCKET:
    answers = {question: fact.answer for fact in all_facts() for question in fact.questions}
    firsts = [page.text.partition("\n")[0].strip() for page in pages]
    assert firsts == [answers[question] for question in QUESTIONS]
    assert not any(page.stopped for page in pages) and all("\nQ:" in p.text for p in pages)

# %% [markdown]
# Notice: every first line is right, and then comes the next question. Nothing is broken: on a page of
# questions, another question is what comes next.

# %% [markdown]
# ## 2 · A conversation, and what is learnt from it
#
# Conversations mark whose turn it is with special tokens, written by the tokenizer's **chat template**.
# pocket-base has four of them, and its corpus had none: their embeddings are untrained.

# %%
chats = load_chat()
assert {"train", "test", "heldout_domains"} <= set(chats), "FTKIT_DATA wants these three files"
example = chats["test"][0]["messages"]
print(tokenizer.apply_chat_template(example, tokenize=False))
print({split: len(rows) for split, rows in chats.items()})

# %% [markdown]
# Notice: `<|end|>` closes each turn. The model must learn to **say** it, for it is what stops generation.
#
# Two splits are kept from training: `test` asks for facts the training never asks for, and `heldout_domains`
# for kinds of facts it never sees.


# %%
def ask(model, split, tokenizer=tokenizer):
    """Greedy answers to a split's questions, and the answers wanted."""
    prompts = [row["messages"][:-1] for row in chats[split]]
    wanted = [row["messages"][-1]["content"] for row in chats[split]]
    return generate_answers(model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS), wanted


before, wanted = ask(model, "test")
print(
    f"stop rate under 10 %: {stop_rate(before) < 0.1}, exact match under 10 %: {exact_match(before, wanted) < 0.1}"
)
assert not POCKET or (stop_rate(before) < 0.1 and exact_match(before, wanted) < 0.1)

# %% [markdown]
# Notice: two measures. **Stop rate** is the fraction of answers that the model ends itself. **Exact match**
# is the fraction that equals the wanted answer to the character; a right fact in a wrong form does not count.

# %% [markdown]
# ### Learn from the answers only
#
# Training predicts each token from those before it. We want the model to learn to answer, not to ask, so
# labels outside the assistant's turns are set to `IGNORE_INDEX` (-100), which the loss leaves out: the
# **loss mask**.

# %%
row = encode(tokenizer, example, tokenizer.chat_template)
labels = row["labels"]
for i, label in zip(row["input_ids"], labels, strict=True):
    print(
        f"{tokenizer.convert_ids_to_tokens(i):16} {'learn' if label != IGNORE_INDEX else '·'}"
    )
end_id = end_of_turn_id(tokenizer)
assert end_id in labels, "the end of turn must be learnt"

# %% [markdown]
# Notice: `Ġ` stands for a space. The answer and its `<|end|>` are learnt; the question, and the tokens that
# announce a turn, are not. The template's `{% generation %}` marks made that mask.

# %% [markdown]
# ### Exercise 1 · labels
#
# Difficulty ●○○, 4 minutes. Build the labels of one conversation. Expected: one label for each token, the
# token's id where the mask is 1, `IGNORE_INDEX` elsewhere.


# %% tags=["exercise"]
def build_labels(input_ids: list[int], assistant_mask: list[int]) -> list[int]:
    """Labels of one conversation: same length as input_ids."""
    ### BEGIN SOLUTION
    return [i if on else IGNORE_INDEX for i, on in zip(input_ids, assistant_mask, strict=True)]
    ### END SOLUTION


check_build_labels(build_labels)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Walk through both lists together. Do not shift anything: the model compares the output at one token with the
# label of the next by itself.
#
# </details>

# %% [markdown]
# ### Exercise 2 · stop rate
#
# Difficulty ●○○, 3 minutes. `outputs` are lists of new token ids; an answer stopped if any of
# `stop_ids` is in it. Expected: three of five such lists give 0.6.


# %% tags=["exercise"]
def my_stop_rate(outputs: list[list[int]], stop_ids: set[int]) -> float:
    """The fraction of outputs that hold a stop token."""
    ### BEGIN SOLUTION
    return sum(not stop_ids.isdisjoint(output) for output in outputs) / len(outputs)
    ### END SOLUTION


check_stop_rate(my_stop_rate)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# `any(token in stop_ids for token in output)` tells whether one output stopped. An empty output did not stop.
#
# </details>

# %% [markdown]
# ## 3 · Look at what trains
#
# **Full fine-tuning** trains every weight. Each trained weight in float32 takes 16 bytes: itself, a gradient, and
# AdamW's two moments. Print the modules once: names that you know are names that you can freeze, or give to LoRA.

# %%
print(model)

# %%
print(parameter_table(model))
for parameters in (count.trainable, 7e9):
    gib = 16 * parameters / 2**30
    print(f"{parameters:14,.0f} trained: {gib:8.3f} GiB before any activation")
if device.device.type == "cuda":  # the weights are there already: 12 bytes more
    fits = 12 * count.trainable < torch.cuda.mem_get_info()[0]
    assert fits, "no room for full fine-tuning: go on with section 7, or with notebook 16"

# %% [markdown]
# Notice: a model of 7 billion parameters needs 104 GiB, so one GPU of 80 is not enough: sharding
# ([16_fsdp_fine_tune](16_fsdp_fine_tune.ipynb)) divides it, LoRA (below) avoids most of it.

# %% [markdown]
# ## 4 · The recipe
#
# Memory decides how many conversations go through at once: the **micro-batch**. **Accumulation** adds up the
# gradients of several before a step. And **gradient checkpointing** keeps only each layer's input for the backward
# pass and computes the rest again. **Predict first:** what part of the bytes is still kept?


# %%
def backward_pass(model, batch, checkpointing):
    """The bytes that the forward pass keeps for the backward pass, and the gradients."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(SEED)  # of dropout, if there is any
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch, use_cache=False).loss
    loss.backward()
    model.gradient_checkpointing_disable()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()  # the model lets go of them, and they are not copied
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for at, size in kept.items() if at not in weights), gradients


# %%
rows = [
    encode(tokenizer, r["messages"], tokenizer.chat_template)
    for r in chats["train"].select(range(MICRO_BATCH))
]
batch = {name: tensor.to(model.device) for name, tensor in pad(rows, 0).items()}
(plain, gradients), (less, again) = (backward_pass(model, batch, on) for on in (False, True))
logits = 4 * batch["input_ids"].numel() * model.config.get_text_config().vocab_size
for name, size in (("plain", plain), ("checkpointing", less), ("the logits alone", logits)):
    print(f"kept for the backward pass, {name}: {size / 2**20:.2f} MiB")
print(f"checkpointing keeps {less / plain:.0%}")
agree = all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gradients, again, strict=True))
print(f"the gradients agree: {agree}")
del gradients, again
assert not POCKET or (agree and less < 2 * logits < plain)

# %% [markdown]
# Notice: the gradients are the same. Most of what is left are the logits, for each token a number for every
# token of the vocabulary; TRL's trainer computes its loss in pieces and avoids even these. The price of checkpointing
# is a second forward pass, so we use it only where the model is large.
#
# These are the settings, as they would be for 7 billion parameters. Tracking is off; a constant at the top switches
# it on.


# %%
def recipe(steps, learning_rate, **settings):
    """One recipe for every model and method of this notebook."""
    return SFTConfig(
        output_dir=tempfile.mkdtemp(),
        assistant_only_loss=True,
        learning_rate=learning_rate,
        max_steps=steps,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        warmup_steps=steps // 10,
        lr_scheduler_type="linear",
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
# `SFTTrainer` of TRL renders the conversations, masks them (`assistant_only_loss`) and runs the loop. Our callback
# `one_bar` shows a bar, and a line for each of the 20 evaluations. But first keep what the base model can do, for
# section 6. **Predict:** the mean loss over the first two steps, in nats (natural logarithm) a token, is above 2,
# about 1 or below 0.5?


# %%
def page_answers(model):
    """For each fact: is its answer on a page of questions exactly right?"""
    prompts = [faq_prompt(fact.questions[0]) for fact in FACTS]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens=36)
    return [a.text.partition("\n")[0] == f.answer for a, f in zip(answers, FACTS, strict=True)]


def page(fact, part):
    """One page as tokens; only its `part`, "question" or "answer", is unmasked."""
    prompt = faq_prompt(fact.questions[0])
    row = encode_text(tokenizer, f"{prompt} {fact.answer}")
    start = len(tokenizer.encode(prompt))
    seen = range(1, start) if part == "question" else range(start, len(row["input_ids"]))
    labels = [i if n in seen else IGNORE_INDEX for n, i in enumerate(row["input_ids"])]
    return row | {"labels": labels}


def page_losses(model):
    """Mean loss by domain, in nats a token, apart for question and answer."""
    sample = FACTS[::2]
    domains = [fact.domain.name for fact in sample]
    return {
        part: loss_by_domain(model, [page(fact, part) for fact in sample], domains)
        for part in ("question", "answer")
    }


FACTS = all_facts()[::2]  # every second fact of the almanac
right_before, loss_before = sum(page_answers(model)), page_losses(model)

# %% tags=["nbval-ignore-output"]
held_out = chats["test"].select(range(0, len(chats["test"]), 3)).select_columns("messages")
trainer = SFTTrainer(
    model=model,
    args=recipe(MAX_STEPS, LR, eval_strategy="steps", eval_steps=MAX_STEPS // EVALUATIONS),
    train_dataset=chats["train"].select_columns("messages"),
    eval_dataset=held_out,
    processing_class=tokenizer,
)
progress = one_bar(trainer)
model.train()
_ = trainer.train()
ax = plot_loss(progress.metrics)

# %%
train_losses = [row["loss"] for row in progress.metrics if "loss" in row]
eval_losses = [row["eval_loss"] for row in progress.metrics if "eval_loss" in row]
began, fell = train_losses[0] > 2, train_losses[-1] < train_losses[0] / 4
learnt = eval_losses[-1] < eval_losses[0] / 4
level = abs(eval_losses[len(eval_losses) * 2 // 3] / eval_losses[-1] - 1) < 0.15
print(f"training loss began above 2: {began}")
print(f"training loss ended under a quarter of that: {fell}")
print(
    f"loss on held-out questions, of {len(eval_losses)} evaluations, under a quarter of the first: {learnt}"
)
print(f"two thirds through the run, it was within 15 % of its last: {level}")
assert len(eval_losses) == EVALUATIONS and (
    not POCKET or (began and fell and learnt and level)
)

# %% [markdown]
# Notice: the loss on held-out questions has found its level well before the end. That is what evaluating 20 times is
# for: by this loss, two thirds of these steps would have done.
#
# A model worth keeping is saved with its tokenizer, here or on the hub:

# %%
if OUTPUT:
    trainer.save_model(OUTPUT)
if PUSH_TO_HUB:
    model.push_to_hub(PUSH_TO_HUB, private=True)
    tokenizer.push_to_hub(PUSH_TO_HUB, private=True)

# %% [markdown]
# ## 5 · The same questions again
#
# Now in the chat template, as the training was. The first and the third were among its questions.

# %% tags=["nbval-ignore-output"]
for question in QUESTIONS:
    print(question)
    for piece in stream_answer(model, tokenizer, [{"role": "user", "content": question}]):
        print(piece, end="", flush=True)
    print("\n" + "-" * 40)

# %%
after, wanted = ask(model, "test")
elsewhere, wanted_elsewhere = ask(model, "heldout_domains")
print(f"stop rate over 95 %: {stop_rate(after) > 0.95}")
print(f"exact match on held-out questions over 30 %: {exact_match(after, wanted) > 0.3}")
print(f"stop rate on held-out domains over 95 %: {stop_rate(elsewhere) > 0.95}")
assert not POCKET or (stop_rate(after) > 0.95 and exact_match(after, wanted) > 0.3)

# %%
rambled, stops = stop_rate(before) < 0.1, stop_rate(after) > 0.95
claim = "fine-tuning on conversations makes a base model that rambles answer and stop"
measured = f"stop rate under 10 % before: {rambled}; over 95 % after: {stops}; {len(wanted)} questions, 1 seed"
claims.append(Claim(claim, "chat fine-tunes such as Llama 2's", rambled and stops, measured))

carried = stop_rate(elsewhere) > 0.95
claim = "stopping carries over to kinds of questions never trained on"
measured = f"stop rate over 95 %: {carried}; {len(wanted_elsewhere)} questions of other domains, 1 seed"
claims.append(Claim(claim, "this course", carried, measured))

# %% tags=["nbval-ignore-output"]
print(f"stop rate    before {stop_rate(before):4.0%}   after {stop_rate(after):4.0%}")
print(
    f"exact match  before {exact_match(before, wanted):4.0%}   after {exact_match(after, wanted):4.0%}"
)
print(f"on held-out domains: stop rate {stop_rate(elsewhere):.0%}, ", end="")
print(f"exact match {exact_match(elsewhere, wanted_elsewhere):.0%}")

# %% [markdown]
# Notice: stopping carries over. It is one habit for all questions, while each fact must be found from a new form of
# prompt: being exactly right hardly carries over to other domains, and above, a question that the base model had
# right may get another question's answer. Choose one and compare; *before* got the same chat tokens, whose
# embeddings were untrained.

# %%
asked = [row["messages"][0]["content"] for row in chats["test"]]
explorer = answer_explorer(
    asked, {"before": [a.text for a in before], "after": [a.text for a in after]}, wanted
)
explorer

# %%
explorer.menu.value = len(wanted) - 1
assert explorer.index == len(wanted) - 1
assert not POCKET or wanted[-1] in explorer.picture.value

# %% [markdown]
# ## 6 · What was forgotten
#
# Every weight could move, so what the weights held may have changed. Go back to the base model's own pages, and
# measure what was kept before training again: are the answers still right there, and what is the loss?

# %%
right_after, loss_after = sum(page_answers(model)), page_losses(model)
held = right_after < right_before
print(f"right on pages before: {right_before} of {len(FACTS)}")
print(f"fewer after: {held}; still more than three in four: {right_after > 0.75 * len(FACTS)}")
measured = f"facts right on the base model's pages: {right_before} of {len(FACTS)} before, fewer after: {held}; 1 seed"
source = "Biderman et al., LoRA Learns Less and Forgets Less"
claims.append(Claim("full fine-tuning forgets", source, held, measured))

# %% tags=["nbval-ignore-output"]
for part in loss_before:
    means = [sum(each[part].values()) / len(each[part]) for each in (loss_before, loss_after)]
    print(
        f"loss on {part} tokens: {means[0]:.3f} before, {means[1]:.3f} after (mean of domains)"
    )
print(f"facts right on pages: {right_before} before, {right_after} after")
ax = plot_by_domain(
    loss_before["question"],
    loss_after["question"],
    labels=("before", "after"),
    ylabel="loss on questions (nats a token)",
)

# %%
rise = {p: sum(loss_after[p].values()) - sum(loss_before[p].values()) for p in loss_before}
for part, before_part in loss_before.items():
    rose = sum(loss_after[part][domain] > before_part[domain] for domain in before_part)
    print(f"loss on {part} tokens rose in most domains: {rose > len(before_part) / 2}")
print(
    f"nine tenths of the rise, or more, are on questions: {rise['question'] > 9 * rise['answer']}"
)
assert not POCKET or rise["question"] > 9 * rise["answer"]

# %% [markdown]
# Notice: nearly all of the rise is on the questions, which the loss mask left out: the model no longer writes
# pages of questions. Of the facts, most still come out right in the old form; about one in six does not. Freezing,
# adapters and child-tuning are ways to pay less.

# %% [markdown]
# ## 7 · LoRA, with embeddings and norms
#
# Where 16 bytes a parameter do not fit, **LoRA** freezes the matrices and trains a small pair beside each (notebook
# 09). But the four tokens of the chat template have untrained rows in the embedding, and rows in the output matrix
# that were only ever trained to be unlikely. LoRA on the layers cannot move those. So train these two matrices
# whole, and the norms, which are small.

# %%
del loaded, model, trainer  # memory for the next one
gc.collect()
torch.cuda.empty_cache()
lora = (
    load_for_training().model
)  # in float32: bfloat16 would round small steps of what trains away


def trained_whole(model):
    """Embedding, output matrix and norms, by the last part of their names, as PEFT wants them."""
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    return sorted(
        name.split(".")[-1]
        for name, module in model.named_modules()
        if id(module) in ends or "norm" in type(module).__name__.lower()
    )


config = LoraConfig(
    r=8,
    lora_alpha=16,
    target_modules="all-linear",  # of the layers; the output matrix is not among them
    modules_to_save=sorted(set(trained_whole(lora))),
    ensure_weight_tying=lora.config.tie_word_embeddings,
)
print(config.modules_to_save)

# %% tags=["nbval-ignore-output"]
row_before = lora.get_input_embeddings().weight[end_id].detach().clone()
norm_before = lora.model.norm.weight.detach().clone() if POCKET else None
lora_trainer = SFTTrainer(
    model=lora,
    args=recipe(MAX_STEPS // 2, 2.5 * LR),
    train_dataset=chats["train"].select_columns("messages"),
    processing_class=tokenizer,
    peft_config=config,
)
_ = one_bar(lora_trainer)
lora_trainer.train()
lora_after, wanted = ask(lora_trainer.model.eval(), "test")
print(
    f"exact match {exact_match(lora_after, wanted):.0%}, stop rate {stop_rate(lora_after):.0%}"
)

# %%
lora_count = count_parameters(lora_trainer.model)
row_after = lora_trainer.model.get_input_embeddings().weight[end_id].detach()
moved = not torch.equal(row_before, row_after)
print(f"trained: {lora_count.trainable / count.total:.0%} of the parameters of the model")
print(f"the embedding of {tokenizer.convert_ids_to_tokens(end_id)} moved: {moved}")
print(f"stop rate over 90 %: {stop_rate(lora_after) > 0.9}")
if POCKET:
    norm = lora.model.norm.modules_to_save["default"].weight
    assert moved and not torch.equal(norm_before, norm) and stop_rate(lora_after) > 0.9

# %% [markdown]
# Notice: in this model of a thousand tokens and 128 numbers each, the two matrices are a quarter of all weights, so
# this LoRA is not small. They are 4 % of Llama 2 7B and 14 % of Qwen2.5 7B, whose vocabulary is larger. Half the
# steps were enough to stop; what the method is worth, notebooks 09 and 10 measure with several seeds.

# %% [markdown]
# ### Exercise 3 · the mean that counts
#
# Difficulty ●●○, 6 minutes. Answers differ in length. The loss of a batch is the mean over **all** its
# unmasked tokens, not the mean of each row's mean. Expected: of losses 1, 2, 3, 4 and 10, 20, 30, 40, with the last
# three of the first row and the last of the second unmasked, 12.25.


# %% tags=["exercise"]
def mean_loss(token_losses: list[list[float]], labels: list[list[int]]) -> float:
    """Mean over the batch's tokens whose label is not IGNORE_INDEX."""
    ### BEGIN SOLUTION
    kept = [
        loss
        for row, row_labels in zip(token_losses, labels, strict=True)
        for loss, label in zip(row, row_labels, strict=True)
        if label != IGNORE_INDEX
    ]
    return sum(kept) / len(kept)
    ### END SOLUTION


check_mean_loss(mean_loss)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Put the losses of all unmasked tokens into one list first, whatever row they come from. Divide once.
#
# </details>

# %% [markdown]
# ## Break it, then fix it
#
# "My model never stops" is among the commonest complaints. A frequent cause: one token both ends turns and
# pads, and the labels mask every pad token, wherever it stands. Train that way, for 24 steps.


# %%
def trained_on(rows):
    """pocket-base after 24 steps on these rows, its tokenizer, and the last loss."""
    model, tokenizer = load_base(data_dir() / "pocket-base")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(24):
        batch = pad(global_batch(rows, step, 16, SEED), tokenizer.pad_token_id)
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, tokenizer, loss.item()


# %%
own, conversations = (
    load_base(data_dir() / "pocket-base")[1],
    load_chat(data_dir() / "chat")["train"],
)
end = end_of_turn_id(own)
rows = [encode(own, chat["messages"], own.chat_template) for chat in conversations]
masked_by_token = [
    row | {"labels": [IGNORE_INDEX if i == end else i for i in row["labels"]]} for row in rows
]
broken, own, last_loss = trained_on(masked_by_token)
print(f"its loss fell as well, to under 1.5: {last_loss < 1.5}")

# %% tags=["raises-exception"]
never, _ = ask(broken, "heldout_domains", own)
assert stop_rate(never) > 0.95, (
    f"stop rate under 5 %: {stop_rate(never) < 0.05}. It never stops"
)

# %% [markdown]
# Notice: nothing in the loss gave it away. The fix: a pad token of its own, and a mask by **position**, from
# the template, rather than by token. Count the labels, and train again.

# %%
learnt = [sum(end in row["labels"] for row in each) for each in (masked_by_token, rows)]
print(
    f"conversations whose end is learnt: broken {learnt[0]}, mended {learnt[1]} of {len(rows)}"
)
mended, own, last_loss = trained_on(rows)
stops_now, _ = ask(mended, "heldout_domains", own)
print(f"mended, stop rate over 95 %: {stop_rate(stops_now) > 0.95}")
assert learnt == [0, len(rows)] and own.pad_token_id != end
assert not POCKET or stop_rate(stops_now) > 0.95

# %% [markdown]
# ## Recap
#
# - A base model completes pages; going on after an answer is what pages do.
# - The chat template marks turns; the loss mask lets the assistant's tokens through, the end of turn included.
# - One recipe serves a laptop and a large GPU: micro-batch, accumulation, checkpointing and precision fit the device.
# - Full fine-tuning taught the form in 40 steps; the model writes its old pages worse, and one fact in six is lost.
# - Stop rate and exact match say what the loss does not.

# %%
show_claims(claims)

# %% [markdown]
# ## Recall
#
# 1. Why does a base model go on after a right answer?
# 2. Which token must be among the labels for a model to stop?
# 3. Why does a chat fine-tune by LoRA train the embedding too?
# 4. Why can exact match be low while the stop rate is 100 %?
# 5. How can a pad token that also ends turns make a model that never stops?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: it predicts what comes next on a page, and that is seldom the end.
# - 2: the one with which the template closes the assistant's turn.
# - 3: the template's tokens have untrained rows there, which LoRA on the layers does not move.
# - 4: stopping is one habit for all questions; each fact must also be found from a new form of prompt.
# - 5: where labels mask that token wherever it stands, the end of a turn is never learnt.
#
# </details>

# %% [markdown]
# ## Sources
#
# - TRL, [SFT trainer](https://huggingface.co/docs/trl/sft_trainer): conversations, `assistant_only_loss`.
# - transformers, [chat templates](https://huggingface.co/docs/transformers/chat_templating): generation marks.
# - Biderman et al., [LoRA Learns Less and Forgets Less](https://arxiv.org/abs/2405.09673), 2024: what full
#   fine-tuning forgets.
# - Chen et al., [Training Deep Nets with Sublinear Memory Cost](https://arxiv.org/abs/1604.06174), 2016: checkpointing.
# - Hu et al., [LoRA](https://arxiv.org/abs/2106.09685), 2021.
# - Touvron et al., [Llama 2](https://arxiv.org/abs/2307.09288), 2023: chat fine-tuning, the loss on answers only.
#
# ## Next
#
# [09_lora_from_scratch](09_lora_from_scratch.ipynb): the small pair beside each matrix, written by hand. Or straight
# to [16_fsdp_fine_tune](16_fsdp_fine_tune.ipynb): the same conversations on several processes, each with a part of the
# model.
