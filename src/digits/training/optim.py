"""Optimizers and learning-rate schedules by name."""

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from digits.errors import ParameterError

if TYPE_CHECKING:
    from digits.params import Train


def optimizer(net: nn.Module, recipe: "Train") -> torch.optim.Optimizer:
    """The optimizer that `train.optimizer` names, over all parameters of a Net.

    Raises:
        ParameterError: there is none of that name.
    """
    fused = next(net.parameters()).device.type in ("cpu", "cuda")
    rate, decay = recipe.learning_rate, recipe.weight_decay
    match recipe.optimizer:
        case "sgd":
            return torch.optim.SGD(
                net.parameters(), rate, recipe.momentum, weight_decay=decay, fused=fused
            )
        case "adamw":
            betas = (recipe.momentum, recipe.beta2)
            return torch.optim.AdamW(net.parameters(), rate, betas, weight_decay=decay, fused=fused)
    raise ParameterError(f"train.optimizer is {recipe.optimizer}; there is adamw and sgd")


def learning_rate(step: int, steps: int, recipe: "Train") -> float:
    """The learning rate of a step.

    One-cycle (L. N. Smith and N. Topin, "Super-Convergence", 2018) with the shape and defaults
    of `torch.optim.lr_scheduler.OneCycleLR`: from a 25th up to the full rate in the first 30 %
    of the steps, then down to a 250,000th, both along a cosine.

    Raises:
        ParameterError: there is no schedule of that name.
    """
    match recipe.schedule:
        case "constant":
            return recipe.learning_rate
        case "one-cycle":
            return _one_cycle(step, steps, recipe.learning_rate)
    raise ParameterError(f"train.schedule is {recipe.schedule}; there is one-cycle and constant")


def _one_cycle(step: int, steps: int, high: float) -> float:
    peak = 0.3 * steps - 1
    if step < peak:
        return _cosine(high / 25, high, step / peak)
    return _cosine(high, high / 25e4, (step - peak) / (steps - 1 - peak))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
