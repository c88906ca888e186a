"""Checks of curvature products: how they are computed, and whether they are products with a matrix fit for it."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..curvature import ChunkTask, ForwardPass, Linearization, linearize, loss_curvature
from ..objective import is_exhaustion
from .differences import check_hessian_differences
from .graph import suspects
from .krylov import Probe, probe
from .report import first_line, lowered, sentence, some
from .subject import Subject

PRODUCTS = 6
"""Products of a probe in the space of the parameters."""

PROBED_NUMBERS = 2**26
"""Numbers that the basis of a probe in the space of the outputs may hold, a quarter of a gibibyte in float32."""


def check_methods(subject: Subject, gradient: Tensor) -> tuple[Linearization, Tensor, Tensor] | None:
    """Which method serves the first step, which the later ones, and whether they agree.

    Args:
        subject: under check.
        gradient: of the first step [P].

    Returns:
        The linearisation of later steps, a vector and its product; None where there are no products.
    """
    v = subject.random_vector()
    try:
        first = linearize(subject.objective)
        expected = first.matvec(v)
        first_method = first.method
        del first
        curved = linearize(subject.objective, at_once=True)
        product = curved.matvec(v)
    except (RuntimeError, ValueError, NotImplementedError, MemoryError) as error:
        words = first_line(error)
        if is_exhaustion(error):
            message = f"Gauss-Newton products do not fit into memory; use a smaller microbatch_size ({words})."
            subject.find("products", "defect", message, words)
            return None
        subject.find("products", "defect", f"There are no Gauss-Newton products: {lowered(words)}.", words)
        return None
    subject.numbers |= {"method": curved.method, "first_method": first_method}
    reason = (curved.reason or "").rstrip(".")
    if curved.method == "traced":
        when = "in every step" if first_method == "traced" else f"from the second step on; {first_method} in the first"
        subject.find("products", "ok", f"Traced {when}.", curved.method)
    else:
        message = f"By {curved.method} in every step, not traced because {lowered(reason)}. Traced ones cost less."
        subject.find("products", "note", message, reason)
    if curved.recomputed:
        message = f"{curved.recomputed} of {len(subject.objective.chunks)} chunks are linearised anew at every product."
        subject.find("memory limit", "note", f"{message} A larger memory_limit avoids it.", curved.recomputed)
    _check_agreement(subject, curved, (first_method, expected), v, product)
    difference = _relative(curved.gradient, gradient)
    if difference > subject.half_of_the_digits:
        message = (
            f"The gradient of the {curved.method} pass differs from that of an ordinary one by {difference:.2g}, "
            "relatively: something that the model or the loss reads has changed in between."
        )
        subject.find("later gradient", "defect", message, difference)
    return curved, v, product


def _check_agreement(
    subject: Subject, curved: Linearization, other: tuple[str, Tensor], v: Tensor, product: Tensor
) -> None:
    """The product against that of a second method of the ladder."""
    name, expected = other
    reason = curved.reason or ""
    if reason.startswith("its products differ"):
        said = reason.replace("its products differ from those of the trace", "their products differ")
        message = (
            f"Forward mode and the backward pass are not of one function: {said}. {suspects(subject)} "
            "torch.autograd.gradcheck(..., check_forward_ad=True) tells whether its jvp or its backward is wrong."
        )
        subject.find("agreement", "defect", message, reason)
        return
    if name == curved.method:
        name = "linearize" if curved.method != "linearize" else "double_backward"
        try:
            expected = linearize(subject.objective, method=name).matvec(v)
        except (RuntimeError, NotImplementedError, AssertionError):
            return  # there is no second method for this model, or no memory for it
    difference = _relative(product, expected)
    words = f"{curved.method} and {name}"
    if difference <= subject.half_of_the_digits:
        how = f"off by {difference:.0e}" if difference else "to the last bit"
        subject.find("agreement", "ok", f"{sentence(words)} give the same product ({how}).", difference)
    else:
        message = f"{words} give products that differ by {difference:.2g}, relatively. {suspects(subject)}"
        subject.find("agreement", "defect", message, difference)


def check_symmetry(subject: Subject, curved: Linearization, v: Tensor, product: Tensor) -> Probe | None:
    """Whether products repeat, are linear, and are those of a symmetric matrix.

    The tolerance is half of the digits of the dtype: what is right is off by rounding, what is wrong by much more.
    """
    allowed = subject.half_of_the_digits
    again = _relative(curved.matvec(v), product)
    # A power of two scales without rounding; float16 has no room for a large one.
    factor = 4.0 if torch.float16 in {p.dtype for p in subject.space.parameters} else 1024.0
    linear = _relative(curved.matvec(factor * v) / factor, product)
    seen = probe(curved.matvec, v, PRODUCTS)
    form = float(curved.quadratic_form(v))
    formed = abs(form - float(torch.dot(v, product))) / max(float(product.norm()), 1e-300)
    wrong = []
    if not bool(product.isfinite().all()) or seen.asymmetry != seen.asymmetry:
        wrong.append("they are not finite")
    elif again > allowed:
        wrong.append(f"the same product computed twice differs by {again:.2g}, relatively")
    else:
        if linear > allowed:
            wrong.append(f"they are not linear: C(a v) is off a C v by {linear:.2g}, relatively")
        if seen.asymmetry > allowed:
            wrong.append(f"they are not symmetric: u'Cv is off v'Cu by {seen.asymmetry:.2g}, relatively")
        if formed > allowed:
            wrong.append(f"the quadratic form is off v'Cv by {formed:.2g}, relatively")
    if wrong:
        message = (
            f"Products are wrong: {'; '.join(wrong)}. Conjugate gradients need a symmetric matrix. {suspects(subject)}"
        )
        subject.find("symmetry", "defect", message, max(again, linear, seen.asymmetry))
        return None
    repeats = "the same twice" if again == 0 else f"the same twice to rounding ({again:.0e})"
    message = f"Products are {repeats}, linear, and symmetric to {max(seen.asymmetry, 1e-17):.0e}."
    subject.find("symmetry", "ok", message, seen.asymmetry)
    subject.numbers["largest_curvature"] = seen.highest
    return seen


def check_definiteness(subject: Subject, seen: Probe) -> None:
    """Whether curvature is nowhere negative: that of the loss in the outputs, and that of the products."""
    allowed = subject.half_of_the_digits
    in_outputs = _loss_probe(subject)
    loss = subject.loss_name
    size = max(abs(seen.lowest), abs(seen.highest))
    value = (seen.lowest, seen.highest)
    if in_outputs is not None and max(abs(in_outputs.lowest), abs(in_outputs.highest)) == 0:
        advice = "Take a loss that is curved in them."
        if loss in ("NLLLoss", "nll_loss"):
            advice = "Return the logits instead of their log_softmax, and use CrossEntropyLoss."
        message = (
            f"The Gauss-Newton matrix is zero, since {loss} is linear in the outputs: steps are gradient steps of "
            f"length 1 / damping. {advice}"
        )
        subject.find("definiteness", "warning", message, value)
    elif in_outputs is not None and in_outputs.lowest < -allowed * max(abs(in_outputs.lowest), abs(in_outputs.highest)):
        message = (
            f"{sentence(loss)} is not convex in the outputs: its curvature in them goes from "
            f"{in_outputs.lowest:.2g} to {in_outputs.highest:.2g}, so the Gauss-Newton matrix is indefinite. Conjugate "
            'gradients stop early where they meet that; nonpositive_curvature="absolute" goes on, and a loss that is '
            "convex in the outputs (on logits, say) avoids it."
        )
        subject.find("definiteness", "warning", message, value)
    elif seen.lowest < -allowed * size:
        message = (
            f"Products show curvature from {seen.lowest:.2g} to {seen.highest:.2g}, though a Gauss-Newton matrix of a "
            "convex loss has none below zero."
        )
        subject.find("definiteness", "warning", message, value)
    else:
        message = (
            f"No negative curvature met; the largest eigenvalue is at least {seen.highest:.2g}. A damping far above it "
            "turns steps into gradient descent."
        )
        subject.find("definiteness", "ok", message, value)


def _loss_probe(subject: Subject) -> Probe | None:
    """The Hessian of the loss in the outputs of the largest chunk, through a few products."""
    objective, chunk = subject.objective, subject.largest
    forward = ForwardPass(ChunkTask(objective, chunk, 0, subject.space, objective.buffers()))
    if not forward.outputs:
        return None
    multiply = loss_curvature(objective.program, chunk.targets, forward.loss, forward.outputs)
    sizes = [output.numel() for output in forward.outputs]
    wide = torch.promote_types(forward.outputs[0].dtype, torch.float32)

    def matvec(u: Tensor) -> Tensor:
        pieces = zip(u.split(sizes), forward.outputs, strict=True)
        result = multiply([piece.view(output.shape).to(output.dtype) for piece, output in pieces])
        return torch.cat([leaf.detach().reshape(-1).to(wide) for leaf in tree_leaves(list(result))])

    start = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(0)).to(forward.loss.device, wide)
    return probe(matvec, start, min(max(PROBED_NUMBERS // sum(sizes), 2), 12))


def check_hessian(subject: Subject) -> None:
    """Products with the Hessian, for information: steps use the Gauss-Newton matrix unless asked otherwise."""
    try:
        curved = linearize(subject.objective, "hessian", at_once=True)
        v = curved.matvec(subject.random_vector())
        v = v / v.norm() if float(v.norm()) else subject.random_vector()  # where there is curvature
        product = curved.matvec(v)
        seen = probe(curved.matvec, v, PRODUCTS // 2)
    except (RuntimeError, NotImplementedError, AssertionError, MemoryError) as error:
        if is_exhaustion(error):
            subject.find("hessian", "note", "Its products do not fit into memory; those of the Gauss-Newton matrix do.")
            return
        words = lowered(first_line(error))
        subject.find("hessian", "note", f"There are no Hessian products, only Gauss-Newton ones: {words}.")
        return
    subject.numbers["hessian_method"] = curved.method
    how = "Products are traced"
    if curved.method != "traced":
        how = f"Products by {curved.method}, not traced because {lowered(curved.reason or '')}"
    if seen.asymmetry > subject.half_of_the_digits:
        message = f"{how}. They are not symmetric ({seen.asymmetry:.2g}). {suspects(subject)}"
        subject.find("hessian", "warning", f'{message} Keep to curvature="ggn".', curved.method)
        return
    words, wrong = check_hessian_differences(subject, v, product)
    message = f"{how}. {words}".strip()
    if wrong:
        subject.find("hessian", "warning", f'{message} Keep to curvature="ggn".', curved.method)
    else:
        sign = " It is indefinite here." if seen.lowest < -subject.half_of_the_digits * abs(seen.highest) else ""
        subject.find("hessian", "ok", message + sign, curved.method)


def said_by_torch(subject: Subject, messages: list[str]) -> None:
    """Warnings that were raised while checking, each once."""
    lines = dict.fromkeys(message.strip().splitlines()[0] for message in messages if " is not traced: " not in message)
    if lines:
        subject.find("warnings", "note", f"While checking, Python warned: {some(lines, 2)}", tuple(lines))


def _relative(x: Tensor, y: Tensor) -> float:
    size = max(float(x.norm()), float(y.norm()))
    return float((x - y).norm()) / size if size else 0.0
