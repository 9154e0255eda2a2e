"""The drill's record in words: a line for each strike, and the table of the README."""

from statistics import median

from ftkit.drill.victim import POINTS


def line(found: dict) -> str:
    where = f"rank {found['rank']} of {found['ranks']} killed in {found['point']}, step {found['step']}"
    return f"{where}: {'; '.join(found['faults']) or 'recovered'}"


def table(record: dict) -> str:
    """Markdown: for each point, how many strikes the run recovered from, by number of ranks."""
    strikes = record["strikes"]
    counts = sorted({found["ranks"] for found in strikes})
    ranks = [f"{count} rank{'s' * (count > 1)}" for count in counts]
    head = ["killed in", *ranks, "weights against the undisturbed run", "steps done again", "s to resume"]
    lines = [head, ["---"] * len(head)]
    for point in POINTS:
        of_point = [found for found in strikes if found["point"] == point]
        if not of_point:
            continue
        cells = []
        for count in counts:
            tried = [found for found in of_point if found["ranks"] == count]
            cells.append(f"{sum(not found['faults'] for found in tried)} of {len(tried)}")
        apart = max(found.get("apart", float("inf")) for found in of_point)
        again = max(found.get("done_again", 0) for found in of_point)
        seconds = [found["seconds_to_resume"] for found in of_point if "seconds_to_resume" in found]
        weights = "not known" if apart == float("inf") else f"up to {apart:.1e} apart"
        cells += ["equal to the bit" if apart == 0 else weights, f"at most {again}"]
        lines.append([point, *cells, f"{median(seconds):.0f}" if seconds else ""])
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{rows}\n\n{summary(record)}"


def summary(record: dict) -> str:
    strikes = record["strikes"]
    recovered = sum(not found["faults"] for found in strikes)
    return (
        f"{recovered} of {len(strikes)} runs recovered by themselves (seed {record['seed']}, a checkpoint every "
        f"{record['save_every']} of {record['steps']} steps, torch {record['torch']}, {record['machine']})."
    )
