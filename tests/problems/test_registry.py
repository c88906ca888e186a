import pickle
import re

import pytest
import torch

from latephase import problems
from latephase.problems import ProblemError

USERS = """
from torch import nn
from latephase import problems
from latephase.problems import Problem, TrainingSetting

def make(width=3):
    digits = problems.get("digits")
    return Problem("mine", 2, "t", "d", digits.model, nn.CrossEntropyLoss(), digits.load, TrainingSetting(0.1, 8, 2))

def other():
    return 3

def breaks():
    raise RuntimeError("no disk")
"""


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    (tmp_path / "users_problem.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_names_are_found_and_distinct():
    names = problems.names()
    assert len(set(names)) == len(names) >= 28
    for name in names:
        problem = problems.get(name)
        assert problem.name == name
        assert problem.options == {}


@pytest.mark.parametrize("name", problems.names())
def test_problem_is_complete(name):
    """Fresh models need no data, are as large as described, and follow torch's generator."""
    problem = problems.get(name)
    torch.manual_seed(0)
    model = problem.model()
    size = sum(p.numel() for p in model.parameters())
    described = re.search(r"([\d,]+) parameters", problem.description)
    assert described is None or int(described[1].replace(",", "")) == size
    torch.manual_seed(0)
    again = problem.model()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert problem.version >= 1
    assert problem.title
    assert problem.source


@pytest.mark.parametrize("name", problems.names())
def test_problem_survives_pickling(name):
    problem = problems.get(name)
    copy = pickle.loads(pickle.dumps(problem))
    assert (copy.name, copy.version, copy.training) == (problem.name, problem.version, problem.training)
    torch.manual_seed(1)
    shapes = [p.shape for p in problem.model().parameters()]
    assert [p.shape for p in copy.model().parameters()] == shapes


def test_unknown_name_lists_the_known_and_suggests():
    with pytest.raises(ProblemError, match=r"unknown problem 'digit'; known problems: digits, .* mean 'digits'\?"):
        problems.get("digit")
    with pytest.raises(ValueError, match=r"PACKAGE\.MODULE:FACTORY\.$"):
        problems.get("zzzzzz")


def test_options_are_kept_and_checked():
    problem = problems.get("svhn_wrn164", bn_momentum=0.1, rows=1000)
    assert problem.options == {"bn_momentum": 0.1, "rows": 1000}
    norms = [m for m in problem.model().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == {0.1}
    with pytest.raises(ProblemError, match="has no option 'bn_momentom'; it has rows, augment"):
        problems.get("svhn_wrn164", bn_momentom=0.1)
    with pytest.raises(ProblemError, match="bn_momentum must be above 0"):
        problems.get("svhn_wrn164", bn_momentum=0.0)
    with pytest.raises(ProblemError, match="normalization must be 'channel' or 'image', got 'pixel'"):
        problems.get("cifar10_3c3d", normalization="pixel")
    with pytest.raises(ProblemError, match="has no option 'rows'; it has none"):
        problems.get("digits", rows=5)


@pytest.mark.usefixtures("users_module")
def test_users_own_problem():
    problem = problems.get("users_problem:make", width=4)
    assert (problem.name, problem.version, problem.options) == ("users_problem:make", 2, {"width": 4})
    assert len(problem.load().train[1]) == 1197


@pytest.mark.usefixtures("users_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("users_problem:other", "must return a latephase.problems.Problem, got int"),
        ("users_problem:breaks", "cannot be made: RuntimeError: no disk"),
        ("users_problem:absent", "has no function 'absent'; it has make, other, breaks"),
        ("no_such_module_here:make", "there is no module 'no_such_module_here'"),
        ("a b:c", "is not of the form PACKAGE.MODULE:FACTORY"),
    ],
)
def test_users_problem_that_fails(name, message):
    with pytest.raises(ProblemError, match=message):
        problems.get(name)


@pytest.mark.usefixtures("users_module")
def test_entry_points_of_installed_packages(tmp_path):
    info = tmp_path / "somebodys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[latephase.problems]\nsomebodys = users_problem:make\nbroken = users_problem:absent\n"
        "digits = users_problem:other\n"
    )
    assert problems.names()[-2:] == ["broken", "somebodys"]
    assert problems.get("somebodys").version == 2
    assert problems.get("digits").title == "CNN on digits"  # this package's own names cannot be taken
    with pytest.raises(ProblemError, match="'broken' of users_problem:absent cannot be loaded"):
        problems.get("broken")
