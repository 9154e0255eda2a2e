"""Claims as a page shows them: a badge with the verdict's colour, sign and word, and groups that open and close.

Plain HTML with inline styles, because that is what survives in a notebook that is not trusted, on GitHub and in a
static export; `<details>` filters by verdict without a kernel and without a script.
"""

import html
import json
from collections.abc import Mapping, Sequence

from ftkit.models import data_dir

# verdict -> sign, background, emoji for Markdown, in the order of ftcourse.claims.VERDICTS. Words are white on the
# background, at a contrast of at least 5 to 1.
BADGES = {
    "supported": ("✓", "#00694d", "✅"),
    "supported under conditions": ("◐", "#005a8c", "☑️"),
    "refuted": ("✗", "#9c3a00", "❌"),
    "inconclusive": ("?", "#595959", "❓"),
    "outdated": ("↺", "#7a3f6d", "⏳"),
    "not tested": ("–", "#3d3d3d", "⬜"),
}
PROSE = "max-width:60em;overflow-wrap:break-word;white-space:normal"


def badge(verdict: str) -> str:
    """A verdict as HTML, told by its colour, its sign and its word."""
    sign, colour, _ = BADGES[verdict]
    look = f"background-color:{colour};color:#ffffff;border-radius:4px;padding:1px 7px;white-space:nowrap"
    return f'<span style="{look}">{sign} {verdict}</span>'


def card(claim: Mapping[str, str]) -> str:
    """A claim as HTML; `claim` as `ftcourse.claims.read_claims` gives it, with its notebook where that is known."""
    said = {key: html.escape(text) for key, text in claim.items()}
    because = f" ({said['because']})" if said["because"] else ""
    seeds = f", {said['seeds']} seed{'s' if said['seeds'] != '1' else ''}" if said["seeds"] else ""
    details = [f"Measured: {said['measured']}", f"Tested on: {said['model']}{seeds}", f"Source: {said['source']}"]
    if name := said.get("notebook"):
        details.append(f'Notebook: <a href="{name}.ipynb">{name}</a>')
    return (
        f'<div style="{PROSE};border-left:4px solid {BADGES[claim["verdict"]][1]};padding:2px 10px;margin:8px 0">'
        f"{badge(claim['verdict'])}{because} <b>{said['claim']}</b><br>{'<br>'.join(details)}</div>"
    )


class ClaimCards:
    """What a notebook tested: prints as `text`, and shows as a card for each of its claims."""

    def __init__(self, text: str, claims: Sequence[Mapping[str, str]]):
        self.text, self.claims = text, claims

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return "".join(map(card, self.claims))


class ClaimsByVerdict:
    """Many claims: prints as a count for each verdict, and shows as groups of cards that open and close."""

    def __init__(self, claims: Sequence[Mapping[str, str]]):
        self.groups = {verdict: [row for row in claims if row["verdict"] == verdict] for verdict in BADGES}

    def __repr__(self) -> str:
        return "\n".join(f"{verdict}: {len(rows)}" for verdict, rows in self.groups.items() if rows)

    def _repr_html_(self) -> str:
        parts = []
        for verdict, rows in self.groups.items():
            topics: dict[str, list] = {}
            for row in rows:
                topics.setdefault(row["topic"], []).append(card(row))
            inside = "".join(f"<p><b>{html.escape(topic)}</b></p>{''.join(own)}" for topic, own in topics.items())
            head = f"{badge(verdict)} {len(rows)} claim{'s' if len(rows) != 1 else ''}"
            if rows:
                parts.append(f'<details><summary style="padding:3px 0">{head}</summary>{inside}</details>')
        return "".join(parts)


def all_claims() -> ClaimsByVerdict:
    """The claims of all notebooks, as they were when the notebooks were built."""
    return ClaimsByVerdict(json.loads((data_dir() / "claims.json").read_text(encoding="utf-8")))
