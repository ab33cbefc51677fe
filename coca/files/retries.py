"""Errors of the system: they may pass, and say nothing of a file's content.

A disk, a network or a limit of this machine can fail a read of sound bytes. Such a read is tried again, and then ends
what is under way; only bytes that could be read, or a file that is not there, are evidence of damage.
"""

import errno
import os
import re
import time
from collections.abc import Callable
from typing import TypeVar

from absl import logging
from etils import epath

T = TypeVar("T")

PAUSES = (0.25, 1, 4, 16)  # seconds before the second try, the third, ...

# These come of what a file or a path holds; any other number is the system's.
_EVIDENCE = {
  errno.ENOENT,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.ELOOP,
  errno.ENAMETOOLONG,
  errno.EINVAL,
  errno.EILSEQ,
  errno.ENXIO,
  errno.EFBIG,
  errno.EOVERFLOW,
  errno.ERANGE,
  errno.EDOM,
}
# Libraries in C++ give an error's words only, and gRPC's name of its kind, where they read from a store.
_WORDS = re.compile(
  "(?:^|: )(?:"
  + "|".join(re.escape(os.strerror(n)) for n in sorted(errno.errorcode) if n not in _EVIDENCE)
  + r")(?=$|[\n;,.]| \[)|\b(?:RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|"
  r"CANCELLED|ABORTED)\b"
)


# Those of stores have exceptions of their own, also for what does not answer.
_CLIENTS = ("gcsfs", "aiohttp", "requests", "google.api_core", "google.auth", "google.cloud", "s3fs", "botocore")


class Unavailable(OSError):
  """A file or a store failed in several tries: an error of the system, which does not mean damage."""


def of_the_system(error: BaseException | None) -> bool:
  """True if an exception, or one that it came from, tells of the system and not of what was read."""
  while error is not None:
    if isinstance(error, (Unavailable, MemoryError, PermissionError, TimeoutError, ConnectionError)) or _forbidden(
      error
    ):
      return True
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and isinstance(number, int):
      return number not in _EVIDENCE
    if type(error).__module__.startswith(_CLIENTS) and _status(error) not in (404, 412):
      return True
    if _WORDS.search(str(error)):
      return True
    error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
  return False


def again(read: Callable[[], T], name: str, may_pass: Callable[[Exception], bool] = of_the_system) -> T:
  """The result of `read()`, tried again after errors that may pass.

  Args:
    read: without arguments; run from the start each time.
    name: of the file, for messages.
    may_pass: which of its exceptions are worth another try; others are raised as they are.

  Raises:
    Unavailable: the error did not pass.
  """
  pauses = iter(PAUSES)
  while True:
    try:
      return read()
    except Exception as e:
      if not may_pass(e):
        raise
      pause = next(pauses, None)
      if pause is None or _refused(e):
        raise Unavailable(f"{name}: {' '.join(str(e).splitlines())}") from e
      logging.warning("%s: %s; another try in %g s", name, e, pause)
    time.sleep(pause)


def _refused(error: Exception) -> bool:
  """True if waiting makes no sense: no right to read, by the system, gcsfs, or an HTTP server's status."""
  status = _status(error)
  return (
    isinstance(error, PermissionError)
    or _forbidden(error)
    or (status is not None and 400 <= status < 500 and status not in (408, 429))
  )


def _forbidden(error: BaseException) -> bool:
  """True if it is what gcsfs makes of the status 403."""
  return type(error) is OSError and str(error).startswith("Forbidden")


def _status(error: BaseException) -> int | None:
  """The HTTP status of which an exception tells, as the clients of stores have it: a number, or its digits."""
  status = getattr(error, "status", None) or getattr(error, "code", None)
  return int(status) if isinstance(status, int) or (isinstance(status, str) and status.isdecimal()) else None


def exists(path) -> bool:
  """True if something is at a path, local or a URL; unlike pathlib's, it does not take an error for absence.

  Raises:
    Unavailable: the system does not say.
  """
  try:
    if "://" in str(path):
      return again(epath.Path(path).exists, str(path))
    again(lambda: os.stat(path), str(path))
    return True
  except (FileNotFoundError, NotADirectoryError):
    return False
