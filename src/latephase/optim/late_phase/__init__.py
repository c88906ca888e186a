"""The late phase of a training: when it begins, who should go on, and the hand-over."""

from .candidates import Candidates as Candidates
from .candidates import Subject as Subject
from .candidates import candidates as candidates
from .contestant import Contestant, Wants
from .contestant import cosine as cosine
from .contestant import one_minus_sqrt as one_minus_sqrt
from .detectors import SASA as SASA
from .detectors import Detector as Detector
from .detectors import Distance as Distance
from .detectors import GradientNorm as GradientNorm
from .detectors import Pflug as Pflug
from .detectors import Slope as Slope
from .detectors import Watch as Watch
from .detectors import default_detector as default_detector
from .given import held_out_loss as held_out_loss
from .hand_over import HandOver as HandOver
from .held_out import HeldOut as HeldOut
from .held_out import Score as Score
from .late_phase import LatePhase
from .report import LatePhaseReport
from .settings import Budget as Budget
from .settings import Halving
from .source import OneObjective, Source
from .states import in_mode as in_mode

__all__ = ["Contestant", "Halving", "LatePhase", "LatePhaseReport", "OneObjective", "Source", "Wants"]
