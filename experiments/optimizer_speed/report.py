"""The benchmark's record as a table; the README's is made from the stored record."""

from statistics import median

from .optimizers import COMPACT, FREE, FUSED, ORIGINAL

# Of a step on a processor: what is compared, how it is measured and said, and the most that it should be.
WANTED = (
    ("task-free, of fused AdamW's step", lambda record: of_fused(record, FREE), "{:.2f}×", 2.0),
    ("task-free, of a pocket-base step", lambda record: pocket_share(record["pocket"], FREE), "{:.1%}", 0.08),
    ("task-dependent and compact, of fused AdamW's step", lambda record: of_fused(record, COMPACT), "{:.2f}×", 1.1),
)

HEAD = (
    "optimizer",
    "step, ms (least to most)",
    "of fused AdamW",
    "original is slower by",
    "floor, ms",
    "state, MB",
    "extra at peak, MB",
    "of a pocket-base step",
)


def rows(record: dict) -> list[list[str]]:
    """One row for each candidate, in words; medians throughout."""
    bandwidth = copy_bandwidth(record)
    results = record["results"]
    fused, original = (median(results[name]["seconds"]) for name in (FUSED, ORIGINAL))
    lines = []
    for name, found in results.items():
        times = found["seconds"]
        middle = median(times)
        spread = f"{middle * 1e3:.3g} ({min(times) * 1e3:.3g} to {max(times) * 1e3:.3g})"
        extra = "not measured" if found["extra"] is None else f"{found['extra'] / 1e6:.0f}"
        share = pocket_share(record["pocket"], name)
        floor = found["floor_bytes"] / bandwidth * 1e3
        cells = [name, spread, f"{middle / fused:.2f}×", f"{original / middle:.1f}×", f"{floor:.3g}"]
        lines.append([*cells, f"{found['state'] / 1e6:.0f}", extra, f"{share:.1%}"])
    return lines


def copy_bandwidth(record: dict) -> float:
    """Bytes read and written in a second while copying."""
    return 8 * record["elements"] / median(record["copy_seconds"])


def pocket_share(pocket: dict, name: str) -> float:
    """The optimizer's part of forward pass, backward pass and step together."""
    step = median(pocket["steps"][name])
    return step / (step + median(pocket["passes"]))


def of_fused(record: dict, name: str) -> float:
    """An optimizer's step in steps of fused AdamW."""
    return median(record["results"][name]["seconds"]) / median(record["results"][FUSED]["seconds"])


def conditions(record: dict) -> str:
    """What was measured where, and how to read the floor."""
    return (
        f"{record['elements']:,} float32 parameters in {record['tensors']} tensors on {record['machine']} "
        f"({record['threads']} threads of {record['cores']} cores, torch {record['versions']['torch']}, "
        f"{record['date']}, load {record['load'][0]:.1f} before and {record['load'][1]:.1f} after), "
        f"{record['repeats']} rounds; task-free p = {record['reserve_p']}, child of {record['fisher_p']:.0%}. "
        f"The floor is the bytes that a step must move over the copy bandwidth, "
        f"{copy_bandwidth(record) / 1e9:.1f} GB/s. A step in place can come out below it: a copy also fetches "
        "what it overwrites, which is not counted, and a large cache keeps some tensors between rounds."
    )


def verdicts(record: dict) -> str:
    """What was wanted on a processor and how far it was reached, and what a mask costs by itself."""
    if record["device"] != "cpu":
        return ""
    fused = median(record["results"][FUSED]["seconds"])
    said = []
    for what, measure, form, most in WANTED:
        found = measure(record)
        verdict = "met" if found <= most else "missed"
        said.append(f"{what}: {form.format(found)} (wanted: at most {form.format(most)}; {verdict})")
    words, mask = (median(record["mask_seconds"][what]) * 1e3 for what in ("words", "mask"))
    return (
        "; ".join(said) + f". On one thread, numpy's random words of a mask take {words:.3g} ms, "
        f"the mask {mask:.3g} ms: {words / (fused * 1e3):.2f} and {mask / (fused * 1e3):.2f} of fused AdamW's step on "
        f"{record['threads']}."
    )


def markdown(record: dict) -> str:
    lines = [HEAD, ["---"] * len(HEAD), *rows(record)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join(filter(None, (conditions(record), table, verdicts(record))))


def text(record: dict) -> str:
    """The same for a terminal."""
    lines = [list(HEAD), *rows(record)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([conditions(record), "", *table, *filter(None, [verdicts(record)])])
