"""How the settings of trials are drawn."""

from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from .config import Search


class SamplerByPlace(BaseSampler):
    """Draws each trial's values from random numbers that its place decides, by random search or TPE.

    So a search that was interrupted goes on with fresh settings, and two workers do not draw the same ones.

    Args:
        kind: "random" or "tpe".
        seed: of the tuning.
        stream: which of its strategies, so that all draw different numbers.
    """

    def __init__(self, kind: str, seed: int, stream: int):
        self._kind, self._seed, self._stream = kind, seed, stream

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Start the place's random numbers."""
        words = [self._seed, self._stream, trial.user_attrs["place"]]
        seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        self._inner = RandomSampler(seed=seed) if self._kind == "random" else TPESampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler does."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler does."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler does."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)


def suggest(trial: optuna.Trial, path: str, search: Search) -> Any:
    """Draw a value for a trial.

    Args:
        trial: Optuna's.
        path: of the value in the strategy's table; Optuna's name of it.
        search: where to look.
    """
    if search.choices is not None:
        return trial.suggest_categorical(path, search.choices)
    assert search.low is not None
    assert search.high is not None
    if search.is_whole:
        return trial.suggest_int(path, int(search.low), int(search.high), step=int(search.step or 1), log=search.log)
    return trial.suggest_float(path, float(search.low), float(search.high), step=search.step, log=search.log)
