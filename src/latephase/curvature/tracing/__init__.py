"""Products by a trace: recorded once per shape, simplified, cut into stages, kept under a key of all that was read."""

from .cache import MAX_TRACES as MAX_TRACES
from .cache import bring_back as bring_back
from .cache import kept_traces as kept_traces
from .cache import put_back as put_back
from .cache import set_aside as set_aside
from .cache import traced_pass as traced_pass
from .operations import CannotTrace as CannotTrace
from .rewrite import IN_PLACE as IN_PLACE
from .rewrite import SAME as SAME
from .rewrite import SLOPES as SLOPES
from .rewrite import aten as aten
from .rewrite import layout as layout
from .rewrite import reuse_memory as reuse_memory
from .stages import LinearGraph as LinearGraph
from .stages import Values as Values
from .stages import descendants as descendants
from .trace import Trace as Trace
from .trace import TracedPass as TracedPass
