"""Compare two recordings, and name the first step, module and tensor in which they differ by more than rounding."""

import json
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from .record import GRADIENT, OUTPUT, OUTPUT_GRADIENT, PARAMETER, PROJECTIONS, unit_roundoff

MARGIN = 10  # so many times what rounding was measured to do is not yet a divergence
START, TOKENS, SETTINGS = "parameter at the start", "tokens in the loss", "optimizer setting"
SAME_FACTOR = 0.01  # what may remain of a difference that one factor explains


@dataclass(frozen=True)
class Divergence:
    """A tensor of run B that is not that of run A."""

    step: int
    kind: str
    name: str  # of the module, or of the parameter; "" is the model itself
    difference: float = np.inf  # relative to the tensor of A; infinite where only one run has it
    rounding: float = 0.0  # what rounding was measured to do, relative as well
    factors: tuple[float, ...] = ()  # B is A times this; one for each rank whose part differs
    ranks: tuple[int, ...] = ()  # whose parts differ, where others' do not
    note: str = ""

    @property
    def module(self) -> str:
        of_module = self.kind in (OUTPUT, OUTPUT_GRADIENT, TOKENS)
        return self.name.partition("[")[0] if of_module else self.name.rpartition(".")[0]

    @property
    def factor(self) -> float | None:
        """What B is A times, if that is the same number on all ranks."""
        return self.factors[0] if self.factors and np.ptp(self.factors) <= SAME_FACTOR * abs(self.factors[0]) else None

    def __str__(self) -> str:
        what = f"{self.kind} {self.name or 'of the model'}"
        if self.note:
            return f"{what}: {self.note}"
        times = f", B is A times {' and '.join(f'{f:.4g}' for f in sorted(set(self.factors)))}" if self.factors else ""
        where = f" on rank {' and '.join(map(str, self.ranks))} only" if self.ranks else ""
        return f"{what}: differs by {self.difference:.1e} (rounding: {self.rounding:.0e}){times}{where}"


@dataclass
class Phase:
    """One kind of tensor at one step: how many were compared, and those that differ, in the order of execution."""

    step: int
    kind: str
    compared: int = 0
    divergences: list[Divergence] = field(default_factory=list)


@dataclass
class Report:
    phases: list[Phase]
    hint: str = ""

    @property
    def first(self) -> Divergence | None:
        return next((phase.divergences[0] for phase in self.phases if phase.divergences), None)

    @property
    def compared(self) -> int:
        return sum(phase.compared for phase in self.phases)

    def __str__(self) -> str:
        lines = [f"{'step':>4}  {'tensors':22} compared  differ"]
        lines += [f"{p.step:4}  {p.kind:22} {p.compared:8}  {len(p.divergences):6}" for p in self.phases]
        if self.first is None:
            return "\n".join([*lines, f"no difference beyond rounding in {self.compared} tensors"])
        lines.append(f"first divergence: step {self.first.step}, module {self.first.module or '(the model)'}")
        return "\n".join([*lines, f"  {self.first}", f"  {self.hint}"])


@dataclass(frozen=True)
class Part:
    """The rows of a tensor that one rank has, or that several have together (rank None)."""

    rank: int | None
    keys: np.ndarray  # (N,) ascending
    lines: np.ndarray  # (N, PROJECTIONS + 1): projections and squared norm

    def at(self, keys: np.ndarray) -> np.ndarray:
        return self.lines[np.searchsorted(self.keys, keys)]


class Recording:
    """What `record` wrote into a folder: of the run, or of its repetition with noise.

    Raises FileNotFoundError or ValueError for a folder without a complete one.
    """

    def __init__(self, folder: str | Path, what: str = "rank"):
        self.folder, self.ranks, self.settings, self.facts, read = folder, 1, defaultdict(dict), {}, defaultdict(list)
        rank = 0
        while rank < self.ranks:
            path = Path(folder) / f"{what}-{rank}.safetensors"
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: {REMEDY[what]}")
            with safe_open(path, "np") as file:
                about = json.loads((file.metadata() or {}).get("recording", "null"))
                if about is None:
                    raise ValueError(f"{path} is not a recording: ftkit.divergence.record writes them")
                for number, entry in enumerate(about["entries"]):
                    key = entry["step"], entry["kind"], entry["name"]
                    self.facts.setdefault(key, entry)
                    tensors = file.get_tensor(f"{number}.keys"), file.get_tensor(f"{number}.lines")
                    read[key].append((rank, *entry["columns"], *tensors))
            for step, settings in about["settings"].items():
                self.settings[int(step)] |= settings
            self.ranks, self.steps, rank = about["ranks"], range(*about["steps"]), rank + 1
        self.parts = {key: assemble(found) for key, found in read.items()}

    def names(self, step: int, kind: str) -> list[str]:
        return [name for s, k, name in self.facts if (s, k) == (step, kind)]

    def whole(self, key: tuple) -> Part:
        """All rows of a tensor, each from the first rank that has it."""
        keys, first = np.unique(np.concatenate([part.keys for part in self.parts[key]]), return_index=True)
        return Part(None, keys, np.concatenate([part.lines for part in self.parts[key]])[first])

    def dtype(self, key: tuple) -> str:
        return self.facts[key]["dtype"]

    def width(self, key: tuple) -> int:
        """Columns of the whole tensor, 0 where there is none: tensor parallelism splits some that cannot be put together."""
        return self.facts[key]["columns"][2] if key in self.facts else 0

    def moved(self, key: tuple, rank: int | None, keys: np.ndarray) -> np.ndarray:
        """Which rows of a parameter the step before `key` changed, as a rank has them (None: as a whole)."""
        before = (key[0] - 1, *key[1:])
        if before not in self.parts:
            return np.zeros(len(keys), bool)
        of_rank = [next((part for part in self.parts[k] if part.rank == rank), None) for k in (before, key)]
        was, now = (part or self.whole(k) for part, k in zip(of_rank, (before, key), strict=True))
        return (was.at(keys) != now.at(keys)).any(1)

    def shares(self, step: int) -> int:
        """Into how many shares the ranks split the batch of a step: those of one share see the same tokens."""
        tokens = defaultdict(set)
        for name in self.names(step, OUTPUT):
            for part in self.parts[step, OUTPUT, name]:
                tokens[part.rank].update(part.keys.tolist())
        tokens.pop(None, None)
        return len(set(map(frozenset, tokens.values()))) or 1


REMEDY = {
    "rank": "record the run with `with ftkit.divergence.record(folder, model, optimizer)` around its loop",
    "rounding": "record the reference once more, from the same beginning and into the same folder, with rounding=True: "
    "that measures how far rounding leads",
}


def assemble(found: list[tuple]) -> list[Part]:
    """The parts of a tensor. Where ranks hold some of its columns, their lines are added up to one part.

    Args:
        found: of each rank: its number; offset, number and total of its columns; keys and lines.
    """
    parts, slices = [], defaultdict(list)
    for rank, offset, width, total, keys, lines in found:
        if width == total:
            parts.append(Part(rank, *unique_rows(keys, lines)))
        else:
            slices[offset].append((keys, lines))
    if slices:
        each = [unique_rows(*map(np.concatenate, zip(*same, strict=True))) for same in slices.values()]
        parts.append(Part(None, *unique_rows(*map(np.concatenate, zip(*each, strict=True)), mean=False)))
    return parts


def unique_rows(keys: np.ndarray, lines: np.ndarray, mean: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """One line for each key, in ascending order: the mean of its lines, or their sum."""
    unique, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    total = np.zeros((len(unique), lines.shape[1]))
    np.add.at(total, inverse, lines)
    return unique, total / counts[:, None] if mean else total


def compare(a: str | Path, b: str | Path) -> Report:
    """Compare the recording of run `b` with that of the reference `a`.

    A difference counts where it is more than `MARGIN` times that between `a` and its repetition with noise. Of
    parameters after a step the median row decides: an optimizer that divides by the root of a second moment turns
    rounding in a few gradients near zero into whole steps.

    Raises FileNotFoundError or ValueError for folders that cannot be compared.
    """
    return _Comparison(Recording(a), Recording(a, "rounding"), Recording(b)).run()


class _Comparison:
    def __init__(self, a: Recording, noisy: Recording, b: Recording):
        self.a, self.noisy, self.b = a, noisy, b
        self.steps = [step for step in a.steps if step in b.steps and step in noisy.steps]
        if not self.steps:
            raise ValueError(f"{a.folder} has the steps {a.steps}, {b.folder} {b.steps}: record the same ones")

    def run(self) -> Report:
        phases = [self._phase(self.steps[0], PARAMETER, START)]
        for step in self.steps:
            gradients = self._phase(step, GRADIENT)
            gradients.divergences = self._without_gradient(step) + gradients.divergences
            phases += [self._phase(step, OUTPUT), self._tokens(step), self._output_gradients(step, gradients)]
            phases += [gradients, self._settings(step), self._phase(step, PARAMETER)]
        report = Report(phases)
        if report.first:
            report.hint = hint(report, self.a, self.b)
        return report

    def _phase(self, step: int, kind: str, title: str = "", factor: float = 1.0) -> Phase:
        phase, at = Phase(step, title or kind), step + (kind == PARAMETER and not title)
        for name in self.a.names(at, kind):
            key = at, kind, name
            if all(self.a.width(key) == recording.width(key) for recording in (self.noisy, self.b)):
                phase.compared += 1
                found = self._differing(key, phase, self.a) or self._differing(key, phase, self.b, factor)
                phase.divergences += [found] if found else []
        return phase

    def _differing(self, key: tuple, phase: Phase, run: Recording, factor: float = 1.0) -> Divergence | None:
        """Compare the parts of a tensor in one of the runs, divided by `factor`, with the whole tensor of A."""
        whole, noisy, unit = self.a.whole(key), self.noisy.whole(key), unit_roundoff(getattr(torch, self.a.dtype(key)))
        norm, differing, alike = np.median if phase.kind == PARAMETER else np.linalg.norm, [], set()
        for part in run.parts[key]:
            keys = np.intersect1d(np.intersect1d(part.keys, whole.keys), noisy.keys)
            if phase.kind == PARAMETER:
                keys = keys[self.a.moved(key, None, keys) | run.moved(key, part.rank, keys)]
            if not len(keys):
                continue
            x, y, z = (lines.at(keys)[:, :PROJECTIONS] for lines in (part, whole, noisy))
            x = x / factor
            apart, by_noise = (norm(np.sqrt(np.square(v - y).mean(1))) for v in (x, z))
            size = norm(np.sqrt(whole.at(keys)[:, -1]))
            allowed = MARGIN * max(by_noise, unit * size)
            if apart <= allowed:
                alike.add(part.rank)
                continue  # NaN differs
            times = float((x * y).sum() / max(np.square(y).sum(), np.finfo(float).tiny))
            explained = np.linalg.norm(x - times * y) <= SAME_FACTOR * np.linalg.norm(x - y)
            differing.append((part.rank, apart / (size or 1), allowed / MARGIN / (size or 1), times * explained))
        if not differing:
            return None
        ranks, apart, allowed, times = zip(*differing, strict=True)
        return Divergence(
            *(phase.step, phase.kind, key[2], float(max(apart)), float(max(allowed))),
            factors=times if all(times) else (),
            ranks=ranks if alike else (),
            note="the ranks of A contradict each other" if run is self.a else "",
        )

    def _without_gradient(self, step: int) -> list[Divergence]:
        """Parameters that have a gradient in one run, and none or only zeros in the other."""
        found = []
        for run, other, name in ((self.a, self.b, "B"), (self.b, self.a, "A")):
            for parameter in run.names(step, GRADIENT):
                key = step, GRADIENT, parameter
                known = (self.steps[0], PARAMETER, parameter) in other.parts
                if known and key not in other.parts and run.whole(key).lines[:, -1].any():
                    found.append(Divergence(step, GRADIENT, parameter, note=f"{name} has none"))
        return found

    def _tokens(self, step: int) -> Phase:
        """Tokens whose last output has a gradient in one run only."""
        phase = Phase(step, TOKENS)
        for name in self.a.names(step, OUTPUT_GRADIENT)[:1]:
            key = step, OUTPUT_GRADIENT, name
            if key not in self.b.parts:
                continue
            phase.compared = 1
            a, b = (whole.keys[whole.lines[:, -1] > 0] for whole in (self.a.whole(key), self.b.whole(key)))
            lost, more = len(np.setdiff1d(a, b)), len(np.setdiff1d(b, a))
            if lost or more:
                note = f"{lost} of A's {len(a)} are not in B, and {more} of B's {len(b)} not in A"
                phase.divergences.append(Divergence(step, TOKENS, "", note=note))
        return phase

    def _output_gradients(self, step: int, gradients: Phase) -> Phase:
        """Where ranks average their gradients, each rank's own is that of its own mean: more by the number of shares.

        A loss that is scaled otherwise is no divergence where the gradients of the parameters agree all the same.
        """
        shares = self.b.shares(step) / self.a.shares(step)
        phase = self._phase(step, OUTPUT_GRADIENT, factor=shares)
        if phase.divergences and phase.divergences[0].factor and gradients.compared and not gradients.divergences:
            return self._phase(step, OUTPUT_GRADIENT, factor=shares * phase.divergences[0].factor)
        return phase

    def _settings(self, step: int) -> Phase:
        """Settings of the optimizer's groups for each parameter, as they were when it made its step."""
        phase = Phase(step, SETTINGS)
        for name, a in self.a.settings[step].items():
            b = self.b.settings[step].get(name)
            if b is None and (step, GRADIENT, name) not in self.b.parts:
                continue
            phase.compared += 1
            if b is None:
                phase.divergences.append(Divergence(step, SETTINGS, name, note="not in the optimizer of B"))
                continue
            other = [key for key in a.keys() & b.keys() if not np.allclose(a[key], b[key], rtol=1e-6, atol=0)]
            if other:
                note = ", ".join(f"{key} {a[key]} in A and {b[key]} in B" for key in sorted(other))
                phase.divergences.append(Divergence(step, SETTINGS, name, note=note))
        return phase


def hint(report: Report, a: Recording, b: Recording) -> str:
    """The likely cause of the first divergence."""
    first = report.first
    phase = next(phase for phase in report.phases if phase.divergences)
    key, factor = (first.step, first.kind, first.name), first.factor
    everywhere = len(phase.divergences) == phase.compared
    if first.kind == START:
        return "loaded from other files, drawn from another seed, not broadcast from rank 0, or cast" + dtypes(key, a, b)
    if first.kind == TOKENS:
        return "other examples (a skipped or repeated micro-batch), loss mask, attention_mask, or restarts of position_ids"
    if first.kind == SETTINGS:
        return "another group, schedule or flag; an optimizer that was built before sharding holds no parameter"
    if first.kind == OUTPUT:
        if first.ranks:
            return "computed differently on some ranks: dropout, seeds, stale weights or buffers, a missing all-reduce"
        if dtypes(key, a, b):
            return "computed" + dtypes(key, a, b)
        if a.facts[key]["training"] != b.facts[key]["training"]:
            return "in training mode in one run only: dropout"
        if factor:
            return "a scale is lost or applied twice, such as lora_alpha / r"
        return "what it takes agrees, so it is the module's own: attention mask, position_ids, epsilon, dropout, a buffer"
    if first.kind == OUTPUT_GRADIENT:
        if first.name not in a.names(first.step, OUTPUT_GRADIENT)[:2]:
            return "what follows this output has another backward pass: a scale, detach, a missing all-reduce"
        if factor:
            return "the loss is scaled: a sum for a mean, or divided by another number of tokens, micro-batches or ranks"
        if first.factors:
            return "each rank divides by a number of its own, such as its own tokens, where all of them are to count"
        return "all outputs agree, so the loss differs: labels (shifted, masked) or their weights"
    if first.kind == GRADIENT and first.note:
        return "frozen, detached, or not used in one run"
    if first.kind == GRADIENT:
        if len(set(first.factors)) > 1 and factor is None:
            return "each rank scales its gradients by a factor of its own: clipped by its local norm?"
        if factor and everywhere:
            return (
                "all gradients are scaled: summed over ranks or micro-batches where the mean is wanted, or clipped by "
                "another norm or limit"
            )
        return "gradients of outputs agree, so it is how they are summed: a missing all-reduce, zero_grad, accumulation"
    return "gradients and settings agree, so it is the update: moments (lost on resuming?), gradient mask, decay, algorithm"


def dtypes(key: tuple, a: Recording, b: Recording) -> str:
    key = (key[0], PARAMETER if key[1] == START else key[1], key[2])
    return f" in {b.facts[key]['dtype']}, in A in {a.facts[key]['dtype']}" if a.dtype(key) != b.dtype(key) else ""
