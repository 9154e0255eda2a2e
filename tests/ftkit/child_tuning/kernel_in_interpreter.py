"""The CUDA kernel on CPU tensors, in Triton's interpreter, as it is and with each mutation.

    TRITON_INTERPRET=1 python tests/ftkit/child_tuning/kernel_in_interpreter.py FOLDER

A process of its own, because Triton reads that variable when it is first imported. Mutated copies of the
kernel are written to FOLDER. Prints one JSON object: by check and mutation, what went wrong, or null.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
import triton
import triton.language as tl

from ftkit.child_tuning import ChildTuningAdamW, gradient_mask, update
from ftkit.child_tuning.local_param import LocalParam
from ftkit.child_tuning.masks import draw_threshold, effective_p, mask_key
from ftkit.dtensor import Region

SOURCE = Path(update.__file__).with_name("triton_kernel.py")
PLAIN = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
PLAIN |= {"amsgrad": False, "maximize": False, "foreach": None, "fused": None}
# At most 4 were seen. torch's vectorised kernel orders its operations otherwise, so the last places differ.
ULPS = 8


def load(mutation: tuple[str, str] | None, folder: Path):
    """The kernel's module, or a copy in which the first text is replaced by the second."""
    if mutation is None:
        from ftkit.child_tuning import triton_kernel

        return triton_kernel
    text = SOURCE.read_text(encoding="utf-8")
    assert text.count(mutation[0]) == 1, f"{mutation[0]!r} must occur once in {SOURCE.name}"
    path = folder / f"mutated_{abs(hash(mutation))}.py"
    path.write_text(text.replace(*mutation).replace("from .", "from ftkit.child_tuning."), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draws_the_generators_words(kernel) -> None:
    """All 16 bits of every draw, against numpy's generator."""

    @triton.jit
    def store_draws(out, key: tl.uint64, first: tl.uint64, COUNTERS: tl.constexpr):
        counters = tl.arange(0, COUNTERS).to(tl.uint64) + first
        at = tl.arange(0, COUNTERS)[:, None] * 16 + tl.arange(0, 16)[None, :]
        tl.store(out + at, draw_numbers(key, counters).to(tl.int32))  # noqa: F821 (given below)

    store_draws.fn.__globals__["draw_numbers"] = kernel.draw_numbers
    for key in (0, 1, 12345, 2**63 + 11, 2**64 - 1):
        for first in (1, 2**31 - 5, 2**40):
            out = torch.empty(32 * 16, dtype=torch.int32)
            store_draws[(1,)](out, key, first, COUNTERS=32)
            generator = np.random.Philox(key=np.array([key, 0], np.uint64))
            generator.advance(first - 1)
            words = generator.random_raw(32 * 4).astype("<u8").view("<u2")
            assert np.array_equal(out.numpy(), words.astype(np.int32)), (key, first)


def keeps_what_gradient_mask_keeps(kernel) -> None:
    """With beta1 = 0 and gradients of one, the first moment is the mask."""
    cases = [
        ((1,), None),
        ((37,), None),
        ((33, 65), None),
        ((1024,), None),
        ((64, 100), (slice(7, 50),)),  # rows at an offset that is no multiple of 16
        ((5, 21), (slice(3, 5),)),
        ((40, 3, 7), (slice(1, 2),)),
        ((2**33, 3), (slice(2**33 - 40, None),)),  # beyond 32 bits
    ]
    for shape, slices in cases:
        for p in (2e-5, 0.1, 0.3, 0.5, 0.99, 1.0):
            region = Region(shape, slices)
            zeros = [torch.zeros(region.shape) for _ in range(3)]
            local = LocalParam(zeros[0], torch.ones(region.shape), [*zeros[1:], None], 7, region, key=0)
            local.key = mask_key(3, 7, "layers.0.weight")
            kernel.fused_step(local, {**PLAIN, "beta1": 0.0}, draw_threshold(p), 1.0)
            keep = gradient_mask(shape, p, seed=3, step=7, name="layers.0.weight", region=slices)
            assert torch.equal(local.moments[0] == 1, keep), (shape, slices, p)


def units(ours: torch.Tensor, theirs: torch.Tensor, *sizes: torch.Tensor) -> float:
    """Largest difference in units in the last place of the largest of the numbers that were added up."""
    size = torch.stack([theirs, *sizes]).abs().amax(0).clamp(min=1e-30).numpy()
    return float(np.max(np.abs(ours.numpy() - theirs.numpy()) / np.spacing(size)))


def steps_as_on_the_cpu(kernel) -> None:
    """Three steps, each from the state that the CPU path left, in every variant that `fits`."""
    worst = 0.0
    for options in ({}, {"amsgrad": True}, {"maximize": True}, {"eps": 1e-3, "weight_decay": 0.0}):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            hyperparams = {**PLAIN, **options}
            region = Region((64, 41), (slice(5, 30),))
            torch.manual_seed(0)
            theirs = [torch.randn(region.shape).to(dtype)] + [torch.zeros(region.shape) for _ in range(3)]
            for step in range(1, 4):
                grad = torch.randn(region.shape).to(dtype)
                before = [tensor.clone() for tensor in theirs]
                ours = [tensor.clone() for tensor in theirs]
                local_params = []
                for param, m, v, maximum in (theirs, ours):
                    moments = [m, v, maximum if hyperparams["amsgrad"] else None]
                    local_params.append(LocalParam(param, grad, moments, step, region, mask_key(0, step, "w")))
                update.masked_update(local_params[:1], hyperparams, draw_threshold(0.3), 1 / effective_p(0.3))
                assert kernel.fits(local_params[1], hyperparams)
                kernel.fused_step(local_params[1], hyperparams, draw_threshold(0.3), 1 / effective_p(0.3))
                g = grad.float() / 0.3
                worst = max(worst, units(ours[1], theirs[1], before[1], g))
                worst = max(worst, units(ours[2], theirs[2], before[2]), units(ours[3], theirs[3]))
                if dtype == torch.float32:
                    worst = max(worst, units(ours[0], theirs[0], before[0]))
                else:
                    error = (ours[0].float() - theirs[0].float()).abs() / theirs[0].float().abs()
                    assert error.max() <= torch.finfo(dtype).eps, error.max()
                if dtype == torch.float16:  # the interpreter cuts bfloat16 off where a GPU rounds to nearest
                    assert (ours[0] != theirs[0]).float().mean() < 0.01
    assert worst <= ULPS, f"{worst} units in the last place"
    print(f"largest difference: {worst} units in the last place", file=sys.stderr)


def lets_nothing_leak(kernel) -> None:
    """inf and NaN where the mask is False change nothing, and the gradient itself is only read."""
    keep = gradient_mask((1000,), 0.3, seed=0, step=1, name="w")
    for bad in (float("nan"), float("inf")):
        grad = torch.where(keep, 1.0, bad)
        local = LocalParam(torch.ones(1000), grad, [torch.zeros(1000), torch.zeros(1000), None], 1, Region((1000,)), 0)
        local.key = mask_key(0, 1, "w")
        kernel.fused_step(local, PLAIN, draw_threshold(0.3), 1 / effective_p(0.3))
        assert all(tensor.isfinite().all() for tensor in (local.param, *local.moments[:2]))
        assert torch.equal(grad.isfinite(), keep)


def is_what_the_optimizer_calls(kernel) -> None:
    """The whole optimizer, its dispatch told to treat CPU tensors as CUDA's, against itself without."""

    def train(devices: set[str], called: list):
        update.KERNEL_DEVICES = devices
        step = kernel.fused_step

        def counted(*arguments):
            called.append(arguments[0].param.shape)
            step(*arguments)

        kernel.fused_step, update._kernel = counted, lambda: kernel
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(9, 5), torch.nn.Linear(5, 3))
        model[1].weight = torch.nn.Parameter(torch.randn(5, 3).t())  # not contiguous: the other path
        opt = ChildTuningAdamW(model.named_parameters(), lr=1e-2, reserve_p=0.3)
        for _ in range(3):
            opt.zero_grad()
            model(torch.ones(2, 9)).square().sum().backward()
            opt.step()
        kernel.fused_step = step
        return model

    called = []
    ours, theirs = train({"cpu"}, called), train(set(), [])
    assert called == [(5, 9), (5,), (3,)] * 3, called
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


CHECKS = {
    draws_the_generators_words: [("draw < 12", "draw < 8"), ("(draw % 4) * 16", "(3 - draw % 4) * 16")],
    keeps_what_gradient_mask_keeps: [
        ("            1 + first,", "            first,"),
        ("[None, :] - SKIP", "[None, :]"),
        ("< threshold, g", "<= threshold + 99, g"),
    ],
    steps_as_on_the_cpu: [
        ("g * g * rest2", "g * g"),
        ("w -= w * decay", "w -= decay"),
        ('if hyperparams["maximize"]', "if False"),
        ('AMSGRAD=hyperparams["amsgrad"]', "AMSGRAD=False"),
        ("beta2**local.step", "beta2"),
    ],
    lets_nothing_leak: [("tl.where(draws.to(tl.int32) < threshold, g, 0.0)", "g * (draws.to(tl.int32) < threshold)")],
    is_what_the_optimizer_calls: [
        ("all(tensor.is_contiguous() for tensor in (local.param, *moments))", "True"),
        ("            1 + first,", "            first,"),
    ],
}


def main(folder: Path) -> dict:
    found = {}
    for check, mutations in CHECKS.items():
        for mutation in (None, *mutations):
            try:
                check(load(mutation, folder))
                error = None
            except AssertionError as failure:
                error = f"{failure}"[:500] or "AssertionError"
            found[f"{check.__name__}" + (f": {mutation[1].strip()}" if mutation else "")] = error
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
