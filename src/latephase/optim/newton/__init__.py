"""Newton steps: quadratic model, candidates, their judging; the Hessian-free optimizer is an assignment of parts."""

from .cg import CG as CG
from .curvatures import GGN as GGN
from .curvatures import Armijo as Armijo
from .curvatures import Blocks as Blocks
from .curvatures import Hessian as Hessian
from .direct import Direct as Direct
from .direct_plan import DirectPlan as DirectPlan
from .direct_plan import multiplications_per_second as multiplications_per_second
from .former import FORMER as FORMER
from .former import in_a_table as in_a_table
from .gauss_newton import GaussNewton as GaussNewton
from .hessian_free import HessianFree as HessianFree
