"""`latephase.check`: the checks in their order."""

import copy
import warnings
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from ..objective import Decay, Objective
from . import cost, differences, methods, products, reduction, rows
from . import loss_and_gradient as function
from .report import CheckReport
from .subject import Subject
from .untouched import untouched


def check(
    model: nn.Module | Objective,
    loss: Callable[[Any, Any], Tensor] | None = None,
    batch: Any = None,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    weight_decay: Decay = 0.0,
    microbatch_size: int | Literal["auto"] | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> CheckReport:
    """Find out whether second-order steps will work on a model, a loss and a batch, and what they will cost.

        report = latephase.check(model, nn.CrossEntropyLoss(), (inputs, targets))
        print(report)
        assert report.ok

    It looks at data and parameters, at the loss (is it the same twice? do its parts add up?), at the gradient (against
    ordinary autograd and finite differences), at the curvature products (method, symmetry, sign, second method), at
    memory and at time. That costs one or two hundred gradients on the batch; give one of the size that steps will use.

    The model stays as it is: parameters, buffers, gradients, modes, and the generators of torch, NumPy and Python; so
    do the data, and modules and tensors that the loss and `forward` hold. What a model keeps elsewhere, in attributes
    of its own, moves as in any forward pass. Of several ranks, each checks its own share of the data.

    Args:
        model: the module that is to be trained, in the mode in which it will be; or a ready `Objective`, alone.
        loss: any callable (outputs, targets) -> scalar.
        batch: (inputs, targets), or a sequence of such batches, as for `Objective`.
        forward: as for `Objective`.
        weight_decay: as for `Objective`.
        microbatch_size: as for `Objective`.
        say: called with a word on what is being done. Default: nothing is said.

    Returns:
        The report; `report.ok` is False where a defect was found.

    Raises:
        TypeError: what `Objective` refuses, or an Objective together with what belongs into it.
        ValueError: what `Objective` refuses.
    """
    if isinstance(model, Objective):
        if loss is not None or batch is not None or forward is not None or weight_decay or microbatch_size is not None:
            raise TypeError("an Objective is checked as it is: give check(objective) alone")
        objective, whole = model, copy.copy(model)  # measuring draws a seed
    else:
        if loss is None or batch is None:
            raise TypeError("check needs a loss and a batch: check(model, loss, (inputs, targets)), or an Objective")
        whole = objective = Objective(model, loss, batch, forward=forward, weight_decay=weight_decay)
        if microbatch_size is not None:
            options: Any = {"forward": forward, "weight_decay": weight_decay, "microbatch_size": microbatch_size}
            objective = Objective(model, loss, batch, **options)
    subject = Subject(objective)
    with untouched(subject.model, subject.held), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _look(subject, whole, say)
    products.said_by_torch(subject, [str(warning.message) for warning in caught])
    return CheckReport(tuple(subject.findings), **subject.numbers)


def _look(subject: Subject, whole: Objective, say: Callable[[str], object]) -> None:
    """All checks, each as long as those that it builds on have passed."""
    say("parameters and data")
    if not function.check_parameters(subject):
        return
    function.check_data(subject)
    cost.check_fit(subject, whole)
    function.check_weights(subject)
    say("loss and gradient")
    if not function.check_loss(subject):
        return
    function.check_mode(subject)
    if not function.check_determinism(subject):
        return
    gradient = function.check_gradient(subject)
    if gradient is None:
        return
    differences.check_slope(subject, gradient)
    reduction.check_reduction(subject)
    say("curvature products: tracing the model, once, some seconds")
    found = products.check_methods(subject, gradient)
    if found is None:
        return
    curved, v, product = found
    seen = products.check_symmetry(subject, curved, v, product)
    if seen is None:
        return
    products.check_definiteness(subject, seen)
    del curved, found
    products.check_hessian(subject)
    rows.check_rows(subject)
    say("memory and time")
    cost.check_memory(subject)
    cost.check_time(subject)
    methods.check_methods(subject)
