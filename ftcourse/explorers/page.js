// What an explorer needs on the page and ipywidgets has no traits for: keys that stay with the control that has the
// focus, names and values of sliders for screen readers, and a caption that they read out when it changes. This is the
// load handler of a style element inside the explorer (see __init__.py), so `this` is that element.
((style) => {
  const explorer = style.closest(".ftkit-explorer");
  if (!explorer || explorer.ftkit) return;
  explorer.ftkit = true;

  // JupyterLab acts on keys where they reach the document: ↓ selects the next cell, b adds one, x cuts one. Keys with
  // Ctrl, Alt or Cmd, Escape, Tab, and Shift+Enter, which runs the cell, are still JupyterLab's.
  explorer.addEventListener("keydown", (event) => {
    const passes = event.ctrlKey || event.altKey || event.metaKey || ["Escape", "Tab"].includes(event.key);
    if (!passes && !(event.shiftKey && event.key === "Enter")) event.stopPropagation();
  });

  const set = (element, name, value) => {
    if (element && element.getAttribute(name) !== value) element.setAttribute(name, value);
  };
  const describe = () => {
    set(explorer.querySelector(".ftkit-status .widget-html-content"), "role", "status");
    for (const slider of explorer.querySelectorAll(".widget-slider")) {
      const label = slider.querySelector(".widget-label")?.textContent ?? "";
      const readout = slider.querySelector(".widget-readout");
      const handle = slider.querySelector(".noUi-handle, .ui-slider-handle");
      if (handle?.matches(".ui-slider-handle")) {
        // ipywidgets 7: jQuery UI's handle, which says nothing of itself but its place, as a percentage.
        set(handle, "role", "slider");
        for (const [name, value] of [["min", 0], ["max", 100], ["now", Math.round(parseFloat(handle.style.left))]])
          set(handle, `aria-value${name}`, String(value));
      }
      set(handle, "aria-label", label);
      if (readout?.textContent) set(handle, "aria-valuetext", readout.textContent);
      // The number beside a slider can be typed over; that of a list of values is text alone.
      if (slider.classList.contains("ftkit-list")) set(readout, "contenteditable", "false");
      else if (readout) {
        set(readout, "role", "textbox");
        set(readout, "aria-label", `${label}, as a number`);
      }
    }
  };
  describe();
  const watched = { subtree: true, childList: true, characterData: true, attributeFilter: ["aria-valuetext", "contenteditable"] };
  new MutationObserver(describe).observe(explorer, watched);
})(this);
