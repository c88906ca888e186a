"""The objective: a sum over chunks of data and over ranks, as one closure-like object."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .data import Chunk, placeholder, read_chunks
from .memory import available
from .microbatch import largest_microbatch, recut
from .parts import Parts
from .program import FreeForm, LossOfOutputs, call_model, unwrap
from .rank_protocol import Local, Reduce, as_one_rank
from .ranks import ProcessGroup
from .reading_terms import check_redrawn, read_terms, read_weights
from .residuals import Function, Residuals
from .weight_decay import Decay, WeightDecay


class Objective(Parts):
    """f(theta) = sum over chunks c and ranks of w_c f_c(theta), plus an L2 term.

    Calling it is the ordinary torch closure: it sets `.grad` and returns the loss, so the same object drives
    `torch.optim.SGD(...).step(objective)` and the second-order optimizers of this package. Loss, gradient, curvature
    products and trial values are terms of one sum, so cutting the data into chunks, or sharing it among ranks, changes
    memory and time but not the function.

    The weights are w_c = n_c / sum n, with n_c what the loss's own mean divides by on the chunk; with reduction "sum"
    they are one. Of torch's losses that is known. A loss of one's own says it as `loss.normalizer(outputs, targets)`
    or `loss.normalizer(targets)`; the first costs one more forward pass, and must not change with the parameters. Where
    it does not, but says `loss.reduction = "mean"`, a mean over the rows is tried on the data, at one more forward
    pass, and refused where the whole says otherwise; so is "sum". The loss is asked only where there is more than one
    chunk or rank: any callable will do for one batch.

    Randomness: the passes of one second-order step over a chunk all draw the same random numbers (dropout masks), in a
    forked generator; `reseed` draws new ones. The plain closure uses torch's generators as any forward pass does.

    Args:
        model: the module that is trained. `torch.compile`d and DistributedDataParallel modules are unwrapped.
        loss: any callable (outputs, targets) -> scalar, mean or sum over the examples. Outputs in bfloat16 or float16
            reach it in float32, since damping and line search tell apart losses that those cannot; unless the loss
            is a module with tensors that narrow itself.
        data: one batch (inputs, targets), or a sequence of batches (chunks). Inputs may be a tensor, a tuple of tensors
            (several arguments) or a dict of tensors (keyword arguments), targets whatever the loss takes, None
            included; a batch whose inputs and targets both are tuples is given as [batch]. Dimension 0 counts the
            examples where the data is cut, split or weighed. Where a pass works in place on the data, it gets copies.
        microbatch_size: cut every batch into chunks of at most so many examples. Default: batches stay whole. Values
            and gradients then need the memory of one chunk. "auto" measures the memory of a gradient, once for each
            model and shape of the data, and takes the largest chunks, of equal size, whose step fits `memory_limit`.
        memory_limit: bytes that curvature products may keep between them, beside the parameters: what each chunk's
            products need is kept while it fits, and computed anew at every product for the chunks that do not.
            Default: half of the memory that is free when the objective is linearised.
        weight_decay: L2 coefficient wd, or (wd, predicate) with predicate (name, parameter) -> bool: adds
            0.5 * wd * sum theta_i^2 over the trainable parameters that the predicate takes, in loss, gradient and
            curvature alike. Default 0.
        forward: (model, inputs) -> outputs, where the ordinary call of the model does not fit.
        process_group: a torch.distributed group among whose ranks the data is shared out; this rank gives its part.
            Default: that of a DistributedDataParallel module, else none. Where there are several ranks and none is
            given, optimizers warn that each takes steps of its own; `torch.distributed.GroupMember.NON_GROUP_MEMBER`
            says that this is meant. A rank may have no rows, `(inputs[:0], targets[:0])`: it does what all do, on two
            rows of 0.5, or 0 where numbers are whole, and weighs nothing.

    Raises:
        TypeError: the model is not a module, loss or forward not callable, or the data neither batch nor batches.
        ValueError: an empty batch, inputs and targets of different length, an FSDP module, or a bad option.
        RankError: here and in every method, another rank of the group raised an error; it is told.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        data: Any,
        *,
        microbatch_size: int | Literal["auto"] | None = None,
        memory_limit: int | None = None,
        weight_decay: Decay = 0.0,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        process_group: dist.ProcessGroup | int | None = None,
    ):
        self._join(model, process_group)
        with self.reduce.together():
            if not callable(loss):
                raise TypeError(f"loss must be a callable (outputs, targets) -> scalar, got {type(loss).__name__}")
            if forward is not None and not callable(forward):
                raise TypeError(f"forward must be a callable (model, inputs) -> outputs, got {type(forward).__name__}")
            self.program = LossOfOutputs(loss, forward or call_model)
            self._configure(microbatch_size, memory_limit, weight_decay)
            self._cut(data)

    def _configure(self, microbatch_size: int | Literal["auto"] | None, memory_limit: int | None, decay: Decay) -> None:
        if memory_limit is not None and not (isinstance(memory_limit, int) and memory_limit >= 0):
            raise ValueError(f"memory_limit must be None or a number of bytes >= 0, got {memory_limit!r}")
        self._microbatch_size = microbatch_size
        self.memory_limit = memory_limit
        self.weight_decay = WeightDecay(self.model, decay)

    def _cut(self, data: Any) -> None:
        """Make the data this objective's chunks."""
        size = self._microbatch_size
        self.chunks = read_chunks(data, None if size == "auto" else size, self.reduce.size > 1)
        self.idle = self.chunks[0].counted == 0
        if self.idle:
            self.chunks = [placeholder(self.chunks[0])]
        elif size == "auto":
            limit = self.memory_limit
            limit = available(next(self.model.parameters()).device) // 2 if limit is None else limit
            self.chunks = recut(self.chunks, largest_microbatch(self, limit))

    @classmethod
    def from_forward(
        cls,
        model: nn.Module,
        forward: Callable[[], tuple[Tensor, Any]],
        *,
        weight_decay: Decay = 0.0,
        process_group: dist.ProcessGroup | int | None = None,
    ) -> "Objective":
        """An objective from any function that computes loss and outputs with the model's current parameters.

        For losses that do not have the form loss(model(inputs), targets): physics-informed residuals, several networks,
        least squares. The Gauss-Newton matrix is J' H J with J the outputs' Jacobian and H the loss's Hessian in the
        outputs; what enters the loss beside the outputs (an L2 term, say) is missing from it, so use `weight_decay`.
        Where there are several outputs, none may be computed from another.

        Args:
            model: the module whose parameters `forward` uses; put several networks into one `nn.ModuleList`.
            forward: () -> (loss, outputs), deterministic up to torch's random numbers.
            weight_decay: as in the constructor.
            process_group: `torch.distributed.GroupMember.NON_GROUP_MEMBER` where there are several ranks, each with an
                objective of its own. Losses of this form cannot be weighed, so that no other group will do.
        """
        if not callable(forward):
            raise TypeError(f"forward must be a callable () -> (loss, outputs), got {type(forward).__name__}")
        self = cls.__new__(cls)
        self._join(model, process_group)
        self.program = FreeForm(forward)
        if self.process_group is not None:
            raise ValueError(
                "from_forward works with neither DistributedDataParallel nor a process group: it cannot weigh the "
                "ranks' losses"
            )
        self.chunks = [Chunk(None, None, 0)]
        self._configure(None, None, weight_decay)
        return self

    @classmethod
    def from_residuals(
        cls,
        model: nn.Module,
        terms: Mapping[str, tuple[Function, Any]],
        *,
        weights: Mapping[str, float] | None = None,
        microbatch_size: int | Literal["auto"] | None = None,
        memory_limit: int | None = None,
        weight_decay: Decay = 0.0,
        process_group: dist.ProcessGroup | int | None = None,
    ) -> "Objective":
        """An objective of residuals: f = sum over terms m of w_m / n_m * sum_i |r_mi|^2, plus the L2 term.

        That is, of each term the mean over its points of the squared norm of the residuals at a point, without a factor
        1/2. For physics-informed networks and other least squares: the Gauss-Newton matrix is 2 J'J exactly, J holding
        the residuals' rows times sqrt(w_m / n_m), and `linearize(objective).rows()` has sqrt(2) J. Every term is cut
        into chunks of its own. Each function is called once on its first chunk here, to see what it returns.

        Args:
            model: the module whose parameters are trained; put several networks into one `nn.ModuleDict`.
            terms: (function, points) by name. Points are a tensor [N, d], or a tuple or dict of tensors with N rows
                each (coordinates and the values there, say); function(model, points) gives residuals [N, k] or [N],
                those of a point from this point alone. It may take derivatives, by `torch.func` or by
                `torch.autograd.grad(..., create_graph=True)` after `points.requires_grad_()`.
            weights: w_m >= 0 by name. Default 1, which is that of the terms without.
            microbatch_size: most points of a chunk, as in the constructor; "auto" measures each term by itself.
            memory_limit: as in the constructor.
            weight_decay: as in the constructor.
            process_group: as in the constructor; each rank gives its part of each term's points, for some terms or
                all perhaps none (a tensor [0, d]), and n_m counts the points of all ranks.

        Raises:
            TypeError: terms, functions, points, weights or what a function returns are of the wrong kind; says which.
            ValueError: a term without points, points of unequal rows or that are not finite, residuals without a row
                for each point or that do not depend on the model, an unknown, negative or infinite weight.
            RankError: as in the constructor.
        """
        self = cls.__new__(cls)
        self._join(model, process_group)
        with self.reduce.together():
            functions, points = read_terms(terms)
            self.program = Residuals(functions, read_weights(weights, list(functions)))
            self._configure(microbatch_size, memory_limit, weight_decay)
            self.chunks = []
            self._cut_terms(points)
        return self

    @as_one_rank
    def on(self, data: Any) -> "Objective":
        """The same function of other data: model, loss and all options are this objective's, the data is the other.

        As an objective built anew, with random numbers of its own, but what did not change is not checked again: for
        the batches of a training loop.

        Args:
            data: as in the constructor, one batch or a sequence of batches; under a process group this rank's part. Of
                an objective made by `from_residuals` the points of some terms by name, {"interior": points}; the other
                terms keep theirs.

        Raises:
            TypeError: the data is neither batch nor batches; or not points as `from_residuals` takes them.
            ValueError: an empty batch, an unknown term, points of another kind than before, inputs and targets of
                different length, or an objective made by `from_forward`.
        """
        if isinstance(self.program, FreeForm):
            raise ValueError(
                "an objective made by from_forward has no data to exchange: its function reads its own; let forward "
                "read what changes from a variable, or write Objective(model, loss, data, forward=...)"
            )
        if isinstance(self.program, Residuals):
            points = check_redrawn(data, list(self.program.weights))
            other = self._renewed()
            other._cut_terms(points)
        else:
            other = self._renewed()
            other._cut(data)
        return other

    def _join(self, model: nn.Module, process_group: Any) -> None:
        """Know model and ranks: before all else that may fail, since the ranks are told."""
        self.model, group = unwrap(model, process_group)
        self.alone = isinstance(group, int) and group == dist.GroupMember.NON_GROUP_MEMBER
        if not (group is None or self.alone or isinstance(group, dist.ProcessGroup)):
            raise TypeError(f"process_group must be a torch.distributed process group or None, got {group!r}")
        self.process_group: dist.ProcessGroup | None = None if isinstance(group, int) else group
        self.reduce: Reduce = Local() if self.process_group is None else ProcessGroup(self.process_group)
        self.seed: int | None = None  # of the random numbers of the step's passes
        self.value_calls = 0  # how often `value`, or the residuals elsewhere, were computed

    @as_one_rank
    def __call__(self) -> Tensor:
        """Set `.grad` of the model's trainable parameters to the gradient and return the loss, detached."""
        trainable = self.weight_decay.trainable()
        if not trainable:
            raise ValueError("no trainable parameter: the model has none that requires a gradient")
        if torch.is_inference_mode_enabled():
            raise RuntimeError("the objective needs gradients, which inference mode forbids: call it outside")
        parameters = [p for _, p, _ in trainable]

        def term(chunk: Chunk, index: int) -> tuple[Tensor, ...]:
            loss, _ = self.plain_pass(chunk, first_order=True)
            return loss.detach(), *torch.autograd.grad(loss, parameters, materialize_grads=True)

        with torch.enable_grad(), self._moving_own_buffers():
            loss, *gradients = self.sum(term)
        with torch.no_grad():
            for (_, p, decay), gradient in zip(trainable, gradients, strict=True):
                # A tensor of its own for each: autograd may return one for two parameters, or an expanded one.
                if decay:
                    p.grad = torch.add(gradient.to_dense() if gradient.is_sparse else gradient, p, alpha=decay)
                else:
                    p.grad = gradient.clone()
        return loss + self.weight_decay.value_of([p for _, p, decay in trainable if decay])

    @as_one_rank
    def value(self, at: Mapping[str, Tensor] | None = None) -> Tensor:
        """The loss f as a scalar, without gradient or side effect.

        Args:
            at: parameters by name in place of the model's own, where given. Default: the current parameters.
        """
        self.value_calls += 1
        # Constants record no graph; yet a forward that differentiates (a physics-informed loss) works.
        point = {name: p.detach() for name, p in self.model.named_parameters()} | dict(at or {})

        def term(chunk: Chunk, index: int) -> tuple[Tensor]:
            with torch.enable_grad(), self.random_numbers(index):
                return (self.forward_pass(chunk, point, self.buffers())[0].detach(),)

        return self.sum(term)[0] + self.weight_decay.value(point)

    @property
    def plain(self) -> "Objective":
        """This objective without terms that were added to it."""
        return vars(self).get("_plain", self)

    def with_term(
        self, program: LossOfOutputs | FreeForm, chunks: Sequence[Chunk], weights: Sequence[float]
    ) -> "Objective":
        """The same model, decay, ranks and random numbers under another loss, that of this objective and a term more.

        Args:
            program: computes the loss of a chunk, the term in it.
            chunks: with what that needs beside the targets.
            weights: of the chunks.
        """
        other = copy.copy(self)
        other.program, other.chunks, other.weights = program, list(chunks), list(weights)
        vars(other)["_plain"] = self.plain
        return other
