"""A PDF of each notebook to print or to read offline, with page numbers and text that can be selected: `ftkit handout`.

Chromium makes it, found on the PATH or at FTKIT_CHROMIUM, driven by playwright. Solutions are left out and hints are
printed, unless you say --solutions, which puts the solutions in the place of the exercises.
"""

import argparse
import html
import json
import os
import re
import shutil
import sys
from pathlib import Path

from ftkit._arguments import parse

from .copying import UnreadableNotebook, find_notebooks, with_solutions, without_solutions

FOLDER = "ftkit-handouts"  # in the working directory
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OFFLINE = ["--disable-gpu", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"]
STYLE = """
body { font: 10.5pt/1.45 "DejaVu Sans", "Segoe UI", Roboto, sans-serif; color: #111; margin: 0 }
h1, h2, h3, h4 { line-height: 1.2; break-after: avoid }
h1 { font-size: 20pt } h2 { font-size: 14.5pt; margin-top: 1.4em } h3 { font-size: 12pt }
a { color: #005a8e; text-decoration: none }
pre { font: 8.4pt/1.35 "DejaVu Sans Mono", Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 0 }
code { font-family: "DejaVu Sans Mono", Consolas, monospace; font-size: .88em } pre code { font-size: 1em }
.highlight { background: none }
.input_area, .rendered_html pre { background: #f5f7f9;
  border: .5pt solid #cfd4da; border-radius: 3pt; padding: 5pt 7pt }
.cell { margin: 7pt 0 } .output_area { margin: 5pt 0 }
.output_stream pre, .output_text pre { border-left: 2pt solid #cfd4da; padding-left: 6pt }
img, svg { max-width: 100%; max-height: 20cm; height: auto; break-inside: avoid }
.output_area img, .output_area svg { display: block }
table { border-collapse: collapse; font-size: 8.6pt } tr { break-inside: avoid }
th, td { border-bottom: .5pt solid #cfd4da; padding: 2pt 5pt; text-align: left; vertical-align: top }
summary { font-weight: bold; list-style: none }
"""
FOOTER = (
    '<div style="font: 7pt sans-serif; color: #555; width: 100%; padding: 0 15mm; display: flex; '
    'justify-content: space-between"><span>{title}</span><span><span class="pageNumber"></span> / '
    '<span class="totalPages"></span></span></div>'
)


def find_chromium() -> str:
    """The browser's path. Raises FileNotFoundError where there is none."""
    found = os.environ.get("FTKIT_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise FileNotFoundError("no Chromium on the PATH: install it, or set FTKIT_CHROMIUM to the browser's path")
    return found


def make_page(nb) -> str:
    """A notebook as a page to print: hints and answers unfolded, since paper unfolds nothing.

    Code that the notebook hides, and what installs on Colab, is left out; its output stays.
    """
    from .rendering import code_style, has_tag, is_set_up, render, title_of

    parts = []
    for cell in nb.cells:
        hidden = has_tag(cell, "hide-input") or is_set_up(cell)
        parts.append(render([cell], lambda target: None, code=not hidden))
    body = re.sub(r"<details\b", "<details open", "\n".join(parts))
    title = html.escape(title_of(nb))
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{code_style()}{STYLE}</style></head><body>{body}</body></html>"
    )


def print_pdfs(pages: dict[Path, str], chromium: str) -> None:
    """Print each page to its file, A4, in one browser that reaches no network.

    Raises playwright's Error where the browser does not start.
    """
    from playwright.sync_api import sync_playwright

    # Chromium refuses its sandbox to root, which containers are. The page is made here, and runs no script.
    flags = [*OFFLINE, *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        context = browser.new_context(java_script_enabled=False, service_workers="block")
        for file, text in pages.items():
            page = context.new_page()
            page.set_content(text, wait_until="load")
            page.pdf(
                path=str(file),
                format="A4",
                margin={"top": "16mm", "bottom": "18mm", "left": "17mm", "right": "17mm"},
                print_background=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOTER.format(title=re.search(r"<title>(.*?)</title>", text)[1]),
                outline=True,
                tagged=True,
            )
            page.close()
            print(file, flush=True)
        browser.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ftkit handout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "notebooks", nargs="*", metavar="NOTEBOOK", help="05, 05_chat_templates or a path.ipynb (default: all)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(FOLDER), metavar="FOLDER", help="where they go (default: %(default)s)"
    )
    parser.add_argument("--solutions", action="store_true", help="with the solutions in place of the exercises")
    given = parse(parser, arguments)
    change = with_solutions if given.solutions else without_solutions
    try:
        import nbformat
        import playwright.sync_api

        from . import rendering  # noqa: F401

        chromium = find_chromium()
        paths = find_notebooks(given.notebooks)
        given.output.mkdir(parents=True, exist_ok=True)
        end = "-solutions.pdf" if given.solutions else ".pdf"
        pages = {}
        for path in paths:
            nb = nbformat.reads(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), as_version=4)
            pages[given.output / f"{path.stem}{end}"] = make_page(nb)
        print_pdfs(pages, chromium)
    except ModuleNotFoundError as error:
        package = "playwright" if error.name.startswith("playwright") else "'ftkit[lab]'"
        print(f"error: {error.name} is not installed: pip install {package}", file=sys.stderr)
        return 2
    except (OSError, ValueError, UnreadableNotebook, playwright.sync_api.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
