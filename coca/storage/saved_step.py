"""One saved step: the names of its arrays, its record, and how both are read and judged."""

import asyncio
import hashlib
import json
import logging as python_logging
import re
from contextlib import contextmanager, suppress

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging

from coca.config.differing import differing, listed
from coca.files import retries
from coca.storage.checksums import checksums


class Damaged(Exception):
  """One step's files are missing, unreadable or not what was written."""


def read_arrays(path, wanted: dict, whole: bool = True):
  """({name: array}, record) of the step at `path`, not yet verified; `whole`: no other arrays may be there."""
  record = read_record(path)
  stored = {name: leaf[:2] for name, leaf in record["leaves"].items() if whole or name in wanted}
  _check_structure(path, {name: describe(x) for name, x in wanted.items()}, stored)
  written = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in wanted.items() if x.size}
  args = ocp.args.PyTreeRestore(
    written, restore_args=ocp.checkpoint_utils.construct_restore_args(written), partial_restore=not whole
  )
  try:
    # The handler rather than the manager: it has no barrier between processes in which the others would wait for
    # one that failed.
    with one_error():
      arrays = ocp.PyTreeCheckpointHandler().restore(path / "state", args=args)
  except Exception as e:
    raise _judged(e) from e
  arrays = arrays if isinstance(arrays, dict) else {}
  for name, x in written.items():  # from damaged metadata come other types, or other shapes
    found = arrays.get(name)
    if (
      not isinstance(found, jax.Array)
      or (found.shape, found.dtype) != (x.shape, x.dtype)
      or not found.sharding.is_equivalent_to(x.sharding, len(x.shape))
    ):
      raise Damaged(f"{name}: {type(found).__name__} {getattr(found, 'shape', '')} is read")
  return {
    name: arrays[name] if x.size else jnp.zeros(x.shape, x.dtype, device=x.sharding) for name, x in wanted.items()
  }, record


class _Loop(asyncio.SelectorEventLoop):
  def __init__(self):
    super().__init__()
    self.set_exception_handler(lambda *_: None)

  def call_soon_threadsafe(self, *args, **kwargs):
    try:
      return super().call_soon_threadsafe(*args, **kwargs)
    except RuntimeError:  # by a read or write that ends after the loop
      if not self.is_closed():
        raise

  def close(self):
    left = set()
    if not self.is_closed():
      with suppress(RuntimeError):  # other threads change what `all_tasks` goes through
        left = asyncio.all_tasks(self)
    for task in left:
      task.cancel()
    if left:
      self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    super().close()


def _not_orbax(record) -> bool:
  return record.levelno < python_logging.ERROR or "/orbax/" not in record.pathname


@contextmanager
def one_error():
  """A context in which a read or save that fails tells one error, the one that is raised.

  Orbax prints it from each of its threads, and closes its loop under the other arrays, each of which then complains.
  """
  made = asyncio.new_event_loop
  if made is _Loop:  # on already
    yield
    return
  # Orbax makes a loop itself, or leaves that to `asyncio.run`.
  asyncio.new_event_loop = asyncio.events.new_event_loop = _Loop
  logging.get_absl_logger().addFilter(_not_orbax)
  try:
    yield
  finally:
    asyncio.new_event_loop = asyncio.events.new_event_loop = made
    logging.get_absl_logger().removeFilter(_not_orbax)


def _judged(error: Exception, what: str = "") -> Exception:
  """The meaning of an error while reading: Damaged, or Unavailable where it says nothing of the files themselves."""
  if isinstance(error, jax.errors.JaxRuntimeError):  # memory of the devices, another process
    raise error
  if retries.of_the_system(error):
    return retries.Unavailable(f"{what}{type(error).__name__}: {short(error)}")
  leaf = re.search(r"'path': '([^'/]+)/'|\"([^\"/]+)/\.zarray\"", f"{error}\n{error.__cause__}")
  where = f"{leaf[1] or leaf[2]}: " if leaf else ""
  return Damaged(f"{what}{where}{type(error).__name__}: {short(error)}")


def short(error: Exception) -> str:
  line = str(error).partition("\n")[0].partition(" [tensorstore_spec")[0].partition(" [os_error_code")[0]
  return line if len(line) <= 200 else f"... {line[-200:]}"  # what happened comes last


def read_record(path) -> dict:
  try:
    record = dict(ocp.JsonCheckpointHandler().restore(path / "meta"))
    sound = record["sha256"] == digest(record)
  except Exception as e:  # of many types, where the JSON is another one than was written
    raise _judged(e, "meta: ") from e
  if not sound:
    raise Damaged("meta is not what was written (checksum)")
  return record


def compare(arrays: dict, record: dict) -> str | None:
  sums = checksums(arrays)
  wrong = [name for name in arrays if sums[name] != record["leaves"][name][2]]
  return f"checksum of {listed(wrong, joint=', ')} differs from what was saved" if wrong else None


def _check_structure(path, wanted: dict, stored: dict) -> None:
  lines = [
    f"{name}: {_say(there)} in the checkpoint, {_say(here)} wanted"
    for name, (there, here) in differing(stored, wanted).items()
  ]
  if lines:
    raise ValueError(
      f"{path} was saved with other settings ({len(lines)} arrays differ); go on with those it was "
      f"made with, or take another workdir:\n  {listed(lines)}"
    )


def _say(leaf) -> str:
  return f"{leaf[1]}{leaf[0]}" if leaf else "none"


def _is_key(x) -> bool:
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def flatten(tree, prefix: str = "") -> dict:
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
      x = (
        jax.random.key_data(x)
        if isinstance(x, jax.Array)
        else jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=x.sharding)
      )
    arrays[name] = x
  return arrays


def unflatten(abstract, arrays: dict):
  leaves, treedef = jax.tree.flatten(abstract)
  restored = [
    jax.random.wrap_key_data(x, impl=_key_impl(leaf)) if _is_key(leaf) else x
    for leaf, x in zip(leaves, arrays.values(), strict=True)
  ]
  return jax.tree.unflatten(treedef, restored)


def _key_impl(abstract_key):
  found = []  # key_impl takes arrays and tracers only
  jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), abstract_key)
  return found[0]


def describe(x) -> list:
  return [list(x.shape), str(x.dtype)]


def digest(record: dict) -> str:
  return hashlib.sha256(json.dumps([record["meta"], record["leaves"]], sort_keys=True).encode()).hexdigest()
