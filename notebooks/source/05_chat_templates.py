# %% [markdown]
# # 05 · Chat templates: what the model really reads
#
# A chat model reads one sequence of tokens; roles and turns exist only as tokens in it. You look at that sequence in
# the formats of today's models, and find and fix faults that raise no error.
#
# - **Prerequisites:** Python, and what a token is; you have seen a training loop.
# - **Hardware:** any processor; one core is enough.
# - **Time:** about 60 minutes with the exercises; its cells run in under one minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **read** a conversation as tokens, and say which of them are in the loss,
# - **recognise** ChatML, Llama 3 and Qwen3, with reasoning and tools,
# - **explain** what the generation prompt is, and what happens without it,
# - **decide** between base and instruct model, and whether questions belong in the loss,
# - **choose** a pad token, pack sequences, and check model and data with one command.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import copy
import itertools
import json
import subprocess

import torch
import transformers
from ftcourse.chat_formats import CHATML, in_format
from ftcourse.claims import Ledger
from ftcourse.exercises.chat_templates import (
    CHANGES,
    check_costly_changes,
    check_marked_template,
    check_never_stop,
)
from ftcourse.expected import expected_error
from ftcourse.explorers.chat_template import ChatExplorer
from ftcourse.plots import OKABE_ITO, new_axes, use_course_style
from trl.chat_template_utils import qwen3_chat_template
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as TrlCollator

from ftkit import chat, load_base, load_chat
from ftkit.batching import global_batch, packed_micro_batches, pad
from ftkit.conversations import encode, training_template
from ftkit.evaluate import exact_match, generate_answers
from ftkit.loss import IGNORE_INDEX, token_losses
from ftkit.models import data_dir

# %% tags=["nbval-ignore-output"]
use_course_style()
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
print(f"torch {torch.__version__}, transformers {transformers.__version__}, device: cpu")

# %%
LR = 2e-3  # peak learning rate; high, for a model of a million parameters
STEPS = 60  # optimizer steps of each short training
BATCH_SIZE = 8  # conversations in a step
QUESTIONS = 32  # held-out questions asked afterwards
SEED = 0  # of the order of the conversations, and of all that is drawn
ledger = Ledger("chat data and evaluation")  # the claims that this notebook tests

# %% [markdown]
# ## 1 · A conversation becomes one string
#
# A conversation is a list of messages. The tokenizer's **chat template**, a small Jinja program, renders it as one
# string: the text of each message, and around it tokens that say whose turn it is.
#
# The model here is **pocket-base**, a Llama of a million parameters that has read a small almanac: capitals, sums,
# days, how animals sound. It has not been trained on chats.

# %%
model, tokenizer = load_base()
conversation = [
    {"role": "system", "content": "Answer in one line."},
    {"role": "user", "content": "What is the capital of Italy?"},
    {"role": "assistant", "content": "The capital of Italy is Rome."},
    {"role": "user", "content": "And of Peru?"},
    {"role": "assistant", "content": "It is Lima."},
]
text = tokenizer.apply_chat_template(conversation, tokenize=False)
print(text)

# %% [markdown]
# Roles are gone. What is left of them are the role tokens `<|user|>` and `<|assistant|>`, and the **end-of-turn token**
# `<|end|>` after each turn. Each is a single token:

# %%
view = chat.token_view(tokenizer, conversation)
view

# %% [markdown]
# The role beside the boxes is for you; the model sees the boxes only. Underlined tokens are in the loss.
#
# **Predict first.** The string begins with `<s>`, the beginning-of-sequence token (BOS). Tokenise that string with
# `tokenizer(text)`: how many `<s>` stand at its head?

# %%
my_guess = 1

# %%
ids = tokenizer.apply_chat_template(conversation, return_dict=False)
again = tokenizer(text)["input_ids"]
doubled = again.count(tokenizer.bos_token_id)
print("apply_chat_template:", tokenizer.convert_ids_to_tokens(ids[:3]))
print("tokenizer(text):    ", tokenizer.convert_ids_to_tokens(again[:3]))
print(f"your guess: {my_guess}, counted: {doubled}")
assert again == [tokenizer.bos_token_id, *ids]

# %% [markdown]
# The template writes BOS, and the tokenizer adds its own. `add_special_tokens=False` turns that off. Is that enough
# for every training conversation of this course, short chats about the almanac?

# %%
chats = load_chat()
conversations = [row["messages"] for row in chats["train"]]
texts = [tokenizer.apply_chat_template(each, tokenize=False) for each in conversations]
rendered = [tokenizer.apply_chat_template(each, return_dict=False) for each in conversations]
same = {}
for adds in (True, False):
    tokenised = [tokenizer(each, add_special_tokens=adds)["input_ids"] for each in texts]
    same[adds] = sum(a == b for a, b in zip(tokenised, rendered, strict=True))
    print(f"add_special_tokens={adds!s:5}: {same[adds]} of {len(texts)} have the same tokens")
_ = ledger.add(
    "text from a chat template has to be tokenised with add_special_tokens=False",
    "Hugging Face, transformers documentation, chat templates",
    same == {True: 0, False: len(texts)},
    f"same tokens as apply_chat_template: {same[True]} of {len(texts)} without it, "
    f"{same[False]} with it",
)
assert same == {True: 0, False: len(texts)}

# %% [markdown]
# ## 2 · Which tokens are in the loss
#
# A **label** is the token that the model should predict there, or -100 for a place that is not in the loss. It stands
# under its own token, because the model shifts labels by one itself. Here only what the assistant writes has labels
# (section 6 discusses the alternative). A template can mark it with `{% generation %}` and `{% endgeneration %}`.

# %%
encoded = tokenizer.apply_chat_template(
    conversation, return_dict=True, return_assistant_tokens_mask=True
)
pairs = list(zip(encoded["input_ids"], encoded["assistant_masks"], strict=True))
labels = [token if kept else IGNORE_INDEX for token, kept in pairs]
in_loss = [tokenizer.decode([label]) for label in labels if label != IGNORE_INDEX]
print(f"{len(in_loss)} of {len(labels)} tokens are in the loss:", in_loss)
assert in_loss.count("<|end|>") == 2
assert [token.in_loss for token in view.tokens] == [label != IGNORE_INDEX for label in labels]

# %% [markdown]
# Two answers, and two `<|end|>`: only these labels teach the model to stop. Do published templates have the markers?
# Here are stored results of `ftkit chat` (section 9) on the templates of which TRL ships copies:

# %%
table = json.loads((data_dir() / "chat_templates.json").read_text(encoding="utf-8"))
published = {
    name: set(row["findings"])
    for name, row in table["templates"].items()
    if not name.endswith("_training.jinja")
}
without = [name for name, found in published.items() if "no-generation-markers" in found]
replaced = [name for name, found in published.items() if "markers-from-trl" in found]
print(
    f"{len(published) - len(without) - len(replaced)} of {len(published)} published templates "
    "have the markers,"
)
print(f"for {len(replaced)} more TRL has a training version, for {len(without)} it has none")

# %% [markdown]
# Without markers `apply_chat_template` cannot tell answers from questions: the mask is zero everywhere, at best with
# a warning. Here is ChatML, the format of Qwen2.5 and SmolLM2, in six lines and without markers:

# %%
print(CHATML)
chatml = in_format(tokenizer, "ChatML")  # a copy, with this template and its tokens
encoded = chatml.apply_chat_template(
    conversation, return_dict=True, return_assistant_tokens_mask=True
)
print(f"\n{sum(encoded['assistant_masks'])} of {len(encoded['input_ids'])} tokens are marked")
assert sum(encoded["assistant_masks"]) == 0

# %% [markdown]
# The answers can still be found by rendering twice: the conversation up to an answer, and with it. The tokens in
# between are the answer's. `ftkit.conversations.encode` does that. An answer that is rendered differently once
# another turn follows gets no labels; section 3 has an example.

# %%
derived = encode(chatml, conversation, CHATML)
kept = [label for label in derived["labels"] if label != IGNORE_INDEX]
print(f"{len(kept)} of {len(derived['labels'])} tokens are in the loss:")
print(repr(chatml.decode(kept)))
assert kept.count(chatml.eos_token_id) == 2

# %% [markdown]
# ChatML writes a line break after each `<|im_end|>`, so it is in the loss as well. That does no harm, because
# generation stops before it.
#
# Other trainers need the markers, so it is worth knowing how to write them. Here is pocket-base's template without
# its markers:

# %%
UNMARKED = """\
{{ bos_token }}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|assistant|>' }}
        {{- m.content + '<|end|>' }}
    {%- else %}
        {{- '<|' + m.role + '|>' + m.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}"""

# %% [markdown]
# ## Exercise 1 · Mark the answers
#
# Difficulty ●●○, 7 minutes. Return `UNMARKED` with `{%- generation %}` and `{%- endgeneration %}` in the right places:
# copy the text, or use `UNMARKED.replace`. Expected: 12 tokens of the checker's conversation are in the loss.


# %% tags=["exercise"]
def marked_template() -> str:
    """UNMARKED, with markers around what the model should learn to write."""
    ### BEGIN SOLUTION
    answer = "{{- m.content + '<|end|>' }}\n    {%- else"
    marked = "{%- generation %}{{- m.content + '<|end|>' }}{%- endgeneration %}\n    {%- else"
    return UNMARKED.replace(answer, marked)
    ### END SOLUTION


check_marked_template(marked_template)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# The prompt ends with `<|assistant|>`: the model never has to write it. It has to write everything after that, up to
# and including `<|end|>`.
#
# </details>

# %% [markdown]
# ## 3 · Llama 3, and Qwen3 with reasoning and tools
#
# The formats differ in their tokens, not in the idea. `in_format` gives pocket-base's tokenizer the special tokens of
# a format and a short version of its template, which the tests compare with the published one. In a vocabulary of
# 1,024 tokens the words between them fall into pieces, such as `us er`; in Llama 3's, `user` is one token.

# %%
llama = in_format(tokenizer, "Llama 3")
chat.token_view(llama, conversation)

# %%
qwen = in_format(tokenizer, "Qwen3 style")
formats = {"course": tokenizer, "ChatML": chatml, "Llama 3": llama, "Qwen3 style": qwen}
print("format       tokens  in the loss  an answer ends with")
for name, its in formats.items():
    found = encode(its, conversation, its.chat_template)
    kept = [label for label in found["labels"] if label != IGNORE_INDEX]
    print(f"{name:11} {len(found['labels']):7} {len(kept):12}  {its.decode(kept[-2:])!r}")
assert len(kept) < 16  # Qwen3's template drops what it had written of the first answer

# %% [markdown]
# ChatML and Qwen3 also count the line break after an answer. Qwen3 writes an empty `<think>` block into the last
# answer, but not into earlier ones, so the first answer has no labels.
#
# Reasoning models write their thoughts between `<think>` and `</think>`. **Predict first:** of two answers with
# reasoning, what does the template write, and which tokens end up in the loss?

# %%
talk = [
    {"role": "user", "content": "What is 2 plus 3?"},
    {"role": "assistant", "content": "It is 5.", "reasoning_content": "3 more than 2."},
    {"role": "user", "content": "And 4 plus 4?"},
    {"role": "assistant", "content": "It is 8.", "reasoning_content": "4 more than 4."},
]
chat.token_view(qwen, talk)

# %% [markdown]
# The template keeps only the reasoning that follows the **last question** and drops the rest, to save context. The
# first answer now stands without the thoughts that the model should write before it: labels there would teach it to
# answer at once. So `encode` leaves that answer out of the loss. There are three ways to train:

# %%
trl_qwen = copy.deepcopy(qwen)
trl_qwen.chat_template = qwen3_chat_template  # the published one, as TRL ships it
ways = {
    "the conversation as it is": [encode(qwen, talk, qwen.chat_template)],
    "cut after each answer": [encode(qwen, talk[:k], qwen.chat_template) for k in (2, 4)],
    "TRL's training version": [encode(trl_qwen, talk, training_template(trl_qwen))],
}
counts = {}
for name, examples in ways.items():
    counts[name] = sum(label != IGNORE_INDEX for e in examples for label in e["labels"])
    total = sum(len(e["labels"]) for e in examples)
    print(
        f"{name:26} {len(examples)} example(s), {total:3} tokens, {counts[name]} in the loss"
    )
assert counts["the conversation as it is"] * 2 == counts["cut after each answer"]

# %% [markdown]
# Cutting makes one example per answer, ending with it. It trains on exactly the prompts of inference, and reads the
# history twice. TRL's training version keeps the reasoning of every turn: cheaper, but the model then sees a history
# that inference never shows. For data without reasoning, Qwen3 writes an empty `<think>` block;
# `enable_thinking=False` puts it into the prompt.

# %% [markdown]
# **Tools** are described in the system turn. A call is written by the assistant, so it belongs in the loss. A result
# comes from the program that ran the tool, so it does not; Qwen3 shows it as a user turn. Call and answer both follow
# the last question, so both keep their reasoning:

# %%
# Shortened: real "parameters" are a JSON schema, with "type", "properties" and "required".
add = {"type": "function", "function": {"name": "add", "parameters": {"a": "int", "b": "int"}}}
call = {"function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
calling = {
    "role": "assistant",
    "content": "",
    "reasoning_content": "Use it.",
    "tool_calls": [call],
}
with_tool = [talk[0], calling, {"role": "tool", "content": "5"}, talk[1]]
chat.token_view(qwen, with_tool, tools=[add])

# %%
silent = [talk[0], {**calling, "reasoning_content": None}, *with_tool[2:]]
for name, messages in (("with reasoning", with_tool), ("without reasoning", silent)):
    found = encode(qwen, messages, qwen.chat_template, tools=[add])
    kept = qwen.decode([label for label in found["labels"] if label != IGNORE_INDEX])
    print(f"a call {name}: {kept.count('<tool_call>')} call in the loss")
assert kept.count("<tool_call>") == 0

# %% [markdown]
# The call without reasoning is missing from the loss, for the same reason: as the last turn it is written with an
# empty `<think>` block, in the history without one. `ftkit chat` reports such data as `turns-not-in-loss`, before a
# run.

# %% [markdown]
# ## 4 · Base or instruct, and what a fresh format costs
#
# An **instruct** model has a template, and its end-of-turn token is trained: keep both, and little data is enough. A
# **base** model has neither; you choose a format, and its role tokens are often untrained: `untrained_rows` finds
# embeddings whose norm is far below the median. Rule of thumb, not measured here: instruct for a new task with little
# data, base for a behaviour of your own with much.

# %%
vectors = model.get_input_embeddings().weight
untrained = chat.untrained_rows(vectors)
for name, tokens in {
    "course": "<|user|><|assistant|><|end|>",
    "pre-training": "Q:A:</s>",
}.items():
    its_ids = tokenizer.encode(tokens, add_special_tokens=False)
    count = int(untrained[its_ids].sum())
    print(f"{name:12} {tokens:28} {count} of {len(its_ids)} tokens are untrained")

# %% [markdown]
# pocket-base knows questions and answers as `Q:` and `A:`. Fine-tuned for 60 steps in the course's format, it will
# answer under a third of the held-out questions exactly; fine-tuned in `Q:` and `A:`, three in four. The untrained
# tokens are the obvious suspects. But the formats differ in one more thing: after `A:` comes a **space**. Test both,
# changing one thing at a time.


# %%
def format_of(user, assistant, space):
    """A tokenizer whose template opens turns with these words, and the text with a space or without."""
    made = copy.deepcopy(tokenizer)
    made.chat_template = (
        "{{- bos_token }}{%- for m in messages %}"
        f"{{%- if m.role == 'assistant' %}}{{{{- '{assistant}' }}}}"
        f"{{%- generation %}}{{{{- '{space}' + m.content + '<|end|>' }}}}{{%- endgeneration %}}"
        f"{{%- else %}}{{{{- '{user}{space}' + m.content + '<|end|>' }}}}{{%- endif %}}{{%- endfor %}}"
        f"{{%- if add_generation_prompt %}}{{{{- '{assistant}' }}}}{{%- endif %}}"
    )
    return made


openings = {"known": ("Q:", "A:"), "untrained": ("<|user|>", "<|assistant|>")}
grid = {
    (name, space): format_of(*o, space) for name, o in openings.items() for space in (" ", "")
}
for its in grid.values():
    print(its.apply_chat_template(conversation[1:3], tokenize=False))

# %%
short = {
    split: [row["messages"] for row in chats[split] if len(row["messages"]) == 2]
    for split in ("train", "test")
}
asked = short["test"][:QUESTIONS]
questions = [messages[:-1] for messages in asked]
references = [messages[-1]["content"] for messages in asked]
print({split: len(found) for split, found in short.items()}, "questions and answers")


# %%
def train_in(its, everything=False):
    """pocket-base, shortly trained in a tokenizer's format; `everything`: questions in the loss, too."""
    trained, _ = load_base()
    examples = [encode(its, messages, its.chat_template) for messages in short["train"]]
    if everything:
        examples = [e | {"labels": [IGNORE_INDEX, *e["input_ids"][1:]]} for e in examples]
    optimizer = torch.optim.AdamW(trained.parameters(), lr=LR)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, STEPS // 6, STEPS)
    for step in range(STEPS):
        batch = global_batch(examples, step, BATCH_SIZE, SEED)
        trained(**pad(batch, tokenizer.pad_token_id)).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return trained


def exact(trained, its, prompts=questions):
    """How many of the held-out questions get the exact answer."""
    answers = generate_answers(trained, its, prompts, max_new_tokens=20)
    return round(exact_match(answers, references) * QUESTIONS)


# %% [markdown]
# The space belongs to the answer: the model writes it, and it is in the loss. **Predict first.** Which of the two
# costs more exact answers, the untrained role tokens or the missing space?

# %% tags=["nbval-ignore-output"]
trained = {cell: train_in(its) for cell, its in grid.items()}
right = {cell: exact(trained[cell], its) for cell, its in grid.items()}
print(f"exact answers of {QUESTIONS}       with space  without")
for name in openings:
    print(f"role tokens {name:12} {right[name, ' ']:10} {right[name, '']:8}")

# %% tags=["hide-input", "nbval-ignore-output"]
figure, ax = new_axes(6, 2)
for place, (name, hatch) in enumerate({"known": "", "untrained": "//"}.items()):
    bars = [right[name, " "], right[name, ""]]
    ax.barh([place * 0.4, 1 + place * 0.4], bars, 0.35, color=OKABE_ITO[place], hatch=hatch, edgecolor="black",
            label=f"{name} role tokens")  # fmt: skip
    for row, count in enumerate(bars):
        ax.annotate(f" {count}", (count, row + place * 0.4), va="center")
ax.set(
    yticks=[0.2, 1.2], yticklabels=["“A: The …”", "“A:The …”"], xlim=(0, 34), ylim=(1.7, -0.3)
)
ax.set(xlabel=f"exact answers of {QUESTIONS}")
_ = ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

# %%
assert min(right[name, " "] for name in openings) > 1.5 * max(
    right[name, ""] for name in openings
)
pieces = {
    word: tokenizer.tokenize(word, add_special_tokens=False)
    for word in (" The", "The", " What", "What")
}
for word, tokens in pieces.items():
    print(f"{word!r:8} {' + '.join(tokens).replace('Ġ', '·')}")
assert len(pieces[" What"]) == 1 < len(pieces["What"]) and pieces[" The"] != pieces["The"]

# %% [markdown]
# The role tokens make a difference of a few answers at most: full fine-tuning trains their embeddings, too. The space
# makes a large one. Without it the first word is **another token**, `The` instead of ` The`, and `What` falls into
# two, while pre-training asked and answered with the space. (One seed, 32 questions.) The obvious suspect was the
# wrong one; only changing one thing at a time could show that.

# %% [markdown]
# On a real model the rule is the same: **the tokens at the seam must be tokens that the model knows there.** Most
# templates write text after a line break, where pre-training has seen words without a space; Llama 2 wrote a space.
# A template with a space too many or too few still renders the same to your eye.
#
# What untrained tokens do cost, here 24 nats for `<|end|>` at first, is in
# [07_overfit_one_batch](07_overfit_one_batch.ipynb). With LoRA the embedding is frozen, so that they stay untrained:
# list them in `trainable_token_indices`.

# %% [markdown]
# ## 5 · The generation prompt
#
# A prompt for inference ends with the tokens that **open the assistant's turn**: the generation prompt. In training
# they are part of every example. In inference you have to ask for them with `add_generation_prompt=True`, because the
# default is False. It is easily forgotten.

# %%
for name, its in (("course", tokenizer), ("ChatML", chatml), ("Llama 3", llama)):
    plain = its.apply_chat_template(conversation[1:2], tokenize=False)
    prompt = its.apply_chat_template(
        conversation[1:2], tokenize=False, add_generation_prompt=True
    )
    print(f"{name:8} adds {prompt.removeprefix(plain)!r}")
    assert prompt != plain

# %% [markdown]
# Take the model of section 4 with role tokens and a space, and one more, trained with the questions in the loss. Ask
# both with and without the generation prompt. **Predict first:** what will each write where the prompt is missing?

# %%
its = grid["untrained", " "]
models = {"answers in the loss": trained["untrained", " "]}
models["everything in the loss"] = train_in(its, everything=True)


def prompts_of(add):
    """The questions as text, without BOS, which the tokenizer adds."""
    return [
        its.apply_chat_template(q, tokenize=False, add_generation_prompt=add).removeprefix(
            "<s>"
        )
        for q in questions
    ]


def complete(trained, prompt):
    """What plain generate() writes: it stops at EOS, not at <|end|>."""
    tokens = torch.tensor([tokenizer.encode(prompt)])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    output = trained.generate(input_ids=tokens, attention_mask=tokens >= 0, **options)
    return tokenizer.decode(output[0, tokens.shape[1] :])


# %% tags=["nbval-ignore-output"]
found = {}
print(f"printed: what is written after {prompts_of(True)[2]!r}")
for name, its_model in models.items():
    for add in (True, False):
        found[name, add] = exact(its_model, its, prompts_of(add))
        given = "with" if add else "without"
        print(f"{name}, {given} generation prompt: {found[name, add]} of {QUESTIONS} exact")
        print(f"    {complete(its_model, prompts_of(add)[2])!r}")

# %%
ratio = {name: found[name, False] / found[name, True] for name in models}
assert ratio["answers in the loss"] < 0.75 < 0.85 < ratio["everything in the loss"]

# %% [markdown]
# The model trained on answers never learnt to write the role header: without the prompt it loses about half of its
# exact answers. The one trained on everything writes `<|assistant|>` itself, and then answers. So does a published
# chat model. Here are stored answers of SmolLM2-135M-Instruct to 20 questions:

# %%
facts = json.loads((data_dir() / "results" / "chat_facts.json").read_text(encoding="utf-8"))
header = "<|im_start|>assistant\n"
for name, answers in facts["answers"].items():
    begun = sum(answer.startswith(header) for answer in answers)
    print(f"{name:7} the prompt: {begun:2} of {len(answers)} begin with the role header")
    print(f"         {answers[0][:60]!r}")
_ = ledger.add(
    "without a generation prompt the model may not start the answer",
    "Hugging Face, transformers documentation, chat templates",
    begun == len(answers),
    f"{begun} of {len(answers)} answers begin with the role header instead of text",
    model="SmolLM2-135M-Instruct from 4 bits",
)
assert begun == len(answers) and not any(
    a.startswith(header) for a in facts["answers"]["with"]
)

# %% [markdown]
# Decoded with `skip_special_tokens=True`, such answers begin with the word "assistant", by which you recognise this
# bug. It also costs tokens. A model that never learnt headers answers badly without any such sign.

# %% [markdown]
# ## 6 · Who trains on questions, too
#
# Masking the questions is a choice. Llama 2 set the loss of the prompts to zero (Touvron et al. 2023). TRL's
# `SFTTrainer` computes the loss on **every** token of a conversation unless you set `assistant_only_loss=True`, and
# of prompt-completion data on the completion only. Shi et al. 2024 (instruction modelling) train on the prompts on
# purpose.

# %% [markdown]
# They report gains in many, not all, of their experiments, most where instructions are long, answers short, and
# examples few, and explain them by less overfitting (from the literature, not measured here). Does it show on
# pocket-base, with one seed and the same 60 steps?

# %% tags=["nbval-ignore-output"]
example = encode(its, short["train"][0], its.chat_template)
for name in models:
    print(f"{name:23} {found[name, True]:2} of {QUESTIONS} exact")
share = sum(label != IGNORE_INDEX for label in example["labels"]) / len(example["labels"])
print(f"share of an example's tokens in the loss, answers only: {share:.0%}")

# %%
assert min(found[name, True] for name in models) > QUESTIONS / 2

# %% [markdown]
# One seed and 32 questions cannot tell them apart: a difference of a few answers means nothing. Mask by default.
# Where answers are a small part of your tokens, try both and let held-out data decide. Compare runs by the loss on
# answers only, because a mean that includes the questions is another quantity.

# %% [markdown]
# ## 7 · Break it, then fix it: pad = EOS
#
# The sequences of a batch must be equally long, so short ones are filled up with a pad token. Many base models come
# without one, and the usual advice is one line: `pad_token = eos_token`. Here EOS is ChatML's `<|im_end|>`, and the
# labels are made by transformers' collator, which masks every pad token.

# %% tags=["raises-exception"]
careless = copy.deepcopy(chatml)
careless.pad_token = careless.eos_token
few = [{"input_ids": encode(chatml, m, CHATML)["input_ids"]} for m in short["train"][:8]]
collate = transformers.DataCollatorForLanguageModeling(careless, mlm=False)
batch = collate(few)
findings = chat.check_labels(careless, batch)
with expected_error(AssertionError):
    assert not chat.has_errors(findings), findings[0]

# %% [markdown]
# This is the model that never stops: `<|im_end|>` ends each answer, it is the pad token, and every pad token was
# masked. (This collator also puts the question in the loss.) Training would run without an error. The fix is a pad
# token distinct from EOS:

# %%
resized, _ = load_base()
resized.resize_token_embeddings(len(careless))
print(chat.choose_pad_token(careless, resized))
fixed = collate(few)
ends = (fixed["labels"] == careless.eos_token_id).any(dim=1)
print(f"{int(ends.sum())} of {len(ends)} examples learn to stop")
assert not chat.check_labels(careless, fixed) and ends.all()

# %% [markdown]
# A new token needs a row in the embedding, so save model **and** tokenizer. Is the advice always wrong? Give three
# collators the same examples, with EOS as pad:

# %%
end = chatml.eos_token_id
careless.pad_token = careless.eos_token
with_labels = [encode(chatml, m, CHATML) for m in short["train"][:8]]
batches = {
    "transformers": transformers.DataCollatorForLanguageModeling(careless, mlm=False)(few),
    "TRL": TrlCollator(pad_token_id=end)(with_labels),
    "ftkit.batching.pad": pad(with_labels, end),
}
kept = {name: int((b["labels"] == end).any(dim=1).sum()) for name, b in batches.items()}
for name, count in kept.items():
    print(f"{name:18} {count} of {len(few)} examples learn to stop")
assert kept == {"transformers": 0, "TRL": len(few), "ftkit.batching.pad": len(few)}

# %%
lost = [name for name, count in kept.items() if count == 0]
_ = ledger.add(
    "with the pad token set to EOS, the model does not learn to stop",
    "TRL issue 976",
    bool(lost),
    f"ends in the loss, of 8 examples: {', '.join(f'{name} {count}' for name, count in kept.items())}",
    only_if="labels are masked wherever the pad token is, as transformers' collator does",
)

# %% [markdown]
# A collator that masks by **position** is safe. You seldom know which kind your next trainer is, and a pad token of
# its own is safe with both.

# %% [markdown]
# Pads must not change an answer either: the **attention mask** hides them. **Predict first:** pad right or left, give
# the mask or forget it. Which of the four changes the logits of real tokens?

# %%
alone = torch.tensor([tokenizer.apply_chat_template(asked[0], return_dict=False)])
pads = torch.full((1, 6), tokenizer.pad_token_id)


def change(side, mask_given):
    """Largest change of a real token's logit, in units of the largest logit."""
    both = [alone, pads] if side == "right" else [pads, alone]
    real = torch.cat([torch.full_like(part, part is alone) for part in both], dim=1)  # (1, T)
    given = real if mask_given else torch.ones_like(real)
    with torch.no_grad():
        before = model(input_ids=alone).logits[0]
        after = model(input_ids=torch.cat(both, dim=1), attention_mask=given).logits
    return ((after[real.bool()] - before).abs().max() / before.abs().max()).item()


# %%
for side in ("right", "left"):
    for mask_given in (True, False):
        moved = change(side, mask_given)
        words = "mask given" if mask_given else "mask forgotten"
        print(
            f"padded on the {side:5}, {words:14}: logits change by {moved:.1f} of the largest"
        )
        assert (moved > 0.1) == (side == "left" and not mask_given) and not 1e-4 < moved < 0.1

# %% [markdown]
# Only one of the four. A token attends to earlier tokens, so it never sees pads on the right. But batches for
# generation are padded on the **left**, and there a forgotten mask corrupts answers without an error.
# `chat.check_padding` tests a model for it.

# %% [markdown]
# ## 8 · Packing, and its mask
#
# Padding wastes compute. **Packing** puts several conversations into one sequence. It must not change what is
# computed: each conversation may attend to itself only (a **block-diagonal** attention mask), and its positions start
# at 0.


# %%
def packed_batches(examples):
    """Sequences of up to 256 tokens, one a batch, for a single process."""
    return packed_micro_batches(
        examples, micro_batch_size=1, max_length=256, pad_id=0, rank=0, world_size=1
    )


examples = [encode(tokenizer, m, tokenizer.chat_template) for m in conversations]
batches = [global_batch(examples, step, 16, SEED) for step in range(20)]
padded = [pad(batch, 0) for batch in batches]
real = sum(int(b["attention_mask"].sum()) for b in padded)
places = sum(b["attention_mask"].numel() for b in padded)
packed = [b for batch in batches for b in packed_batches(batch)]
packed_places = sum(b["input_ids"].numel() for b in packed)
print(f"16 conversations a batch, padded: {1 - real / places:.0%} of the places are padding")
print(f"the same, packed: {1 - real / packed_places:.0%}")
assert packed_places < places

# %% [markdown]
# transformers builds the block-diagonal mask from `position_ids` that start again at 0. Compute the losses of six
# conversations in three ways: one by one; packed, with such positions; and simply concatenated, with positions that
# run on.

# %%
six = sorted(examples[:6], key=lambda e: -len(e["input_ids"]))  # as `pack` orders them
[packed_six] = packed_batches(six)
length = packed_six["input_ids"].shape[1]
concatenated = {**packed_six, "position_ids": torch.arange(length)[None]}


@torch.no_grad()
def label_losses(batch):
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    labels = batch["labels"][:, 1:]
    losses = token_losses(model(**inputs, use_cache=False).logits[:, :-1], labels)
    return losses[labels != IGNORE_INDEX]


apart = torch.cat([label_losses(pad([e], 0)) for e in six])
for name, batch in (("packed", packed_six), ("concatenated", concatenated)):
    moved = (label_losses(batch) - apart).abs()
    print(
        f"{name:13} mean {label_losses(batch).mean():.2f} nats, apart {apart.mean():.2f};",
        end=" ",
    )
    print(f"a label changes by up to {moved.max():.1f} nats")
exactly = (label_losses(packed_six) - apart).abs().max().item()
assert exactly < 1e-3 and moved.max() > 1

# %%
_ = ledger.add(
    "with attention masked between them, packed sequences have the losses of separate ones",
    "Krell et al. 2021, Efficient Sequence Packing without Cross-contamination",
    exactly < 1e-3,
    "6 conversations: no label changes by 0.001 nats; concatenated, "
    f"one changes by over {int(moved.max())} nat",
)

# %% tags=["hide-input"]
figure, axes = new_axes(8, 3, columns=2)
edges = [*(packed_six["position_ids"][0] == 0).nonzero().flatten().tolist(), length]
titles = ("packed: block-diagonal", "concatenated: causal only")
for ax, ends, title in zip(axes, (edges, [0, length]), titles, strict=True):
    for a, b in itertools.pairwise(ends):
        ax.fill([a, a, b], [a, b, b], color=OKABE_ITO[0])
    for at in edges[1:-1]:
        ax.axhline(at, color="#999999", linewidth=0.5, linestyle=":")
        ax.axvline(at, color="#999999", linewidth=0.5, linestyle=":")
    ax.set(title=title, xlim=(0, length), ylim=(length, 0), aspect="equal", xticks=edges[:-1])
    ax.set(yticks=edges[:-1], xlabel="token attended to", ylabel="token that attends")
    ax.tick_params(labelsize=8)

# %% [markdown]
# Blue is attended to, and dotted lines separate the conversations. The mean of the concatenated losses hides the
# leak, because some labels gain and some lose; single labels show it. Not every model and attention backend reads
# `position_ids` this way: `ftkit.batching.check_no_leak` tests yours, and `ftkit` refuses to pack with a model that
# leaks.

# %% [markdown]
# ## 9 · Look before you train
#
# Everything in one place: choose a tokenizer, sound or faulty, and a conversation, and truncate it with the slider.
# Above the tokens stand the **findings**: an error breaks the training, a warning may, a note is worth knowing.


# %%
def with_template(its, old, new):
    made = copy.deepcopy(its)
    made.chat_template = its.chat_template.replace(old, new)
    assert made.chat_template != its.chat_template
    return made


end_outside = with_template(
    tokenizer,
    "message.content + '<|end|>' }}\n        {%- endgeneration %}",
    "message.content }}{%- endgeneration %}{{- '<|end|>' }}",
)
no_prompt = with_template(chatml, "'<|im_start|>assistant\\n'", "''")
choices = {**formats, "ChatML, pad = EOS": careless, "ChatML, no prompt": no_prompt}
choices["course, its end outside"] = end_outside

# %%
longest = max(conversations, key=lambda messages: len(str(messages)))
explorer = ChatExplorer(
    choices,
    {"two capitals": conversation, "two sums, with reasoning": talk, "the longest": longest},
)
explorer

# %%
for name in choices:  # what the menus do, done by a cell
    explorer.tokenizer_menu.value = name
    print(f"{name:24} {', '.join(chat.finding_codes(explorer.findings)) or 'no findings'}")
explorer.tokenizer_menu.value = "course"
explorer.length_slider.value = 20
print(f"{'course, cut at 20':24} {', '.join(chat.finding_codes(explorer.findings))}")
assert "answer-cut-off" in chat.finding_codes(explorer.findings)
explorer.length_slider.value = explorer.length_slider.max

# %% [markdown]
# The last four rows have a planted fault, and each shows a code that no sound row has: `pad-is-stop`,
# `gap-before-answer`, `stop-not-in-loss`, `answer-cut-off`. The first four rows show properties of the formats. With
# the conversation that has reasoning, formats that cannot write it show `text-lost`.
#
# Truncation is silent: TRL cuts at `max_length`, 1,024 tokens by default, and loses the end of the answer with its
# end-of-turn token. Set it above your longest example, or leave those out.

# %% [markdown]
# For data of your own there is a command, `ftkit chat MODEL DATA`. It reads model, tokenizer, template and data;
# `--show-mask N` prints example N as tokens with its loss mask; the exit status is 0 only without errors. Here is
# `ftkit chat pocket-base chat/train.jsonl --show-mask 1`, started from Python:

# %%
command = [
    sys.executable,
    "-m",
    "ftkit.chat",
    "pocket-base",
    "chat/train.jsonl",
    "--show-mask",
    "1",
]
done = subprocess.run(command, cwd=data_dir(), capture_output=True, text=True, check=False)
print(done.stdout)
assert done.returncode == 0, done.stderr

# %% [markdown]
# You know the first warning from section 1 and the note from section 4. The second: generation stops at EOS, and this
# template closes turns with `<|end|>`. `ftkit.evaluate.generate_answers` stops at both; for plain `model.generate` do
# what the remedy says, and save the generation config.

# %% [markdown]
# ## Exercise 2 · Examples that never learn to stop
#
# Difficulty ●●○, 7 minutes. Masked ends, truncated answers, examples without labels: find all of them by one look at
# the labels. An example learns to stop if its **last** unmasked label is a stop token. Expected: rows 1, 2 and 4 of the
# checker's six.


# %% tags=["exercise"]
def never_stop(labels: torch.Tensor, stop_ids: set[int]) -> list[int]:
    """labels (B, T), -100 where there is none: examples that do not learn to stop, counted from 0."""
    ### BEGIN SOLUTION
    found = []
    for number, row in enumerate(labels.tolist()):
        unmasked = [label for label in row if label != IGNORE_INDEX]
        if not unmasked or unmasked[-1] not in stop_ids:
            found.append(number)
    return found
    ### END SOLUTION


check_never_stop(never_stop)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Collect an example's labels that are not -100. The list may be empty; its last member may lie before padding.
#
# </details>

# %% [markdown]
# ## A service that answers badly
#
# A colleague serves your model, and it answers badly. The prompts differ from those of training in five ways, all in
# `CHANGES`. `ask(change)` builds the prompts with one of them, generates, and counts exact answers; `ask(None)` asks
# as trained. The prompts are printed without BOS, which the tokenizer adds.


# %%
def ask(change):
    """How many of the held-out questions get the exact answer with a changed prompt; about a second."""
    edit = CHANGES[change] if change else str
    return exact(models["answers in the loss"], its, [edit(p) for p in prompts_of(True)])


for name, edit in CHANGES.items():
    print(f"{name:22} {edit(prompts_of(True)[0])!r}")

# %% [markdown]
# ## Exercise 3 · Find what costs the answers
#
# Difficulty ●●●, 12 minutes. Write down which changes you expect to hurt; then write the experiment: one change at a
# time, against the same questions as trained. Return the changes that lose **more than half** of the exact answers.
# Expected: one or two names.


# %% tags=["exercise"]
def costly_changes(ask) -> list[str]:
    """The names in CHANGES with which fewer than half of the answers of `ask(None)` are exact."""
    ### BEGIN SOLUTION
    as_trained = ask(None)
    return [change for change in CHANGES if ask(change) < as_trained / 2]
    ### END SOLUTION


check_costly_changes(costly_changes, ask)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Loop over CHANGES, call `ask` for each, and compare with `ask(None)`, not with the number of questions.
#
# </details>

# %% [markdown]
# ## 10 · The same rule outside text
#
# A template is one case of a rule: **what a model sees in use must be prepared as in its pre-training.** For images
# that is the order of the channels (OpenCV reads BGR, most models expect RGB) and the normalisation by mean and
# standard deviation; for graphs the number of neighbours that are sampled per node. None of them raises an error.

# %% tags=["hide-input"]
figure, axes = new_axes(9, 2.4, columns=3)
shapes = torch.tensor(
    [[0.8, 0.15, 0.15], [0.15, 0.15, 0.8], [0.9, 0.9, 0.9]]
)  # red, blue, white as RGB
for row, (label, colours) in enumerate(
    {"as trained": shapes, "BGR for RGB": shapes.flip(1)}.items()
):
    axes[0].pcolormesh([0, 1, 2, 3], [row, row + 0.8], colours[None].numpy())
    axes[0].text(-0.1, row + 0.4, label, ha="right", va="center")
axes[0].set(title="channels", xlim=(0, 3), ylim=(1.8, 0), yticks=[])
axes[0].set_xticks([0.5, 1.5, 2.5], ["red", "blue", "white"])
levels = torch.linspace(0, 255, 60, dtype=torch.float64)
axes[1].plot(levels, (levels / 255 - 0.45) / 0.22, "-", color=OKABE_ITO[0], label="as trained")
axes[1].plot(levels, levels / 255, "--", color=OKABE_ITO[5], label="not normalised")
axes[1].set(title="normalisation", xlabel="pixel", ylabel="what the model reads")
axes[1].legend(frameon=False, fontsize=8)
angles = torch.linspace(0, 6.2832, 13, dtype=torch.float64)[:-1]
for number, (x, y) in enumerate(zip(angles.cos(), angles.sin(), strict=True)):
    drawn = number in (1, 4, 6, 11)
    axes[2].plot(
        [0, x], [0, y], "-" if drawn else ":", color=OKABE_ITO[0] if drawn else "#aaaaaa"
    )
    axes[2].plot(
        x, y, "o", color=OKABE_ITO[0] if drawn else "white", markeredgecolor="#888888"
    )
axes[2].plot(0, 0, "s", color="black", markersize=8)
axes[2].spines[:].set_visible(False)
_ = axes[2].set(title="4 of 12 neighbours, as trained", xticks=[], yticks=[], aspect="equal")

# %% [markdown]
# Left, the model sees blue where there was red. In the middle, without normalisation all pixels lie in a fifth of the
# range that it knows. Right, a sum over twelve neighbours is three times one over four; a mean is not. Ask of every
# pipeline: print what the model reads, in training and in use, and compare.

# %% [markdown]
# ## What transfers
#
# **Measured here:** formats and masks are exact on any tokenizer. Exact-match counts come from pocket-base (1.0 million
# parameters, 60 steps, one seed, 32 questions), where embeddings and head are a quarter of all parameters and the role
# tokens are untrained; the missing prompt also from SmolLM2-135M-Instruct.

# %% [markdown]
# **Does not transfer:** how much a missing space costs. A large model has seen words after line breaks and brackets;
# what stays is the rule to keep the seam as trained. With LoRA the embedding is frozen, and untrained tokens stay
# untrained. Masking or not, and how much packing saves, depends on your lengths: measure both on your data.

# %% [markdown]
# ## Numbers to take away
#
# | what | number |
# | --- | --- |
# | published templates with generation markers | 3 of 41 (TRL 1.16) |
# | exact answers without the space that the model knows, against with it | under two thirds as many |
# | answers of SmolLM2 that begin with the header when the prompt is missing | 20 of 20 |
# | padding in batches of 16 of the course's conversations | 54 % |
# | TRL's default `max_length` | 1,024 tokens |
# | change of a label's loss: packed, concatenated | under 0.001, over 1 nat |

# %%
assert len(published) == 41 and len(published) - len(without) - len(replaced) == 3
assert round(100 * (1 - real / places)) == 54
assert table["trl"].startswith("1.16") and exactly < 0.001 and moved.max() > 1

# %% [markdown]
# ## Recap
#
# - A template makes one sequence of tokens out of a conversation; look at it with `token_view` or `--show-mask`.
# - What the assistant writes is in the loss, and with it the token that ends the turn.
# - Reasoning is dropped from the history: check which turns are left in the loss.
# - Prompts for inference end with the generation prompt, and match training to the last space.
# - Give padding a token of its own; pack only with a block-diagonal mask.

# %%
ledger.show()

# %% [markdown]
# ## Recall
#
# 1. Why may text from a template get a second BOS, and how do you prevent it?
# 2. Which tokens of an assistant's turn are in the loss, and which is not?
# 3. Why is the first of two answers with reasoning left out of the loss in Qwen3's format?
# 4. What does a model write when the generation prompt is missing?
# 5. How can a packed batch have the right mean loss and still leak?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: template and tokenizer each write one; tokenise with `add_special_tokens=False`.
# - 2: its text and the token that ends it; not the role header that opens the turn.
# - 3: the template drops its reasoning once another question follows, so the text is not what the model would write.
# - 4: the role header, if it was trained to write it; otherwise whatever follows a question in its data.
# - 5: some labels gain from another conversation's text and others lose; look at single labels.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Hugging Face, [chat templates](https://huggingface.co/docs/transformers/chat_templating), and
#   [the 4 things Qwen3's template teaches](https://huggingface.co/blog/qwen-3-chat-template-deep-dive).
# - TRL, [SFTTrainer](https://huggingface.co/docs/trl/sft_trainer), and
#   [issue 976](https://github.com/huggingface/trl/issues/976): the model never stops.
# - Touvron et al., [Llama 2](https://arxiv.org/abs/2307.09288), 2023; Shi et al.,
#   [Instruction Tuning With Loss Over Instructions](https://arxiv.org/abs/2405.14394), 2024.
# - Krell et al., [Efficient Sequence Packing without Cross-contamination](https://arxiv.org/abs/2107.02027), 2021.
#
# ## Next
#
# [06_optimizer_and_schedule](06_optimizer_and_schedule.ipynb): the tokens are right; how fast should the model learn
# from them?
