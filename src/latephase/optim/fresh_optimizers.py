"""First-order optimizers by name, started afresh: torch's own, and those of other packages."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

EXTRA = "contestants"
"""The extra of latephase that brings the packages."""


class MuonAndAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for the matrices and `torch.optim.AdamW` for all other parameters, under one rate.

    The steps of Muon are scaled as in Liu et al. (2025, "Muon is Scalable for LLM Training", arXiv:2502.16982), so that
    rate and weight decay are those that AdamW would have. Muon's products are in bfloat16, whatever the parameters.

    Args:
        params: parameters.
        lr: the rate of both. Default 1e-3, torch's for both.
        weight_decay: of both. Default 0.1, torch's for Muon and the source's.
        momentum: of Muon. Default 0.95, torch's.
        nesterov: of Muon. Default True, torch's.
        adjust_lr_fn: of Muon. Default "match_rms_adamw", the source's; with "original" goes a rate of about 0.02.
        adamw: options of AdamW, a weight decay of its own for example, but no rate. Default none.

    Raises:
        ValueError: a value that will not do.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        adjust_lr_fn: str = "match_rms_adamw",
        adamw: Mapping[str, Any] | None = None,
    ):
        params, others_own = list(params), dict(adamw or {})
        if "lr" in others_own:
            raise ValueError("adamw.lr: there is one rate for both; give lr beside the options")
        matrices, others = [p for p in params if p.ndim == 2], [p for p in params if p.ndim != 2]
        shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        own: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "adjust_lr_fn": adjust_lr_fn}
        self._both: list[torch.optim.Optimizer] = []
        if matrices:
            self._both.append(torch.optim.Muon(matrices, **shared, **own))
        if others:
            self._both.append(torch.optim.AdamW(others, **(shared | others_own)))
        super().__init__(params, {"lr": lr})
        self.param_groups = [group for each in self._both for group in each.param_groups]
        self._share()

    def _share(self) -> None:
        """Let both have their group and the state of this, so that its state dict is theirs."""
        for each, group in zip(self._both, self.param_groups, strict=True):
            each.param_groups, each.state = [group], self.state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        super().load_state_dict(dict(state_dict))
        self._share()

    def step(self, closure: Any = None) -> Any:
        """Take one step.

        Args:
            closure: computes loss and gradients. Default: the gradients that there are.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for each in self._both:
            each.step()
        return loss


def _of_package(module: str, name: str, distribution: str) -> type:
    """A class of a package that an extra brings.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(
            f"optimizer: {name} is of the package {distribution}, which cannot be imported ({error}); "
            f'pip install "latephase[{EXTRA}]"'
        ) from error


class Fresh(NamedTuple):
    """A first-order optimizer that a strategy can start with.

    Attributes:
        kind: () -> its class.
        lr: its published rate, which stands where none is given.
    """

    kind: Callable[[], type]
    lr: float


FRESH = {
    "adamw": Fresh(lambda: torch.optim.AdamW, 1e-3),
    "muon": Fresh(lambda: MuonAndAdamW, 1e-3),
    "soap": Fresh(partial(_of_package, "pytorch_optimizer", "SOAP", "pytorch-optimizer"), 3e-3),
    "schedule_free": Fresh(partial(_of_package, "schedulefree", "AdamWScheduleFree", "schedulefree"), 2.5e-3),
}
"""Those beside "sgd" and "adam", which trainings have, too.

AdamW's rate is torch's default, and Muon's follows from it (`MuonAndAdamW`); SOAP's is that of Vyas et al. (2024,
"SOAP: Improving and Stabilizing Shampoo using Adam", arXiv:2409.11321); that of AdamWScheduleFree is its authors'
(Defazio et al. 2024, "The Road Less Scheduled", arXiv:2405.15682), who advise 1 to 10 times the rate of a schedule.
"""


def start_fresh(name: str, parameters: Iterable[nn.Parameter], lr: float, options: Mapping[str, Any]) -> Any:
    """One of `FRESH`, ready for steps.

    Args:
        name: which.
        parameters: what it trains.
        lr: its rate.
        options: beside the rate.

    Raises:
        ValueError: its package is not installed.
    """
    optimizer = FRESH[name].kind()(parameters, lr=lr, **options)
    if hasattr(optimizer, "train"):  # a schedule-free one, whose weights of steps and of evaluation are others
        optimizer.train()
    return optimizer
