"""ftkit: the helper library behind a course that goes from a 3x3 gradient mask to sharded fine-tuning.

Importing it is cheap: torch and transformers load when a name below is first used.
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["load_base", "load_chat"]


def __getattr__(name: str):
    if name in __all__:
        return getattr(import_module("ftkit.models"), name)
    raise AttributeError(f"module 'ftkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
