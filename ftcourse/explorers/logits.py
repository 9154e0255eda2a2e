"""A control over the bytes of the logits at the peak of the loss, beside those of all weights."""

import ipywidgets

from ftcourse.plots import HATCHES, OKABE_ITO, new_axes
from ftkit.memory import published_meta_model
from ftkit.parameters import count_parameters

from . import Explorer

GIB = 2**30
# transformers' loss in bfloat16, per logit: logits 2, log-softmax 4, its gradient 4, the float32 logits' gradient 4.
PER_LOGIT = 14
CHUNK = 512  # tokens
LENGTHS, VOCABULARIES = (512, 2048, 8192), (1024, 32_000, 128_256, 262_144)


class LogitsExplorer(Explorer):
    """Sliders for sequences, tokens and vocabulary over bars of a Llama-3-8B body; `bars` holds their bytes."""

    hint = "choose others"

    def __init__(self):
        llama = published_meta_model("llama-3-8b")
        self._width = llama.config.hidden_size
        self._body = count_parameters(llama).total - 2 * llama.config.vocab_size * self._width
        self.batch = ipywidgets.IntSlider(value=8, min=1, max=64, description="sequences")
        lengths, sizes = ([(f"{count:,}", count) for count in counts] for counts in (LENGTHS, VOCABULARIES))
        self.tokens = ipywidgets.SelectionSlider(options=lengths, value=2048, description="tokens of each")
        self.vocabulary = ipywidgets.SelectionSlider(options=sizes, value=128_256, description="vocabulary")
        super().__init__(self.batch, self.tokens, self.vocabulary)

    def state(self) -> str:
        return f"{self.batch.value} × {self.tokens.value} tokens, vocabulary {self.vocabulary.value}"

    def draw(self) -> str:
        tokens = self.batch.value * self.tokens.value
        self.bars = {
            "all weights, bfloat16": 2 * (self._body + 2 * self.vocabulary.value * self._width),
            "logits, bfloat16": 2 * tokens * self.vocabulary.value,
            "peak of the loss": PER_LOGIT * tokens * self.vocabulary.value,
            f"the same, {CHUNK} tokens at once": PER_LOGIT * min(tokens, CHUNK) * self.vocabulary.value,
        }
        figure, ax = new_axes(7, 2.4)
        drawn = ax.barh(list(self.bars), [size / GIB for size in self.bars.values()])
        for patch, colour, hatch in zip(drawn, OKABE_ITO, HATCHES, strict=False):
            patch.set(facecolor=colour, hatch=hatch, edgecolor="white")
        ax.bar_label(drawn, [f" {size / GIB:.2f}" for size in self.bars.values()])
        ax.set(xlabel="GiB", xlim=(0, 1.2 * max(self.bars.values()) / GIB))
        ax.invert_yaxis()
        said = ", ".join(f"{name} {size / GIB:.1f} GiB" for name, size in self.bars.items())
        return self.captioned(figure, f"{self.state()}: {said}")
