"""An estimate as text: a table, and a line that holds it against what a run has used."""

from ftkit.memory.estimate import Estimate
from ftkit.memory.live import KINDS

GIB, MIB = 2**30, 2**20


def size(count: int) -> str:
    """Bytes for a reader: MiB below one GiB."""
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / MIB:,.2f} MiB"


def table(estimate: Estimate) -> str:
    """Held between passes, the peak and its parts, and what a rank sends in a step."""
    plan = estimate.plan
    ranks = "×".join(map(str, plan.mesh))
    lines = [f"bytes on one of {plan.world_size} rank(s), mesh {ranks} (dp_replicate × dp_shard × tp)"]
    held = {"weights": estimate.weights, "gradients": estimate.gradients, "optimizer": estimate.optimizer}
    lines += [f"  {kind:14} {size(count):>14}" for kind, count in held.items()]
    lines.append(f"peak, in phase: {estimate.phase}: {size(estimate.peak)}")
    split = estimate.at_peak
    lines += [f"  {kind:14} {size(split[kind]):>14}" for kind in (*KINDS, "scratch") if split.get(kind)]
    if estimate.communication:
        lines.append("sent by a rank in a step:")
        lines += [f"  {what:27} {size(count):>14}" for what, count in estimate.communication.items()]
    return "\n".join(lines)


def compare(estimate: Estimate, measured_peak: int) -> str:
    """One line for a run's log: what was told in advance beside the peak that was measured, in bytes."""
    off = estimate.peak / measured_peak - 1
    return (
        f"peak memory of a rank: {size(estimate.peak)} told in advance ({estimate.phase}), "
        f"{size(measured_peak)} measured ({off:+.1%})"
    )
