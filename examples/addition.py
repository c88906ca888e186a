"""The addition task: a recurrent network must add two numbers that it saw up to fifty steps ago.

Hochreiter and Schmidhuber's problem (1997) in the form of Martens and Sutskever (2011): at every time step the network
sees a random number and a mark; at the end it must give the sum of the two marked numbers. Gradients fade over so many
steps, and first-order methods need a good initialisation and long training. Hessian-free steps with structural damping,
which keeps the hidden states from running away within one step, learn it.

    python examples/addition.py --time-limit 900 --structural-damping 0.0333 0

writes a file of JSON lines for each mu, one line per step, and a picture, into runs/addition.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn

from latephase import CG, GGN, HessianFree, Objective
from latephase.problems.architectures.recurrent import Recurrent
from latephase.problems.pathological import TOLERANCE, marked_numbers

LEARNED = 1e-3
"""Share of wrong sums below which the task counts as learned (Martens and Sutskever 2011)."""


def train(args: argparse.Namespace, mu: float, log: Path) -> None:
    """Train one network until the time is over or the task is learned, one line of the log per step."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    model, loss = Recurrent(2, 1, args.units), nn.MSELoss()
    optimizer = HessianFree(
        model.parameters(),
        damping=args.damping,
        curvature=GGN(structural_damping=mu),
        solver=CG(max_iter=args.cg_max_iter),
    )
    unseen, sums = marked_numbers(2000, args.length, torch.Generator().manual_seed(10**6))
    log.write_text("")
    spent, step, wrong = 0.0, 0, 1.0
    while spent < args.time_limit and step < args.max_steps and wrong >= LEARNED:
        started = time.perf_counter()
        batch, held_out = (
            Objective(model, loss, marked_numbers(args.sequences, args.length, generator), weight_decay=2e-5)
            for _ in range(2)
        )
        curvature = batch.subsample(args.curvature_sequences, generator)
        optimizer.step(batch, evaluation=held_out, curvature_objective=curvature)
        spent += time.perf_counter() - started
        step += 1
        with torch.no_grad():
            error = model(unseen).outputs - sums
        squared, wrong = float(error.square().mean()), float((error.abs() > TOLERANCE).float().mean())
        report = optimizer.report
        line = {"seconds": round(spent, 2), "step": step, "mu": mu, "squared_error": squared, "wrong": wrong}
        with log.open("a") as file:
            file.write(json.dumps(line | {"damping": report.damping, "cg_iterations": report.cg_iterations[0]}) + "\n")
        print(
            f"mu {mu:.3f}  step {step:3d}  {spent:5.0f} s  squared error {squared:.5f}  wrong {wrong:6.1%}  "
            f"damping {report.damping:.2g}  {report.cg_iterations[0]} iterations",
            flush=True,
        )


def draw(logs: list[Path], picture: Path, length: int) -> None:
    """Error on unseen sequences over seconds, one line for each log."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for log in logs:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        seconds = [line["seconds"] for line in lines]
        label = f"structural damping, mu = {lines[0]['mu']:.3f}" if lines[0]["mu"] else "without structural damping"
        left.semilogy(seconds, [line["squared_error"] for line in lines], label=label)
        right.plot(seconds, [100 * line["wrong"] for line in lines], label=label)
    left.axhline(1 / 6, color="grey", linestyle=":", label="always answering 1")
    left.set(xlabel="seconds of training", ylabel="squared error, unseen sequences", xlim=0)
    right.set(xlabel="seconds of training", ylabel=f"sums off by more than {TOLERANCE} (%)", xlim=0, ylim=(0, 102))
    left.legend(frameon=False, fontsize="small")
    figure.suptitle(f"The addition task over {length} time steps", fontsize="medium")
    figure.savefig(picture, dpi=150)


def main() -> None:
    """Train with each mu in turn, then draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=50, help="time steps T (default 50)")
    parser.add_argument("--units", type=int, default=100)
    parser.add_argument("--sequences", type=int, default=5000, help="sequences of each step's gradient (default 5000)")
    parser.add_argument("--curvature-sequences", type=int, default=1000, help="of its curvature (default 1000)")
    parser.add_argument("--cg-max-iter", type=int, default=60)
    parser.add_argument("--damping", type=float, default=0.1, help="initial lambda (default 0.1)")
    parser.add_argument(
        "--structural-damping",
        type=float,
        nargs="+",
        default=[1 / 30],
        metavar="MU",
        help="one run each (default 1/30)",
    )
    parser.add_argument("--time-limit", type=float, default=900, help="seconds of training of each run (default 900)")
    parser.add_argument("--max-steps", type=int, default=10**9, help="of each run (default: as time allows)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/addition"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    logs = [args.out / f"mu-{mu:.3f}.jsonl" for mu in args.structural_damping]
    for mu, log in zip(args.structural_damping, logs, strict=True):
        train(args, mu, log)
    draw(logs, args.out / "addition.png", args.length)
    print(args.out / "addition.png")


if __name__ == "__main__":
    main()
