"""The templates: pages and controls here, the body of a notebook, which nbconvert fills, in book/."""

import functools
from pathlib import Path

import jinja2

HERE = Path(__file__).resolve().parent


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(HERE)
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def template(name: str) -> jinja2.Template:
    """A template of this folder. What is put into it is escaped, unless it is `Markup`."""
    return _environment().get_template(name)
