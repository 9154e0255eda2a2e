# %% [markdown]
# # 05 · Chat templates: what the model really reads
#
# A model reads neither roles nor turns, but one row of tokens. You look at that row before you train, and mend
# the faults that most days are lost to.
#
# - **Prerequisites:** Python, and what a token is; you have seen a training loop.
# - **Hardware:** any processor; one core is enough.
# - **Time:** about 40 minutes with the exercises; its cells run in under one minute on two cores.

# %% [markdown]
# ## You will be able to
#
# - **read** a conversation as tokens, and say which of them are learnt,
# - **mark** a template so that the model learns its answers and their end,
# - **explain** why a model is asked in the format that it was trained in,
# - **choose** a pad token, and prove that padding changes nothing,
# - **check** a tokenizer, a template and data of your own with one command.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import copy
import json
import subprocess

import torch
import transformers
from ftcourse.claims import Claim, show_claims
from ftcourse.exercises.chat_templates import (
    check_marked_template,
    check_never_stop,
    check_pad_choice,
)
from ftcourse.explorers.chat_template import ChatExplorer
from ftcourse.plots import OKABE_ITO, new_axes, use_course_style
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as TrlCollator

from ftkit import chat, load_base, load_chat
from ftkit.batching import global_batch, pad
from ftkit.conversations import encode
from ftkit.evaluate import exact_match, generate_answers, stop_rate
from ftkit.loss import IGNORE_INDEX
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
claims = []  # what this notebook tested, each with its verdict; the recap prints them

# %% [markdown]
# ## 1 · A conversation becomes one string
#
# A conversation is a list of messages. The tokenizer's **chat template**, a small Jinja program, writes it as
# one string: the text of each message, and around it marks that say whose turn it is.

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
# Notice: roles are gone. All that is left of them are the marks `<|user|>` and `<|assistant|>`, and `<|end|>`
# after each turn. Each mark is one token:

# %%
view = chat.token_view(tokenizer, conversation)
view

# %% [markdown]
# Notice: the role beside the boxes is for you; the model sees the boxes only. What it learns to say is
# underlined.
#
# **Predict first.** The string begins with `<s>`, the beginning-of-sequence token (BOS). Tokenise that string
# with `tokenizer(text)`: how many `<s>` stand at its head?

# %%
my_guess = 1

# %%
ids = tokenizer.apply_chat_template(conversation, return_dict=False)
again = tokenizer(text)["input_ids"]
doubled = again.count(tokenizer.bos_token_id)
print("apply_chat_template:", tokenizer.convert_ids_to_tokens(ids[:3]))
print("tokenizer(text):    ", tokenizer.convert_ids_to_tokens(again[:3]))
print(
    f"guessed {my_guess}, counted {doubled}: {'right' if my_guess == doubled else 'another number'}"
)
assert again == [tokenizer.bos_token_id, *ids]

# %% [markdown]
# Notice: the template writes BOS, and the tokenizer adds its own. `add_special_tokens=False` turns that off. Is it
# enough, on every conversation of the course?

# %%
chats = load_chat()
rows = [row["messages"] for row in chats["train"]]
texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
wanted = [tokenizer.apply_chat_template(row, return_dict=False) for row in rows]
same = {}
for adds in (True, False):
    same[adds] = sum(
        tokenizer(t, add_special_tokens=adds)["input_ids"] == w
        for t, w in zip(texts, wanted, strict=True)
    )
    print(f"add_special_tokens={adds!s:5}: {same[adds]} of {len(rows)} have the same tokens")
assert same == {True: 0, False: len(rows)}

# %%
held = same[False] == len(rows)
condition = "" if same[True] == len(rows) else "it is tokenised with add_special_tokens=False"
claim = "a conversation's text, tokenised, gives the tokens of apply_chat_template"
measured = (
    f"{same[True]} of {len(rows)} by default, {same[False]} with add_special_tokens=False"
)
claims.append(
    Claim(claim, "a usual shortcut", held, measured, only_if=condition if held else "")
)

# %% [markdown]
# ## 2 · Which tokens are learnt
#
# A **label** is the token to be learnt at its place, or -100 for none. Answers are learnt, questions are not. The
# template tells them apart: it writes answers between `{% generation %}` and `{% endgeneration %}`.

# %%
encoded = tokenizer.apply_chat_template(
    conversation, return_dict=True, return_assistant_tokens_mask=True
)
pairs = list(zip(encoded["input_ids"], encoded["assistant_masks"], strict=True))
labels = [token if kept else IGNORE_INDEX for token, kept in pairs]
learnt = [tokenizer.decode([label]) for label in labels if label != IGNORE_INDEX]
print(f"{len(learnt)} of {len(labels)} tokens are learnt:", learnt)
assert learnt.count("<|end|>") == 2
assert [token.in_loss for token in view.tokens] == [label != IGNORE_INDEX for label in labels]

# %% [markdown]
# Notice: two answers, and two `<|end|>`. Only that label teaches the model to stop. `ftkit.conversations.encode`
# does the same in one call.
#
# Do published templates have these markers? TRL ships copies; the course's checks have judged each of them.

# %%
table = json.loads((data_dir() / "chat_templates.json").read_text(encoding="utf-8"))
published = {
    name: set(row["findings"])
    for name, row in table["templates"].items()
    if not name.endswith("_training.jinja")
}
no_version = [name for name, found in published.items() if "no-generation-markers" in found]
replaced = [name for name, found in published.items() if "markers-from-trl" in found]
marked = len(published) - len(no_version) - len(replaced)
print(f"of {len(published)} published templates, {marked} have the markers,")
print(
    f"for {len(replaced)} more TRL has a training version, for {len(no_version)} it has none"
)

# %%
held = marked == len(published)
claim = "a published chat template marks what the assistant writes"
measured = (
    f"{marked} of {len(published)} do; TRL has a training version of {len(replaced)} others"
)
claims.append(
    Claim(claim, f"a usual assumption; templates of TRL {table['trl']}", held, measured)
)

# %% [markdown]
# Where a template has no markers, `apply_chat_template` cannot tell answers from questions. Here is pocket-base's
# template without its markers:

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
unmarked = copy.deepcopy(tokenizer)
unmarked.chat_template = UNMARKED
encoded = unmarked.apply_chat_template(
    conversation, return_dict=True, return_assistant_tokens_mask=True
)
print(f"{sum(encoded['assistant_masks'])} of {len(encoded['input_ids'])} tokens are marked")
assert "no-generation-markers" in chat.finding_codes(chat.check_chat_template(unmarked))

# %% [markdown]
# The answers can still be found, by rendering: write the conversation up to an answer with the generation prompt,
# write it with the answer, and the tokens between the two are the answer's. `ftkit.conversations.encode` does so, and
# leaves a turn out of the loss where the template rewrites it once others follow.

# %%
derived = encode(unmarked, conversation, UNMARKED)
print(
    "labels equal to those of the markers:",
    sum(a == b for a, b in zip(derived["labels"], labels, strict=True)),
)
print("tokens:", len(labels))
assert derived["labels"] == labels

# %% [markdown]
# Other trainers need the markers, so it is worth knowing how to write them.
#
# ## Exercise 1 · Mark what is learnt
#
# Difficulty ●●○, 7 minutes. Return `UNMARKED` with `{%- generation %}` and `{%- endgeneration %}` in the
# right places: copy the text, or use `UNMARKED.replace`. Expected: 12 tokens of the checker's conversation
# are learnt.


# %% tags=["exercise"]
def marked_template() -> str:
    """UNMARKED, with markers around what the model should learn to say."""
    ### BEGIN SOLUTION
    answer = "{{- m.content + '<|end|>' }}\n    {%- else"
    learnt = "{%- generation %}{{- m.content + '<|end|>' }}{%- endgeneration %}\n    {%- else"
    return UNMARKED.replace(answer, learnt)
    ### END SOLUTION


check_marked_template(marked_template)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# The prompt ends with `<|assistant|>`: the model never has to say it. It has to say everything after that, up to
# and with `<|end|>`.
#
# </details>

# %% [markdown]
# ## 3 · The same words in another format
#
# Llama 2 writes conversations otherwise: `[INST]` and `[/INST]` around what is asked, the system text inside the
# first question, and the end-of-sequence token (EOS, `</s>`) after each answer. Here is that format, with
# markers.

# %%
LLAMA_2 = r"""
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
    {%- set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}
{%- endif %}
{%- for m in messages if m.role != 'system' %}
    {%- if m.role == 'user' %}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}
    {%- else %}
        {%- generation %}{{- ' ' + m.content + ' ' + eos_token }}{%- endgeneration %}
    {%- endif %}
{%- endfor %}"""
llama = copy.deepcopy(tokenizer)
llama.chat_template = LLAMA_2
print(llama.apply_chat_template(conversation, tokenize=False))

# %%
chat.token_view(llama, conversation)

# %%
formats = {"course": tokenizer, "Llama 2": llama}
for name, its in formats.items():
    tokens = chat.token_view(its, conversation).tokens
    said = [token for token in tokens if token.in_loss]
    around = sum(token.role == "template" for token in tokens)
    print(
        f"{name:8} {len(tokens)} tokens, {around} of them around the text, {len(said)} learnt,"
    )
    print(f"{'':8} an answer ends with {said[-1].text!r}")
assert [token.text for token in said].count("</s>") == 2

# %% [markdown]
# Notice: `[INST]` is no special token, so here it takes six. The system text has no turn of its own, and an answer
# begins with a space. Both formats say the same to you, and share hardly a token around the text.
#
# **Predict first.** Train one copy of pocket-base in each format, then ask both in both. Which of the four
# answer rightly?


# %%
short = {
    split: [row["messages"] for row in chats[split] if len(row["messages"]) == 2]
    for split in ("train", "test")
}
print(
    {split: len(rows_of_two) for split, rows_of_two in short.items()}, "questions and answers"
)


# %%
def train_in(its):
    """pocket-base after a short training in the format of a tokenizer."""
    trained, _ = load_base()
    rows = [encode(its, messages, its.chat_template) for messages in short["train"]]
    optimizer = torch.optim.AdamW(trained.parameters(), lr=LR)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, STEPS // 6, STEPS)
    for step in range(STEPS):
        batch = global_batch(rows, step, BATCH_SIZE, SEED)
        trained(**pad(batch, tokenizer.pad_token_id)).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return trained


# %%
asked = short["test"][:QUESTIONS]
right_answers = [messages[-1]["content"] for messages in asked]


def ask_in(its, trained):
    """Share of exact answers, share of answers that end, loss of the right answers (nats a label)."""
    questions = [messages[:-1] for messages in asked]
    answers = generate_answers(trained, its, questions, max_new_tokens=20)
    rows = [encode(its, messages, its.chat_template) for messages in asked]
    with torch.no_grad():
        loss = trained(**pad(rows, tokenizer.pad_token_id)).loss.item()
    return exact_match(answers, right_answers), stop_rate(answers), loss


# %% tags=["nbval-ignore-output"]
trained = {name: train_in(its) for name, its in formats.items()}
results = {
    (one, other): ask_in(formats[other], trained[one]) for one in formats for other in formats
}
print("trained in  asked in   exact   ends   loss of the right answer")
for (one, other), (exact, ends, loss) in results.items():
    print(f"{one:11} {other:8} {exact:7.0%} {ends:6.0%}   {loss:.2f} nats a label")

# %%
exact = {pair: result[0] for pair, result in results.items()}
loss = {pair: result[2] for pair, result in results.items()}
better = {
    one: exact[one, one] > 2 * exact[one, other] and loss[one, other] > 2 * loss[one, one]
    for one, other in (("course", "Llama 2"), ("Llama 2", "course"))
}
for name, own in better.items():
    print(f"trained in {name}: asked in the other format, half as many are right at most,")
    print(f"{'':12}and the right answer's loss more than doubles: {own}")
assert all(better.values())

# %%
lost = sum(better.values())
measured = (
    f"{lost} of 2 models lose over half of their right answers in the other's format; 1 seed"
)
claims.append(Claim("any prompt format will do", "a usual hope", lost == 0, measured))

# %%
untrained = chat.untrained_rows(model.get_input_embeddings().weight)
for marks in ("<|user|><|assistant|><|end|>", "[INST][/INST]</s>"):
    its_ids = tokenizer.encode(marks, add_special_tokens=False)
    print(
        f"{marks:30} {int(untrained[its_ids].sum())} of {len(its_ids)} tokens look untrained"
    )

# %% [markdown]
# Notice: the words were the same, and the answers are gone. A model is used in the format that it was trained in,
# to the last space. Judge no format by the diagonal: after so short a training, marks that pocket-base has read
# before have a head start.

# %% [markdown]
# ## 4 · Break it, then fix it: pad = EOS
#
# The rows of a batch must be equally long, so short ones are filled up with a pad token. Llama 2 came without
# one, and the usual advice is a line: `pad_token = eos_token`. Then make labels with the collator of
# transformers, which masks every pad token.

# %% tags=["raises-exception"]
llama.pad_token = llama.eos_token
few = [{"input_ids": encode(llama, m, LLAMA_2)["input_ids"]} for m in short["train"][:8]]
collate = transformers.DataCollatorForLanguageModeling(llama, mlm=False)
batch = collate(few)
findings = chat.check_labels(llama, batch)
assert not chat.has_errors(findings), findings[0]

# %% [markdown]
# This is the model that never stops: `</s>` ends each answer, `</s>` is the pad token, and every pad token was
# masked. Look at the first row:

# %%
row = {name: values[0] for name, values in batch.items()}
chat.token_view(llama, short["train"][0], row)

# %% [markdown]
# Notice: the `</s>` after the answer has no underline, so nothing teaches it. (This collator learns the question,
# too.) No training fails, and no loss looks odd. The fix is a pad token that ends nothing:

# %%
resized, _ = load_base()
chosen = chat.choose_pad_token(llama, resized)
print(chosen)
mended = collate(few)
findings = chat.check_labels(llama, mended)
print(
    f"{len(findings)} findings; embedding rows: {resized.get_input_embeddings().num_embeddings}"
)
ends = (mended["labels"] == llama.eos_token_id).any(dim=1)
print(f"{int(ends.sum())} of {len(ends)} rows learn to stop")
assert not findings and ends.all()

# %% [markdown]
# Notice: a new token needs a row in the embedding; save model **and** tokenizer.
#
# So is the advice always wrong? Give three collators the same rows, with EOS as pad:

# %%
end = llama.eos_token_id
careless = copy.deepcopy(llama)
careless.pad_token = careless.eos_token
with_labels = [encode(llama, m, LLAMA_2) for m in short["train"][:8]]
batches = {
    "transformers": transformers.DataCollatorForLanguageModeling(careless, mlm=False)(few),
    "TRL": TrlCollator(pad_token_id=end)(with_labels),
    "ftkit.batching.pad": pad(with_labels, end),
}
kept = {name: int((b["labels"] == end).any(dim=1).sum()) for name, b in batches.items()}
for name, count in kept.items():
    print(f"{name:18} {count} of {len(few)} rows learn to stop")
assert kept == {"transformers": 0, "TRL": len(few), "ftkit.batching.pad": len(few)}

# %%
spared = [name for name, count in kept.items() if count == len(few)]
condition = (
    "labels are masked by position, not wherever the pad token is"
    if 0 < len(spared) < len(kept)
    else ""
)
measured = (
    f"ends learnt in 8 rows: {', '.join(f'{name} {count}' for name, count in kept.items())}"
)
claim = "setting the pad token to EOS is harmless"
claims.append(Claim(claim, "common advice", bool(spared), measured, only_if=condition))

# %% [markdown]
# Notice: whoever masks by **position** is safe. You seldom know which kind your next trainer is, and a pad token
# of its own is safe with both.

# %% [markdown]
# ## Exercise 2 · Choose a pad token
#
# Difficulty ●○○, 5 minutes. Keep the pad token that is defined, else take the unknown token, else the new
# `<|pad|>`; but pass over a token that ends answers. Expected: `<unk>` for a tokenizer whose pad token is
# `</s>` and whose answers end with `</s>`.


# %% tags=["exercise"]
def pad_choice(pad: str | None, unk: str | None, ends: set[str]) -> str:
    """The token to pad with; `ends` are the tokens that end answers."""
    ### BEGIN SOLUTION
    for token in (pad, unk):
        if token is not None and token not in ends:
            return token
    return "<|pad|>"
    ### END SOLUTION


check_pad_choice(pad_choice)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Go through `pad` and `unk` in this order. Take the first that is neither None nor in `ends`.
#
# </details>

# %% [markdown]
# ## 5 · Padding must not change an answer
#
# A row must give the same logits alone and beside padding. The **attention mask** sees to it: 1 at real tokens, 0
# at pads. **Predict first:** pad on the right or on the left, and give the mask or forget it. Which of the four
# change the logits of real tokens?

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
ALLOWED = 1e-4  # of the largest logit: float32 adds in another order when shapes change
changed = {}
for side in ("right", "left"):
    for mask_given in (True, False):
        changed[side, mask_given] = change(side, mask_given) > ALLOWED
        words = "mask given" if mask_given else "mask forgotten"
        print(f"padded on the {side:5}, {words:14}: changed: {changed[side, mask_given]}")
assert [pair for pair, moved in changed.items() if moved] == [("left", False)]

# %% [markdown]
# Notice: one of the four. Tokens look back only, so pads on the right are never seen. But batches for generation
# are padded on the **left**, and there a forgotten mask ruins answers without any error.
#
# `check_padding` tries this on a model. Plant that fault in one:

# %%
sound = chat.check_padding(model, tokenizer)


def forget_mask(module, args, kwargs):
    return args, kwargs | {"attention_mask": torch.ones_like(kwargs["attention_mask"])}


hook = model.register_forward_pre_hook(forget_mask, with_kwargs=True)
planted = chat.check_padding(model, tokenizer)
hook.remove()
print("sound model:", sound, " mask forgotten:", chat.finding_codes(planted))
assert not sound and chat.finding_codes(planted) == ["padding-changes-logits"]

# %%
safe = [pair for pair, moved in changed.items() if not moved]
condition = "the attention mask is given, or the pads are on the right of a causal model"
claim = "padding does not change the logits of real tokens"
measured = f"unchanged in {len(safe)} of {len(changed)} cases; not where the mask is forgotten, pads left"
held = all(mask_given or side == "right" for side, mask_given in safe) and len(safe) == 3
claims.append(
    Claim(claim, "what batching relies on", held, measured, only_if=condition if held else "")
)

# %% [markdown]
# ## 6 · Answers that are cut off
#
# A trainer cuts rows at `max_length` tokens, silently. What it cuts from a conversation is its end: the answer,
# and `<|end|>`. The same conversations need different lengths in the two formats.

# %%
lengths = {
    name: torch.tensor([len(encode(its, m, its.chat_template)["input_ids"]) for m in rows])
    for name, its in formats.items()
}
limits = range(10, 145)
figure, ax = new_axes(6, 3)
for (name, tokens), colour, style in zip(
    lengths.items(), (OKABE_ITO[0], OKABE_ITO[5]), ("-", "--"), strict=True
):
    whole = [(tokens <= limit).float().mean().item() for limit in limits]
    ax.plot(limits, whole, style, color=colour, label=name)
ax.set(xlabel="max_length (tokens)", ylabel="share of rows kept whole", ylim=(0, 1.05))
_ = ax.legend(frameon=False, loc="lower right")

# %%
for max_length in (24, 128):
    found = chat.check_dataset(tokenizer, chats["train"], max_length)
    print(f"max_length {max_length}: {found or 'no findings'}")
    cut = int((lengths["course"] > max_length).sum())
    assert (f"{cut} of {len(rows)} examples" in found[0].observed) if cut else not found
nothing = torch.full_like(alone, IGNORE_INDEX)
print("loss without any label:", model(input_ids=alone, labels=nothing).loss.item())

# %% [markdown]
# Notice: at 24 nearly half of the rows teach the model to break off. Raise the length, or leave those rows out. A
# row whose answer is gone altogether has no label left; a micro-batch of such rows has a loss of NaN.

# %% [markdown]
# ## Exercise 3 · Rows that never learn to stop
#
# Difficulty ●●○, 7 minutes. Masked ends, answers cut off, rows without labels: find all of them by one look at
# the labels. A row learns to stop if its **last** label that counts is a stop token. Expected: rows 1, 2 and 4 of
# the checker's six.


# %% tags=["exercise"]
def never_stop(labels: torch.Tensor, stop_ids: set[int]) -> list[int]:
    """labels (B, T), -100 where there is none: the rows that do not learn to stop, counted from 0."""
    ### BEGIN SOLUTION
    found = []
    for number, row in enumerate(labels.tolist()):
        count = [label for label in row if label != IGNORE_INDEX]
        if not count or count[-1] not in stop_ids:
            found.append(number)
    return found
    ### END SOLUTION


check_never_stop(never_stop)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Collect a row's labels that are not -100. The list may be empty; its last member may lie before padding.
#
# </details>

# %% [markdown]
# ## 7 · Look before you train
#
# All of it in one place: choose a tokenizer, sound or faulty, and a conversation, and cut the row with the
# slider. Above the tokens stand the **findings**: an error spoils the training, a warning may, a note is worth
# knowing.


# %%
def with_template(its, old, new):
    made = copy.deepcopy(its)
    made.chat_template = its.chat_template.replace(old, new)
    assert made.chat_template != its.chat_template
    return made


endless = with_template(
    tokenizer,
    "message.content + '<|end|>' }}\n        {%- endgeneration %}",
    "message.content }}{%- endgeneration %}{{- '<|end|>' }}",
)
merging = with_template(llama, " [/INST]'", " [/INST] '")
merging.chat_template = merging.chat_template.replace("{{- ' ' + m.content", "{{- m.content")
assert all(
    merging.apply_chat_template(row, tokenize=False)
    == llama.apply_chat_template(row, tokenize=False)
    for row in rows[:50]
)
choices = {
    **formats,
    "Llama 2, pad = EOS": careless,
    "course, without markers": unmarked,
    "course, its end outside": endless,
    "Llama 2, a space moved": merging,
}

# %%
longest_row = max(rows, key=lambda messages: len(str(messages)))
explorer = ChatExplorer(
    choices, {"two capitals": conversation, "a sound": rows[0], "the longest": longest_row}
)
explorer

# %%
for name in choices:  # what the menus do, done by a cell
    explorer.tokenizer_menu.value = name
    print(f"{name:25} {', '.join(chat.finding_codes(explorer.findings)) or 'no findings'}")
explorer.tokenizer_menu.value = "course"
explorer.length_slider.value = 44
print(f"{'course, cut at 44':25} {', '.join(chat.finding_codes(explorer.findings))}")
assert "answer-cut-off" in chat.finding_codes(explorer.findings)
explorer.length_slider.value = explorer.length_slider.max

# %% [markdown]
# Notice: each fault has its own name. `bos-doubled` is section 1's: it waits for whoever tokenises the text again.
# "A space moved" writes the same string, but its prompt ends with the space that should begin the answer.

# %% [markdown]
# On a model of your own you run the command. It reads model, tokenizer, template and data, and exits with 0 only
# where it finds no error. Here on pocket-base and the course's data:

# %%
command = [sys.executable, "-m", "ftkit.chat", "pocket-base", "chat/train.jsonl"]
done = subprocess.run(command, cwd=data_dir(), capture_output=True, text=True, check=False)
print(done.stdout)
assert done.returncode == 0, done.stderr

# %% [markdown]
# Notice the second warning: generation stops at EOS, and this template closes with `<|end|>`. The course's
# `generate_answers` stops at both; plain `model.generate` needs what the remedy says.

# %% [markdown]
# ## 8 · The same discipline outside text
#
# A template is one case of a rule: **what a model sees in use must be what it saw in training.** Images have their
# own: order of the channels, normalisation, and how they are made smaller. Four kinds of image, and the simplest
# classifier: the nearest class mean.

# %%
generator = torch.Generator().manual_seed(SEED)
COLOURS = torch.tensor([[200.0, 40, 40], [40, 40, 200], [230, 230, 230], [230, 230, 230]])
KINDS = ("red", "blue", "white", "striped")


def draw(count, noise):
    """(images (count, 3, 32, 32) as RGB from 0 to 255, their kinds)."""
    kind = torch.arange(count) % 4
    images = COLOURS[kind][:, :, None, None].repeat(1, 1, 32, 32)
    images[kind == 3, :, :, 1::2] = 20  # black stripes, one pixel wide
    return images + noise * torch.randn(images.shape, generator=generator), kind


def prepare(images, order=(0, 1, 2), how="bilinear", normalise=True):
    """What the model reads: (count, 3, 4, 4), about -2 to 2."""
    small = torch.nn.functional.interpolate(
        images[:, order], size=4, mode=how, antialias=how == "bilinear"
    )
    return (small - 128) / 64 if normalise else small / 255


# %%
FAULTS = {
    "as in training": {},
    "BGR for RGB": {"order": (2, 1, 0)},
    "not normalised": {"normalise": False},
    "nearest pixel": {"how": "nearest"},
}
images, kinds = draw(200, noise=20)
means = torch.stack([prepare(images)[kinds == k].mean(dim=0).flatten() for k in range(4)])
unseen, truth = draw(200, noise=20)
right = {}
for name, fault in FAULTS.items():
    guess = torch.cdist(prepare(unseen, **fault).flatten(1), means).argmin(dim=1)
    right[name] = (guess == truth).float().mean().item()
    seen_as = [KINDS[int(guess[truth == k].mode().values)] for k in range(4)]
    print(
        f"{name:15} {right[name]:4.0%} right; red, blue, white, striped -> {', '.join(seen_as)}"
    )
assert right.pop("as in training") == 1 and max(right.values()) < 0.8

# %%
figure, axes = new_axes(9, 1.5, columns=4)
for (name, fault), ax in zip(FAULTS.items(), axes, strict=True):
    seen = prepare(draw(4, noise=0)[0], **fault) * 64 + 128  # read as the model reads it
    pixels = torch.cat(list(seen), dim=2).permute(1, 2, 0).clamp(0, 255).round() / 255
    ax.pcolormesh(pixels.numpy(), edgecolors="face")
    ax.set(title=name, xticks=[2, 6, 10, 14], xticklabels=KINDS, yticks=[], aspect="equal")

# %%
claim = "how an image is prepared is a detail"
measured = (
    f"{', '.join(f'{name} {share:.0%}' for name, share in right.items())} right, from 100%"
)
claims.append(Claim(claim, "a usual assumption", min(right.values()) > 0.95, measured))

# %% [markdown]
# Notice: nothing raised an error. Red became blue; without normalisation all is near grey; and fine stripes, grey
# where pixels are averaged, are white where every eighth pixel is taken. A look at what the model reads shows each.
#
# Graphs: GraphSAGE reads a **fixed number** of neighbours, drawn at random. Is their mean the mean of all?

# %%
features = torch.tensor([1.0, 5, 2, 8, 3, 9, 4, 7, 6, 2, 8, 5, 1, 9])  # one number a node
neighbours = {0: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 1: [3, 13], 2: []}  # of three nodes
SAMPLE = 4  # neighbours drawn, of each node alike


def draw_features(node):
    """(SAMPLE,) features of drawn neighbours; with too few some come twice, with none the node's own."""
    near = torch.tensor(neighbours[node] or [node])
    if len(near) < SAMPLE:
        return features[near[torch.randint(len(near), (SAMPLE,), generator=generator)]]
    return features[near[torch.randperm(len(near), generator=generator)[:SAMPLE]]]


# %%
unbiased = {}
print("neighbours   mean: all  sampled   sum: all  sampled")
for node, near in neighbours.items():
    drawn = torch.stack([draw_features(node) for _ in range(2_000)])  # (2000, SAMPLE)
    means, all_of_them = drawn.mean(dim=1), features[near or [node]]
    print(f"{len(near):10} {all_of_them.mean():11.2f} {means.mean():8.2f}", end=" ")
    print(f"{all_of_them.sum():10.0f} {drawn.sum(dim=1).mean():8.1f}")
    if near:
        error = (means.mean() - all_of_them.mean()).abs()
        unbiased[len(near)] = bool(error <= 4 * means.std() / 2_000**0.5)

# %%
held = all(unbiased.values())
claim = "on average, the mean of a fixed-size sample is the mean of all neighbours"
measured = f"{SAMPLE} drawn from {' and from '.join(map(str, unbiased))}: within 4 standard errors, 2,000 samples each"
claims.append(Claim(claim, "the premise of GraphSAGE, Hamilton et al. 2017", held, measured))
assert held

# %% [markdown]
# Notice: a mean may be trained on four neighbours and used on all twelve. A sum may not: it would be three times
# as large as in training.

# %% [markdown]
# ## Recap
#
# - A template makes one row of tokens out of a conversation; look at it with `token_view`.
# - Answers are learnt, and with them the token that ends them: the markers must hold both.
# - Ask a model in the format that it was trained in, to the last space.
# - Give padding a token of its own, and never forget the attention mask.
# - Run `python -m ftkit.chat MODEL DATA.jsonl` before you train.

# %%
show_claims(claims)

# %% [markdown]
# ## Recall
#
# 1. Why may text from a template get a second BOS, and how do you prevent it?
# 2. Which tokens of an answer's turn are learnt, and which is not?
# 3. When does `pad_token = eos_token` make a model that never stops?
# 4. Where does a forgotten attention mask do harm, and where not?
# 5. What do an image with swapped channels and a conversation in another format have in common?

# %% [markdown]
# <details><summary>Answers</summary>
#
# - 1: template and tokenizer each write one; tokenise with `add_special_tokens=False`.
# - 2: its text and the token that ends it; not the mark that opens the turn.
# - 3: when EOS ends answers, and labels are masked wherever the pad token is.
# - 4: with pads on the left, as in generation; on the right a causal model never sees them.
# - 5: in both, a model sees in use what it never saw in training, and no error says so.
#
# </details>

# %% [markdown]
# ## Sources
#
# - Hugging Face, [chat templates](https://huggingface.co/docs/transformers/chat_templating): special tokens, and
#   the generation prompt.
# - TRL, [SFTTrainer](https://huggingface.co/docs/trl/sft_trainer): training on the assistant's tokens only.
# - Touvron et al., [Llama 2](https://arxiv.org/abs/2307.09288), 2023: the format with `[INST]`.
# - Hamilton et al., [GraphSAGE](https://arxiv.org/abs/1706.02216), 2017: a fixed number of neighbours.
#
# ## Next
#
# [06_optimizer_and_schedule](06_optimizer_and_schedule.ipynb): the rows are right; which weights decay, and how fast
# should they learn?
