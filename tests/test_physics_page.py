"""The page of physics-informed networks and the suite's settings say what the committed tuning found."""

import json
import re
import statistics
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUNED = json.loads((ROOT / "benchmarks" / "results" / "physics_tuning.json").read_text(encoding="utf-8"))["trials"]
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
