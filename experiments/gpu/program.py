"""A run of `ftkit.finetune` on random weights and made-up tokens: its own model, optimizer, loss and loop.

What is left out: reading and tokenising, checkpoints and the export. An 8B model's would be 130 GB to write.
"""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from ftkit.distributed.mesh import DistributedContext
from ftkit.distributed.preemption import PreemptionHandler
from ftkit.finetune import model as program_model
from ftkit.finetune import train as program
from ftkit.finetune.config import Config, Run, validate
from ftkit.finetune.data import TrainingData, make_batches
from ftkit.finetune.loss import Loss
from ftkit.finetune.memory import MemoryMonitor, plan_of_step
from ftkit.finetune.metrics import Logger, MetricsFile
from ftkit.finetune.selection import Selection
from ftkit.loss import IGNORE_INDEX
from ftkit.memory import Estimate, estimate_memory
from ftkit.models import data_dir, load_config, load_tokenizer, meta_model

SHAPES = {  # hidden, MLP, layers, heads, key-value heads, vocabulary, tied embedding: from the published config.json
    "Llama-3.2-1B": (2048, 8192, 16, 32, 8, 128_256, True),
    "Llama-3-8B": (4096, 14336, 32, 32, 8, 128_256, False),
    "tiny": (64, 128, 5, 4, 2, 512, True),
}
FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
FIELDS += ("vocab_size", "tie_word_embeddings")


@dataclass(frozen=True)
class Job:
    """A run that is ready to load its model; its batches are full, and the same for every contender."""

    run: Run
    data: TrainingData
    context: DistributedContext
    loss: Loss

    @property
    def batches(self):
        return make_batches(self.run, self.data, self.context)


@contextmanager
def prepared(shape: str, length: int, rows: int, **flags) -> Iterator[Job]:
    """A job on `rows` examples of `length` random tokens, all in the loss, with `flags` of the program.

    Weights are random, the same for the same shape and device, and made where they are used.
    """
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "model"
        fields = dict(zip(FIELDS, SHAPES[shape], strict=True))
        LlamaConfig(**fields, max_position_embeddings=131_072, rope_theta=500_000.0).save_pretrained(source)
        run = validate(Config(output=str(Path(name) / "run"), model=str(source), max_length=length, **flags))
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(fields["vocab_size"], (rows, length), generator=generator).tolist()
        examples = [{"input_ids": row, "labels": [IGNORE_INDEX, *row[1:]]} for row in ids]
        data = TrainingData(str(source), load_tokenizer(data_dir() / "pocket-base"), examples, [])
        context = run.context_before_launch()
        loss = Loss(context, run.compute_dtype, bool(run.config.loss_chunk))
        run.output.mkdir()
        make_random = partial(random_model, device=context.device)
        with mock.patch.object(program_model, "load_checked", make_random):
            yield Job(run, data, context, loss)


def random_model(source: str, *, device: torch.device, **_) -> nn.Module:
    """A model of the configuration at `source` in float32, initialised on `device`."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(load_config(source), dtype=torch.float32, trust_remote_code=False)


def estimate(job: Job) -> Estimate:
    """What the program estimates for its step 2."""
    batches = job.batches
    plan = plan_of_step(job.run, batches.local(batches[1]))
    return estimate_memory(meta_model(job.data.source), plan)


def measure_peak(job: Job) -> int:
    """Bytes at the peak of step 2, as the program measures them."""
    model = program.load_model(job.run, job.data.source, job.context)
    optimizer, batches = program.make_optimizer(job.run, model, job.data, job.loss), job.batches
    _, schedule = program.make_schedule(job.run, optimizer, batches)
    monitor = MemoryMonitor(model, job.context.device)
    for step in range(2):
        with monitor.step(step):
            clip = job.run.config.max_grad_norm
            program.take_step(model, optimizer, schedule, batches[step], batches, job.loss, clip)
    return monitor.used


def train(job: Job, steps: int) -> Path:
    """Do the first `steps` in the program's loop, and return the file of its metrics."""
    config = job.run.config
    model = program.load_model(job.run, job.data.source, job.context)
    optimizer, batches = program.make_optimizer(job.run, model, job.data, job.loss), job.batches
    total, schedule = program.make_schedule(job.run, optimizer, batches)
    path = job.run.output / "metrics.jsonl"
    with PreemptionHandler() as preemption, closing(Logger(MetricsFile(path, 0), [], 0, steps)) as logger:
        program.train(
            model,
            optimizer,
            schedule,
            batches,
            job.loss,
            mock.Mock(name="checkpoints"),
            logger,
            Selection(False, 0),
            steps=range(steps),
            total=total,
            seed=config.seed,
            max_grad_norm=config.max_grad_norm,
            evaluation=[],
            eval_every=0,
            save_every=0,
            preemption=preemption,
        )
    return path
