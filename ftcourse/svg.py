"""Make matplotlib's SVG fit for a page: with a name for screen readers, small, and the same on every machine.

What matplotlib writes depends on more than what is drawn: the last digits of a layout's solver are in the coordinates,
and hashes of them are the ids. Here coordinates are rounded, equal definitions are merged, and ids are numbered.
"""

import base64
import hashlib
import html
import math
import re
import xml.etree.ElementTree as ET

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
HREF = f"{{{XLINK}}}href"
# matplotlib lays text out in DejaVu Sans. Verdana is as wide, and the others are narrower, so that nothing overlaps
# where DejaVu Sans is not installed.
FONTS = "DejaVu Sans, Verdana, Arial, Helvetica, sans-serif"
MONOSPACE = "DejaVu Sans Mono, Consolas, Menlo, monospace"
CORNER = 6  # points: the radius of the card on which the picture lies
PIXELS = 96 / 72  # to a point
NO_BREAK = "\N{NO-BREAK SPACE}"
DECIMALS = 2
# Moves the edges between two rounded values away from round numbers, which layouts have often and hit inexactly.
NUDGE = 0.00137
NUMBER = re.compile(r"-?\d*\.\d+(?:e[+-]?\d+)?|-?\d+e[+-]?\d+")
REFERENCE = re.compile(r"url\(#([^)]+)\)")
LENGTHS = ("d", "x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "rx", "ry", "width", "height", "points", "viewBox")

ET.register_namespace("", SVG)
ET.register_namespace("xlink", XLINK)


def tidy_svg(svg: str, name: str, background: str | None = "#ffffff") -> str:
    """Return matplotlib's `svg` as one `<svg>` element whose text depends only on what is drawn.

    It has `role="img"` and `name` as its accessible name, text as text, and a viewBox, so that it may be scaled; it
    lies on a card of the colour `background`, or on nothing. Ids begin with a hash of the whole, so that several
    pictures can stand in one page.
    """
    root = ET.fromstring(svg)
    parents = {child: parent for parent in root.iter() for child in parent}
    for tag in ("metadata", "style"):  # the one rule of the style sheet would apply to the whole page
        for element in list(root.iter(f"{{{SVG}}}{tag}")):
            parents[element].remove(element)
    for element in root.iter():
        _tidy_attributes(element)
    _drop(root)
    _merge_definitions(root)
    _drop(root)
    width, height = (float(part) for part in root.get("viewBox").split()[2:])
    root.attrib.clear()
    root.attrib |= {
        "width": f"{width * PIXELS:.0f}",
        "height": f"{height * PIXELS:.0f}",
        "viewBox": f"0 0 {width:g} {height:g}",
        "role": "img",
        "aria-label": name,
        "font-family": FONTS,
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
        "style": "max-width:100%;height:auto",
    }
    if background:
        card = {"width": "100%", "height": "100%", "rx": str(CORNER), "fill": background}
        root.insert(0, ET.Element(f"{{{SVG}}}rect", card))
    _flatten(root)
    _number_ids(root, "")
    _number_ids(root, "f" + hashlib.sha256(ET.tostring(root)).hexdigest()[:8] + "-")
    return ET.tostring(root, encoding="unicode")


def picture_html(svg: str) -> str:
    """Return an `<img>` of an SVG, with its name as alternative text.

    A notebook stores and shows pictures so, and not as image/svg+xml, because JupyterLab makes of that an `<img>`
    without alternative text, and nothing at all in a notebook that is not trusted, and because other viewers clean
    inline SVG as if it were HTML and so turn it black.
    """
    name = html.escape(name_of(svg), quote=False).replace('"', "&quot;")
    data = base64.b64encode(svg.encode()).decode()
    source = f"data:image/svg+xml;base64,{data}"
    return f'<img alt="{name}" style="max-width:100%;height:auto" src="{source}">'


def name_of(svg: str) -> str:
    """The accessible name that an SVG carries: its `aria-label`, or its `<title>`; empty without either."""
    found = re.search(r'<svg\b[^>]*?\saria-label="([^"]*)"', svg) or re.search(r"<title[^>]*>(.*?)</title>", svg, re.S)
    return html.unescape(found[1]).strip() if found else ""


def rounded(number: float) -> str:
    """`number` with at most DECIMALS decimals, as short as it can be written."""
    steps = math.floor(number * 10**DECIMALS + 0.5 + NUDGE)
    return f"{steps / 10**DECIMALS:.{DECIMALS}f}".rstrip("0").rstrip(".").replace("-0.", "-.").removeprefix("0") or "0"


def _tidy_attributes(element: ET.Element) -> None:
    words = element.text if element.tag.endswith(("text", "tspan")) else None
    if len(element) and words and not words.strip():  # mathtext's line break before the letters that it places
        words = None
    # Browsers make one space of several, with which words were aligned, whatever the element's attributes say.
    element.text = words and re.sub(" {2,}|^ | $", lambda found: NO_BREAK * len(found[0]), words)
    element.tail = None
    for key, value in list(element.attrib.items()):
        if key in LENGTHS:
            value = NUMBER.sub(lambda found: rounded(float(found[0])), value)
            if key == "d":
                value = re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(value.split()))
        elif key == "transform":
            value = _tidy_transform(value)
        elif key == "style":
            value = _tidy_style(value)
        if value:
            element.set(key, value)
        else:
            del element.attrib[key]


def _tidy_transform(value: str) -> str:
    moves = []
    for name, arguments in re.findall(r"(\w+)\(([^)]*)\)", value):
        numbers = [float(number) for number in re.split(r"[\s,]+", arguments.strip())]
        if name == "rotate" and numbers[0] == 0:
            continue
        short = [f"{number:.6g}" for number in numbers] if name in ("scale", "matrix") else map(rounded, numbers)
        moves.append(f"{name}({' '.join(short)})")
    return " ".join(moves)


def _tidy_style(value: str) -> str:
    rules = []
    for rule in value.split(";"):
        name, _, content = (part.strip() for part in rule.partition(":"))
        if name == "font-family":
            if "Mono" not in content:
                continue  # as the root says
            content = MONOSPACE
        elif "#" not in content:
            content = NUMBER.sub(lambda found: rounded(float(found[0])), content)
        if name:
            rules.append(f"{name}:{content}")
    return ";".join(rules)


def _is_invisible(element: ET.Element) -> bool:
    """Whether it is a shape without fill and line, as the background of a transparent figure is."""
    style = element.get("style", "")
    return (
        element.tag == f"{{{SVG}}}path" and "fill:none" in style and "stroke:" not in style.replace("stroke:none", "")
    )


def _references(root: ET.Element) -> dict[str, int]:
    """The ids that are referred to, numbered in the order in which they are."""
    order: dict[str, int] = {}
    for element in root.iter():
        for key, value in element.attrib.items():
            local = [value[1:]] if key == HREF and value.startswith("#") else []
            for name in (*local, *REFERENCE.findall(value)):
                order.setdefault(name, len(order) + 1)
    return order


def _drop(element: ET.Element) -> None:
    """Remove invisible shapes and what holds nothing."""
    for child in list(element):
        _drop(child)
        empty = child.tag in (f"{{{SVG}}}g", f"{{{SVG}}}defs") and not len(child)
        if empty or (_is_invisible(child) and child.get("id") is None):
            element.remove(child)


def _merge_definitions(root: ET.Element) -> None:
    """Keep one of several definitions that are equal now that they are rounded."""
    first: dict[str, str] = {}
    same: dict[str, str] = {}
    for block in list(root.iter(f"{{{SVG}}}defs")):
        for definition in list(block):
            name = definition.attrib.pop("id", "")
            content = ET.tostring(definition, encoding="unicode")
            same[name] = first.setdefault(content, name)
            definition.set("id", name)
            if same[name] != name:
                block.remove(definition)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == HREF and value.startswith("#"):
                element.set(key, f"#{same.get(value[1:], value[1:])}")
            elif "url(#" in value:
                element.set(key, REFERENCE.sub(lambda found: f"url(#{same.get(found[1], found[1])})", value))


def _number_ids(root: ET.Element, prefix: str) -> None:
    """Rename the ids that are referred to, and remove the others."""
    names = {name: f"{prefix}{number}" for name, number in _references(root).items()}
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                if value in names:
                    element.set("id", names[value])
                else:
                    del element.attrib["id"]
            elif key == HREF and value.startswith("#"):
                element.set(key, f"#{names[value[1:]]}")
            elif "url(#" in value:
                element.set(key, REFERENCE.sub(lambda found: f"url(#{names[found[1]]})", value))


def _flatten(element: ET.Element) -> None:
    """Replace groups that say nothing by what they hold."""
    for child in list(element):
        _flatten(child)
        used = {key for key in child.attrib if key != "id"}
        if child.tag == f"{{{SVG}}}g" and not used:
            place = list(element).index(child)
            element.remove(child)
            for offset, inner in enumerate(child):
                element.insert(place + offset, inner)
