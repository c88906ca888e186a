"""Examples that need another package run as printed, each in a process of its own, and are short."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = {
    page: (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for page in ("integrations", "finish")
}
EXAMPLES = re.findall(r"^```python needs ([^\n]+)\n(.*?)^```$", "".join(PAGES.values()), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("needs", "code"), EXAMPLES, ids=[needs for needs, _ in EXAMPLES])
def test_an_example_runs_as_printed(needs, code, tmp_path):
    for package in needs.split():
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "DDE_BACKEND": "pytorch"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | offline,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [code for _, code in EXAMPLES], ids=[needs for needs, _ in EXAMPLES])
def test_an_example_has_at_most_fifteen_lines(code):
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_there_are_examples():
    counts = {page: text.count("```python needs") for page, text in PAGES.items()}
    assert counts["integrations"] > 0
    assert counts["finish"] > 0
    assert sum(counts.values()) == len(EXAMPLES)
