"""Tune the initial damping of Hessian-free on the `digits` problem, by the same means as the rate of SGD was tuned.

    python benchmarks/tune_digits_damping.py --out runs/digits-damping

A study of its own, whose training has another seed than that of the study `digits`: from the last checkpoint, every
pair of batch size and initial damping goes on under the study's budget, with three seeds. The damping with the lowest
validation loss, averaged over batch sizes and seeds, is chosen; the test split decides nothing. All else stays at
HessianFree's defaults. Takes about three minutes on two cores; running it again goes on where it stopped.
"""

import argparse
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from latephase.study.config import Study, parse_study, read_study
from latephase.study.performing.conducting import conduct, resolve
from latephase.study.performing.progress import StudyProgress
from latephase.study.results.load import Results, finite_values, load_results

BATCH_SIZES = (128, 384, 896)
DAMPINGS = (1.0, 0.1, 0.01, 0.001)
TRAINING_SEED = 1


def tuning_study() -> Study:
    """The study `digits` with another training seed, its last checkpoint only, and the grid as strategies."""
    table = read_study("digits").model_dump(exclude_none=True)
    table |= {"name": "digits-damping", "checkpoints": [table["training"]["epochs"]]}
    table["training"]["seed"] = TRAINING_SEED
    table["strategies"] = [
        {
            "kind": "hessian_free",
            "name": f"hf-{size}-{damping}",
            "label": f"m = {size}, damping {damping}",
            "batch_size": size,
            "options": {"damping": damping},
        }
        for size in BATCH_SIZES
        for damping in DAMPINGS
    ]
    return resolve(parse_study(table, "digits-damping"))


def best_validation_losses(results: Results) -> dict[tuple[int, float], list[float]]:
    """The lowest validation loss within the budget of each run, by batch size and damping."""
    found: dict[tuple[int, float], list[float]] = {}
    for run in results.runs:
        options = run.strategy.options
        key = (options["batch_size"], options["damping"])
        found.setdefault(key, []).append(min(finite_values(run.evaluations, "valid_loss")))
    return found


def main() -> None:
    """Run what is left of the study and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/digits-damping"), help="folder of the study")
    directory = parser.parse_args().out
    console = Console()
    with StudyProgress(console) as progress:
        conduct(tuning_study(), directory, progress)
    results = load_results(directory)
    losses = best_validation_losses(results)
    start = results.checkpoint(results.plan.checkpoints[0])["valid_loss"]
    table = Table("damping", *(f"m = {size}" for size in BATCH_SIZES), "mean")
    table.title = f"best validation loss, mean over seeds (checkpoint: {start:.4f})"
    means = {damping: fmean(fmean(losses[size, damping]) for size in BATCH_SIZES) for damping in DAMPINGS}
    for damping in DAMPINGS:
        cells = [f"{fmean(losses[size, damping]):.4f}" for size in BATCH_SIZES]
        table.add_row(str(damping), *cells, f"{means[damping]:.4f}")
    console.print(table)
    console.print(f"Chosen damping: {min(means, key=lambda damping: means[damping])}")


if __name__ == "__main__":
    main()
