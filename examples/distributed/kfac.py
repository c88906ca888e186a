"""K-FAC on several processes: a plain module, and a batch of its own on each rank at every step.

torchrun --standalone --nproc-per-node 2 examples/distributed/kfac.py

The last batch of an epoch may have fewer rows than there are ranks: those without rows take part all the same.
"""

import torch
import torch.distributed as dist
from torch import nn

from latephase import KFAC, Objective

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
generator = torch.Generator().manual_seed(0)
x = torch.randn(1000, 10, generator=generator)
y = (x[:, :2].square().sum(1) > 1.5).long() + (x[:, 2] > 1).long()

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 3))
everything = Objective(model, nn.CrossEntropyLoss(), (x[rank::ranks], y[rank::ranks]), process_group=dist.group.WORLD)
optimizer = KFAC(model.parameters())
for _ in range(3):
    order = torch.randperm(len(x), generator=generator)  # the same on every rank
    for batch in order.split(300):
        own = batch[rank::ranks]
        optimizer.step(everything.on((x[own], y[own])))
    report = optimizer.report
    assert report is not None
    if rank == 0:
        said = f"{report.collectives} collectives, {report.collective_bytes:,} bytes"
        print(f"loss of the last batch {report.loss:.4f}, {said}")
print(f"rank {rank}: loss {everything.value():.8f}", flush=True)
dist.destroy_process_group()
