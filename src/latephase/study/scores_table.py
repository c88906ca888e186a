"""The scores of a study as a table for the terminal. No torch here."""

from rich import box
from rich.table import Table

from .results import Results, score_results, summarize


def scores_table(results: Results) -> Table:
    """Mean scores over seeds, one line per checkpoint and strategy."""
    scores = score_results(results)
    summaries = {column: summarize(scores, column) for column in (*(m.best for m in results.measures), "steps")}
    title = f"{results.plan.name}: best within the budget, means over seeds"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("epoch", "strategy", *(measure.name for measure in results.measures), "steps"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "strategy" else "right")
    for epoch in results.plan.checkpoints:
        for strategy in results.plan.strategies:
            key = (epoch, strategy.name)
            if key in summaries["steps"]:
                numbers = [measure.value(summaries[measure.best][key].mean) for measure in results.measures]
                table.add_row(str(epoch), strategy.label, *numbers, f"{summaries['steps'][key].mean:.0f}")
        table.add_section()
    return table
