"""The rows of migrations: the job, its journal, its approvals, what it leaves in the world, and leases."""

from jobs.models.adoption import Adoption
from jobs.models.approval import Approval, Decision
from jobs.models.archive import Archive
from jobs.models.backup import Rehearsal
from jobs.models.footprint import Footprint
from jobs.models.job import Job
from jobs.models.lease import Lease
from jobs.models.policy import Policy
from jobs.models.removal import Removal
from jobs.models.search import Word
from jobs.models.steprun import StepRun
from jobs.models.submission import Submission
from volmig.refusals import Moved, Refused

__all__ = [
    "Adoption",
    "Approval",
    "Archive",
    "Decision",
    "Footprint",
    "Job",
    "Lease",
    "Moved",
    "Policy",
    "Refused",
    "Rehearsal",
    "Removal",
    "StepRun",
    "Submission",
    "Word",
]
