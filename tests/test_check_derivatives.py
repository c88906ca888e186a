"""`check` on wrong derivatives: each is found, and the autograd.Function behind it is named."""

import pytest
import torch
from torch import nn

from latephase import check
from latephase.diagnosis.krylov import probe


def batch(rows: int = 48):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 6, generator=generator), torch.randint(3, (rows,), generator=generator)


def mlp(between: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), between, nn.Linear(12, 3))


def defects(report) -> list[str]:
    return [finding.name for finding in report.of_severity("defect")]


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        result = self.function.apply(x)
        return result[0] if isinstance(result, tuple) else result


class Sine(torch.autograd.Function):
    """Without a defect; those below change one thing each."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * ctx.saved_tensors[0].cos()


class WrongBackward(Sine):
    @staticmethod
    def backward(ctx, slope):
        return 1.5 * slope * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, tangent):
        return 1.5 * tangent * ctx.saved_tensors[0].cos()


class WrongJvp(Sine):
    @staticmethod
    def jvp(ctx, tangent):
        return 1.5 * tangent * ctx.saved_tensors[0].cos()


class Clipped(Sine):
    @staticmethod
    def backward(ctx, slope):
        return (slope * ctx.saved_tensors[0].cos()).clamp(-1e-3, 1e-3)


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0].cos()


class HiddenSlope(torch.autograd.Function):
    """Its backward saves the slope itself, which autograd then takes for a constant."""

    @staticmethod
    def forward(x):
        return x.sin(), x.cos()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, slope, _):
        return slope * ctx.saved_tensors[0]


def test_an_autograd_function_without_a_defect_passes():
    report = check(mlp(Apply(Sine)), nn.CrossEntropyLoss(), batch())
    assert not report.of_severity("defect", "warning"), str(report)
    assert report.method == "traced"


@pytest.mark.parametrize(
    ("function", "finding"),
    [(WrongBackward, "slope"), (WrongJvp, "agreement"), (Clipped, "symmetry")],
)
def test_a_wrong_derivative_is_found_and_its_function_named(function, finding, unchanged):
    model = mlp(Apply(function))
    with unchanged(model, generator=True):
        report = check(model, nn.CrossEntropyLoss(), batch())
    assert finding in defects(report), str(report)
    assert function.__name__ in report.finding(finding).message


def test_a_function_that_forbids_second_derivatives():
    # Either products refuse it, or they are found to be wrong.
    report = check(mlp(Apply(OnceOnly)), nn.CrossEntropyLoss(), batch())
    assert not report.ok
    assert set(defects(report)) <= {"symmetry", "products"}


def test_a_wrong_slope_is_laid_to_the_parameters_behind_it():
    report = check(mlp(Apply(WrongBackward)), nn.CrossEntropyLoss(), batch())
    assert report.finding("slope").value == ("0.weight", "0.bias")


def test_a_hidden_slope_is_wrong_for_the_hessian_alone():
    inputs, targets = batch()
    model = mlp(Apply(HiddenSlope)).double()
    report = check(model, nn.CrossEntropyLoss(), (inputs.double(), targets))
    assert report.ok
    assert report.finding("hessian").severity == "warning"
    assert "HiddenSlope" in report.finding("hessian").message


def test_kinks_are_not_taken_for_a_wrong_hessian():
    report = check(mlp(nn.ReLU()), nn.MSELoss(), (batch()[0], torch.randn(48, 3)))
    assert not report.of_severity("defect", "warning"), str(report)


def test_a_probe_sees_symmetry_and_the_ends_of_the_spectrum():
    generator = torch.Generator().manual_seed(0)
    size = 200
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    spectrum = torch.linspace(0, 1, size, dtype=torch.float64)
    spectrum[-1], spectrum[0] = 10.0, -3.0
    matrix = basis @ torch.diag(spectrum) @ basis.T
    start = torch.randn(size, generator=generator, dtype=torch.float64)
    seen = probe(lambda v: matrix @ v, start, 8)
    assert seen.asymmetry < 1e-12  # rounding of float64
    assert -3.0 <= seen.lowest < -2.9
    assert 9.9 < seen.highest <= 10.0 + 1e-12
    skewed = matrix + 0.05 * torch.triu(torch.ones_like(matrix), 1)
    assert probe(lambda v: skewed @ v, start, 8).asymmetry > 0.05
    # On the identity the Krylov space has one dimension.
    assert probe(lambda v: v, start, 8).highest == pytest.approx(1.0, abs=1e-12)
