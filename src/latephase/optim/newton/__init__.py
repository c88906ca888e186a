"""Newton steps: quadratic model, candidates, their judging; the Hessian-free optimizer is an assignment of parts."""

from .former import in_a_table as in_a_table
from .former import is_former as is_former
from .hessian_free import HessianFree as HessianFree
from .parts import CG as CG
from .parts import GGN as GGN
from .parts import Armijo as Armijo
from .parts import Blocks as Blocks
from .parts import Hessian as Hessian
