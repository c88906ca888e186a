"""AdamQLR on several processes: DistributedDataParallel, and a DataLoader whose rows a DistributedSampler shares out.

torchrun --standalone --nproc-per-node 2 examples/distributed/adam_qlr.py

A step costs a gradient, a tangent pass, a loss, and eleven small messages.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from latephase import AdamQLR, Objective

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
generator = torch.Generator().manual_seed(0)
x = torch.randn(1000, 10, generator=generator)
y = x[:, :1].sin() + x[:, 1:2] * x[:, 2:3]
dataset = TensorDataset(x, y)

torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1)))
everything = Objective(model, nn.MSELoss(), (x[rank::ranks], y[rank::ranks]))
sampler = DistributedSampler(dataset, shuffle=True, seed=0)
loader = DataLoader(dataset, batch_size=200 // ranks, sampler=sampler)
optimizer = AdamQLR(model.parameters())
for epoch in range(4):
    sampler.set_epoch(epoch)
    for batch in loader:
        optimizer.step(everything.on(batch))
    report = optimizer.report
    assert report is not None
    if rank == 0:
        said = f"{report.collectives} collectives, {report.collective_bytes:,} bytes"
        print(f"epoch {epoch}: loss of the last batch {report.loss:.4f}, {said}")
print(f"rank {rank}: loss {everything.value():.8f}", flush=True)
dist.destroy_process_group()
