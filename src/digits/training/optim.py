"""Optimizers and learning-rate schedules by name."""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from digits.errors import ParameterError

if TYPE_CHECKING:
    from digits.params import Train


def optimizers(net: nn.Module, recipe: "Train") -> list[Optimizer]:
    """What `train.optimizer` names; each parameter of a Net is in one of them.

    Muon is for matrices: AdamW moves the rest, and Muon's steps are as large as AdamW's would be
    ("Muon is Scalable for LLM Training", 2025), so that one learning rate does for both.

    Raises:
        ParameterError: there is none of that name.
    """
    fused = next(net.parameters()).device.type in ("cpu", "cuda")
    rate, momentum, decay = recipe.learning_rate, recipe.momentum, recipe.weight_decay
    betas, everything = (momentum, recipe.beta2), list(net.parameters())
    match recipe.optimizer:
        case "sgd":
            return [SGD(everything, rate, momentum, weight_decay=decay, fused=fused)]
        case "nesterov":  # which is plain without momentum
            return [SGD(everything, rate, momentum, 0, decay, nesterov=momentum > 0, fused=fused)]
        case "adamw":
            return [AdamW(everything, rate, betas, weight_decay=decay, fused=fused)]
        case "lion":
            return [Lion(everything, rate, betas, decay)]
        case "muon":
            matrices = {"params": [one for one in everything if one.ndim == 2]}
            rest = {"params": [one for one in everything if one.ndim != 2]}
            return [
                Muon([matrices], rate, decay, momentum, adjust_lr_fn="match_rms_adamw"),
                AdamW([rest], rate, betas, weight_decay=decay, fused=fused),
            ]
    raise ParameterError(
        f"train.optimizer is {recipe.optimizer}; there is adamw, lion, muon, nesterov and sgd"
    )


def _bare(method: Callable[..., Any]) -> Any:
    return getattr(method, "__wrapped__", method)


class _Uncompiled(Optimizer):
    """Without torch.compile's wrappers, which import all of torch's compiler: seconds a process."""

    add_param_group = _bare(Optimizer.add_param_group)
    load_state_dict = _bare(Optimizer.load_state_dict)
    state_dict = _bare(Optimizer.state_dict)
    zero_grad = _bare(Optimizer.zero_grad)


class AdamW(_Uncompiled, torch.optim.AdamW):
    """Torch's."""

    step = torch.no_grad()(_bare(torch.optim.AdamW.step))


class Muon(_Uncompiled, torch.optim.Muon):
    """Torch's."""


class SGD(_Uncompiled, torch.optim.SGD):
    """Torch's."""

    step = torch.no_grad()(_bare(torch.optim.SGD.step))


class Lion(_Uncompiled):
    """Lion (X. Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, algorithm 2)."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        rate: float,
        betas: tuple[float, float],
        decay: float,
    ) -> None:
        super().__init__(parameters, {"lr": rate, "betas": betas, "weight_decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Move each parameter that has a gradient."""
        for group in self.param_groups:
            rate, (beta1, beta2) = group["lr"], group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                average = state.setdefault("exp_avg", torch.zeros_like(parameter))
                direction = average.lerp(parameter.grad, 1 - beta1).sign_()
                parameter.mul_(1 - rate * group["weight_decay"]).sub_(direction, alpha=rate)
                average.lerp_(parameter.grad, 1 - beta2)


def learning_rate(step: int, steps: int, recipe: "Train") -> float:
    """The learning rate of a step.

    One-cycle (L. N. Smith and N. Topin, "Super-Convergence", 2018) with the shape and defaults
    of `torch.optim.lr_scheduler.OneCycleLR`: from a 25th up to the full rate in the first 30 %
    of the steps, then down to a 250,000th, both along a cosine. The others begin with
    `train.warm_up`, a straight rise: cosine then falls to 0 (I. Loshchilov and F. Hutter, "SGDR",
    2017), and step by a factor each few epochs.

    Raises:
        ParameterError: there is no schedule of that name.
    """
    high, warm = recipe.learning_rate, round(recipe.warm_up * steps)
    match recipe.schedule:
        case "one-cycle":
            return _one_cycle(step, steps, high)
        case "constant" | "cosine" | "step" if step < warm:
            return high * (step + 1) / warm
        case "constant":
            return high
        case "cosine":
            return _cosine(high, 0, (step - warm) / (steps - warm))
        case "step":
            epoch = step * recipe.epochs // steps
            return float(high * recipe.step_factor ** (epoch // recipe.step_epochs))
    raise ParameterError(
        f"train.schedule is {recipe.schedule}; there is one-cycle, cosine, step and constant"
    )


def _one_cycle(step: int, steps: int, high: float) -> float:
    peak = 0.3 * steps - 1
    if step < peak:
        return _cosine(high / 25, high, step / peak)
    return _cosine(high, high / 25e4, (step - peak) / (steps - 1 - peak))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
