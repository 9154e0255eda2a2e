"""The book's pictures: SVG files named after what they show, each with its alternative text."""

import base64
import hashlib
import html
import re
from dataclasses import dataclass
from pathlib import Path

from ftcourse.svg import PIXELS, name_of

from . import BookError

FOLDER = "assets/pictures"
ALT_TEXT = 240  # characters of one that is gathered from a picture's words
SVG = re.compile(r"<svg\b.*?</svg>", re.S)
DATA = re.compile(r"<img\b[^>]*\ssrc=\"data:image/svg\+xml;base64,([^\"]*)\"[^>]*>")
ALT = re.compile(r"<img\b[^>]*\salt=\"([^\"]*)\"")
# No words: numbers, and matplotlib's own notation for the powers on an axis.
NUMBER = re.compile(r"[\d\s.,:%×+−–\-()/]*$|.*\\mathdefault")
NUMBERS = re.compile(r"-?\d+\.\d{3,}")
OWN_ID = re.compile(r"\bf[0-9a-f]{8}-(\d+)")  # unique among the pictures of a page, which a file need not be


@dataclass(frozen=True)
class Picture:
    """Attributes: `src`, relative to a page; `alt`; `width` and `height` in CSS pixels, at full size."""

    src: str
    alt: str
    width: int
    height: int

    def img(self, **more: str) -> str:
        """The picture as an `<img>` that may shrink."""
        given = {"src": self.src, "alt": self.alt, "width": self.width, "height": self.height}
        given |= {"style": f"--width: {self.width}px", **more}
        attributes = [f'{name}="{html.escape(str(value))}"' for name, value in given.items()]
        return f"<img {' '.join(attributes)}>"


class Pictures:
    """Writes pictures below `folder`; equal ones become one file."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, svg: str, where: str) -> Picture:
        """Store an `<svg>` and return where it is. `where` names its place, in case that it does not name itself.

        Raises BookError for an SVG without a size.
        """
        (svg,) = SVG.findall(svg)[:1] or [""]
        size = [re.search(rf'<svg\b[^>]*?\s{side}="([\d.]+)(pt|px|)"', svg) for side in ("width", "height")]
        if None in size:
            raise BookError(f"a picture in “{where}” has no width and height: draw it by figure_svg")
        alt = name_of(svg) or words_of(svg, where)
        width, height = (round(float(found[1]) * (PIXELS if found[2] == "pt" else 1)) for found in size)
        return Picture(self.write(shrink(svg).encode(), ".svg"), alt, width, height)

    def write(self, data: bytes, suffix: str) -> str:
        """Store a file under a name made from its bytes, and return its address."""
        name = f"{hashlib.sha256(data).hexdigest()[:16]}{suffix}"
        path = self.folder / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return f"{FOLDER}/{name}"

    def lift(self, page: str, where: str) -> str:
        """Replace each SVG in a piece of HTML, an element or the data of an `<img>`, by an `<img>` of its file."""

        def decoded(found: re.Match) -> str:
            named = ALT.match(found[0])
            picture = self.add(base64.b64decode(found[1]).decode(), where)
            return picture.img(alt=html.unescape(named[1]) if named and named[1] else picture.alt)

        return DATA.sub(decoded, SVG.sub(lambda found: self.add(found[0], where).img(), page))


def stored_name(data: dict) -> str:
    """The accessible name of the picture in a stored output's data: of its SVG, or of the image in its HTML."""
    if "image/svg+xml" in data:
        return name_of(data["image/svg+xml"])
    found = ALT.search(data.get("text/html", ""))
    return html.unescape(found[1]).strip() if found else ""


def words_of(svg: str, where: str) -> str:
    """An alternative text for an SVG without a name: its place, and the words in it.

    matplotlib draws letters as outlines, and writes what they spell in a comment.
    """
    texts = re.findall(r"<!-- (.*?) -->", svg, re.S) + re.findall(r"<text\b[^>]*>([^<]+)</text>", svg)
    words = [" ".join(html.unescape(text).split()) for text in texts if not NUMBER.match(text)]
    shown, room = [], ALT_TEXT
    for word in dict.fromkeys(words):
        room -= len(word)
        if room < 0:
            break
        shown.append(word)
    return f"Figure in “{where}”" + (f": {'; '.join(shown)}" if shown else "")


def shrink(svg: str) -> str:
    """The SVG as a file of its own, without its name and style in a page, comments, metadata and indentation.

    Coordinates keep two decimals: a hundredth of a point, which nobody sees, in a fifth fewer bytes.
    """
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<title\b.*?</title>", "", svg, flags=re.S)
    svg = re.sub(r">\n\s*<", "><", svg)
    svg = OWN_ID.sub(r"p\1", svg)
    svg = re.sub(r'(?<=\sd=")[^"]*', lambda path: " ".join(NUMBERS.sub(_rounded, path[0]).split()), svg)
    head, rest = svg[: svg.index(">")], svg[svg.index(">") :]
    head = re.sub(r'\s(style|role|aria-\w+)="[^"]*"', "", head)
    if "xmlns=" not in head:
        head += ' xmlns="http://www.w3.org/2000/svg"'
    return head + rest + "\n"


def _rounded(number: re.Match) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
