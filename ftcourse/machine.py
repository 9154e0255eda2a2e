"""Is this machine enough for the course? `python -m ftcourse.machine` answers with a line for each requirement.

`read_machine` collects the facts, `check_machine` compares them with what the course needs. A container's own limits
of memory and processor time are not read: the numbers are those of the host.
"""

import argparse
import html
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from ftkit._arguments import parse
from ftkit.findings import Finding, has_errors

GIB = 2**30
CORES = 2  # the course's times are measured on two
MEMORY_BYTES = 4 * GIB  # available, before a notebook starts: the sharded fine-tune runs three processes
DISK_BYTES = 5 * GIB  # free: checkpoints and exported models, with room to spare
INSTALL = "run `make lab`, or pip install -c constraints.txt -e '.[lab,test]'"
FINE, TOO_LITTLE, MISSING = "note", "warning", "error"  # severities of a finding
VERDICTS = {FINE: "fine", TOO_LITTLE: "too little", MISSING: "missing"}  # as they are shown
WHY = {
    "Python": "The course runs on the versions that pyproject.toml names.",
    "cores": "The course's times are measured on two cores.",
    "memory": "The sharded fine-tune runs three processes.",
    "disk": "Checkpoints and exported models need room.",
    "accelerator": "The GPU sections use an accelerator where there is one.",
}


@dataclass(frozen=True)
class Machine:
    """The facts about a machine that the course depends on; `read_machine` returns those of this one."""

    python: str  # version
    cores: int  # that this process may use
    memory_bytes: int
    available_bytes: int  # of memory, without swapping
    disk_bytes: int  # free where the course writes: the current folder
    accelerators: tuple[tuple[str, int], ...] = ()  # name and memory in bytes (0: shared with the processor)
    idle_gpu: bool = False  # an NVIDIA driver is here and torch does not use it
    versions: dict[str, str | None] = field(default_factory=dict)  # None: not installed
    requires: tuple[str, ...] = ()  # ftkit's own requirements, as pyproject.toml states them
    requires_python: str = ">=3.11"


def read_machine(folder: str | Path = ".") -> Machine:
    """Return the facts of this machine.

    Args:
        folder: where the course will write; the free space is that of its disk.
    """
    import psutil

    memory = psutil.virtual_memory()
    try:
        about = metadata.metadata("ftkit")
        requires, requires_python = tuple(metadata.requires("ftkit") or ()), about["Requires-Python"]
    except metadata.PackageNotFoundError:
        requires, requires_python = (), Machine.requires_python
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in requires}
    accelerators = _accelerators()
    return Machine(
        python=platform.python_version(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=memory.total,
        available_bytes=memory.available,
        disk_bytes=shutil.disk_usage(folder).free,
        accelerators=accelerators,
        idle_gpu=not accelerators and _nvidia_driver(),
        versions={name: _version(name) for name in names},
        requires=requires,
        requires_python=requires_python,
    )


class Findings(list):
    """A list of `Finding` that prints as text and shows as a table in a notebook."""

    @property
    def complete(self) -> bool:
        """True where nothing that the course needs is missing."""
        return not has_errors(self)

    def __str__(self) -> str:
        lines = []
        for f in self:
            lines.append(f"{f.code:<12} {VERDICTS[f.severity]:<11} {f.observed}")
            lines += [f"{'':25}{f.remedy}"] if f.remedy else []
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def row(kind: str, *texts: str) -> str:
            cells = [f"<{kind} style='text-align:left'>{html.escape(text)}</{kind}>" for text in texts]
            return f"<tr>{''.join(cells)}</tr>"

        rows = [row("td", f.code, VERDICTS[f.severity], f.observed, f.remedy) for f in self]
        return f"<table>{row('th', 'what', 'verdict', 'found', 'what to do')}{''.join(rows)}</table>"


def check_machine(machine: Machine | None = None) -> Findings:
    """Return a `Finding` for each thing that the course needs or can use, for this machine by default."""
    m = machine or read_machine()
    findings = [_python(m), _cores(m), _memory(m), _disk(m), _accelerator(m), *_libraries(m)]
    return Findings(findings)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _accelerators() -> tuple[tuple[str, int], ...]:
    """Return (name, bytes of memory) of each accelerator that `pick_device` would use."""
    try:
        import torch

        from ftkit.distributed.device import pick_device
    except ImportError:  # the missing library is reported by name
        return ()
    kind = pick_device().device.type
    if kind == "cuda":
        every = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        return tuple((gpu.name, gpu.total_memory) for gpu in every)
    return () if kind == "cpu" else ((kind.upper(), 0),)


def _nvidia_driver() -> bool:
    # An empty CUDA_VISIBLE_DEVICES switches GPUs off on purpose.
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and shutil.which("nvidia-smi") is not None


def _python(m: Machine) -> Finding:
    if _fits(m.python, m.requires_python):
        return _finding("Python", m.python, FINE)
    remedy = f"install Python {m.requires_python}, then `make clean lab PYTHON=/path/to/python3`"
    return _finding("Python", m.python, MISSING, remedy)


def _cores(m: Machine) -> Finding:
    if m.cores >= CORES:
        return _finding("cores", str(m.cores), FINE)
    remedy = "everything runs, and takes twice as long or more; a second core for this machine or container helps"
    return _finding("cores", str(m.cores), TOO_LITTLE, remedy)


def _memory(m: Machine) -> Finding:
    found = f"{m.memory_bytes / GIB:.1f} GiB in all"
    if m.available_bytes >= MEMORY_BYTES:
        return _finding("memory", f"{found}, at least {MEMORY_BYTES / GIB:.0f} GiB of it available", FINE)
    remedy = (
        f"{MEMORY_BYTES / GIB:.0f} GiB are needed: close other programs, shut down the kernels of other "
        "notebooks (Kernel > Shut Down All Kernels), and open one notebook at a time"
    )
    return _finding("memory", f"{found}, {m.available_bytes / GIB:.1f} GiB of it available", TOO_LITTLE, remedy)


def _disk(m: Machine) -> Finding:
    if m.disk_bytes >= DISK_BYTES:
        return _finding("disk", f"at least {DISK_BYTES / GIB:.0f} GiB free", FINE)
    remedy = f"{DISK_BYTES / GIB:.0f} GiB are needed: remove old runs, or work on another disk"
    return _finding("disk", f"{m.disk_bytes / GIB:.1f} GiB free", TOO_LITTLE, remedy)


def _accelerator(m: Machine) -> Finding:
    if m.accelerators:
        names = [f"{name}, {size / GIB:.0f} GiB" if size else name for name, size in m.accelerators]
        return _finding("accelerator", "; ".join(names), FINE)
    if m.idle_gpu:
        remedy = "install torch as https://pytorch.org/get-started/locally says for this CUDA driver"
        return _finding("accelerator", "an NVIDIA driver, which this torch does not use", TOO_LITTLE, remedy)
    return _finding("accelerator", "none, and none is needed: the course runs on the processor", FINE)


def _libraries(m: Machine) -> list[Finding]:
    """Return a finding for each library that is missing or out of range, or one for all where none is."""
    from packaging.requirements import Requirement

    wrong, right = [], []
    for requirement in map(Requirement, m.requires):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue  # of an extra, or of another system
        name, version = requirement.name, m.versions.get(requirement.name)
        if version is not None and _fits(version, str(requirement.specifier)):
            right.append(f"{name} {version}")
            continue
        found = "not installed" if version is None else f"{version}, outside {requirement.specifier}"
        wrong.append(_finding(name, found, MISSING, f"pip install '{name}{requirement.specifier}'"))
    if not m.requires:
        wrong = [_finding("ftkit", "not installed", MISSING, INSTALL)]
    return wrong or [_finding("libraries", ", ".join(right), FINE)]


def _finding(code: str, observed: str, severity: str, remedy: str = "") -> Finding:
    return Finding(severity, code, observed, WHY.get(code, "ftkit imports it."), remedy)


def _fits(version: str, specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ftkit machine",
        description="Check this machine: a line for each thing the course needs. "
        "Exit status 1 if something is missing; too little of something is only reported.",
    )
    parse(parser, arguments)
    try:
        findings = check_machine()
    except ModuleNotFoundError as error:  # of the two libraries that the check itself needs
        print(f"{error.name:<12} {VERDICTS[MISSING]:<11} not installed\n{'':25}{INSTALL}")
        return 1
    print(findings)
    return 0 if findings.complete else 1


if __name__ == "__main__":
    sys.exit(main())
