"""What a check reports: a Finding with its severity, what was observed, why it matters and what to do."""

import difflib
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

SEVERITIES = ("error", "warning", "note")
WIDTH = 100  # columns of the printed report


@dataclass(frozen=True, repr=False)
class Finding:
    severity: str  # one of SEVERITIES
    code: str  # short and stable, such as "labels-shifted"
    observed: str  # in this model, tokenizer, data set, batch or machine
    why: str  # why it matters, or the likely cause
    remedy: str

    def __repr__(self) -> str:
        return f"{self.severity} {self.code}: {self.observed}"


def finding_codes(findings: Iterable[Finding]) -> list[str]:
    return [f.code for f in findings]


def has_errors(findings: Iterable[Finding]) -> bool:
    return any(f.severity == "error" for f in findings)


def allow(findings: Iterable[Finding], codes: Iterable[str], known: Iterable[str]) -> list[Finding]:
    """The findings, those of `codes` as notes. Raises ValueError for a code that is not among `known`."""
    codes, known = set(codes), list(known)
    if unknown := sorted(codes - set(known)):
        near = difflib.get_close_matches(unknown[0], known, n=1) or known
        raise ValueError(f"--allow {unknown[0]}: there is no such finding; did you mean {', '.join(near)}?")
    return [replace(f, severity="note") if f.code in codes else f for f in findings]


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes, without duplicates."""
    return sorted(dict.fromkeys(findings), key=lambda f: SEVERITIES.index(f.severity))


def report_text(findings: Iterable[Finding]) -> str:
    """The findings as text, errors first; the last line counts each severity."""
    findings = sort_findings(findings)
    lines = []
    for f in findings:
        lines.append(f"{f.severity}: {f.code}")
        for name in ("observed", "why", "remedy"):
            # The label column stays free of text, and long words are not broken, so that paths can be copied.
            label = f"  {name + ':':10}"
            wrap = textwrap.wrap(getattr(f, name), WIDTH - len(label), break_long_words=False, break_on_hyphens=False)
            lines += [label + wrap[0], *(" " * len(label) + rest for rest in wrap[1:])]
    counts = [sum(f.severity == s for f in findings) for s in SEVERITIES]
    lines.append(", ".join(f"{n} {s}{'' if n == 1 else 's'}" for n, s in zip(counts, SEVERITIES, strict=True)))
    return "\n".join(lines)


def as_records(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """The findings as dictionaries for JSON, errors first."""
    return [asdict(f) for f in sort_findings(findings)]
