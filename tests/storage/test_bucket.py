"""A workdir in a bucket, in stores of this machine: kills, resumes, two runs at once, a store that can't be used."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest

import coca
from coca.files import retries
from coca.storage import bucket, checkpoint, lock
from coca.storage.checkpoint import CheckpointError, Checkpoints, load_params
from coca.storage.lock import Locked, locked
from coca.storage.workdir import saved_steps
from coca.training import metrics, metrics_file, tensorboard
from coca.training.metrics import Metrics
from support import forked
from support.checkpoints import abstract, arrays, assert_same, saved, with_key
from support.events import events
from support.processes import ROOT, environment, run_here, small_run
from support.s3_store import S3Store
from support.store import BUCKET, Store

RUN = Store.run
both = pytest.mark.parametrize("store", (Store, S3Store), ids=("gs", "s3"), indirect=True)


@pytest.fixture
def store(request, monkeypatch):
  import fsspec

  with_store = getattr(request, "param", Store)()
  for name, value in with_store.env.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})  # which other processes have from the environment
  from etils.epath.backend import fsspec_backend

  fsspec.get_filesystem_class(with_store.run[:2]).clear_instance_cache()
  fsspec_backend._get_filesystem.cache_clear()
  yield with_store
  with_store.close()


@pytest.fixture
def workdir(store):
  return bucket.workdir_path(store.run)


def process(store, script, *args, devices=8, **more):
  env = environment(devices, **{**(store.env if store else {}), **more})
  return subprocess.Popen(
    [forked.python(), *script, *map(str, args)],
    env=env,
    text=True,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    cwd=ROOT,
    process_group=0,
  )


class Kill:
  """Kills whoever sends the first request that matches, and answers nothing."""

  def __init__(self, store, pattern):
    self.victim, self.done, self._store, self._pattern = None, False, store, re.compile(pattern)
    store.asked = self

  def wait(self) -> None:
    """Until the store has done what else the killed process had asked of it."""
    # Connections are accepted in their order: once this one is answered, all of the killed process have a thread.
    with contextlib.suppress(urllib.error.HTTPError):
      urllib.request.urlopen(self._store.env["STORAGE_EMULATOR_HOST"])
    for thread in threading.enumerate():
      if "process_request_thread" in thread.name:
        thread.join(60)

  def __call__(self, method, path):
    if self.done or self.victim is None or not self._pattern.search(f"{method} {path}"):
      return
    self.done = True
    forked.signal(self.victim, signal.SIGKILL)
    self.victim.wait()
    raise ConnectionError


# --- A small object ---


@both
def test_of_two_writers_the_store_takes_one(store):
  one, two = (bucket.Object(f"{store.run}/x") for _ in range(2))
  assert one.read() is two.read() is None
  assert one.write(b"1") and not two.write(b"2") and two.read() == b"1"
  assert two.write(b"2") and not one.write(b"1") and not one.write(None)
  assert one.read() == b"2" and one.write(None) and two.read() is None


# --- Checkpoints ---

SAVES = (
  "-c",
  """
import sys
from support.checkpoints import *
checkpoints = Checkpoints(sys.argv[1])
found = checkpoints.restore(abstract(with_key(arrays(0))))
first = found[2] if found else 0
print("from", first, flush=True)
for step in range(first + 1, int(sys.argv[2]) + 1):
  checkpoints.save(step, with_key(arrays(step)), {"step": step})
  checkpoints.wait()
checkpoints.close()
""",
)


@pytest.mark.slow
def test_killed_while_saving_goes_on_from_an_exact_state(store):
  """Each process goes on from what the one before left when it was killed."""
  first = 0
  for pattern, last in (
    (r"POST .*checkpoints/3/_CHECKPOINT_METADATA", 2),
    (r"POST .*checkpoints/3/state/ocdbt", 2),
    (r"POST .*checkpoints/3/meta/metadata", 2),
    (r"POST .*checkpoints/3/commit_success.txt", 2),
    (r"DELETE .*checkpoints/1/meta/metadata", 3),
  ):
    kill = Kill(store, pattern)
    kill.victim = process(store, SAVES, f"{RUN}/checkpoints", 5)
    out = kill.victim.communicate()[0]
    assert kill.done and kill.victim.returncode == -signal.SIGKILL and f"from {first}\n" in out, out
    kill.wait()
    left = store.names("run/checkpoints/")
    assert saved_steps(RUN)[-1] == last
    # A run that only reads changes nothing.
    wanted = with_key(arrays(last))["params"]
    assert_same(load_params(f"{RUN}/checkpoints", abstract(wanted)), wanted)
    assert store.names("run/checkpoints/") == left
    first = last
  checkpoints = Checkpoints(f"{RUN}/checkpoints")
  for step in (3, 4, 5):
    state, meta, found = checkpoints.restore(abstract(with_key(arrays(0))))
    assert found == step and meta == {"step": step}
    assert_same(state, with_key(arrays(step)))
    if step < 5:
      checkpoints.save(step + 1, with_key(arrays(step + 1)), {"step": step + 1})
      checkpoints.wait()
  checkpoints.close()
  assert {name.split("/")[2] for name in store.names("run/checkpoints/")} == {"4", "5"}
  assert saved_steps(RUN) == [4, 5]


@pytest.mark.slow
@both
def test_a_damaged_step_is_set_aside(store):
  saved(f"{store.run}/checkpoints", (1, 2))
  name = max(store.names("run/checkpoints/2/"), key=lambda name: len(store.read(name)))
  data = bytearray(store.read(name))
  data[25::50] = bytes(x ^ 1 for x in data[25::50])
  bucket.write_atomic(f"{store.run[:2]}://{BUCKET}/{name}", bytes(data))
  whole = {name.split("/", 3)[3] for name in store.names("run/checkpoints/2/")}
  checkpoints = Checkpoints(f"{store.run}/checkpoints")
  assert checkpoints.restore(abstract(with_key(arrays(0))))[2] == 1
  assert checkpoints.latest_step() == 1
  checkpoints.save(2, with_key(arrays(2)), {"step": 2})
  checkpoints.close()
  assert {name.split("/", 3)[3] for name in store.names("run/checkpoints/2.damaged/")} == whole
  assert saved_steps(store.run) == [1, 2, 2]


@pytest.mark.slow
@both
def test_an_error_of_the_store_is_no_damage(store, monkeypatch):
  monkeypatch.setattr(retries, "PAUSES", (0,))
  saved(f"{store.run}/checkpoints", (1, 2))
  checkpoints = Checkpoints(f"{store.run}/checkpoints")
  store.asked = lambda method, path: 403 if "/checkpoints/2/" in path else None
  with pytest.raises(CheckpointError, match="error of the system and no damage"):
    checkpoints.restore(abstract(with_key(arrays(0))))
  store.asked = lambda method, path: None
  assert checkpoints.restore(abstract(with_key(arrays(0))))[2] == 2
  checkpoints.close()
  assert not [name for name in store.names() if checkpoint.DAMAGED in name]


@both
def test_a_save_that_the_store_refuses_is_told(store):
  saved(f"{store.run}/checkpoints", (1,))
  checkpoints = Checkpoints(f"{store.run}/checkpoints")
  store.asked = lambda method, path: 403 if method in ("POST", "PUT") and "checkpoints/2/state/ocdbt" in path else None
  with pytest.raises(CheckpointError, match=r"a save in the background to (gs|s3)://bucket/run/.*(403|Forbidden)"):
    checkpoints.save(2, with_key(arrays(2)), {"step": 2})
    checkpoints.wait()
  checkpoints.close()
  assert saved_steps(store.run) == [1]


# --- Metrics ---


@pytest.mark.slow
@both
def test_lines_come_in_parts_and_a_resume_takes_back_later_ones(workdir, store, monkeypatch):
  monkeypatch.setattr(metrics_file, "PART", 40)
  with Metrics(workdir) as m:
    for step in range(1, 7):
      m.write(step, {"a": step})
      m.flush()
    m.write(7, {"a": 7})
  before = {name: store.read(name) for name in store.names("run/metrics/")}
  assert list(before) == [f"run/metrics/00000{n}.jsonl" for n in range(4)]
  assert metrics.read(workdir / metrics.FILE) == [{"step": step, "a": step} for step in range(1, 8)]
  m = Metrics(workdir, resume_step=4)
  assert len(metrics.read(workdir / metrics.FILE)) == 7  # what is not flushed has not happened
  m.write(5, {"b": 5})
  m.close()
  assert [line["step"] for line in metrics.read(workdir / metrics.FILE)] == [1, 2, 3, 4, 5]
  assert metrics.read(workdir / metrics.FILE)[-1] == {"step": 5, "b": 5}
  assert before.items() <= {name: store.read(name) for name in store.names("run/metrics/")}.items()
  with Metrics(workdir) as m:  # nothing was ever saved
    m.write(1, {"c": 1})
  assert metrics.read(workdir / metrics.FILE) == [{"step": 1, "c": 1}]


def test_lines_are_seen_while_the_run_goes_on(workdir, monkeypatch):
  monkeypatch.setattr(metrics_file, "SHOWN", 0)
  with Metrics(workdir) as m:
    m.write(1, {"a": 1})
    assert metrics.read(workdir / metrics.FILE) == [{"step": 1, "a": 1}]


def test_tensorboard_reads_parts(workdir, store, monkeypatch, tmp_path):
  monkeypatch.setattr(tensorboard, "PART", 100)
  with Metrics(workdir, resume_step=3) as m:
    for step in (4, 5, 6):
      m.write(step, {"train/loss": step / 2})
      m.flush()
  names = store.names("run/tensorboard/")
  assert len(names) > 1
  (tmp_path / "tensorboard").mkdir()
  for name in names:
    (tmp_path / "tensorboard" / Path(name).name).write_bytes(store.read(name))
  found = events(tmp_path)
  assert [e.step for e in found if e.session_log.status == e.session_log.START] == [4]
  assert {e.step: v.simple_value for e in found for v in e.summary.value} == {4: 2, 5: 2.5, 6: 3}


def test_what_only_writes_to_folders_is_copied(workdir, store):
  with bucket.local_folder(workdir / "tensorboard") as folder:
    (folder / "plugins" / "profile").mkdir(parents=True)
    (folder / "plugins" / "profile" / "x.pb").write_bytes(b"trace")
  assert store.names() == ["run/tensorboard/plugins/profile/x.pb"]
  assert store.read("run/tensorboard/plugins/profile/x.pb") == b"trace"


# --- One run at a time ---

HOLDER = (
  "-c",
  """
import os, sys
from coca.storage.lock import locked
with locked(sys.argv[1]):
  print('held by', os.getpid(), flush=True)
  sys.stdin.read()
""",
)


@pytest.fixture
def holder(store):
  """A process that holds the workdir's lock, and its number."""
  held = process(store, HOLDER, RUN)
  while (line := held.stdout.readline()) and not line.startswith("held by "):  # tensorstore says which token it uses
    pass
  yield held, int(line.split()[-1])
  forked.kill(held)
  held.wait()


@pytest.fixture
def fast(monkeypatch):
  monkeypatch.setattr(lock, "BEAT", 0.05)
  monkeypatch.setattr(lock, "PATIENCE", 0.6)


def left(store, **changes):
  with locked(store.run):
    text = json.loads(store.read("run/.lock"))
  assert store.names() == []
  bucket.write_atomic(f"{store.run}/.lock", json.dumps(text | changes).encode())


def test_the_second_run_is_told_who_is_there(store, holder, monkeypatch):
  held, number = holder
  monkeypatch.setattr(time, "sleep", None)  # whoever waits fails
  said = rf"another run is in {RUN}: process {number} on .*, since 20.* another workdir"
  with pytest.raises(Locked, match=said), locked(RUN):
    raise AssertionError("two runs")
  forked.signal(held, signal.SIGKILL)
  held.stdout.read()  # to its end
  with locked(RUN):
    assert json.loads(store.read("run/.lock"))["pid"] == os.getpid()
  assert store.names() == []


@both
def test_another_host_without_signs_of_life_is_gone(store, fast, capfd):
  left(store, host="elsewhere", place="another boot")
  with locked(store.run):
    pass
  assert "on elsewhere was in this workdir; waiting up to" in capfd.readouterr().err


def test_another_host_that_lives_keeps_the_workdir(store, fast):
  left(store, host="elsewhere", place="another boot")
  other, over = bucket.Object(f"{RUN}/.lock"), threading.Event()

  def live():
    while not over.wait(0.05):
      text = json.loads(other.read())
      other.write(json.dumps(text | {"beat": text["beat"] + 1}).encode())

  thread = threading.Thread(target=live)
  thread.start()
  try:
    with pytest.raises(Locked, match="on elsewhere"), locked(RUN):
      pass
  finally:
    over.set()
    thread.join()


@both
def test_of_two_that_take_over_one_does(store, fast, monkeypatch):
  """The other one has written between this one's last look and its write."""
  left(store, host="elsewhere", place="another boot")
  write, rival = bucket.Object.write, json.dumps(json.loads(store.read("run/.lock")) | {"host": "rival"}).encode()

  def late(self, data):
    monkeypatch.setattr(bucket.Object, "write", write)
    bucket.write_atomic(f"{store.run}/.lock", rival)
    return self.write(data)

  monkeypatch.setattr(bucket.Object, "write", late)
  with pytest.raises(Locked, match="on rival"), locked(store.run):
    pass
  assert store.read("run/.lock") == rival


def test_who_finds_its_lock_taken_ends(store, fast, monkeypatch, capfd):
  ended, status = threading.Event(), []

  def end(code):
    status.append(code)
    ended.set()
    raise OSError  # which the thread passes over

  monkeypatch.setattr(os, "_exit", end)
  with locked(RUN):
    taken = json.dumps(json.loads(store.read("run/.lock")) | {"host": "elsewhere"}).encode()
    bucket.write_atomic(f"{RUN}/.lock", taken)
    assert ended.wait(60)
  assert status[0] == lock.processes.LOCKED
  assert "was taken by process" in capfd.readouterr().err
  assert store.read("run/.lock") == taken  # it is the other's


# --- A store that can't be used ---


@pytest.mark.parametrize(
  "url, error, said",
  [
    ("az://bucket/run", ValueError, "to a folder, to gs:// or to s3://"),
    ("gs://bucket", ValueError, "gs://BUCKET/RUN"),
    ("gs://other-bucket/run", ValueError, "404 .* Is its name right"),
  ],
)
def test_another_url_is_refused_before_anything_is_done(store, url, error, said):
  with pytest.raises(error, match=said) as raised:
    bucket.workdir_path(url)
  assert "\n" not in str(raised.value) and store.names() == []


def test_a_store_that_refuses_or_is_not_there_is_one_line(store, monkeypatch):
  store.asked = lambda method, path: 403
  with pytest.raises(ValueError, match=r"403 .*storage\.objectUser") as refused:
    bucket.workdir_path(RUN)
  monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
  with pytest.raises(OSError, match="can't be reached") as unreachable:
    bucket.workdir_path(RUN)
  monkeypatch.delenv("STORAGE_EMULATOR_HOST")
  monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
  monkeypatch.setenv("HOME", "/nowhere")
  monkeypatch.setenv("NO_GCE_CHECK", "true")
  with pytest.raises(ValueError, match="gcloud auth application-default login") as unknown:
    bucket.workdir_path(RUN)
  for raised in (refused, unreachable, unknown):
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("store", [S3Store], ids=["s3"], indirect=True)
def test_so_it_is_with_amazons(store, monkeypatch):
  with pytest.raises(ValueError, match="give s3://BUCKET/RUN"):
    bucket.workdir_path("s3://bucket")
  said = []

  def refused(url, error, match):
    with pytest.raises(error, match=match) as raised:
      bucket.workdir_path(url)
    said.append(str(raised.value))

  refused("s3://other-bucket/run", ValueError, "does not exist. Is its name right")
  store.asked = lambda method, path: 403
  refused(store.run, ValueError, r"Forbidden.* s3:DeleteObject")
  monkeypatch.delenv("AWS_ACCESS_KEY_ID")
  refused(store.run, ValueError, "AWS_SECRET_ACCESS_KEY, ~/.aws/credentials")
  monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
  monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
  monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
  refused(store.run, OSError, "can't be reached")
  assert not store.names() and not any("\n" in line for line in said)


def test_the_command_says_it_in_one_line(store, monkeypatch, capsys):
  train = (ROOT / "coca/train.py", f"--config={ROOT}/configs/coca_tiny.py:runlocal")
  said = run_here(*train, "--workdir=gs://other-bucket/run")
  assert said.startswith("error: --workdir=gs://other-bucket/run") and "\n" not in said
  monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
  assert run_here(*train, f"--workdir={RUN}") == lock.processes.CRASHED
  assert re.fullmatch(f"error: --workdir={RUN}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("status", [401, 403])
def test_a_model_that_may_not_be_read_is_one_line_at_once(store, monkeypatch, status):
  monkeypatch.setattr(time, "sleep", None)  # whoever tries again fails
  store.asked = lambda method, path: status
  with pytest.raises(retries.Unavailable, match=r"gs://bucket/run/config\.json: ") as raised:
    coca.load(RUN)
  assert "\n" not in str(raised.value)


def test_checkpoints_of_another_store_are_refused():
  with pytest.raises(ValueError, match="from a folder, gs:// or s3://"):
    load_params("az://bucket/run/checkpoints", {})


def test_errors_of_a_stores_client_are_the_systems():
  import aiohttp
  from gcsfs.retry import HttpError

  for error, is_ours in (
    (HttpError({"code": 503, "message": "Service Unavailable"}), True),
    (HttpError({"code": "429", "message": "slow down"}), True),
    (HttpError({"code": 404, "message": "Not Found"}), False),
    (aiohttp.ServerDisconnectedError(), True),
    (ValueError("no JSON"), False),
  ):
    assert retries.of_the_system(error) is is_ours, error


# --- A run ---


def parameters(workdir):
  return {
    jax.tree_util.keystr(path): np.asarray(x)
    for path, x in jax.tree_util.tree_leaves_with_path(coca.load(workdir).params)
  }


def lines(workdir):
  return [
    {k: v for k, v in line.items() if not k.startswith("perf/")} for line in metrics.read(f"{workdir}/metrics.jsonl")
  ]


EVALUATE = ("-m", "coca.evaluate")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """A run in a folder, and its evaluation: its workdir, its command but for that, and the environment."""
  folder = tmp_path_factory.mktemp("undisturbed")
  config = small_run(folder, ("retrieval",))
  train = ("-m", "coca.train", config, "--config.steps=12", "--config.evals.retrieval.every=6")
  more = {"devices": 1, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  for script in (train, EVALUATE):
    ended = process(None, script, f"--workdir={folder / 'run'}", **more)
    out = ended.communicate()[0]
    assert ended.returncode == 0, out
  return folder / "run", train, more


@pytest.mark.slow
@both
def test_killed_in_saves_and_between_a_run_ends_as_one_in_a_folder_that_nothing_disturbed(store, undisturbed):
  folder, train, more = undisturbed
  kills = {  # each with the step that the killed process began behind; a resumed one begins a part of metrics
    "gs": ((r"POST .*checkpoints/6/state/ocdbt", 0), (r"POST .*metrics/000001", 3)),
    "s3": ((r"PUT .*checkpoints/6/commit_success.txt", 0), (r"DELETE .*checkpoints/3/meta/metadata", 3)),
  }
  for pattern, before in kills[store.run[:2]]:
    kill = Kill(store, pattern)
    kill.victim = process(store, train, f"--workdir={store.run}", **more)
    out = kill.victim.communicate()[0]
    assert kill.done and kill.victim.returncode == -signal.SIGKILL, out
    assert (f"going on from step {before}" if before else "starting") in out
  for script, said in ((train, f"coca.load('{store.run}')"), (EVALUATE, "eval/retrieval/i2t_r1")):
    last = process(store, script, f"--workdir={store.run}", **more)
    out = last.communicate()[0]
    assert last.returncode == 0 and said in out, out
  wanted, found = parameters(folder), parameters(store.run)
  assert wanted.keys() == found.keys()
  for name, x in wanted.items():
    np.testing.assert_array_equal(x, found[name], err_msg=name)
  assert lines(store.run) == lines(folder)
  assert store.read("run/eval.json") == (folder / "eval.json").read_bytes()
  for name in ("curves.png", "contact_sheet.png", "config.json", "tokenizer.model"):
    assert store.read(f"run/{name}")
  assert store.read("run/tokenizer.model") == (folder / "tokenizer.model").read_bytes()
  assert ".lock" not in [name.split("/")[1] for name in store.names("run/")]
