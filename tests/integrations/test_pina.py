"""PINA: conditions are residuals, solvers train on them as a plain loop does, optimizers are switched, runs resume."""

import copy
import random
import warnings

import pytest
import torch
from torch import nn

from latephase import KFAC, AdamQLR, GaussNewton, HessianFree, Objective, SelfScaledBroyden
from latephase.curvature import linearize

pytestmark = pytest.mark.filterwarnings("ignore")  # PINA's and Lightning's own
pina = pytest.importorskip("pina", exc_type=ImportError)

from lightning.pytorch import Callback  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from pina.callback import SwitchOptimizer  # noqa: E402
from pina.condition import Condition  # noqa: E402
from pina.domain import CartesianDomain  # noqa: E402
from pina.equation import Equation  # noqa: E402
from pina.equation.zoo import FixedValue  # noqa: E402
from pina.operator import laplacian  # noqa: E402
from pina.optim import TorchOptimizer, TorchScheduler  # noqa: E402
from pina.problem import InverseProblem, SpatialProblem  # noqa: E402
from pina.solver import PhysicsInformedSingleModelSolver  # noqa: E402
from pina.weighting import ScalarWeighting, SelfAdaptiveWeighting  # noqa: E402
from torch.optim.lr_scheduler import LinearLR  # noqa: E402

from latephase.integrations.pina import SecondOrderPINN, residual_objective  # noqa: E402


def poisson(points, u):
    x, y = (points.extract([name]) for name in "xy")
    force = torch.sin(torch.pi * x) * torch.sin(torch.pi * y)
    return laplacian(u, points, components=["u"], d=["x", "y"]) - force


def unknown_force(points, u, unknown):
    x, y = (points.extract([name]) for name in "xy")
    force = unknown["a"] * torch.sin(torch.pi * x) * torch.sin(torch.pi * y)
    return laplacian(u, points, components=["u"], d=["x", "y"]) - force


class Poisson(SpatialProblem):
    output_variables = ["u"]  # noqa: RUF012  # as PINA has it
    spatial_domain = CartesianDomain({"x": [0, 1], "y": [0, 1]})
    domains = {"D": spatial_domain, "edge": spatial_domain.partial()}  # noqa: RUF012
    conditions = {  # noqa: RUF012
        "D": Condition(domain="D", equation=Equation(poisson)),
        "edge": Condition(domain="edge", equation=FixedValue(0.0)),
    }


def measured():
    generator = torch.Generator().manual_seed(4)
    points = torch.rand(20, 2, generator=generator)
    values = torch.sin(torch.pi * points).prod(1, keepdim=True) / (2 * torch.pi**2)
    return pina.LabelTensor(points, ["x", "y"]), pina.LabelTensor(-1.5 * values, ["u"])


class UnknownForce(SpatialProblem, InverseProblem):
    output_variables = ["u"]  # noqa: RUF012
    spatial_domain = CartesianDomain({"x": [0, 1], "y": [0, 1]})
    unknown_parameter_domain = CartesianDomain({"a": [0, 3]})
    domains = {"D": spatial_domain, "edge": spatial_domain.partial()}  # noqa: RUF012
    conditions = {  # noqa: RUF012
        "D": Condition(domain="D", equation=Equation(unknown_force)),
        "edge": Condition(domain="edge", equation=FixedValue(0.0)),
        "data": Condition(input=measured()[0], target=measured()[1]),
    }


def solver_of(optimizer, kind=SecondOrderPINN, problem=Poisson, **options):
    torch.manual_seed(0)
    random.seed(0)  # of which edge a point is
    posed = problem()
    posed.discretise_domain(5, "grid", domains=["D"])
    posed.discretise_domain(20, "random", domains=["edge"])
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    return kind(posed, model, optimizer=optimizer, weighting=ScalarWeighting({"edge": 10.0, "data": 1000.0}), **options)


class Seeded(Callback):
    """K-FAC draws signs, and Lightning's checkpoints hold no generator."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        torch.manual_seed(trainer.global_step)


def trainer_of(solver, folder, callbacks=(), **options):
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"enable_checkpointing": bool([c for c in callbacks if isinstance(c, ModelCheckpoint)])}
    settings |= {"default_root_dir": folder, "max_epochs": 4, "shuffle": False}
    return pina.Trainer(solver, callbacks=[Seeded(), *callbacks], **settings | options)


def same(first, second):
    return all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


OPTIMIZERS = {
    "GaussNewton": TorchOptimizer(GaussNewton, damping=0.1),
    "HessianFree": TorchOptimizer(HessianFree, damping=0.1),
    "SelfScaledBroyden": TorchOptimizer(SelfScaledBroyden),
    "AdamQLR": TorchOptimizer(AdamQLR),
    "KFAC": TorchOptimizer(KFAC),
    "Adam": TorchOptimizer(torch.optim.Adam, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_are_those_of_a_plain_loop_bit_for_bit(name, tmp_path):
    solver, twin = solver_of(OPTIMIZERS[name]), solver_of(copy.deepcopy(OPTIMIZERS[name]))
    trainer = trainer_of(solver, tmp_path)
    trainer.train()
    optimizer, objective = OPTIMIZERS[name].optimizer_class(twin.model.parameters(), **OPTIMIZERS[name].kwargs), None
    for step in range(4):
        torch.manual_seed(step)
        objective = residual_objective(twin)
        optimizer.step(objective)
    assert same(solver.model, twin.model)
    assert trainer.global_step == 4
    assert float(residual_objective(twin).value()) < float(trainer.logged_metrics["train_loss"])


def test_the_objective_is_pinas_own_loss(tmp_path):
    first, ours = [solver_of(OPTIMIZERS["Adam"], kind) for kind in (PhysicsInformedSingleModelSolver, SecondOrderPINN)]
    losses = []
    for solver in (first, ours):
        trainer = trainer_of(solver, tmp_path, max_epochs=10)
        trainer.train()
        losses.append(float(trainer.logged_metrics["train_loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # ten steps of Adam in float32
    for p, q in zip(first.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["GaussNewton", "SelfScaledBroyden"])
def test_a_run_resumes_from_its_checkpoint_with_the_same_numbers(name, tmp_path):
    keep = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    whole, resumed = solver_of(copy.deepcopy(OPTIMIZERS[name])), solver_of(copy.deepcopy(OPTIMIZERS[name]))
    trainer_of(whole, tmp_path, [keep]).train()
    again = trainer_of(resumed, tmp_path)
    again.train(ckpt_path=tmp_path / "epoch=1.ckpt")
    assert again.global_step == 4
    assert same(whole.model, resumed.model)


def test_adam_hands_over_by_switch_optimizer(tmp_path):
    late = TorchOptimizer(GaussNewton, damping=0.1)
    solver, twin = solver_of(copy.deepcopy(OPTIMIZERS["Adam"])), solver_of(None)
    trainer_of(solver, tmp_path, [SwitchOptimizer(late, epoch_switch=2)]).train()
    for optimizer in (
        torch.optim.Adam(twin.model.parameters(), lr=1e-2),
        GaussNewton(twin.model.parameters(), damping=0.1),
    ):
        for _ in range(2):
            optimizer.step(residual_objective(twin))
    assert same(solver.model, twin.model)
    assert late.instance.report.accepted


def test_float64_is_lightnings_precision(tmp_path):
    solver, twin = solver_of(OPTIMIZERS["GaussNewton"]), solver_of(None)
    trainer_of(solver, tmp_path, precision="64-true").train()
    posed = twin.double().problem
    posed._discretised_domains = {name: points.to(torch.float64) for name, points in posed.discretised_domains.items()}
    optimizer = GaussNewton(twin.model.parameters(), damping=0.1)
    for _ in range(4):
        optimizer.step(residual_objective(twin))
    assert solver.model[0].weight.dtype == torch.float64
    assert same(solver.model, twin.model)


def test_unknown_parameters_are_found(tmp_path):
    solver = solver_of(TorchOptimizer(GaussNewton, damping=1e-2), problem=UnknownForce)
    with torch.no_grad():
        solver.problem.unknown_parameters["a"].fill_(0.5)
    trainer_of(solver, tmp_path, max_epochs=60).train()
    assert float(solver.problem.unknown_parameters["a"]) == pytest.approx(1.5, abs=0.1)  # 25 points, 8 units


def test_schedules_reach_the_optimizer(tmp_path):
    solver = solver_of(copy.deepcopy(OPTIMIZERS["HessianFree"]), scheduler=TorchScheduler(LinearLR, total_iters=4))
    trainer_of(solver, tmp_path).train()
    assert solver.optimizer.instance.param_groups[0]["lr"] == pytest.approx(1.0)


def test_rows_are_those_of_pinas_residuals_and_products_are_traced():
    solver = solver_of(OPTIMIZERS["Adam"])
    parameters, expected = list(solver.model.parameters()), []
    for name, weight in (("D", 1.0), ("edge", 10.0)):
        points = solver.problem.discretised_domains[name].requires_grad_()
        residuals = solver.problem.conditions[name].equation.residual(points, solver.forward(points)).tensor
        for residual in residuals.reshape(-1) * (2 * weight / len(residuals)) ** 0.5:
            row = torch.autograd.grad(residual, parameters, retain_graph=True, materialize_grads=True)
            expected.append(torch.cat([part.reshape(-1) for part in row]))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="rows of")  # that they are computed point by point
        for _ in range(2):
            curved = linearize(residual_objective(solver))
            rows = curved.rows()
            torch.testing.assert_close(rows, torch.stack(expected), rtol=1e-4, atol=1e-5)  # float32, second derivatives
    direction = torch.ones(rows.shape[1])
    torch.testing.assert_close(curved.matvec(direction), rows.T @ (rows @ direction), rtol=1e-4, atol=1e-4)
    assert curved.method == "traced"


def test_options_cut_the_points_into_chunks():
    solver = solver_of(OPTIMIZERS["Adam"])
    whole, cut = residual_objective(solver), residual_objective(solver, microbatch_size=10)
    assert isinstance(whole, Objective)
    assert len(cut.chunks) == 3 + 2
    assert float(whole.value()) == pytest.approx(float(cut.value()), rel=1e-6)


def test_weights_that_change_and_other_losses_are_refused():
    solver = solver_of(OPTIMIZERS["Adam"])
    solver._pina_weighting = SelfAdaptiveWeighting()
    with pytest.raises(ValueError, match="weights of SelfAdaptiveWeighting change"):
        residual_objective(solver)
    with pytest.raises(ValueError, match="loss is L1Loss with reduction 'mean'"):
        residual_objective(solver_of(OPTIMIZERS["Adam"], loss=nn.L1Loss()))
