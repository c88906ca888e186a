"""Checks of the function itself: parameters, data, mode, loss, whether it is the same twice, and its gradient."""

import math

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..curvature import linearize
from ..objective import is_exhaustion, nonfinite_entries
from .report import first_line, sentence, some
from .subject import Subject
from .untouched import draws_outside_torch


def check_parameters(subject: Subject) -> bool:
    """How many there are, of which dtype and where; which are frozen. Returns whether there is anything to check."""
    try:
        space = subject.space
    except ValueError as error:
        subject.find("parameters", "defect", f"{sentence(error)}.")
        return False
    subject.numbers["parameters"] = space.size
    dtypes = some(sorted({str(p.dtype).removeprefix("torch.") for p in space.parameters}))
    count = len(space.parameters)
    subject.find(
        "parameters",
        "ok",
        f"{space.size:,} in {count} tensor{'' if count == 1 else 's'}, {dtypes} on {space.device}.",
        space.size,
    )
    frozen = [name for name, p in subject.model.named_parameters() if not p.requires_grad]
    if frozen:
        message = f"{len(frozen)} of {count + len(frozen)} tensors do not require a gradient and stay: {some(frozen)}."
        subject.find("frozen", "note", message, tuple(frozen))
    return True


def check_data(subject: Subject) -> None:
    """Whether every value is finite."""
    if subject.free_form:
        return
    found = nonfinite_entries(subject.objective.chunks)
    if found:
        subject.find("data", "defect", f"{sentence(found)}. Clean the data.", found)
    else:
        count = len(subject.objective.chunks)
        message = f"{subject.rows:,} examples{f' in {count} chunks' if count > 1 else ''}, all values finite."
        counted = subject.largest.counted
        if isinstance(counted, str):
            message = f"All values are finite. {sentence(counted)}: fit for one whole batch, and not to be cut."
        subject.find("data", "note" if isinstance(counted, str) else "ok", message, subject.rows)
    if subject.ranks > 1:
        subject.find("ranks", "note", f"Of {subject.ranks} ranks, this one's share of the data was checked, alone.")


def excuse_data(subject: Subject) -> None:
    """Values that are not finite are no defect where loss and gradient are: the loss or the model leaves them out."""
    found = next((finding for finding in subject.findings if finding.name == "data"), None)
    if found is not None and found.severity == "defect":
        message = f"{sentence(found.value)}. The loss and its gradient are finite all the same: they are left out."
        subject.revise("data", "note", message)


def check_weights(subject: Subject) -> None:
    """Whether several chunks can be weighed at all; goes on with the first where not."""
    objective = subject.objective
    if len(objective.chunks) == 1:
        return
    try:
        _ = objective.weights
    except ValueError as error:
        subject.find("chunks", "defect", f"{sentence(error)}. Only the first chunk was checked.")
        subject.use_first_chunk()


def check_loss(subject: Subject) -> bool:
    """Whether the forward pass runs to a finite loss. Returns whether the rest makes sense."""
    try:
        loss = subject.value()
    except Exception as error:  # of the user's model
        if is_exhaustion(error):
            subject.find("loss", "defect", f"The forward pass runs out of memory: {first_line(error)}.")
            return False
        subject.find("loss", "defect", f"The forward pass fails with {type(error).__name__}: {first_line(error)}.")
        return False
    subject.numbers["loss"] = loss
    if not math.isfinite(loss):
        parameters = [name for name, p in subject.model.named_parameters() if not bool(p.isfinite().all())]
        if parameters:
            why = f"values of {some(parameters)} are not finite"
        elif any(finding.name == "data" and finding.severity == "defect" for finding in subject.findings):
            why = "see data"
        else:
            why = _where(subject) or "data and parameters are finite, so it overflows or divides by zero on the way"
        subject.find("loss", "defect", f"The loss is {loss}: {why}.", loss)
        return False
    subject.find("loss", "ok", f"{loss:.6g} at the current parameters.", loss)
    return True


def _where(subject: Subject) -> str | None:
    """The term and the row whose residuals are not finite, in words; None where that cannot be told."""
    try:
        subject.objective.check_data()
    except ValueError as error:
        return first_line(error)
    return None


def check_mode(subject: Subject) -> None:
    """Dropout and batch norm in training mode."""
    modules = list(subject.model.named_modules())
    norms = [name for name, module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [name for name in norms if _uses_batch(subject.model.get_submodule(name))]
    random = subject.draws
    chunks = len(subject.objective.chunks)
    said = []
    if norms:
        over = f": over {chunks} chunks, that is not the function of the whole batch" if chunks > 1 else ""
        said.append(f"Batch norm ({some(map(repr, norms), 2)}) uses the statistics of each chunk{over}.")
    if random:
        said.append("Each step draws random numbers, such as dropout's mask, anew.")
    if not said:
        subject.find("mode", "ok", "No batch statistics and no random numbers.")
        return
    advice = f"For late-phase steps freeze {'both' if norms and random else 'that'} with model.eval()."
    if not any(module.training for _, module in modules):
        advice = "This is so in eval mode: the model itself asks for it."
    severity = "warning" if norms and chunks > 1 else "note"
    subject.find("mode", severity, " ".join([*said, advice]), {"batch_norm": norms, "random": random})


def _uses_batch(module: nn.Module) -> bool:
    return module.training or getattr(module, "running_mean", None) is None


def check_determinism(subject: Subject) -> bool:
    """Whether the loss is the same twice on the same random numbers."""
    drawn: list[str] = []
    before = subject.versions()
    with draws_outside_torch(drawn):
        first = subject.value()
    again = [subject.value(), subject.value()]
    furthest = max(again, key=lambda value: abs(value - first) if math.isfinite(value) else math.inf)
    difference = abs(furthest - first) / max(abs(first), abs(furthest)) if furthest != first else 0.0
    source = f"{' and '.join(drawn)} is drawn from"
    if difference <= subject.repetition:
        message = "The loss is the same to the last bit when it is computed again."
        if difference:
            message = f"The loss repeats to rounding (relative difference {difference:.0e}): sums in changing order."
        if drawn:
            message += f" But {source}; draw with torch, which each step repeats."
        subject.find("determinism", "note" if difference or drawn else "ok", message, difference)
        return True
    written = [f"a tensor of shape {list(x.shape)}" for x, version in before if x._version != version]
    advice = "Draw random numbers with torch, which each step repeats, and read nothing that changes. "
    if written:
        advice = ""
        source = (
            f"in each pass {some(written)} that the function holds is written in place; let it work on a copy, as "
            "x = x.clone() gives one"
        )
    elif not drawn:
        source = "something outside torch is read: a clock, a counter, another generator"
    message = (
        f"On the same parameters, data and seed the loss is {first:.6g}, then {furthest:.6g}. What "
        f"changes is {_where_it_differs(subject)}. "
        f"{sentence(source)}. {advice}"
        "Products, reduction and costs were not checked."
    )
    subject.find("determinism", "defect", message, difference)
    return False


def _where_it_differs(subject: Subject) -> str:
    """The model where its outputs differ between two passes, otherwise the loss."""
    (_, one), (_, other) = subject.run(subject.largest), subject.run(subject.largest)
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=False)
    own = "" if subject.loss_name == "the loss" else f" {subject.loss_name}"
    same = all(torch.equal(x, y) for x, y in pairs if isinstance(x, Tensor) and isinstance(y, Tensor))
    return f"the loss function{own}" if same else f"the output of {type(subject.model).__name__}"


def check_gradient(subject: Subject) -> Tensor | None:
    """The gradient [P] against that of an ordinary call, and parameters that get none; None where it is of no use."""
    try:
        gradient = linearize(subject.objective, products=False).gradient
        plain, unused = subject.plain_gradient()
    except Exception as error:  # of the user's model
        message = (
            f"The pass with its graph fails with {type(error).__name__}: {first_line(error)}. A loss that "
            "differentiates one output in another cannot, since each output stands for itself; do it in `forward`, "
            "and return the derivative as an output."
        )
        subject.find("gradient", "defect", message)
        return None
    norm = float(gradient.norm())
    subject.numbers["gradient_norm"] = norm
    difference = float((gradient - plain).norm()) / max(float(plain.norm()), norm, 1e-300)
    useful = math.isfinite(norm)
    if not useful:
        pieces = zip(subject.space.names, gradient.split(subject.space.sizes), strict=True)
        bad = [name for name, piece in pieces if not bool(piece.isfinite().all())]
        message = f"The loss is finite but its gradient is not, in {some(bad)}: the square root or logarithm of 0, say."
        subject.find("gradient", "defect", message, norm)
    elif difference > subject.half_of_the_digits:
        message = (
            f"It differs from that of an ordinary call of the model by {difference:.1g}, relatively. The model reaches "
            "its weights by another way than its registered parameters, such as a list or a stored copy."
        )
        subject.find("gradient", "defect", message, difference)
    else:
        subject.find("gradient", "ok", f"Equal to that of an ordinary call; norm {norm:.3g}.", difference)
    if useful:
        excuse_data(subject)
    if unused:
        message = (
            f"{len(unused)} of {len(subject.space.names)} tensors get no gradient, because the loss does not depend on "
            f"them: {some(unused)}. They do not move."
        )
        some_left = len(unused) < len(subject.space.names)
        useful = useful and some_left
        subject.find("unused", "warning" if some_left else "defect", message, tuple(unused))
    return gradient if useful else None
