"""What the file sources share: writing at once, and what is no regular file."""

import os
import signal
import subprocess
import sys

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from coca.data.sources import values
from coca.files import finding, reading, writing


def test_what_a_killed_writer_left_is_written_over(tmp_path):
  code = (
    "import sys, time\nfrom coca.files import writing\nwith writing.writing(sys.argv[1]) as file:\n"
    "  file.write(b'half of it' * 1000)\n  file.flush()\n  print('ready', flush=True)\n  time.sleep(600)"
  )
  path = tmp_path / "a.index.npz"
  with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as writer:
    assert writer.stdout.readline() == b"ready\n"
    writing.write_atomic(path, b"first")  # while the other still writes
    assert path.read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 2
    writer.send_signal(signal.SIGKILL)
  [left] = [p for p in tmp_path.iterdir() if p != path]
  assert left.read_bytes().startswith(b"half of it")
  writing.write_atomic(path, b"second")
  assert path.read_bytes() == b"second" and list(tmp_path.iterdir()) == [path]


def test_a_local_name_that_looks_like_a_chain_of_urls(tmp_path):
  with writing.writing(tmp_path / "a::b.txt") as file:
    file.write(b"x")
  assert (tmp_path / "a::b.txt").read_bytes() == b"x"


def test_writers_of_one_file_do_not_mix(tmp_path):
  path = tmp_path / "a"
  with writing.writing(path) as one, writing.writing(path) as two:
    one.write(b"one")
    two.write(b"two, longer")
  assert path.read_bytes() == b"one"  # the last to end
  with pytest.raises(ZeroDivisionError), writing.writing(path) as file:
    file.write(b"never seen")
    raise ZeroDivisionError
  assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]


def test_pipes_are_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "0.tar")
  (tmp_path / "1.tar").write_bytes(b"x")
  found, problems = finding.find(f"{tmp_path}/*.tar", ".tar", "make", "source")
  assert [file.name for file in found] == ["1.tar"]
  assert len(problems) == 1 and "0.tar: no regular file" in problems[0]
  for read in (lambda: reading.read_all(fsspec.filesystem("file"), str(tmp_path / "0.tar")),
               lambda: reading.File(fsspec.filesystem("file"), str(tmp_path / "0.tar"), 9, "").read(0, 9),
               lambda: reading.open_regular("/dev/zero"), lambda: reading.open_regular(tmp_path)):  # fmt: skip
    with pytest.raises(OSError, match="no regular file"):
      read()


def test_lists_in_lists_beyond_all_depth():
  """JSON takes a thousand; a deeper one is a wrong row like others."""
  deep = "x"
  for _ in range(20_000):
    deep = [deep]
  with pytest.raises(ValueError, match="nested too deeply"):
    values.as_texts(["good", deep], "web")


def test_a_store_that_refuses_is_an_error_that_names_the_setting(monkeypatch):
  """Clients of stores have exceptions that are no OSError, as botocore's for want of credentials."""

  class NoCredentialsError(Exception):
    pass

  def refuse(*args, **options):
    raise NoCredentialsError("Unable to locate credentials")

  monkeypatch.setattr(MemoryFileSystem, "info", refuse)
  with pytest.raises(OSError, match=r"sources\.web\.path is 'memory://b/a\.tar', .*: Unable to locate credentials"):
    finding.find("memory://b/a.tar", ".tar", "make", "config.data.sources.web")
