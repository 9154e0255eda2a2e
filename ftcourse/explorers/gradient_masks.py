"""The gradient mask of child-tuning on a small matrix, under a slider for reserve_p and a button for the seed."""

import ipywidgets
import torch

from ftcourse.mask_pictures import plot_gradients

from . import Explorer


class MaskExplorer(Explorer):
    """A slider for reserve_p and a seed button over three matrices: gradient, masked gradient, mean of many.

    Attributes: `slider` and `seed_button`, the controls; `seed`; and, of the gradient's shape,
    `mask` (bool), `masked` (the gradient under it, rescaled by 1 / reserve_p) and `mean` (of `draws` such).
    """

    def __init__(self, gradient: torch.Tensor, reserve_p: float = 0.33, seed: int = 0, draws: int = 1_000):
        self.gradient, self.seed, self.draws = gradient.detach().cpu().float(), seed, draws
        self.slider = ipywidgets.FloatSlider(
            value=reserve_p, min=0.05, max=1.0, step=0.01, description="reserve_p", readout_format=".2f"
        )
        self.seed_button = ipywidgets.Button(description="New seed", tooltip="Draw another mask")
        super().__init__((self.slider, self.seed_button))
        self.seed_button.on_click(self._next_seed)

    def state(self) -> str:
        return f"reserve_p={self.slider.value:.2f}, seed={self.seed}"

    def _next_seed(self, _button) -> None:
        self.seed += 1
        self.redraw()

    def draw(self) -> str:
        reserve_p = self.slider.value
        generator = torch.Generator().manual_seed(self.seed)
        # One uniform number per entry, compared with reserve_p: as the slider rises, entries only ever join.
        uniform = torch.rand(self.draws, *self.gradient.shape, generator=generator)
        masks = uniform < reserve_p
        masked = torch.where(masks, self.gradient / reserve_p, 0.0)
        self.mask, self.masked, self.mean = masks[0], masked[0], masked.mean(0)
        gap = (self.mean - self.gradient).abs().max().item()
        caption = (
            f"reserve_p {reserve_p:.2f}, seed {self.seed}: {int(self.mask.sum())} of {self.mask.numel()} "
            f"entries kept, each times {1 / reserve_p:.2f}. "
            f"Mean of {self.draws:,} masked gradients: at most {gap:.2f} from the gradient."
        )
        title = "Gradient, masked gradient and mean of many, on one colour scale."
        return self.captioned(self._figure(), caption, title)

    def _figure(self):
        masked = f"masked, × {1 / self.slider.value:.2f}"
        panels = {"gradient": self.gradient, masked: self.masked, f"mean of {self.draws:,}": self.mean}
        return plot_gradients(panels, {masked: self.mask})


def mask_explorer(gradient: torch.Tensor, reserve_p: float = 0.33, seed: int = 0) -> MaskExplorer:
    """Return a `MaskExplorer` for a small matrix (up to about 4 × 4 is readable).

    Raises ValueError if `gradient` is not a matrix or `reserve_p` is outside the slider's [0.05, 1].
    """
    if gradient.ndim != 2:
        raise ValueError(f"the gradient should be a matrix, and this has {gradient.ndim} dimensions")
    if not 0.05 <= reserve_p <= 1:
        raise ValueError(f"reserve_p should be from 0.05 to 1, and is {reserve_p}")
    return MaskExplorer(gradient, reserve_p, seed)
