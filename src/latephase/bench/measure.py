"""Measure one network, or what the objective adds to SGD; one process each."""

import gc
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..objective import Objective, peak_bytes
from ..optim import CG, HessianFree
from ..problems.problem import is_weight
from ..records import describe_environment
from .contender import Contender, ours, set_up
from .networks import Data, find
from .peers import PEERS, versions
from .timing import interleave, summarize

CG_ITERATIONS = 10
"""Of the steps that are measured."""

DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16", "float64")

Cell = dict[str, Any]
"""What was measured (see `timing.summarize`), or {"error": why it was not}."""


@dataclass(frozen=True)
class Settings:
    """What to measure, and how.

    Attributes:
        rounds: that count.
        threads: of each process.
        device: "cpu" or "cuda".
        dtypes: of our products; the gradient is always in float32.
        all_methods: our other methods too.
        compiled: our products compiled, too.
    """

    rounds: int = 15
    threads: int = 1
    device: str = "cpu"
    dtypes: list[str] = field(default_factory=lambda: ["float32", "bfloat16"])
    all_methods: bool = False
    compiled: bool = False

    def __post_init__(self):
        unknown = [name for name in self.dtypes if name not in DTYPES]
        if unknown or not self.dtypes:
            raise ValueError(f"dtypes must be among {', '.join(DTYPES)}; got {', '.join(unknown) or 'none'}")
        if self.device not in DEVICES:
            raise ValueError(f"device must be one of {', '.join(DEVICES)}; got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda', and torch sees no GPU")


def measure_network(name: str, settings: Settings) -> dict[str, Any]:
    """Costs and memory of one network, as ratios to the gradient of the same batch.

    Returns:
        name, title, batch_size, parameters; "gradient", a cell; "contenders": by the name in tables "product",
        "quadratic_form", "once_per_step" (cells), "memory" and "difference" (of the product from our first
        contender's, relative), or "error"; "step", a cell with "memory", "cg_iterations", "products", "methods" and the
        share "accepted"; the environment.
    """
    network, device = find(name), torch.device(settings.device)
    torch.set_num_threads(settings.threads)
    model, batch, evaluation = network.build(device)
    size = sum(p.numel() for p in model.parameters())
    v = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(device)
    bench = _Bench(model, network.loss, batch, settings)
    record: dict[str, Any] = {
        "name": name,
        "title": f"{network.title}, {network.batch_size}",
        "batch_size": network.batch_size,
        "parameters": size,
        "environment": environment(settings),
    }
    record |= bench.products(v)
    gc.collect()
    record["step"] = bench.step(evaluation)
    return record


class _Bench:
    """Everything that is measured on one model and batch."""

    def __init__(self, model: nn.Module, loss: nn.Module, batch: Data, settings: Settings):
        self.model, self.loss, self.batch, self.settings = model, loss, batch, settings
        self.device = torch.device(settings.device)
        self.parameters = list(model.parameters())
        self.objective = Objective(model, loss, batch)

    def gradient(self) -> tuple[Tensor, ...]:
        """By hand, in plain torch: what everything is compared with."""
        inputs, targets = self.batch
        return torch.autograd.grad(self.loss(self.model(inputs), targets), self.parameters)

    def products(self, v: Tensor) -> dict[str, Any]:
        """Gradient and contenders, timed in one series of rounds; then their memory."""
        records: dict[str, dict[str, Any]] = {}
        ready: dict[str, Contender] = {}
        reference: Tensor | None = None
        for name, prepare in self._contenders(v).items():
            try:
                contender = prepare()
                contender.first()
                product = contender.product()
            except Exception as error:  # a peer may fail in any way; that is a result
                records[name] = {"error": _reason(error)}
                continue
            reference = product if reference is None else reference
            ready[name] = contender
            records[name] = {"difference": float((product - reference).norm() / reference.norm())}
        timed: dict[str, Callable[[], Any]] = {"gradient": self.gradient}
        for name, contender in ready.items():
            timed[f"{name}: product"] = contender.product
            if contender.quadratic_form is not None:
                timed[f"{name}: quadratic_form"] = contender.quadratic_form
                timed[f"{name}: first"] = contender.first
        times = self._interleave(timed)
        base = times["gradient"]
        for name, contender in ready.items():
            product = times[f"{name}: product"]
            records[name]["product"] = summarize(product, base)
            if contender.quadratic_form is not None:
                setup = [whole - part for whole, part in zip(times[f"{name}: first"], product, strict=True)]
                records[name]["quadratic_form"] = summarize(times[f"{name}: quadratic_form"], base)
                records[name]["once_per_step"] = summarize(setup, base)
        gradient = summarize(base, base) | {"memory": self._memory(self.gradient)}
        ready_names = [name for name in ready if "compiled" not in name]
        for name in ready_names:
            records[name]["memory"] = self._memory(ready[name].first, gradient["memory"]["bytes"])
        return {"gradient": gradient, "contenders": records}

    def step(self, evaluation: Data) -> Cell:
        """Hessian-free steps of ten iterations, one after another, and the gradient in between."""
        optimizer = HessianFree(self.parameters, solver=CG(max_iter=CG_ITERATIONS, tolerance=0.0))
        held_out = Objective(self.model, self.loss, evaluation)
        reports = []

        def step() -> None:
            optimizer.step(self.objective, evaluation=held_out)
            reports.append(optimizer.report)

        try:
            step()
            step()
            reports.clear()
            times = self._interleave({"gradient": self.gradient, "step": step})
        except Exception as error:
            return {"error": _reason(error)}
        cell = summarize(times["step"], times["gradient"])
        cell["cg_iterations"] = sorted({max(report.cg_iterations) for report in reports})
        cell["products"] = sorted({report.products for report in reports})
        cell["methods"] = sorted({report.method for report in reports})
        cell["accepted"] = sum(report.accepted for report in reports) / len(reports)
        cell["memory"] = self._memory(step, self._memory(self.gradient)["bytes"])
        return cell

    def _contenders(self, v: Tensor) -> dict[str, Callable[[], Contender]]:
        settings = self.settings
        table: dict[str, Callable[[], Contender]] = {}
        for name, options in ours(settings.dtypes, settings.all_methods, settings.compiled).items():
            table[name] = lambda options=options: set_up(self.objective, v, options)
        for name, prepare in PEERS.items():
            table[name] = lambda name=name, prepare=prepare: self._peer(name, prepare, v)
        return table

    def _peer(self, name: str, prepare: Callable[..., Contender], v: Tensor) -> Contender:
        if versions()[name] is None:
            raise ModuleNotFoundError("not installed")
        return prepare(self.model, self.loss, *self.batch, v)

    def _interleave(self, candidates: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        return interleave(candidates, self.settings.rounds, wait)

    def _memory(self, call: Callable[[], Any], base: int | None = None) -> dict[str, Any]:
        found = peak_bytes(call, self.device)
        return {"bytes": found} | ({} if base is None else {"ratio": found / base})


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ModuleNotFoundError) else f"{type(error).__name__}: {text}"


def measure_overhead(settings: Settings) -> dict[str, Any]:
    """An SGD step through the objective over the same step written by hand, at batch 32 of the digits CNN; a cell."""
    torch.set_num_threads(settings.threads)
    model, batch, _ = find("digits").build(torch.device("cpu"))
    inputs, targets = batch
    loss = nn.CrossEntropyLoss()
    weights = [p for name, p in model.named_parameters() if is_weight(name, p)]
    biases = [p for name, p in model.named_parameters() if not is_weight(name, p)]
    ours = torch.optim.SGD(model.parameters(), lr=1e-6)
    plain = torch.optim.SGD([{"params": weights, "weight_decay": 5e-4}, {"params": biases}], lr=1e-6)

    def through_objective() -> None:
        ours.step(Objective(model, loss, (inputs, targets), weight_decay=(5e-4, is_weight)))

    def by_hand() -> None:
        plain.zero_grad()
        loss(model(inputs), targets).backward()
        plain.step()

    times = interleave({"ours": through_objective, "plain": by_hand}, 20 * settings.rounds)
    return summarize(times["ours"], times["plain"])


def environment(settings: Settings) -> dict[str, Any]:
    """The machine, the software, and what of them matters to products."""
    record = describe_environment(settings.threads, 1, settings.device)
    flags = _cpu_flags()
    return record | {
        "machine": platform.machine(),
        "avx512_bf16": "avx512_bf16" in flags,
        "amx_bf16": "amx_bf16" in flags,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "packages": versions(),
        "settings": asdict(settings),
    }


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
