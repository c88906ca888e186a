"""Steps on residual objectives, on parts of their data, and what the checks say of them."""

import pytest
import torch
from residual_cases import EXACT, network, objective_of, poisson, uniform
from torch import Tensor, nn

import latephase
from latephase import KFAC, AdamQLR, HessianFree, Objective
from latephase.curvature import linearize


def test_evaluation_and_curvature_on_parts():
    model = network()
    objective, held_out = objective_of("autograd", model).split(7, 6)
    optimizer, first, before = HessianFree(model.parameters()), float(objective.value()), float(held_out.value())
    generator = torch.Generator().manual_seed(1)  # of the few rows: others judge, so that two draws in 30 do worse
    for _ in range(4):
        optimizer.step(objective, evaluation=held_out, curvature_objective=objective.subsample(4, generator))
    assert float(objective.value()) < 0.5 * first
    assert float(held_out.value()) < 0.5 * before


@pytest.mark.filterwarnings("ignore:Kronecker factors of the layers .* are rough")
@pytest.mark.parametrize("optimizer", [HessianFree, KFAC, AdamQLR])
def test_optimizers_go_down(optimizer):
    model = network()
    objective = objective_of("autograd", model)
    chosen = optimizer(model.parameters())
    first = float(objective.value())
    for step in range(6):
        chosen.step(objective.on({"interior": uniform(9 + step % 2, 2, seed=20 + step)}))
    assert float(objective.value()) < 0.5 * first


def test_kfac_on_two_terms_of_one_function_is_kfac_on_their_union():
    """With weights by the terms' rows the objective is the mean over all rows, in two chunks of unequal size."""

    def values(model: nn.Module, points: tuple[Tensor, Tensor]) -> Tensor:
        return model(points[0]) - points[1]

    x, y = uniform(12, 2, seed=5), uniform(12, 1, seed=6)
    first, second = network(), network()
    terms = {"a": (values, (x[:9], y[:9])), "b": (values, (x[9:], y[9:]))}
    objective = Objective.from_residuals(first, terms, weights={"a": 0.75, "b": 0.25})
    other = Objective(second, nn.MSELoss(), (x, y))
    optimizers = [KFAC(model.parameters()) for model in (first, second)]
    for _ in range(3):
        losses = [float(o.step(f)) for o, f in zip(optimizers, (objective, other), strict=True)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_kfac_knows_the_scale_of_weights():
    """The same function, once as two terms of large weights and once as one."""

    def values(model: nn.Module, points: tuple[Tensor, Tensor]) -> Tensor:
        return model(points[0]) - points[1]

    x, y = uniform(12, 2, seed=5), uniform(12, 1, seed=6)
    parted = {"a": (values, (x[:9], y[:9])), "b": (values, (x[9:], y[9:]))}
    losses = []
    for terms, weights in ((parted, {"a": 7.5, "b": 2.5}), ({"a": (values, (x, y))}, {"a": 10.0})):
        model = network()
        objective, optimizer = Objective.from_residuals(model, terms, weights=weights), KFAC(model.parameters())
        losses.append([float(optimizer.step(objective)) for _ in range(4)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][-1] < 0.5 * losses[0][0]


@pytest.mark.parametrize("count", [2, 5, 12])
def test_a_subsample_has_rows_of_each_term(count):
    objective = objective_of("autograd", microbatch_size=4)
    part = objective.subsample(count, torch.Generator().manual_seed(1))
    assert sum(chunk.rows for chunk in part.chunks) == count
    assert set(part.terms()) == {"interior", "boundary"}
    drawn = torch.cat([chunk.inputs["interior"] for chunk in part.chunks if "interior" in chunk.inputs])
    values = poisson(objective.model, drawn.clone()).detach()
    torch.testing.assert_close(part.terms()["interior"], values.square().mean(), **EXACT)
    assert linearize(part).loss == pytest.approx(float(part.value()))


def test_split_gives_each_part_its_share_of_each_term():
    objective = objective_of("autograd")
    first, second = objective.split(6, 7)
    counts = [[chunk.rows for chunk in each.chunks] for each in (first, second)]
    assert counts == [[4, 2], [5, 2]]
    whole = objective.terms()
    parts = [first.terms(), second.terms()]
    for name, rows in {"interior": (4, 5), "boundary": (2, 2)}.items():
        mean = sum(n * part[name] for n, part in zip(rows, parts, strict=True)) / sum(rows)
        torch.testing.assert_close(mean, whole[name], **EXACT)
    with pytest.raises(ValueError, match="a share of each of 2 terms"):
        objective.subsample(1)
    with pytest.raises(ValueError, match="cannot draw 14 of 13"):
        objective.subsample(14)
    with pytest.raises(ValueError, match="a share of each of 2 terms"):
        objective.split(2, 2, 2, 2, 2)


def test_check_finds_nothing_wrong(capsys):
    report = latephase.check(objective_of("autograd"))
    assert not [finding for finding in report.findings if finding.severity in ("defect", "warning")]
