"""What one rank does in a training step under `fully_shard`, in order, and which bytes it holds meanwhile.

torch's profiler names FSDP's actions, and hooks add where each module computes. Only the order is kept, because on a
CPU it is the same in every run and seconds are not.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.profiler import ProfilerActivity, profile, record_function

WHOLE, LAYERS, APART = "whole model", "each layer", "embedding and head too"
WRAPPINGS = (WHOLE, LAYERS, APART)
EMBEDDING, HEAD, ROOT = "embedding", "head", "root"
GATHER, COPY, FORWARD, BACKWARD, RESHARD, SCATTER = (
    "all-gather",
    "copy-out",
    "forward",
    "backward",
    "reshard",
    "reduce-scatter",
)
FORWARD_ENDS = "forward ends"  # of a unit, which is then resharded or stays as it is
OF_FSDP = {  # torch's name of a range -> ours
    "all_gather": GATHER,
    "all_gather_copy_out": COPY,
    "post_forward": FORWARD_ENDS,
    "post_backward_reshard": RESHARD,
    "post_backward_reduce": SCATTER,
}
RANGE = re.compile(r"FSDP::(\w+)(?: \((.*)\))?")
MARK = "step::"  # begins the names that the hooks of this module give


@dataclass(frozen=True)
class Event:
    """Attributes: `kind`; `unit`, what is gathered, or the module that computes; `start` and `end`, places in the
    order of all starts and ends of the step."""

    kind: str
    unit: str
    start: int
    end: int


def wrap(model: nn.Module, mesh: DeviceMesh, how: str, **options) -> nn.Module:
    """Apply `fully_shard` to a Llama-like model in one of WRAPPINGS; `options` are fully_shard's."""
    if how not in WRAPPINGS:
        raise ValueError(f"how is {how!r}: give one of {', '.join(WRAPPINGS)}")
    if how == APART:
        fully_shard(model.model.embed_tokens, mesh=mesh, **options)
    for layer in model.model.layers if how != WHOLE else []:
        fully_shard(layer, mesh=mesh, **options)
    if how == APART:  # not resharded, because the backward pass begins with it
        fully_shard([model.model.norm, model.lm_head], mesh=mesh, **options | {"reshard_after_forward": False})
    root = {name: value for name, value in options.items() if name != "reshard_after_forward"}
    return fully_shard(model, mesh=mesh, **root)


def prefetch_forward(model: nn.Module) -> nn.Module:
    """Let each unit of APART issue the next one's all-gather before it computes; returns the model."""
    units = [model.model.embed_tokens, *model.model.layers, model.model.norm]
    for unit, following in itertools.pairwise(units):
        unit.set_modules_to_forward_prefetch([following])
    return model


def unit_of(name: str | None) -> str:
    """The name of a unit in pictures, from torch's name of the modules in it."""
    if not name:
        return ROOT
    if found := re.search(r"layers\.(\d+)", name):
        return f"layer {found[1]}"
    return EMBEDDING if "embed" in name else HEAD


def unit_bytes(model: nn.Module, how: str) -> dict[str, int]:
    """Bytes of the unsharded parameters of each unit that `wrap` makes."""
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        unit = unit_of(name)
        if how == WHOLE or (how == LAYERS and not unit.startswith("layer")):
            unit = ROOT
        sizes[unit] = sizes.get(unit, 0) + parameter.numel() * parameter.element_size()
    return sizes


def record_step(model: nn.Module, step: Callable[[], object]) -> list[Event]:
    """Run `step`, a forward and a backward pass of the wrapped model, and return its events in order.

    Run one step before, because the first one allocates.
    """
    with _marks(model), profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    named = [(e.name, e.time_range.start, e.time_range.end) for e in profiled.events()]
    return events_of(sorted((r for r in named if r[0].startswith(("FSDP::", MARK))), key=lambda r: r[1]))


def events_of(ranges: Sequence[tuple[str, float, float]]) -> list[Event]:
    """Events from the profiler's ranges: (name, start, end), sorted by start."""
    found, begun = [], {}

    def end_backward(end: float) -> None:
        if BACKWARD in begun:
            found.append((BACKWARD, *begun.pop(BACKWARD), end))

    for name, start, end in ranges:
        if name.startswith(MARK):
            kind, unit = name.removeprefix(MARK).split(": ")
            if kind == "forward begins":
                begun[unit] = start
            elif kind == "forward ends":
                found.append((FORWARD, unit, begun.pop(unit), start))
            else:
                end_backward(start)
                begun[BACKWARD] = (unit, start)
        elif (match := RANGE.fullmatch(name)) and match[1] in OF_FSDP:
            end_backward(start)  # FSDP acts when a module's backward pass has ended
            found.append((OF_FSDP[match[1]], unit_of(match[2]), start, end))
    end_backward(ranges[-1][1])
    found = list(_with_reshards(found))
    places = {time: place for place, time in enumerate(sorted({t for event in found for t in event[2:]}))}
    return [Event(kind, unit, places[start], places[end]) for kind, unit, start, end in sorted(found, key=_by_start)]


def _by_start(event: tuple) -> tuple:
    return event[2:]


def _with_reshards(events: list[tuple]) -> Iterator[tuple]:
    """The events, with those reshards alone that change something.

    A unit whose forward pass ends is resharded only if it is gathered again before its backward pass. torch 2.11 names
    a second one, at the end of the step, for a unit that stayed unsharded until its backward pass had ended.
    """
    unsharded = set()
    for place, (kind, unit, *times) in enumerate(events):
        if kind == FORWARD_ENDS:
            later = [other[0] for other in events[place:] if other[1] == unit]
            if GATHER not in later and RESHARD in later:
                continue
            kind = RESHARD
        if kind == GATHER:
            unsharded.add(unit)
        if kind == RESHARD:
            if unit not in unsharded:
                continue
            unsharded.remove(unit)
        yield kind, unit, *times


@contextmanager
def _marks(model: nn.Module) -> Iterator[None]:
    """Hooks that name, in the profile, where modules' forward passes begin and end and their backward passes begin."""
    parts = {EMBEDDING: (model.model.embed_tokens,) * 2, HEAD: (model.model.norm, model.lm_head)}
    parts |= {f"layer {number}": (layer, layer) for number, layer in enumerate(model.model.layers)}

    def mark(kind: str, unit: str) -> Callable[..., None]:
        def note(*_) -> None:
            with record_function(f"{MARK}{kind}: {unit}"):
                pass

        return note

    handles = []
    for unit, (first, last) in parts.items():
        handles.append(first.register_forward_pre_hook(mark("forward begins", unit)))
        handles.append(last.register_forward_hook(mark("forward ends", unit), prepend=True))  # before it is resharded
        begins = mark("backward begins", unit)
        handles.append(last.register_forward_hook(lambda _, __, out, begins=begins: _on_gradient(out, begins)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_gradient(out, note: Callable[..., None]) -> None:
    out.register_hook(note)  # after FSDP's own hook, which gathers


def held_bytes(events: Sequence[Event], sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """Bytes of unsharded parameters and of unsharded gradients at each place of the order.

    Parameters count from the start of their all-gather, whose buffer they fill, to the end of their reshard; gradients
    from the start of the first backward pass inside their unit to the end of their reduce-scatter.
    """
    last = max(event.end for event in events) + 1
    parameters, gradients = [0] * last, [0] * last
    for unit, size in sizes.items():
        own = [event for event in events if event.unit == unit]
        resharded = [event.end for event in own if event.kind == RESHARD]
        for gather in (event.start for event in own if event.kind == GATHER):
            until = min((end for end in resharded if end > gather), default=last)
            for place in range(gather, until):
                parameters[place] += size
        inside = [e.start for e in events if e.kind == BACKWARD and (e.unit == unit or unit == ROOT)]
        for scatter in (event.end for event in own if event.kind == SCATTER):
            for place in range(min(inside), scatter):
                gradients[place] += size
    return list(zip(parameters, gradients, strict=True))


def moments(events: Sequence[Event]) -> list[Event]:
    """The forward and backward passes of the modules, in order."""
    return [event for event in events if event.kind in (FORWARD, BACKWARD)]


def held_at_moments(events: Sequence[Event], sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """The most bytes of parameters and gradients, by their sum, during each of `moments`."""
    held = held_bytes(events, sizes)
    return [max(held[event.start : event.end], key=sum) for event in moments(events)]
