# %% [markdown]
# # 00 · Start here: a fine-tune in 15 seconds
#
# You fine-tune a small language model and compare its answers before and after. Then you learn the terms that every
# later notebook uses (the model's parts, loss, gradient, optimizer step) and choose a route.
#
# - **Prerequisites:** Python and basic PyTorch: tensors, a module, `backward()`.
# - **Hardware:** any processor; two cores and 4 GiB of free memory are comfortable. No GPU, no download.
# - **Time:** about 35 minutes; its cells run in about 30 seconds on two cores.

# %% [markdown]
# ## You will be able to
#
# - **fine-tune** a base model on conversations, and measure what changed,
# - **decide** when to fine-tune, and when to prompt or retrieve instead,
# - **name** the parts of a Llama, and count their parameters,
# - **compute** the loss of next-token prediction by hand,
# - **choose** a route through the course, and bring your own model and data.

# %% [markdown]
# ## How a notebook works
#
# - **Ctrl-Enter** runs a cell, **Shift-Enter** runs it and goes on to the next; run them from top to bottom.
# - **Predict** where you are asked to: guess first, then run the cell.
# - From notebook 01 on, one cell in each **fails on purpose**, and the next one fixes it.
# - An **exercise** has a `...` to replace and a checker in its last line. Hint and solution are folded below it.
# - *Kernel > Restart Kernel and Run All Cells* starts again with new variables; what you typed stays.
#
# The first cell installs `ftkit` on Colab, Kaggle and Lightning, and does nothing elsewhere; the second imports.
# `ftkit` is the library that you can use in your own projects, `ftcourse` holds pictures and the checkers of the
# exercises.

# %%
import sys

if "google.colab" in sys.modules:
    ...  # installs ftkit

# %%
import torch
import torch.nn.functional as F
from ftcourse.almanac import faq_prompt
from ftcourse.claim_cards import all_claims
from ftcourse.contents import (
    notebook_table,
    plot_contents,
    read_notebooks,
    route_table,
    solved_table,
)
from ftcourse.exercises.start_here import check_one_step
from ftcourse.machine import FINE, check_machine
from ftcourse.model_picture import count_groups, count_parts, plot_model, plot_shares
from ftcourse.plots import OKABE_ITO, new_axes, use_course_style
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from ftkit import load_base, load_chat
from ftkit.batching import global_batch, pad
from ftkit.conversations import encode, find_chat
from ftkit.evaluate import exact_match, generate_answers, stop_rate
from ftkit.loss import IGNORE_INDEX
from ftkit.models import data_dir, resolve_model

use_course_style()
logging.disable_progress_bar()
LR, STEPS, BATCH = 1e-3, 80, 16  # learning rate, optimizer steps, conversations per step
SEED = 0  # for the order of the conversations

# %% [markdown]
# ## 1 · Is this machine enough?
#
# Run this cell to check your own machine; the stored table describes the one that built the notebook. *Too little*
# slows you down; only *missing* stops you.

# %% tags=["nbval-ignore-output"]
findings = check_machine()
findings

# %% tags=["hide-input"]
assert findings.complete, "something is missing: the table above says what to do"
assert all(finding.remedy for finding in findings if finding.severity != FINE)

# %% [markdown]
# ## 2 · A fine-tune in 15 seconds
#
# **pocket-base** is a Llama with a million parameters, pretrained on pages about a few hundred facts: capitals,
# opposites, sums. It is a **base model**: it continues text. The prompt here is in a format of its pretraining pages,
# `Q: … A:`.
#
# **Predict:** what does the model write after the answer?

# %%
model, tokenizer = load_base(data_dir() / "pocket-base")
chats = load_chat(data_dir() / "chat")
train, test = chats["train"], chats["test"]
questions = [row["messages"][0]["content"] for row in test]
expected = [row["messages"][1]["content"] for row in test]

# %% tags=["nbval-ignore-output"]
pages = generate_answers(model, tokenizer, [faq_prompt(question) for question in questions])
for question, page in zip(questions[:3], pages, strict=False):
    print(f"Q: {question}\nA: {page.text} …\n{'-' * 60}")

# %% [markdown]
# The three answers are right, but the model does not stop: on such a page, another question follows. A chat model
# has to answer and then end its turn.
#
# Now ask in the **chat template**, which marks the turns of a conversation with special tokens.

# %% tags=["nbval-ignore-output"]
prompts = [[{"role": "user", "content": question}] for question in questions]
print(tokenizer.apply_chat_template(prompts[0], tokenize=False, add_generation_prompt=True))
before = generate_answers(model, tokenizer, prompts)
for question, answer in zip(questions[:3], before, strict=False):
    print(f"{question}\n    {answer.text[:70]!r} …")

# %% [markdown]
# The special tokens did not occur in pretraining, so the model cannot tell that an answer should follow.
#
# Now train. The questions come from the **held-out** split. First make sure that neither they nor their answers occur
# in the training conversations, or the test would measure memory:

# %%
read_in_training = {message["content"] for row in train for message in row["messages"]}
overlap = read_in_training & {*questions, *expected}
print(
    f"{len(train)} conversations to train on, {len(test)} held-out questions, "
    f"{len(overlap)} texts in both"
)
assert not overlap

# %% [markdown]
# `encode` turns a conversation into token ids and labels, `global_batch` picks the 16 conversations of a step, and
# `pad` brings them to one length. Then the usual PyTorch loop: loss, gradient, one step of AdamW; 80 times.
# Sections 5 and 6 explain what each of these does.

# %% tags=["nbval-ignore-output"]
examples = [encode(tokenizer, row["messages"], tokenizer.chat_template) for row in train]
optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
for step in range(STEPS):
    batch = pad(global_batch(examples, step, BATCH, SEED), tokenizer.pad_token_id)
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 0 or step == STEPS - 1:
        print(f"step {step:2}   loss {loss.item():.2f}")

# %% [markdown]
# Ask all held-out questions again, and count: **stop rate** is the share of answers that the model ends itself,
# **exact match** the share that equals the expected answer. **Predict** both.

# %% tags=["nbval-ignore-output"]
after = generate_answers(model, tokenizer, prompts)
for question, answer, right in zip(questions[:3], after, expected, strict=False):
    print(f"{question}\n    {answer.text!r}, expected {right!r}")
print(f"stop rate {stop_rate(after):.0%}, exact match {exact_match(after, expected):.0%}")

# %% [markdown]
# Compare with the base model in both formats. Floating-point sums differ a little between processors and training
# amplifies that, so the table gives ranges that hold everywhere. In the `Q: … A:` format the model never stops, so
# we cut its text at the end of the first line.


# %%
def within(value: float, low: float, high: float) -> str:
    """The range as text; the value has to lie in it."""
    assert low <= value <= high, f"{value:.2f} is not from {low} to {high}"
    return f"{low:.0%} to {high:.0%}"


lines = [page.text.partition("\n")[0].strip() for page in pages]
cut = sum(line == right for line, right in zip(lines, expected, strict=True)) / len(expected)
print(f"{len(expected)} held-out questions       {'stop rate':15}exact match")
print(f"base model, Q: … A:          {'cut by us':15}{within(cut, 0.95, 1)}")
print(f"base model, chat template    {within(stop_rate(before), 0, 0.1):15}", end="")
print(within(exact_match(before, expected), 0, 0.05))
print(f"fine-tuned, chat template    {within(stop_rate(after), 0.95, 1):15}", end="")
print(within(exact_match(after, expected), 0.35, 0.7))

# %% [markdown]
# Training taught the model to answer and **stop**, also on questions that it was not trained on. Recalling facts
# carried over only in part: the base model gives nearly all of these answers in its own format, the fine-tuned one
# about half in the new format. Here, a prompt in the known format, cut at the end of the line, is better than the
# fine-tune and needs no training. When is it worth training?

# %% [markdown]
# ## 3 · Fine-tune, prompt, or retrieve?
#
# Start with an evaluation set and a prompt: you need them as the baseline of a fine-tune anyway [1]. Then decide by
# what is missing. To **retrieve** is to search your documents and put what was found into the prompt.
#
# | what is missing | do | because |
# | --- | --- | --- |
# | facts: yours, new, or changing | retrieve | it does better [2]; training on new facts raises hallucination [3] |
# | a format, style or tone, every time | fine-tune | the model has the knowledge; examples teach the form [4] |
# | a task easier to show than to describe | fine-tune | training takes more examples than a prompt holds [5] |
# | short prompts, low latency, a smaller model | fine-tune | instructions move from every prompt into weights [5] |
# | facts and form | both | a fine-tuned model can read retrieved text [6] |
# | anything that a better prompt fixes | prompt | it changes in minutes, and survives a change of model |
#
# From the literature, not measured here; the numbers refer to *Sources*. The last row is our own judgement.

# %% [markdown]
# ## 4 · The model in one picture
#
# pocket-base and Llama 3 8B have the same architecture. Each token (a word or a part of one) becomes a vector. Each
# **block** adds to it what **attention** reads from the tokens so far (`q`, `k`, `v`, `o`) and what its **MLP**
# computes (`gate`, `up`, `down`); **RMSNorm** rescales the input of both. The **LM head** turns the last vector
# into a score for each token of the vocabulary.
#
# Llama 3 8B is built from its published sizes [7] on the `meta` device: shapes without memory.

# %%
config = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14_336,
    tie_word_embeddings=False,
)
with torch.device("meta"):
    llama = LlamaForCausalLM(config)
parts = {"pocket-base": count_parts(model), "Llama 3 8B": count_parts(llama)}
for name, counts in parts.items():
    print(f"{name}: {sum(counts.values()):,} parameters")
assert sum(parts["Llama 3 8B"].values()) == 8_030_261_248

# %% [markdown]
# **Predict** before you look: which of the two has the larger share of its parameters in the embedding and the LM
# head?

# %% tags=["hide-input"]
blocks = {
    "pocket-base": model.config.num_hidden_layers,
    "Llama 3 8B": config.num_hidden_layers,
}
ax = plot_model(parts, blocks)

# %% [markdown]
# The dashed frame is one block: pocket-base has 4, Llama 3 8B has 32, and the numbers count all of them, with their
# share of the model. Dotted boxes have no parameters. A plus adds the output of attention or MLP to its input, the
# **residual connection**. Left out: rotary position embeddings and the causal mask of attention, which have no
# parameters.
#
# The same counts as shares:

# %% tags=["hide-input"]
ax = plot_shares(parts)

# %%
for name, counts in parts.items():
    groups = count_groups(counts)
    words = (groups["embedding"] + groups["LM head"]) / sum(counts.values())
    print(f"{name}: embedding and head {words:.0%}, attention, MLP and norms {1 - words:.0%}")
    assert round(words, 2) == (0.26 if name == "pocket-base" else 0.13)

# %% [markdown]
# A quarter in pocket-base, an eighth in Llama 3 8B. So whatever touches the embedding (adding tokens, training it
# fully, freezing it) weighs more here than in a model of 8 billion parameters. Each later notebook says under *What
# transfers* where that matters.

# %% [markdown]
# ## 5 · The loss: predict the next token
#
# Fine-tuning and pretraining minimise the same loss. Here it is in five steps.
#
# **One: tokens.** Text becomes a list of ids; each id selects a row of the embedding. `Ġ` stands for the space
# before a word, and `<s>` begins every text.

# %%
base, tokenizer = load_base(data_dir() / "pocket-base")  # as it was before training
text = "The day after Monday is Tuesday."
ids = tokenizer.encode(text)
tokens = tokenizer.convert_ids_to_tokens(ids)
print(list(zip(tokens, ids, strict=True)))

# %% [markdown]
# **Two: logits.** For each position the model gives a score for every token of the vocabulary, the **logits**.
# `softmax` turns them into the probabilities of the next token.

# %%
with torch.no_grad():
    logits = base(torch.tensor([ids])).logits[0]  # (T, V): positions, vocabulary
print(f"{logits.shape[0]} positions × {logits.shape[1]:,} tokens of the vocabulary")
after_is = logits[tokens.index("Ġis")].softmax(-1)
for probability, i in zip(*after_is.topk(3), strict=True):
    print(f"after 'is': {tokenizer.convert_ids_to_tokens(i.item())!r:10} {probability:.1%}")

# %% [markdown]
# **Three: shift by one.** The logits at a position predict the **next** token, which attention cannot see: it reads
# only the tokens up to that position. So each token is the target of the position before it. Hugging Face models
# shift by themselves: pass `labels` equal to `input_ids`.

# %%
predictions, targets = logits[:-1], torch.tensor(ids[1:])
for position, target in enumerate(tokens[1:]):
    print(f"{' '.join(tokens[: position + 1]):41} → {target}")

# %% [markdown]
# **Four: cross-entropy.** The loss of a token is minus the natural logarithm of the probability that the model gave
# it; its unit is the **nat**. The loss of a text is the mean over its tokens. **Predict:** which tokens of our
# sentence have a high loss, and which nearly none?

# %%
log_probabilities = predictions.log_softmax(-1)
losses = -log_probabilities[torch.arange(len(targets)), targets]  # one per target
by_hand = losses.mean()
by_torch = F.cross_entropy(predictions, targets)
by_model = base(torch.tensor([ids]), labels=torch.tensor([ids])).loss
print(f"by hand {by_hand:.3f}, torch {by_torch:.3f}, model {by_model:.3f} nats per token")
torch.testing.assert_close(by_hand, by_torch)
torch.testing.assert_close(by_hand, by_model.detach())

# %% tags=["hide-input"]
ax = new_axes(7.2, 2.6)[1]
heights = [round(loss, 2) for loss in losses.tolist()]
ax.bar(range(len(heights)), heights, color=OKABE_ITO[0])
for place, height in enumerate(heights):
    ax.text(place, height, f"{height:.2f}", ha="center", va="bottom", fontsize=9)
ax.set(xticks=range(len(heights)), ylabel="loss (nats)", ylim=(0, 1.15 * max(heights)))
ax.set_xticklabels(tokens[1:])
assert losses[tokens.index("ĠMonday") - 1] > 1.5 > 0.2 > losses[tokens.index("ĠTuesday") - 1]
assert abs(losses[tokens.index("ĠMonday") - 1] - torch.tensor(7.0).log()) < 0.3

# %% [markdown]
# A text can begin in many ways, so `The` and `day` cost most. Any day may come after them: `Monday` costs about as
# much as a uniform guess among seven, ln 7 = 1.95 nats. `Tuesday` follows from `Monday`, and costs almost nothing.
# So the loss has an **irreducible** part, which no training removes.

# %% [markdown]
# **Five: the loss mask.** A chat fine-tune should learn to answer, not to ask. So the **labels** of all tokens
# outside the answer are set to −100, which the loss ignores. The loss is the mean over the unmasked labels.

# %%
example = encode(tokenizer, test[0]["messages"], tokenizer.chat_template)
for i, label in zip(example["input_ids"], example["labels"], strict=True):
    print(f"{tokenizer.convert_ids_to_tokens(i):16} label {label}")
batch = {name: torch.tensor([values]) for name, values in example.items()}
with torch.no_grad():
    output = base(**batch)
targets = batch["labels"][0, 1:]
counted = F.cross_entropy(output.logits[0, :-1], targets, reduction="none")[
    targets != IGNORE_INDEX
]
torch.testing.assert_close(counted.mean(), output.loss)

# %% [markdown]
# The answer and its `<|end|>` are in the loss. `<|end|>` has to be, because generating it is how the model stops;
# that is what section 2 taught. Notebook 05 checks it for chat templates in use.

# %% [markdown]
# ## 6 · Gradient and optimizer step
#
# The **gradient** holds, for each weight, the derivative of the loss: how much the loss changes per unit of change
# of that weight. Measure it for one weight, by a finite difference over ±0.01, and compare with `backward()`, which
# computes it for all weights at once.

# %%
weight = base.model.layers[3].mlp.down_proj.weight
loss = base(**batch).loss
loss.backward()
row, column = divmod(weight.grad.abs().argmax().item(), weight.shape[1])
ends = []
for shift in (0.01, -0.02):  # to 0.01 above its value, then to 0.01 below
    with torch.no_grad():
        weight[row, column] += shift
        ends.append(base(**batch).loss)
slope = (ends[0] - ends[1]) / 0.02
print(f"measured {slope:.2f}, backward() {weight.grad[row, column]:.2f} nats per unit")
torch.testing.assert_close(slope, weight.grad[row, column], rtol=0.01, atol=0)

# %% [markdown]
# An **optimizer step** moves the weights against the gradient. Gradient descent subtracts `lr * gradient`; `lr` is
# the **learning rate**. **Predict:** after one step with 0.1, is this loss 0, smaller, or the same?

# %%
lr = 0.1
weight = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
loss = (weight**2).sum()
loss.backward()
with torch.no_grad():
    moved = weight - lr * weight.grad
after_step = (moved**2).sum()
print(f"loss {loss.item():.2f} before the step, {after_step.item():.2f} after it")
assert 0 < after_step < loss

# %% [markdown]
# Smaller, and not 0, because the gradient is the slope at one point only. A larger step is not always better: with
# `lr = 1.0` each weight jumps to its mirror image and the loss stays 14. Try it (the assertion then fails), and put
# 0.1 back.
#
# **AdamW**, the usual optimizer, keeps two running means per weight: of its gradient (*momentum*) and of the squared
# gradient. It steps by `lr` times the first over the square root of the second.

# %%
gradient = torch.tensor([2.0, -4.0, 60.0])
for name in ("SGD", "AdamW"):
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = getattr(torch.optim, name)([weight], lr=0.1)
    weight.grad = gradient.clone()
    optimizer.step()
    print(f"{name:6} moves by {', '.join(f'{w:.2f}' for w in weight.tolist())}")
assert torch.allclose(weight.abs(), torch.full((3,), 0.1))

# %% [markdown]
# SGD, plain gradient descent, moves in proportion to the gradient. AdamW's first step moves every weight by about
# `lr`, however large its gradient. So `lr` is close to the size of a step, and has to be small next to the weights.
# The two running means, its **optimizer states**, take twice the memory of the weights. (Its weight decay is in
# notebook 06.)

# %% [markdown]
# ### Exercise · one step
#
# Difficulty ●○○, 1 minute. Return the weight after one step of plain gradient descent. A right answer turns the line
# below the cell green. Try a wrong one too: the checker says what is wrong with it.


# %% tags=["exercise"]
def one_step(weight: torch.Tensor, gradient: torch.Tensor, lr: float) -> torch.Tensor:
    """Return a new tensor: the weight after one step of gradient descent."""
    ### BEGIN SOLUTION
    return weight - lr * gradient
    ### END SOLUTION


check_one_step(one_step)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# The cell above that computes `moved` takes this step, with `weight.grad` for the gradient.
#
# </details>

# %% [markdown]
# ## 7 · The map
#
# Arrows lead from a notebook to those that build on it. A filled mark is ready, a dashed one is planned, and a
# square is optional.

# %% tags=["hide-input"]
walk = read_notebooks()
ax = plot_contents(walk)

# %% [markdown]
# Three routes start from here. Times include the exercises.

# %%
route_table()

# %%
notebook_table()

# %% [markdown]
# How many exercises you have solved, as their checkers noted it in a file on this machine, which is sent nowhere; the
# stored table counts none. In a terminal, `ftkit progress` names each of them, and exports your progress.

# %%
solved_table()

# %% [markdown]
# No notebook needs a GPU. Each tests claims of papers and documentation. Open a verdict to see its claims; the
# [claims ledger](../docs/claims.md) has all of them as tables.

# %%
all_claims()

# %% [markdown]
# ## 8 · Your own model and data
#
# Set two environment variables before JupyterLab starts, and later notebooks load your model and conversations
# wherever they do not need pocket-base:
#
# ```bash
# FTKIT_MODEL=$PWD/path/to/model FTKIT_DATA=$PWD/chats make lab
# ```
#
# - `FTKIT_MODEL`: a folder with `config.json` and safetensors, or a Hugging Face name, which is downloaded.
# - `FTKIT_DATA`: JSON lines, one conversation each:
#   `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`. Notebooks 08 and 16 need
#   a folder with `train.jsonl`, `test.jsonl` and `heldout_domains.jsonl`.
#
# The text describes pocket-base: with another model, expect other numbers, and some assertions to fail.

# %%
print(f"model: {resolve_model().rpartition('/')[2]}")
for split, path in find_chat().items():
    with path.open(encoding="utf-8") as conversations:
        print(f"data, {split}: {sum(1 for _ in conversations):,} conversations")

# %% [markdown]
# Or without notebooks, in a terminal:
#
# ```bash
# ftkit chat path/to/model chats.jsonl       # check tokenizer, chat template and data
# ftkit finetune --model path/to/model --data chats.jsonl --output runs/first
# ftkit chat-with runs/first/model           # talk to the result
# ```

# %% [markdown]
# ## 9 · If you are stuck
#
# - **An unexpected error:** *Kernel > Restart Kernel and Run All Cells*; usually cells were run out of order.
# - **An exercise:** open the hint, then the solution.
# - **A cell that does not end:** *Kernel > Interrupt Kernel*, then look at memory and cores in section 1.
# - **A picture is missing:** run its cell. JupyterLab hides stored pictures in a notebook it does not trust.
# - **Your edits got in the way:** `git checkout notebooks` discards them all, your solutions included.
# - **Is the installation at fault?** `make test` runs every notebook and test; discard your edits first.

# %% [markdown]
# ## Sources
#
# 1. OpenAI, [Model optimization](https://developers.openai.com/api/docs/guides/model-optimization): evaluations first,
#    then prompts, then fine-tuning.
# 2. Ovadia et al. 2023, [Fine-Tuning or Retrieval?](https://arxiv.org/abs/2312.05934), on unsupervised fine-tuning.
# 3. Gekhman et al. 2024, [Does Fine-Tuning LLMs on New Knowledge Encourage
#    Hallucinations?](https://arxiv.org/abs/2405.05904)
# 4. Zhou et al. 2023, [LIMA: Less Is More for Alignment](https://arxiv.org/abs/2305.11206): 1,000 examples, 65 billion
#    parameters; its conclusion is contested for reasoning.
# 5. Microsoft, [Customize a model with
#    fine-tuning](https://learn.microsoft.com/en-us/azure/ai-services/openai/how-to/fine-tuning).
# 6. Microsoft, [Compare and combine optimization
#    strategies](https://learn.microsoft.com/en-us/training/modules/optimize-generative-ai-model-performance/5-compare-combine-strategies).
# 7. Grattafiori et al. 2024, [The Llama 3 Herd of Models](https://arxiv.org/abs/2407.21783): the sizes in section 4.
#
# ## Next
#
# [01_gradient_masks](01_gradient_masks.ipynb), if you take the course from the start, or
# [05_chat_templates](05_chat_templates.ipynb), if you have two hours.
