"""Train pocket-base from scratch on the almanac's corpus: its tokenizer and a small Llama.

    python -m experiments.pretrain_pocket
    python -m experiments.pretrain_pocket --steps 50 --output here

Writes the model, the data sets and their card into data/. About 15 minutes on one core.

Shapes: B sequences in a batch, T tokens in a sequence.
"""

import argparse
import dataclasses
import hashlib
import json
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ftcourse.almanac import all_facts, corpus, faq_prompt, load_almanac
from ftcourse.datasets import labelled_statements, write_sets
from ftcourse.evaluation import exact_match_by_domain
from ftkit.evaluate import exact_match, generate_answers, stop_rate
from ftkit.models import data_dir
from ftkit.parameters import decay_groups

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# Reserved for the chat template and absent from the corpus: their embeddings stay as they were initialised.
CHAT_TOKENS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|assistant|>' }}
        {%- generation %}
            {{- message.content + '<|end|>' }}
        {%- endgeneration %}
    {%- elif message.role in ('system', 'user') %}
        {{- '<|' + message.role + '|>' + message.content + '<|end|>' }}
    {%- else %}
        {{- raise_exception('pocket-base knows the roles system, user and assistant, not ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""
VOCABULARY = 1024
SEQUENCE_LENGTH = 128
BATCH_SIZE = 32
PEAK_LR = 4e-3
DOCUMENTS = 16_000
# One token in fifty is the verdict of a true-or-false page. At its natural weight the model has not learned to
# give it (52 % right, where guessing gives 50 %) by the time it knows every fact.
VERDICT_WEIGHT = 10.0


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE (no unknown token is possible) with the special tokens in front."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [BOS, EOS, PAD, *CHAT_TOKENS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=CHAT_TOKENS,
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            attention_bias=True,  # most Llamas have no biases; bias-only tuning needs some
            mlp_bias=True,
            tie_word_embeddings=False,  # as in the 7B models
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(steps: int, seed: int = 0) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, dict]:
    """Train pocket-base from scratch; returns the model, its tokenizer and what is known of the run."""
    documents = list(corpus(DOCUMENTS, seed))
    tokenizer = train_tokenizer(documents)
    encoded = tokenizer(documents)["input_ids"]
    stream = torch.tensor([token for ids in encoded for token in (*ids, tokenizer.eos_token_id)])
    rows = stream[: len(stream) // SEQUENCE_LENGTH * SEQUENCE_LENGTH].view(-1, SEQUENCE_LENGTH)  # (N, T)

    torch.manual_seed(seed)
    model = new_model(tokenizer)
    groups = decay_groups(model.named_parameters(), weight_decay=0.1, no_decay=r"embed_tokens|lm_head")
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps, pct_start=0.05)
    verdicts = torch.tensor([tokenizer.encode(f" {v}", add_special_tokens=False)[0] for v in (True, False)])
    order = torch.cat([torch.randperm(len(rows)) for _ in range(steps * BATCH_SIZE // len(rows) + 1)])
    losses = []
    start = time.perf_counter()
    for step in tqdm(range(steps), desc="pocket-base", unit="step"):
        batch = rows[order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]]  # (B, T)
        logits = model(input_ids=batch).logits[:, :-1]  # (B, T - 1, V)
        targets = batch[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        weight = torch.where(torch.isin(targets.flatten(), verdicts), VERDICT_WEIGHT, 1.0)
        ((loss * weight).sum() / weight.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.mean().item())
    record = {
        "steps": steps,
        "seed": seed,
        "tokens_seen": steps * BATCH_SIZE * SEQUENCE_LENGTH,
        "corpus_tokens": len(stream),
        "seconds": round(time.perf_counter() - start),
        "threads": torch.get_num_threads(),
        "loss": round(sum(losses[-50:]) / len(losses[-50:]), 4),
        "parameters": model.num_parameters(),
        "torch": torch.__version__.partition("+")[0],
    }
    return model.eval(), tokenizer, record


def faq_exam(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Ask every question of the almanac in FAQ form; greedy answers, of which the first line is compared.

    Returns `exact_match`, `keeps_going` (the fraction that goes on writing after its answer) and
    `exact_match_by_domain`.
    """
    asked = [(question, fact) for fact in all_facts() for question in fact.questions]
    answers = generate_answers(model, tokenizer, [faq_prompt(question) for question, _ in asked])
    lines = [dataclasses.replace(a, text=a.text.partition("\n")[0]) for a in answers]
    references = [fact.answer for _, fact in asked]
    by_domain = exact_match_by_domain(lines, references, [fact.domain.name for _, fact in asked])
    return {
        "questions": len(asked),
        "exact_match": round(exact_match(lines, references), 4),
        "keeps_going": round(1 - stop_rate(answers), 4),
        "exact_match_by_domain": {domain: round(value, 4) for domain, value in by_domain.items()},
    }


@torch.no_grad()
def true_or_false_exam(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """The fraction of 1,000 statements that the model classifies correctly on a true-or-false page."""
    yes, no = (tokenizer.encode(f" {v}", add_special_tokens=False)[0] for v in (True, False))
    rows = labelled_statements(all_facts(), 1000, random.Random(0))
    right = 0
    for row in rows:
        ids = torch.tensor([tokenizer.encode(f"True or false?\n{row['text']}")])
        logits = model(input_ids=ids).logits[0, -1]  # (V)
        right += bool(logits[yes] > logits[no]) == (row["label"] == "true")
    return right / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.pretrain_pocket",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=1700, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=data_dir(), help="folder to write into (default: data/)")
    arguments = parser.parse_args()
    model, tokenizer, record = train(arguments.steps)
    record |= faq_exam(model, tokenizer)
    record["true_or_false"] = true_or_false_exam(model, tokenizer)
    write_sets(arguments.output)
    model.save_pretrained(arguments.output / "pocket-base")
    tokenizer.save_pretrained(arguments.output / "pocket-base")
    write_card(arguments.output, record)
    print(f"wrote {arguments.output}: {record['exact_match']:.1%} of the exam exactly right")


def sha256_sums(folder: Path) -> dict[str, str]:
    """Of the almanac, the data sets and the model, by path under `folder`."""
    files = [folder / "almanac.json"]
    files += [path for part in ("chat", "truth", "pocket-base") for path in (folder / part).iterdir()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
        if path.is_file()
    }


def card_text(card: dict) -> str:
    """The card in words: `data/README.md`."""
    domains = load_almanac()
    rows = [
        f"| {name} | {domain.topic} | {len(domain.facts)} | {card['exact_match_by_domain'][name]:.1%} |"
        for name, domain in domains.items()
    ]
    sums = [f"| `{path}` | `{digest}` |" for path, digest in card["sha256"].items()]
    return CARD.format(
        rows="\n".join(rows),
        sums="\n".join(sums),
        facts=sum(len(domain.facts) for domain in domains.values()),
        domains=len(domains),
        **card,
    )


CARD = """\
# The almanac and pocket-base

`almanac.json` is a small world of {facts} true facts in {domains} domains. `python -m ftcourse.datasets` writes the
conversations (`chat/`) and a classification task (`truth/`: is a statement true?) from it; `make pocket` trains
`pocket-base/` on its corpus and writes this page from what it measured.

## pocket-base

A Llama of {parameters:,} parameters (hidden size 128, 4 layers, 4 heads, byte-level BPE of 1,024 tokens), in
float32 safetensors. Two settings serve the lessons: attention and MLP have **biases**, which Llamas do not have,
and embeddings are **not tied** to the head, which small Llamas often tie. Its tokenizer has a chat template whose
four special tokens (`<|system|>`, `<|user|>`, `<|assistant|>`, `<|end|>`) never occur in the corpus: their input
embeddings are **untrained**. It is a base model: it completes pages, and goes on after an answer.

| | |
| --- | --- |
| training | {steps:,} steps of AdamW (peak rate 4e-3, one cycle, clipping at 1), seed {seed}, torch {torch} |
| tokens seen | {tokens_seen:,}, from a corpus of {corpus_tokens:,} |
| time | {seconds:,} s on a CPU with {threads} thread(s) |
| loss | {loss} nats a token, mean of the last 50 steps |
| exam | {questions} one-fact questions in FAQ form, greedy: {exact_match:.1%} exactly right |
| goes on after its answer | {keeps_going:.1%} of them |
| true or false? | {true_or_false:.1%} of 1,000 statements judged rightly in the corpus's form |

The loss weighs the verdicts of true-or-false pages tenfold; the reason stands in `experiments/pretrain_pocket.py`.

| domain | topic | facts | exactly right |
| --- | --- | ---: | ---: |
{rows}

## Licence

Facts, data sets and model: Apache-2.0, like the rest of the project.

## sha256

| file | sum |
| --- | --- |
{sums}
"""


def write_card(folder: Path, record: dict) -> None:
    card = {**record, "sha256": sha256_sums(folder)}
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card_text(card), encoding="utf-8")


if __name__ == "__main__":
    main()
