"""What the growth records say: a table for each study, and how it grows. Every figure is computed here."""

from math import log

MIB = 2**20
WARM_UP = 2  # steps that are not counted
MILLION, START, MOST = 1_000_000, 60, 2e9  # rows that should start within so many seconds and bytes
HEADS = {
    "rows": "rows, first run",
    "rows, again": "rows, second run",
    "length": "tokens of a sequence",
    "ranks": "ranks",
    "width": "parameters",
}
EXPLAINED = {
    "rows": "Below 8 MiB (here 50,000 rows) every rank reads and tokenises the file itself; above, parts of it are in "
    "memory.",
    "rows, again": "The tokens of the first run are mapped from the cache: what is left is the hash of the file.",
    "length": "Logits, activations and linear layers grow with the length, attention's scores with its square.",
    "ranks": "Every rank is a Python process with torch; the model, its gradients and its states are sharded. More "
    "ranks than cores take turns.",
    "width": "At few parameters a step is the overhead of its operations, and memory that of Python and torch.",
}


def step_seconds(record: dict) -> float:
    """Of the fastest step: what other programs do only ever adds."""
    return min(record["step_seconds"][WARM_UP:])


MEASURES = {
    "processor seconds": lambda record: record["cpu_seconds"],
    "fastest step": step_seconds,
    "peak memory": lambda record: record["peak_bytes"],
}


def value(record: dict) -> int:
    return record["parameters"] if record["study"] == "width" else record["x"]


def marginal(records: list[dict], of) -> float | None:
    """What one more unit costs, between the two largest runs."""
    if len(records) < 2:
        return None
    last, before = records[-1], records[-2]
    return (of(last) - of(before)) / (value(last) - value(before))


def exponent(records: list[dict], of) -> float | None:
    """Growth between the two largest runs: 1 is linear, 2 quadratic, 0 none."""
    if len(records) < 2:
        return None
    last, before = records[-1], records[-2]
    return log(of(last) / of(before)) / log(value(last) / value(before))


def markdown(records: list[dict]) -> str:
    parts = [_conditions(records)] if records else ["No record is stored: `python -m experiments.growth` makes it."]
    for study in HEADS:
        found = sorted((r for r in records if r["study"] == study), key=value)
        if found:
            parts += [_table(study, found), _growth(study, found)]
    return "\n\n".join(parts)


def _conditions(records: list[dict]) -> str:
    machines = sorted({f"{r['machine']}, torch {r['torch']}, {r['date']}" for r in records})
    loads = [max(r["load"]) for r in records]
    cores = int(records[0]["machine"].split()[-2])
    shared = sum(load > cores + 1 for load in loads)
    words = f"{'; '.join(machines)}. One thread a process."
    if shared:
        words += (
            f" **The machine was shared:** in {shared} of {len(records)} runs other programs waited for a core, too "
            f"(load up to {max(loads):.0f}), so seconds by the clock are too many; processor seconds and "
            "memory tell more."
        )
    return words


def _table(study: str, records: list[dict]) -> str:
    head = [
        HEADS[study],
        "s to the first step",
        "s in all",
        "processor s",
        "fastest step, ms",
        "peak of all, MiB",
        "largest process, MiB",
    ]
    rows = [
        [
            f"{value(r):,}",
            f"{r['seconds_to_first_step']:.0f}",
            f"{r['seconds']:.0f}",
            f"{r['cpu_seconds']:.0f}",
            f"{1e3 * step_seconds(r):,.0f}",
            f"{r['peak_bytes'] / MIB:,.0f}",
            f"{r['largest_process_bytes'] / MIB:,.0f}",
        ]
        for r in records
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def _growth(study: str, records: list[dict]) -> str:
    said = EXPLAINED[study]
    if len(records) < 2:
        return said
    grown = ", ".join(f"{name} {exponent(records, of):.2f}" for name, of in MEASURES.items())
    said = f"Exponents between the two largest (1 is linear, 2 quadratic, 0 none): {grown}. {said}"
    if study == "rows":
        cpu, memory = (marginal(records, MEASURES[name]) for name in ("processor seconds", "peak memory"))
        said += f" One more row costs {1e6 * cpu:.0f} µs of a processor and {memory:.0f} bytes. {_million(records)}"
    return said


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def _million(records: list[dict]) -> str:
    """Whether a million rows start within START seconds and MOST bytes, if that was measured."""
    largest = records[-1]
    cores = int(largest["machine"].split()[-2])
    if largest["x"] < MILLION:
        more = MILLION - largest["x"]
        cpu = largest["cpu_seconds"] + more * marginal(records, MEASURES["processor seconds"])
        memory = largest["peak_bytes"] + more * marginal(records, MEASURES["peak memory"])
        return (
            f"A million rows were not measured; at this cost they would take {cpu:.0f} processor seconds, on {cores} "
            f"cores at least {cpu / cores:.0f} s, and {gigabytes(memory)} (wanted: {START} s and {gigabytes(MOST)})."
        )
    seconds, cpu, memory = (largest[key] for key in ("seconds_to_first_step", "cpu_seconds", "peak_bytes"))
    time, space = ("met" if good else "missed" for good in (seconds <= START, memory <= MOST))
    return (
        f"A million rows: the first step after {seconds:.0f} s (wanted: {START}; {time}). The run took {cpu:.0f} "
        f"processor seconds, on {cores} cores at least {cpu / cores:.0f} s. Peak: {gigabytes(memory)} (wanted: "
        f"{gigabytes(MOST)}; {space})."
    )
