"""One run at a time in a workdir; what is left of one that was killed stops nobody."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from coca.files.writing import write_atomic
from coca.storage import lock
from coca.storage.lock import Locked, locked
from support.processes import run_here

ROOT = Path(__file__).parents[2]
HOLDER = """import sys
from coca.storage.lock import locked
with locked(sys.argv[1]):
  print('held', flush=True)
  sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
  """A process that holds tmp_path's lock until its input ends."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, text=True, stdout=subprocess.PIPE
  )
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.communicate()


@pytest.fixture
def fast(monkeypatch):
  monkeypatch.setattr(lock, "BEAT", 0.05)
  monkeypatch.setattr(lock, "PATIENCE", 0.6)


def no_flock(monkeypatch):
  def flock(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")

  monkeypatch.setattr(lock.fcntl, "flock", flock)


def left(folder, **changes):
  """What a run that is gone leaves: its file, without the flock."""
  with locked(folder):
    text = (folder / lock.FILE).read_text()
  (folder / lock.FILE).write_text(json.dumps(json.loads(text) | changes))


@pytest.mark.slow
def test_the_second_run_is_told_who_is_there(holder, tmp_path):
  said = rf"another run is in {tmp_path}: process {holder.pid} on .*, since 20.* another workdir"
  with pytest.raises(Locked, match=said), locked(tmp_path):
    raise AssertionError("two runs")
  holder.communicate()
  with locked(tmp_path):
    pass
  assert not (tmp_path / lock.FILE).exists()


def test_after_kill_9_the_next_one_starts_at_once(holder, tmp_path, monkeypatch):
  monkeypatch.setattr(time, "sleep", None)  # whoever waits fails
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  with locked(tmp_path):
    assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()


def test_without_flock_a_process_of_this_machine_is_looked_for(holder, tmp_path, monkeypatch):
  monkeypatch.setattr(time, "sleep", None)
  no_flock(monkeypatch)
  with pytest.raises(Locked, match=f"process {holder.pid}"), locked(tmp_path):
    pass
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  with locked(tmp_path):
    pass


def test_another_process_of_the_same_number_is_another_one(tmp_path, monkeypatch):
  monkeypatch.setattr(time, "sleep", None)
  left(tmp_path, pid=os.getppid(), started="1")
  with locked(tmp_path):
    pass


def test_another_host_without_signs_of_life_is_gone(tmp_path, fast, capfd):
  left(tmp_path, host="elsewhere", place="another boot")
  with locked(tmp_path):
    pass
  assert "on elsewhere was in this workdir; waiting up to" in capfd.readouterr().err


def test_another_host_that_lives_keeps_the_workdir(tmp_path, fast, monkeypatch):
  left(tmp_path, host="elsewhere", place="another boot")
  over = threading.Event()

  def live():
    beat = 0
    while not over.wait(0.05):
      beat += 1
      text = json.loads((tmp_path / lock.FILE).read_text()) | {"beat": beat}
      write_atomic(tmp_path / lock.FILE, json.dumps(text).encode())

  no_flock(monkeypatch)
  thread = threading.Thread(target=live)
  thread.start()
  try:
    with pytest.raises(Locked, match="on elsewhere"), locked(tmp_path):
      pass
  finally:
    over.set()
    thread.join()


def test_who_finds_its_lock_taken_ends(tmp_path, fast, monkeypatch, capfd):
  ended = threading.Event()
  status = []

  def end(code):
    status.append(code)
    ended.set()
    raise OSError  # which the thread passes over

  monkeypatch.setattr(os, "_exit", end)
  with locked(tmp_path):
    text = json.loads((tmp_path / lock.FILE).read_text())
    (tmp_path / lock.FILE).write_text(json.dumps(text | {"host": "elsewhere"}))
    assert ended.wait(60)
  assert status[0] == lock.processes.LOCKED
  assert "was taken by process" in capfd.readouterr().err
  assert (tmp_path / lock.FILE).exists()  # it is the other's


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "\0" * 50])
def test_half_a_lock_is_waited_for_and_taken(tmp_path, fast, text):
  (tmp_path / lock.FILE).write_text(text)
  with locked(tmp_path):
    pass


def test_a_file_that_was_removed_meanwhile_is_not_locked(tmp_path, monkeypatch):
  """The one before ends between our opening of its file and our lock on it."""
  flock, seen = lock.fcntl.flock, []

  def late(file, how):
    if not seen:
      (tmp_path / lock.FILE).unlink()
    seen.append(file)
    flock(file, how)

  monkeypatch.setattr(lock.fcntl, "flock", late)
  with locked(tmp_path):
    assert len(seen) == 2 and (tmp_path / lock.FILE).exists()


def test_a_start_that_fails_leaves_no_folder(tmp_path):
  with pytest.raises(KeyError), locked(tmp_path / "a" / "run"):
    raise KeyError
  assert not (tmp_path / "a" / "run").exists()


@pytest.mark.slow
def test_training_takes_the_lock(holder, tmp_path, capsys):
  """The second one writes nothing, and its status says that it may be tried again."""
  config = f"--config={ROOT}/configs/coca_tiny.py:runlocal"
  assert run_here(ROOT / "coca/train.py", config, f"--workdir={tmp_path}") == lock.processes.LOCKED
  said = capsys.readouterr().err.splitlines()[-1]
  assert re.match(f"error: another run is in {tmp_path}: process {holder.pid} ", said)
  assert [path.name for path in tmp_path.iterdir()] == [lock.FILE]
