"""What is checked: an objective of its own, and what the checks ask of it without side effects."""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..objective import (
    Chunk,
    FreeForm,
    Local,
    Objective,
    cuda_devices,
    differentiable_kernels,
    generator_states,
    name_of,
    recut,
    walk_held,
)
from ..parameters import ParameterSpace
from .report import Finding, Severity


class Subject:
    """An objective under check, and what was found so far.

    Args:
        objective: stays as it is; this rank's share of it is checked.

    Attributes:
        objective: a copy that shares model and data.
        ranks: that share the data; only this one's part is checked.
        findings: so far.
        numbers: of the report, by name.
    """

    def __init__(self, objective: Objective):
        self.ranks: int = objective.reduce.size
        self.objective = copy.copy(objective)
        self.objective.reduce, self.objective.process_group = Local(), None
        vars(self.objective).pop("weights", None)  # computed once, over all ranks
        self.model: nn.Module = objective.model
        self.findings: list[Finding] = []
        self.numbers: dict[str, Any] = {}

    def revise(self, name: str, severity: Severity, message: str) -> None:
        """Say another thing of what was found before."""
        place = next(i for i, finding in enumerate(self.findings) if finding.name == name)
        self.findings[place] = Finding(name, severity, message, self.findings[place].value)

    def find(self, name: str, severity: Severity, message: str, value: Any = None) -> None:
        """Write down a finding."""
        self.findings.append(Finding(name, severity, message, value))

    @cached_property
    def space(self) -> ParameterSpace:
        """The model's trainable parameters."""
        return self.objective.space()

    @property
    def free_form(self) -> bool:
        """Whether the objective was made by `from_forward`, and thus has no data."""
        return isinstance(self.objective.program, FreeForm)

    @cached_property
    def held(self) -> list[nn.Module | Tensor]:
        """Modules and tensors that loss and forward function hold beside the model."""
        program = self.objective.program
        own = {id(each) for each in (*self.model.modules(), *self.model.parameters(), *self.model.buffers())}
        return [each for each in walk_held((program.loss, program.forward)) if id(each) not in own]

    def versions(self) -> list[tuple[Tensor, int]]:
        """The tensors that loss and forward function hold, with what changes when they are written in place."""
        return [(x, x._version) for x in self.held if isinstance(x, Tensor) and not x.is_inference()]

    @property
    def loss_name(self) -> str:
        """The loss as its author calls it."""
        return name_of(self.objective.program.loss)

    @property
    def largest(self) -> Chunk:
        """The chunk of the most rows."""
        return max(self.objective.chunks, key=lambda chunk: chunk.extent)

    @property
    def rows(self) -> int:
        """Of all chunks."""
        return sum(chunk.extent for chunk in self.objective.chunks)

    def use_chunks(self, rows: int) -> None:
        """Go on with chunks of at most so many rows, where the loss can be weighed."""
        before = self.objective.chunks
        try:
            self._replace(recut(before, rows))
            _ = self.objective.weights
        except Exception:  # of the user's loss and model, too
            self._replace(before)

    def use_first_chunk(self) -> None:
        """Go on with the first chunk alone."""
        self._replace(self.objective.chunks[:1])

    def _replace(self, chunks: list[Chunk]) -> None:
        self.objective.chunks = chunks
        vars(self.objective).pop("weights", None)

    @cached_property
    def epsilon(self) -> float:
        """Machine epsilon of the narrowest numbers that the forward pass computes with."""
        with _Dtypes() as seen:
            self.run(self.largest)
        found = [torch.finfo(dtype).eps for dtype in {*seen.dtypes, *(p.dtype for p in self.space.parameters)}]
        return max([*found, self._tensor_float()])

    def _tensor_float(self) -> float:
        """Machine epsilon of TF32 where float32 may be computed in it, otherwise 0."""
        if self.space.device.type != "cuda":
            return 0.0
        cudnn = any(isinstance(module, (_ConvNd, nn.RNNBase)) for module in self.model.modules())
        try:
            used = torch.backends.cuda.matmul.allow_tf32 or (cudnn and torch.backends.cudnn.allow_tf32)
        except RuntimeError:  # set by both of torch's interfaces
            used = True
        return 2.0**-10 if used else 0.0

    @cached_property
    def draws(self) -> bool:
        """Whether the forward pass draws random numbers from torch's generators."""
        devices = cuda_devices(self.model)
        with self.objective.random_numbers(0):
            before = generator_states(devices)
            self._pass(self.largest)
            return not all(map(torch.equal, before, generator_states(devices)))

    @property
    def repetition(self) -> float:
        """Relative difference of a loss computed twice that another order of its sums explains."""
        return min(50 * self.epsilon, self.half_of_the_digits)

    @property
    def rounding(self) -> float:
        """Relative difference of two losses, computed in another order, that rounding explains."""
        return min(1000 * self.epsilon, self.half_of_the_digits)

    @cached_property
    def loss_of_rounding(self) -> float:
        """How much the loss of the largest chunk changes where each parameter is rounded another way.

        Residuals that are nearly zero are differences of large numbers: they have lost more digits than their own size
        tells.
        """
        generator = torch.Generator().manual_seed(0)

        def rounded(x: Tensor) -> Tensor:
            signs = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
            return x.detach() * (1 + torch.finfo(x.dtype).eps * signs) if x.is_floating_point() else x.detach()

        point = {name: rounded(p) for name, p in self.model.named_parameters()}
        with self.objective.random_numbers(0), torch.enable_grad():
            moved, _ = self.objective.forward_pass(self.largest, point, self.objective.buffers())
        return abs(float(moved.detach()) - float(self.run(self.largest)[0]))

    @property
    def half_of_the_digits(self) -> float:
        """Relative difference of two vectors that are right to rounding; a wrong one is off by much more."""
        return 3 * self.epsilon**0.5

    def run(self, chunk: Chunk, index: int = 0) -> tuple[Tensor, Any]:
        """Loss and outputs of a chunk at the current parameters, without a graph."""
        with self.objective.random_numbers(index):
            return self._pass(chunk)

    def _pass(self, chunk: Chunk) -> tuple[Tensor, Any]:
        # Constants record no graph; yet a forward that differentiates (a physics-informed loss) works.
        point = {name: p.detach() for name, p in self.model.named_parameters()}
        with torch.enable_grad():
            loss, outputs = self.objective.forward_pass(chunk, point, self.objective.buffers())
        return loss.detach(), tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs)

    def value(self, vector: Tensor | None = None) -> float:
        """The objective at a vector [P], or at the current parameters."""
        return float(self.objective.value(None if vector is None else self.space.named(vector)))

    def gradient(self, vector: Tensor) -> Tensor:
        """Gradient of f [P] at a vector [P], by a pass of its own."""
        objective = self.objective

        def term(chunk: Chunk, index: int) -> tuple[Tensor]:
            leaves = [leaf.detach().requires_grad_() for leaf in self.space.unflatten(vector)]
            point = {name: p.detach() for name, p in self.model.named_parameters()}
            point |= dict(zip(self.space.names, leaves, strict=True))
            with torch.enable_grad(), objective.random_numbers(index):
                loss, _ = objective.forward_pass(chunk, point, objective.buffers())
                return (self.space.flatten(torch.autograd.grad(loss, leaves, materialize_grads=True)),)

        return objective.sum(term)[0] + self._decayed(vector)

    def plain_gradient(self) -> tuple[Tensor, list[str]]:
        """Gradient [P] by an ordinary call of the model and autograd, and names of parameters that get none.

        The one pass here that moves the model's buffers.
        """
        objective, space = self.objective, self.space
        reached: set[str] = set()

        def term(chunk: Chunk, index: int) -> tuple[Tensor]:
            with torch.enable_grad(), objective.random_numbers(index), differentiable_kernels(self.model):
                loss, _ = objective.plain_pass(chunk)
                gradients: Sequence[Tensor | None] = [None] * len(space.parameters)
                if loss.requires_grad:
                    gradients = torch.autograd.grad(loss, space.parameters, allow_unused=True)
            reached.update(name for name, g in zip(space.names, gradients, strict=True) if g is not None)
            pairs = zip(gradients, space.parameters, strict=True)
            return (space.flatten([torch.zeros_like(p) if g is None else g for g, p in pairs]),)

        total = objective.sum(term)[0] + self._decayed(space.values())
        return total, [name for name in space.names if name not in reached]

    def _decayed(self, vector: Tensor) -> Tensor:
        decay = self.objective.weight_decay.of(self.space.parameters)
        pieces = zip(vector.split(self.space.sizes), decay, strict=True)
        return torch.cat([coefficient * piece for piece, coefficient in pieces])

    def random_vector(self, seed: int = 0) -> Tensor:
        """A direction [P] of length 1 from a generator of its own."""
        v = torch.randn(self.space.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        return (v / v.norm()).to(self.space.device, self.space.dtype)


class _Dtypes(TorchDispatchMode):
    """Collects the floating-point dtypes of what is computed within."""

    def __init__(self):
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        leaves = (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        self.dtypes.update(leaf.dtype for leaf in leaves if leaf.is_floating_point())
        return result
