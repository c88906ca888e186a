"""Does the data keep up? A step of SGD with choosing, augmenting and normalising its batch, against one without.

    python benchmarks/loading.py [--problem cifar100_allcnnc] [--rows 5000] [--batch-size 256] [--rounds 9]

Steps of both kinds take turns in one process on one thread; the ratio of their medians is what counts. On a CPU it is
the process's own seconds that are taken, so that other work on the machine counts little. Data is found as for every
problem: in LATEPHASE_DATA, in the cache, or by download.
"""

import argparse
import time
from statistics import median

import torch

from latephase import problems
from latephase.problems.sampling import Stream, batches, generator


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="cifar100_allcnnc")
    parser.add_argument("--rows", type=int, default=5000, help="of the training file")
    parser.add_argument("--batch-size", type=int, help="default: the problem's own")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.perf_counter if args.device.startswith("cuda") else time.process_time
    torch.manual_seed(0)
    problem = problems.get(args.problem, rows=args.rows)
    splits = problem.load().to(args.device)
    model = problem.model().to(args.device)
    optimizer = problem.training.start(model.parameters())
    size = args.batch_size or problem.training.batch_size or len(splits.train[1])
    order = batches(len(splits.train[1]), size, 0, 0)
    random = generator(Stream.AUGMENTATION, 0, 0)
    there = problem.batch(splits.train, order[0], random)
    seconds: dict[str, list[float]] = {"loading": [], "there": []}
    for step in range(args.rounds + 1):
        for kind in seconds:
            synchronize(args.device)
            started = clock()
            rows = order[step % len(order)]
            batch = problem.batch(splits.train, rows, random) if kind == "loading" else there
            optimizer.step(problem.objective(model, batch))
            synchronize(args.device)
            if step:  # the first calls are others'
                seconds[kind].append(clock() - started)
    ratio = median(seconds["loading"]) / median(seconds["there"])
    print(f"{args.problem}, batch of {len(order[0])}: {ratio:.3f} of the step on data already there")


def synchronize(device: str) -> None:
    """Wait for a CUDA device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
