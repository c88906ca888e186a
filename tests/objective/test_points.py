"""Points drawn anew: when, how many, the same after an interruption; and residuals on points held out."""

import io
import json
import math

import pytest
import torch
from residual_cases import EDGE, INTERIOR, WEIGHTS, edge, network, objective_of, poisson, uniform
from torch import Tensor, nn

from latephase import RAD, Box, Fixed, GaussNewton, JSONLinesWriter, Objective, Points, SelfScaledBroyden

SQUARE = Box((0.0, 0.0), (1.0, 1.0))


def drawn_edge(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return SQUARE.surface(n, generator), torch.rand(n, 1, generator=generator, dtype=torch.float64)


DRAWERS = {"interior": SQUARE, "boundary": drawn_edge}


def values(model: nn.Module, points: Tensor) -> Tensor:
    return model(points)


@pytest.mark.parametrize(("every", "changes"), [(1, range(1, 8)), (3, (3, 6)), (7, (7,)), (None, ())])
def test_points_are_drawn_anew_after_so_many_steps(every, changes):
    objective = objective_of()
    points = Points(objective, {"interior": SQUARE}, every=every, held_out=0, seed=0)
    seen = [points.next() for _ in range(8)]
    assert seen[0] is objective
    assert [step for step in range(1, 8) if seen[step] is not seen[step - 1]] == list(changes)
    for step in changes:
        now, before = (seen[i].points_of("interior") for i in (step, step - 1))
        assert now.shape == (9, 2)
        assert not torch.isin(now, before).any()
        assert seen[step].points_of("boundary")[1].equal(EDGE[1])
    assert (points.steps, points.redraws, points.objective) == (8, len(changes), seen[-1])


def test_all_terms_keep_their_kind_and_number():
    points = Points(objective_of("transforms", microbatch_size=4), {"interior": SQUARE}, seed=0, every=2)
    assert [chunk.rows for chunk in points.redraw().chunks] == [4, 4, 1, 4]
    narrow = Objective.from_residuals(network().float(), {"a": (values, INTERIOR.float())})
    redrawn = Points(narrow, {"a": SQUARE}).redraw()
    assert redrawn.points_of("a").dtype == torch.float32


def test_seeds_tell_draws_apart_and_nothing_else_does():
    def first(seed: int | None, **options: int) -> Tensor:
        torch.manual_seed(3)
        return Points(objective_of(), DRAWERS, seed=seed, **options).redraw().points_of("interior")

    assert first(0).equal(first(0))
    assert first(0).equal(first(0, held_out=0))  # held-out points have a stream of their own
    assert first(None).equal(first(None))
    assert not torch.isin(first(0), first(1)).any()
    by_hand = torch.cat([SQUARE(40, torch.Generator().manual_seed(seed)) for seed in range(4)])
    assert not torch.isin(first(0), by_hand).any()
    points = Points(objective_of(), DRAWERS, seed=0)
    assert not torch.isin(points._held["interior"], points.redraw().points_of("interior")).any()


def test_a_drawer_that_draws_from_torch_itself_is_reproducible_and_disturbs_nothing():
    def draw(n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, 2, dtype=torch.float64)

    objective, before = objective_of(), torch.get_rng_state()
    twice = [Points(objective, {"interior": draw}, seed=0).redraw().points_of("interior") for _ in range(2)]
    assert twice[0].equal(twice[1])
    assert torch.get_rng_state().equal(before)


def run(
    steps: int, model: nn.Module, optimizer: GaussNewton, points: Points
) -> tuple[list[float], list[dict | None], list[Tensor]]:
    losses, reports, seen = [], [], []
    for _ in range(steps):
        objective = points.next()
        losses.append(float(optimizer.step(objective)))
        reports.append(points.report and points.report.as_dict())
        seen += [objective.points_of("interior"), objective.points_of("boundary")[1]]
    return losses, reports, seen + [p.detach().clone() for p in model.parameters()]


def started(seed: int) -> tuple[nn.Module, GaussNewton, Points]:
    model = network()
    adaptive = {"interior": RAD(candidates=3)}
    points = Points(
        objective_of(model=model), DRAWERS, every=2, watch=3, adaptive=adaptive, held_out=50, seed=seed, warn_above=1e9
    )
    return model, GaussNewton(model.parameters()), points


@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_run_equals_one_that_was_not_interrupted(stop):
    losses, reports, tensors = run(8, *started(0))
    parts = started(0)
    run(stop, *parts)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    resumed = started(99)
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    own_losses, own_reports, own_tensors = run(8 - stop, *resumed)
    assert own_losses == losses[stop:]
    assert own_reports == reports[stop:]
    assert all(map(torch.equal, own_tensors, tensors[2 * stop :]))
    assert reports[-1] is not None


def test_adaptive_points_go_where_the_residual_is():
    """A layer at x = 1, at the published share of it: half of the points by the residual, half anywhere."""

    def layer(model: nn.Module, x: Tensor) -> Tensor:
        return torch.exp((x - 1) / 0.02) + 1e-6 * model(x)

    model = nn.Linear(1, 1).double()
    objective = Objective.from_residuals(model, {"layer": (layer, uniform(200, 1))}, microbatch_size=64)
    share = {}
    for name, rule in {"rad": RAD(candidates=50), "uniform": None, "one": RAD(candidates=1)}.items():
        redrawn = Points(objective, {"layer": Box(0.0, 1.0)}, adaptive=rule, seed=0).redraw()
        share[name] = float((redrawn.points_of("layer") > 0.94).double().mean())
    assert share["rad"] == pytest.approx(0.5 * 0.06 + 0.5 * (1 - math.exp(-3)), abs=4 * 0.035)
    assert share["uniform"] == share["one"] == pytest.approx(0.06, abs=4 * 0.017)


def test_held_out_residuals_are_those_of_an_objective_on_these_points():
    objective = objective_of(weight_decay=3.0)
    points = Points(objective, {"interior": SQUARE}, held_out=40, seed=0, warn_above=math.inf)
    report = points.measure()
    assert objective.seed is None  # which a measurement leaves alone
    apart = objective.on({"interior": points._held["interior"]}).terms()
    expected = objective.terms()
    close = {"rel": 1e-13}  # sums of some dozen float64 terms in pieces of nine
    assert report.held_out_terms == pytest.approx({"interior": float(apart["interior"])}, **close)
    assert report.terms == pytest.approx({name: float(value) for name, value in expected.items()}, **close)
    assert report.residual == pytest.approx(sum(WEIGHTS[name] * float(x) for name, x in expected.items()), **close)
    assert report.held_out == pytest.approx(sum(WEIGHTS[name] * float(x) for name, x in apart.items()), **close)
    assert report.ratio == pytest.approx(report.held_out / report.residual, **close)


def test_residuals_at_points():
    objective = objective_of(microbatch_size=4)
    new = uniform(11, 2, seed=5)
    for given, at in ((None, INTERIOR), (new, new)):
        found = objective.residuals_at("interior", given)
        torch.testing.assert_close(found, poisson(objective.model, at.clone()).detach(), rtol=1e-13, atol=1e-13)
        assert not found.requires_grad
    assert objective.residuals_at("interior", new[:0]).shape == (0,)
    both = objective.residuals_at("boundary")
    torch.testing.assert_close(both, edge(objective.model, EDGE).detach(), rtol=1e-13, atol=1e-13)
    assert objective.points_of("boundary")[0].equal(EDGE[0])
    with pytest.raises(ValueError, match="no term 'inside'"):
        objective.residuals_at("inside")
    with pytest.raises(ValueError, match="from_residuals"):
        Objective(nn.Linear(2, 1), nn.MSELoss(), (torch.rand(3, 2), torch.rand(3, 1))).points_of("a")


def curve(model: nn.Module, x: Tensor) -> Tensor:
    return model(x) - torch.sin(3 * x)


def fitted(n: int) -> tuple[nn.Module, Points, GaussNewton]:
    """A network of 31 parameters on n points of a curve."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1)).double()
    objective = Objective.from_residuals(model, {"curve": (curve, uniform(n, 1, seed=1))})
    points = Points(objective, {"curve": Box(-2.0, 2.0)}, every=None, held_out=200, watch=20, seed=0)
    return model, points, GaussNewton(model.parameters())


def test_a_model_that_fits_its_points_alone_is_told_once():
    _, points, optimizer = fitted(5)  # on a part of the domain, too
    for _ in range(20):
        optimizer.step(points.next())
    with pytest.warns(UserWarning, match=r"after 20 steps the residual on held-out points, .* term 'curve'.* 31 para"):
        points.next()
    assert points.report is not None
    assert points.report.ratio > 1e3
    tight = points.objective
    points.measure()  # a second warning would be an error here
    points.objective = tight.on({"curve": points._held["curve"]})
    assert points.measure().ratio == pytest.approx(1, rel=1e-12)  # summed in other pieces
    points.objective = tight
    with pytest.warns(UserWarning, match="held-out"):
        points.measure()


def test_a_model_that_fits_the_curve_is_not_warned_of():
    _, points, optimizer = fitted(100)
    points.objective = points.objective.on({"curve": Box(-2.0, 2.0)(100, torch.Generator().manual_seed(7))})
    for _ in range(41):
        optimizer.step(points.next())
    assert points.report is not None
    assert points.report.residual < 1e-6
    assert points.report.ratio < 10


def test_the_warning_points_at_the_users_line():
    _, points, _ = fitted(5)
    points.warn_above = 1e-9
    with pytest.warns(UserWarning, match="held-out") as found:
        points.measure()
    assert found[0].filename == __file__


def test_a_residual_that_is_no_number_on_held_out_points_is_told():
    def pole(model: nn.Module, x: Tensor) -> Tensor:
        return model(x) * torch.where(x > 0.5, math.nan, 1.0)

    objective = Objective.from_residuals(nn.Linear(1, 1).double(), {"a": (pole, uniform(9, 1) / 2)})
    with pytest.warns(UserWarning, match="nan"):
        Points(objective, {"a": Box(0, 1)}, seed=0).measure()
    with pytest.raises(ValueError, match=r"residuals of term 'a' are not finite at .* candidates"):
        Points(objective, {"a": Box(0, 1)}, seed=0, adaptive=RAD()).redraw()


def test_adaptive_points_of_a_model_that_diverged_leave_the_telling_to_the_optimizer():
    points = Points(objective_of(), {"interior": SQUARE}, adaptive=RAD(), seed=0)
    with torch.no_grad():
        next(points.objective.model.parameters()).fill_(math.nan)
    assert points.redraw().points_of("interior").isfinite().all()


def test_few_points_at_every_step_carried_along_by_momentum():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1)).double()
    objective = Objective.from_residuals(model, {"curve": (curve, uniform(12, 1))})
    points = Points(objective, {"curve": Box(-2.0, 2.0)}, every=1, watch=50, held_out=300, seed=0)
    optimizer = GaussNewton(model.parameters(), lr=0.1, damping=Fixed(1e-3), momentum=0.8)
    start = points.measure().held_out
    for _ in range(60):
        optimizer.step(points.next())
    assert points.measure().held_out < start / 50
    assert points.redraws == 59


def test_self_scaled_broyden_keeps_on_over_redraws():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1)).double()
    objective = Objective.from_residuals(model, {"curve": (curve, uniform(60, 1))})
    points = Points(objective, {"curve": Box(-2.0, 2.0)}, every=10, adaptive=RAD(), held_out=300, seed=0)
    optimizer = SelfScaledBroyden(model.parameters())
    start = points.measure().held_out
    for _ in range(50):
        optimizer.step(points.next())
    assert points.measure().held_out < start / 50


def test_a_log_has_each_measurement_once(tmp_path):
    _, points, optimizer = fitted(100)
    points.warn_above = math.inf
    points.watch = 2
    points.measure()
    with JSONLinesWriter(tmp_path / "steps.jsonl", extra=points.measures) as writer:
        optimizer.register_step_post_hook(writer)
        for _ in range(6):
            optimizer.step(points.next())
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "held_out" in row] == [1, 3, 5]
    last, report = rows[4], points.report
    assert report is not None
    assert last["held_out/curve"] == last["held_out"] == report.held_out
    assert last["held_out_ratio"] == report.ratio
    # of the same parameters as the loss before the step; two sums of a hundred squares
    assert last["residual/curve"] == last["residual"] == pytest.approx(last["loss"], rel=1e-12)


def test_a_drawer_may_look_at_the_residuals_itself():
    points: Points | None = None

    def largest(n: int, generator: torch.Generator) -> Tensor:
        x = SQUARE(4 * n, generator)
        if points is None:
            return x[:n]
        return x[points.objective.residuals_at("interior", x).abs().topk(n).indices]

    points = Points(objective_of(), {"interior": largest}, seed=0)
    anywhere = Points(objective_of(), {"interior": SQUARE}, seed=0).redraw()
    assert points.redraw().terms()["interior"] > anywhere.terms()["interior"]
