"""Drives the controls of an explorer as a learner does, by keyboard and by mouse, and says what is amiss.

Names, values and roles are read from Chromium's accessibility tree, which is what a screen reader gets.
"""

import io
import re

import numpy as np
from PIL import Image

PATIENCE = 30_000  # milliseconds that a kernel may take to draw, on a machine that does much else
SETTLED = 120  # milliseconds without a change, after which a picture counts as drawn
SHOWN = "root => [...root.querySelectorAll('.widget-html-content')].map(part => part.innerHTML).join()"
CELLS = "() => window.jupyterapp.shell.currentWidget.content.model.cells.length"
HANDLES = ".noUi-handle:visible, .ui-slider-handle:visible"
FOCUSED = "element => document.activeElement === element"
# Where the Tab key begins: a place of its own before the first control. In a cell's editor, Tab is indentation.
BEGIN = """root => {
    const place = Object.assign(document.createElement('span'), {tabIndex: 0, className: 'begin'});
    root.prepend(place);
    place.focus();
}"""
END = "root => root.querySelector('.begin').remove()"
PLACE = """(root, controls) => root.contains(document.activeElement) ?
    controls.indexOf(document.activeElement) : null"""
CUT_OFF = """root => [...root.querySelectorAll('.widget-label, .widget-readout, button, select')].filter(element => {
    if (element.tagName !== 'SELECT') return element.scrollWidth > element.clientWidth + 1;
    const pen = document.createElement('canvas').getContext('2d'), style = getComputedStyle(element);
    pen.font = style.font;
    const longest = Math.max(...[...element.options].map(option => pen.measureText(option.text).width));
    return longest + parseFloat(style.paddingLeft) + parseFloat(style.paddingRight) > element.clientWidth;
}).map(element => element.textContent.slice(0, 60))"""
OUTSIDE = "root => root.scrollWidth > root.clientWidth + 1 && `${root.scrollWidth} px wide in ${root.clientWidth}`"
TRACK = "handle => handle.closest('.slider-container').clientWidth"
LEAST_TRACK = 60  # pixels, below which a slider cannot be set with a mouse
ARROW = 20  # pixels on the right of a menu that have its arrow, inside its border
# WCAG's contrast ratio of the focus ring, of the text, and of a handle's edge or fill, with the first opaque colour
# behind them. Behind a ring is what is larger than it: a slider's track passes under the ring of its handle, and the
# page is around it.
CONTRAST = """element => {
    const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = (colour, ground) => {
        pen.clearRect(0, 0, 1, 1);
        if (ground) {
            pen.fillStyle = `rgb(${ground.slice(0, 3)})`;
            pen.fillRect(0, 0, 1, 1);
        }
        pen.fillStyle = colour;
        pen.fillRect(0, 0, 1, 1);
        return [...pen.getImageData(0, 0, 1, 1).data];
    };
    const light = colour => colour.slice(0, 3).map(part => part / 255)
        .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, n) => sum + part * [0.2126, 0.7152, 0.0722][n], 0);
    const ratio = (one, other) => {
        const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    const box = element.getBoundingClientRect();
    const holds = ({width, height}) => width >= box.width && height >= box.height;
    const behind = start => {
        let place = start;
        while (place && !(rgba(getComputedStyle(place).backgroundColor)[3] === 255 &&
                          holds(place.getBoundingClientRect()))) place = place.parentElement;
        return rgba(place ? getComputedStyle(place).backgroundColor : 'white');
    };
    const style = getComputedStyle(element);
    const ring = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
    const around = behind(element.parentElement), own = behind(element);
    const edges = [style.borderTopColor, style.backgroundColor];
    return {ring: ring ? ratio(rgba(style.outlineColor, around), around) : 0,
            edge: Math.max(...edges.map(colour => ratio(rgba(colour, around), around))),
            text: ratio(rgba(style.color, own), own)};
}"""


def contrast_of_arrow(menu: bytes) -> float:
    """WCAG's contrast ratio of the lightest and the darkest place where a menu's picture has its arrow."""
    pixels = np.asarray(Image.open(io.BytesIO(menu)).convert("RGB"))[3:-3, -ARROW:-3] / 255
    linear = np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    light = linear @ [0.2126, 0.7152, 0.0722]
    return (light.max() + 0.05) / (light.min() + 0.05)


class Driver:
    """One explorer in the page; `faults` collects what is amiss, each with the explorer's and the control's name."""

    def __init__(self, page, root):
        self.page, self.root, self.faults = page, root, []
        self.devtools = page.context.new_cdp_session(page)
        classes = root.get_attribute("class").split()
        (self.name,) = [name for name in classes if name.startswith("ftkit-") and name != "ftkit-explorer"]

    def drive(self) -> list[str]:
        """Use every control; returns the faults."""
        self.root.scroll_into_view_if_needed()
        region = self.root.locator("[role=status]")
        if live := region.count() == 1:
            region.evaluate("element => element.ftkitSame = true")
        self.tab_through()
        for control, use in self.controls():
            label = self.check_name(control)
            self.check_keys(control, label)
            use(control, label)
        if not live or not region.evaluate("element => element.ftkitSame === true"):
            self.fault("caption", "no live region keeps it: screen readers say nothing when it changes")
        if not self.root.locator(".ftkit-status").inner_text().strip():
            self.fault("caption", "is empty")
        return self.faults

    def controls(self):
        """(control, method that uses it) pairs: sliders, menus, buttons."""
        # A slider's handle by its class: that of ipywidgets 7 is nothing to a screen reader, unless page.js sees to it.
        kinds = {HANDLES: self.use_slider, "select:visible": self.use_menu, "button:visible": self.use_button}
        for kind, use in kinds.items():
            for control in self.root.locator(kind).all():
                yield control, use

    def fault(self, control: str, what: str) -> None:
        self.faults.append(f"{self.name}, {control}: {what}")

    def look(self, when: str) -> None:
        """Labels and menus are whole, nothing is wider than its place, caption and focus can be seen."""
        for text in self.root.evaluate(CUT_OFF):
            self.fault(when, f"cut off: {text!r}")
        if wide := self.root.evaluate(OUTSIDE):
            self.fault(when, f"wider than its place: {wide}")
        if self.root.locator(".ftkit-status p").evaluate(CONTRAST)["text"] < 4.5:
            self.fault(when, "the caption's contrast is under 4.5")
        for handle in self.root.locator(HANDLES).all():
            if handle.evaluate(CONTRAST)["edge"] < 3:
                self.fault(self.label(handle, when), "its handle cannot be seen")
            if (track := handle.evaluate(TRACK)) < LEAST_TRACK:
                self.fault(self.label(handle, when), f"it has {track} px to be moved in")
        for menu in self.root.locator("select:visible").all():
            if contrast_of_arrow(menu.screenshot()) < 3:
                self.fault(self.label(menu, when), "its arrow cannot be seen")
        self.tab_through(when)

    def described(self, control) -> tuple[str, str, str]:
        """Name, value and value text of a control in the accessibility tree."""
        control.evaluate("element => element.setAttribute('data-driven', '')")
        found = self.devtools.send("Runtime.evaluate", {"expression": "document.querySelector('[data-driven]')"})
        wanted = {"objectId": found["result"]["objectId"], "fetchRelatives": False}
        node = self.devtools.send("Accessibility.getPartialAXTree", wanted)["nodes"][0]
        control.evaluate("element => element.removeAttribute('data-driven')")
        properties = {each["name"]: each["value"].get("value") for each in node.get("properties", [])}
        name, value = (str(node.get(key, {}).get("value", "")) for key in ("name", "value"))
        return name, value, str(properties.get("valuetext", ""))

    def check_name(self, control) -> str:
        name, _, _ = self.described(control)
        if not name.strip():
            self.fault(str(control), "has no accessible name")
        return name or "nameless"

    def tab_through(self, when: str = "") -> None:
        """The Tab key reaches every control, which then has a ring that can be seen."""
        controls = [control.element_handle() for control, _ in self.controls()]
        reached = set()
        self.root.evaluate(BEGIN)
        while True:
            self.page.keyboard.press("Tab")
            place = self.root.evaluate(PLACE, controls)
            if place is None or place in reached:
                break
            if place >= 0:  # not the number beside a slider
                reached.add(place)
                if controls[place].evaluate(CONTRAST)["ring"] < 3:
                    self.fault(self.label(controls[place], when), "the focus cannot be seen")
        self.root.evaluate(END)
        for place, control in enumerate(controls):
            if place not in reached:
                self.fault(self.label(control, when), "the Tab key does not reach it")

    def label(self, control, when: str) -> str:
        return ", ".join(filter(None, (self.described(control)[0], when)))

    def check_keys(self, control, label: str) -> None:
        """JupyterLab leaves the keys to the control."""
        control.focus()
        cells = self.page.evaluate(CELLS)
        for key in ("b", "x", "ArrowDown", "ArrowUp"):
            self.page.keyboard.press(key)
        if self.page.evaluate(CELLS) != cells or not control.evaluate(FOCUSED):
            self.fault(label, "JupyterLab takes its keys")
        self.settle()

    def changes(self, action, label: str, how: str) -> None:
        """Do `action`, and wait until the picture or the table is another one and stays so."""
        before = self.root.evaluate(SHOWN)
        action()
        try:
            wanted = [self.root.element_handle(), before]
            self.page.wait_for_function(f"([root, before]) => ({SHOWN})(root) !== before", arg=wanted, timeout=PATIENCE)
        except Exception as error:
            if "Timeout" not in str(error):
                raise
            self.fault(label, f"{how} changes nothing")
        self.settle()

    def settle(self) -> None:
        shown = self.root.evaluate(SHOWN)
        while True:
            self.page.wait_for_timeout(SETTLED)
            now = self.root.evaluate(SHOWN)
            if now == shown:
                return
            shown = now

    def use_slider(self, handle, label: str) -> None:
        now, most = (handle.get_attribute(f"aria-value{which}") for which in ("now", "max"))
        key = "ArrowLeft" if now and float(now) == float(most) else "ArrowRight"
        handle.focus()
        self.changes(lambda: handle.press(key), label, f"the key {key}")
        self.check_value(handle, label)
        track = handle.locator("xpath=ancestor::*[contains(@class, 'slider-container')]").bounding_box()
        knob = handle.bounding_box()
        y, x = knob["y"] + knob["height"] / 2, knob["x"] + knob["width"] / 2
        far = track["x"] + track["width"] * (0.15 if x > track["x"] + track["width"] / 2 else 0.85)

        def drag():
            self.page.mouse.move(x, y)
            self.page.mouse.down()
            self.page.mouse.move(far, y, steps=3)
            self.page.mouse.up()

        self.changes(drag, label, "dragging")
        self.check_value(handle, label)

    def check_value(self, handle, label: str) -> None:
        """What a screen reader says of a slider's value is what stands beside it, and no float's last digits."""
        readout = handle.locator("xpath=ancestor::*[contains(@class, 'widget-slider')]").locator(".widget-readout")
        _, value, text = self.described(handle)
        shown = readout.inner_text().strip()
        if (text or value) != shown or re.search(r"\d\.\d{5}", shown):
            self.fault(label, f"its value is read out as {text or value!r}, and {shown!r} stands beside it")

    def use_menu(self, menu, label: str) -> None:
        options = menu.locator("option").count()
        if options < 2:
            return
        place = menu.evaluate("element => element.selectedIndex")
        key = "ArrowUp" if place == options - 1 else "ArrowDown"
        menu.focus()
        self.changes(lambda: menu.press(key), label, f"the key {key}")
        place = menu.evaluate("element => element.selectedIndex")
        # The list itself is the browser's, outside the page, where no mouse of a test gets.
        self.changes(lambda: menu.select_option(index=(place + 1) % options), label, "choosing")

    def use_button(self, button, label: str) -> None:
        self.changes(button.click, label, "a click")
        button.focus()
        for key in ("Enter", "Space"):
            self.changes(lambda key=key: button.press(key), label, f"the key {key}")
