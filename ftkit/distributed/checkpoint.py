"""Sharded checkpoints that are whole or absent, written while training goes on, read on any number of ranks.

checkpoints/step-000040/           whole: only a finished folder gets this name
    __0_0.distcp, __1_0.distcp     what rank 0 and rank 1 hold of weights and optimizer state
    .metadata                      which slice of which tensor lies where
    about.json                     the run it belongs to, and the size of every file above
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
    """The checkpoints of one run, of which the newest `keep` are kept.

    `about` says what run they belong to ({"model": ..., "optimizer": ...}, JSON values); parameter names and
    whole shapes are added to it, and a checkpoint with another `about` is refused. `trainable_only` leaves frozen
    weights out, which must then be in the model before `load`. Every method is called by all ranks, and returns or
    raises the same on each: rank 0 decides.
    """

    def __init__(
        self, folder: Path, about: dict, context: DistributedContext, keep: int = 1, trainable_only: bool = False
    ):
        self.folder, self.about, self.context, self.keep = Path(folder), about, context, keep
        self.trainable_only = trainable_only
        # Of its own: the writing thread must not mix its messages with those of the training step.
        several = context.is_distributed
        self.group = dist.new_group(backend="gloo", timeout=WRITE_TIMEOUT) if several else None
        if not several:  # and not only around a call: the writing thread warns when it likes
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
        self.written: int | None = None  # the step of the last checkpoint that became whole
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict) -> None:
        """Copy the state, and return while it is written, as `folder/step-N` once it is whole.

        Waits for the save before this one, and raises what that one failed with, as `finish` does.
        """
        self.finish()
        if step == self.written:
            return
        final = self.folder / f"step-{step:06d}"
        temporary = final.with_suffix(".incomplete")
        self._on_rank0(lambda: empty_folder(temporary))
        model_state, optimizer_state = self._states(model, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state, "extra": {**extra, "step": step}}
        writing = dcp.async_save(state, checkpoint_id=temporary, process_group=self.group, no_dist=self.group is None)
        about = {"step": step, "ranks": self.context.world_size, **model_signature(self.about, model)}
        # A daemon, so that a rank which fails meanwhile can end without waiting for the others.
        self._thread = threading.Thread(target=self._complete, args=(writing, final, about), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until the last save is whole. Raises OSError where it could not be written (a full disk: ENOSPC);
        the checkpoint before it is then still there, and whole."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def latest(self) -> Path | None:
        """As `latest_checkpoint`, decided by rank 0 for all."""
        self.finish()
        return self._on_rank0(lambda: latest_checkpoint(self.folder))

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict) -> dict:
        """Load the newest whole checkpoint in place, whatever number of ranks wrote it.

        `extra` has the keys that it was saved with; returned are its saved values, and the `step`.
        Raises FileNotFoundError where there is none and CheckpointError for another run's, both before anything
        is changed. Damage inside a file whose size is right is noticed only while reading: CheckpointError, and
        the model must not be used.
        """
        path = self.latest()
        if path is None:
            raise FileNotFoundError(f"{self.folder} holds no whole checkpoint: start without resuming")
        mine = model_signature(self.about, model)
        self._on_rank0(lambda: check_same_run(path, mine))
        model_state, optimizer_state = self._states(model, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state, "extra": {**extra, "step": 0}}
        _read(state, path, self.group)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(strict=not self.trainable_only),
        )
        self.written = state["extra"]["step"]
        return state["extra"]

    def _states(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
        weights, moments = get_state_dict(model, optimizer)
        if self.trainable_only:
            trained = model_signature({}, model)["trained"]
            weights = {name: tensor for name, tensor in weights.items() if clean_name(name) in trained}
        return weights, moments

    def _complete(self, writing: Future, final: Path, about: dict) -> None:
        """In the writing thread: make `step-N.incomplete` a whole `step-N`, or remember why it is none."""
        try:
            temporary = final.with_suffix(".incomplete")
            failed = writing.exception()
            files = {path.name: path.stat().st_size for path in temporary.glob(f"__{self.context.rank}_*")}
            reports = self._gather((_cause(failed), files))
            self._on_rank0(lambda: commit(final, about, reports, self.keep))
            self.written = about["step"]
        except Exception as error:
            self._failure = error

    def _gather(self, mine: Any) -> list[Any]:
        if self.group is None:
            return [mine]
        everyone = [None] * self.context.world_size
        dist.all_gather_object(everyone, mine, group=self.group)
        return everyone

    def _on_rank0(self, decide: Callable[[], Any]) -> Any:
        """What `decide` returns or raises on rank 0, returned or raised on every rank."""
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
    """Read only the weights of a checkpoint, whatever number of ranks wrote it, into an unsharded model."""
    check_undamaged(path)
    state = {"model": model.state_dict()}
    _read(state, path, None)
    model.load_state_dict(state["model"])


def full_state_dict(model: nn.Module, trainable_only: bool = False) -> dict[str, torch.Tensor]:
    """The unsharded weights on the CPU, all or those that train; on ranks other than the first, an empty dict."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trainable_only)
    return get_model_state_dict(model, options=options)


def model_signature(about: dict, model: nn.Module) -> dict:
    """`about` and what tells models apart: names, whole shapes, and which parameters have optimizer state."""
    named = [(clean_name(name), parameter) for name, parameter in model.named_parameters()]
    shapes = {name: list(parameter.shape) for name, parameter in named}
    trained = [name for name, parameter in named if parameter.requires_grad]
    return {**about, "parameters": shapes, "trained": trained}


def _read(state: dict, path: Path, group: dist.ProcessGroup | None) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(state, checkpoint_id=path, process_group=group, no_dist=group is None)
    except dcp.api.CheckpointException as error:
        raise CheckpointError(f"{path} cannot be read: {_cause(error)}") from None


def _cause(error: BaseException | None) -> str:
    """Why reading or writing failed, in one line; empty where it did not."""
    if isinstance(error, dcp.api.CheckpointException):
        rank, (error, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {_cause(error)}"
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return "" if error is None else str(error).partition("\n")[0] or type(error).__name__
