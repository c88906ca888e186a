"""Physics-informed networks: differential equations whose solution a network is to be."""

from .waves import (
    Convection,
    Equation,
    Reaction,
    Wave,
    build_model,
    forward,
    load,
    pinn_convection,
    pinn_reaction,
    pinn_wave,
)

__all__ = [
    "Convection",
    "Equation",
    "Reaction",
    "Wave",
    "build_model",
    "forward",
    "load",
    "pinn_convection",
    "pinn_reaction",
    "pinn_wave",
]
