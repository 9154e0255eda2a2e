// What every page does by script: theme, contents on a phone, search. Without it the text, the contents and the links stay.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  function stored() {
    try { return localStorage.getItem("book-theme") || ""; } catch { return ""; } // a browser may refuse storage
  }

  function setTheme(theme) {
    if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
    try { localStorage.setItem("book-theme", theme); } catch { /* it then holds for this page alone */ }
  }

  setTheme(stored()); // before the page is drawn

  // The sections that have a word for each term, as a beginning; best first.
  function find(query) {
    const { words, places } = window.bookIndex;
    let scores = null;
    for (const term of query.toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? []) {
      const here = new Map();
      let at = 0, end = words.length;
      while (at < end) {
        const middle = (at + end) >> 1;
        if (words[middle] < term) at = middle + 1; else end = middle;
      }
      for (; at < words.length && words[at].startsWith(term); at++) {
        const factor = words[at] === term ? 2 : 1;
        for (let i = 0; i < places[at].length; i += 2) {
          const section = places[at][i];
          here.set(section, Math.max(here.get(section) ?? 0, places[at][i + 1] * factor));
        }
      }
      const before = scores ?? here;
      scores = new Map();
      for (const [section, score] of before) if (here.has(section)) scores.set(section, score + here.get(section));
    }
    return [...(scores ?? [])].sort((a, b) => b[1] - a[1] || a[0] - b[0]).map(([section]) => section);
  }

  function excerpt(text, query) {
    const terms = query.toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? [];
    const at = Math.max(0, Math.min(...terms.map((term) => text.toLowerCase().indexOf(term)).filter((n) => n >= 0)));
    const start = Number.isFinite(at) ? Math.max(0, text.lastIndexOf(" ", Math.max(0, at - 50))) : 0;
    return (start ? "…" : "") + text.slice(start, start + 180) + (text.length > start + 180 ? "…" : "");
  }

  const MOST = 20; // results that are listed

  function show(query, list, status) {
    const found = query.trim() ? find(query) : [];
    const { pages, sections } = window.bookIndex;
    list.replaceChildren(...found.slice(0, MOST).map((number) => {
      const [page, anchor, heading, text] = sections[number];
      const item = document.createElement("li"), link = document.createElement("a"), words = document.createElement("p");
      link.href = pages[page][0] + (anchor ? `#${anchor}` : "");
      link.textContent = heading && heading !== pages[page][1] ? `${pages[page][1]} › ${heading}` : pages[page][1];
      words.textContent = excerpt(text, query); // never as HTML
      item.append(link, words);
      return item;
    }));
    const count = found.length === 1 ? "1 section" : `${found.length} sections`;
    status.textContent = found.length ? count + (found.length > MOST ? `, the best ${MOST} of them:` : "") : "No section has that.";
  }

  function search() {
    const [input, results, status] = ["book-query", "book-results", "book-found"].map((id) => document.getElementById(id));
    const list = results.querySelector("ol");
    let loading = null;
    const load = () => loading ??= new Promise((resolve) => {
      const script = document.createElement("script"); // a page that is opened as a file may not fetch
      script.src = "assets/search.js";
      script.onload = resolve;
      document.head.append(script);
    });
    const close = () => { results.hidden = true; };
    const update = () => load().then(() => {
      results.hidden = !input.value.trim();
      if (!results.hidden) show(input.value, list, status);
    });
    input.addEventListener("focus", load);
    input.addEventListener("input", update);
    input.form.addEventListener("submit", (event) => {
      event.preventDefault();
      update().then(() => list.querySelector("a")?.focus());
    });
    list.addEventListener("click", (event) => { if (event.target.closest("a")) close(); }); // it may be on this page
    document.addEventListener("keydown", (event) => {
      const writes = event.target.closest("input, select, textarea");
      if (event.key === "/" && !writes && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        input.focus();
      } else if (event.key === "Escape" && !results.hidden) {
        close();
        input.focus();
      } else if (event.key === "ArrowDown" && event.target === input && !results.hidden) {
        event.preventDefault();
        list.querySelector("a")?.focus();
      }
    });
  }

  // What is wider or higher than its box can be scrolled by keyboard, too.
  function focusable() {
    for (const box of document.querySelectorAll("pre, .scroll, .picture, .rich, math[display=block]")) {
      const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
      if (scrolls) box.tabIndex = 0; else box.removeAttribute("tabindex");
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    const theme = document.getElementById("book-theme");
    theme.value = stored();
    theme.addEventListener("change", () => setTheme(theme.value));

    const menu = document.getElementById("book-menu");
    menu.addEventListener("click", () => {
      const open = document.getElementById("book-contents").classList.toggle("open");
      menu.setAttribute("aria-expanded", open);
    });
    document.querySelector("#book-contents [aria-current]")?.scrollIntoView({ block: "center", container: "nearest" });
    window.scrollTo(0, 0);
    if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();

    search();
    focusable();
    new ResizeObserver(focusable).observe(document.body);
    document.addEventListener("toggle", focusable, true);
  });
})();
