"""The report of a run, in Markdown, made from its records alone."""

from statistics import median

from .mfu import DATA_SHEETS
from .steps import CONTENDERS, STEPS
from .verdicts import (
    RUNS,
    WARM_UP,
    by_step,
    copy_bandwidth,
    first,
    matmul_flops,
    mfu,
    optimizer_ratios,
    peer_records,
    step_seconds,
    tokens_per_second,
    verdicts,
)

GIB = 2**30
WORDS = {True: "met", False: "missed", None: "not judged"}
TINY = (
    "**A trial of the program at tiny size on a CPU. Nothing below says anything about a GPU:** run `make gpu` where "
    "there is one."
)


def markdown(records: list[dict]) -> str:
    """The whole report; of a run that was cut off, what there is."""
    steps = by_step(records)
    environment = first(steps["environment"], "device")
    parts = ["# What was measured on this device", _conditions(environment)]
    parts += ["## Targets", _verdict_table(records)]
    for title, body in (
        ("Ceilings", _ceilings(steps["ceilings"], environment)),
        ("Optimizer step", _optimizer(steps["optimizer"])),
        ("Memory", _memory(steps["memory"])),
        ("Full fine-tune", _fine_tunes(steps, environment)),
        ("Side by side", _peers(steps)),
        ("Steps of this run", _endings(steps)),
    ):
        parts += [f"## {title}", body]
    return "\n\n".join(parts) + "\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _conditions(environment: dict | None) -> str:
    if environment is None:
        return "The device was not recorded."
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    said = [f"{environment['device']}, {environment['date']}, {environment['cores']} CPU cores; {versions}."]
    if "memory_bytes" in environment:
        used = environment["other_programs_bytes"] / GIB
        said.append(
            f"{environment['memory_bytes'] / GIB:.1f} GiB, compute capability {environment['capability']}, CUDA "
            f"{environment['cuda']}; {used:.1f} GiB were in use before the first step, this program's context included."
        )
    return " ".join(said) + (f"\n\n{TINY}" if environment["tiny"] else "")


def _verdict_table(records: list[dict]) -> str:
    return table(["target", "verdict", "measured"], [[v.target, WORDS[v.met], v.measured] for v in verdicts(records)])


def _ceilings(records: list[dict], environment: dict | None) -> str:
    copy, product = copy_bandwidth(records), matmul_flops(records)
    rows = [["copy on the device, read and written", f"{copy / 1e12:.3g} TB/s"]] if copy else []
    rows += [["matrix product in bfloat16, random numbers", f"{product / 1e12:.3g} TFLOP/s"]] if product else []
    sheet = DATA_SHEETS.get(environment["device"]) if environment else None
    rows += [["data sheet, dense bfloat16", f"{sheet / 1e12:.3g} TFLOP/s"]] if sheet else []
    return table(["ceiling", "value"], rows) if rows else "Not measured."


def _optimizer(records: list[dict]) -> str:
    ratios, sizes = optimizer_ratios(records), first(records, "elements")
    if not ratios:
        return "Not measured."
    memory = {record["candidate"]: record for record in records if "candidate" in record}
    rounds = [record["seconds"] for record in records if "round" in record]
    rows = []
    for name, found in ratios.items():
        times = [1e3 * taken[name] for taken in rounds]
        spread = f"{median(times):.3g} ({min(times):.3g} to {max(times):.3g})"
        kept = memory.get(name)
        sized = [f"{kept['state'] / 1e9:.2f}", f"{kept['extra'] / 1e6:.0f}"] if kept else ["not measured"] * 2
        rows.append([name, spread, f"{median(found):.3f}×", *sized])
    head = ["optimizer", "step, ms (least to most)", "of fused AdamW", "state, GB", "extra at peak, MB"]
    words = f"{sizes['elements']:,} float32 parameters in {sizes['tensors']} tensors, {len(rounds)} rounds in turn."
    return f"{words}\n\n{table(head, rows)}"


def _memory(records: list[dict]) -> str:
    found = [record for record in records if "plan" in record]
    if not found:
        return "Not measured."
    rows = [
        [
            record["plan"],
            f"{record['estimated_bytes'] / GIB:.3f}",
            f"{record['measured_bytes'] / GIB:.3f}",
            f"{record['estimated_bytes'] / record['measured_bytes'] - 1:+.1%}",
            record["phase"],
        ]
        for record in found
    ]
    words = f"Peak of step 2 of the {found[0]['shape']} shape, sequences of {found[0]['length']} tokens."
    head = ["plan", "estimated, GiB", "measured, GiB", "error", "phase of the estimated peak"]
    return f"{words}\n\n{table(head, rows)}"


def _fine_tunes(steps: dict[str, list[dict]], environment: dict | None) -> str:
    sheet = DATA_SHEETS.get(environment["device"]) if environment else None
    product, rows = matmul_flops(steps["ceilings"]), []
    for name in RUNS:
        records = steps[name]
        speed, sizes, ended = tokens_per_second(records), first(records, "flops_per_token"), first(records, "losses")
        if not speed or not sizes:
            continue
        times = step_seconds(records)
        peak = ended["peak_bytes"]
        estimated = f"{sizes['estimated_bytes'] / GIB:.1f} estimated"
        rows.append(
            [
                f"{name} ({sizes['shape']})",
                f"{sizes['tokens_per_step']:,}",
                f"{1e3 * median(times):.4g} ({1e3 * min(times):.4g} to {1e3 * max(times):.4g})",
                f"{speed:,.0f}",
                *(f"{mfu(records, p):.1%}" if p else "unknown" for p in (sheet, product)),
                "not measured" if peak is None else f"{peak / GIB:.1f} ({estimated})",
            ]
        )
    if not rows:
        return "Not measured."
    head = ["run", "tokens a step", "step, ms (least to most)", "tokens/s", "MFU, data sheet", "MFU, matrix product"]
    words = (
        f"Float32 weights and moments, random weights, made-up tokens, the first {WARM_UP} steps left out. MFU is "
        "notebook 11's: recomputation does not count as useful."
    )
    return f"{words}\n\n{table([*head, 'peak, GiB'], rows)}"


def _peers(steps: dict[str, list[dict]]) -> str:
    ours, rows = tokens_per_second(peer_records(steps, CONTENDERS[0])), []
    for name in CONTENDERS:
        records = peer_records(steps, name)
        speed, found = tokens_per_second(records), first(records, "losses")
        if not speed:
            why = first(records, "skipped")
            rows.append([name, why["skipped"] if why else "not measured", *[""] * 4])
            continue
        peak = found["peak_bytes"]
        rows.append(
            [
                name,
                f"{speed:,.0f}",
                f"{ours / speed:.2f}×" if ours else "",
                f"{1e3 * median(step_seconds(records)):.4g}",
                "not measured" if peak is None else f"{peak / GIB:.1f}",
                f"{found['losses'][0]:.4f} to {found['losses'][-1]:.4f}",
            ]
        )
    return table(["program", "tokens/s", "ftkit over it", "step, ms", "peak, GiB", "first and last loss"], rows)


def _endings(steps: dict[str, list[dict]]) -> str:
    rows = []
    for step in STEPS:
        skipped, ended = (first(steps[step.name], key) for key in ("skipped", "status"))
        how = f"skipped: {skipped['skipped']}" if skipped else ended["status"] if ended else "cut off"
        how += f": {ended['why'].splitlines()[-1]}" if ended and ended.get("why") else ""
        rows.append([step.name, step.title, how, f"{ended['seconds']:.0f}" if ended else ""])
    return table(["step", "what it measures", "how it ended", "seconds"], rows)
