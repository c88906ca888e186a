"""Every kind of strategies keeps the contract, is documented, and is spelt nowhere but in its own file."""

import ast
import importlib
from pathlib import Path

import pytest
from every_kind import CHAIN
from small_studies import custom, first_order, hessian_free
from strategy_contract import Expected, StrategyContract, trained

import latephase
from latephase.study.outline import About
from latephase.study.strategies import REGISTRY

__all__ = ["trained"]
STUDY = Path(latephase.__file__).parent / "study"


class TestFirstOrder(StrategyContract):
    def table(self):
        return first_order("cosine")

    def expected(self):
        return Expected(About("first order"), 24, ("gradients",))


class TestAveraging(StrategyContract):
    def table(self):
        return first_order("averaging")

    def expected(self):
        return Expected(About("first order"), 24, ("gradients",))


class TestExponentialAverage(StrategyContract):
    def table(self):
        return first_order("ema", horizon=0.5, optimizer="adamw", options={"weight_decay": 0.1})

    def expected(self):
        return Expected(About("first order"), 24, ("gradients",))


class TestMuon(StrategyContract):
    def table(self):
        return first_order("linear", name="muon", optimizer="muon", lr=0.01, redraw=2, options={"momentum": 0.9})

    def expected(self):
        return Expected(About("first order"), 24, ("gradients",))


class TestSOAP(StrategyContract):
    @pytest.fixture(autouse=True)
    def _needs_the_package(self):
        pytest.importorskip("pytorch_optimizer", reason="SOAP is of an optional package")

    def table(self):
        return first_order("one_minus_sqrt", name="soap", optimizer="soap", options={"precondition_frequency": 2})

    def expected(self):
        return Expected(About("first order"), 24, ("gradients",))


class TestScheduleFree(StrategyContract):
    @pytest.fixture(autouse=True)
    def _needs_the_package(self):
        pytest.importorskip("schedulefree", reason="schedule-free AdamW is of an optional package")

    def table(self):
        return first_order(name="free", optimizer="schedule_free", options={"warmup_steps": 2})

    def expected(self):
        return Expected(About("first order"), 24, ("gradients",))


class TestHessianFree(StrategyContract):
    def table(self):
        return hessian_free()

    def expected(self):
        return Expected(About("Hessian-free", True, False), 48, ("values", "gradients", "products"))


class TestGaussNewton(StrategyContract):
    def table(self):
        options = {"solver": {"side": "dual"}, "damping": {"kind": "fixed", "value": 0.1}, "momentum": 0.9}
        return {"kind": "gauss_newton", "name": "gn", "label": "GN", "batch_size": 24, "options": options}

    def expected(self):
        return Expected(About("Gauss-Newton", True, False), 24, ("values", "gradients"))


class TestAdamQLR(StrategyContract):
    def table(self):
        return {"kind": "adamqlr", "name": "adamqlr", "label": "A", "batch_size": 48, "options": {"lr_clip": 0.1}}

    def expected(self):
        return Expected(About("AdamQLR", True), 48, ("values", "gradients", "forms"))


class TestSGDQLR(StrategyContract):
    def table(self):
        return {"kind": "sgdqlr", "name": "sgdqlr", "label": "S", "options": {"curvature": "hessian", "lr_clip": 0.1}}

    def expected(self):
        return Expected(About("SGDQLR", True), 96, ("values", "gradients", "products"))


class TestKFAC(StrategyContract):
    def table(self):
        return {"kind": "kfac", "name": "kfac", "label": "K", "batch_size": 48, "options": {"adapt_period": 2}}

    def expected(self):
        return Expected(About("K-FAC", True), 48, ("values", "gradients", "forms"))


class TestLBFGS(StrategyContract):
    def table(self):
        return {"kind": "lbfgs", "name": "lbfgs", "label": "L", "batch_size": 48, "options": {"max_iter": 3}}

    def expected(self):
        return Expected(About("L-BFGS", True, False), 48, ("gradients",))


@pytest.mark.filterwarnings("ignore:SelfScaledBroyden on parameters in torch.float32")
class TestSelfScaledBroyden(StrategyContract):
    def table(self):
        return {"kind": "self_scaled_broyden", "name": "ssb", "label": "S", "options": {"line_search": {"c2": 0.5}}}

    def expected(self):
        return Expected(About("self-scaled Broyden", True, False), 96, ("gradients",))


class TestLatePhase(StrategyContract):
    def table(self):
        return {"kind": "late_phase", "name": "hand-over", "label": "LatePhase", "wait": True, "held_out": 0.25}

    def expected(self):
        return Expected(About("hand-over", True, False), 24, ())


class TestCustom(StrategyContract):
    def table(self):
        return custom("Plain")

    def expected(self):
        return Expected(About("your own"), 24, ("gradients",))


class TestChain(StrategyContract):
    def table(self):
        return CHAIN

    def expected(self):
        return Expected(About("chain", True, False), 24, ("values", "gradients", "products"))


def test_every_kind_keeps_the_contract():
    for path in Path(__file__).parent.glob("test_*.py"):  # a kind's tests may stand in a file of their own
        if "(StrategyContract)" in path.read_text(encoding="utf-8"):
            importlib.import_module(path.stem)
    assert {contract().table()["kind"] for contract in StrategyContract.__subclasses__()} >= set(REGISTRY)


def test_every_kind_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "study.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text[text.index("| kind | keys |") :].splitlines() if line.startswith("|")]
    assert {kind for kind in REGISTRY if not any(f"`{kind}`" in row for row in rows)} == set()


def spelt(path: Path) -> set[str]:
    """The kinds whose names stand in a file's code, docstrings and what earlier studies meant left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    left_out = {node for part in ast.walk(tree) if _is_earlier(part) for node in ast.walk(part)}
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and n not in left_out} & set(REGISTRY)


def _is_earlier(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "EARLIER"


def test_a_kind_is_spelt_in_its_own_file_alone():
    found = {path.relative_to(STUDY).as_posix(): kinds for path in STUDY.rglob("*.py") if (kinds := spelt(path))}
    own = {f"strategies/{kind}.py": {kind} for kind in REGISTRY if kind not in ("adamqlr", "sgdqlr")}
    found["strategies/hessian_free.py"].discard("late_phase")  # there a preset
    assert found == own | {"strategies/quadratic_rate.py": {"adamqlr", "sgdqlr"}}
