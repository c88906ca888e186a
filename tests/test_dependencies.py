"""Every package that is installed has its licence in the docs."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BUILDS = {"torchvision", "torchaudio"}
"""Packages that are built for one build of torch, and break others that find them beside another."""


def brought(*requirements: str) -> set[str]:
    """Names of all packages that these bring along, as far as those are installed here; torch's own are left out."""
    found, waiting = set[str](), [Requirement(each).name for each in requirements]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found or name == "torch":
            continue
        found.add(name)
        try:
            needed = [Requirement(each) for each in importlib.metadata.requires(name) or ()]
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def test_every_package_of_the_constraints_has_a_row_with_its_licence():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    installed = [line.partition("==")[0] for line in lines if "==" in line]
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w.-]+) \| [^|]+ \| ([^|]+) \|$", page, flags=re.MULTILINE))
    assert len(installed) > 50
    assert sorted(rows.keys() - {"package"}) == sorted(installed)
    assert all(licence.strip() for licence in rows.values())


def test_what_integrations_need_is_pinned_and_is_no_other_build_of_torch():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line}
    page = (ROOT / "tests" / "integrations" / "requirements.txt").read_text(encoding="utf-8")
    needed = {line for line in page.splitlines() if not line.startswith("#")}
    assert len(needed) > 50
    assert needed <= pinned
    assert not {"torch", "torchvision", "torchaudio"} & needed
    assert not {"torchvision", "torchaudio"} & pinned


@pytest.mark.parametrize("extra", ["", *PROJECT["optional-dependencies"]])
def test_no_extra_brings_another_build_of_torch(extra):
    asked = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    assert not BUILDS & brought(*asked)


def test_the_walk_finds_what_a_package_brings():
    assert {"tensorboard", "numpy", "werkzeug", "markupsafe"} <= brought("tensorboard>=2.18")


def test_what_is_installed_by_default_is_little():
    assert not {"pyarrow", "scipy", "scikit-learn", "optuna", "ray", "tensorboard"} & brought(*PROJECT["dependencies"])
