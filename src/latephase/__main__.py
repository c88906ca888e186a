"""`python -m latephase` is the command `latephase`."""

from .cli import app

if __name__ == "__main__":
    app(prog_name="latephase")
