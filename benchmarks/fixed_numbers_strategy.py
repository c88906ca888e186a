"""A strategy of one's own for the study of `fixed_numbers.py`."""

from latephase.study.strategies import Strategy, StrategyContext


class SignDescent(Strategy):
    """Steps of equal length in every parameter."""

    def __init__(self, context: StrategyContext, lr: float):
        super().__init__(context)
        self.model.train()
        self._lr, self._batches = lr, context.epochs()

    @property
    def lr(self) -> float:
        """The length of a step."""
        return self._lr

    def step(self, share: float) -> None:
        """Take one step on the next mini-batch."""
        del share
        objective, rows, _ = next(self._batches)
        objective()
        for parameter in self.model.parameters():
            assert parameter.grad is not None
            parameter.data.sub_(self._lr * parameter.grad.sign())
        self.context.work.gradients += rows
