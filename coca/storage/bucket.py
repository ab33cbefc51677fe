"""A workdir in a bucket, `gs://...` or `s3://...`, as what reads and writes it through etils' epath sees it.

What goes otherwise than in a folder: nothing is appended to or renamed, an object is there whole or not at all, and a
write may ask that nobody has written since.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec.config
import tensorstore
from etils import epath

from coca.files.retries import again
from coca.files.writing import write_atomic
from coca.storage import s3

SECONDS = 30  # that a request for a small object may take, with its tries
STORES = ("gs://", "s3://")
_TRY = {"max_retries": 3, "initial_delay": "500ms", "max_delay": "4s"}
_TRIES = {"gcs_request_retries": _TRY, "s3_request_retries": _TRY}
_ABSENT = b"\2"  # tensorstore's generation of what is not there

# What is listed is asked for anew: other clients, such as tensorstore's, and other hosts write there too.
for name in ("gs", "s3"):
  fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)


def in_bucket(path) -> bool:
  return "://" in str(path)


def workdir_path(workdir: str):
  """The path of a run that is to be trained: a folder's, or an epath in a bucket that is there and may be used.

  Raises:
    ValueError: another store than those of `STORES`, no such bucket, or no right to it.
    ImportError: its client is not installed.
    OSError: it can't be reached.
  """
  if not in_bucket(workdir):
    return Path(workdir).absolute()
  if not workdir.startswith(STORES):
    raise ValueError(
      f"--workdir={workdir}: checkpoints can be written to a folder, to gs:// or to s3://, and to no other store. "
      "Give a folder on a disk that all hosts see"
    )
  path = epath.Path(workdir)
  if len(path.parts) < 4:  # /, gs, bucket, run
    raise ValueError(f"--workdir={workdir} names no folder in a bucket; give {workdir[:2]}://BUCKET/RUN")
  (s3.check if workdir.startswith("s3://") else _check_gs)(path.parts[2], workdir)
  return path


def _check_gs(bucket: str, workdir: str) -> None:
  """As Orbax does it when it removes a checkpoint: what it lacks then is told now."""
  install = f"--workdir={workdir} needs gcsfs and Google's clients: pip install -e '.[gs]'"
  try:
    import gcsfs  # noqa: F401
    from google.api_core.exceptions import ClientError
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage
  except ImportError as e:
    raise ImportError(f"{install} ({e})") from None
  try:
    found = storage.Client().get_bucket(bucket, timeout=SECONDS, retry=None)  # pyright: ignore[reportArgumentType]
  except DefaultCredentialsError as e:
    raise ValueError(
      f"--workdir={workdir}: no credentials for gs:// here: gcloud auth application-default login, or a "
      "service account with a role for the bucket"
    ) from e
  except ClientError as e:
    raise ValueError(
      f"--workdir={workdir}: the bucket can't be used: {e.code} {e.message.splitlines()[0]}. Is its "
      "name right? The roles needed are storage.objectUser and storage.bucketViewer"
    ) from e
  except Exception as e:  # of requests, urllib3 or google.auth
    raise OSError(f"--workdir={workdir} can't be reached: {type(e).__name__}: {e}") from e
  if getattr(found, "hierarchical_namespace_enabled", False):
    try:
      from google.cloud import storage_control_v2  # noqa: F401  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
      raise ImportError(f"{install}; this bucket has folders: pip install google-cloud-storage-control") from None


def names(folder) -> list[str]:
  """The names in a folder, local or in a bucket; empty where there is none.

  Raises:
    coca.files.retries.Unavailable: it can't be listed.
  """
  try:
    return again(lambda: [path.name for path in epath.Path(folder).iterdir()], str(folder))
  except FileNotFoundError:
    return []


class Object:
  """One small object that several processes may want to write: a write counts if nobody has written since `read`.

  Raises, in each method:
    OSError: the store does not answer, or refuses.
  """

  def __init__(self, url: str):
    folder, self._name = url[: url.rindex("/") + 1], url.rpartition("/")[2]
    spec = s3.kvstore(folder) if url.startswith("s3://") else folder
    self._store = self._answer(tensorstore.KvStore.open(spec, context=tensorstore.Context(_TRIES)))
    self._generation = _ABSENT

  def read(self) -> bytes | None:
    """Its contents; None: it is not there."""
    found = self._answer(self._store.read(self._name))
    self._generation = found.stamp.generation
    return None if found.state == "missing" else found.value

  def write(self, data: bytes | None) -> bool:
    """Writes `data`, or removes it for None, unless another has written since this read or wrote; whether it did."""
    done = self._answer(self._store.write(self._name, data, if_equal=self._generation))
    if done.generation:
      self._generation = done.generation
    return bool(done.generation)

  def _answer(self, future):
    try:
      return future.result(timeout=SECONDS)
    except (ValueError, TimeoutError) as e:
      raise OSError(f"{self._name}: {e}") from e


@contextmanager
def local_folder(folder) -> Iterator[Path]:
  """A folder for what can only write to local ones: `folder`, or one that is copied to it when the block ends."""
  if not in_bucket(folder):
    yield Path(folder)
    return
  with tempfile.TemporaryDirectory() as scratch:
    try:
      yield Path(scratch)
    finally:
      for path in sorted(Path(scratch).rglob("*")):
        if path.is_file():
          write_atomic(folder / path.relative_to(scratch).as_posix(), path.read_bytes())
