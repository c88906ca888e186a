"""K-FAC against a dense float64 computation: factors by loops over examples and positions, F and C as whole matrices.

Nothing is shared with the library but the random signs, which are recorded as they are drawn.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from dense_models import dense_model, flat
from torch import Tensor, nn

from latephase import Fixed, KroneckerFactors, Objective
from latephase.curvature.preconditioners import ggn_diagonal, kronecker_factors
from latephase.optim.kfac import KFAC

TIGHT = 1e-8
"""Asked for; float64 gives some 1e-12 on these sizes, the mixed quadratic form a few digits less."""
STEPS = 8
DECAY = 0.02


class Mean(nn.Module):
    """The mean over the positions of each example."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def models() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return {
        "dense": (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
        "convolution": (
            nn.Sequential(
                nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)
            ),
            (2, 4, 4),
        ),
        "positions": (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Mean(), nn.Linear(4, 3)), (5, 3)),
        "mixed": (
            nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3, bias=False), nn.PReLU()), (4,)
        ),
    }  # fmt: skip


def batch(shape: tuple[int, ...], seed: int, rows: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (rows,), generator=generator)


@pytest.fixture
def signs(monkeypatch) -> dict[str, list[Tensor]]:
    """The signs of the factors and of the diagonal, in the order in which they are drawn."""
    drawn: dict[str, list[Tensor]] = {"factors": [], "diagonal": []}
    for name, module in (("factors", kronecker_factors), ("diagonal", ggn_diagonal)):

        def recorded(like, generator, name=name, draw=module.random_signs):
            drawn[name].append(draw(like, generator))
            return drawn[name][-1]

        monkeypatch.setattr(module, "random_signs", recorded)
    return drawn


def slopes_of(z: Tensor, u: Tensor) -> Tensor:
    """S u for the mean cross-entropy, row by row: S S' is its Hessian."""
    rows = []
    for logits, signs in zip(z.detach(), u, strict=True):
        p = logits.exp() / logits.exp().sum()
        rows.append((torch.diag(p.sqrt()) - torch.outer(p, p.sqrt())) @ signs / math.sqrt(len(z)))
    return torch.stack(rows)


def places(layer: nn.Module, inputs: Tensor, slopes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Input with a one behind it, and slope, at each position of one example."""
    if isinstance(layer, nn.Conv2d):
        (h, w), (down, right) = layer.kernel_size, layer.stride
        padded = nn.functional.pad(inputs, (1, 1, 1, 1))
        found = [
            (padded[:, i * down : i * down + h, j * right : j * right + w].reshape(-1), slopes[:, i, j])
            for i in range(slopes.shape[1])
            for j in range(slopes.shape[2])
        ]
    else:
        found = list(zip(inputs.reshape(-1, inputs.shape[-1]), slopes.reshape(-1, slopes.shape[-1]), strict=True))
    ones = [torch.ones(1, dtype=torch.float64)] if layer.bias is not None else []
    return [(torch.cat([a, *ones]), g) for a, g in found]


def factors_of(model: nn.Module, layers: list[nn.Module], x: Tensor, probes: list[Tensor], sharing: str):
    """A and B of each layer; the batch is a loop."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    hooks = [layer.register_forward_hook(lambda m, i, o: seen.__setitem__(m, (i[0], o))) for layer in layers]
    result = [[torch.zeros(()).double(), torch.zeros(()).double()] for _ in layers]
    for u in probes:
        every = slopes_of(model(x), u)
        for n in range(len(x)):
            z = model(x[n : n + 1])
            outputs = [seen[layer][1] for layer in layers]
            for k, slope in enumerate(torch.autograd.grad(z, outputs, every[n : n + 1])):
                pairs = places(layers[k], seen[layers[k]][0][0].detach(), slope[0])
                if sharing == "reduce":
                    pairs = [(sum(a for a, _ in pairs) / len(pairs), sum(g for _, g in pairs))]
                for a, g in pairs:
                    result[k][0] = result[k][0] + torch.outer(a, a) / (len(x) * len(pairs) * len(probes))
                    result[k][1] = result[k][1] + torch.outer(g, g) / len(probes)
    for hook in hooks:
        hook.remove()
    return result


def diagonal_of(model: nn.Module, x: Tensor, probes: list[Tensor]) -> Tensor:
    """Mean of (J'Su)^2 over the probes, and the L2 term."""
    z = model(x)
    pulls = [torch.autograd.grad(z, list(model.parameters()), slopes_of(z, u), retain_graph=True) for u in probes]
    squares = [torch.cat([g.reshape(-1) for g in pull]).square() for pull in pulls]
    return sum(squares) / len(squares) + DECAY


@dataclass
class Oracle:
    """One run of K-FAC, step by step."""

    model: nn.Module
    damping: float
    options: dict[str, Any]
    step: int = 0
    averages: list[Any] = field(default_factory=list)
    inverse: Tensor | None = None
    previous: Tensor | None = None

    def direction(self, x: Tensor, gradient: Tensor, signs: dict[str, list[Tensor]]) -> Tensor:
        """-F^-1 g with F a dense matrix, renewed where it is due."""
        layers = [m for m in self.model if isinstance(m, (nn.Linear, nn.Conv2d))]
        if self.step % self.options.get("factor_period", 1) == 0:
            k = self.step // self.options.get("factor_period", 1) + 1
            new = factors_of(self.model, layers, x, signs["factors"], self.options.get("weight_sharing", "expand"))
            diagonal = diagonal_of(self.model, x, signs["diagonal"]) if signs["diagonal"] else torch.tensor(0.0)
            new = [*[f for pair in new for f in pair], diagonal]
            decay = min(1 - 1 / k, self.options.get("factor_decay", 0.95))
            self.averages = [decay * a + (1 - decay) * b for a, b in zip(self.averages or new, new, strict=True)]
            inverted = k <= 3 or self.step % self.options.get("inverse_period", 5) == 0
        else:
            inverted = self.step % self.options.get("inverse_period", 5) == 0
        fresh = torch.linalg.inv(self.fisher(layers))
        if inverted or self.inverse is None:
            self.inverse = fresh
        factored = [any(p is q for m in layers for q in m.parameters()) for p in self.model.parameters()]
        sizes = torch.tensor([p.numel() for p in self.model.parameters()])
        kept = torch.tensor(factored).repeat_interleave(sizes)  # the diagonal follows the damping at once
        return -torch.where(kept, self.inverse @ gradient, fresh @ gradient)

    def fisher(self, layers: list[nn.Module]) -> Tensor:
        """F with factored damping, in the order of the parameters."""
        parameters = list(self.model.parameters())
        size, begin, spans = sum(p.numel() for p in parameters), 0, {}
        for p in parameters:
            spans[p], begin = range(begin, begin + p.numel()), begin + p.numel()
        matrix, level = torch.zeros(size, size, dtype=torch.float64), self.damping + DECAY
        covered = set()
        for k, layer in enumerate(layers):
            a, b = self.averages[2 * k : 2 * k + 2]
            pi = math.sqrt((a.trace() / len(a)) / (b.trace() / len(b)))
            damped_a = a + pi * math.sqrt(level) * torch.eye(len(a), dtype=torch.float64)
            damped_b = b + math.sqrt(level) / pi * torch.eye(len(b), dtype=torch.float64)
            weight = torch.tensor(spans[layer.weight]).view(len(b), -1)
            columns = [weight] if layer.bias is None else [weight, torch.tensor(spans[layer.bias]).view(-1, 1)]
            index = torch.cat(columns, dim=1).reshape(-1)
            matrix[index.unsqueeze(1), index] = torch.kron(damped_b, damped_a)
            covered |= set(index.tolist())
        for i in sorted(set(range(size)) - covered):
            matrix[i, i] = self.averages[-1][i] + self.damping
        return matrix

    def __call__(self, data: tuple[Tensor, Tensor], signs: dict[str, list[Tensor]]) -> dict[str, float]:
        """Take a step; what the report should say."""
        loss = nn.CrossEntropyLoss()
        exact = dense_model(self.model, loss, data, weight_decay=DECAY)
        used, directions = self.damping, [self.direction(data[0], exact.gradient, signs)]
        if self.previous is not None:
            directions.append(self.previous)
        span = torch.stack(directions, dim=1)
        curved = exact.matrix + used * torch.eye(len(exact.gradient), dtype=torch.float64)
        coefficients = torch.linalg.solve(span.T @ curved @ span, -span.T @ exact.gradient)
        self.previous = span @ coefficients
        theta = flat(self.model) + self.previous
        nn.utils.vector_to_parameters(theta, self.model.parameters())
        self.step += 1
        expected = {"loss": exact.loss, "lr": float(coefficients[0]), "step_norm": float(self.previous.norm())}
        expected |= {"momentum": float(coefficients[1]) if len(coefficients) > 1 else 0.0, "damping": used}
        period = self.options.get("adapt_period", 5)
        if self.step % period == 0:
            new = dense_model(self.model, loss, data, weight_decay=DECAY).loss
            expected["new_loss"] = new
            expected["reduction_ratio"] = (new - exact.loss) / exact.change(self.previous)
            omega = (19 / 20) ** period
            if expected["reduction_ratio"] > 3 / 4:
                self.damping = used * omega
            elif expected["reduction_ratio"] < 1 / 4:
                self.damping = used / omega
        return expected


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "dense, every step": ("dense", {"adapt_period": 1, "inverse_period": 1, "probes": 3}),
    "dense, seldom": ("dense", {"factor_period": 2, "inverse_period": 4, "factor_decay": 0.5, "adapt_period": 3}),
    "dense, in chunks": ("dense", {"microbatch_size": 3}),
    "convolution": ("convolution", {}),
    "convolution, reduced": ("convolution", {"weight_sharing": "reduce"}),
    "positions": ("positions", {}),
    "positions, reduced": ("positions", {"weight_sharing": "reduce", "adapt_period": 2}),
    "mixed": ("mixed", {"adapt_period": 2}),
}


FIELDS = {
    "factor_period": "period",
    "inverse_period": "inverse_period",
    "factor_decay": "decay",
    "probes": "probes",
    "weight_sharing": "weight_sharing",
}
"""Options of the oracle -> fields of `KroneckerFactors`."""


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_that_of_dense_matrices(name, signs):
    which, options = CASES[name]
    options = dict(options)
    microbatch_size = options.pop("microbatch_size", None)
    (model, shape), (twin, _) = models()[which], models()[which]
    model, twin = model.double(), twin.double()
    factors = {field: options[name] for name, field in FIELDS.items() if name in options}
    others = {name: value for name, value in options.items() if name not in FIELDS}
    optimizer = KFAC(model.parameters(), damping=0.1, factors=KroneckerFactors(**factors), **others)
    oracle = Oracle(twin, 0.1, options)
    for step in range(STEPS):
        data = batch(shape, step)
        for drawn in signs.values():
            drawn.clear()
        objective = Objective(model, nn.CrossEntropyLoss(), data, weight_decay=DECAY, microbatch_size=microbatch_size)
        optimizer.step(objective)
        if microbatch_size is not None:  # one probe, chunk after chunk
            signs["factors"][:] = [torch.cat(signs["factors"])]
        for name, value in oracle(data, signs).items():
            assert getattr(optimizer.report, name) == pytest.approx(value, rel=TIGHT, abs=1e-10), (step, name)
        torch.testing.assert_close(flat(model), flat(twin), rtol=TIGHT, atol=TIGHT)
    assert optimizer.damping == pytest.approx(oracle.damping, rel=1e-12)
    assert optimizer.damping != 0.1 or options.get("adapt_period") != 1
    assert bool(signs["diagonal"]) == (which == "mixed")
    assert optimizer.report.diagonal_layers == (("1", "4") if which == "mixed" else ())


@pytest.mark.parametrize("which", ["dense", "convolution", "mixed"])
def test_factors_and_direction_are_those_of_a_loop(which, signs):
    (model, shape), (twin, _) = models()[which], models()[which]
    model, oracle = model.double(), Oracle(twin.double(), 0.3, {})
    start, data = flat(model), batch(shape, 0)
    exact = dense_model(model, nn.CrossEntropyLoss(), data, weight_decay=DECAY)
    optimizer = KFAC(model.parameters(), lr=1.0, momentum=0.0, damping=Fixed(0.3))
    optimizer.step(Objective(model, nn.CrossEntropyLoss(), data, weight_decay=DECAY))
    expected = oracle.direction(data[0], exact.gradient, signs)
    torch.testing.assert_close(flat(model) - start, expected, rtol=TIGHT, atol=1e-12)
    moments = optimizer.state[next(model.parameters())]["factors"]["moments"]
    for name, factor in zip(("0.inputs", "0.slopes", "1.inputs", "1.slopes"), oracle.averages, strict=False):
        torch.testing.assert_close(moments[name], factor, rtol=TIGHT, atol=1e-14)
    assert optimizer.report.products == 0
