"""The kinds of strategies: their tables, and how each steps."""

from .base import Strategy as Strategy
from .base import copied as copied
from .context import StrategyContext as StrategyContext
from .context import epochs_of_batches as epochs_of_batches
from .kinds import start_strategy as start_strategy
from .tables import DEVICE as DEVICE
from .tables import NAME as NAME
from .tables import TABLES as TABLES
from .tables import Chain as Chain
from .tables import Custom as Custom
from .tables import HessianFreeSteps as HessianFreeSteps
from .tables import StrategyConfig as StrategyConfig
from .tables import Table as Table
from .tables import hint as hint
from .tables import in_words as in_words
from .tables import singles as singles
from .training import Training as Training
