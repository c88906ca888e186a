"""Self-scaled Broyden steps on several processes: few parameters, float64, all rows at every step.

    torchrun --standalone --nproc-per-node 2 examples/distributed/self_scaled_broyden.py

Rank 0 has three times as many rows as the others: shares need not be equal.
"""

import torch
import torch.distributed as dist
from torch import nn

from latephase import Objective, SelfScaledBroyden

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
x = torch.linspace(-1, 1, 300, dtype=torch.float64)[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
x, y = x[:, None], (4 * x[:, None]).sin()
shares = [3 * 300 // (ranks + 2)] + [300 // (ranks + 2)] * (ranks - 1)
start = sum(shares[:rank])
own = slice(start, start + shares[rank] if rank < ranks - 1 else 300)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 1)).double()
objective = Objective(model, nn.MSELoss(), (x[own], y[own]), process_group=dist.group.WORLD)
optimizer = SelfScaledBroyden(model.parameters())
for step in range(60):
    loss = optimizer.step(objective)
    report = optimizer.report
    assert report is not None
    if rank == 0 and step % 20 == 0:
        said = f"{report.collectives} collectives, {report.collective_bytes:,} bytes"
        print(f"step {step}: loss {loss:.3e}, {said}")
print(f"rank {rank}: loss {objective.value():.8e}", flush=True)
dist.destroy_process_group()
