"""Compare adapters and full fine-tuning by what they learn, what they forget and what they cost, or continue.

    python -m ftcourse.studies.trade_off
    python -m ftcourse.studies.trade_off --methods full LoRA --output mine.jsonl

Each method has its own learning rate, bracketed on validation questions (`bracketing`), then final runs on other seeds
and test questions. Every run, those that search the rate included, also records how much of its pretraining the model
still knows, which gives a curve of learning against forgetting. A run that is in the output is not repeated. A quarter
of an hour on one core.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedTokenizerBase

from ftkit.adapters import attach, make_optimizer
from ftkit.models import data_dir, load_tokenizer
from ftkit.parameters import count_parameters, decay_groups

from .adapters.methods import NEFTUNE_ALPHA, attention_matrices, embeddings_and_norms
from .bracketing import SEEDS, TUNING_SEEDS, BracketedStudy, run_bracketed, scores
from .chat_recipe import chat_token_ids
from .records import make_repeatable, study_parser
from .tasks import WEIGHT_DECAY, Task, base_of, knowledge_by_domain, load_task, training_steps

BRACKETED = data_dir() / "results" / "trade_off.jsonl"
TASK = "chat-96"
R = 8  # of LoRA; lora_alpha is 2r, so that the scale is the same for every r
WHOLE_LR = 1e-3  # of fully trained matrices beside LoRA: the best learning rate of full fine-tuning (`recipe`)
LORAPLUS_RATIO = 16  # of B's learning rate to A's, as Hayou et al. 2024 advise


@dataclass(frozen=True)
class Method:
    kind: str  # of ftkit.adapters.METHODS
    rates: tuple[float, ...]  # to begin with, a factor of 3 apart
    options: Mapping = field(default_factory=dict)  # of `attach`
    attention: bool = False  # LoRA beside the matrices of attention alone
    whole: bool = False  # embedding, LM head and norms are fully trained
    tokens: bool = False  # the chat tokens' rows of embedding and LM head are trained
    own_rate: bool = False  # what is fully trained has WHOLE_LR, not LoRA's learning rate
    zero_A: bool = False  # A starts at zero and B random, not the other way round
    r: int = R


LOW, MIDDLE, HIGH = (3e-4, 9e-4, 2.7e-3), (2.7e-3, 8.1e-3, 2.43e-2), (8.1e-2, 2.43e-1, 7.29e-1)
FULL, LORA, ATTENTION, ZERO_A = "full", "LoRA", "LoRA, attention", "LoRA, A = 0"
TOKENS, ONE_RATE, OWN_RATE = "LoRA, chat tokens", "LoRA, whole, one rate", "LoRA, whole, own rate"
DORA, LORAPLUS, NEFTUNE = "DoRA", "LoRA+", "LoRA, NEFTune"
BITFIT, PREFIX, PROMPTS = "BitFit", "prefix", "LLaMA-Adapter"
RANK_1, RANK_64 = "LoRA, r = 1", "LoRA, r = 64"
METHODS = {
    FULL: Method("full", LOW),
    LORA: Method("lora", MIDDLE),
    ATTENTION: Method("lora", MIDDLE, attention=True),
    ZERO_A: Method("lora", LOW, zero_A=True),
    TOKENS: Method("lora", MIDDLE, tokens=True, own_rate=True),
    ONE_RATE: Method("lora", (9e-4, 2.7e-3, 8.1e-3), whole=True),
    OWN_RATE: Method("lora", MIDDLE, whole=True, own_rate=True),
    DORA: Method("dora", MIDDLE),
    LORAPLUS: Method("lora+", LOW),
    NEFTUNE: Method("lora", MIDDLE, {"neftune_alpha": NEFTUNE_ALPHA}),
    BITFIT: Method("bitfit", (2.43e-2, 7.29e-2, 2.19e-1)),
    PREFIX: Method("prefix", HIGH),
    PROMPTS: Method("llama-adapter", HIGH),
    RANK_1: Method("lora", MIDDLE, r=1),
    RANK_64: Method("lora", MIDDLE, r=64),
}


@dataclass(frozen=True)
class Trial:
    task: str  # as `load_task` takes it
    method: str  # a name of METHODS
    lr: float  # peak; of LoRA+ that of A
    seed: int  # of examples, order and fresh weights: equal seeds see equal data


def trial(method: str) -> Trial:
    """The method as `BracketedStudy` takes it: without learning rate and seed."""
    return Trial(TASK, method, 0.0, -1)


def prepare(name: str, task: Task, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The task's model, set up for a method."""
    method, model = METHODS[name], task.model
    if method.tokens:  # in embedding and LM head, which `attach` does not offer
        rows = chat_token_ids(tokenizer, task.train[0])
        both = dict.fromkeys(("embed_tokens", "lm_head"), rows)
        return get_peft_model(
            model,
            LoraConfig(
                task_type=TaskType.CAUSAL_LM,
                r=method.r,
                lora_alpha=2 * method.r,
                target_modules="all-linear",
                trainable_token_indices=both,
            ),
        )
    options = dict(method.options)
    if method.attention:
        options["target_modules"] = attention_matrices(model)
    if method.whole:
        options["modules_to_save"] = embeddings_and_norms(model)
    if method.kind in ("lora", "lora+", "dora"):
        options |= {"r": method.r, "lora_alpha": 2 * method.r}
    model = attach(model, method.kind, **options)
    if method.zero_A:
        exchange_start(model)
    return model


@torch.no_grad()
def exchange_start(model: nn.Module) -> None:
    """Start LoRA's A at zero and its B random, by the rule that PEFT draws A by: bounds of 1 / sqrt(columns)."""
    for name, parameter in model.named_parameters():
        if "lora_A." in name:
            parameter.zero_()
        elif "lora_B." in name:
            nn.init.kaiming_uniform_(parameter, a=5**0.5)


def separate_groups(groups: list[dict], lr: float) -> list[dict]:
    """Optimizer groups of (name, parameter) pairs, with all that is no low-rank factor taken out at `lr`."""
    found = []
    for group in groups:
        for factors in (True, False):
            chosen = [entry for entry in group["params"] if ("lora_" in entry[0]) == factors]
            if chosen:
                found.append({**group, "params": chosen} | ({} if factors else {"lr": lr}))
    return found


def optimizer_of(name: str, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    method = METHODS[name]
    if method.own_rate:
        groups = separate_groups(decay_groups(model.named_parameters(), WEIGHT_DECAY), WHOLE_LR)
        return torch.optim.AdamW(groups, lr=lr)
    return make_optimizer(model, method.kind, lr, weight_decay=WEIGHT_DECAY, loraplus_lr_ratio=LORAPLUS_RATIO)


def run(trial: Trial) -> dict:
    """Train and evaluate; returns the trial with what was counted and measured.

    `trainable` parameters, `cpu_ms` of the median step, `first_losses` of three steps, what `bracketing.scores` gives,
    `kept`: the fraction of facts still answered in the pretraining format, the mean over domains, and `kept_nats`,
    their mean loss in nats per token; of final runs also `kept_by_domain`; `cpu_seconds` of the run.
    """
    start = time.process_time()  # not the clock on the wall: other programs slow that down
    torch.manual_seed(trial.seed)
    base = base_of("")
    task = load_task(trial.task, trial.seed, base, validation=True)
    tokenizer = load_tokenizer(base)
    model = prepare(trial.method, task, tokenizer)
    task = Task(model, task.train, task.epochs, task.loss, task.evaluate)
    optimizer = optimizer_of(trial.method, model, trial.lr)
    times, losses = [time.process_time()], []
    for loss in training_steps(task, optimizer, trial.seed):
        times.append(time.process_time())
        losses.append(loss)
    step = statistics.median(after - before for before, after in itertools.pairwise(times))
    measured = scores(task, trial.seed)
    with torch.no_grad():
        known = knowledge_by_domain(model, tokenizer)
    means = {name: statistics.fmean(known[f"pages_{name}"].values()) for name in ("right", "loss")}
    by_domain = {} if trial.seed in TUNING_SEEDS else {"kept_by_domain": known["pages_right"]}
    return {
        **asdict(trial),
        "trainable": count_parameters(model).trainable,
        "cpu_ms": round(1000 * step, 1),
        "first_losses": [round(loss, 4) for loss in losses[:3]],
        **measured,
        "kept": round(means["right"], 4),
        "kept_nats": round(means["loss"], 4),
        **by_domain,
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def read(path: Path = BRACKETED) -> BracketedStudy:
    return BracketedStudy.read(path, Trial)


def complete(study: BracketedStudy, names: Iterable[str] = METHODS) -> list[str]:
    """Those of the named methods that have all final runs, in their order."""
    stored = set(study.methods)
    return [name for name in names if trial(name) in stored and set(SEEDS) <= set(study.runs(trial(name)))]


def main(arguments: list[str] | None = None) -> int:
    parser = study_parser("trade_off", __doc__, "workers")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="%(default)s")
    parser.add_argument("--task", default=TASK, help="chat-N (%(default)s)")
    given = parser.parse_args(arguments)
    if given.workers < 1:
        parser.error("--workers must be at least 1")
    make_repeatable()
    try:
        load_task(given.task, 0, base_of(""))
    except ValueError as error:
        parser.error(str(error))
    for name in given.methods:  # one after the other, so that a study that is cut short has complete methods
        method = Trial(given.task, name, 0.0, -1)
        run_bracketed({method: METHODS[name].rates}, run, given.output, name, seeds=SEEDS, workers=given.workers)
    print(f"stored in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
