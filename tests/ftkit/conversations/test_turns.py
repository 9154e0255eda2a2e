"""What the assistant writes is located by rendering: small templates, each with one habit that published ones have."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ftkit.conversations import ConversationError, encode
from ftkit.conversations.encoding import encode_rendered
from ftkit.conversations.rendering import (
    ANSWER,
    CHAT,
    SECOND_ANSWER,
    SECOND_QUESTION,
    TRAIN_KEYS,
    ChatTemplate,
    TemplateFailed,
)
from ftkit.conversations.turns import RenderedText, render_with_loss
from tests.tiny import CHATML

UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"  # of CHATML
NAMES = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|end|>"]
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL_CALL = {"type": "function", "id": "a1b2c3d4e", "function": {"name": "times", "arguments": {"a": 6}}}
# Words in front of what is said, as templates of the simplest kind have them.
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"


def tokenizer(**post) -> PreTrainedTokenizerFast:
    """Single bytes and NAMES."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(NAMES)
    if post:
        made.post_processor = processors.ByteLevel(**post)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")


TOKENIZER = tokenizer()


def rendered(source, messages=CHAT, **kwargs) -> RenderedText:
    return render_with_loss(ChatTemplate(TOKENIZER, source), messages, **kwargs)


def loss(source, messages=CHAT, **kwargs) -> list[str]:
    """The texts in the loss."""
    one = rendered(source, messages, **kwargs)
    return [one.text[slice(*span)] for span in one.loss_spans]


def problems(source, messages=CHAT) -> dict[int, str]:
    return {turn.message: turn.problem for turn in rendered(source, messages).problems}


def tokens(source, messages, tokenizer=TOKENIZER):
    template = ChatTemplate(tokenizer, source)
    return encode_rendered(tokenizer, [render_with_loss(template, messages)])[0]


# --- ChatML: derived and marked masks are the same


WITH_BREAK = CHATML.replace("<|im_end|>{% endgeneration %}\n", "<|im_end|>\n{% endgeneration %}")


@pytest.mark.parametrize("messages", [CHAT, [SYSTEM, *CHAT], CHAT[:2], CHAT[:3], [*CHAT[:2], *CHAT[:2]]])
def test_unmarked_chatml_has_the_mask_of_the_marked_one(messages):
    derived, marked = tokens(UNMARKED, messages), tokens(WITH_BREAK, messages)
    assert derived == marked
    assert any(derived.loss_mask) and not all(derived.loss_mask)
    narrow = tokens(WITH_BREAK.replace("\n{% endgeneration %}", "{% endgeneration %}{{ '\n' }}"), messages)
    assert narrow.input_ids == marked.input_ids
    assert sum(derived.loss_mask) - sum(narrow.loss_mask) == sum(m["role"] == "assistant" for m in messages)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<>|"), max_size=12)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT}),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(MESSAGES)
def test_unmarked_chatml_has_the_mask_of_the_marked_one_for_any_conversation(messages):
    derived = tokens(UNMARKED, messages)
    assert derived == tokens(WITH_BREAK, messages)
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    learnt = [i for i, m in zip(derived.input_ids, derived.loss_mask, strict=True) if m]
    assert TOKENIZER.decode(learnt) == "".join(f"{answer}<|im_end|>\n" for answer in answers)
    # Negative control: without the closing token the same check fails.
    unclosed = UNMARKED.replace("{{ m.content }}<|im_end|>\n{% else %}", "{{ m.content }}\n{% else %}")
    assert unclosed != UNMARKED
    assert (tokens(unclosed, messages) == derived) is not bool(answers)


# --- where a turn begins


def test_a_prompt_that_opens_a_thought_which_turns_lack():
    thinks = UNMARKED.replace(PROMPT, PROMPT.replace("\n{%", "\n<think>\n{%"))
    assert thinks != UNMARKED
    assert loss(thinks) == loss(UNMARKED) == [f"{ANSWER}<|im_end|>\n", f"{SECOND_ANSWER}<|im_end|>\n"]


def test_a_prompt_that_opens_a_thought_which_turns_have():
    both = UNMARKED.replace(
        "{{ m.role }}\n", "{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n</think>\n{% endif %}"
    )
    both = both.replace(PROMPT, PROMPT.replace("\n{%", "\n<think>\n{%"))
    assert loss(both) == [f"</think>\n{ANSWER}<|im_end|>\n", f"</think>\n{SECOND_ANSWER}<|im_end|>\n"]


def test_white_space_is_the_only_difference_between_prompt_and_text():
    # As Falcon, whose prompt ends with ":" and whose turns go on with " ".
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    shorter = turns + "{% if add_generation_prompt %}assistant:{% endif %}"
    assert loss(shorter) == [f" {ANSWER}\n", f" {SECOND_ANSWER}\n"]
    # And the other way around: the prompt has an end that the text lacks.
    longer = shorter.replace("assistant:{%", "assistant: \n{%")
    assert loss(longer) == [f"{ANSWER}\n", f"{SECOND_ANSWER}\n"]
    assert loss(shorter.replace("assistant:{%", "model:{%")) == []  # negative control: other words are no white space


def test_without_a_generation_prompt_the_role_header_is_not_in_the_loss():
    assert loss(PLAIN) == [f"{ANSWER}</s>", f"{SECOND_ANSWER}</s>"]
    # Where the header is one for all, such as Llama 2's, what follows it is the assistant's.
    llama = (
        "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
    )
    assert loss(llama) == [f" {ANSWER} </s>", f" {SECOND_ANSWER} </s>"]


def test_a_role_header_that_is_always_appended_is_not_in_the_loss():
    always = "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}assistant:"
    assert loss(always) == [f"{ANSWER}</s>", f"{SECOND_ANSWER}</s>"]
    assert rendered(always).text.endswith("</s>assistant:")


# --- where a turn ends


def test_eos_only_after_the_last_turn():
    ends = UNMARKED.replace(
        PROMPT, "{% if not add_generation_prompt %}</s>{% else %}<|im_start|>assistant\n{% endif %}"
    )
    assert loss(ends) == [f"{ANSWER}<|im_end|>\n", f"{SECOND_ANSWER}<|im_end|>\n</s>"]
    assert problems(ends) == {}


def test_another_token_ends_turns_that_others_follow():
    other = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}"
        "{{ '</s>' if loop.last else '<|end|>' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    # The question before a generation prompt is the last message, too, unless the template asks for its role.
    other = other.replace("loop.last", "loop.last and m.role == 'assistant'")
    assert loss(other) == [ANSWER, f"{SECOND_ANSWER}</s>"]
    assert problems(other) == {1: "another token ends it once later turns follow"}
    assert problems(other.replace("</s>", "<|end|>")) == {}  # negative control: one token for both


def test_turns_are_joined_by_what_comes_before_the_next():
    """Nothing closes the last turn, and the line break between turns belongs to the next one."""
    joined = (
        "{% for m in messages %}{% if not loop.first %}\n{% endif %}{{ m.role }}: {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}\nassistant: {% endif %}"
    )
    assert loss(joined) == [ANSWER, SECOND_ANSWER]


# --- templates that write earlier turns in another way

DROPS = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and m.reasoning_content and loop.index0 > ns.last %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + PROMPT
)


def test_a_turn_whose_reasoning_is_dropped_later_is_left_out():
    thoughts = [m | ({"reasoning_content": "six sevens"} if m["role"] == "assistant" else {}) for m in CHAT]
    assert loss(DROPS, thoughts) == [f"<think>six sevens</think>{SECOND_ANSWER}<|im_end|>\n"]
    assert problems(DROPS, thoughts) == {1: "it is written in another way once later turns follow"}
    assert loss(DROPS, thoughts[:2]) == [f"<think>six sevens</think>{ANSWER}<|im_end|>\n"]  # negative controls
    assert len(loss(DROPS)) == 2


def test_a_system_turn_that_moves_to_the_last_question():
    moves = (
        "{% for m in messages %}{% if m.role == 'user' %}{% if loop.index0 >= messages|length - 2 and "
        "messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}[{{ m.content }}]"
        "{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    assert loss(moves, [SYSTEM, *CHAT]) == [f"{SECOND_ANSWER}</s>"]
    assert problems(moves, [SYSTEM, *CHAT]) == {
        2: "the text before it is not what the model would be given to generate it"
    }
    assert len(loss(moves)) == 2  # negative control: without a system turn


def test_a_template_that_refuses_a_beginning_of_the_conversation():
    refuses = "{% if messages|length == 1 %}{{ raise_exception('too short') }}{% endif %}" + UNMARKED
    assert loss(refuses) == [f"{SECOND_ANSWER}<|im_end|>\n"]
    assert "too short" in problems(refuses)[1]
    with pytest.raises(TemplateFailed, match="too short"):
        rendered(refuses, CHAT[:1])


def test_a_turn_that_the_template_does_not_write():
    leaves_out = UNMARKED.replace("{% for m in messages %}", "{% for m in messages if m.content != 'skip' %}")
    chat = [*CHAT[:2], CHAT[2], {"role": "assistant", "content": "skip"}]
    assert loss(leaves_out, chat) == [f"{ANSWER}<|im_end|>\n"]
    assert list(problems(leaves_out, chat)) == [3]
    with pytest.raises(ConversationError, match="message 2 is not in the loss, because"):
        encode(TOKENIZER, [CHAT[0], chat[3]], leaves_out)


# --- who speaks when


def test_the_assistant_speaks_first():
    chat = [{"role": "assistant", "content": "Good day."}, *CHAT]
    for source in (UNMARKED, PLAIN):
        assert len(loss(source, chat)) == 3
        assert loss(source, chat)[0].startswith("Good day.")
        assert loss(source, chat)[1:] == loss(source)


def test_consecutive_turns_of_the_assistant():
    chat = [CHAT[0], CHAT[1], CHAT[3], *CHAT[2:]]
    assert loss(UNMARKED, chat) == [f"{t}<|im_end|>\n" for t in (ANSWER, SECOND_ANSWER, SECOND_ANSWER)]
    assert tokens(UNMARKED, chat) == tokens(WITH_BREAK, chat)


# --- forms of content and tool calls

BLOCKS = UNMARKED.replace("{{ m.content }}", "{% for b in m.content %}{{ b.text }}{% endfor %}")
PASTES = UNMARKED.replace(
    "{{ m.content }}",
    "{{ m.content }}{% for c in m.tool_calls %}{{ '{' }}{{ c.function.arguments }}{{ '}' }}{% endfor %}",
)
DUMPS = PASTES.replace("c.function.arguments", "c.function.arguments | tojson")
CALLS = [
    CHAT[0],
    {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]},
    {"role": "tool", "name": "times", "tool_call_id": "a1b2c3d4e", "content": "42"},
    CHAT[1],
]
CALLS_AS_TEXT = copy.deepcopy(CALLS)
CALLS_AS_TEXT[1]["tool_calls"][0]["function"]["arguments"] = '{"a": 6}'


def as_blocks(text):
    return [{"type": "text", "text": part} for part in (text[:3], text[3:])]


def test_content_is_given_in_the_form_that_the_template_reads():
    in_blocks = [m | {"content": as_blocks(m["content"])} for m in CHAT]
    assert ChatTemplate(TOKENIZER, BLOCKS).wants_blocks
    assert not ChatTemplate(TOKENIZER, UNMARKED).wants_blocks
    for source in (BLOCKS, UNMARKED):
        for chat in (CHAT, in_blocks):
            assert rendered(source, chat) == rendered(UNMARKED, CHAT)


@pytest.mark.parametrize("chat", [CALLS, CALLS_AS_TEXT], ids=["object", "text"])
@pytest.mark.parametrize("source", [PASTES, DUMPS], ids=["pasted", "as JSON"])
def test_tool_calls_are_given_in_the_form_that_the_template_reads(source, chat):
    assert ChatTemplate(TOKENIZER, source).wants_text_arguments is (source == PASTES)
    given_before = copy.deepcopy(chat)
    assert loss(source, chat) == ['{{"a": 6}}<|im_end|>\n', f"{ANSWER}<|im_end|>\n"]
    assert chat == given_before


def test_a_missing_content_is_empty_where_the_template_fails_at_it():
    strict = DUMPS.replace("{{ m.content }}", "{{ m.content + '' }}", 1)
    chat = [CALLS[0], {k: v for k, v in CALLS[1].items() if k != "content"}, *CALLS[2:]]
    assert loss(strict, chat) == loss(DUMPS, CALLS)
    assert loss(strict, [chat[0], chat[1] | {"content": None}, *chat[2:]]) == loss(DUMPS, CALLS)


# --- turns that are not to be trained on


@pytest.mark.parametrize("source", [UNMARKED, WITH_BREAK], ids=["derived", "marked"])
@pytest.mark.parametrize("key", TRAIN_KEYS)
@pytest.mark.parametrize("value", [0, False, 0.0])
def test_turns_without_weight_are_left_out(source, key, value):
    chat = copy.deepcopy(CHAT)
    chat[1][key] = value
    assert loss(source, chat) == [f"{SECOND_ANSWER}<|im_end|>\n"]
    assert rendered(source, chat).text == rendered(source).text
    chat[1][key] = 1
    assert loss(source, chat) == loss(source)
    assert problems(source, chat) == {}


def test_a_turn_to_leave_out_that_cannot_be_located_is_refused_only_with_markers():
    marks = DROPS.replace("{% if m.role == 'assistant' and", "{% generation %}{% if m.role == 'assistant' and").replace(
        "<|im_end|>\n{% endfor %}", "<|im_end|>\n{% endgeneration %}{% endfor %}"
    )
    chat = [m | ({"reasoning_content": "sixes"} if m["role"] == "assistant" else {}) for m in CHAT]
    chat[1]["weight"] = 0
    assert loss(DROPS, chat) == [f"<think>sixes</think>{SECOND_ANSWER}<|im_end|>\n"]
    with pytest.raises(ConversationError, match="message 1 is not to be trained on"):
        rendered(marks, chat)


# --- other tokenizers


def test_offsets_that_leave_out_white_space_give_the_same_mask():
    trimming, exact = tokenizer(trim_offsets=True), tokenizer(trim_offsets=False)
    spaced = [m | {"content": f" {m['content']}  \n"} for m in CHAT]
    for source in (UNMARKED, PLAIN, PLAIN.replace(": {{", ":{{")):
        for chat in (CHAT, spaced):
            one, other = tokens(source, chat, trimming), tokens(source, chat, exact)
            assert (one.input_ids, one.loss_mask) == (other.input_ids, other.loss_mask)
    assert one.spans != other.spans


class Slow:
    """A tokenizer that has no offsets."""

    is_fast = False

    def __init__(self, fast):
        self.fast = fast

    def __call__(self, texts, return_offsets_mapping=False, **kwargs):
        assert not return_offsets_mapping
        return self.fast(texts, **kwargs)

    def __getattr__(self, name):
        return getattr(self.fast, name)


def test_a_tokenizer_without_offsets_gives_the_same_mask():
    for source in (UNMARKED, WITH_BREAK, PLAIN):
        slow, fast = tokens(source, CHAT, Slow(TOKENIZER)), tokens(source, CHAT)
        assert slow == fast._replace(spans=[])
        assert any(slow.loss_mask) and not all(slow.loss_mask)


def test_the_options_of_a_template_reach_every_rendering():
    optional = UNMARKED.replace(
        "{{ m.content }}<|im_end|>\n{% else %}", "{{ m.content }}{{ mark }}<|im_end|>\n{% else %}"
    )
    assert loss(optional, kwargs={"mark": "!"}) == [f"{ANSWER}!<|im_end|>\n", f"{SECOND_ANSWER}!<|im_end|>\n"]
    assert SECOND_QUESTION in rendered(optional).text


# --- templates that write the role header at the end, whether asked for it or not

TRAILING = pytest.mark.xfail(reason="ChatTemplate.trailing_prompt takes too much or too little", strict=True)
GIVEN_SYSTEM = "<|im_start|>system\nHelp.<|im_end|>\n"  # written by the template where the messages have none


@TRAILING
def test_a_default_system_turn_and_a_header_after_the_question():
    source = (
        GIVEN_SYSTEM + "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
        "<|im_start|>assistant\n{% else %}{{ m.content }}<|im_end|>{{ '\\n' }}{% endif %}{% endfor %}"
    )
    assert loss(source) == [f"{ANSWER}<|im_end|>\n", f"{SECOND_ANSWER}<|im_end|>\n"]


@TRAILING
def test_a_default_system_turn_and_a_header_that_is_always_appended():
    always = GIVEN_SYSTEM + UNMARKED.replace(PROMPT, "<|im_start|>assistant{{ '\\n' }}")
    assert loss(always) == [f"{ANSWER}<|im_end|>\n", f"{SECOND_ANSWER}<|im_end|>\n"]


@TRAILING
def test_a_header_that_is_always_appended_and_shorter_than_that_of_a_turn():
    shorter = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}assistant:"
    assert loss(shorter) == [f" {ANSWER}</s>", f" {SECOND_ANSWER}</s>"]


@TRAILING
def test_a_token_that_begins_each_answer_after_a_header_that_is_always_appended():
    begins = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\\n' }}"
    )
    assert loss(begins) == [f"<think>{ANSWER}<|im_end|>\n", f"<think>{SECOND_ANSWER}<|im_end|>\n"]


@pytest.mark.xfail(
    reason="a tool call that the template does not write leaves an empty answer in the loss", strict=True
)
def test_a_tool_call_that_the_template_does_not_write_is_not_trained_on():
    assert loss(UNMARKED, CALLS) == [f"{ANSWER}<|im_end|>\n"]
    assert list(problems(UNMARKED, CALLS)) == [1]
