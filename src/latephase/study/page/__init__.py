"""The page of a study: tables, figures, and the HTML around them. Nothing here imports torch."""

from .page import page_templates as page_templates
from .page import picture as picture
from .page import write_report as write_report
from .style import FINAL as FINAL
from .style import INITIAL as INITIAL
from .style import Style as Style
from .style import save as save
from .style import styles_of as styles_of
