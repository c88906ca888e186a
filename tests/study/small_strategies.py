"""Strategies of a user's own: one that works, and all the ways in which one can break."""

import os
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

from latephase.study.strategies import Strategy


class Plain(Strategy):
    """SGD without anything; leaves the model in eval mode, as a careless strategy might."""

    def __init__(self, context, lr=0.05):
        super().__init__(context)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.batches = context.epochs()

    def step(self, share):
        objective, rows, _ = next(self.batches)
        self.optimizer.step(objective)
        self.context.work.gradients += rows
        self.model.eval()
        return {"said": share}


class Uncounted(Plain):
    def step(self, share):
        super().step(share)
        self.context.work.gradients = 0


class Raises(Plain):
    def step(self, share):
        if share >= 0.5:
            raise ArithmeticError("the strategy broke")
        return super().step(share)


class Warns(Plain):
    def step(self, share):
        warnings.warn(f"careful at {share:g}", RuntimeWarning, stacklevel=1)
        return super().step(share)


class Dies(Plain):
    """Ends its process, in the way asked for, until there is a file."""

    def __init__(self, context, way, until):
        super().__init__(context)
        self.way, self.until = way, Path(until)

    def step(self, share):
        if share >= 0.5 and not self.until.exists():
            match self.way:
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "_exit":
                    os._exit(0)
                case "exit":
                    sys.exit(0)
        return super().step(share)


class Moves(Plain):
    """Moves the study's folder in the middle of a run, as a user might; once."""

    def __init__(self, context, source, target):
        super().__init__(context)
        self.source, self.target = Path(source), Path(target)

    def step(self, share):
        if share >= 0.5 and not self.target.exists():
            self.source.rename(self.target)
        return super().step(share)


class Slow(Plain):
    """Steps that take a while, so that others see the run under way."""

    def step(self, share):
        time.sleep(0.05)
        return super().step(share)


def no_strategy(context):
    return "no strategy"


NOW = [0.0]
"""The seconds of a clock that only `Timed` moves."""


class Timed(Plain):
    """Steps, and what is done before an evaluation, that take a set time each on the clock `NOW`."""

    def __init__(self, context, steps, finish=0.0):
        super().__init__(context)
        self.left, self.finish = list(steps), finish

    def step(self, share):
        NOW[0] += self.left.pop(0) if self.left else 1000.0
        return super().step(share)

    def finished(self, state):
        NOW[0] += self.finish
        return state
