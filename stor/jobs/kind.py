"""What jobs of one kind have of their own; all else, `jobs/jobs.py` does for every kind."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from stor.jobs.job import Job
from stor.jobs.run import Counts, Run


class Refused(Exception):
    """What was asked of a job cannot be done; one line."""


class NotNow(Exception):
    """What a job needs is not there: it waits, and goes on from its cursor when that may be."""


class Impossible(Exception):
    """What a job is to do can never be done: it fails; one line."""


class Kind(ABC):
    """How jobs of one kind are begun, do their work, and end.

    A kind asks `Jobs` for its jobs by its `name`, when somebody asks for them or in `due`.
    """

    #: Of the jobs, as their users see it, and in what is kept of them.
    name: str

    #: Whether its jobs work at disks at which others work, too.
    beside_others: bool = False

    @abstractmethod
    async def work(self, run: Run) -> None:
        """Do a job from its cursor on to its end; tell `run` how far it has come.

        Before each read it awaits `run.turn`. Raises `Halted` as that does; `NotNow`, `DiskAway`,
        `Busy` or `OSError` when it has to wait; `Impossible` when it fails. All that it has
        told `run` of is done, also after a crash.
        """

    def turn(self, job: Job) -> int:
        """Which jobs come first at a disk: those with the lower number halt the others."""
        return 2 if job.period_seconds is not None else 1

    def obstacle(self, job: Job) -> str | None:
        """Why a job that could begin now has to wait, if it has to; one line."""
        return None

    def due(self) -> None:
        """Add what is to be done though nobody has asked for it; called every now and then."""

    def done(self, job: Job) -> None:
        """A job has come to its end."""

    def changed(self, job: Job) -> None:
        """The operator has changed a job's state."""

    def remembered(self, job: Job) -> bool:
        """Whether a job that is over is known as long as that is so, however many came since."""
        return False

    def revocable(self, job: Job) -> bool:
        """Whether a job that is done can be cancelled all the same."""
        return False

    def lasting(self, job: Job) -> str | None:
        """Why a job cannot be cancelled, if it cannot; one line."""
        return None

    def counts(self, job: Job) -> Counts:
        """Where what a job meets is counted beside the job itself."""
        return Counts()

    def kept(self) -> Mapping[str, Any]:
        """What a restart has to know beside the jobs, for JSON; its keys are no other kind's."""
        return {}

    def load(self, value: Mapping[str, Any]) -> None:
        """Know what `kept` has given. Raises `KeyError`, `TypeError`, `ValueError`."""
