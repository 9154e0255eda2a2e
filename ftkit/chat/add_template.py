"""A chat template for a base model that has none."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
# ChatML, as Qwen's and many other models write it, with marks around what the assistant writes.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def add_chat_template(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """Give both the ChatML format; returns how many tokens are new, of two.

    `<|im_end|>` becomes EOS, so that generation stops where a turn does. The embedding grows where the new tokens
    have no row; their rows have to be trained. Raises ValueError for a tokenizer that has a template: a model wants
    to be asked in the form that it was trained in.
    """
    if tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path} has a chat template: use it, or set tokenizer.chat_template = None first"
        )
    added = tokenizer.add_special_tokens(
        {"additional_special_tokens": [TURN_START], "eos_token": TURN_END}, False
    )
    tokenizer.chat_template = CHATML
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return added
