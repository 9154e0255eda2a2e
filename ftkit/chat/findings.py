"""The rules of the chat checks: the severity of each code, why it matters, and what to do.

An error breaks training or generation; a warning may, depending on what the model is for; a note is worth knowing.
"""

from typing import NamedTuple

from ftkit.findings import Finding


class Rule(NamedTuple):
    severity: str  # one of SEVERITIES
    why: str
    remedy: str


TEMPLATE_RULES = {
    "no-template": Rule(
        "error",
        "Without a chat template there is no agreed way to write a conversation as tokens.",
        "Set tokenizer.chat_template, or call ftkit.chat.add_chat_template(tokenizer, model), and save both.",
    ),
    "template-fails": Rule(
        "error",
        "A question and an answer is the least that a chat template must be able to write.",
        "Fix the template where the message points, or take the one that the model was published with.",
    ),
    "wants-content-blocks": Rule(
        "error",
        'The template reads content as a list such as [{"type": "text", "text": "…"}]; of plain strings it loses the '
        "text or fails.",
        "Give every content as such a list, as processors of vision models expect, or take a text-only template.",
    ),
    "content-lost": Rule(
        "error",
        "The model cannot learn from text that the template leaves out.",
        "Make the template write message.content of user and assistant alike.",
    ),
    "no-generation-markers": Rule(
        "error",
        "Without {% generation %} markers the assistant's tokens are unknown: no loss mask.",
        "Put {% generation %} … {% endgeneration %} around what the assistant writes, its closing token included.",
    ),
    "markers-from-trl": Rule(
        "note",
        "TRL has a training version of this template that has the markers; it may write a conversation differently.",
        "Train with ftkit.conversations.training_template(tokenizer); keep the original for generating.",
    ),
    "answer-not-in-loss": Rule(
        "error",
        "The loss mask leaves out the answer, which is what the model should learn.",
        "Put {% generation %} … {% endgeneration %} around all that the assistant writes.",
    ),
    "prompt-in-loss": Rule(
        "warning",
        "The model is trained to write the user's questions too, and may go on with one after its answer.",
        "Keep {% generation %} … {% endgeneration %} to the assistant's branch of the template.",
    ),
    "gap-before-answer": Rule(
        "warning",
        "What stands between the generation prompt and the loss mask is neither given to the model nor "
        "in the loss: the model has to guess it when it generates.",
        "Begin {% generation %} where the generation prompt ends.",
    ),
    "turn-not-closed": Rule(
        "error",
        "Nothing follows the answer, so no token in the loss ends it: the model will never stop.",
        "Write the end-of-turn token after message.content, inside the {% generation %} block.",
    ),
    "turn-end-is-text": Rule(
        "warning",
        "What ends an answer is not a single token: it can be written in several ways, and generation stops at "
        "single tokens.",
        "Add the closing mark as a special token and resize the embedding, or close the turn with eos_token.",
    ),
    "turn-end-is-not-eos": Rule(
        "warning",
        "Generation stops at EOS. The model learns to close its turn with another token, and writes on after it.",
        "Set tokenizer.eos_token to the closing token, or add its id to model.generation_config.eos_token_id.",
    ),
    "stop-not-in-loss": Rule(
        "error",
        "The token that ends an answer is written but not in the loss: the model will never stop.",
        "Move {% endgeneration %} behind the closing token.",
    ),
    "bos-doubled": Rule(
        "warning",
        "The template writes BOS and the tokenizer puts another before it: a start the model has not seen.",
        "Tokenise rendered text with add_special_tokens=False, or drop bos_token from the template.",
    ),
    "system-rejected": Rule(
        "warning",
        "The template refuses a conversation that begins with a system turn.",
        "Put the instruction at the head of the first user turn, or extend the template.",
    ),
    "system-dropped": Rule(
        "warning",
        "The system turn is silently left out: the model never sees the instruction.",
        "Put the instruction at the head of the first user turn, or extend the template.",
    ),
    "strips-whitespace": Rule(
        "note",
        "Space around an answer is cut off, so indented code and closing line breaks become other tokens than those "
        "in your data.",
        "Strip the data yourself, or drop | trim and .strip() from the template where space matters.",
    ),
    "prompt-differs": Rule(
        "warning",
        "In training the model sees other text before an answer than when it generates one.",
        "Make the text up to an answer the same with and without add_generation_prompt.",
    ),
    "tokens-merge": Rule(
        "warning",
        "The text before an answer is the same in training and generation, but its tokens are not: the tokenizer "
        "joins its end with the answer's beginning.",
        "End the generation prompt with a special token or a line break, and begin no answer with a space.",
    ),
    "history-changes": Rule(
        "warning",
        "A turn is written differently once others follow it, so a cached prefix is wrong, and the last answer is "
        "learnt in another form than it has in the history.",
        "Write each turn independently of its place, or train on conversations cut at each answer.",
    ),
    "tool-turns-change": Rule(
        "note",
        "Appending a tool's result changes what was written before: training with tools (GRPO) relies on it staying.",
        "Train with TRL's training version of the template, where there is one.",
    ),
    "round-trip-lossy": Rule(
        "warning",
        "Decoding the tokens does not give the text back: the model is not trained on what you see.",
        "Look at token_view; turn off rstrip, lstrip and normalisation, or add the characters that are unknown.",
    ),
    "date-in-prompt": Rule(
        "note",
        "The template writes today's date, so tokens change from day to day and runs cannot be repeated exactly.",
        "Give the date as a template variable, where the template has one, or write it in a system turn.",
    ),
}

TOKENIZER_RULES = {
    "no-pad-token": Rule(
        "warning",
        "Rows of one batch must be equally long, and some trainers fill them up with EOS when nothing else is defined.",
        "Call choose_pad_token(tokenizer, model) and save both.",
    ),
    "pad-is-stop": Rule(
        "warning",
        "A collator that masks labels wherever it sees the pad token also masks the token that ends each answer, "
        "so the model never learns to stop.",
        "Call choose_pad_token(tokenizer, model), or mask labels by position instead of by token.",
    ),
    "vocabulary-exceeds-embedding": Rule(
        "error",
        "A token without an embedding row is an index error on a CPU and a crash of the device on a GPU.",
        "Call model.resize_token_embeddings(len(tokenizer)) and save the model.",
    ),
    "untrained-token": Rule(
        "note",
        "The model has not learnt what these tokens of the chat template mean; training can teach it, as long as the "
        "embedding is trained too.",
        "Train the embedding: full fine-tuning does, LoRA needs it in modules_to_save or trainable_token_indices.",
    ),
    "untrained-frozen-token": Rule(
        "error",
        "These tokens of the chat template mean nothing to the model, and with a frozen embedding they never will.",
        "Unfreeze the embedding: with PEFT, name it in modules_to_save or list the tokens in trainable_token_indices.",
    ),
}

DATA_RULES = {
    "row-fails": Rule(
        "error",
        "The template refuses these conversations: training stops at the first of them.",
        "Fix or leave out the examples named, or take a template that knows their roles.",
    ),
    "text-lost": Rule(
        "error",
        "Text of these conversations does not reach the model.",
        "Take a template that writes these roles, or move the text into turns that it does write.",
    ),
    "text-altered": Rule(
        "warning",
        "The template strips space from these texts, so the tokens in the loss differ from those in your data.",
        "Strip the data yourself, or drop | trim and .strip() from the template where space matters.",
    ),
    "all-labels-masked": Rule(
        "error",
        "An example without unmasked labels has no effect, and the loss of a micro-batch of them is NaN.",
        "Raise the maximal length, or check the loss mask with token_view.",
    ),
    "stop-not-in-labels": Rule(
        "error",
        "No label of these examples ends an answer: the model will never stop.",
        "Let the loss mask take in the closing token: the template's {% endgeneration %} goes behind it.",
    ),
    "stop-masked-by-pad": Rule(
        "error",
        "Labels were masked wherever the pad token is, and the token that ends an answer is the pad token.",
        "Call choose_pad_token(tokenizer, model), or mask labels by position instead of by token.",
    ),
    "answer-cut-off": Rule(
        "warning",
        "These answers lose their end, and with it the token that says so: the model learns to break off or run on.",
        "Raise the maximal length, or leave these examples out.",
    ),
}

MASK_RULES = {
    "padding-changes-logits": Rule(
        "error",
        "The logits of real tokens depend on how much padding is beside them, so a row's loss depends on its batch.",
        "Pass the attention mask on to every layer, and count positions from the first real token.",
    ),
    "future-changes-logits": Rule(
        "error",
        "The logits of a token depend on tokens after it: the model can look up what it should predict.",
        "Combine causal and padding mask with AND: a token attends to what is both earlier and real.",
    ),
}

RULES: dict[str, Rule] = TOKENIZER_RULES | TEMPLATE_RULES | DATA_RULES | MASK_RULES


def finding(code: str, observed: str) -> Finding:
    """The finding of this code, with severity, why and remedy from RULES."""
    rule = RULES[code]
    return Finding(rule.severity, code, observed, rule.why, rule.remedy)
