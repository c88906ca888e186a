"""Lightning: automatic optimization of modules whose `training_step` returns an `Objective`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..objective import Objective
from ..optim import SecondOrder, SecondOrderReport

__all__ = ["SecondOrderModule"]

_STEP = ("objective", "evaluation", "curvature_objective")
_PRECISIONS = ("32-true", "64-true")
_CALL = "return Objective(self.net, loss, batch)"


class SecondOrderModule:
    """Put before `LightningModule`: `training_step` returns an `Objective`, and the optimizer takes its step on it.

        class Net(SecondOrderModule, lightning.LightningModule):
            def training_step(self, batch, batch_idx):
                return Objective(self.net, nn.CrossEntropyLoss(), batch)

            def configure_optimizers(self):
                return HessianFree(self.parameters())

    `configure_optimizers` returns one of latephase's optimizers, or one of torch's, whose closure the objective then
    is; schedulers work as ever. A dict {"objective": f, "evaluation": other, "curvature_objective": part} hands the
    others of `HessianFree.step` on; None skips the batch. `on_train_batch_end` gets the loss before the step as
    outputs["loss"], and `step_report` then says what the step did.

    Give the objective the network that the module holds. Of the module itself the numbers are the same, but products
    are not traced, which costs time: it holds the trainer, which is another one at every step.

    The step is taken while `training_step` runs, so that hooks of the backward pass find no gradients, and
    `on_before_optimizer_step` is called for torch's optimizers only. `global_step` counts steps as ever, and
    checkpoints hold the optimizer's state: a run that is resumed at the end of an epoch goes on with the same numbers,
    where data and random numbers are the same.

    What would train something else than it says is a ValueError at the beginning of `fit`: `accumulate_grad_batches`
    above 1, `gradient_clip_val` with an optimizer of latephase, mixed and half precision, strategies of several
    processes or wrappers. Written for Lightning 2.6, as `lightning` and as `pytorch_lightning`, and imports neither.
    """

    trainer: Any
    optimizers: Any

    @property
    def step_report(self) -> SecondOrderReport | None:
        """The report of the optimizer's last step; None before the first, and of an optimizer of torch's."""
        return getattr(self.optimizers(use_pl_optimizer=False), "report", None)

    def on_fit_start(self) -> None:
        """Look at the trainer's settings before the first batch."""
        super().on_fit_start()  # pyright: ignore[reportAttributeAccessIssue]
        _check_trainer(self.trainer)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Run Lightning's closure, in whose `training_step` the optimizer takes its step.

        Args:
            epoch: not used.
            batch_idx: not used.
            optimizer: Lightning's wrapper around the optimizer.
            optimizer_closure: runs `training_step` and the hooks of a backward pass.

        Raises:
            ValueError: settings of the trainer that do not go with this.
            TypeError: `training_step` returns something else than an objective.
        """
        _check_trainer(self.trainer)
        _check_clipping(self.trainer, optimizer.optimizer)
        assert optimizer_closure is not None, "Lightning calls this with a closure"
        # An attribute of the instance, for the time of the closure: Lightning looks the method up by its name.
        self.training_step = functools.partial(_stepped, self.training_step, optimizer)
        try:
            optimizer_closure()
        finally:
            del self.training_step

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Nothing, where the step has been taken; `manual_backward` as ever."""
        if loss.requires_grad:
            super().backward(loss, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


def _stepped(training_step: Callable[..., Any], optimizer: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    """Run the user's `training_step`, and take the optimizer's step on the objective that it returns."""
    given = training_step(*args, **kwargs)
    if given is None:  # Lightning's way of skipping a batch
        return None
    objectives = _objectives(given)
    return optimizer.step(closure=objectives.pop("objective"), **objectives).detach()


def _objectives(given: Any) -> dict[str, Objective]:
    """The arguments of a step, by name.

    Raises:
        TypeError: not objectives.
    """
    found = {"objective": given} if isinstance(given, Objective) else given
    if not (isinstance(found, Mapping) and isinstance(found.get("objective"), Objective)):
        what = f"a dict with {', '.join(map(repr, found))}" if isinstance(found, Mapping) else type(given).__name__
        raise TypeError(
            f"training_step of a SecondOrderModule must return an Objective, or a dict with one as 'objective', got "
            f"{what}: a loss has no curvature. Write `{_CALL}`"
        )
    for name, value in found.items():
        if name not in _STEP or not (value is None or isinstance(value, Objective)):
            raise TypeError(
                f"training_step returns {type(value).__name__} as {name!r}: a step takes objectives as "
                f"{', '.join(map(repr, _STEP))}; log what else there is with self.log"
            )
    return {name: value for name, value in found.items() if value is not None}


def _check_trainer(trainer: Any) -> None:
    """Refuse settings under which the objective of a batch is not what is trained on.

    Raises:
        ValueError: one of them.
    """
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            f"accumulate_grad_batches={trainer.accumulate_grad_batches}: a second-order step needs all of its data at "
            "once. Let the DataLoader give larger batches, and the objective cut them to spare memory: "
            "Objective(..., microbatch_size=256)"
        )
    strategy = type(trainer.strategy).__name__
    if not strategy.startswith("SingleDevice"):
        raise ValueError(
            f"the trainer's strategy is {strategy}, whose wrapper stands between the module and its objective; use "
            "Trainer(devices=1). For several ranks write the loop yourself, with Objective(..., process_group=group) "
            "on each of them"
        )
    if trainer.precision not in _PRECISIONS:
        raise ValueError(
            f"precision={trainer.precision!r}: dampings and line searches need the digits of the loss. Use one of "
            f"{', '.join(map(repr, _PRECISIONS))}; HessianFree(curvature=GGN(dtype=torch.bfloat16)) runs the products, "
            "where the time goes, in lower precision"
        )


def _check_clipping(trainer: Any, optimizer: Any) -> None:
    """Refuse to clip gradients of a second-order step.

    Raises:
        ValueError: clipping is asked for.
    """
    if trainer.gradient_clip_val and isinstance(optimizer, SecondOrder):
        raise ValueError(
            f"gradient_clip_val={trainer.gradient_clip_val} does not go with {type(optimizer).__name__}: curvature and "
            "line search are those of the whole gradient. Bound the step itself, by the damping, by "
            "CG(max_step_norm=...) or by Direct(max_step_norm=...)"
        )
