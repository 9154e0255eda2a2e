"""What is not installed is named together with the extra that installs it."""

import importlib.util


def require(*names: str) -> None:
    """Raise ModuleNotFoundError, with the remedy, for the first of these modules that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"{name} is not installed: pip install 'ftkit[lab]'", name=name)
