"""Faults to inject, the runs that they interrupt, the comparison with an undisturbed run, and the record as a table."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ftcourse.runs import LaunchError, torchrun
from ftkit.conversations import find_chat
from ftkit.models import load_config, load_tokenizer, resolve_model

from .worker import ONLY_RANK_0, POINTS


def line(found: dict) -> str:
    where = f"rank {found['rank']} of {found['ranks']} killed in {found['point']}, step {found['step']}"
    return f"{where}: {'; '.join(found['faults']) or 'recovered'}"


def table(record: dict) -> str:
    """Markdown: for each point, how many faults the run recovered from, by number of ranks."""
    runs = record["strikes"]
    counts = sorted({found["ranks"] for found in runs})
    ranks = [f"{count} rank{'s' * (count > 1)}" for count in counts]
    head = ["killed in", *ranks, "weights against the undisturbed run", "steps done again", "s to resume"]
    lines = [head, ["---"] * len(head)]
    for point in POINTS:
        of_point = [found for found in runs if found["point"] == point]
        if not of_point:
            continue
        cells = []
        for count in counts:
            tried = [found for found in of_point if found["ranks"] == count]
            cells.append(f"{sum(not found['faults'] for found in tried)} of {len(tried)}")
        apart = max(found.get("apart", float("inf")) for found in of_point)
        again = max(found.get("done_again", 0) for found in of_point)
        seconds = [found["seconds_to_resume"] for found in of_point if "seconds_to_resume" in found]
        weights = "not known" if apart == float("inf") else f"up to {apart:.1e} apart"
        cells += ["equal to the bit" if apart == 0 else weights, f"at most {again}"]
        lines.append([point, *cells, f"{median(seconds):.0f}" if seconds else ""])
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{rows}\n\n{summary(record)}"


def summary(record: dict) -> str:
    runs = record["strikes"]
    recovered = sum(not found["faults"] for found in runs)
    return (
        f"{recovered} of {len(runs)} runs recovered by themselves (seed {record['seed']}, a checkpoint every "
        f"{record['save_every']} of {record['steps']} steps, torch {record['torch']}, {record['machine']})."
    )


STEPS, SAVE_EVERY = 8, 2
LIMIT = 300.0  # seconds for one run; a hang is a failure, not a long wait


@dataclass(frozen=True)
class Fault:
    """Which rank of how many dies, where, and in which step."""

    ranks: int
    point: str
    step: int
    rank: int


def draw_fault(seed: int, ranks: int, more: int = 1) -> list[Fault]:
    """One fault at each point and `more` at random ones, at random steps and ranks."""
    rng, drawn_faults = random.Random(f"{seed} {ranks}"), []
    for point in [*POINTS, *rng.choices(POINTS, k=more)]:
        saving = point.startswith("checkpoint")
        step = rng.randrange(SAVE_EVERY, STEPS + 1, SAVE_EVERY) if saving else rng.randint(1, STEPS)
        rank = 0 if point in ONLY_RANK_0 else rng.randrange(ranks)
        drawn_faults.append(Fault(ranks, point, STEPS if point == "export" else step, rank))
    return drawn_faults


def prepare(folder: Path, optimizer: str = "child-tuning") -> list[str]:
    """Write a model of a few thousand parameters and sixteen conversations; returns the flags of the run."""
    source = resolve_model()
    config = load_config(source)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 16, 24, 2
    config.num_attention_heads = config.num_key_value_heads = 2
    config.head_dim, config.layer_types = 8, None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.save_pretrained(folder / "model")
    load_tokenizer(source).save_pretrained(folder / "model")
    chats = find_chat()["train"].read_text(encoding="utf-8").splitlines()[:16]
    (folder / "chats.jsonl").write_text("\n".join(chats), encoding="utf-8")
    settings = {"model": folder / "model", "data": folder / "chats.jsonl", "optimizer": optimizer, "lr": 1e-2}
    settings |= {"batch_size": 4, "micro_batch_size": 4, "max_length": 32}
    settings |= {"max_steps": STEPS, "save_every": SAVE_EVERY}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def fine_tune(folder: Path, flags: list[str], ranks: int, fault: dict) -> str:
    """Run in `folder`, with one restart; returns what went wrong, empty if nothing."""
    folder.mkdir(parents=True)
    worker = ["-m", "experiments.fault_injection.worker"]
    program = [*worker, folder, json.dumps(fault), *flags, "--output", folder / "run"]
    try:
        torchrun(*program, ranks=ranks, timeout=LIMIT, quiet=True, max_restarts=1)
    except LaunchError as error:
        return str(error).splitlines()[-1]
    return ""


def evaluate(fault: Fault, folder: Path, reference: Path, failure: str) -> dict:
    """What the faulty run in `folder` shares with the undisturbed one in `reference`; `faults` says what it lacks."""
    found = {**vars(fault), "faults": [failure] if failure else []}
    if failure or not (folder / "killed.json").exists():
        found["faults"] = found["faults"] or ["the rank was never killed"]
        return found
    killed = json.loads((folder / "killed.json").read_text())
    resumed = folder / "resumed.json"
    start = json.loads(resumed.read_text()) if resumed.exists() else {"step": 0, "time": None}
    if start["time"]:
        found["seconds_to_resume"] = round(start["time"] - killed["time"], 1)
    whole = [int(name[5:]) for name in killed["checkpoints"] if name[5:].isdigit()]
    unfinished = [int(name[5:11]) for name in killed["checkpoints"] if name.endswith(".incomplete")]
    found["done_again"] = killed["steps"] - start["step"]
    # Steps go on while a checkpoint is written: those since the unfinished one began are lost as well.
    allowed = SAVE_EVERY + (killed["steps"] - unfinished[0] if unfinished else 0)
    weights, wanted = (load_file(each / "run" / "model" / "model.safetensors") for each in (folder, reference))
    found["apart"] = max((weights[name] - wanted[name]).abs().max().item() for name in wanted)
    losses = [
        [(row["step"], row["loss"]) for row in map(json.loads, (each / "run" / "metrics.jsonl").open())]
        for each in (folder, reference)
    ]
    checks = {
        "the weights differ from the undisturbed run's": found["apart"] == 0,
        "the losses differ from the undisturbed run's": losses[0] == losses[1],
        "a whole checkpoint was not used": start["step"] >= max(whole, default=0),
        f"{found['done_again']} steps were done again, where {allowed} are allowed": found["done_again"] <= allowed,
        "something half-written was left": not list((folder / "run").rglob("*.incomplete")),
    }
    found["faults"] = [words for words, holds in checks.items() if not holds]
    return found
