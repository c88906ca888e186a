"""The late phase of a training: when it begins, who should go on, and the hand-over."""

from .asks import Subject as Subject
from .averages import ExponentialAverage as ExponentialAverage
from .averages import StateAverage as StateAverage
from .averages import TailAverage as TailAverage
from .averages import WindowAverage as WindowAverage
from .candidates import OWN as OWN
from .candidates import Candidates as Candidates
from .candidates import candidates as candidates
from .candidates import chosen as chosen
from .candidates import known as known
from .contestant import Contestant, Wants
from .contestant import cosine as cosine
from .contestant import linear as linear
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
from .given import names_of as names_of
from .hand_over import HandOver as HandOver
from .held_out import HeldOut as HeldOut
from .held_out import Score as Score
from .late_phase import LatePhase
from .report import LatePhaseReport
from .settings import Budget as Budget
from .settings import Halving
from .source import OneObjective, Source
from .states import in_mode as in_mode
from .states import layers_with_statistics as layers_with_statistics
from .states import renew_statistics as renew_statistics
from .states import state_dict_with as state_dict_with

__all__ = ["Contestant", "Halving", "LatePhase", "LatePhaseReport", "OneObjective", "Source", "Wants"]
