"""Checker for 00_start_here: one step of gradient descent, the warm-up that shows how exercises work."""

import torch

from . import WrongAnswer, checker, require_tensor


@checker
def check_one_step(one_step) -> str:
    """Check `one_step(weight, gradient, lr)`: the weight less lr times its gradient."""
    weight, gradient, lr = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([2.0, 0.5, -4.0]), 0.125
    given = weight.clone()
    result = require_tensor(one_step(given, gradient, lr), weight.shape)
    if not torch.equal(given, weight):
        raise WrongAnswer("your code changes the weight it was given: return a new tensor instead.")
    if torch.allclose(result, weight + lr * gradient):
        raise WrongAnswer("that walks uphill: the gradient points to where the loss grows, so subtract it.")
    if torch.allclose(result, weight - gradient):
        raise WrongAnswer("the step is a whole gradient long: scale it with lr first.")
    if torch.allclose(result, lr * gradient) or torch.allclose(result, -lr * gradient):
        raise WrongAnswer("that is the step alone: take it from the weight.")
    if not torch.allclose(result, weight - lr * gradient):
        raise WrongAnswer("the new weight should be the weight less lr times its gradient.")
    return "each weight moved against its gradient, by lr times as much."
