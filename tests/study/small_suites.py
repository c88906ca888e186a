"""Suites of the small problems, and scores of suites written by hand."""

from pathlib import Path
from typing import Any

from rich.console import Console
from small_studies import custom

from latephase.study.outline import About
from latephase.study.performing import StudyProgress
from latephase.study.results import Strategy
from latephase.study.suite.conduct import conduct_suite, resolve_suite
from latephase.study.suite.config import Suite, parse_suite
from latephase.study.suite.scores import Case, SuiteScores, Value

SMOOTH = "small_problems:smooth"
FIVE = {"name": SMOOTH, "folder": "five", "kind": "regression"}
SEVEN = {"name": SMOOTH, "folder": "seven", "problem_options": {"width": 7}, "budget": {"amount": 4}}


def suite_table(*problems: Any, **changes: Any) -> dict[str, Any]:
    """The table of a suite: two problems, two seeds, two strategies, eight and four steps."""
    return {
        "name": "pair",
        "description": "Two widths.",
        "problems": list(problems or (FIVE, SEVEN)),
        "score": "test_relative_l2_error",
        "seeds": [0, 1],
        "budget": {"unit": "steps", "amount": 8},
        "evaluations": 4,
        "checkpoints": [0],
        "training": {"epochs": 1},
        "fresh_weights": True,
        "strategies": [custom("Plain", "slow", lr=0.001), custom("Plain", "fast", lr=0.1)],
    } | changes


def suite_of(*problems: Any, **changes: Any) -> Suite:
    return resolve_suite(parse_suite(suite_table(*problems, **changes), "pair.toml"))


def conducted(suite: Suite, directory: Path, monkeypatch: Any, **options: Any) -> list[str]:
    """Conduct a suite; the pages of its studies, which have tests of their own, are left out."""
    monkeypatch.setattr("latephase.study.suite.conduct.write_report", lambda directory: directory / "report.html")
    with StudyProgress(Console(quiet=True)) as progress:
        return conduct_suite(suite, directory, progress, **options)[1]


def case(name: str, values: dict[str, list[Any]], **changes: Any) -> Case:
    """A row with these final values by strategy; a text in place of a number is how the run ended."""
    rows = {
        strategy: [
            Value(seed, each, None, None) if isinstance(each, str) else Value(seed, "finished", each, 1.0)
            for seed, each in enumerate(row)
        ]
        for strategy, row in values.items()
    }
    settings = {
        "folder": name,
        "problem": name,
        "title": f"The problem {name}",
        "kind": "",
        "parameters": 1234,
        "rows": 100,
        "epoch": 0,
        "measure": "test_loss",
        "higher_is_better": False,
        "unit": "seconds",
        "budget": 60.0,
        "dtype": "float64",
        "scale": 1.0,
    }
    return Case(**(settings | changes), values=rows)


def scores_with(*cases: Case, **changes: Any) -> SuiteScores:
    """The scores of a suite with these rows; the first strategy is the baseline."""
    names = list(dict.fromkeys(name for each in cases for name in each.values))
    strategies = tuple(Strategy(name, "custom", name.upper(), {}, {"custom": About("your own")}) for name in names)
    settings = {
        "name": "known",
        "description": "Known & <answers>.",
        "baseline": names[0],
        "strategies": strategies,
        "cases": cases,
        "troubles": {},
        "machine": {"device": "cpu", "cores": 2},
    }
    return SuiteScores(**(settings | changes))
