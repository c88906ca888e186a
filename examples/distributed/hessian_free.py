"""Hessian-free steps on several processes: the model in DistributedDataParallel, each rank with every n-th row.

torchrun --standalone --nproc-per-node 2 examples/distributed/hessian_free.py

Each iteration of conjugate gradients adds a product up over the ranks; the report says how much they sent.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from latephase import HessianFree, Objective

dist.init_process_group("gloo")  # "nccl" where each rank has a GPU
rank, ranks = dist.get_rank(), dist.get_world_size()
generator = torch.Generator().manual_seed(0)
x = torch.randn(1200, 10, generator=generator)
y = (x[:, :2].square().sum(1) > 1.5).long() + (x[:, 2] > 1).long()
(x, held_out_x), (y, held_out_y) = x.split(1000), y.split(1000)

torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 3)))
loss = nn.CrossEntropyLoss()
objective = Objective(model, loss, (x[rank::ranks], y[rank::ranks]), weight_decay=1e-4)
held_out = Objective(model, loss, (held_out_x[rank::ranks], held_out_y[rank::ranks]))
optimizer = HessianFree(model.parameters())
for step in range(15):
    optimizer.step(objective, evaluation=held_out)  # every rank in every step
    report = optimizer.report
    assert report is not None
    if rank == 0:  # every rank has the same report
        said = f"{report.collectives} collectives, {report.collective_bytes:,} bytes"
        print(f"step {step}: loss {report.loss:.4f}, held out {report.new_evaluation_loss:.4f}, {said}")
print(f"rank {rank}: loss {objective.value():.8f}", flush=True)
dist.destroy_process_group()
