"""The kinds of strategies, a file each: its table, how it steps, and what the rest must know of it."""

from .any_kind import REGISTRY as REGISTRY
from .any_kind import TABLES as TABLES
from .any_kind import StrategyConfig as StrategyConfig
from .any_kind import in_words as in_words
from .base import Strategy as Strategy
from .base import copied as copied
from .context import StrategyContext as StrategyContext
from .context import epochs_of_batches as epochs_of_batches
from .table import NAME as NAME
from .table import StrategyTable as StrategyTable
from .table import start_strategy as start_strategy
