"""The benchmark's numbers as tables: on a terminal and in Markdown."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

Rows = list[list[str]]
MEBIBYTE = 2**20


def contenders(result: dict[str, Any]) -> list[str]:
    """Names of all contenders, in order."""
    return list(dict.fromkeys(name for network in result["networks"] for name in network.get("contenders", {})))


def products(result: dict[str, Any], spread: bool = True) -> tuple[list[str], Rows]:
    """Heading and rows of the costs of a product, with quartiles where the spread is wanted."""
    names = contenders(result)
    rows = []
    for network in result["networks"]:
        if "error" in network:
            rows.append([network["title"], "fails", *[""] * (1 + len(names))])
            continue
        own, gradient = network["contenders"], network["gradient"]
        absolute = [f"{1000 * gradient['seconds']:.1f}", f"{gradient['memory']['bytes'] / MEBIBYTE:.0f}"]
        rows.append([network["title"], *absolute, *(_cell(own.get(name), "product", spread) for name in names)])
    return ["network, batch", "gradient, ms", "MiB", *names], rows


def parts(result: dict[str, Any], spread: bool = True) -> tuple[list[str], Rows]:
    """Heading and rows of the other parts of a step, and of memory; see `products`."""
    heading = ["network, batch", "method", "v'Gv", "once per step", "step", "memory: product", "memory: step"]
    rows = []
    for network in result["networks"]:
        step = network.get("step")
        for method, record in network.get("contenders", {}).items():
            if "quadratic_form" not in record:
                continue
            costs = [_cell(record, name, spread) for name in ("quadratic_form", "once_per_step")]
            rows.append([network["title"], method, *costs, _numbers(step, spread), _memory(record), _memory(step)])
            step = None  # steps choose their method themselves: said once
    return heading, rows


def _cell(record: dict[str, Any] | None, quantity: str, spread: bool) -> str:
    return "" if record is None else _numbers(record if "error" in record else record.get(quantity), spread)


def _numbers(cell: dict[str, Any] | None, spread: bool = True) -> str:
    if cell is None:
        return ""
    if "error" in cell:
        return cell["error"] if cell["error"] == "not installed" else "fails"
    low, high = cell["quartiles"]
    return f"{cell['ratio']:.2f}" + (f" [{low:.2f}, {high:.2f}]" if spread else "")


def _memory(record: dict[str, Any] | None) -> str:
    memory = (record or {}).get("memory")
    return "" if memory is None else f"{memory['ratio']:.2f}"


def notes(result: dict[str, Any]) -> list[str]:
    """What the numbers are, in sentences."""
    settings, machine = result["settings"], result["environment"]
    allocator = result["allocator"]
    kept = "as it is by default" if allocator == "default" else " ".join(f"{k}={v}" for k, v in allocator.items())
    packages = [f"{name} {version or 'not installed'}" for name, version in machine.get("packages", {}).items()]
    lines = [
        "Costs are ratios to the gradient of the same batch, by hand in float32: medians of "
        f"{settings['rounds']} interleaved rounds, with quartiles. A step is a Hessian-free step of ten iterations of "
        "conjugate gradients, judged on half a batch. Memory is the peak of tensors beside parameters and data, as a "
        "ratio to the gradient's; that of a product includes loss, gradient and what is kept between products.",
        f"torch {machine.get('torch')}, {', '.join(packages)}; {machine.get('cpu')}, device {machine.get('device')}, "
        f"{settings['threads']} thread{'s' * (settings['threads'] != 1)}; glibc's allocator, for all alike: {kept}; "
        f"latephase {machine.get('latephase')}, commit {machine.get('git_commit')}.",
    ]
    overhead = result["sgd_overhead"]
    if "error" not in overhead:
        lines.append(f"An SGD step through Objective over one by hand (digits CNN, 32): {_numbers(overhead)}.")
    return lines


def failures(result: dict[str, Any]) -> list[str]:
    """A line for each thing that failed; packages that are not installed do not count."""
    lines = []
    for network in result["networks"]:
        found = {"": network, "step": network.get("step", {})} | network.get("contenders", {})
        errors = {name: record["error"] for name, record in found.items() if "error" in record}
        lines += [
            f"{network['title']}{f', {name}' if name else ''}: {error}"
            for name, error in errors.items()
            if error != "not installed"
        ]
    return lines


def terminal(result: dict[str, Any]) -> list[Table]:
    """The tables for a terminal, without quartiles, for which there is no room."""
    pairs = {"A Gauss-Newton product, in gradients": products, "The rest of a step, in gradients": parts}
    tables = []
    for title, make in pairs.items():
        heading, rows = make(result, spread=False)
        table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        left = 2 if make is parts else 1
        for position, name in enumerate(heading):
            table.add_column(name, justify="left" if position < left else "right", no_wrap=position < left)
        for row in rows:
            table.add_row(*row)
        tables.append(table)
    return tables


def markdown(result: dict[str, Any]) -> str:
    """Tables and notes as Markdown."""
    failed = failures(result)
    sections = [
        "# Benchmark",
        "## A Gauss-Newton product, in gradients",
        _markdown_table(*products(result)),
        "## The rest of a step, in gradients",
        _markdown_table(*parts(result)),
        *notes(result),
        *(["What failed:", "\n".join(f"- {line}" for line in failed)] if failed else []),
    ]
    return "\n\n".join(sections) + "\n"


def _markdown_table(heading: Sequence[str], rows: Rows) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
