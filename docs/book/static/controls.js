// The living controls: shows the picture and the caption of the state that the inputs choose. docs/book/controls.py drew them.
"use strict";
for (const control of document.querySelectorAll("[data-control]")) {
  const { files, states } = JSON.parse(control.querySelector("script").textContent);
  const axes = [...control.querySelectorAll("[data-axis]")].map((input) => {
    if (input.tagName === "BUTTON") {
      const size = Number(input.dataset.size);
      let place = Number(input.dataset.first);
      input.addEventListener("click", () => { place = (place + 1) % size; show(); });
      return { size, place: () => place };
    }
    if (input.tagName === "SELECT") {
      input.addEventListener("change", () => show());
      return { size: input.options.length, place: () => input.selectedIndex };
    }
    const options = JSON.parse(input.dataset.options);
    input.addEventListener("input", () => {
      const shown = options[Number(input.value)];
      input.setAttribute("aria-valuetext", shown);
      control.querySelector(`output[for="${input.id}"]`).textContent = shown;
      show();
    });
    return { size: options.length, place: () => Number(input.value) };
  });
  const picture = control.querySelector("img"), caption = control.querySelector(".caption");

  function show() {
    const [file, words] = states[axes.reduce((number, axis) => number * axis.size + axis.place(), 0)];
    const [source, width, height] = files[file];
    Object.assign(picture, { src: source, width, height });
    picture.style.setProperty("--width", `${width}px`);
    caption.textContent = words;
  }
}
