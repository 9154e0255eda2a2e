"""Sharded checkpoints, written in the background, complete or absent, and readable on any number of ranks.

checkpoints/step-000040/           complete: a folder gets this name only when it is finished
    __0_0.distcp, __1_0.distcp     the shards of rank 0 and rank 1: weights and optimizer state
    .metadata                      which slice of which tensor is in which file
    about.json                     metadata of its run, and the size of every file above
checkpoints/step-000060.incomplete being written, or left by a crash: never read
"""

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from ftkit._modules import clean_name

from .checkpoint_folder import CheckpointError, check_same_run, check_undamaged, commit, empty_folder, latest_checkpoint
from .mesh import DistributedContext

WRITE_TIMEOUT = timedelta(minutes=30)  # how long ranks wait for the slowest disk


class Checkpoints:
    """The checkpoints of one run.

    Every method is a collective: rank 0 decides, and all ranks return or raise the same.

    Args:
        folder: where the checkpoints are.
        run_metadata: identifies the run ({"model": ..., "optimizer": ...}, JSON values); parameter names and shapes
            are added. `load` refuses a checkpoint with other metadata.
        context: this process's place among the ranks.
        keep: how many of the newest checkpoints to keep; 0 is all.
        trainable_only: leave frozen weights out; they must then be in the model before `load`.
    """

    def __init__(
        self, folder: Path, run_metadata: dict, context: DistributedContext, keep: int = 1, trainable_only: bool = False
    ):
        self.folder, self.run_metadata, self.context, self.keep = Path(folder), run_metadata, context, keep
        self.trainable_only = trainable_only
        self.group = None
        if context.is_distributed:  # a group of its own, because the writing thread runs beside the training step
            self.group = dist.new_group(backend="gloo", timeout=WRITE_TIMEOUT)
        else:  # for good, because the writing thread may warn at any time
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
        self.written: int | None = None  # the step of the last complete checkpoint
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict, kept: int | None = None
    ) -> None:
        """Copy the state and return; a thread writes it and renames it to `folder/step-N` once it is complete.

        Waits for the save before this one and raises its error, as `finish` does. `extra` is saved with it. The
        checkpoint of step `kept` is not removed, however many are newer.
        """
        self.finish()
        if step == self.written:
            return
        final = self._folder_of(step)
        temporary = final.with_suffix(".incomplete")
        self._on_rank0(lambda: empty_folder(temporary))
        model_state, optimizer_state = self._states(model, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state, "extra": {**extra, "step": step}}
        writing = dcp.async_save(state, checkpoint_id=temporary, process_group=self.group, no_dist=self.group is None)
        metadata = {"step": step, "ranks": self.context.world_size, **model_signature(self.run_metadata, model)}
        # A daemon, so that a rank which fails meanwhile can end without waiting for the others.
        self._thread = threading.Thread(target=self._complete, args=(writing, final, metadata, kept), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the last save. Raises OSError if it could not be written (ENOSPC for a full disk).

        The checkpoint before it is then still there."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def latest(self) -> Path | None:
        """What `latest_checkpoint` finds on rank 0."""
        self.finish()
        return self._on_rank0(lambda: latest_checkpoint(self.folder))

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict, step: int | None = None) -> dict:
        """Load the newest complete checkpoint, or that of `step`, in place, whatever number of ranks wrote it.

        Args:
            extra: a dict with the keys that were saved.

        Returns:
            The saved values of `extra`, and `step`.

        Raises:
            FileNotFoundError: there is none.
            CheckpointError: it is another run's; then nothing has changed. Or a file is damaged although its size is
                right, which shows only while reading; then the model must not be used.
        """
        path = self.latest() if step is None else self._folder_of(step)
        if path is None:
            raise FileNotFoundError(f"{self.folder} holds no complete checkpoint: start without resuming")
        expected = model_signature(self.run_metadata, model)
        self._on_rank0(lambda: check_same_run(path, expected))
        model_state, optimizer_state = self._states(model, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state, "extra": {**extra, "step": 0}}
        _read(state, path, self.group)
        options = StateDictOptions(strict=not self.trainable_only)
        states = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
        set_state_dict(model, optimizer, **states, options=options)
        self.written = state["extra"]["step"]
        return state["extra"]

    def _folder_of(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def _states(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
        weights, moments = get_state_dict(model, optimizer)
        if self.trainable_only:
            trained = model_signature({}, model)["trained"]
            weights = {name: tensor for name, tensor in weights.items() if clean_name(name) in trained}
        return weights, moments

    def _complete(self, writing: Future, final: Path, metadata: dict, kept: int | None) -> None:
        """In the writing thread: turn `step-N.incomplete` into `step-N`, or keep the error for `finish`."""
        try:
            temporary = final.with_suffix(".incomplete")
            failed = writing.exception()
            files = {path.name: path.stat().st_size for path in temporary.glob(f"__{self.context.rank}_*")}
            reports = self._gather((_cause(failed), files))
            self._on_rank0(lambda: commit(final, metadata, reports, self.keep, kept))
            self.written = metadata["step"]
        except Exception as error:
            self._failure = error

    def _gather(self, value: Any) -> list[Any]:
        """The value of every rank."""
        values = [value] * self.context.world_size
        if self.group is not None:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def _on_rank0(self, decide: Callable[[], Any]) -> Any:
        """Call `decide` on rank 0, and return or raise its outcome on every rank."""
        outcome: list[Any] = [None, None]
        if self.context.is_main_process:
            try:
                outcome[0] = decide()
            except Exception as error:
                outcome[1] = error
        if self.group is not None:
            dist.broadcast_object_list(outcome, src=0, group=self.group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


def load_weights(path: Path, model: nn.Module) -> None:
    """Load only the weights of a checkpoint into an unsharded model, whatever number of ranks wrote it."""
    check_undamaged(path)
    state = {"model": model.state_dict()}
    _read(state, path, None)
    model.load_state_dict(state["model"])


def full_state_dict(model: nn.Module, trainable_only: bool = False) -> dict[str, torch.Tensor]:
    """The unsharded weights (or only the trainable ones) on the CPU of rank 0; an empty dict on the others."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trainable_only)
    return get_model_state_dict(model, options=options)


def model_signature(run_metadata: dict, model: nn.Module) -> dict:
    """`run_metadata`, the unsharded shape of each parameter, and the names of the trainable ones."""
    named = [(clean_name(name), parameter) for name, parameter in model.named_parameters()]
    shapes = {name: list(parameter.shape) for name, parameter in named}
    trained = [name for name, parameter in named if parameter.requires_grad]
    return {**run_metadata, "parameters": shapes, "trained": trained}


def _read(state: dict, path: Path, group: dist.ProcessGroup | None) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(state, checkpoint_id=path, process_group=group, no_dist=group is None)
    except dcp.api.CheckpointException as error:
        raise CheckpointError(f"{path} cannot be read: {_cause(error)}") from None


def _cause(error: BaseException | None) -> str:
    """One line on why reading or writing failed; empty for None."""
    if isinstance(error, dcp.api.CheckpointException):
        rank, (error, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {_cause(error)}"
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return "" if error is None else str(error).partition("\n")[0] or type(error).__name__
