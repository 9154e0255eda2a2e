"""The search index: for each section of each page the words in it, read by `static/book.js`."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser

WORD = re.compile(r"\w+")
LONGEST, MOST = 40, 9  # letters of a word that is kept; times that a word counts in a section
HEADING = 8  # times that a word of a heading counts
TEXT = 1_200  # letters of a section's prose that are kept, for the excerpts
SKIPPED = {"script", "style", "svg", "math", "button", "label", "select", "output"}


class Sections(HTMLParser):
    """Cuts a page's body at its headings: `found` has (anchor, heading, prose, code) for each section."""

    def __init__(self):
        super().__init__()
        self.found: list[list[str]] = [["", "", "", ""]]
        self.heading, self.pre, self.skipped = False, 0, 0

    def handle_starttag(self, tag, attrs):
        self.skipped += tag in SKIPPED
        self.pre += tag == "pre"
        if tag in ("h1", "h2", "h3") and (anchor := dict(attrs).get("id")):
            self.found.append([anchor, "", "", ""])
            self.heading = True
        elif tag in ("p", "li", "td", "th", "div", "br"):
            self.found[-1][2] += " "

    def handle_endtag(self, tag):
        self.skipped -= tag in SKIPPED
        self.pre -= tag == "pre"
        if tag in ("h1", "h2", "h3"):
            self.heading = False

    def handle_data(self, data):
        if not self.skipped:
            self.found[-1][1 if self.heading else 3 if self.pre else 2] += data


def words(text: str) -> Iterator[str]:
    """The words of a text as they are searched for: in small letters, names also by their parts."""
    for word in WORD.findall(text.lower()):
        yield word
        if "_" in word.strip("_"):
            yield from (part for part in word.split("_") if part)


def index(pages: Iterable[tuple[str, str, str]]) -> dict:
    """The index of pages, each given as (file, title, body).

    `pages` lists [file, title]; `sections` [page, anchor, heading, beginning of its prose]; `words` is sorted, and
    `places` has for each word the sections that it is in, each followed by how much it counts there.
    """
    listed, sections, counts = [], [], {}
    for file, title, body in pages:
        parser = Sections()
        parser.feed(body)
        for anchor, heading, prose, code in parser.found:
            if not (heading + prose + code).strip():
                continue
            number = len(sections)
            sections.append([len(listed), anchor, " ".join(heading.split()), " ".join(prose.split())[:TEXT]])
            found = Counter(words(f"{prose} {code}"))
            for word in words(heading):
                found[word] += HEADING
            for word, times in found.items():
                if 1 < len(word) <= LONGEST:
                    counts.setdefault(word, []).extend((number, min(times, MOST)))
        listed.append([file, title])
    known = sorted(counts, key=lambda word: word.encode("utf-16-be"))  # as JavaScript compares
    return {"pages": listed, "sections": sections, "words": known, "places": [counts[word] for word in known]}


def script(found: dict) -> str:
    """The index as a script, because a page that is opened as a file may not fetch another one."""
    return f"window.bookIndex = {json.dumps(found, separators=(',', ':'))};\n"
