"""The checkers of 09_lora_from_scratch: right, untouched, and each typical mistake with the hint meant for it."""

import math

import torch

from ftcourse.exercises.lora import check_factor, check_merge, check_rate_ratio

from .shown import checker_tests


def swept(validation_loss, grid=(1e-5, 3e-5), step=3.0, take=min):
    """By method, the losses of a sweep that is extended until the best lies inside."""
    runs = {}
    for method in ("full", "lora"):
        losses = runs[method] = {lr: validation_loss(method, lr) for lr in grid}
        while (best := take(losses, key=losses.get)) in (min(losses), max(losses)) and step:
            new = best / step if best == min(losses) else best * step
            losses[new] = validation_loss(method, new)
    return runs


def best_rates(validation_loss, **settings):
    return {method: min(losses, key=losses.get) for method, losses in swept(validation_loss, **settings).items()}


def rate_ratio(validation_loss):
    best = best_rates(validation_loss)
    return best["lora"] / best["full"]


def known_losses(method, lr):
    """In place of a model: best at 1e-3 and at 9e-3."""
    return 2 + math.log(lr / {"full": 1e-3, "lora": 9e-3}[method]) ** 2


def check_ratio(answer):
    return check_rate_ratio(answer, known_losses)


def one_method(validation_loss):
    return [validation_loss("lora", lr) for lr in (1e-4, 3e-4, 9e-4)] and 10.0


def of_losses(validation_loss):
    runs = swept(validation_loss)
    return min(runs["lora"].values()) / min(runs["full"].values())


def of_the_worst(validation_loss):
    runs = swept(validation_loss, grid=(1e-6, 3e-6))
    worst = {method: max(losses, key=losses.get) for method, losses in runs.items()}
    return worst["lora"] / worst["full"]


WRONG_RATIOS = {
    "upside down": lambda f: 1 / rate_ratio(f),
    "their difference": lambda f: best_rates(f)["lora"] - best_rates(f)["full"],
    "learning rate alone": lambda f: best_rates(f)["lora"],
    "highest losses": of_the_worst,
    "divide the losses": of_losses,
    "an edge of the rates": lambda f: best_rates(f, step=0)["lora"] / best_rates(f, step=0)["full"],
    "larger than a factor of 3": lambda f: best_rates(f, step=10.0)["lora"] / best_rates(f, step=10.0)["full"],
    "never train with method 'full'": one_method,
    "on the side of the best": lambda f: swept(f, take=max),
    "the two are": lambda f: f("dora", 1e-3),
    "a number is expected": lambda f: [rate_ratio(f)],
    "your code returns 7": lambda f: 7 + 0 * rate_ratio(f),
}


def factor(change, r, lora_alpha):
    U, S, V = torch.linalg.svd(change, full_matrices=False)
    return V[:r], U[:, :r] * S[:r] * r / lora_alpha


def scaled(change, r, lora_alpha, by):
    A, B = factor(change, r, lora_alpha)
    return A, by * B


def factor_with(change, r, lora_alpha, power, rows=slice(None, 2)):
    U, S, V = torch.linalg.svd(change, full_matrices=False)
    return V[rows], U[:, rows] * S[rows] ** power * r / lora_alpha


def in_place(change, r, lora_alpha):
    answer = factor(change, r, lora_alpha)
    change.zero_()
    return answer


WRONG_FACTORS = {
    "scale comes on top": lambda c, r, a: scaled(c, r, a, a / r),
    "the layer does that": lambda c, r, a: scaled(c, r, a, (a / r) ** 2),
    "not by lora_alpha": lambda c, r, a: scaled(c, r, a, 1 / r),
    "singular values are missing": lambda c, r, a: factor_with(c, r, a, 0),
    "in both": lambda c, r, a: factor_with(c, r, a, 2),
    "smallest singular values": lambda c, r, a: factor_with(c, r, a, 1, slice(-2, None)),
    "in the other order": lambda c, r, a: factor(c, r, a)[::-1],
    "shape should be": lambda c, r, a: factor(c, r + 1, a),
    "return the two": lambda c, r, a: c,
    "changes the matrix": in_place,
    "not the nearest": lambda c, r, a: (torch.ones(r, c.shape[1]), torch.ones(c.shape[0], r)),
}


def merge(W, A, B, lora_alpha, r):
    return (W.float() + lora_alpha / r * B @ A).to(W.dtype)


def merge_in_place(W, A, B, lora_alpha, r):
    return W.copy_(merge(W, A, B, lora_alpha, r))


WRONG_MERGES = {
    "scale is missing": lambda W, A, B, a, r: merge(W, A, B, 1, 1),
    "alone is too much": lambda W, A, B, a, r: merge(W, A, B, a, 1),
    "upside down": lambda W, A, B, a, r: merge(W, A, B, r, a),
    "its root": lambda W, A, B, a, r: merge(W, A, B, a, r**0.5),
    "you subtract": lambda W, A, B, a, r: merge(W, A, B, -a, r),
    "as it was": lambda W, A, B, a, r: W.clone(),
    "rounded more than once": lambda W, A, B, a, r: W + (a / r) * (B.bfloat16() @ A.bfloat16()),
    "should be in W's dtype": lambda W, A, B, a, r: W.float() + a / r * B @ A,
    "changes W itself": merge_in_place,
    "shape should be": lambda W, A, B, a, r: merge(W, A, B, a, r).T,
    "raised RuntimeError": lambda W, A, B, a, r: W + A @ B,
    "not W + ": lambda W, A, B, a, r: merge(W, A, B, a, r) * 3,
}

EXERCISES = [
    (check_factor, factor, WRONG_FACTORS),
    (check_merge, merge, WRONG_MERGES),
    (check_ratio, rate_ratio, WRONG_RATIOS),
]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


def test_other_roads_to_the_right_answer_are_right():
    def roots(change, r, lora_alpha):  # the roots of the singular values to each
        U, S, V = torch.linalg.svd(change, full_matrices=False)
        root = (S[:r] * r / lora_alpha).sqrt()
        return root[:, None] * V[:r], U[:, :r] * root

    def in_float64(W, A, B, lora_alpha, r):
        return torch.addmm(W.double(), B.double(), A.double(), alpha=lora_alpha / r).bfloat16()

    assert check_factor(roots).right
    assert check_merge(in_float64).right


def test_the_real_model_is_trained_only_after_the_made_up_losses():
    def never(method, lr):
        raise AssertionError("trained")

    assert "upside down" in check_rate_ratio(lambda f: 1 / rate_ratio(f), never).message
    assert "AssertionError: trained" in check_rate_ratio(rate_ratio, never).message
    assert "9 times" in check_ratio(rate_ratio).message


def test_a_checker_never_raises():
    for check, _, _ in EXERCISES:
        assert check(42).message.startswith("your code raised TypeError")
