"""Checkpoints of a training state: asynchronous, verified, restorable on any number of devices. All of Orbax is here.

A step is a directory `DIRECTORY/STEP` with two items: `state`, the arrays by their path in the pytree, and `meta`, a
JSON record of the caller's `meta` and every array's shape, type and checksum. Orbax commits a step by a rename, so a
process killed at any moment leaves the previous steps as they were. Neither Orbax nor its storage notices a changed
byte in an array; the checksums do.
"""

import hashlib
import json
import os
import re
import signal
import threading
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from coca.checksums import checksums
from coca.host import from_first

DAMAGED = ".damaged"  # appended to the name of a step that failed its checks


class CheckpointError(RuntimeError):
  """A checkpoint could not be written, or none of those that exist can be used."""


class _Damaged(Exception):
  """One step's files are missing, unreadable or not what was written."""


class Checkpoints:
  """The checkpoints of one run. Every process calls every method, with the same step.

  Args:
    directory: local path or fsspec-like URL (gs://); made when missing.
    keep: how many of the latest steps stay.
    keep_every: every step that is a multiple of this stays for good; 0: none.
    timeout: seconds after which a save in the background counts as failed.
  """

  def __init__(self, directory, keep: int = 2, keep_every: int = 0, timeout: int = 1200):
    if keep < 1 or keep_every < 0:
      raise ValueError(f"checkpoint.keep is {keep}, keep_every {keep_every}: keep at least 1, every 0 (none) or more")
    self.directory = _path(directory)
    preserve = [policies.LatestN(keep)] + [policies.EveryNSteps(keep_every)] * (keep_every > 0)
    self._manager = ocp.CheckpointManager(self.directory, options=ocp.CheckpointManagerOptions(
      save_decision_policy=policies.FixedIntervalPolicy(1),  # the caller decides when
      preservation_policy=policies.AnyPreservationPolicy(preserve),
      async_options=ocp.AsyncOptions(timeout_secs=timeout),
      cleanup_tmp_directories=True,
      lightweight_initialize=True,  # reads no step's files, so that a damaged one is met in restore()
    ))

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
    arrays = _flatten(state)
    for name, x in arrays.items():
      if not isinstance(x, jax.Array):
        raise TypeError(f"state leaf '{name}' is a {type(x).__name__}, no jax.Array; put it on the devices or in meta")
    sums = checksums(arrays)
    record = {"meta": json.loads(json.dumps(meta)),
              "leaves": {name: [*_describe(x), sums[name]] for name, x in arrays.items()}}
    record["sha256"] = _digest(record)
    written = {name: x for name, x in arrays.items() if x.size}  # Orbax refuses empty arrays
    with self._named_errors(f"saving step {step}"):
      self._manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(written),
                                                       meta=ocp.args.JsonSave(record)), force=True)
    return True

  def restore(self, abstract_state):
    """Reads and verifies the latest usable step; damaged ones are reported, renamed and passed over.

    Args:
      abstract_state: pytree of `jax.ShapeDtypeStruct`s (or arrays) with the shardings to restore to; the mesh
        may be another than at the save.

    Returns:
      (state, meta, step), or None where no checkpoint was ever completed.

    Raises:
      CheckpointError: there are checkpoints, but each is damaged.
      ValueError: the step holds other arrays than `abstract_state`; the first differing ones are listed.
    """
    self.wait()
    wanted = _flatten(abstract_state)
    while (step := self.latest_step()) is not None:
      arrays = record = damage = None
      try:
        arrays, record = _read(self.directory / str(step), wanted)
      except _Damaged as e:
        damage = str(e)
      if _any_process(damage is not None):  # agreed before the checksums, which all processes compute together
        damage = damage or "another process could not read its part"
      else:
        damage = _compare(arrays, record)
      if damage is None:
        return _unflatten(abstract_state, arrays), record["meta"], step
      self._set_aside(step, damage)
    if self.directory.exists() and (lost := sorted(p.name for p in self.directory.iterdir() if DAMAGED in p.name)):
      raise CheckpointError(f"no usable checkpoint in {self.directory}, only {', '.join(lost)}. Copy one back from "
                            "elsewhere, or remove these to start from the first step")
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
    with self._named_errors("a save in the background"):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the save in the background and ends the threads; raises as `wait` does."""
    with self._named_errors("a save in the background"):
      self._manager.close()

  @contextmanager
  def _named_errors(self, doing: str):
    try:
      yield
    except Exception as e:
      if re.match("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED): ", str(e)):  # jax's runtime: another process is gone
        raise
      raise CheckpointError(f"{doing} to {self.directory} failed: {type(e).__name__}: {e}. Is the disk full, or the "
                            "directory gone or not writable?") from e

  def _set_aside(self, step: int, damage: str) -> None:
    path = self.directory / str(step)
    target, n = f"{path}{DAMAGED}", 1
    while epath.Path(target).exists():
      target, n = f"{path}{DAMAGED}{n}", n + 1
    logging.warning("checkpoint %s is damaged: %s. It becomes %s, and the one before is used.", path, damage, target)
    if jax.process_index() == 0:
      path.rename(target)
    _any_process(False)  # a barrier: the rename is seen by all
    self._manager.reload()


def load_params(directory, abstract_params, part: str | None = None):
  """Only the parameters of the latest usable checkpoint, verified; the optimizer's moments are not read.

  Nothing in `directory` is changed, so a run that trains there at the moment is not disturbed.

  Args:
    directory: of `Checkpoints`.
    abstract_params: pytree as `state["params"]` was, of `jax.ShapeDtypeStruct`s with shardings: any devices.
    part: top-level entry of the state; None: 'ema' where the checkpoint has one, else 'params'.

  Raises:
    FileNotFoundError: no checkpoint.
    CheckpointError: each one is damaged.
    ValueError: other parameters than `abstract_params`; the first differing ones are listed.
  """
  directory, tried = _path(directory), {}
  while True:
    steps = [s for s in ocp.utils.checkpoint_steps(directory) if s not in tried]
    step = int(from_first(np.array(max(steps, default=-1))))  # another may be saved while the processes look
    if step < 0:
      break
    path, arrays, record, damage = directory / str(step), None, None, None
    try:
      record = _record(path)
      has_ema = any(name.startswith("ema.") for name in record["leaves"])
      wanted = _flatten(abstract_params, part or ("ema" if has_ema else "params"))
      arrays, record = _read(path, wanted, whole=False)
    except _Damaged as e:
      damage = str(e)
    if _any_process(damage is not None):
      damage = damage or "another process could not read its part"
    else:
      damage = _compare(arrays, record)
    if damage is None:
      return _unflatten(abstract_params, arrays)
    logging.warning("checkpoint %s is damaged: %s. The one before is used.", path, damage)
    tried[step] = damage
  if tried:
    raise CheckpointError(f"no usable checkpoint in {directory}; damaged: {', '.join(map(str, tried))}")
  raise FileNotFoundError(f"no checkpoint in {directory}; train there first, or name another directory")


class Preemption:
  """`with Preemption() as preempted:` and then `if preempted(step): save and stop`, called at every step.

  With one process, SIGTERM sets a flag. With several, jax's preemption service takes the SIGTERM of any process (or
  the platform's notice) and makes all of them stop at the same step; its handler is then left in place.
  """

  def __init__(self):
    self._asked = threading.Event()

  def __enter__(self):
    self._single = jax.process_count() == 1
    if self._single:
      self._previous = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
    return self

  def __exit__(self, *_):
    if self._single:
      signal.signal(signal.SIGTERM, self._previous)

  def __call__(self, step: int) -> bool:
    """Whether to save after `step` and stop: the same answer on every process."""
    return self._asked.is_set() if self._single else multihost_utils.reached_preemption_sync_point(step)


# --- Reading ---


def _read(path, wanted: dict, whole: bool = True):
  """({name: array}, record) of the step at `path`, not yet verified; `whole`: no other arrays may be there."""
  record = _record(path)
  stored = {name: leaf[:2] for name, leaf in record["leaves"].items() if whole or name in wanted}
  _check_structure(path, {name: _describe(x) for name, x in wanted.items()}, stored)
  written = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in wanted.items() if x.size}
  args = ocp.args.PyTreeRestore(written, restore_args=ocp.checkpoint_utils.construct_restore_args(written),
                                partial_restore=not whole)
  try:
    # The handler rather than the manager: it has no barrier between processes in which the others would wait for
    # one that failed.
    arrays = ocp.PyTreeCheckpointHandler().restore(path / "state", args=args)
  except Exception as e:
    raise _damaged_or_raise(e) from e
  return {name: arrays[name] if x.size else jnp.zeros(x.shape, x.dtype, device=x.sharding)
          for name, x in wanted.items()}, record


def _damaged_or_raise(error: Exception) -> _Damaged:
  """Raises what says nothing about the files themselves again: memory, network, permissions."""
  cause, text = error, ""
  while cause is not None:
    if isinstance(cause, (MemoryError, PermissionError, TimeoutError, ConnectionError, jax.errors.JaxRuntimeError)):
      raise error
    text += f"{cause}\n"
    cause = cause.__cause__
  if re.search("RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|CANCELLED", text):
    raise error
  leaf = re.search(r"'path': '([^'/]+)/'|\"([^\"/]+)/\.zarray\"", text)
  where = f"{leaf[1] or leaf[2]}: " if leaf else ""
  return _Damaged(f"{where}{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")


def _record(path) -> dict:
  try:
    record = ocp.JsonCheckpointHandler().restore(path / "meta")
    if record["sha256"] != _digest(record):
      raise _Damaged("meta is not what was written (checksum)")
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise _Damaged(f"meta: {_damaged_or_raise(e)}") from e
  return record


def _compare(arrays: dict, record: dict) -> str | None:
  sums = checksums(arrays)
  wrong = [name for name in arrays if sums[name] != record["leaves"][name][2]]
  return f"checksum of {_some(wrong)} differs from what was saved" if wrong else None


def _check_structure(path, wanted: dict, stored: dict) -> None:
  differing = [f"  {name}: {_say(stored.get(name))} in the checkpoint, {_say(wanted.get(name))} wanted"
               for name in sorted(wanted | stored) if wanted.get(name) != stored.get(name)]
  if differing:
    raise ValueError(f"{path} was saved with other settings ({len(differing)} arrays differ); go on with those it was "
                     "made with, or take another workdir:\n" + _some(differing, "\n", "  "))


def _say(leaf) -> str:
  return f"{leaf[1]}{leaf[0]}" if leaf else "none"


def _some(items: list[str], joint: str = ", ", indent: str = "", most: int = 8) -> str:
  return joint.join(items[:most] + ([f"{indent}and {len(items) - most} more"] if len(items) > most else []))


# --- Helpers ---


def _path(directory):
  return epath.Path(directory if "://" in str(directory) else os.path.abspath(directory))


def _any_process(flag: bool) -> bool:
  return bool(multihost_utils.process_allgather(np.array(flag)).any()) if jax.process_count() > 1 else flag


def _is_key(x) -> bool:
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _flatten(tree, prefix: str = "") -> dict:
  """{path with dots: leaf}, PRNG keys as their uint32 data. The names do not depend on Flax's classes."""
  arrays = {}
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):  # of an nnx.Variable: not part of the name
      path = path[:-1]
    name = ".".join(filter(None, (prefix, jax.tree_util.keystr(path, simple=True, separator="."))))
    if name in arrays:
      raise ValueError(f"two leaves of the state are called '{name}'; rename the entry with a dot in its name")
    if hasattr(x, "dtype") and _is_key(x):
      data = jax.eval_shape(jax.random.key_data, x)
      x = jax.random.key_data(x) if isinstance(x, jax.Array) else jax.ShapeDtypeStruct(
        data.shape, data.dtype, sharding=x.sharding)
    arrays[name] = x
  return arrays


def _unflatten(abstract, arrays: dict):
  leaves, treedef = jax.tree.flatten(abstract)
  restored = [jax.random.wrap_key_data(x, impl=_key_impl(leaf)) if _is_key(leaf) else x
              for leaf, x in zip(leaves, arrays.values(), strict=True)]
  return jax.tree.unflatten(treedef, restored)


def _key_impl(abstract_key):
  found = []  # key_impl takes arrays and tracers only
  jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), abstract_key)
  return found[0]


def _describe(x) -> list:
  return [list(x.shape), str(x.dtype)]


def _digest(record: dict) -> str:
  return hashlib.sha256(json.dumps([record["meta"], record["leaves"]], sort_keys=True).encode()).hexdigest()
