"""ftkit: what a fine-tuning script imports, and the library behind the course in `ftcourse`.

Importing it is cheap: a name below loads its module, and so torch and transformers, when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # for editors and type checkers; a test holds it equal to _MODULES
    from .adapters import attach, load_adapter, merge_and_verify, save_adapter
    from .chat import check_chat_template, check_dataset, check_tokenizer, token_view
    from .child_tuning import ChildTuningAdamW, fisher_mask, gradient_mask
    from .conversations import encode, load_chat, read_conversations, training_template
    from .evaluate import generate_answers
    from .freezing import freeze, train_only, unfreeze
    from .loading import load_for_training
    from .loss import IGNORE_INDEX
    from .memory import MemoryPlan, estimate_memory
    from .models import load_base
    from .overfit import overfit_one_batch
    from .parameters import count_parameters, decay_groups, parameter_table

_MODULES = {
    "adapters": ("attach", "load_adapter", "merge_and_verify", "save_adapter"),
    "chat": ("check_chat_template", "check_dataset", "check_tokenizer", "token_view"),
    "child_tuning": ("ChildTuningAdamW", "fisher_mask", "gradient_mask"),
    "conversations": ("encode", "load_chat", "read_conversations", "training_template"),
    "evaluate": ("generate_answers",),
    "freezing": ("freeze", "train_only", "unfreeze"),
    "loading": ("load_for_training",),
    "loss": ("IGNORE_INDEX",),
    "memory": ("MemoryPlan", "estimate_memory"),
    "models": ("load_base",),
    "overfit": ("overfit_one_batch",),
    "parameters": ("count_parameters", "decay_groups", "parameter_table"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ftkit' has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
