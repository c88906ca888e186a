"""Whether the wheel does by itself what the README says: run by `make wheel` with the Python that it is installed in.

The current directory must not be the repository's root, where the source would be found first.
"""

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEVELOPERS = ("pytest", "scipy", "sklearn", "pyarrow", "optuna", "tensorboard", "curvlinops", "ray")
STUDY = """
name = "small"
problem = "digits"
seeds = [0]
checkpoints = [2]
evaluations = 2

[budget]
unit = "steps"
amount = 2

[training]
epochs = 2

[[strategies]]
kind = "first_order"
name = "constant"
label = "SGD, constant"
schedule = "constant"

[[strategies]]
kind = "kfac"
name = "kfac"
label = "K-FAC"
batch_size = 64
"""


def run(*arguments: str, folder: str) -> str:
    """What a command prints; ends everything where it fails."""
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=900)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)[:200]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Look for what should be there and what should not; run the README's example and the commands."""
    spec = importlib.util.find_spec("latephase")
    if spec is None or spec.origin is None or not Path(spec.origin).is_relative_to(sys.prefix):
        sys.exit(f"latephase is not the wheel's: {spec}")
    if not (Path(spec.origin).parent / "py.typed").is_file():
        sys.exit("the wheel has no py.typed: type checkers would take nothing from it")
    if there := [name for name in DEVELOPERS if importlib.util.find_spec(name)]:
        sys.exit(f"more is installed than the wheel asks for, so that nothing is shown: {', '.join(there)}")
    command = str(Path(sys.executable).with_name("latephase"))
    example = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL))
    with tempfile.TemporaryDirectory() as folder:
        if "held-out loss" not in run(sys.executable, "-W", "error", "-c", example, folder=folder):
            sys.exit("the README's example says nothing of a held-out loss")
        for arguments in ((command, "--help"), (sys.executable, "-m", "latephase", "--help")):
            if "finish" not in run(*arguments, folder=folder):
                sys.exit(f"{' '.join(arguments)} does not name the commands")
        if "digits" not in run(command, "problems", folder=folder):
            sys.exit("latephase problems lists no digits")
        (Path(folder) / "small.toml").write_text(STUDY, encoding="utf-8")
        run(command, "study", "small.toml", "--out", "out", folder=folder)
        if not (Path(folder) / "out" / "report.html").is_file():
            sys.exit("a study wrote no page")


if __name__ == "__main__":
    main()
