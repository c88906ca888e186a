"""What the optimizers of this package have in common: state dicts that are checked before they are loaded."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from .arguments import check_number
from .part import plain
from .saved import VERSION, check_frame, restored
from .state import Carried


class SecondOrder(Optimizer):
    """An optimizer whose state dicts have a version and are checked.

    A state dict may come from an earlier version: an option that did not exist then has the value that this optimizer
    was given. One that is damaged is refused by name, and nothing is loaded.
    """

    _OPTIONS: ClassVar[Mapping[str, Any]] = {}
    """Options with their defaults, for an optimizer that was pickled before one of them existed."""
    _ranks_compared = False

    _kind: str = ""
    """Whose a state dict is."""

    def __init__(self, params: Any, defaults: dict[str, Any]):
        if isinstance(params, nn.Module):
            raise TypeError(f"{type(self).__name__} takes parameters, got {type(params).__name__}: model.parameters()")
        super().__init__(params, defaults)

    @property
    def _carried(self) -> Carried:
        """What one step leaves to the next, `damping` among it."""
        raise NotImplementedError

    @property
    def damping(self) -> float:
        """Lambda of the next step, adapted or initial; may be set."""
        return self._carried.damping

    @damping.setter
    def damping(self, value: float) -> None:
        check_number("damping", value)
        self._carried.damping = value
        self._ranks_compared = False

    def _checked(
        self, state: Mapping[Any, Any], own: Mapping[Any, Tensor], groups: Sequence[Mapping[str, Any]]
    ) -> dict[Any, Any]:
        """The entries of a state dict, checked, without what cannot serve this optimizer.

        Args:
            state: entries by the parameters' numbers.
            own: the parameters by these numbers.
            groups: of the state dict, complete.

        Raises:
            ValueError: naming the entry.
        """
        raise NotImplementedError

    def _restored(self, state: Mapping[Any, Any], own: Mapping[Any, Tensor]) -> dict[Tensor, Any]:
        """Entries that replace those that torch has loaded."""
        return restored(state, own)

    def _check_groups(self) -> None:
        """Check the options of the param groups."""
        raise NotImplementedError

    def _optimizers(self) -> list[Optimizer]:
        """This optimizer, and what it wraps: what loading may change."""
        return [self]

    def _read(self, group: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
        """A param group as it was saved, by this release or an earlier one, with parts and with nothing missing.

        Args:
            group: what was saved; its parts may be dicts, or flat options.
            like: options that give what it lacks.

        Raises:
            ValueError: naming the option.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The state as torch's optimizers have it, the parts as dicts, with "version" and "optimizer", whose it is.

        A preconditioner and ranks are not in it: they are those of the optimizer that loads it.
        """
        state = super().state_dict()
        groups = [plain(group) for group in state["param_groups"]]
        return {**state, "param_groups": groups, "version": VERSION, "optimizer": self._kind}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; its tensors keep their dtype, which may be wider than the parameters'.

        An option that the state dict does not know, having been saved before there was one, keeps the value that this
        optimizer has.

        Args:
            state_dict: what `state_dict` returned, or an earlier version of it.

        Raises:
            ValueError: a state dict of another optimizer, of a later version, or a damaged one; says what and where,
                and nothing is loaded.
        """
        own = check_frame(state_dict, self.param_groups, self._kind)
        before = [(each, each.state, each.param_groups) for each in self._optimizers()]
        try:
            groups = [
                self._completed(saved, kept)
                for saved, kept in zip(state_dict["param_groups"], self.param_groups, strict=True)
            ]
            entries = self._checked(state_dict["state"], own, groups)
            super().load_state_dict({**state_dict, "state": entries, "param_groups": groups})
            for p, entry in self._restored(entries, own).items():
                self.state[p] = entry
            self._check_groups()
        except BaseException as error:
            for each, state, kept in before:
                each.state, each.param_groups = state, kept
            if isinstance(error, ValueError) and not str(error).startswith("state_dict"):
                raise ValueError(f"state_dict cannot be loaded: {error}") from error
            raise
        self._ranks_compared = False

    def _completed(self, saved: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
        """A saved param group with the options that it lacks, its parts as dicts."""
        return plain(self._read(saved, {**self.defaults, **_options_of(kept)}))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state that was pickled or loaded; options that it lacks are the group's own, or the defaults."""
        kept = vars(self).get("param_groups", [])
        likes = [_options_of(group) for group in kept] or [{}] * len(state["param_groups"])
        groups = [
            self._read(group, {**self._OPTIONS, **like})
            for group, like in zip(state["param_groups"], likes, strict=True)
        ]
        state = {**state, "param_groups": groups}
        if "defaults" in state:
            state["defaults"] = self._read(state["defaults"], self._OPTIONS)
        super().__setstate__(state)
        self.defaults = {**self._OPTIONS, **self.defaults}
        for group in self.param_groups:
            for name, default in self.defaults.items():  # torch's own among them
                group.setdefault(name, default)


def _options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """A param group without what says whose it is."""
    return {name: value for name, value in group.items() if name not in ("params", "param_names", "initial_lr")}
