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


def test_what_integrations_need_is_pinned_and_is_no_other_build_of_torch():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line}
    page = (ROOT / "tests" / "integrations" / "requirements.txt").read_text(encoding="utf-8")
    needed = {line for line in page.splitlines() if not line.startswith("#")}
    assert len(needed) > 50
    assert needed <= pinned
    assert not {"torch", "torchvision", "torchaudio"} & needed
    assert not {"torchvision", "torchaudio"} & pinned
