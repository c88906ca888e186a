"""What every kind of strategies keeps; a kind's tests inherit it and say two things: `table` and `expected`."""

import itertools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w
import torch
from every_kind import bits, context_at
from small_studies import first_order, study_of

from latephase.records.files import read_journal
from latephase.study.config import ConfigError, parse_study
from latephase.study.outline import About
from latephase.study.page.page import render_page
from latephase.study.performing.run import perform_run
from latephase.study.performing.runs import Conditions, RunKey
from latephase.study.performing.train import train
from latephase.study.results import load_results, score_results
from latephase.study.strategies import REGISTRY, copied, start_strategy

STEPS = 4
PASSES = ("values", "gradients", "forms", "products")
SEEDS, SEED = (0, 1, 2), 7


@dataclass(frozen=True)
class Expected:
    """What a table is to be.

    Attributes:
        about: what the rest knows of its kind.
        samples: rows that each of its first steps draws.
        passes: the kinds of passes that its first steps make.
    """

    about: About
    samples: int
    passes: tuple[str, ...]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a training of the small noisy problem, with a checkpoint at epoch 3."""
    directory = tmp_path_factory.mktemp("trained")
    train(directory, study_of(first_order(), seeds=[0]))
    return directory


def rows_of(folder: Path) -> list[dict]:
    """The rows of a run, without what the clock says and the attempt that wrote them."""
    rows = [row for row in read_journal(folder / "rows.jsonl") if row["event"] != "start"]
    return [{k: v for k, v in row.items() if "seconds" not in k and k not in ("attempt", "check")} for row in rows]


class StrategyContract:
    """A strategy as a study meets it. Inherit, and supply `table` and `expected`."""

    def table(self) -> dict:
        """Its table in a study's file, for the small noisy problem."""
        raise NotImplementedError

    def expected(self) -> Expected:
        """What that is to be."""
        raise NotImplementedError

    @pytest.fixture
    def study(self):
        return study_of(self.table(), seeds=list(SEEDS))

    @pytest.fixture
    def context(self, study, trained):
        return context_at(study, trained, seed=SEED)

    def test_its_table_comes_back_from_toml(self, study):
        (strategy,) = study.strategies
        again = parse_study(tomllib.loads(study.toml()), "again")
        assert again == study
        given = self.table()
        assert {key: strategy.model_dump(exclude_unset=True)[key] for key in given} == given
        assert type(strategy) is REGISTRY[strategy.kind]

    def test_an_unknown_key_is_named(self):
        with pytest.raises(ConfigError, match=r"unknown key strategies\.0\.lable \(did you mean 'label'\?\)"):
            study_of(self.table() | {"lable": "x"})

    def test_a_missing_key_is_named(self):
        table = {key: value for key, value in self.table().items() if key != "label"}
        with pytest.raises(ConfigError, match=r"missing key strategies\.0\.label: what it is called in tables"):
            study_of(table)

    def test_it_starts_at_the_checkpoint_whatever_became_of_the_model(self, study, context):
        with torch.no_grad():
            for parameter in context.model.parameters():
                parameter.add_(1.0)
        strategy = start_strategy(study.strategies[0], context)
        assert bits(copied(context.model.state_dict())) == bits(context.checkpoint["model"])
        before = bits(context.checkpoint["model"])
        losses = [
            (strategy.step(i / STEPS), bits(copied(strategy.finished(copied(strategy.held())))))[1] for i in (0, 1)
        ]
        assert losses[0] != losses[1]
        assert bits(context.checkpoint["model"]) == before

    def test_two_starts_are_alike_bit_for_bit(self, study, trained):
        ends = []
        for _ in range(2):
            strategy = start_strategy(study.strategies[0], context_at(study, trained, seed=SEED))
            for i in range(STEPS):
                strategy.step(i / STEPS)
            ends.append(bits(copied(strategy.held())))
        assert ends[0] == ends[1]

    def test_its_steps_are_counted(self, study, context):
        expected, strategy = self.expected(), start_strategy(study.strategies[0], context)
        counted = [context.work.as_dict()]
        for i in range(STEPS):
            strategy.step(i / STEPS)
            counted.append(context.work.as_dict())
        assert counted[1]["samples"] == expected.samples
        assert all(after["samples"] > before["samples"] for before, after in itertools.pairwise(counted))
        made = tuple(name for name in PASSES if counted[-1][name])
        assert made == expected.passes
        allowed = {name for single in study.strategies[0].singles for name in single.about.counts}
        assert set(made) <= allowed

    def test_a_run_that_broke_off_gets_the_same_rows(self, study, trained, tmp_path):
        (tmp_path / "training").symlink_to(trained / "training")
        conditions, key = Conditions(tmp_path, study, STEPS, 0.5, {}), RunKey(3, study.strategies[0], SEED)
        assert perform_run(conditions, key) == "finished"
        folder = tmp_path / "runs" / key.run_id
        whole = rows_of(folder)
        assert [row["step"] for row in whole if row["event"] == "evaluation"] == list(range(STEPS + 1))
        lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "rows.jsonl").write_text("".join(lines[: len(lines) // 2]), encoding="utf-8")
        (folder / "status.json").unlink()
        assert perform_run(conditions, key) == "finished"
        assert rows_of(folder) == whole

    def test_results_know_what_it_is_and_the_page_names_it(self, study, write_study):
        root, told = write_study(), tomllib.loads(study.toml())
        plan = tomllib.loads((root / "study.toml").read_text(encoding="utf-8"))
        plan["strategies"] += [told["strategies"][0] | {"name": "the-one", "label": "The one"}]
        (root / "study.toml").write_text(tomli_w.dumps(plan | {"kinds": told["kinds"]}), encoding="utf-8")
        results = load_results(root)
        strategy, about = results.plan.strategies[-1], self.expected().about
        assert (strategy.title, strategy.is_second_order, strategy.has_rate) == about[:3]
        page = render_page(results, score_results(results), {})
        kinds = page[page.index('aria-label="Strategies"') :]
        assert re.search(r"The one\s*</th>\s*<td>(.*?)</td>", kinds).group(1) == about.title
