"""Errors of the system while data is read: tried again, and then the end; never a bad record."""

import csv
import errno
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coca.config import Source
from coca.data import feed, pipeline
from coca.data.records import BadRecord
from coca.data.sources import open_source
from coca.files import reading, retries
from coca.files.retries import Unavailable, again, of_the_system
from support.pipeline import make_config, trained_words
from support.tars import picture, shard


@pytest.fixture(scope="module")
def words():
  return trained_words()


@pytest.fixture(autouse=True)
def at_once(tmp_path, monkeypatch):
  monkeypatch.setattr(retries, "PAUSES", (0, 0))
  monkeypatch.setenv("COCA_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
  ("error", "system"),
  [
    (OSError(errno.EIO, "Input/output error"), True),
    (OSError(errno.ESTALE, "Stale file handle"), True),
    (OSError(errno.EMFILE, "Too many open files"), True),
    (PermissionError(errno.EACCES, "Permission denied"), True),
    (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory"), False),
    (OSError(errno.ENAMETOOLONG, "File name too long"), False),
    (OSError("Couldn't deserialize thrift"), False),
    (MemoryError(), True),
    # As tensorstore, gRPC and array_record say it.
    (
      ValueError(
        'UNKNOWN: Error reading "x/.zarray": Error reading local file "/a/d/1": Failed to read 9 bytes from file '
        "at offset 0: Input/output error [tensorstore_spec='{}']"
      ),
      True,
    ),
    (ValueError('ABORTED: Failed to open: "/a/d/1": Stale file handle'), True),
    (ValueError("UNAVAILABLE: CURL error Could not resolve hostname"), True),
    (RuntimeError("read() failed: Input/output error; reading /a/b; at byte 0"), True),
    (ValueError('NOT_FOUND: "/a/d/1": No such file or directory'), False),
    (ValueError("DATA_LOSS: CRC-32C checksum verification failed"), False),
    (ValueError("Expecting value: line 1 column 1 (char 0)"), False),
  ],
)
def test_which_errors_are_the_systems(error, system):
  assert of_the_system(error) == system
  try:
    try:
      raise error
    except Exception as e:
      raise RuntimeError("can't restore") from e
  except RuntimeError as wrapped:
    assert of_the_system(wrapped) == system


def test_again_stops_where_it_makes_no_sense(monkeypatch):
  tries = []

  def fail(error):
    tries.append(error)
    raise error

  for error, kind, count in (
    (OSError(errno.EIO, "x"), Unavailable, 3),
    (PermissionError("x"), Unavailable, 1),
    (FileNotFoundError("x"), FileNotFoundError, 1),
    (ValueError("x"), ValueError, 1),
  ):
    tries.clear()
    with pytest.raises(kind, match="x"):
      again(lambda e=error: fail(e), "name")
    assert len(tries) == count


def make(kind: str, folder: Path) -> Source:
  """A source of eight records."""
  folder.mkdir()
  if kind == "webdataset":
    (folder / "0.tar").write_bytes(shard(0, 8))
  elif kind == "parquet":
    pq.write_table(
      pa.table({"jpg": [picture(n) for n in range(8)], "caption": [f"pair {n}" for n in range(8)]}),
      folder / "0.parquet",
      row_group_size=2,
    )
  elif kind == "folder":
    with open(folder / "captions.csv", "w", newline="") as f:
      csv.writer(f).writerows([("file_name", "caption"), *((f"{n}.jpg", f"pair {n}") for n in range(8))])
    for n in range(8):
      (folder / f"{n}.jpg").write_bytes(picture(n))
  return Source(kind=kind, path="" if kind == "builtin" else str(folder), split="twemoji")


@pytest.fixture
def failing(monkeypatch):
  """A list of errors that the next reads of pictures end in, whatever the source reads with."""
  errors = []

  def broken(real):
    def call(*args, **kwargs):
      if errors:
        raise errors.pop()
      return real(*args, **kwargs)

    return call

  monkeypatch.setattr(os, "pread", broken(os.pread))
  monkeypatch.setattr(reading, "open_regular", broken(reading.open_regular))
  monkeypatch.setattr(pq.ParquetFile, "read_row_group", broken(pq.ParquetFile.read_row_group))
  from array_record.python.array_record_data_source import ArrayRecordDataSource

  monkeypatch.setattr(ArrayRecordDataSource, "__getitem__", broken(ArrayRecordDataSource.__getitem__))
  reading._descriptor.cache_clear()
  return errors


def error():
  return OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "folder", "builtin"])
def test_a_failing_disk_makes_no_bad_records(kind, tmp_path, failing):
  source = open_source(make(kind, tmp_path / "data"))
  expected = open_source(make(kind, tmp_path / "same"))[3]
  failing += [error()] * 2  # passes
  assert source[3] == expected
  failing += [error()] * 3  # lasts
  with pytest.raises(Unavailable, match="Input/output error"):
    source[5]
  failing.clear()
  assert source[5].image


def test_a_missing_picture_is_a_bad_record(tmp_path):
  source = open_source(make("folder", tmp_path / "data"))
  (tmp_path / "data/3.jpg").unlink()
  with pytest.raises(BadRecord, match="no such file"):
    source[3]


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_file_that_cannot_be_opened_is_not_left_out(kind, tmp_path, monkeypatch):
  settings = make(kind, tmp_path / "data")

  def fail(*_, **__):
    raise error()

  monkeypatch.setattr(os, "pread", fail)
  monkeypatch.setattr(pq, "ParquetFile", fail)
  reading._descriptor.cache_clear()
  with pytest.raises(Unavailable):
    open_source(settings)


def test_training_ends_at_a_failing_disk_instead_of_going_on_with_blanks(tmp_path, failing, words):
  config = make_config()
  source = open_source(make("webdataset", tmp_path / "data"))
  sources = {name: source for name in config.data.sources}
  with feed.DeviceFeed(pipeline.train_batches(config, sources, words, range(8)), lambda batch: batch) as batches:
    batch, problems = next(batches)
    assert not problems and batch["weight"].all()
    failing += [error()] * 1000
    with pytest.raises(Unavailable):
      for _ in range(100):
        next(batches)


def test_absence_and_errors_are_told_apart(tmp_path, monkeypatch):
  assert retries.exists(tmp_path) and not retries.exists(tmp_path / "none")

  def fail(*_, **__):
    raise error()

  monkeypatch.setattr(os, "stat", fail)
  with pytest.raises(Unavailable):
    retries.exists(tmp_path / "config.json")
