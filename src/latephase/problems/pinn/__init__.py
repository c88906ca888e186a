"""Physics-informed networks: differential equations whose solution a network is to be."""

from .elliptic import (
    Helmholtz,
    Poisson2D,
    Poisson5D,
    Poisson10D,
    pinn_helmholtz,
    pinn_poisson2d,
    pinn_poisson5d,
    pinn_poisson10d,
)
from .equation import BoxEquation
from .evolution import AllenCahn, Burgers, KortewegDeVries, pinn_allen_cahn, pinn_burgers, pinn_kdv
from .heat import Heat1D, Heat4D, pinn_heat1d, pinn_heat4d
from .network import Constrained
from .terms import forward
from .waves import (
    Convection,
    Equation,
    Reaction,
    Wave,
    build_model,
    load,
    pinn_convection,
    pinn_reaction,
    pinn_wave,
)

__all__ = [
    "AllenCahn",
    "BoxEquation",
    "Burgers",
    "Constrained",
    "Convection",
    "Equation",
    "Heat1D",
    "Heat4D",
    "Helmholtz",
    "KortewegDeVries",
    "Poisson2D",
    "Poisson5D",
    "Poisson10D",
    "Reaction",
    "Wave",
    "build_model",
    "forward",
    "load",
    "pinn_allen_cahn",
    "pinn_burgers",
    "pinn_convection",
    "pinn_heat1d",
    "pinn_heat4d",
    "pinn_helmholtz",
    "pinn_kdv",
    "pinn_poisson2d",
    "pinn_poisson5d",
    "pinn_poisson10d",
    "pinn_reaction",
    "pinn_wave",
]
