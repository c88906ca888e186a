"""A preconditioner of one's own: K-FAC for a chain of dense layers with logistic outputs, with factored damping."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latephase.curvature import Linearization
from latephase.curvature.preconditioners import Apply, Estimate, Preconditioner


@dataclass(frozen=True, kw_only=True)
class ChainKFAC(Preconditioner):
    """M with a block (B + sqrt(mu) / pi) kron (A + pi sqrt(mu)) for each layer, mu being damping and L2 coefficient.

    Martens and Grosse (2015, "Optimizing neural networks with Kronecker-factored approximate curvature", Sections 3
    and 6.3). A is the second moment of a layer's inputs with a one for the bias, B that of the slopes in its outputs
    with targets drawn from the model, and pi the square root of the ratio of their mean eigenvalues.

    The library's own `Kronecker` has the same M, for any model. This one knows its model, decomposes nothing and
    multiplies in bfloat16: on one core an estimate on 2,500 rows took 0.6 s and an application 0.04 s, where
    `Kronecker` took 5 s and 0.14 s, a curvature product 0.09 s.

    The model is an `nn.Sequential` of `nn.Linear` layers and elementwise functions, whose logits get the cross-entropy
    summed over the outputs and averaged over the rows.

    Attributes:
        every: steps after which the factors are estimated anew.
        dtype: in which the inverse factors are multiplied. bfloat16 costs a third of float32 where the processor has
            units for it, and its rounding is as harmless here as in the curvature products.
    """

    every: int = 4
    dtype: torch.dtype = torch.bfloat16

    def estimate(self, curved: Linearization, blocks: Sequence[int]) -> Estimate:
        """The factors "i.inputs" [inputs + 1, inputs + 1] and "i.slopes" [outputs, outputs] of layer i, and "decay"."""
        objective = curved.objective
        assert isinstance(objective.model, nn.Sequential)
        totals: Estimate = {}
        rows = sum(chunk.rows for chunk in objective.chunks)
        for chunk in objective.chunks:
            inputs, slopes = _inputs_and_slopes(objective.model, chunk.inputs)
            for layer, (x, slope) in enumerate(zip(inputs, slopes, strict=True)):
                x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
                for name, part in ((f"{layer}.inputs", x), (f"{layer}.slopes", slope)):
                    moment = part.T @ part / rows
                    totals[name] = totals[name] + moment if name in totals else moment
        return totals | {"decay": torch.tensor(objective.weight_decay.of(curved.space.parameters)[0])}

    def inverse(self, estimate: Estimate, damping: float | Tensor, blocks: Sequence[int]) -> Apply:
        """R -> M^-1 r."""
        ridge = float(damping + estimate["decay"])
        factors = [
            _inverses(estimate[f"{i}.inputs"], estimate[f"{i}.slopes"], ridge) for i in range(len(estimate) // 2)
        ]
        factors = [(a.to(self.dtype), b.to(self.dtype)) for a, b in factors]
        sizes = list(itertools.chain.from_iterable((len(b) * (len(a) - 1), len(b)) for a, b in factors))

        def apply(r: Tensor) -> Tensor:
            pieces, results = iter(r.split(sizes)), []
            for a, b in factors:
                weight, bias = next(pieces).view(len(b), -1), next(pieces).view(len(b), 1)
                result = (b @ (torch.cat([weight, bias], dim=1).to(self.dtype) @ a)).to(r.dtype)
                results += [result[:, :-1].reshape(-1), result[:, -1]]
            return torch.cat(results)

        return apply


def _inputs_and_slopes(model: nn.Sequential, x: Tensor) -> tuple[list[Tensor], Sequence[Tensor]]:
    """Of each layer the inputs [rows, inputs], and the slopes in its outputs [rows, outputs] at drawn targets."""
    inputs, outputs = [], []
    with torch.enable_grad():
        for layer in (module for module in model.modules() if not list(module.children())):
            if isinstance(layer, nn.Linear):
                inputs.append(x.detach())
            x = layer(x)
            if isinstance(layer, nn.Linear):
                outputs.append(x)
        mean = x.detach().sigmoid()
        return inputs, torch.autograd.grad(x, outputs, mean - torch.bernoulli(mean))


def _inverses(a: Tensor, b: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The inverses of both factors, the damping shared out by their mean eigenvalues."""
    tiny = torch.finfo(a.dtype).tiny
    pi = (a.diagonal().mean().clamp(min=tiny) / b.diagonal().mean().clamp(min=tiny)).sqrt().clamp(1e-4, 1e4)
    damped = (a + pi * ridge**0.5 * torch.eye(len(a)), b + ridge**0.5 / pi * torch.eye(len(b)))
    first, second = (torch.cholesky_inverse(torch.linalg.cholesky(factor)) for factor in damped)
    return first, second
