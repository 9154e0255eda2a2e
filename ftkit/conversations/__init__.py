"""Conversations: read from the files people have, validated, and encoded as token ids and labels."""

from ftkit.loss import IGNORE_INDEX

from .encoding import encode, encode_text, training_template
from .errors import ChatTemplateError, ConversationError
from .reading import Source, find_chat, load_chat, read_conversations, read_source
from .validation import EXAMPLE, ROLES, find_problem

__all__ = [
    "EXAMPLE",
    "IGNORE_INDEX",
    "ROLES",
    "ChatTemplateError",
    "ConversationError",
    "Source",
    "encode",
    "encode_text",
    "find_chat",
    "find_problem",
    "load_chat",
    "read_conversations",
    "read_source",
    "training_template",
]
