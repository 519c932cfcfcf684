"""Why a job does not run."""

from app.core.errors import AppError, ErrorKind


class TooManyJobs(AppError):
    """Too many uploads at once."""

    kind = ErrorKind.TOO_MANY
    code = "too-many-uploads"


class WorkerBusy(AppError):
    """Too many uploads wait."""

    kind = ErrorKind.UNAVAILABLE
    code = "worker-busy"


class WorkerUnavailable(AppError):
    """The worker process cannot be started."""

    kind = ErrorKind.UNAVAILABLE
    code = "worker-unavailable"
