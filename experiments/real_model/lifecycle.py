"""The program on a real model: checked data, LoRA and full fine-tunes on one process and two ranks, a killed run that
resumes, and answers before and after. Everything here returns raw figures; report.py judges them."""

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ftcourse.runs import LaunchError, start
from ftcourse.tool_calls import read_call
from ftkit.chat import __main__ as doctor
from ftkit.distributed.checkpoint_folder import latest_checkpoint
from ftkit.evaluate import generate_answers
from ftkit.models import load_base

LIMIT = 3600.0  # seconds for one run


@dataclass(frozen=True)
class Sizes:
    steps: int = 32  # of the LoRA run whose answers are asked for
    part: int = 6  # first steps of it that are done again: on two ranks, and killed and resumed
    kill_after: int = 4
    full_steps: int = 4
    batch_size: int = 4
    requests: int = 40  # of the test set


def check_data(model: Path, data: Path) -> dict:
    """What `ftkit chat --json` says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = doctor.main([str(model), str(data), "--json"])
    found = json.loads(said.getvalue())
    kept = {key: found[key] for key in ("format", "rows", "lengths")}
    return {"status": status, **kept, "findings": [[f["severity"], f["code"]] for f in found["findings"]]}


def run_all(model: Path, data: Path, sizes: Sizes, folder: Path) -> dict:
    """Every fine-tune, in `folder`. Raises LaunchError where one fails."""
    lora = flags(model, data, sizes, method="lora", max_steps=sizes.steps, lr=1e-3)
    full = flags(model, data, sizes, method="full", max_steps=sizes.full_steps, lr=2e-5)
    part = ["--stop_after", str(sizes.part)]
    return {
        "lora, 1 process": fine_tune(folder / "lora", lora),
        "lora, 2 ranks": fine_tune(folder / "lora-ranks", [*lora, *part], ranks=2),
        "lora, killed and resumed": kill_and_resume(folder / "lora-killed", [*lora, *part], sizes.kill_after),
        "full, 1 process": fine_tune(folder / "full", full),
        "full, 2 ranks": fine_tune(folder / "full-ranks", full, ranks=2),
    }


def flags(model: Path, data: Path, sizes: Sizes, **more) -> list[str]:
    values = {"model": model, "data": data, "batch_size": sizes.batch_size, "micro_batch_size": sizes.batch_size // 2}
    return [word for name, value in {**values, **more}.items() for word in (f"--{name}", str(value))]


def fine_tune(output: Path, flags: list[str], ranks: int = 1) -> dict:
    """One run: its losses, seconds of each step, and what it said of its memory and of the merge."""
    # Not torchrun for one process, which is what most people start.
    said = start(*program(output, flags), ranks=ranks if ranks > 1 else None, timeout=LIMIT).result()
    rows = metrics(output)
    return {
        "losses": [row["loss"] for row in rows],
        "seconds": [row["seconds"] for row in rows],
        "memory": line_of(r"peak memory of a rank: .*measured \(.*?\)", said),
        "merge": line_of(r"merged: .*", said),
    }


def kill_and_resume(output: Path, flags: list[str], after: int) -> dict:
    """SIGKILL the run once step `after` is done and a checkpoint is there; then resume it."""
    flags = [*flags, "--save_every", "2"]
    with output.with_suffix(".log").open("w+") as log:
        process = subprocess.Popen([sys.executable, *program(output, flags)], stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if len(metrics(output)) >= after and latest_checkpoint(output / "checkpoints"):
                process.kill()
                process.wait()
            time.sleep(0.1)
        if process.returncode != -signal.SIGKILL:
            log.seek(0)
            raise LaunchError(f"the run ended before step {after} could be followed by a kill:\n{log.read()[-2000:]}")
    killed, checkpoint = len(metrics(output)), latest_checkpoint(output / "checkpoints")
    resumed = fine_tune(output, [*flags, "--resume"])
    return {"killed_after": killed, "checkpoint": checkpoint.name, **resumed}


def program(output: Path, flags: list[str]) -> list[str]:
    return ["-m", "ftkit.finetune", "--output", str(output), *flags]


def metrics(output: Path) -> list[dict]:
    """The complete lines of a run's metrics; none where it has not begun."""
    path = output / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def line_of(pattern: str, said: str) -> str | None:
    found = re.search(pattern, said)
    return found[0].strip() if found else None


def exact_calls(model: Path, test: Path, requests: int) -> list[bool]:
    """For evenly drawn requests of the test set: whether the model's answer is the call that each one means.
    Empty for data whose answers are no calls."""
    rows = [json.loads(line)["messages"] for line in test.read_text(encoding="utf-8").splitlines()]
    asked = rows[:: max(1, len(rows) // requests)][:requests]
    if None in (wanted := [read_call(messages[-1]["content"]) for messages in asked]):
        return []  # the almanac's answers are words
    answers = generate_answers(
        *load_base(model), [messages[:-1] for messages in asked], max_new_tokens=64, batch_size=20
    )
    return [read_call(answer.text) == call for answer, call in zip(answers, wanted, strict=True)]
