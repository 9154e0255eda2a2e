"""What can be wrong with data and chat templates."""


class ConversationError(ValueError):
    """Invalid data; the message names the file, the line and what to write instead."""


class ChatTemplateError(ValueError):
    """The chat template is missing or has no generation markers."""
