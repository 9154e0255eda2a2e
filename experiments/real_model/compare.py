"""The same batches through ftkit and through TRL's SFTTrainer, in runs that alternate: A B C C B A."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ftkit.conversations import encode, training_template
from ftkit.models import load_tokenizer

from .worker import CONTENDERS, Settings, in_order

THERE_AND_BACK = (*CONTENDERS, *reversed(CONTENDERS))  # so that a machine that slows down slows all of them
TAIL = 20  # lines of a failed contender's output that the error shows


class ContenderError(RuntimeError):
    """A contender's process failed; the message ends with its last lines."""


@dataclass(frozen=True)
class Comparison:
    """Runs of one model by one method."""

    name: str  # of the model
    settings: Settings  # whose contender is each of `order` in turn
    order: tuple[str, ...]


def measure(comparison: Comparison) -> dict:
    """The raw runs, each with the machine's load before it, and the tokens of each step."""
    runs = [train(replace(comparison.settings, contender=name)) for name in comparison.order]
    shared = {k: v for k, v in asdict(comparison.settings).items() if k not in ("contender", "model", "data")}
    return {"model": comparison.name, **shared, "tokens": step_tokens(comparison.settings), "runs": runs}


def train(settings: Settings) -> dict:
    """One contender's raw figures, from processes of its own. Raises ContenderError."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "settings.json", Path(folder) / "out.json"
        given.write_text(json.dumps(asdict(settings)), encoding="utf-8")
        ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(settings.ranks)]
        start = ranks if settings.ranks > 1 else []
        command = [sys.executable, *start, "-m", "experiments.real_model.worker", str(given), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-TAIL:])
            raise ContenderError(f"{settings.contender} failed with exit status {done.returncode}:\n{last}")
        files = [out.with_suffix(f".{rank}") for rank in range(settings.ranks)]
        return {"load": load, **together([json.loads(file.read_text(encoding="utf-8")) for file in files])}


def together(ranks: list[dict]) -> dict:
    """The figures of all ranks: seconds and losses of the first, processor seconds and peaks added up."""
    return {
        **ranks[0],
        "cpu_seconds": [sum(step) for step in zip(*(found["cpu_seconds"] for found in ranks), strict=True)],
        "peak_rss_bytes": sum(found["peak_rss_bytes"] for found in ranks),
    }


def single_turns(data: Path, path: Path) -> Path:
    """Write the conversations of one question and one answer in `data` to `path`: of others, TRL learns the last
    answer only."""
    rows = [json.loads(line)["messages"] for line in data.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({"messages": messages}) + "\n" for messages in rows if len(messages) == 2]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def step_tokens(settings: Settings) -> list[int]:
    """Tokens of each step, without padding."""
    tokenizer = load_tokenizer(settings.model)
    template = training_template(tokenizer)

    def tokens(row: dict) -> int:
        return len(encode(tokenizer, row["messages"], template, settings.max_length)["input_ids"])

    return [sum(map(tokens, batch)) for batch in in_order(settings)]
