"""A fine-tune in which one rank kills itself, once:
`torchrun -m experiments.fault_injection.worker FOLDER FAULT FLAGS...`.

FAULT is JSON: {"point": a name of POINTS, "step": N, "rank": R}, and "break_resume": true for a resume that loses
the first moments, as a negative control; {} injects nothing. `ftkit.finetune` is not changed: torch's hooks locate the
step. FOLDER/killed.json records what was on disk when the rank died, FOLDER/resumed.json the step that it resumed from.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import PreTrainedModel

from ftkit.distributed import checkpoint_folder
from ftkit.distributed.checkpoint import Checkpoints
from ftkit.finetune import train

POINTS = ("forward", "backward", "optimizer", "checkpoint write", "checkpoint rename", "export")
ONLY_RANK_0 = ("checkpoint rename", "export")


def main() -> None:
    folder, fault, flags = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
    note_resumption(folder, fault.get("break_resume", False))
    if "point" in fault and int(os.environ["RANK"]) == fault["rank"] and not (folder / "killed.json").exists():
        inject(folder, fault["point"], fault["step"])
    train.main(flags)


def inject(folder: Path, point: str, step: int) -> None:
    """Kill this process at `point` of step `step` (the first is 1).

    Checkpoints are written beside the steps: of one, the first write or rename after that step's update fails.
    """
    done = 0  # optimizer steps

    def kill() -> None:
        names = sorted(path.name for path in (folder / "run" / "checkpoints").glob("step-*"))
        report = json.dumps({"steps": done, "checkpoints": names, "time": time.time()})
        (folder / "killed.json").write_text(report)
        os.kill(os.getpid(), signal.SIGKILL)

    def after_forward(module: torch.nn.Module, _, output) -> None:
        if "DecoderLayer" not in type(module).__name__ or done + 1 != step or not module.training:
            return
        if point == "forward":
            kill()
        if point == "backward":
            hidden = output[0] if isinstance(output, tuple) else output
            hidden.register_hook(lambda gradient: kill())

    def after_step(*_) -> None:
        nonlocal done
        done += 1
        if point == "optimizer" and done == step:
            kill()

    def partial_write(self, *arguments):
        written = write_data(self, *arguments)
        if done >= step:
            written.wait()
            for path in Path(self.path).glob(f"__{os.environ['RANK']}_*"):
                os.truncate(path, path.stat().st_size // 2)
            kill()
        return written

    def before_rename(folder_: Path) -> None:
        kill() if done >= step else sync(folder_)

    def after_export(self, *arguments, **options) -> None:
        save_pretrained(self, *arguments, **options)
        kill()

    register_module_forward_hook(after_forward)
    register_optimizer_step_post_hook(after_step)
    write_data, sync, save_pretrained = (
        FileSystemWriter.write_data,
        checkpoint_folder.sync,
        PreTrainedModel.save_pretrained,
    )
    if point == "checkpoint write":
        FileSystemWriter.write_data = partial_write
    if point == "checkpoint rename":
        checkpoint_folder.sync = before_rename  # after about.json, before the rename
    if point == "export":
        PreTrainedModel.save_pretrained = after_export


def note_resumption(folder: Path, break_resume: bool) -> None:
    load = Checkpoints.load

    def noted(self, model, optimizer, extra):
        saved = load(self, model, optimizer, extra)
        if break_resume:
            for state in optimizer.state.values():
                state["exp_avg"].zero_()
        if self.context.is_main_process:
            (folder / "resumed.json").write_text(json.dumps({"step": saved["step"], "time": time.time()}))
        return saved

    Checkpoints.load = noted


if __name__ == "__main__":
    main()
