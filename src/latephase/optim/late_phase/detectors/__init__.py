"""Detectors of diffusion: when training at a learning rate no longer leads anywhere."""

from .detector import Detector as Detector
from .distance import Distance as Distance
from .gradients import GradientNorm as GradientNorm
from .gradients import Pflug as Pflug
from .statistical import SASA as SASA
from .statistical import Slope as Slope
from .statistical import default_detector as default_detector
from .watching import Watch as Watch
