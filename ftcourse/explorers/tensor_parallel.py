"""Who holds which part of a layer's matrices under tensor parallelism: a picture, and a slider for the ranks."""

from collections.abc import Mapping

import ipywidgets
from transformers import PretrainedConfig

from ftcourse.plots import HATCHES, OKABE_ITO, new_axes
from ftkit.distributed.tensor_parallel import validate_tp_degree

from . import Explorer

COLUMN, ROW = "column", "row"


def layer_matrices(config: PretrainedConfig) -> dict[str, tuple[str, int, int]]:
    """Each matrix of a decoder layer in the manner of Llama: how it is cut, output features, input features."""
    hidden, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = head * config.num_attention_heads, head * config.num_key_value_heads
    return {
        "q_proj": (COLUMN, queries, hidden),
        "k_proj": (COLUMN, keys, hidden),
        "v_proj": (COLUMN, keys, hidden),
        "o_proj": (ROW, hidden, queries),
        "gate_proj": (COLUMN, inner, hidden),
        "up_proj": (COLUMN, inner, hidden),
        "down_proj": (ROW, hidden, inner),
    }


def shard_shape(kind: str, out_features: int, in_features: int, tp: int) -> tuple[int, int]:
    """The shape (out, in) of one rank's part of a weight."""
    return (out_features // tp, in_features) if kind == COLUMN else (out_features, in_features // tp)


def plot_layer_shards(matrices: Mapping[str, tuple[str, int, int]], tp: int):
    """Draw each weight as torch keeps it, (out, in), to one scale, cut among `tp` ranks; return the Axes."""
    from matplotlib.patches import Patch, Rectangle

    ax = new_axes(9, 3.9)[1]
    tallest = max(out for _, out, _ in matrices.values())
    gap = 0.13 * sum(wide for _, _, wide in matrices.values()) / len(matrices)
    left = 0.0
    for name, (kind, out, wide) in matrices.items():
        height, width = shard_shape(kind, out, wide, tp)
        for rank in range(tp):
            corner = (left, rank * height) if kind == COLUMN else (left + rank * width, 0)
            look = {"facecolor": OKABE_ITO[rank], "hatch": HATCHES[rank], "alpha": 0.4, "edgecolor": "black"}
            ax.add_patch(Rectangle(corner, width, height, **look))
        label = f"{name}\n{kind}-parallel\n{tp} × ({height}, {width})"
        ax.text(left + wide / 2, -0.03 * tallest, label, ha="center", va="bottom", fontsize=8)
        left += max(wide, 150 * tallest / 320) + gap
    patches = [
        Patch(facecolor=OKABE_ITO[rank], hatch=HATCHES[rank], alpha=0.4, edgecolor="black", label=f"rank {rank}")
        for rank in range(tp)
    ]
    ax.legend(handles=patches, loc="lower center", ncols=tp, frameon=False, bbox_to_anchor=(0.5, -0.16))
    ax.set(xlim=(-gap, left), ylim=(1.02 * tallest, -0.28 * tallest), aspect="equal")
    ax.axis("off")
    return ax


class LayerShards(Explorer):
    """A slider for the number of tensor-parallel ranks over `plot_layer_shards`.

    Attributes: `slider`, the control; `shapes`, each weight's part on one rank, empty
    where the ranks do not divide the model.
    """

    def __init__(self, config: PretrainedConfig, most: int = 4):
        self.config, self.matrices = config, layer_matrices(config)
        self.slider = ipywidgets.IntSlider(value=2, min=1, max=most, description="ranks (tp)")
        super().__init__(self.slider)

    def state(self) -> str:
        return f"tp={self.slider.value}"

    def draw(self) -> str:
        tp = self.slider.value
        try:
            validate_tp_degree(self.config, tp)
        except ValueError as error:
            self.shapes = {}
            return self.captioned(None, str(error))
        self.shapes = {name: shard_shape(*cut, tp) for name, cut in self.matrices.items()}
        full = sum(out * wide for _, out, wide in self.matrices.values())
        held = sum(out * wide for out, wide in self.shapes.values())
        heads = self.config.num_attention_heads // tp
        caption = f"Each of {tp} rank(s) holds {held:,} of {full:,} weights, and {heads} attention head(s)."
        return self.captioned(plot_layer_shards(self.matrices, tp).figure, caption)


def layer_shards(config: PretrainedConfig, most: int = 4) -> LayerShards:
    """Return `LayerShards` of a Llama-like config over 1 to `most` ranks (7 at most: a colour each)."""
    return LayerShards(config, most)
