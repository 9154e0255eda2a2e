"""The parts of a Llama: how many parameters each has, and a picture of how data passes through them.

The design is that of Touvron et al. 2023, "LLaMA"; transformers' `LlamaForCausalLM` names the parts.
"""

import itertools
import re
from collections.abc import Mapping

from torch import nn

from ftkit.parameters import count_parameters

from .alternative_text import caption
from .plots import HATCHES, OKABE_ITO, new_axes

PARTS = {  # part -> (a pattern of the names of its parameters, the group that it belongs to), in the order of the data
    "embedding": (r"model\.embed_tokens", "embedding"),
    "norm before attention": (r"model\.layers\.\d+\.input_layernorm", "norms"),
    "q_proj": (r"model\.layers\.\d+\.self_attn\.q_proj", "attention"),
    "k_proj": (r"model\.layers\.\d+\.self_attn\.k_proj", "attention"),
    "v_proj": (r"model\.layers\.\d+\.self_attn\.v_proj", "attention"),
    "o_proj": (r"model\.layers\.\d+\.self_attn\.o_proj", "attention"),
    "norm before MLP": (r"model\.layers\.\d+\.post_attention_layernorm", "norms"),
    "gate_proj": (r"model\.layers\.\d+\.mlp\.gate_proj", "MLP"),
    "up_proj": (r"model\.layers\.\d+\.mlp\.up_proj", "MLP"),
    "down_proj": (r"model\.layers\.\d+\.mlp\.down_proj", "MLP"),
    "final norm": (r"model\.norm", "norms"),
    "LM head": (r"lm_head", "LM head"),
}
LOOKS = {  # group -> colour, and index of HATCHES
    "embedding": (OKABE_ITO[1], 0),
    "attention": (OKABE_ITO[4], 1),
    "MLP": (OKABE_ITO[2], 2),
    "norms": ("#bbbbbb", 0),
    "LM head": (OKABE_ITO[1], 3),
}
GROUPS = tuple(LOOKS)


def count_parts(model: nn.Module) -> dict[str, int]:
    """The parameters of each of PARTS, those of all blocks together; on the meta device, too.

    Raises ValueError for a model that has other parts, or fewer.
    """
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = next((part for part, (pattern, _) in PARTS.items() if re.match(rf"{pattern}\.", name)), None)
        if part is None:
            raise ValueError(f"{name} belongs to no part of a Llama: only models of that design are counted")
        counts[part] += parameter.numel()
    if missing := [part for part, count in counts.items() if count == 0]:
        raise ValueError(f"the model has no {', '.join(missing)}: is its head tied to the embedding?")
    assert sum(counts.values()) == count_parameters(model).total
    return counts


def count_groups(parts: Mapping[str, int]) -> dict[str, int]:
    """The parameters of each of GROUPS, from those of the parts."""
    return {group: sum(n for part, n in parts.items() if PARTS[part][1] == group) for group in GROUPS}


def short(count: int) -> str:
    """A count in three digits: 512, 132 k, 1.05 M, 8.03 B."""
    for size, unit in ((10**9, " B"), (10**6, " M"), (10**3, " k")):
        if count >= size:
            value = count / size
            return f"{value:.{max(0, 2 - (value >= 10) - (value >= 100))}f}{unit}"
    return str(count)


# Rows of the picture, from the top: (what the boxes of the row say, parts that it counts; none for an operation).
_ROWS = [
    (("embedding: a vector for each token",), ("embedding",)),
    (("RMSNorm",), ("norm before attention",)),
    (("q_proj", "k_proj", "v_proj"), ("q_proj", "k_proj", "v_proj")),
    (("attention: softmax(q kᵀ / √d) v",), ()),
    (("o_proj",), ("o_proj",)),
    (("RMSNorm",), ("norm before MLP",)),
    (("gate_proj", "up_proj"), ("gate_proj", "up_proj")),
    (("SiLU(gate) × up",), ()),
    (("down_proj",), ("down_proj",)),
    (("RMSNorm",), ("final norm",)),
    (("LM head: a score for each token of the vocabulary",), ("LM head",)),
]
_BLOCK = range(1, 9)  # the rows that are repeated
_ADDED = ((1, 4), (5, 8))  # first and last row of what is added to its own input


def plot_model(models: Mapping[str, Mapping[str, int]], blocks: Mapping[str, int], ax=None):
    """Draw a Llama from the embedding to the LM head, and beside each part its parameters and share.

    models: name -> counts as `count_parts` gives them; blocks: name -> number of blocks. Returns the Axes.
    """
    from matplotlib.patches import Rectangle

    ax = ax or new_axes(8.6, 6.9)[1]
    left, right, height = 0.9, 5.0, 0.66
    gaps = {1: 0.5, 5: 0.4, 9: 0.7}  # before these rows: where a block begins, adds, and ends
    tops = [row + sum(gap for at, gap in gaps.items() if row >= at) for row in range(len(_ROWS))]
    frame = {"facecolor": "none", "edgecolor": "#555555", "linestyle": "--", "linewidth": 1.2}
    top, bottom = tops[_BLOCK[0]] - 0.42, tops[_BLOCK[-1]] + height + 0.5
    ax.add_patch(Rectangle((0.1, top), right + 0.2, bottom - top, **frame))
    times = " / ".join(f"× {blocks[name]}" for name in models)
    ax.text(0, (top + bottom) / 2, f"blocks: {times}", rotation=90, ha="right", va="center", fontweight="bold")
    for (boxes, parts), y in zip(_ROWS, tops, strict=True):
        width = (right - left - 0.15 * (len(boxes) - 1)) / len(boxes)
        colour = LOOKS[PARTS[parts[0]][1]][0] if parts else "white"
        for number, text in enumerate(boxes):
            x = left + number * (width + 0.15)
            look = {"facecolor": colour, "alpha": 0.55} if parts else {"facecolor": "white", "linestyle": ":"}
            ax.add_patch(Rectangle((x, y), width, height, edgecolor="black", **look))
            ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)
        for column, counts in enumerate(models.values()):
            if parts:
                n = sum(counts[part] for part in parts)
                said = f"{short(n)}   {n / sum(counts.values()):>5.1%}"
                ax.text(right + 2.1 + 2.2 * column, y + height / 2, said, ha="right", va="center", fontsize=9)
    down = {"arrowstyle": "-|>", "color": "#333333", "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
    middle = (left + right) / 2
    for y, following in itertools.pairwise(tops):
        ax.annotate("", (middle, following), (middle, y + height), arrowprops=down)
    for first, last in _ADDED:  # the way around what is added
        start, end = tops[first] - 0.24, tops[last] + height + 0.28
        ax.plot([middle, 0.5, 0.5], [start, start, end], color="#333333", linewidth=1)
        ax.annotate("", (middle - 0.12, end), (0.5, end), arrowprops=down)
        ax.text(middle, end, "+", ha="center", va="center", fontsize=9, bbox=_PLUS)
    for column, (name, counts) in enumerate(models.items()):
        head = f"{name}\n{short(sum(counts.values()))} parameters"
        ax.text(right + 2.1 + 2.2 * column, -0.25, head, ha="right", va="bottom", fontweight="bold", fontsize=9)
    ax.text(middle, -0.25, "token ids", ha="center", va="bottom", fontsize=9)
    ax.set(xlim=(-0.4, right + 0.4 + 2.2 * len(models)), ylim=(tops[-1] + height + 0.2, -1.1), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return caption(
        ax,
        "a Llama, from token ids through the embedding and the blocks to the LM head, with the parameters of each part",
    )


_PLUS = {"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": "#333333", "linewidth": 0.8}


def plot_shares(models: Mapping[str, Mapping[str, int]], ax=None):
    """Draw one bar for each model, divided into the shares of GROUPS; return the Axes.

    models: name -> counts as `count_parts` gives them.
    """
    ax = ax or new_axes(8.6, 0.9 + 0.6 * len(models))[1]
    names = list(models)
    begin = [0.0] * len(names)
    for group in GROUPS:
        shares = [count_groups(models[name])[group] / sum(models[name].values()) for name in names]
        colour, hatch = LOOKS[group]
        look = {"facecolor": colour, "hatch": HATCHES[hatch], "edgecolor": "white", "linewidth": 1}
        ax.barh(range(len(names)), shares, left=begin, label=group, height=0.7, **look)
        for y, (x, share) in enumerate(zip(begin, shares, strict=True)):
            if share > 0.03:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85}
                ax.text(x + share / 2, y, f"{share:.1%}", ha="center", va="center", fontsize=9, bbox=box)
        begin = [x + share for x, share in zip(begin, shares, strict=True)]
    ax.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), xticks=[])
    ax.set_xlabel("share of all parameters")
    ax.spines[:].set_visible(False)
    ax.legend(frameon=False, ncols=len(GROUPS), loc="lower left", bbox_to_anchor=(0, 1))
    return caption(ax, "the share of each part in all parameters of a model, a bar for each model")
