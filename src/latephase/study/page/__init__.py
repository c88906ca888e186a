"""The page of a study: tables, figures, and the HTML around them. Nothing here imports torch."""

from .page import write_report as write_report
from .style import FINAL as FINAL
from .style import INITIAL as INITIAL
from .style import save as save
