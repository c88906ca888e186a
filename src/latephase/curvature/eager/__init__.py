"""Products without a trace: forward passes that are kept, tangents, and pull-backs."""

from .forward_pass import ForwardPass as ForwardPass
from .retained import Retained as Retained
from .tangents import trace_pays as trace_pays
