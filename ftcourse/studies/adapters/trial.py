"""One run of the comparison: attach, train, evaluate, and measure what it cost."""

import math
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from ftcourse.studies.tasks import (
    BATCH_SIZE,
    EVAL_ROWS,
    WEIGHT_DECAY,
    Task,
    base_of,
    knowledge_by_domain,
    next_token_loss,
    training_steps,
)
from ftcourse.tool_calls import calls_exact
from ftkit.adapters import attach, make_optimizer, save_adapter
from ftkit.batching import unmasked_tokens
from ftkit.evaluate import exact_match, generate_answers, stop_rate
from ftkit.loading import load_for_training
from ftkit.parameters import count_parameters

from .data import Conversations, load_conversations
from .methods import ARMS, BASE, options_for

MOST_NEW_TOKENS = 256  # of an answer
ROOM = 8  # tokens that an answer may be longer than the longest wanted one


@dataclass(frozen=True)
class Trial:
    model: str  # folder or hub name, "" for pocket-base
    task: str  # "chat-N", "calls-N", or a user's file or folder
    row: str  # a name of ARMS, or BASE
    lr: float  # peak
    seed: int  # of data, order and fresh weights: equal seeds see equal data
    epochs: int
    dtype: str = "float32"  # of the base's weights
    digest: str = ""  # of a user's data


def run(trial: Trial, micro_batch: int = BATCH_SIZE) -> dict:
    """The trial with what was counted and measured.

    `trainable` parameters; `adapter_bytes` of the file that holds the fine-tune; `train_loss` by step and `test_loss`
    (nats per token); `test_exact`, `test_stop`, `test_calls` (fractions; None without calls); the result of
    `knowledge_by_domain`; `step_ms` of the median step, processor time on a CPU; `peak_bytes` of a CUDA device. A run
    whose loss is not finite ends there; its `train_loss` ends with None, and it is not evaluated.
    """
    torch.manual_seed(trial.seed)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # else it would be the highest of all runs of this process
    dtype = getattr(torch, trial.dtype)
    loaded = load_for_training(base_of(trial.model), dtype)
    conversations = load_conversations(trial.task, loaded.tokenizer, trial.seed)
    model, losses, times = loaded.model, [], []
    if trial.row != BASE:
        row = ARMS[trial.row]
        model = attach(model, row.method, **options_for(row, model))
        optimizer = make_optimizer(
            model, row.method, trial.lr, weight_decay=WEIGHT_DECAY, seed=trial.seed, **row.optimizer
        )
        task = Task(model, conversations.train, trial.epochs, next_token_loss, evaluate=dict)
        before = _now(model)
        for loss in training_steps(task, optimizer, trial.seed, micro_batch=micro_batch):
            times.append((after := _now(model)) - before)
            losses.append(round(loss, 4) if math.isfinite(loss) else None)
            if losses[-1] is None:
                break
            before = after
    diverged = None in losses
    return {
        **asdict(trial),
        "trainable": count_parameters(model).trainable if losses else 0,
        "adapter_bytes": saved_bytes(model) if losses else 0,
        "step_ms": round(1000 * statistics.median(times), 1) if times else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "train_loss": losses,
        **({} if diverged else evaluate(model.eval(), loaded.tokenizer, conversations)),
    }


@torch.no_grad()
def evaluate(model: nn.Module, tokenizer: PreTrainedTokenizerBase, conversations: Conversations) -> dict:
    total, tokens = 0.0, 0
    for first in range(0, len(conversations.test), EVAL_ROWS):
        rows = conversations.test[first : first + EVAL_ROWS]
        count = unmasked_tokens(rows)
        total, tokens = total + float(next_token_loss(model, rows)) * count, tokens + count
    longest = max(len(tokenizer.encode(reference)) for reference in conversations.references)
    answers = generate_answers(
        model, tokenizer, conversations.prompts, max_new_tokens=min(longest + ROOM, MOST_NEW_TOKENS)
    )
    calls = calls_exact([answer.text for answer in answers], conversations.references)
    return {
        "test_loss": round(total / tokens, 4),
        "test_exact": round(exact_match(answers, conversations.references), 4),
        "test_stop": round(stop_rate(answers), 4),
        "test_calls": None if calls is None else round(calls, 4),
        **knowledge_by_domain(model, tokenizer),
    }


def saved_bytes(model: nn.Module) -> int:
    """The size of the file that holds the fine-tune: PEFT's adapter, or else every weight that trains."""
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(model, PeftModel):
            return (save_adapter(model, folder) / "adapter_model.safetensors").stat().st_size
        path = Path(folder) / "trained.safetensors"
        trained = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
        save_file(trained, path)
        return path.stat().st_size


def _now(model: nn.Module) -> float:
    """Seconds: of the processor where it computes, for other programs slow the clock on the wall down."""
    if model.device.type == "cpu":
        return time.process_time()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
