"""Every package that is installed has its licence in the docs."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_package_of_the_constraints_has_a_row_with_its_licence():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    installed = [line.partition("==")[0] for line in lines if "==" in line]
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w.-]+) \| [^|]+ \| ([^|]+) \|$", page, flags=re.MULTILINE))
    assert len(installed) > 50
    assert sorted(rows.keys() - {"package"}) == sorted(installed)
    assert all(licence.strip() for licence in rows.values())
