"""What one pass over one chunk computes, (model, chunk) -> (loss, outputs), and the model as the program sees it."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

from .copies import Copies
from .data import Chunk, cast
from .weights import check_apart

Precision = tuple[torch.dtype, torch.dtype]
"""The dtype in which a model runs, and the one in which the loss gets its outputs."""

Between = Callable[[Any], Any]
"""Applied to the outputs before the loss gets them."""


class WithHidden(NamedTuple):
    """Outputs with the pre-activations of hidden units beside them, for structural damping.

    A recurrent model, or an objective's `forward`, returns this in place of its outputs. The loss gets `outputs` alone;
    `GGN(structural_damping=...)` uses the rest (Martens and Sutskever 2011, Section 3).

    Attributes:
        outputs: what the loss gets.
        pre_activations: tensor [rows, ...], or a tuple of such tensors: what goes into the nonlinearity, at every time
            step.
        nonlinearity: the name of that function, see `structural_damping.SLOPES`. Default "tanh".
    """

    outputs: Any
    pre_activations: Tensor | tuple[Tensor, ...]
    nonlinearity: str = "tanh"


def call_model(model: nn.Module, inputs: Any) -> Any:
    """The ordinary call: a tensor as the one argument, a tuple as arguments, a mapping as keyword arguments."""
    if isinstance(inputs, tuple) and not hasattr(inputs, "_fields"):
        return model(*inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(inputs)


class Bound(nn.Module):
    """A model and a program as one module, so that `functional_call` reaches the model's tensors inside the program."""

    def __init__(self, model: nn.Module, program: "LossOfOutputs | FreeForm"):
        super().__init__()
        self.model = model
        self.program = program
        self.buffers_after: dict[str, Tensor] = {}

    def __call__(self, *arguments: Any) -> tuple[Tensor, Any]:
        """Run the program; no module of the user's, so that torch's hooks of all modules pass it by."""
        return self.forward(*arguments)

    def forward(
        self, chunk: Chunk, precision: Precision | None = None, between: Between | None = None
    ) -> tuple[Tensor, Any]:
        """Run the program on the bound model, whose tensors `functional_call` may have swapped."""
        result = self.program(self.model, chunk, precision, between)
        # A module may assign a new tensor to a buffer, which `functional_call` would drop.
        self.buffers_after = {name: buffer.detach() for name, buffer in self.model.named_buffers()}
        return result


class LossOfOutputs:
    """The program of the ordinary objective: outputs = forward(model, inputs), then loss(outputs, targets).

    Attributes:
        several: whether there are several chunks or ranks, so that the examples must stand apart.

    Raises:
        TypeError: the loss wants other arguments.
    """

    def __init__(self, loss: Callable[[Any, Any], Tensor], forward: Callable[[nn.Module, Any], Any]):
        inner = getattr(loss, "_orig_mod", None)
        loss = inner if isinstance(inner, nn.Module) else loss  # whose class tells what is known of it
        _check_arguments(loss)
        self.loss = loss
        self.forward = forward
        self.several = False
        self._widens = not any(is_narrow(tensor) for tensor in _settings_of(loss))

    def __call__(
        self, model: nn.Module, chunk: Chunk, precision: Precision | None = None, between: Between | None = None
    ) -> tuple[Tensor, Any]:
        """Loss and outputs, the model running in another dtype where a precision is given.

        Args:
            model: the model.
            chunk: the data.
            precision: the dtypes of model and loss. Default: as they are.
            between: applied to the outputs; the loss gets its result, which is also what is returned. Default none.
        """
        copies = Copies(model, self._taking_part(chunk), (chunk.inputs, chunk.targets))
        inputs, targets = copies.trees
        try:
            result = self._pass(model, inputs, targets, precision, between)
        except Exception as error:
            if isinstance(chunk.counted, str):  # of which no one has complained before
                error.add_note(chunk.counted)
            raise
        copies.judge()
        return result

    def _pass(
        self, model: nn.Module, inputs: Any, targets: Any, precision: Precision | None, between: Between | None
    ) -> tuple[Tensor, Any]:
        if precision is None:
            outputs = self.forward(model, inputs)
        else:
            inner, outer = precision
            outputs = cast(self.forward(model, cast(inputs, inner)), outer)
        outputs = self._seen(outputs)
        if self._widens:
            outputs = _widened(outputs)
        if between is not None:
            outputs = between(outputs)
        return scalar(self.loss_of(outputs, targets)), outputs

    def _taking_part(self, chunk: Chunk) -> tuple[Any, ...]:
        """What works on the data of a chunk, beside the model."""
        return self.loss, self.forward

    def _seen(self, outputs: Any) -> Any:
        """What counts as outputs of what the model returned."""
        return outputs.outputs if isinstance(outputs, WithHidden) else outputs

    def loss_of(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of given outputs; targets are widened as outputs are, since some losses want both in one dtype."""
        if self.several:
            check_apart(self.loss, outputs, targets)
        if self._widens:
            targets = as_wide(targets, outputs)
        if isinstance(self.loss, nn.GaussianNLLLoss) and isinstance(outputs, tuple) and len(outputs) == 2:
            return self.loss(outputs[0], targets, outputs[1])  # torch's order: mean, target, variance
        try:
            return self.loss(outputs, targets)
        except TypeError as error:
            if hasattr(outputs, "logits"):
                error.add_note(
                    f"the model returns {type(outputs).__name__}, whose logits the loss is to get: give "
                    "forward=lambda model, inputs: model(**inputs).logits, or take "
                    "latephase.integrations.transformers.language_objective"
                )
            raise


class FreeForm:
    """The program of `Objective.from_forward`."""

    loss = None

    def __init__(self, forward: Callable[[], tuple[Tensor, Any]]):
        self.forward = forward

    def __call__(
        self, model: nn.Module, chunk: Chunk, precision: Precision | None = None, between: Between | None = None
    ) -> tuple[Tensor, Any]:
        """Loss and outputs; the function calls its loss itself, so that nothing can come between.

        Raises:
            TypeError: the function does not return a pair.
            ValueError: another dtype is asked for, which the function's own data cannot follow.
        """
        if precision is not None:
            raise ValueError("an objective made by from_forward cannot run its products in another dtype")
        result = self.forward()
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(f"forward must return a pair (loss, outputs), got {type(result).__name__}")
        return scalar(result[0]), result[1]


def _check_arguments(loss: Any) -> None:
    """Refuse a loss that cannot be called with outputs and targets alone.

    Raises:
        TypeError: it wants other arguments.
    """
    if isinstance(loss, (nn.CrossEntropyLoss, nn.MSELoss, nn.GaussianNLLLoss)):  # reading a signature takes its time
        return
    module = isinstance(loss, nn.Module) and type(loss).__call__ is nn.Module.__call__
    try:
        signature = inspect.signature(loss.forward if module else loss)
    except (TypeError, ValueError):  # of a builtin
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        name = getattr(loss, "__name__", type(loss).__name__)
        raise TypeError(
            f"the loss is called as loss(outputs, targets), but {name} takes {signature} ({error}); give a function of "
            f"outputs and targets that adds the rest: def loss(outputs, targets): return {name}(outputs, targets, "
            "...). What differs from example to example, such as lengths, it finds in the outputs if `forward` or "
            "the model returns them there, or in columns of the targets"
        ) from error


def _settings_of(loss: Any) -> list[Any]:
    """The tensors that a loss module holds, or that a functools.partial sets."""
    if isinstance(loss, functools.partial):
        return [*loss.args, *loss.keywords.values(), *_settings_of(loss.func)]
    return [*loss.parameters(), *loss.buffers()] if isinstance(loss, nn.Module) else []


def as_wide(targets: Any, outputs: Any) -> Any:
    """Floating-point targets in the outputs' dtype where theirs is narrower, which changes no value."""
    floating = [x.dtype for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.is_floating_point()]

    def widened(leaf: Any) -> Any:
        if not floating or not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return leaf.to(floating[0]) if torch.promote_types(leaf.dtype, floating[0]) == floating[0] else leaf

    return tree_map(widened, targets)


def dtypes_in_words(model: nn.Module, program: "LossOfOutputs | FreeForm", chunk: Chunk) -> str | None:
    """The dtypes that meet in a loss, where they differ: torch's errors seldom say whose dtype they complain about."""
    targets = [x for x in tree_leaves(chunk.targets) if isinstance(x, Tensor)]
    found = {"parameters": model.parameters(), "targets": targets, "the loss's own tensors": _settings_of(program.loss)}
    dtypes = {what: {x.dtype for x in each if isinstance(x, Tensor)} for what, each in found.items()}
    if len(set().union(*dtypes.values())) < 2:
        return None
    words = [f"{what} {', '.join(sorted(map(str, each)))}" for what, each in dtypes.items() if each]
    return (
        f"of {name_of(program.loss)}: {'; '.join(words)}. If it wants one dtype, give it that: targets.to(dtype) for "
        "numbers, targets.long() for classes, loss.to(dtype) for its own tensors"
    )


def _widened(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.float() if is_narrow(leaf) else leaf, tree)


def name_of(loss: Any) -> str:
    """A loss as its author calls it, or "the loss"."""
    if loss is None:  # of an objective made by from_forward
        return "the loss"
    if isinstance(loss, nn.Module):
        return type(loss).__name__
    inner = getattr(loss, "func", loss)  # of a functools.partial
    name = getattr(inner, "__name__", type(inner).__name__)
    return "the loss" if name == "<lambda>" else name


def is_narrow(leaf: Any) -> bool:
    """Whether this is a floating-point tensor narrower than float32."""
    return isinstance(leaf, Tensor) and leaf.dtype in (torch.bfloat16, torch.float16)


def scalar(loss: Any) -> Tensor:
    """The loss as a tensor of shape [].

    Raises:
        TypeError: not a tensor.
        ValueError: not a scalar.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"the loss must be a scalar tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(f"the loss must be a scalar, got shape {tuple(loss.shape)}; use reduction 'mean' or 'sum'")
    return loss.reshape(())


def unwrap(model: nn.Module, group: Any) -> tuple[nn.Module, Any]:
    """The module inside `torch.compile` and DistributedDataParallel wrappers, and the latter's process group.

    Raises:
        TypeError: not a module.
        ValueError: a FullyShardedDataParallel module.
    """
    while True:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if isinstance(model, DistributedDataParallel):
            model, group = model.module, group or model.process_group
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's OptimizedModule
            model = inner
        elif type(model).__name__.startswith(("FSDP", "FullyShardedDataParallel")):
            raise ValueError("FSDP modules are not supported yet: their parameters are spread over ranks")
        else:
            return model, group
