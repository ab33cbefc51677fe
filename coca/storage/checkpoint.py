"""Checkpoints of a training state: asynchronous, verified, restorable on any number of devices. All of Orbax is here.

A step is a directory `DIRECTORY/STEP` with two items: `state`, the arrays by their path in the pytree, and `meta`, a
JSON record of the caller's `meta` and every array's shape, type and checksum. Orbax commits a step by a rename, and in
a bucket by an object that it writes last, so a process killed at any moment leaves the previous steps as they were.
Neither Orbax nor its storage notices a changed byte in an array; the checksums do. An error of the system is no damage:
it is tried again, and nothing is changed.
"""

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from coca.devices.host import from_first
from coca.files import retries
from coca.storage import s3
from coca.storage.bucket import STORES, in_bucket
from coca.storage.checksums import checksums
from coca.storage.saved_step import (
  Damaged,
  compare,
  describe,
  digest,
  flatten,
  one_error,
  read_arrays,
  read_record,
  short,
  unflatten,
)

_NEVER = 10 * 365 * 24 * 3600  # seconds; Orbax' own time-out goes by the clock on the wall, which may jump

DAMAGED = ".damaged"  # appended to the name of a step that failed its checks
_OBJECT = 400 * 2**20  # bytes of one in a bucket, Orbax' own number for gs://; S3 takes at most 5 GiB at once
# Bytes of the least part of an array that a replica writes. Of less, one replica writes all: each part is cut by a
# program of its own, and to compile these was 5.6 s of a small model's first save on 8 fake devices.
_PART = 2**16
_MARKER = "commit_success.txt"  # in a bucket Orbax writes it last; a folder has its name when it is complete


class CheckpointError(RuntimeError):
  """A checkpoint could not be written, or none of those that exist can be used."""


class _FirstBehind(NamedTuple):
  """A policy of what is preserved. Orbax' own asks for multiples of `every`, which need not be steps that are saved."""

  every: int

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    past = [0, *(checkpoint.step // self.every for checkpoint in checkpoints)]
    return [now > before for before, now in itertools.pairwise(past)]


class Checkpoints:
  """The checkpoints of one run. Every process calls every method, with the same step.

  Args:
    directory: local path or a URL, gs:// or s3://; made when missing.
    keep: how many of the latest steps stay.
    keep_every: the first one at or behind each multiple of so many steps stays for good; 0: none.
    timeout: seconds after which a save in the background counts as failed.
  """

  def __init__(self, directory, keep: int = 2, keep_every: int = 0, timeout: int = 1200):
    if keep < 1 or keep_every < 0:
      raise ValueError(f"checkpoint.keep is {keep}, keep_every {keep_every}: keep at least 1, every 0 (none) or more")
    self.directory, self._timeout, self._begun, self._saving = _path(directory), timeout, 0.0, ExitStack()
    self._in_bucket = in_bucket(self.directory)
    preserve = [policies.LatestN(keep)] + [_FirstBehind(keep_every)] * (keep_every > 0)
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_PART)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, handler))
    self._manager = ocp.CheckpointManager(
      self.directory,
      item_handlers={
        "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        "meta": ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        save_decision_policy=policies.FixedIntervalPolicy(1),  # the caller decides when
        preservation_policy=policies.AnyPreservationPolicy(preserve),
        async_options=ocp.AsyncOptions(timeout_secs=_NEVER),
        # Orbax' own choice is this one for gs://, and a rename for all else.
        temporary_path_class=ocp.path.atomicity.CommitFileTemporaryPath if self._in_bucket else None,
        cleanup_tmp_directories=True,
        lightweight_initialize=True,  # reads no step's files, so that a damaged one is met in restore()
      ),
    )

  def save(self, step: int, state, meta: dict) -> bool:
    """Copies `state` off the devices and writes it in the background; `state` may be donated afterwards.

    Args:
      step: of the state; a step that exists already is left alone.
      state: pytree of jax.Arrays (PRNG keys too), sharded in any way.
      meta: JSON values.

    Returns:
      Whether a save was begun.

    Raises:
      CheckpointError: this save, or the one before it in the background, failed.
      TypeError: a leaf is no jax.Array, or `meta` no JSON.
    """
    self.check()
    if step in self._manager.all_steps():
      return False
    arrays = flatten(state)
    for name, x in arrays.items():
      if not isinstance(x, jax.Array):
        raise TypeError(f"state leaf '{name}' is a {type(x).__name__}, no jax.Array; put it on the devices or in meta")
    sums = checksums(arrays)
    record = {
      "meta": json.loads(json.dumps(meta)),
      "leaves": {name: [*describe(x), sums[name]] for name, x in arrays.items()},
    }
    record["sha256"] = digest(record)
    written = {name: x for name, x in arrays.items() if x.size}  # Orbax refuses empty arrays
    with self._named_errors(f"saving step {step}"):
      self._saving.enter_context(one_error())
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(written, ocdbt_target_data_file_size=_OBJECT if self._in_bucket else None),
          meta=ocp.args.JsonSave(record),
        ),
        force=True,
      )
    self._begun = time.monotonic()
    return True

  def restore(self, abstract_state):
    """Reads and verifies the latest usable step; damaged ones are reported, renamed and passed over, all but the last.

    Args:
      abstract_state: pytree of `jax.ShapeDtypeStruct`s (or arrays) with the shardings to restore to; the mesh
        may be another than at the save.

    Returns:
      (state, meta, step), or None where no checkpoint was ever completed.

    Raises:
      CheckpointError: there are checkpoints, but each is damaged, or the system can't read them.
      ValueError: the step holds other arrays than `abstract_state`; the first differing ones are listed.
    """
    self.wait()
    wanted = flatten(abstract_state)
    gone = set()
    while (step := _newest(self.directory, gone)) >= 0:
      path = self.directory / str(step)
      try:
        arrays, record = _by_all(lambda path=path: read_arrays(path, wanted), path)
        damage = compare(arrays, record)
      except Damaged as e:
        damage = str(e)
      if damage is None:
        return unflatten(abstract_state, arrays), record["meta"], step
      if _is_there(path):
        self._set_aside(step, damage)
      else:  # removed meanwhile: no damage
        gone.add(step)
    if lost := sorted(name for name in _names(self.directory) if DAMAGED in name):
      raise CheckpointError(
        f"no usable checkpoint in {self.directory}, only {', '.join(lost)}. Copy one back from "
        "elsewhere, or remove these to start from the first step"
      )
    return None

  def latest_step(self) -> int | None:
    """The last step saved or being saved; None: there is none."""
    return self._manager.latest_step()

  def check(self) -> None:
    """Raises CheckpointError, once, if the save in the background has failed; waits for nothing."""
    if not self._manager.is_saving_in_progress():  # then this returns at once
      self.wait()

  def wait(self) -> None:
    """Waits for the save in the background.

    Raises:
      CheckpointError: it failed.
    """
    with self._named_errors("a save in the background"), self._saving:
      while self._manager.is_saving_in_progress():
        if time.monotonic() - self._begun > self._timeout:
          raise TimeoutError(f"it has not come to its end in {self._timeout} s")
        time.sleep(0.01)
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the save in the background and ends the threads; raises as `wait` does."""
    try:
      self.wait()
    finally:
      with self._named_errors("a save in the background"):
        self._manager.close()

  @contextmanager
  def _named_errors(self, doing: str):
    try:
      yield
    except Exception as e:
      # jax's runtime: another process is gone. tensorstore's errors of the disk begin alike.
      if re.match("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED): ", str(e)) and not re.search("tensorstore|os_error", str(e)):
        raise
      raise CheckpointError(
        f"{doing} to {self.directory} failed: {type(e).__name__}: {short(e)}. Is the disk full, "
        "or the directory gone or not writable?"
      ) from e

  def _set_aside(self, step: int, damage: str) -> None:
    path = self.directory / str(step)
    if _newest(self.directory, {step}) < 0:
      raise CheckpointError(
        f"{path} is damaged: {damage}. It is the only one, and is left as it is: copy a sound one "
        "back from elsewhere, or remove it to start from the first step"
      )
    target, n = f"{path}{DAMAGED}", 1
    while epath.Path(target).exists():
      target, n = f"{path}{DAMAGED}{n}", n + 1
    logging.warning("checkpoint %s is damaged: %s. It becomes %s, and the one before is used.", path, damage, target)
    if jax.process_index() == 0:
      s3.move(path, target) if target.startswith("s3://") else path.rename(target)
    _worst(_FINE)  # a barrier: the rename is seen by all
    self._manager.reload()


def load_params(directory, abstract_params, part: str | None = None):
  """Only the parameters of the latest usable checkpoint, verified; the optimizer's moments are not read.

  Nothing in `directory` is changed, so a run that trains there at the moment is not disturbed.

  Args:
    directory: of `Checkpoints`.
    abstract_params: pytree as the state's `params` was, of `jax.ShapeDtypeStruct`s with shardings: any devices.
    part: top-level entry of the state; None: 'ema' where the checkpoint has one, else 'params'.

  Raises:
    FileNotFoundError: no checkpoint.
    CheckpointError: each one is damaged, or the system can't read them.
    ValueError: other parameters than `abstract_params`; the first differing ones are listed.
  """

  def read(path):
    has_ema = any(name.startswith("ema.") for name in read_record(path)["leaves"])
    return read_arrays(path, flatten(abstract_params, part or ("ema" if has_ema else "params")), whole=False)

  directory, damaged, gone = _path(directory), [], set()
  while (step := _newest(directory, {*damaged, *gone})) >= 0:
    path = directory / str(step)
    try:
      arrays, record = _by_all(lambda path=path: read(path), path)
      damage = compare(arrays, record)
    except Damaged as e:
      damage = str(e)
    if damage is None:
      return unflatten(abstract_params, arrays)
    if _newest(directory, {*damaged, *gone}) > step or not _is_there(path):
      gone.add(step)  # no damage: the run that trains there removes old ones
    else:
      logging.warning("checkpoint %s is damaged: %s. The one before is used.", path, damage)
      damaged.append(step)
  if damaged:
    raise CheckpointError(f"no usable checkpoint in {directory}; damaged: {', '.join(map(str, damaged))}")
  raise FileNotFoundError(f"no checkpoint in {directory}; train there first, or name another directory")


def complete(directory) -> list[int]:
  """The steps that were written to their end.

  Raises:
    OSError, or what the client of a store raises (`coca.files.retries.of_the_system`): the directory can't be listed.
  """
  steps = [int(name) for name in _names(directory) if name.isdecimal()]
  return [step for step in steps if (directory / str(step) / _MARKER).exists()] if in_bucket(directory) else steps


# --- All processes together ---

_FINE, _DAMAGE, _TROUBLE = range(3)


def _worst(found: int) -> int:
  return int(multihost_utils.process_allgather(np.array(found)).max()) if jax.process_count() > 1 else found


def _by_all(read: Callable, path) -> Any:
  """`read()` on every process; on all of them again where an error of the system stops one.

  Raises, on every process:
    Damaged: one of them found damage.
    CheckpointError: the error did not pass.
  """
  for pause in (*retries.PAUSES, None):
    result, problem, found = None, "", _FINE
    try:
      result = read()
    except Damaged as e:
      problem, found = str(e), _DAMAGE
    except Exception as e:
      if not isinstance(e, OSError) and not retries.of_the_system(e):
        raise
      problem, found = str(e), _TROUBLE
    worst = _worst(found)
    if worst == _FINE:
      return result
    problem = problem if found == worst else "another process could not read its part"
    if worst == _DAMAGE:
      raise Damaged(problem)
    if pause is None:
      raise CheckpointError(
        f"{path} can't be read: {problem}. That is an error of the system and no damage, and "
        "nothing was changed: look at the disk, the network, and the limits of memory and of open "
        "files; the same command then goes on"
      )
    logging.warning("%s can't be read: %s; another try in %g s", path, problem, pause)
    time.sleep(pause)


def _newest(directory, without: Collection[int] = ()) -> int:
  """The last complete step, as the first process sees it: another may be saved meanwhile. -1: none.

  Orbax' own lists take a directory at which the system fails for absent.
  """

  def newest():
    return max((step for step in complete(directory) if step not in without), default=-1)

  return int(from_first(np.array(_by_all(newest, directory))))


def _is_there(path) -> bool:
  return bool(from_first(np.array(_by_all(lambda: retries.exists(path), path))))


# --- Helpers ---


def _path(directory):
  if not in_bucket(directory):
    return epath.Path(os.path.abspath(directory))
  if not str(directory).startswith(STORES):
    raise ValueError(
      f"{directory}: checkpoints are read from a folder, gs:// or s3://, and from no other store; copy the workdir "
      "to a folder"
    )
  if str(directory).startswith("s3://"):
    s3.teach_orbax()
  return epath.Path(directory)


def _names(directory) -> list[str]:
  try:
    return [path.name for path in directory.iterdir()]
  except FileNotFoundError:
    return []
