"""Tuning: the same number of trials for every strategy, judged on the validation split; the best feed a study."""

from .command import tune as tune
