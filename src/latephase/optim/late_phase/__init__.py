"""The late phase: detectors of diffusion."""

from .detectors import SASA as SASA
from .detectors import Detector as Detector
from .detectors import Distance as Distance
from .detectors import GradientNorm as GradientNorm
from .detectors import Pflug as Pflug
from .detectors import Slope as Slope
from .detectors import Watch as Watch
from .detectors import default_detector as default_detector
