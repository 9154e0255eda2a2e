"""Run several fine-tunes one after the other in one launch of ranks: `torchrun … -m ftcourse.rehearsal PLAN.json`.

Each is what `ftkit.finetune` does with the same flags; sharing a launch saves the seconds that processes take to start.
PLAN.json holds {"runs": {name: flags}, "kill": {"run": name, "rank": 1, "step": 14}, "same_masks": [names]}:

- `kill`: in the first attempt, that rank kills itself in this step, after its gradients and before its update;
- `same_masks`: runs of child-tuning whose ranks draw masks as if their shard were the whole tensor, which is wrong.

After a restart, runs that have ended are passed over, and the killed one goes on from its newest checkpoint.
"""

import gc
import json
import os
import signal
import sys
import time
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

from IPython.utils.capture import capture_output

from ftkit.distributed.checkpoint_folder import latest_checkpoint
from ftkit.distributed.launch import Refusal, env_rank, run_distributed
from ftkit.distributed.mesh import DistributedContext, build_context
from ftkit.distributed.preemption import PreemptionHandler
from ftkit.dtensor import Region, local_tensor
from ftkit.finetune import train
from ftkit.finetune.config import Run, parse_config, validate
from ftkit.finetune.data import TrainingData, read_training_data

DATA_FIELDS = ("model", "data", "eval_data", "max_length", "chat_template", "allow")
PATIENCE = 30.0  # seconds that the fault waits for a checkpoint to be complete


def begin(plan: dict) -> tuple[list[tuple[str, Run, TrainingData]], dict]:
    """The runs that have not ended, validated and with their data, and estimates of their memory by name.

    Estimates come first, because they are made before there is a process group; the first attempt makes none of runs
    that it will not reach.
    """
    todo, datasets, estimates = [], {}, {}
    for name, flags in plan["runs"].items():
        run = validate(parse_config(flags))
        if (run.output / "model").is_dir():
            continue
        key = tuple(getattr(run.config, field) for field in DATA_FIELDS)
        if key not in datasets:
            datasets[key] = read_training_data(run)
        todo.append((name, run, datasets[key]))
    killed = plan.get("kill", {}).get("run") if attempt() == 0 else None
    for name, run, data in todo:
        if env_rank() == 0 and run.config.estimate_memory:
            estimates[name] = train.estimate_run(run, data)
        if name == killed:
            break
    return todo, estimates


def attempt() -> int:
    """How often torchrun has restarted the ranks."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


@contextmanager
def killed_in(step: int, rank: int, checkpoints: Path, context: DistributedContext):
    """SIGKILL this process, if it is `rank`, in that step, between its gradients and its update.

    It waits until the newest checkpoint is complete: a step of a larger model lasts longer than the writing here.
    """
    steps = iter(range(1, step + 1))
    gradients = train.accumulate_gradients

    def faulty(*arguments):
        mean = gradients(*arguments)
        if next(steps, 0) == step and context.rank == rank:
            deadline = time.monotonic() + PATIENCE
            while not _complete(checkpoints) and time.monotonic() < deadline:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        return mean

    with mock.patch.object(train, "accumulate_gradients", faulty):
        yield


def _complete(checkpoints: Path) -> bool:
    return latest_checkpoint(checkpoints) is not None and not list(checkpoints.glob("*.incomplete"))


@contextmanager
def same_masks():
    """Child-tuning that takes a rank's shard for the whole tensor, and so draws one mask for all shards."""
    with mock.patch("ftkit.child_tuning.optimizer.local_region", lambda tensor: Region(local_tensor(tensor).shape)):
        yield


def run_alone(flags: list[str]) -> str:
    """`ftkit.finetune` in this process; returns the last line that it printed, and shows nothing, no bars either."""
    with capture_output() as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train.main(flags)
    return said.stdout.strip().rpartition("\n")[2]


def main(path: str) -> None:
    plan = json.loads(Path(path).read_text())
    todo, estimates = begin(plan)
    kill = plan.get("kill")

    def start(context: DistributedContext) -> None:
        for name, run, data in todo:
            if context.is_main_process:
                print(f"== {name}, attempt {attempt()}", flush=True)
            own = build_context(run.dims, run.device_info) if context.is_distributed else context
            fault = nullcontext()
            if kill and kill["run"] == name and attempt() == 0:
                fault = killed_in(kill["step"], kill["rank"], run.checkpoints, own)
            wrong = same_masks() if name in plan.get("same_masks", ()) else nullcontext()
            with PreemptionHandler() as preemption, fault, wrong:
                train.fine_tune(run, data, own, preemption, estimates.get(name))
            gc.collect()  # FSDP's hooks are cycles, and the next run measures its memory

    try:
        run_distributed(start)
    except Refusal as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1])
