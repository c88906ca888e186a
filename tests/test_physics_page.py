"""The page of physics-informed networks and the suite's settings say what the committed tuning found."""

import json
import re
import statistics
import tomllib
from pathlib import Path

import pytest

from latephase.study.suite import read_scores

ROOT = Path(__file__).parent.parent
TUNED = json.loads((ROOT / "benchmarks" / "results" / "physics_tuning.json").read_text(encoding="utf-8"))["trials"]
TARGETS = json.loads((ROOT / "benchmarks" / "results" / "physics_targets.json").read_text(encoding="utf-8"))
SUITE = tomllib.loads((ROOT / "src/latephase/study/studies/physics.toml").read_text(encoding="utf-8"))
NAMES = {
    "Adam, cosine": "adam",
    "SOAP, cosine": "soap",
    "L-BFGS of torch, strong Wolfe": "lbfgs",
    "`SelfScaledBroyden`": "broyden",
    "`HessianFree`": "hessian-free",
    "NysNewton-CG's recipe: Hessian, Nystrom's preconditioner, Armijo": "nncg",
    "`GaussNewton`": "gauss-newton",
    "SPRING": "spring",
    "`KFAC`": "kfac",
}
SCORES = read_scores(ROOT / "docs" / "studies" / "physics" / "scores.json")
SMOOTH = ("poisson2d", "poisson5d", "poisson10d", "helmholtz", "heat1d", "heat4d")
COLUMNS = [
    "gauss-newton",
    "gauss-newton-fresh",
    "spring",
    "broyden",
    "lbfgs",
    "soap",
    "kfac",
    "hessian-free",
    "nncg",
    "adam",
]
OPTIMIZERS = {"gauss_newton": "`GaussNewton`", "self_scaled_broyden": "`SelfScaledBroyden`"}


def test_the_table_is_that_of_the_trials():
    page = (ROOT / "docs" / "physics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([\d.e+-]+) \| ([\d.e+-]+) \|$", page, flags=re.MULTILINE)
    assert {NAMES[name] for name, _, _ in rows} == set(TUNED)
    for name, best, middle in rows:
        losses = [trial["valid_loss"] for trial in TUNED[NAMES[name]]]
        assert (best, middle) == (f"{min(losses):.1e}", f"{statistics.median(losses):.1e}")


def given(table, path):
    """The value at a path with dots in a table; numbers in it are places in a list."""
    for key in path.split("."):
        table = table[int(key)] if key.isdigit() else table[key]
    return table


@pytest.mark.parametrize("strategy", SUITE["strategies"], ids=lambda table: table["name"])
def test_the_suite_has_the_best_settings_that_were_found(strategy):
    best = min(TUNED[strategy["name"].removesuffix("-fresh")], key=lambda trial: trial["valid_loss"])
    where = strategy if "parts" not in strategy else strategy["parts"][1]["strategy"]
    for path, value in best["settings"].items():
        told = given(where, path)
        if isinstance(told, str):
            assert told == value
        else:
            assert told == pytest.approx(float(value), rel=0.03)  # two digits in the suite's file


def rows_of(heading, columns):
    """The cells of the page's table with so many columns below a heading, without its first two lines."""
    page = (ROOT / "docs" / "physics.md").read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    lines = [line[2:-2].split(" | ") for line in page.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    return [cells for cells in lines if len(cells) == columns][1:]


def test_the_table_of_targets_is_that_of_the_runs():
    rows = []
    for run in TARGETS["runs"]:
        setting, end, reached = run["setting"], run["end"], run["reached"]
        numbers = [f"{setting['aim']:.1e}", "not" if reached is None else f"{reached:.0f} s", f"{end['error']:.1e}"]
        numbers += [f"{end['held_out']:.1e}", f"{end['seconds']:.0f} s"]
        about = [setting["problem"].removeprefix("pinn_"), str(run["seed"]), OPTIMIZERS[setting["method"]]]
        rows.append([*about, f"{run['parameters']:,}", *numbers])
    assert rows_of("Published errors", 9) == rows


def test_a_run_ends_with_its_lowest_held_out_residual_within_15_minutes():
    for run in TARGETS["runs"]:
        curve = run["curve"]
        assert run["end"] == min(curve, key=lambda line: line["held_out"])
        below = [line["seconds"] for line in curve if line["error"] < run["setting"]["aim"]]
        assert run["reached"] == (below[0] if below else None)
        assert curve[-1]["seconds"] < run["limit"] + 10
        assert run["limit"] <= 900


def test_the_settings_that_were_tried_are_told():
    rows = [
        [each["equation"], f"`{each['method']}`", each["settings"], str(each["seconds"])]
        + [f"{each[key]:.1e}" for key in ("error", "held_out")]
        for each in TARGETS["tried"]
    ]
    assert rows_of("Published errors", 6) == rows


def test_the_table_of_the_suite_is_that_of_its_scores():
    rows = []
    for case in SCORES.cases:
        middles = [case.median(name) for name in COLUMNS]
        cells = [f"{middle:.1e}" for middle in middles]
        cells[middles.index(min(middles))] = f"**{cells[middles.index(min(middles))]}**"
        rows.append([case.problem.removeprefix("pinn_"), *cells])
        assert {len(case.values[name]) for name in COLUMNS} == {3}
    assert rows_of("Twelve equations", 11) == rows


def test_what_the_page_says_of_the_suite():
    newton = COLUMNS[:3]
    for case in SCORES.cases:
        lowest = min(case.median(name) for name in newton)
        if case.problem.removeprefix("pinn_") in SMOOTH:
            assert lowest == min(case.median(name) for name in COLUMNS)
            assert lowest < case.median("lbfgs") / 10
            assert lowest < case.median("adam") / 100
    assert sum(case.median("spring") > 0.9 for case in SCORES.cases) == 9


def test_the_last_errors_of_burgers_are_told():
    page = (ROOT / "docs" / "physics.md").read_text(encoding="utf-8").replace("\n", " ")
    for run in TARGETS["runs"]:
        if run["setting"]["problem"] == "pinn_burgers":
            late = [line["error"] for line in run["curve"] if line["seconds"] >= run["limit"] - 300]
            for error in (min(late), max(late), run["curve"][-1]["error"]):
                assert f"{error:.1e}".replace("e-0", "e-") in page
