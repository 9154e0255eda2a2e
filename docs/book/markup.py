"""Markdown as the book has it: headings with anchors, wide tables that scroll, no formula that cannot be read."""

import html
import re

from ftcourse import rendering

from . import BookError


class Slugs:
    """The anchors of one page's headings: as GitHub makes them, and each only once."""

    def __init__(self):
        self.seen: dict[str, int] = {}

    def new(self, heading: str) -> str:
        """The anchor of a heading, given as HTML."""
        text = html.unescape(re.sub(r"<[^>]+>", "", heading)).lower()
        slug = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-") or "section"
        count = self.seen[slug] = self.seen.get(slug, -1) + 1
        return f"{slug}-{count}" if count else slug


class Renderer(rendering.Renderer):
    """With anchors, and tables in a box that scrolls."""

    def __init__(self, slugs: Slugs):
        super().__init__()
        self.slugs = slugs

    def heading(self, text: str, level: int, **_) -> str:
        return f'<h{level} id="{html.escape(self.slugs.new(text))}">{text}</h{level}>\n'

    def table(self, text: str) -> str:
        return f'<div class="scroll"><table>\n{text}</table></div>\n'

    def formula(self, latex: str, display: str) -> str:
        """MathML. Raises BookError for a formula that cannot be read."""
        try:
            return rendering.mathml(latex, display)
        except ValueError as error:
            raise BookError(f"the formula {latex.strip()!r} {error}") from error


def markdown(source: str, slugs: Slugs) -> str:
    """Markdown, with HTML in it, as HTML."""
    return rendering.markdown(source, Renderer(slugs))
