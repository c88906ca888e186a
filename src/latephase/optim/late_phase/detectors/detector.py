"""What every detector of diffusion is: fed after each step, by hand or by an optimizer's hooks, and asked."""

import copy
import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from .series import Thinned
from .watching import Seen, Watch, seen

VERSION = 1
"""Of state dicts."""
_SAVED = {name.lstrip("_"): name for name in
          ("steps", "statistic", "since", "ignored", "_origin", "_layout", "_rates", "_loss", "_missed")}  # fmt: skip
"""Attributes that go into a state dict as they are, by their names there."""
RATE_TOLERANCE = 0.05
"""Relative change of a learning rate from which on a run counts as another one. A schedule that changes the rate a
little at every step would otherwise never leave time for a test; 5 % of the rate change the noise by as much."""


class Detector:
    """Tells when training at a learning rate has gone into diffusion: steps no longer lead anywhere.

    A detector is fed after each step, by `update` or by the hooks of an optimizer that it watches. Numbers stay on the
    parameters' device and are read at tests only. Once it has fired it stays so, though it goes on testing for its
    history, until the learning rate changes by 5 % or more, parameters come or go, or `reset` is called: then it begins
    anew, since diffusion is that of a rate. A learning rate that is a tensor on another device is read at each step.

    To write one, derive from this class, give it a `kind`, and implement `_begin`, `_take`, `_due` and `_test`, which
    keep all they know in `_kept`: numbers, tensors, lists of tensors, or objects with `saved` and `load`.

    Attributes:
        in_diffusion: whether it has fired at the present learning rate.
        since: the step at which it did; None before.
        steps: how many it has seen.
        statistic: the latest value of what it compares; None before the first test.
        ignored: numbers in the latest test's series that were not finite, and were left out.
        level: what the statistic is compared with.
    """

    kind: ClassVar[str]
    """What state dicts and tables call it."""
    wants: ClassVar[str] = "parameters"
    """What of a step it cannot do without: "parameters", "gradients" or "loss"."""
    label: ClassVar[str] = ""
    """Of the statistic in a figure."""
    level: float = 0.0

    def __init__(self, **settings: Any):
        self.settings: dict[str, Any] = settings
        self._watch: Watch | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything but the settings; watching goes on."""
        self.steps = 0
        self.statistic: float | None = None
        self.since: int | None = None
        self.ignored = 0
        self._origin = 0
        self._history = Thinned()
        self._layout: list[list[int]] | None = None
        self._rates: list[float] = []
        self._loss: Tensor | None = None
        self._missed = 0
        self._kept: dict[str, Any] = {}

    @property
    def in_diffusion(self) -> bool:
        """Whether it has fired at the present learning rate."""
        return self.since is not None

    @property
    def history(self) -> list[tuple[int, float]]:
        """Steps and statistics of tests, at most 256 of them, evenly thinned."""
        return list(self._history.pairs)

    def start(self, parameters: Iterable[Any], *, lr: Any = None) -> None:
        """Say where a step begins; needed by hand before the first one only, if that is not to be lost.

        Args:
            parameters: tensors, or param groups.
            lr: learning rate, one or one for each group. Default: the groups' own, or 1.
        """
        self._look(seen(parameters, None, lr))

    @torch.no_grad()
    def update(self, parameters: Iterable[Any], *, gradients: Any = None, loss: Any = None, lr: Any = None) -> bool:
        """Take a step into account.

        Without `start` the first call says where the run begins, and is not counted.

        Args:
            parameters: after the step; tensors, or param groups with their "lr".
            gradients: of the step, one for each parameter or None. Default: what is in their `grad`.
            loss: of the step's batch, at the parameters before the step; a number, or a tensor [].
            lr: learning rate, one or one for each group. Default: the groups' own, or 1.

        Returns:
            `in_diffusion`.

        Raises:
            TypeError: parameters are no tensors.
            ValueError: gradients or rates do not fit the parameters.
        """
        now = seen(parameters, gradients, lr)
        if loss is not None:
            self.loss(loss)
        given, self._loss = self._loss, None
        if not self._look(now):
            self.steps += 1
            if self._has_what_it_wants(now, given):
                self._take(now, given)
            since_origin = self.steps - self._origin
            if self._due(since_origin):
                self._judge(since_origin, now)
        return self.in_diffusion

    def loss(self, value: Any) -> None:
        """Give the loss of the step that comes next, or under way: what `update` would be given.

        Args:
            value: a number, or a tensor of one.

        Raises:
            ValueError: it is something else.
        """
        if torch.is_tensor(value) and value.numel() == 1:
            wide = torch.float32 if value.device.type == "mps" else torch.float64
            self._loss = value.detach().reshape(()).to(wide, copy=True)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            self._loss = torch.tensor(float(value), dtype=torch.float64)
        else:
            raise ValueError(f"a loss must be a number or a tensor of one, got {type(value).__name__}")

    def watch(self, optimizer: Optimizer) -> Watch:
        """Watch an optimizer's steps by its hooks.

        The loss is what a step's closure returns first, or what an optimizer of this package reports; a loop without a
        closure calls `loss`.

        Args:
            optimizer: any of torch's kind. Its state, pickles and copies stay as they are.

        Returns:
            A handle with `remove()`; also for a `with` statement.

        Raises:
            RuntimeError: it watches one already.
        """
        if self._watch is not None and self._watch.active:
            raise RuntimeError(f"{type(self).__name__} watches an optimizer already: remove() that handle first")
        self._watch = Watch(self, optimizer)
        return self._watch

    def figure(self, path: str | Path) -> None:
        """Draw the statistic over the steps, the threshold, and where it fired.

        Args:
            path: a file of any kind that matplotlib writes.
        """
        from .drawing import draw  # matplotlib takes a second to import, which training does not need

        draw(self, Path(path))

    def state_dict(self) -> dict[str, Any]:
        """All that a run that is resumed needs to fire at the same step: numbers, lists and tensors, and a version."""
        plain = {name: copy.deepcopy(getattr(self, own)) for name, own in _SAVED.items()}
        kept = {name: value.saved() if hasattr(value, "saved") else copy.deepcopy(value)
                for name, value in self._kept.items()}  # fmt: skip
        return {"version": VERSION, "detector": self.kind, "settings": dict(self.settings), **plain,
                "history": self._history.saved(), "kept": kept}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one stood; its settings are kept, and must be those that the state was made with.

        Args:
            state: what `state_dict` returned.

        Raises:
            ValueError: of another detector, other settings or a later version, or damaged; nothing is loaded then.
        """
        self._check(state)
        fresh = type(self)(**self.settings)
        for name, own in _SAVED.items():
            setattr(fresh, own, copy.deepcopy(state[name]))
        try:
            fresh._history.load(state["history"])
            fresh._kept = fresh._empty()
            for name, value in state["kept"].items():
                if hasattr(fresh._kept.get(name), "load"):
                    fresh._kept[name].load(value)
                else:
                    fresh._kept[name] = copy.deepcopy(value)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"state_dict of {self.kind} is damaged: {error!r}") from error
        self.__dict__.update({k: v for k, v in vars(fresh).items() if k != "_watch"})

    def _check(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping) or "detector" not in state:
            raise ValueError("state_dict must be a dict as a detector's state_dict() returns it")
        if state["detector"] != self.kind:
            raise ValueError(f"state_dict is that of {state['detector']!r}, and cannot be loaded into {self.kind!r}")
        version = state.get("version")
        if version != VERSION:
            raise ValueError(f"state_dict has version {version!r}, and this release of latephase reads {VERSION}")
        if state.get("settings") != self.settings:
            raise ValueError(f"state_dict was made with {state.get('settings')}, this detector has {self.settings}")
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise ValueError(f"state_dict has no {missing[0]!r}: it is damaged")

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: everything but the optimizer that is watched."""
        return {**vars(self), "_watch": None}

    def __copy__(self) -> "Detector":
        """A copy of its own: what a detector knows is changed in place."""
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{type(self).__name__}({settings})"

    def _look(self, now: Seen) -> bool:
        """Begin, or begin anew where rates or parameters have changed; whether it did."""
        if self._layout == now.layout and _close(self._rates, now.rates):
            return False
        self._layout, self._rates, self._origin = now.layout, now.rates, self.steps
        self.since, self._kept = None, self._empty()
        self._begin(now)
        return True

    def _has_what_it_wants(self, now: Seen, loss: Tensor | None) -> bool:
        """Whether a step says what the detector needs; it warns where the first hundred do not."""
        if self.wants == "loss":
            has, how = loss is not None, "call loss(value) before each step, or step(closure)"
        else:
            has = self.wants == "parameters" or any(g is not None for g in now.all_gradients)
            how = "keep them in grad until the step is over"
        self._missed = 0 if has else self._missed + 1
        if self._missed == 100:
            warnings.warn(
                f"{type(self).__name__} needs the {self.wants} of each step, and a hundred steps in a row had none: "
                f"{how}; it cannot fire",
                stacklevel=4,
            )
        return has

    def _judge(self, since_origin: int, now: Seen) -> None:
        """Test, and remember what came out."""
        statistic, fires = self._test(since_origin, now)
        if statistic is None or not math.isfinite(statistic):
            return
        self.statistic = statistic
        self._history.add(self.steps, statistic)
        if fires and self.since is None:
            self.since = self.steps

    def _ignore(self, values: Tensor) -> Tensor:
        """The finite ones of some numbers [n]; says once that there are others."""
        finite = values.isfinite()
        kept = values[finite]
        others = values.numel() - kept.numel()
        if others and not self.ignored:
            warnings.warn(f"{type(self).__name__}: {others} of {values.numel()} numbers were not finite, and are left "
                          "out of the test", stacklevel=5)  # fmt: skip
        self.ignored = max(self.ignored, others)
        return kept

    def _empty(self) -> dict[str, Any]:
        """What `_kept` is when a run begins."""
        return {}

    def _begin(self, now: Seen) -> None:
        """Take what a run begins with into `_kept`, which is empty."""

    def _take(self, now: Seen, loss: Tensor | None) -> None:
        """Take a step into `_kept`, without reading anything from the device."""

    def _due(self, steps: int) -> bool:
        """Whether to test after so many steps."""
        raise NotImplementedError

    def _test(self, steps: int, now: Seen) -> tuple[float | None, bool]:
        """The statistic, None where there is none yet, and whether it fires."""
        raise NotImplementedError


def _close(kept: list[float], now: list[float]) -> bool:
    """Whether learning rates are still those of the run."""
    return len(kept) == len(now) and all(
        abs(a - b) < RATE_TOLERANCE * max(a, b) or a == b for a, b in zip(kept, now, strict=True)
    )
