"""One run of the program on made-up data: its seconds, processor seconds and peak memory, seen from outside."""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ftkit.models import data_dir, load_tokenizer

POLL, SHARE = 0.2, 0.02  # of looks at a run's memory: least seconds between two, most of a processor that they take
QUESTION = (2, 10)  # words, least and most
LIMIT = 3600  # seconds that a run may take
WORDS = (
    "planet",
    "river",
    "seven",
    "owl",
    "north",
    "Tuesday",
    "copper",
    "slow",
    "bright",
    "between",
    "is",
    "the",
    "of",
)


@dataclass(frozen=True)
class Trial:
    """A run, and what grows in it."""

    study: str
    x: int  # the quantity that grows
    rows: int = 1000
    words: tuple[int, int] = (2, 10)  # of an answer, least and most
    hidden: int = 128  # the model's width; it has 4 layers
    ranks: int = 1
    again: bool = False  # the same run once more, when the tokens are in the cache
    flags: dict = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        return self.study, self.x


def run(trial: Trial) -> dict:
    """The raw figures of one run. Raises RuntimeError, with its last lines, where it fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_rows(folder / "rows.jsonl", trial.rows, trial.words)
        parameters = save_model(folder / "model", trial.hidden)
        for output in ["before"] * trial.again + ["run"]:
            found = _watch(command(trial, data, folder / "model", folder / output), folder, folder / output)
        return {"data_bytes": data.stat().st_size, "parameters": parameters, **found}


def command(trial: Trial, data: Path, model: Path, output: Path) -> list[str]:
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(trial.ranks)] if trial.ranks > 1 else []
    flags = {"data": data, "model": model, "output": output, "max_steps": 3, **trial.flags}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [sys.executable, *start, "-m", "ftkit.finetune", *words]


def write_rows(path: Path, rows: int, words: tuple[int, int]) -> Path:
    """Conversations of one question and one answer, no two alike, as JSON lines."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            asked, answered = (" ".join(draw.choices(WORDS, k=draw.randint(*n))) for n in (QUESTION, words))
            turns = [
                {"role": "user", "content": f"{number}: {asked}?"},
                {"role": "assistant", "content": f"{answered}."},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def save_model(folder: Path, hidden: int) -> int:
    """A Llama of 4 layers with random weights and the embedded tokenizer; returns its number of parameters."""
    tokenizer = load_tokenizer(data_dir() / "pocket-base")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


def _watch(words: list[str], cache: Path, output: Path) -> dict:
    env = {**os.environ, "FTKIT_CACHE": str(cache / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    load, start = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(words, env=env, stdout=log, stderr=subprocess.STDOUT)
        first, peak, metrics = None, 0, output / "metrics.jsonl"
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            begun = time.process_time()
            peak = max(peak, _memory(process.pid))
            cost = time.process_time() - begun
            if first is None and metrics.is_file() and metrics.stat().st_size:
                first = time.perf_counter() - start
            if time.perf_counter() - start > LIMIT:
                process.kill()
            time.sleep(max(POLL, cost / SHARE))
        seconds, usage = time.perf_counter() - start, ended[2]
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        log.seek(0)
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: " + "".join(log.readlines()[-12:]))
    return {
        "seconds": round(seconds, 2),
        "seconds_to_first_step": round(seconds if first is None else first, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),  # of all its processes
        "peak_bytes": peak,  # of all its processes, shared pages once
        "largest_process_bytes": usage.ru_maxrss * 1024,
        "step_seconds": [json.loads(line)["seconds"] for line in metrics.read_text().splitlines()],
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
    }


def _memory(pid: int) -> int:
    """Proportional set size of a process and all that it has started."""
    total = 0
    try:
        for process in (root := psutil.Process(pid), *root.children(recursive=True)):
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
    except psutil.NoSuchProcess:
        pass
    return total
