"""Suites: the same strategies on several problems, each a study of its own. Importing this needs no torch."""

from .command import describe_suite as describe_suite
from .command import perform_suite as perform_suite
from .command import read_command as read_command
from .command import report_suite as report_suite
from .command import say_suite as say_suite
from .page import draw_suite as draw_suite
from .page import write_suite_report as write_suite_report
from .reading import holds_suite as holds_suite
from .reading import is_suite as is_suite
from .scores import SuiteScores as SuiteScores
from .scores import read_scores as read_scores
