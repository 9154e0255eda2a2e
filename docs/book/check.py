"""What must hold of every page of a built book: links lead somewhere, pictures say what they show, all is inside."""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes by which a page loads something by itself; a link is followed by its reader.
LOADS = ("src", "srcset", "data", "poster", "background", "action", "formaction", "ping")
NO_ALT_TEXT = ("", "No description has been provided for this image")  # the latter is nbconvert's
HANDLER = re.compile(r"on[a-z]+$")  # an attribute that runs a script


class Page(HTMLParser):
    """What a page has and needs: `anchors`, `links`, `loads`, and `faults` seen while reading it."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors, self.links, self.loads, self.faults = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors += [given["id"]] if given.get("id") else []
        if tag == "a" and "href" in given:
            self.links.append(given["href"] or "")
        if tag == "link":
            self.loads.append(given.get("href", ""))
        self.loads += [given[name] or "" for name in LOADS if name in given]
        self.loads += re.findall(r"url\(\s*['\"]?([^'\")]+)", given.get("style") or "")
        if tag == "img" and (given.get("alt") or "").strip() in NO_ALT_TEXT:
            self.faults.append(f"a picture without alternative text: {given.get('src')}")
        if tag == "svg":
            self.faults.append("an SVG inside of the page: its ids may be those of another one")
        if tag in ("iframe", "object", "embed", "base"):
            self.faults.append(f"a <{tag}>")
        self.faults += [f"a script in {name}= of <{tag}>" for name in given if HANDLER.match(name)]


def is_outside(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme not in ("", "data") or bool(parts.netloc)


def faults(folder: Path) -> list[str]:
    """What is wrong with the book in `folder`: a sentence each, beginning with the page; empty if all is well."""
    pages = {path.name: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.html"))}
    found = []
    for name, page in pages.items():
        wrong = list(page.faults)
        wrong += [f"two elements with the id {anchor}" for anchor, n in Counter(page.anchors).items() if n > 1]
        for address in page.loads:
            if is_outside(address):
                wrong.append(f"loads {address} from outside")
            elif not address.startswith("data:") and not (folder / urlsplit(address).path).is_file():
                wrong.append(f"loads {address}, which is not there")
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = pages.get(parts.path or name)
            if target is None:
                wrong.append(f"links to {link}, which is no page of the book")
            elif parts.fragment and unquote(parts.fragment) not in target.anchors:
                wrong.append(f"links to {link}, where nothing has that id")
        found += [f"{name}: {fault}" for fault in wrong]
    for path in sorted(folder.glob("assets/*.css")):
        loaded = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", path.read_text(encoding="utf-8"))
        found += [f"{path.name}: loads {a or b} from outside" for a, b in loaded if is_outside(a or b)]
    return found
