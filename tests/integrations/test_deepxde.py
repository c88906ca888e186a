"""DeepXDE: a model's losses are residuals, and its training by second-order steps is a plain loop's."""

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn

from latephase import KFAC, AdamQLR, GaussNewton, HessianFree, SelfScaledBroyden
from latephase.curvature import linearize

pytest.importorskip("deepxde", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore")  # DeepXDE's own, and of float32

from latephase.integrations.deepxde import compile_second_order, dde, residual_objective  # noqa: E402

WEIGHTS = [1.0, 10.0, 5.0, 2.0]


def poisson(x, u):
    laplacian = dde.grad.hessian(u, x, i=0, j=0) + dde.grad.hessian(u, x, i=1, j=1)
    return laplacian + torch.sin(np.pi * x[:, :1])


def on(side):
    return lambda x, on_boundary: on_boundary and np.isclose(x[0], side)


def data_of():
    """An equation with values and slopes at edges, and a measured point."""
    dde.config.set_random_seed(1)
    square = dde.geometry.Rectangle([0, 0], [1, 1])
    conditions = [
        dde.icbc.DirichletBC(square, lambda x: x[:, 1:] ** 2, on(0)),
        dde.icbc.NeumannBC(square, lambda x: 0.5, on(1)),
        dde.icbc.PointSetBC(np.array([[0.5, 0.5]]), np.array([[0.3]])),
    ]
    return dde.data.PDE(square, poisson, conditions, 30, 16, train_distribution="pseudo")


def model_of(data=None, layers=(2, 8, 1), **options):
    torch.manual_seed(0)
    return dde.Model(data_of() if data is None else data, dde.nn.FNN(list(layers), "tanh", "Glorot uniform", **options))


def same(first, second):
    return all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


OPTIMIZERS = {
    "GaussNewton": functools.partial(GaussNewton, damping=0.1),
    "HessianFree": functools.partial(HessianFree, damping=0.1),
    "SelfScaledBroyden": SelfScaledBroyden,
    "AdamQLR": AdamQLR,
    "KFAC": KFAC,
}


def steps(model, iterations, **options):
    torch.manual_seed(7)  # K-FAC draws signs
    return model.train(iterations=iterations, verbose=0, display_every=100, **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_are_those_of_a_plain_loop_bit_for_bit(name):
    model = model_of()
    twin = copy.deepcopy(model.net)
    compile_second_order(model, OPTIMIZERS[name](model.net.parameters()), loss_weights=WEIGHTS, verbose=0)
    history, _ = steps(model, 4)
    plain = dde.Model(model.data, twin)
    plain.compile("adam", lr=1e-3, loss_weights=WEIGHTS, verbose=0)
    optimizer, objective = OPTIMIZERS[name](twin.parameters()), residual_objective(plain)
    torch.manual_seed(7)
    for _ in range(4):
        optimizer.step(objective)
    assert same(model.net, twin)
    assert np.sum(history.loss_train[-1]) < np.sum(history.loss_train[0])
    assert np.sum(history.loss_train[-1]) == pytest.approx(float(objective.value()), rel=1e-5)  # DeepXDE's own


def test_gradient_and_rows_are_deepxdes_and_products_are_traced():
    model = model_of()
    model.compile("adam", lr=1e-3, loss_weights=WEIGHTS, verbose=0)
    inputs, targets, auxiliary = model.data.train_next_batch()
    losses = model.outputs_losses_train(inputs, targets, auxiliary)[1]
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(losses.sum(), list(model.net.parameters()))])
    objective = residual_objective(model)
    for _ in range(2):
        curved = linearize(objective)
        rows = curved.rows()
    direction = torch.ones(rows.shape[1])
    torch.testing.assert_close(curved.gradient, gradient, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(curved.matvec(direction), rows.T @ (rows @ direction), rtol=1e-4, atol=1e-4)
    assert curved.method == "traced"


@pytest.mark.parametrize("name", ["GaussNewton", "SelfScaledBroyden"])
def test_a_run_resumes_from_deepxdes_file_with_the_same_numbers(name, tmp_path):
    def begun():
        model = model_of()
        compile_second_order(model, OPTIMIZERS[name](model.net.parameters()), loss_weights=WEIGHTS, verbose=0)
        return model

    whole = begun()
    steps(whole, 3)
    path = whole.save(str(tmp_path / "model"))
    steps(whole, 3)
    resumed = begun()
    steps(resumed, 3, model_restore_path=path)
    assert same(whole.net, resumed.net)


def test_adam_hands_over_and_points_are_redrawn():
    model = model_of()
    model.compile("adam", lr=1e-2, verbose=0)
    steps(model, 5)
    optimizer = HessianFree(model.net.parameters(), damping=0.1)
    compile_second_order(model, optimizer, verbose=0)
    points, objectives, methods = [], [], []

    class Watching(dde.callbacks.Callback):
        def on_batch_end(self):
            points.append(self.model.train_state.X_train.copy())
            objectives.append(self.model.train_step.objective)
            methods.append(optimizer.report.method)

    resampler = dde.callbacks.PDEPointResampler(period=2)
    steps(model, 4, callbacks=[resampler, Watching()])
    assert len({id(objective) for objective in objectives}) == 2
    assert not np.array_equal(points[0], points[-1])
    assert methods[1:] == ["traced"] * 3  # the trace serves the new points
    assert optimizer.report.accepted


def test_time_initial_values_and_operators():
    line, span = dde.geometry.Interval(0, 1), dde.geometry.TimeDomain(0, 1)
    region = dde.geometry.GeometryXTime(line, span)

    def heat(x, u):
        return dde.grad.jacobian(u, x, i=0, j=1) - dde.grad.hessian(u, x, i=0, j=0)

    conditions = [
        dde.icbc.DirichletBC(region, lambda x: 0, lambda _, on_boundary: on_boundary),
        dde.icbc.IC(region, lambda x: np.sin(np.pi * x[:, :1]), lambda _, on_initial: on_initial),
        dde.icbc.RobinBC(line, lambda x, u: -u, lambda _, on_boundary: on_boundary),
        dde.icbc.OperatorBC(region, lambda x, u, _: u * 0.1, lambda _, on_boundary: on_boundary),
    ]
    conditions[2].geom = region
    dde.config.set_random_seed(1)
    data = dde.data.TimePDE(region, heat, [conditions[i] for i in (0, 1, 3)], 40, 8, 8)
    model = model_of(data)
    compile_second_order(model, GaussNewton(model.net.parameters(), damping=0.1), verbose=0)
    history, _ = steps(model, 10)
    assert np.sum(history.loss_train[-1]) < 0.5 * np.sum(history.loss_train[0])


def test_systems_auxiliary_variables_and_l2():
    def system(x, u, scale):
        slopes = [dde.grad.jacobian(u, x, i=i, j=0) for i in range(2)]
        return [slopes[0] - scale * u[:, 1:], torch.cat([slopes[1] + u[:, :1], u[:, :1] - u[:, 1:]], 1)]

    line = dde.geometry.TimeDomain(0, 1)
    conditions = [dde.icbc.IC(line, lambda x: 1, lambda _, on: on, component=1)]
    dde.config.set_random_seed(1)
    data = dde.data.PDE(line, system, conditions, 12, 2, auxiliary_var_function=lambda x: 1 + x)
    model = model_of(data, (1, 6, 2), regularization=["l2", 0.01])
    compile_second_order(model, GaussNewton(model.net.parameters(), damping=0.1), loss_weights=[1, 3, 2], verbose=0)
    objective, squares = (
        residual_objective(model),
        sum(float(p.detach().square().sum()) for p in model.net.parameters()),
    )
    inputs, targets, auxiliary = data.train_next_batch()
    own = float(model.outputs_losses_train(inputs, targets, auxiliary)[1].detach().sum())
    assert float(objective.value()) == pytest.approx(own + 0.5 * 0.01 * squares, rel=1e-5)
    steps(model, 2)


def test_a_fit_to_values_and_a_schedule():
    x = np.linspace(0, 1, 20)[:, None]
    model = model_of(dde.data.DataSet(x, np.sin(6 * x), x, np.sin(6 * x)), (1, 8, 1))
    optimizer = HessianFree(model.net.parameters(), damping=0.1)
    compile_second_order(model, optimizer, decay=("step", 1, 0.9), verbose=0)
    history, _ = steps(model, 3)
    assert history.loss_train[-1].sum() < history.loss_train[0].sum()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.9**3)


def test_unknowns_of_the_network_are_found():
    def decay(x, u):
        return dde.grad.jacobian(u, x) + net.rate * u

    line = dde.geometry.TimeDomain(0, 1)
    t = np.linspace(0, 1, 15)[:, None]
    data = dde.data.PDE(line, decay, [dde.icbc.PointSetBC(t, np.exp(-1.7 * t))], 20, 2)
    model = model_of(data, (1, 8, 1))
    net = model.net
    net.register_parameter("rate", nn.Parameter(torch.tensor(0.5)))
    compile_second_order(model, GaussNewton(net.parameters(), damping=0.1), loss_weights=[1, 10], verbose=0)
    steps(model, 40)
    assert float(net.rate) == pytest.approx(1.7, abs=0.02)


def periodic():
    line = dde.geometry.Interval(0, 1)
    condition = dde.icbc.PeriodicBC(line, 0, lambda _, on_boundary: on_boundary)
    return model_of(dde.data.PDE(line, lambda x, u: u, [condition], 5, 2), (1, 4, 1))


@pytest.mark.parametrize(("make", "options", "said"), [
    (model_of, {"external_trainable_variables": [torch.tensor(1.0)]}, "external_trainable_variables are no parameters"),
    (model_of, {"loss": "MAE"}, "squared and averaged: use loss='MSE'"),
    (lambda: model_of(regularization=["l1", 0.1]), {}, "l1 regularizer is no sum of squares"),
    (periodic, {}, "PeriodicBC has not one residual for each point"),
])  # fmt: skip
def test_what_is_no_residual_is_refused(make, options, said):
    model = make()
    with pytest.raises(ValueError, match=said):
        compile_second_order(model, GaussNewton(model.net.parameters()), verbose=0, **options)


def test_other_optimizers_are_deepxdes_own():
    model = model_of()
    with pytest.raises(TypeError, match=r"got Adam; model\.compile takes"):
        compile_second_order(model, torch.optim.Adam(model.net.parameters()))
