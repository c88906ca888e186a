"""The command line: `latephase study`, `report`, `problems`, `bench`, `check`, `finish` and `tune`."""

from .app import app as app
