"""Compare what two source trees cost: products, their set-up and steps, in pairs of processes that take turns.

    OMP_NUM_THREADS=1 python benchmarks/pairs.py OLD NEW --rounds 9

OLD and NEW are folders with `src/latephase`. In each round a fresh process of either tree measures all costs, in
seconds of its own processor time, each first in every other round; compared is the median of the rounds' ratios. Ends
with status 1 where a ratio is above `--limit`. Networks and data are built here, so that both trees get the same.
`latephase bench` compares with other packages; it knows one tree. Give the same tree twice first: what that shows is
the machine's noise, which is far above 3 % while others use its cores, and falls with `--rounds`.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
Costs = dict[str, float]
SHORT = 0.2
"""Seconds for which what is short is repeated. Steps are a fixed number, so that both trees take the same ones."""


def optimizers(parameters: list[Any]) -> dict[str, Callable[[], Any]]:
    """What takes steps, of ten iterations where there are iterations; in the spelling that the tree knows."""
    import latephase

    def hessian_free(**more: Any) -> Any:
        try:
            return latephase.HessianFree(parameters, cg_max_iter=10, cg_tolerance=0.0, **more)
        except TypeError:
            parts: Any = latephase
            return parts.HessianFree(parameters, solver=parts.CG(max_iter=10, tolerance=0.0, **more))

    return {
        "HessianFree": hessian_free,
        "HessianFree, ggn_diagonal": lambda: hessian_free(preconditioner="ggn_diagonal"),
        "KFAC": lambda: latephase.KFAC(parameters),
        "AdamQLR": lambda: latephase.AdamQLR(parameters),
    }


def networks() -> dict[str, Callable[[], tuple[Any, Any, Any]]]:
    """Model, batch, and a batch that judges, by name."""
    import torch
    from torch import nn

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.along, self.out = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.zeros(len(x), 64)
            for each in self.into(x).unbind(1):
                h = torch.tanh(each + self.along(h))
            return self.out(h)

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.qkv = nn.LayerNorm(64), nn.Linear(64, 192)
            self.back, self.out = nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n, length, _ = x.shape
            q, k, v = self.qkv(self.norm(x)).view(n, length, 3, 4, 16).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out((x + self.back(mixed.transpose(1, 2).reshape(n, length, 64))).mean(1))

    def dense() -> nn.Module:
        return nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 256), nn.Tanh(), nn.Linear(256, 10))

    def convolutions() -> nn.Module:
        first = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        second = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(512, 10))

    def built(make: Callable[[], nn.Module], rows: int, *shape: int) -> Callable[[], tuple[Any, Any, Any]]:
        def build() -> tuple[Any, Any, Any]:
            torch.manual_seed(0)
            model, centres, numbers = make(), torch.randn(10, *shape), torch.randint(10, (rows + rows // 2,))
            inputs = centres[numbers] + torch.randn(len(numbers), *shape)
            return model, (inputs[:rows], numbers[:rows]), (inputs[rows:], numbers[rows:])

        return build

    return {
        "small": built(lambda: nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 10)), 16, 16),
        "dense": built(dense, 256, 256),
        "convolutions": built(convolutions, 64, 1, 16, 16),
        "recurrent": built(Recurrent, 32, 20, 8),
        "attention": built(Attending, 32, 32, 64),
    }


def measure(names: Sequence[str], repeats: int) -> Costs:
    """Costs in this process: the import, and of each network set-up, product, form, first step and steps."""
    started = time.process_time()
    import torch

    import latephase
    from latephase.curvature import linearize

    if not Path(latephase.__file__).is_relative_to(os.environ["PYTHONPATH"]):
        raise SystemExit(f"latephase comes from {latephase.__file__}, not from {os.environ['PYTHONPATH']}")
    costs = {"import": time.process_time() - started}
    torch.set_num_threads(1)
    for name in names:
        model, batch, judging = networks()[name]()
        loss = torch.nn.CrossEntropyLoss()
        parameters = list(model.parameters())
        v = torch.ones(sum(p.numel() for p in parameters))
        objective = latephase.Objective(model, loss, batch)
        held_out = latephase.Objective(model, loss, judging)
        costs[f"{name}: first product"] = timed(lambda o=objective, v=v: linearize(o).matvec(v), 1)
        linear = linearize(objective)
        linear.matvec(v)

        def set_up(o: Any = objective) -> Any:
            again = linearize(o)
            return again.loss, again.gradient

        costs[f"{name}: set-up"] = timed(set_up, 5 * repeats, SHORT)
        costs[f"{name}: product"] = timed(lambda linear=linear, v=v: linear.matvec(v), 5 * repeats, SHORT)
        costs[f"{name}: quadratic form"] = timed(
            lambda linear=linear, v=v: linear.quadratic_form(v), 5 * repeats, SHORT
        )
        start = [p.detach().clone() for p in parameters]
        for kind, make in optimizers(parameters).items():
            with torch.no_grad():
                for p, value in zip(parameters, start, strict=True):
                    p.copy_(value)
            optimizer = make()
            given = {"evaluation": held_out} if kind.startswith("HessianFree") else {}

            def step(optimizer: Any = optimizer, given: Any = given, objective: Any = objective) -> None:
                optimizer.step(objective, **given)

            costs[f"{name}: {kind}, first step"] = timed(step, 1)
            step()
            costs[f"{name}: {kind}, step"] = timed(step, 4 * repeats)
    return costs


def timed(call: Callable[[], Any], least: int, seconds: float = 0.0) -> float:
    """Median seconds of processor time, of so many calls at least, and as many as take so long."""
    found: list[float] = []
    gc.collect()
    while len(found) < least or sum(found) < seconds:
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return statistics.median(found)


def costs_of(tree: Path, arguments: Sequence[str]) -> Costs:
    """What a fresh process of a tree measures."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-W", "ignore", str(HERE), "--measure", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(old: Path, new: Path, rounds: int, arguments: Sequence[str], limit: float) -> int:
    """Print the medians of the rounds' ratios; returns how many are above the limit."""
    rows: tuple[list[Costs], list[Costs]] = ([], [])  # of the old tree, and of the new one
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            rows[which].append(costs_of((old, new)[which], arguments))
        print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    above = 0
    print(f"{'':44} {'old, ms':>9} {'new, ms':>9} {'new/old':>8}   quartiles")
    for name in rows[0][0]:
        before, after = ([costs[name] for costs in of_tree] for of_tree in rows)
        ratios = [b / a for a, b in zip(before, after, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else ratios * 3
        above += middle > limit
        medians = f"{1000 * statistics.median(before):9.3f} {1000 * statistics.median(after):9.3f}"
        mark = "  above the limit" if middle > limit else ""
        print(f"{name:44} {medians} {middle:8.3f}   {low:.3f} to {high:.3f}{mark}")
    print(f"{above} of {len(rows[0][0])} costs are above {limit:g}")
    return above


def main() -> int:
    """The command; returns its status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("trees", nargs="*", type=Path, help="OLD and NEW, folders with src/latephase")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=3, help="of a step, within a process; more of what is short")
    parser.add_argument("--networks", default="small,dense,convolutions,recurrent,attention")
    parser.add_argument("--limit", type=float, default=1.03, help="the highest ratio that is no fault")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.networks.split(","), args.repeats)))
        return 0
    if len(args.trees) != 2 or not all((tree / "src" / "latephase").is_dir() for tree in args.trees):
        parser.error("give two folders with src/latephase, OLD and NEW")
    arguments = ["--networks", args.networks, "--repeats", str(args.repeats)]
    old, new = (tree.resolve() for tree in args.trees)
    return int(compare(old, new, args.rounds, arguments, args.limit) > 0)


if __name__ == "__main__":
    sys.exit(main())
