"""A workdir that somebody else has made: what it names elsewhere is told, and opened only when one says so."""

import json

import fsspec
import pytest

import coca
from coca.capfilt import __main__ as capfilt
from coca.config import Eval, Source, to_dict
from coca.data import sources
from coca.evals.evaluate import evaluate
from support.workdirs import make_workdir, small_config

BUCKET, TARS = "gs://their-bucket/answers.txt", "s3://their-bucket/*.tar"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
  """A model whose config names data in buckets."""
  workdir, tars = tmp_path_factory.mktemp("theirs") / "run", Source(kind="webdataset", path=TARS)
  evaluators = {
    "here": Eval(kind="captions", source=Source(kind="builtin", split="twemoji"), batch=8, limit=8),
    "there": Eval(kind="captions", source=tars),
  }
  config = small_config("", evals=evaluators)
  make_workdir(workdir, config)
  run = json.loads((workdir / "config.json").read_text())
  run["config"]["data"].update(sources={"tars": to_dict(tars).to_dict()}, tokenizer=BUCKET)
  run["config"]["init_from"] = BUCKET
  (workdir / "config.json").write_text(json.dumps(run))
  return workdir


class Opened(Exception):
  """A URL was opened."""


@pytest.fixture
def opened(monkeypatch):
  """URLs that are opened raise."""
  real = fsspec.core.url_to_fs

  def url_to_fs(path, **options):
    if "://" in str(path):
      raise Opened(path)
    return real(path, **options)

  monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)


def test_load_opens_nothing_but_the_workdir(theirs, opened, monkeypatch):
  monkeypatch.setattr(sources, "open_source", None)
  assert coca.load(theirs).embed_texts("red apple").shape == (1, 16)


def test_evaluate_tells_what_it_opens_and_opens_no_urls(theirs, opened, capsys):
  with pytest.raises(
    ValueError,
    match=r"config\.json names data that are not on this machine: s3://their-bucket/.*"
    "only with --allow_urls",
  ):
    evaluate(theirs)
  assert f"config.json names config.evals.there.source.path: {TARS}\n" in capsys.readouterr().out
  with pytest.raises(Opened, match="s3://their-bucket/"):
    evaluate(theirs, allow_urls=True)


@pytest.mark.parametrize("places", [{"a": "gs://x"}, {"a": "zip::simplecache::x"}, {"a": "/here", "b": "http://x"}])
def test_urls_are_known_by_their_form(places):
  with pytest.raises(ValueError, match="allow_urls"):
    sources.check_places(places, False, "it")
  sources.check_places({"a": "/here", "b": "data/{0..9}.tar"}, False, "it")


@pytest.mark.parametrize("asked", [{"report": True}, {"export": "EXPORT"}])
def test_reports_and_exports_open_no_urls_of_a_manifest(opened, tmp_path, monkeypatch, capsys, asked):
  manifest = {"shards": [], "settings": {}, "source": to_dict(Source(kind="webdataset", path=TARS)).to_dict()}
  (tmp_path / "manifest.json").write_text(json.dumps(manifest))
  given = {
    "workdir": str(tmp_path),
    "report": False,
    "export": "",
    "export_format": "webdataset",
    "allow_urls": False,
    "config": None,
    "preview": 0,
  }
  for allowed, error in ((False, SystemExit), (True, Opened)):
    values = type("Flags", (), given | asked | {"allow_urls": allowed})
    monkeypatch.setattr(capfilt, "FLAGS", values)
    with pytest.raises(error, match="--allow_urls" if not allowed else "s3://"):
      capfilt.main([""])
