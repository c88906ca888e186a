"""Performing a study: training, runs, their files and identities, and where they are performed."""

from .active_run import ActiveRun as ActiveRun
from .called import announcement as announcement
from .conducting import ALLOCATOR as ALLOCATOR
from .conducting import ExecutorError as ExecutorError
from .conducting import StudyError as StudyError
from .conducting import conduct as conduct
from .conducting import resolve as resolve
from .conducting import stopped_by as stopped_by
from .dry_run import check_executor as check_executor
from .dry_run import describe as describe
from .dry_run import parse_shard as parse_shard
from .evaluate import Evaluator as Evaluator
from .identity import code_version as code_version
from .identity import own_code as own_code
from .processes import Job as Job
from .processes import Pool as Pool
from .processes import how_ended as how_ended
from .progress import StudyProgress as StudyProgress
from .run import fresh_start as fresh_start
from .run import make_way as make_way
from .runs import Conditions as Conditions
from .runs import RunKey as RunKey
