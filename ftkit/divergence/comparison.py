"""Find the first step, module and tensor in which two recorded runs differ by more than rounding.

    ftkit finetune --output runs/one --record 3
    torchrun --nproc-per-node 2 -m ftkit.finetune --output runs/two --record 3
    ftkit compare-runs runs/one runs/two

A is the reference. Loops of your own are recorded by ftkit.divergence.record. Compared are, in the order in which they
are computed: parameters at the start, outputs of modules, tokens in the loss, gradients of outputs, gradients of
parameters as the optimizer gets them, its settings, and parameters after the step. How far rounding leads is measured
on A, which is recorded a second time with noise of that size.

Exit code 0: no difference beyond rounding; 1: there is one; 2: A or B cannot be read or compared.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ftkit._arguments import parse

from .hints import SETTINGS, START, TOKENS, hint
from .recorder import GRADIENT, OUTPUT, OUTPUT_GRADIENT, PARAMETER, unit_roundoff
from .recording import Recording, shared_keys

MARGIN = 10  # so many times what rounding was measured to do is not yet a divergence
UNEXPLAINED = 0.01  # share of a difference that may remain where B is said to be A times a factor


@dataclass(frozen=True)
class Divergence:
    """A tensor of run B that is not that of run A."""

    step: int
    kind: str
    name: str  # of the module, or of the parameter; "" is the model itself
    note: str = ""  # where the difference is not one of numbers
    difference: float = np.inf  # relative to the tensor of A
    rounding: float = 0.0  # what rounding was measured to do, relative as well
    factors: tuple[float, ...] = ()  # B is A times this, on each of the ranks that differ
    ranks: tuple[int, ...] = ()  # whose parts differ, where others' do not

    @property
    def module(self) -> str:
        of_module = self.kind in (OUTPUT, OUTPUT_GRADIENT, TOKENS)
        return self.name.partition("[")[0] if of_module else self.name.rpartition(".")[0]

    @property
    def factor(self) -> float | None:
        """What B is A times, if that is the same on all ranks."""
        return self.factors[0] if self.factors and np.allclose(self.factors, self.factors[0], UNEXPLAINED) else None

    def __str__(self) -> str:
        said = self.note or f"differs by {self.difference:.1e}, rounding by {self.rounding:.0e}"
        said += f"; B is A times {' and '.join(f'{f:.4g}' for f in sorted(set(self.factors)))}" if self.factors else ""
        said += f"; on rank {' and '.join(map(str, self.ranks))} only" if self.ranks else ""
        return f"{self.kind} {self.name or '(the model)'}: {said}"


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

    def __str__(self) -> str:
        lines = [f"{'step':>4}  {'tensors':22}  compared  differ"]
        lines += [f"{p.step:4}  {p.kind:22}  {p.compared:8}  {len(p.divergences):6}" for p in self.phases]
        if self.first is None:
            return "\n".join(
                [*lines, f"no difference beyond rounding in {sum(p.compared for p in self.phases)} tensors"]
            )
        lines.append(f"first divergence: step {self.first.step}, module {self.first.module or '(the model)'}")
        return "\n".join([*lines, f"  {self.first}", f"  likely cause: {self.hint}"])

    def as_json(self) -> str:
        """One object; a difference that is not a finite number is null."""
        found = [asdict(d) | {"module": d.module} for phase in self.phases for d in phase.divergences]
        found = [d | {"difference": d["difference"] if np.isfinite(d["difference"]) else None} for d in found]
        phases = [asdict(phase) | {"divergences": len(phase.divergences)} for phase in self.phases]
        first = found[0] | {"hint": self.hint} if found else None
        return json.dumps({"equal": not found, "first": first, "phases": phases, "divergences": found}, indent=1)


def compare(a: str | Path, b: str | Path) -> Report:
    """Compare the recording of run `b` with that of the reference `a`.

    A difference counts where it is more than `MARGIN` times that between `a` and its repetition with noise. Of
    parameters after a step the median row decides: an optimizer that divides by the root of a second moment turns
    rounding in a few gradients near zero into whole steps.

    Raises ValueError for folders that cannot be compared.
    """
    comparison = _Comparison(Recording(a), Recording(a, "rounding"), Recording(b))
    if not comparison.steps:
        raise ValueError(f"{a} and {b} have no step in common: record the same ones")
    return comparison.run()


class _Comparison:
    def __init__(self, a: Recording, noisy: Recording, b: Recording):
        self.a, self.noisy, self.b = a, noisy, b
        self.steps = [step for step in a.steps if step in b.steps and step in noisy.steps]

    def run(self) -> Report:
        phases = [self.phase(self.steps[0], PARAMETER, START)]
        for step in self.steps:
            gradients = self.phase(step, GRADIENT)
            gradients.divergences = self.without_gradient(step) + gradients.divergences
            phases += [self.phase(step, OUTPUT), self.tokens(step), self.output_gradients(step, gradients)]
            phases += [gradients, self.settings(step), self.phase(step, PARAMETER)]
        report = Report(phases)
        if first := report.first:
            of_kind = next(phase for phase in phases if phase.divergences)
            report.hint = hint(first, len(of_kind.divergences) == of_kind.compared, self.a, self.b)
        return report

    def phase(self, step: int, kind: str, title: str = "", factor: float = 1.0) -> Phase:
        """Compare all tensors of a kind; B's are divided by `factor` first."""
        phase = Phase(step, title or kind)
        at = step + (phase.kind == PARAMETER)  # a parameter after step 0 is one of step 1
        for name in self.a.names(at, kind):
            key = at, kind, name
            # Tensor parallelism splits some outputs that cannot be put together again.
            if self.a.width(key) == self.noisy.width(key) == self.b.width(key):
                phase.compared += 1
                found = self.differing(key, phase, self.a) if len(self.a.parts[key]) > 1 else None
                found = found or self.differing(key, phase, self.b, factor)
                phase.divergences += [found] if found else []
        return phase

    def differing(self, key: tuple, phase: Phase, run: Recording, factor: float = 1.0) -> Divergence | None:
        """Compare the parts of a tensor in one of the runs with the whole of A, which A's own ranks may contradict."""
        whole, noisy, unit = self.a.whole(key), self.noisy.whole(key), unit_roundoff(self.a.facts[key]["dtype"])
        norm, differing, alike = np.median if phase.kind == PARAMETER else np.linalg.norm, [], 0
        for part in run.parts[key]:
            keys = shared_keys(part.keys, whole.keys, noisy.keys)
            if phase.kind == PARAMETER:
                keys = keys[self.a.moved(key, keys) | run.moved(key, keys)]
            if not len(keys):
                continue
            x, y, z = part.at(keys) / factor, whole.at(keys), noisy.at(keys)
            apart, by_noise, size = (norm(np.sqrt(np.square(v).mean(1))) for v in (x - y, z - y, y))
            size = size or 1.0
            rounding = max(by_noise, unit * size)
            if apart <= MARGIN * rounding:  # not where it is NaN
                alike += 1
                continue
            times = float((x * y).sum() / max(np.square(y).sum(), np.finfo(float).tiny))
            explained = np.linalg.norm(x - times * y) <= UNEXPLAINED * np.linalg.norm(x - y)
            differing.append((part.rank, float(apart / size), float(rounding / size), times if explained else 0.0))
        if not differing:
            return None
        ranks, apart, rounding, factors = zip(*differing, strict=True)
        return Divergence(
            *(phase.step, phase.kind, key[2], "the ranks of A contradict each other" if run is self.a else ""),
            *(max(apart), max(rounding), factors if all(factors) else (), ranks if alike else ()),
        )

    def without_gradient(self, step: int) -> list[Divergence]:
        """Parameters that have a gradient in one run, and none in the other."""
        found = []
        for run, other, name in ((self.a, self.b, "B"), (self.b, self.a, "A")):
            for parameter in run.names(step, GRADIENT):
                known = other.width((self.steps[0], PARAMETER, parameter))
                key = step, GRADIENT, parameter
                if known and not other.width(key) and run.whole(key).lines.any():
                    found.append(Divergence(*key, f"{name} has none"))
        return found

    def tokens(self, step: int) -> Phase:
        """Compare which tokens get a gradient at the first output of the backward pass."""
        phase = Phase(step, TOKENS)
        for name in self.a.names(step, OUTPUT_GRADIENT)[:1]:
            key = step, OUTPUT_GRADIENT, name
            if self.b.width(key):
                a, b = (whole.keys[whole.lines.any(1)] for whole in (self.a.whole(key), self.b.whole(key)))
                lost, more = len(np.setdiff1d(a, b)), len(np.setdiff1d(b, a))
                phase.compared = len(a)
                if lost or more:
                    note = f"{lost} of {len(a)} in A are not in B, and {more} of {len(b)} in B not in A"
                    phase.divergences.append(Divergence(step, TOKENS, "", note))
        return phase

    def output_gradients(self, step: int, gradients: Phase) -> Phase:
        """Where ranks average their gradients, each rank's own is larger by the number of shares of the batch.

        A loss that is scaled otherwise is no divergence where the gradients of the parameters agree all the same.
        """
        shares = self.b.shares(step) / self.a.shares(step)
        phase = self.phase(step, OUTPUT_GRADIENT, factor=shares)
        if phase.divergences and phase.divergences[0].factor and gradients.compared and not gradients.divergences:
            return self.phase(step, OUTPUT_GRADIENT, factor=shares * phase.divergences[0].factor)
        return phase

    def settings(self, step: int) -> Phase:
        """Compare the settings of the optimizer's group of each parameter."""
        phase = Phase(step, SETTINGS)
        for name, a in self.a.settings[step].items():
            b = self.b.settings[step].get(name)
            if b is None and not self.b.width((step, GRADIENT, name)):
                continue
            phase.compared += 1
            other = sorted(k for k in a.keys() & (b or {}).keys() if not np.allclose(a[k], b[k], rtol=1e-6, atol=0))
            note = "not in the optimizer of B" if b is None else ""
            note += ", ".join(f"{k} {a[k]} in A and {b[k]} in B" for k in other)
            phase.divergences += [Divergence(step, SETTINGS, name, note)] if note else []
        return phase


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ftkit compare-runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A", help="folder of the reference's recording")
    parser.add_argument("b", metavar="B", help="folder of the other run's")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    given = parse(parser, arguments)
    try:
        report = compare(given.a, given.b)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.as_json() if given.json else report)
    return int(report.first is not None)


if __name__ == "__main__":
    sys.exit(main())
