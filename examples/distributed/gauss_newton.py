"""Gauss-Newton steps for a differential equation on several processes: each rank has a part of the points.

    torchrun --standalone --nproc-per-node 2 examples/distributed/gauss_newton.py

u'' = -sin(x) on (0, pi) with u = 0 at both ends, whose solution is sin(x). The ends are one rank's; the others have no
points of that term.
"""

import math

import torch
import torch.distributed as dist
from torch import nn

from latephase import GaussNewton, Objective


def equation(model, x):
    """The residual u'' + sin(x) [N, 1]."""
    x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return bend + x.sin()


def ends(model, x):
    """The value, which is to be zero [N, 1]."""
    return model(x)


dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)  # a plain module has the same parameters where every rank makes it with the same seed
model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double()
inside = torch.linspace(0, math.pi, 42, dtype=torch.float64)[1:-1, None]
edge = torch.tensor([[0.0], [math.pi]], dtype=torch.float64)
objective = Objective.from_residuals(
    model,
    {"equation": (equation, inside[rank::ranks]), "ends": (ends, edge if rank == 0 else edge[:0])},
    weights={"ends": 10.0},
    process_group=dist.group.WORLD,
)
optimizer = GaussNewton(model.parameters())
for step in range(30):
    loss = optimizer.step(objective)
    report = optimizer.report
    assert report is not None
    if rank == 0 and step % 10 == 0:
        said = f"{report.collectives} collectives, {report.collective_bytes:,} bytes"
        print(f"step {step}: loss {loss:.3e}, {said}")
print(f"rank {rank}: loss {objective.value():.8e}", flush=True)
dist.destroy_process_group()
