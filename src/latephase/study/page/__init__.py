"""The page of a study: tables, figures, and the HTML around them. Nothing here imports torch."""

from .charts import Chart as Chart
from .charts import Look as Look
from .charts import Mark as Mark
from .charts import chart_of as chart_of
from .charts import remember as remember
from .charts import remember_guide as remember_guide
from .charts import remember_shade as remember_shade
from .figures import save_all as save_all
from .page import picture as picture
from .page import render_scores as render_scores
from .page import whole_page as whole_page
from .page import write_report as write_report
from .style import FINAL as FINAL
from .style import INITIAL as INITIAL
from .style import Style as Style
from .style import save as save
from .style import styles_of as styles_of
