"""What curvature products and steps cost, beside a gradient and beside other packages."""

from .measure import Settings as Settings
from .run import bench as bench
from .tables import failures as failures
from .tables import notes as notes
from .tables import terminal as terminal
