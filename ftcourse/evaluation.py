"""Exact match and loss by domain, comparison by pairs, and a task for EleutherAI's lm-evaluation-harness."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import torch
import yaml
from transformers import PreTrainedModel

from ftkit._modules import eval_mode
from ftkit.batching import pad
from ftkit.evaluate import Answer, exact_match
from ftkit.loss import IGNORE_INDEX, token_losses

LOSS_BATCH_SIZE = 16  # of `loss_by_domain`, whose peak memory is the logits


def exact_match_by_domain(
    answers: Sequence[Answer], references: Sequence[str], domains: Sequence[str]
) -> dict[str, float]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i, domain in enumerate(domains):
        groups[domain].append(i)
    return {d: exact_match([answers[i] for i in g], [references[i] for i in g]) for d, g in groups.items()}


@torch.no_grad()
def loss_by_domain(
    model: PreTrainedModel, examples: Sequence[dict[str, list[int]]], domains: Sequence[str]
) -> dict[str, float]:
    """Mean cross-entropy in nats per token over each domain's unmasked tokens.

    `examples` come from `ftkit.conversations.encode` or `encode_text`. Raises ValueError for a domain without
    unmasked tokens.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))  # little to pad
    losses_of: dict[int, tuple[float, int]] = {}  # summed loss and unmasked tokens of each example
    with eval_mode(model):
        for start in range(0, len(order), LOSS_BATCH_SIZE):
            rows = order[start : start + LOSS_BATCH_SIZE]
            batch = {name: t.to(model.device) for name, t in pad([examples[i] for i in rows], 0).items()}
            labels = batch.pop("labels")[:, 1:]  # (B, T - 1)
            losses = token_losses(model(**batch).logits[:, :-1], labels)  # (B, T - 1)
            tokens = (labels != IGNORE_INDEX).sum(1)
            losses_of |= zip(rows, zip(losses.sum(1).tolist(), tokens.tolist(), strict=True), strict=True)
    total: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for i, (_, domain) in enumerate(zip(examples, domains, strict=True)):
        total[domain] += losses_of[i][0]
        count[domain] += losses_of[i][1]
    if empty := [domain for domain, tokens in count.items() if tokens == 0]:
        raise ValueError(f"no unmasked token in domain {empty[0]!r}: are its labels all {IGNORE_INDEX}?")
    return {domain: total[domain] / count[domain] for domain in total}


def write_lm_eval_task(
    folder: str | Path,
    name: str,
    conversations: Iterable[Mapping],
    *,
    until: Sequence[str],
    max_new_tokens: int = 48,
) -> Path:
    """Write held-out questions as a task of EleutherAI's lm-evaluation-harness, 0.4 or later: NAME.yaml, NAME.jsonl.

    Its score is exact match with white space and case as they are; it generates greedily and asks without examples.
    `lm_eval --tasks NAME --include_path FOLDER --apply_chat_template` runs it in the model's chat template.

    Args:
        conversations: with `messages`, one question and its answer each; a `domain` is kept.
        until: strings that end an answer, such as the end-of-turn token's text. The model's EOS ends it anyway.

    Returns the path of the YAML file, which names the JSON lines by their absolute path. Raises ValueError for another
    shape of conversation, without any, or without `until`: the harness would then end answers at an empty line.
    """
    rows = []
    for number, conversation in enumerate(conversations):
        messages = conversation["messages"]
        if [message["role"] for message in messages] != ["user", "assistant"]:
            raise ValueError(f"conversation {number} is not one question and one answer, which is all a task can ask")
        row = {"question": messages[0]["content"], "answer": messages[1]["content"].strip()}
        rows.append(row | ({"domain": conversation["domain"]} if "domain" in conversation else {}))
    if not rows or not until:
        raise ValueError("a task needs questions, and strings that end an answer")
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 0,
        "generation_kwargs": {"until": list(until), "do_sample": False, "max_gen_toks": max_new_tokens},
        "filter_list": [
            {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Preference:
    """How often each of two models won a comparison by pairs, and the 95 % interval (Wilson 1927) of the first's share.

    Ties do not count in the share.
    """

    wins: int
    losses: int
    ties: int

    @property
    def decided(self) -> int:
        return self.wins + self.losses

    @property
    def share(self) -> float:
        """Wins among the decided pairs; one half where none is decided."""
        return self.wins / self.decided if self.decided else 0.5

    @property
    def interval(self) -> tuple[float, float]:
        if not self.decided:
            return 0.0, 1.0
        z, n = NormalDist().inv_cdf(0.975), self.decided
        centre = (self.share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * math.sqrt(self.share * (1 - self.share) / n + z**2 / (4 * n**2))
        return max(0.0, centre - half), min(1.0, centre + half)

    @property
    def verdict(self) -> str:
        """ "first" or "second" where the interval lies on one side of one half, else "cannot tell"."""
        low, high = self.interval
        return "first" if low > 0.5 else "second" if high < 0.5 else "cannot tell"

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.wins} wins, {self.losses} losses, {self.ties} ties: the first wins {self.share:.0%} of the decided "
            f"pairs (95 % interval {low:.0%} to {high:.0%})"
        )


def compare_exact(first: Sequence[str], second: Sequence[str], references: Sequence[str]) -> Preference:
    """A comparison in which exact match judges: a pair is decided where only one of the two answers is exact."""
    exact = [(a == r, b == r) for a, b, r in zip(first, second, references, strict=True)]
    wins, losses = exact.count((True, False)), exact.count((False, True))
    return Preference(wins, losses, len(exact) - wins - losses)
