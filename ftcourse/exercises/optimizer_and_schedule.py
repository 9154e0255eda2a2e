"""Checkers for 06_optimizer_and_schedule: what decays, how many steps a run has, and the rate at each of them."""

import math

import torch
from torch import nn

from . import WrongAnswer, checker, require_answer


class _RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class _Block(nn.Module):
    """Names as in a Llama, with a bias, and with an output matrix whose name has "norm" in it by chance."""

    def __init__(self):
        super().__init__()
        self.input_layernorm = _RMSNorm(4)
        self.q_proj = nn.Linear(4, 4)
        self.normal_proj = nn.Linear(4, 4, bias=False)


@checker
def check_decays(decays) -> str:
    """Check `decays(name, parameter)`: True for matrices, False for norm gains and biases."""
    found = {name: require_answer(decays(name, parameter)) for name, parameter in _Block().named_parameters()}
    if wrong := [value for value in found.values() if not isinstance(value, bool)]:
        raise WrongAnswer(f"True or False is wanted, and your code returns {wrong[0]!r}.")
    if not any(found.values()):
        raise WrongAnswer("nothing decays: the matrices should.")
    if all(found.values()):
        raise WrongAnswer("everything decays: spare the gains and the biases.")
    if not found["q_proj.weight"]:
        raise WrongAnswer("q_proj.weight is a matrix and should decay. Is it upside down?")
    if found["q_proj.bias"]:
        raise WrongAnswer("the bias decays: spare it.")
    if found["input_layernorm.weight"]:
        raise WrongAnswer("the gain input_layernorm.weight decays: it is a weight by name, and a vector by shape.")
    if not found["normal_proj.weight"]:
        raise WrongAnswer(
            'normal_proj.weight is a matrix; that its name has "norm" in it is chance. Look at the shape.'
        )
    return "both matrices decay, the gain and the bias do not."


@checker
def check_warmup_steps(warmup_steps) -> str:
    """Check `warmup_steps(rows, batch_size, epochs, share)`: the whole run's steps times `share`, rounded."""
    answer = require_answer(warmup_steps(100, 16, 10, 0.1))  # 7 steps an epoch, the last of them with 4 rows
    if isinstance(answer, bool) or answer != int(answer):
        raise WrongAnswer(f"a whole number of steps is wanted, not {answer!r}.")
    mistakes = {
        6: "100 / 16 is 6.25: the last 4 rows of an epoch make a step too, a smaller one.",
        1: "that is a tenth of one epoch: multiply by the epochs.",
        70: "that is the whole run: take the share.",
        10: "that is a tenth of the rows: count optimizer steps, of 16 rows each.",
        100: "that is a tenth of all rows seen: count optimizer steps, of 16 rows each.",
    }
    if answer in mistakes:
        raise WrongAnswer(mistakes[int(answer)])
    if answer != 7:
        raise WrongAnswer(f"10 epochs of 7 steps are 70, a tenth of them 7; yours is {answer}.")
    if require_answer(warmup_steps(64, 16, 5, 0.1)) != 2:
        raise WrongAnswer("64 rows make exactly 4 steps an epoch: round up only where rows are left over.")
    return "7 of 70 steps, and 2 of 20."


@checker
def check_rate_at(rate_at) -> str:
    """Check `rate_at(step, peak, warmup, total)`: linear from 0 to the peak, then linear to 0."""
    peak, warmup, total = 0.8, 4, 20
    # The reference is the schedule that trains: transformers', stepped.
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = get_scheduler("linear", optimizer, warmup, total)
    expected, found = [], []
    for step in range(total + 1):
        expected.append(schedule.get_last_lr()[0])
        found.append(float(require_answer(rate_at(step, peak, warmup, total))))
        optimizer.step()
        schedule.step()
    if all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(expected, found, strict=True)):
        return "every step agrees with the schedule that trains."
    if math.isclose(max(found), 1.0):
        raise WrongAnswer("that is the share of the peak: multiply by the peak.")
    if math.isclose(found[0], peak):
        raise WrongAnswer("the rate begins at the peak: warm up first, from 0.")
    if math.isclose(found[0], peak / warmup) and math.isclose(found[warmup - 1], peak):
        raise WrongAnswer("one step ahead: at step 0 the rate is 0, and at step `warmup` it is the peak.")
    if not math.isclose(found[warmup], peak):
        raise WrongAnswer(f"at step {warmup} the warmup is over: the rate should be the peak, not {found[warmup]:.2f}.")
    if math.isclose(found[-1], peak):
        raise WrongAnswer("the rate stays at the peak: let it fall to 0 at the last step.")
    if not math.isclose(found[-1], 0, abs_tol=1e-9):
        raise WrongAnswer(f"at the last step the rate should be 0, and yours is {found[-1]:.2f}.")
    first = next(
        i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if not math.isclose(a, b, abs_tol=1e-9)
    )
    raise WrongAnswer(f"at step {first} the rate should be {expected[first]:.3f}, and yours is {found[first]:.3f}.")
