import asyncio
import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import logging

from coca.files import retries
from coca.storage.checkpoint import CheckpointError, Checkpoints, load_params
from support.checkpoints import (
  abstract,
  arrays,
  assert_same,
  damage,
  largest,
  mesh_of,
  place,
  restored,
  saved,
  with_key,
)

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def warnings(monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
  return said


# --- Saving and restoring ---


@pytest.mark.parametrize("target", [(8, 1), (2, 4), (1, 2), None])
def test_restore_on_another_mesh_is_exact(tmp_path, target):
  saved(tmp_path, [1, 7], mesh_of(2, 4))
  mesh = target and mesh_of(*target)
  state, meta, step = restored(tmp_path, mesh)
  expected = with_key(arrays(7), mesh)
  assert (step, meta) == (7, {"step": 7})
  assert_same(state, expected)
  assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, expected)


def test_meta_and_special_values_come_back(tmp_path):
  meta = {"config": {"lr": 8e-4, "crop": [0.1, 1.0], "name": "ümlaut \u2603"}, "seed": 2**40, "none": None, "ok": True}
  bits = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 1, 0x7F800000], np.uint32)  # NaNs with a payload, -0, denormal
  state = {"x": jnp.asarray(bits.view(np.float32)), "empty": jnp.zeros((0, 3))}
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(3, state, meta)
  got, got_meta, _ = checkpoints.restore(abstract(state))
  checkpoints.close()
  assert got_meta == meta
  assert np.array_equal(np.asarray(got["x"]).view(np.uint32), bits)
  assert got["empty"].shape == (0, 3)


def test_state_may_be_donated_while_it_is_written(tmp_path):
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = step(jnp.zeros((512, 1024)))
  checkpoints = Checkpoints(tmp_path, keep=4)
  for n in range(1, 5):
    checkpoints.save(n, {"x": x}, {})
    for _ in range(5):
      x = step(x)
  checkpoints.close()
  for n in range(4, 0, -1):
    (got, _, found), checkpoints = (c := Checkpoints(tmp_path)).restore(abstract({"x": x})), c
    assert found == n and np.all(np.asarray(got["x"]) == 5 * (n - 1) + 1)
    checkpoints.close()
    (tmp_path / str(n)).rename(tmp_path / f"seen-{n}")


def test_nothing_saved_restores_nothing(tmp_path):
  assert restored(tmp_path / "new") is None


def test_keeps_the_latest_and_every_nth(tmp_path):
  saved(tmp_path, range(1, 10), keep=2, keep_every=3)
  assert sorted(int(p.name) for p in tmp_path.iterdir()) == [3, 6, 8, 9]


def test_kept_for_good_are_the_first_ones_behind_multiples(tmp_path):
  saved(tmp_path, range(4, 33, 4), keep=1, keep_every=9)
  assert sorted(int(p.name) for p in tmp_path.iterdir()) == [12, 20, 28, 32]


def test_saving_a_step_twice_leaves_it_alone(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.save(1, place(arrays(1)), {})
  assert not checkpoints.save(1, place(arrays(2)), {})
  assert checkpoints.latest_step() == 1
  checkpoints.close()


def test_wrong_arguments_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"checkpoint\.keep is 0"):
    Checkpoints(tmp_path, keep=0)
  checkpoints = Checkpoints(tmp_path)
  with pytest.raises(TypeError, match=r"'params\.n' is a int"):
    checkpoints.save(1, {"params": {"n": 3}}, {})
  with pytest.raises(TypeError, match="JSON"):
    checkpoints.save(1, place(arrays(1)), {"x": object()})
  checkpoints.close()


def test_other_structure_is_an_error_that_lists_the_arrays(tmp_path):
  saved(tmp_path, [1, 2])
  wanted = with_key(arrays(0))
  wanted["params"]["kernel"] = jnp.zeros((16, 32))
  wanted["params"]["pooler"] = jnp.zeros(3)
  wanted["params"]["embedding"] = jnp.zeros((64, 5))
  del wanted["mask"]
  checkpoints = Checkpoints(tmp_path)
  with pytest.raises(ValueError) as e:
    checkpoints.restore(abstract(wanted))
  for line in (
    "params.kernel: float32[16, 24] in the checkpoint, float32[16, 32] wanted",
    "4 arrays differ",
    "params.pooler: none in the checkpoint, float32[3] wanted",
    "mask: bool[7] in the checkpoint, none wanted",
    "params.embedding: bfloat16[64, 5] in the checkpoint, float32[64, 5] wanted",
  ):
    assert line in str(e.value)
  checkpoints.close()
  assert restored(tmp_path)[2] == 2  # not taken for damage


def until_checked(checkpoints):
  for _ in range(6000):
    checkpoints.check()
    time.sleep(0.01)


@contextmanager
def full_disk():
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_save_speaks_once(tmp_path, caplog):
  """Orbax' threads would print the error, and their own of its loop, as often as there are arrays."""
  new_event_loop = asyncio.new_event_loop
  checkpoints = Checkpoints(tmp_path)
  with full_disk(), pytest.raises(CheckpointError, match=f"to {tmp_path} failed"):
    checkpoints.save(2, {name: jax.random.normal(jax.random.key(0), (512, 512)) for name in "abcdefgh"}, {})
    checkpoints.wait()
  checkpoints.close()
  assert not [record for record in caplog.records if record.levelname == "ERROR"]
  assert asyncio.new_event_loop is new_event_loop


def test_a_failed_save_is_loud(tmp_path):
  x = {"x": jax.random.normal(jax.random.key(0), (512, 512))}
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, x, {})
  checkpoints.wait()
  with full_disk():
    for raises in (lambda: checkpoints.save(9, x, {}), checkpoints.wait, lambda: until_checked(checkpoints)):
      checkpoints.save(2, x, {})
      with pytest.raises(CheckpointError, match=f"to {tmp_path} failed"):
        raises()
    assert checkpoints.latest_step() == 1
  again = Checkpoints(tmp_path)
  assert again.restore(abstract(x))[2] == 1
  again.save(3, x, {})  # this waits for Orbax' thread that removes what the failed save left behind
  again.close()
  assert {p.name for p in tmp_path.iterdir()} == {"1", "3"}


def test_an_error_of_the_disk_is_told_from_a_lost_process(tmp_path, monkeypatch):
  """tensorstore's begin as those of jax's runtime do."""
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, place(arrays(1)), {})

  def fail(text):
    def wait_until_finished():
      raise ValueError(text)

    return wait_until_finished

  with monkeypatch.context() as patch:
    patch.setattr(
      checkpoints._manager,
      "wait_until_finished",
      fail("UNKNOWN: Error writing local file \"/x\": Failed to rename: Input/output error [os_error_code='5']"),
    )
    with pytest.raises(CheckpointError, match=r'"/x": Failed to rename: Input/output error\. Is the disk full'):
      checkpoints.wait()
    patch.setattr(
      checkpoints._manager,
      "wait_until_finished",
      fail(
        'UNKNOWN: Error opening "zarr" driver: Failed to open: "/x": Input/output error [os_error_code=\'5\'] '
        "[tensorstore_spec='{}']"
      ),
    )
    with pytest.raises(CheckpointError, match=r'ValueError: .*"/x": Input/output error\. Is the disk full'):
      checkpoints.wait()
    patch.setattr(checkpoints._manager, "wait_until_finished", fail("UNKNOWN: Gloo: Connection closed by peer"))
    with pytest.raises(ValueError, match="Gloo"):
      checkpoints.wait()
  checkpoints.close()


@pytest.mark.parametrize("leap", [7200, -3600])
def test_a_clock_that_jumps_while_a_step_is_saved(tmp_path, monkeypatch, leap):
  """The first three times that Orbax looks how long it has waited, the clock on the wall was put forward or back.

  It looks again and again where the machine is busy, and its signals wait for half a day at most.
  """
  real, jumped = time.time, [0]

  def leaping():
    jumped[0] += jumped[0] < 3 and sys._getframe(1).f_code.co_filename.endswith("futures/future.py")
    return real() + leap * jumped[0]

  monkeypatch.setattr(time, "time", leaping)
  saved(tmp_path, [1, 2, 3], keep=2)
  assert jumped[0] == 3 and sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
  assert restored(tmp_path)[2] == 3


def test_a_save_that_does_not_end_is_an_error(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path, timeout=0)
  checkpoints.save(1, place(arrays(1)), {})
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints._manager, "is_saving_in_progress", lambda: True)
    with pytest.raises(CheckpointError, match="it has not come to its end in 0 s"):
      checkpoints.wait()
  checkpoints._timeout = 1200
  checkpoints.close()


# --- Parameters only ---


def test_load_params_reads_nothing_else(tmp_path):
  saved(tmp_path, [1], mesh_of(2, 4))
  record = json.loads((tmp_path / "1/meta/metadata").read_text())
  assert record["leaves"]["moments.mu.kernel"][:2] == [[16, 24], "float32"]
  params = abstract(place(arrays(0)["params"]))
  assert_same(load_params(tmp_path, params), place(arrays(1)["params"]))
  with pytest.raises(ValueError, match=r"params\.kernel: float32\[16, 24\] in the checkpoint, float32\[3\] wanted"):
    load_params(tmp_path, abstract({"kernel": jnp.zeros(3)}))
  with pytest.raises(FileNotFoundError, match="no checkpoint"):
    load_params(tmp_path / "none", params)


def test_load_params_prefers_the_average(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, {"params": place(arrays(1)["params"]), "ema": place(arrays(2)["params"])}, {})
  checkpoints.close()
  params = abstract(place(arrays(0)["params"]))
  assert_same(load_params(tmp_path, params), place(arrays(2)["params"]))
  assert_same(load_params(tmp_path, params, "params"), place(arrays(1)["params"]))


def test_load_params_passes_over_damage_and_changes_nothing(tmp_path, warnings):
  saved(tmp_path, [1, 2])
  for path in (tmp_path / "2").rglob("d/*"):  # all of them: the largest may hold moments alone, which are not read
    damage(path)
  params = abstract(place(arrays(0)["params"]))
  assert_same(load_params(tmp_path, params), place(arrays(1)["params"]))
  assert len(warnings) == 1 and str(tmp_path / "2") in warnings[0]
  assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
  (tmp_path / "1/meta/metadata").unlink()
  with pytest.raises(CheckpointError, match="damaged: 2, 1"):
    load_params(tmp_path, params)


# --- Damage ---


@pytest.mark.slow
def test_a_flipped_bit_never_goes_unnoticed(tmp_path, warnings):
  """In every file of a step, at random places: either nothing was lost, or the step before is used."""
  saved(tmp_path / "good", [1, 2], mesh_of(2, 4))
  rng, used = np.random.default_rng(0), []
  for n, path in enumerate(sorted(p for p in (tmp_path / "good/2").rglob("*") if p.is_file())):
    copy = tmp_path / str(n)
    subprocess.run(["cp", "-r", tmp_path / "good", copy], check=True)
    target = copy / path.relative_to(tmp_path / "good")
    damage(target, rng.integers(target.stat().st_size, size=3), int(rng.integers(8)))
    state, meta, step = restored(copy, mesh_of(2, 4))
    assert meta == {"step": step}
    assert_same(state, with_key(arrays(step), mesh_of(2, 4)))
    assert (copy / "2.damaged").exists() == (step == 1)
    used.append(step)
  assert 1 in used and 2 in used  # some files, such as those of the other sharding, hold nothing that is read
  assert len(warnings) == used.count(1)


def mutants(original: Path, seed: int, count: int):
  """(what was done, file, bytes or None for a file that is gone): each file in turn, at random places."""
  rng = np.random.default_rng(seed)
  names = sorted(p.relative_to(original) for p in original.rglob("*") if p.is_file())
  for n in range(count):
    name = names[n % len(names)]
    data, kind = bytearray((original / name).read_bytes()), n // len(names)
    place = int(rng.integers(max(len(data), 1)))
    if kind == 0:
      yield "gone", name, None
    elif kind == 1:
      yield f"cut to {place} bytes", name, data[:place]
    elif data:
      bit = int(rng.integers(8))
      data[place] ^= 1 << bit
      yield f"bit {bit} of byte {place}", name, data


@pytest.mark.slow
def test_no_mutant_gives_anything_but_the_state_or_the_one_before(tmp_path, warnings):
  """A bit, the end or all of a file is lost, also in what Orbax keeps beside the arrays."""
  saved(tmp_path, [1, 2])
  expected = {step: with_key(arrays(step)) for step in (1, 2)}
  wanted, used = abstract(expected[1]), []
  copy = tmp_path / "copy"
  shutil.copytree(tmp_path / "2", copy)
  for what, name, data in mutants(copy, 3, 60):
    target = tmp_path / "2" / name
    target.unlink()
    if data is not None:
      target.write_bytes(data)
    checkpoints = Checkpoints(tmp_path)
    params = load_params(tmp_path, wanted["params"])
    assert any(np.array_equal(params["kernel"], expected[step]["params"]["kernel"]) for step in (1, 2)), (what, name)
    state, meta, step = checkpoints.restore(wanted)
    checkpoints.close()
    assert meta == {"step": step}, (what, name)
    assert_same(state, expected[step])
    used.append(step)
    for left in (tmp_path / "2", tmp_path / "2.damaged"):
      shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(copy, tmp_path / "2")
  assert used.count(1) > 10 and used.count(2) > 10


@pytest.mark.parametrize("kind", ["jax.ShapeDtypeStruct", "other shape", "nothing"])
def test_what_orbax_gives_is_looked_at(tmp_path, warnings, monkeypatch, kind):
  """From damaged metadata it makes shapes in the place of arrays, without an error."""
  saved(tmp_path, [1, 2])
  read = ocp.PyTreeCheckpointHandler.restore

  def restore(self, path, args):
    found = read(self, path, args=args)
    if "/2/" in str(path):
      kernel = found.pop("params.kernel")
      found |= {
        "jax.ShapeDtypeStruct": {"params.kernel": args.item["params.kernel"]},
        "other shape": {"params.kernel": kernel.T},
        "nothing": {},
      }[kind]
    return found

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", restore)
  assert_same(load_params(tmp_path, abstract(place(arrays(0)["params"]))), place(arrays(1)["params"]))
  assert restored(tmp_path)[2] == 1
  assert all("params.kernel: " in warning and "is read" in warning for warning in warnings) and len(warnings) == 2


def test_metadata_without_a_name_is_damage(tmp_path, warnings):
  saved(tmp_path, [1, 2])
  path = tmp_path / "2/state/_METADATA"
  path.write_text(re.sub(r'\[\{"key": "params.embedding", "key_type": 2\}\]', "[]", path.read_text()))
  assert_same(load_params(tmp_path, abstract(place(arrays(0)["params"]))), place(arrays(1)["params"]))
  assert len(warnings) == 1


def test_damage_names_directory_and_array_and_the_step_can_be_saved_again(tmp_path, warnings):
  saved(tmp_path, [1, 2])
  damage(largest(tmp_path / "2"))
  checkpoints = Checkpoints(tmp_path)
  wanted = abstract(with_key(arrays(0)))
  state, _, step = checkpoints.restore(wanted)
  assert step == 1 and checkpoints.latest_step() == 1
  assert_same(state, with_key(arrays(1)))
  assert len(warnings) == 1 and str(tmp_path / "2") in warnings[0]
  assert re.search(r"(params\.kernel|params\.embedding|moments\.mu\.kernel)", warnings[0])
  assert checkpoints.save(2, with_key(arrays(2)), {})
  assert checkpoints.restore(wanted)[2] == 2
  checkpoints.close()
  assert (tmp_path / "2.damaged").exists()


@pytest.mark.parametrize("cut", ["truncated", "missing", "json"])
def test_unreadable_files_are_damage(tmp_path, warnings, cut):
  saved(tmp_path, [1, 2])
  path = tmp_path / "2/meta/metadata" if cut == "json" else largest(tmp_path / "2")
  if cut == "missing":
    path.unlink()
  else:
    path.write_bytes(path.read_bytes()[:100])
  state, _, step = restored(tmp_path)
  assert step == 1 and "damaged" in warnings[0]
  assert_same(state, with_key(arrays(1)))


def test_changed_meta_is_damage(tmp_path, warnings):
  saved(tmp_path, [1, 2])
  path = tmp_path / "2/meta/metadata"
  path.write_text(path.read_text().replace('"step": 2', '"step": 3'))
  assert restored(tmp_path)[1:] == ({"step": 1}, 1)
  assert "meta" in warnings[0]


def test_never_starts_anew_where_all_are_damaged_and_leaves_the_last_where_it_is(tmp_path, warnings):
  saved(tmp_path, [1, 2])
  for step in "12":
    damage(largest(tmp_path / step))
  for _ in range(2):  # now, and when it is started again
    with pytest.raises(CheckpointError, match=r"/1 is damaged: .* It is the only one, and is left as it is"):
      restored(tmp_path)
  assert len(warnings) == 1 and sorted(p.name for p in tmp_path.iterdir()) == ["1", "2.damaged"]
  (tmp_path / "1").rename(tmp_path / "1.damaged")  # as earlier versions did
  with pytest.raises(CheckpointError, match=r"no usable checkpoint in .*1\.damaged, 2\.damaged"):
    restored(tmp_path)


# --- Errors of the system ---


@pytest.fixture
def failing(monkeypatch):
  """A list of (function by name, error): where the first one's function is called, it ends in the error."""
  errors = []

  def broken(name, real):
    def call(*args, **kwargs):
      if errors and errors[0][0] == name:
        raise errors.pop(0)[1]
      return real(*args, **kwargs)

    return call

  for owner, name in (
    (ocp.PyTreeCheckpointHandler, "restore"),
    (ocp.JsonCheckpointHandler, "restore"),
    (os, "listdir"),
  ):
    monkeypatch.setattr(owner, name, broken(f"{owner.__name__}.{name}", getattr(owner, name)))
  monkeypatch.setattr(retries, "PAUSES", (0, 0))
  return errors


STATE, META = "PyTreeCheckpointHandler.restore", "JsonCheckpointHandler.restore"
PASSING = [
  (STATE, OSError(errno.EIO, "Input/output error")),
  (META, OSError(errno.ESTALE, "Stale file handle")),
  (STATE, OSError(errno.EMFILE, "Too many open files")),
  (META, TimeoutError(errno.ETIMEDOUT, "Connection timed out")),
  (META, ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")),
  (META, PermissionError("not yours")),
  # What tensorstore makes of them.
  (
    STATE,
    ValueError(
      'UNKNOWN: Error opening "zarr" driver: Error reading local file "/x/manifest.ocdbt": Failed to '
      "read 114 bytes from file at offset 0: Input/output error [tensorstore_spec='{}']"
    ),
  ),
  (STATE, ValueError('ABORTED: Error reading "x/.zarray": Failed to open: "/x": Stale file handle')),
  (STATE, ValueError("RESOURCE_EXHAUSTED: Failed to open: Too many open files")),
  (STATE, ValueError("UNAVAILABLE: CURL error Timeout was reached")),
  ("os.listdir", OSError(errno.EIO, "x")),
]


@pytest.mark.parametrize("kind", range(len(PASSING)))
@pytest.mark.parametrize("reader", ["restore", "load_params"])
def test_errors_of_the_system_are_no_damage(tmp_path, failing, kind, reader):
  """One that passes changes nothing, one that lasts ends it; the checkpoints stay as they are."""
  saved(tmp_path, [1, 2, 3], keep=3)
  wanted = abstract(with_key(arrays(0)))
  checkpoints = Checkpoints(tmp_path)

  def read():
    if reader == "restore":
      state, _, step = checkpoints.restore(wanted)
      assert step == 3
      return state["params"]
    return load_params(tmp_path, wanted["params"])

  failing += [PASSING[kind]] * (2 if not isinstance(PASSING[kind][1], PermissionError) else 1)
  assert_same(read(), with_key(arrays(3))["params"])
  assert not failing
  failing += [PASSING[kind]] * 100
  with pytest.raises(CheckpointError, match="an error of the system and no damage"):
    read()
  failing.clear()
  assert_same(read(), with_key(arrays(3))["params"])
  checkpoints.close()
  assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "3"]


def test_a_step_that_is_removed_while_it_is_read_is_no_damage(tmp_path, monkeypatch, warnings):
  saved(tmp_path, [1, 2])
  read = ocp.JsonCheckpointHandler.restore

  def removed(*args, **kwargs):
    shutil.rmtree(tmp_path / "2", ignore_errors=True)
    return read(*args, **kwargs)

  monkeypatch.setattr(ocp.JsonCheckpointHandler, "restore", removed)
  assert_same(load_params(tmp_path, abstract(place(arrays(0)["params"]))), place(arrays(1)["params"]))
  assert not warnings
