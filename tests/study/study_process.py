"""`latephase study` for a process that tests kill or starve; the report is left out where REPORT=no."""

import os

from latephase.cli import app
from latephase.study.performing import conducting as conduct

if __name__ == "__main__":
    if os.environ.get("REPORT") == "no":
        conduct.write_report = lambda directory: directory / "report.html"
    app()
