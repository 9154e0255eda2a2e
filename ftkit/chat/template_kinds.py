"""What a chat template can have wrong with it: the larger part of the catalogue."""

from .kind import Kind

TEMPLATE = {
    "no-template": Kind(
        "error",
        "Without a chat template there is no agreed way to write a conversation as tokens.",
        "Set tokenizer.chat_template, or call ftkit.chat.add_chat_template(tokenizer, model), and save both.",
    ),
    "template-fails": Kind(
        "error",
        "A question and an answer is the least that a chat template must be able to write.",
        "Mend the template where the message points, or take the one that the model was published with.",
    ),
    "wants-content-blocks": Kind(
        "error",
        'The template reads content as a list such as [{"type": "text", "text": "…"}]; of plain strings it loses the '
        "text or fails.",
        "Give every content as such a list, as processors of vision models expect, or take a text-only template.",
    ),
    "content-lost": Kind(
        "error",
        "The model cannot learn from text that the template leaves out.",
        "Make the template write message.content of user and assistant alike.",
    ),
    "no-generation-markers": Kind(
        "error",
        "Without {% generation %} markers nothing tells the assistant's tokens from the user's: no loss mask.",
        "Put {% generation %} … {% endgeneration %} around what the assistant writes, its closing token included.",
    ),
    "markers-from-trl": Kind(
        "note",
        "TRL has a training version of this template that has the markers; it may write a conversation differently.",
        "Train with ftkit.conversations.training_template(tokenizer); keep the original for generating.",
    ),
    "answer-not-in-loss": Kind(
        "error",
        "The loss mask leaves out the answer, which is what the model should learn.",
        "Put {% generation %} … {% endgeneration %} around all that the assistant writes.",
    ),
    "prompt-in-loss": Kind(
        "warning",
        "The model is trained to write the user's questions too, and may go on with one after its answer.",
        "Keep {% generation %} … {% endgeneration %} to the assistant's branch of the template.",
    ),
    "gap-before-answer": Kind(
        "warning",
        "What stands between the generation prompt and the loss mask is neither given to the model nor learnt: when "
        "it generates, it has to guess it.",
        "Begin {% generation %} where the generation prompt ends.",
    ),
    "turn-not-closed": Kind(
        "error",
        "Nothing follows the answer, so there is no token to learn that ends it: the model will never stop.",
        "Write the end-of-turn token after message.content, inside the {% generation %} block.",
    ),
    "turn-end-is-text": Kind(
        "warning",
        "What closes an answer is no token of its own: it can be written in several ways, and generation stops at "
        "single tokens.",
        "Add the closing mark as a special token and resize the embedding, or close the turn with eos_token.",
    ),
    "turn-end-is-not-eos": Kind(
        "warning",
        "Generation stops at EOS. The model learns to close its turn with another token, and writes on after it.",
        "Set tokenizer.eos_token to the closing token, or add its id to model.generation_config.eos_token_id.",
    ),
    "stop-not-in-loss": Kind(
        "error",
        "The token that ends an answer is written but not learnt: the model will never stop.",
        "Move {% endgeneration %} behind the closing token.",
    ),
    "bos-doubled": Kind(
        "warning",
        "The template writes BOS and the tokenizer puts another before it: a start the model has not seen.",
        "Tokenise rendered text with add_special_tokens=False, or drop bos_token from the template.",
    ),
    "system-rejected": Kind(
        "warning",
        "The template refuses a conversation that begins with a system turn.",
        "Put the instruction at the head of the first user turn, or extend the template.",
    ),
    "system-dropped": Kind(
        "warning",
        "The system turn is left out without a word: the model never sees the instruction.",
        "Put the instruction at the head of the first user turn, or extend the template.",
    ),
    "strips-whitespace": Kind(
        "note",
        "Space around an answer is cut off, so indented code and closing line breaks become other tokens than those "
        "in your data.",
        "Strip the data yourself, or drop | trim and .strip() from the template where space matters.",
    ),
    "prompt-differs": Kind(
        "warning",
        "In training the model sees other text before an answer than when it generates one.",
        "Make the text up to an answer the same with and without add_generation_prompt.",
    ),
    "tokens-merge": Kind(
        "warning",
        "The text before an answer is the same in training and generation, but its tokens are not: the tokenizer "
        "joins its end with the answer's beginning.",
        "End the generation prompt with a special token or a line break, and begin no answer with a space.",
    ),
    "history-changes": Kind(
        "warning",
        "A turn is written differently once others follow it, so a cached prefix is wrong, and the last answer is "
        "learnt in another form than it has in the history.",
        "Write each turn independently of its place, or train on conversations cut at each answer.",
    ),
    "tool-turns-change": Kind(
        "note",
        "Appending a tool's result changes what was written before: training with tools (GRPO) relies on it staying.",
        "Train with TRL's training version of the template, where there is one.",
    ),
    "round-trip-lossy": Kind(
        "warning",
        "Decoding the tokens does not give the text back: the model is not trained on what you see.",
        "Look at token_view; turn off rstrip, lstrip and normalisation, or add the characters that are unknown.",
    ),
    "date-in-prompt": Kind(
        "note",
        "The template writes today's date, so tokens change from day to day and runs cannot be repeated exactly.",
        "Give the date as a template variable, where the template has one, or write it in a system turn.",
    ),
}
