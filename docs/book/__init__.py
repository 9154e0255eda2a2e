"""The course as a static site, made from the built notebooks: `python -m docs.book --help`."""


class BookError(RuntimeError):
    """The book cannot be made, or has a fault; the message names the page and the remedy."""
