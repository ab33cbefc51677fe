"""CapFilt's stage and job: rows against the models used by hand, kills, shards, broken images, the command line."""

import copy
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image

import coca
from coca.capfilt import __main__ as command
from coca.capfilt import job
from coca.capfilt.models import Models
from coca.capfilt.settings import CapFilt, parse
from coca.capfilt.stage import Stage, TooManyFailed, draw_id
from coca.config import Contrastive, Matching, Source, to_dict
from coca.data import sidecars
from coca.data.sources import open_source
from coca.decoding.settings import Decoding
from coca.storage.lock import Locked, locked
from support import forked
from support.workdirs import make_workdir, small_config

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
WEB = 30  # pictures, the eleventh of which is broken
NUCLEUS = Decoding(strategy="sample", top_p=0.9, min_length=8, seed=4)
LEAST = 0.958  # of matching: what the filter, of random weights, gives to about half of the texts


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("capfilt")
  rng = np.random.default_rng(0)
  for name, count in (("web", WEB), ("human", 5)):
    (root / name).mkdir()
    lines = []
    for n in range(count):
      Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(root / name / f"{n:02d}.png")
      texts = [f"text {n} of the {name}", "a second one"][: 1 + n % 2]
      lines.append(json.dumps({"file_name": f"{n:02d}.png", "captions": texts}))
    (root / name / "captions.jsonl").write_text("\n".join(lines))
  (root / "web" / "10.png").write_bytes(b"\x89PNG no picture")
  make_workdir(root / "captioner", small_config(root / "web", contrastive=Contrastive(weight=0.0), evals={}))
  make_workdir(root / "filter", small_config(root / "web", matching=Matching(weight=1.0), evals={}))
  make_workdir(root / "clip", small_config(root / "web", evals={}))
  return root


def settings_of(folders, **changes) -> CapFilt:
  source = Source(kind="folder", path=str(folders / "web"), origin="web")
  given = {
    "captioner": str(folders / "captioner"),
    "filter": str(folders / "filter"),
    "source": source,
    "decoding": NUCLEUS,
    "min_matching": LEAST,
    "batch": 8,
    "shard": 12,
    "threads": 2,
  }
  return CapFilt(**given | changes)


@pytest.fixture(scope="module")
def models(folders):
  """Loaded once; `replace` gives them other settings."""
  return Models(settings_of(folders))


def replace(models, settings) -> Models:
  """The same models with other settings."""
  new = copy.copy(models)
  new.settings = settings
  return new


def rows_of(models, source, settings, numbers) -> list[dict]:
  models = models if models.settings is settings else replace(models, settings)
  [(_, columns)] = Stage(models, source).run([("all", numbers)])
  return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@pytest.fixture(scope="module")
def rows(models, folders):
  settings = settings_of(folders)
  return rows_of(models, open_source(settings.source), settings, range(WEB))


def test_rows_are_what_the_models_say_when_used_by_hand(rows, folders):
  captioner, scorer = coca.load(folders / "captioner"), coca.load(folders / "filter")
  source = open_source(settings_of(folders).source)
  good = [n for n in range(WEB) if n != 10]
  files = [folders / "web" / f"{n:02d}.png" for n in good]
  ids = [draw_id(source[n].key) for n in good]
  synthetic = captioner.caption(files, ids=ids, strategy="sample", top_p=0.9, min_length=8, seed=4)
  assert len(set(synthetic)) > 5
  expected = [
    (n, text, origin)
    for n, written in zip(good, synthetic, strict=True)
    for text, origin in [*((t.text, "web") for t in source[n].texts), (written, "synthetic")]
  ]
  # What is made of random weights may be no word.
  found = [row for row in rows if row["text"] and row["index"] != 10]
  expected = [row for row in expected if row[1]]
  assert [(row["index"], row["text"], row["origin"]) for row in found] == expected
  pictures = [folders / "web" / f"{row['index']:02d}.png" for row in found]
  texts = [row["text"] for row in found]
  match = scorer.match(pictures, texts)
  np.testing.assert_allclose([row["matching"] for row in found], match, atol=2e-6)
  cosine = (scorer.embed_images(pictures) * scorer.embed_texts(texts)).sum(1)
  np.testing.assert_allclose([row["contrastive"] for row in found], cosine, atol=2e-6)
  assert [row["kept"] for row in found] == [row["matching"] >= LEAST for row in found]
  assert 0 < sum(row["kept"] for row in found) < len(found)
  assert [row["image"] for row in found] == [zlib.crc32(path.read_bytes()) for path in pictures]
  written = [row for row in found if row["origin"] == "synthetic"]
  assert {row["captioner"] for row in written} == {Models(settings_of(folders, filter="")).identities["captioner"]}
  expected = {"strategy": "sample", "top_p": 0.9, "min_length": 8, "seed": 4}
  assert all(json.loads(row["decoding"]) == expected for row in written)


def test_a_broken_image_is_a_row_with_its_reason(rows):
  (row,) = (row for row in rows if row["index"] == 10)
  assert row["kept"] is False and row.get("matching") is None
  assert row["text"] == "text 10 of the web" and row["origin"] == "web" and row["image"] is None
  assert "10.png" in row["key"] and row["problem"]


def test_rows_do_not_depend_on_batch_threads_or_company(models, rows, folders):
  settings = settings_of(folders, threads=5)
  source = open_source(settings.source)
  backwards = rows_of(models, source, settings, [*range(8, 16)]) + rows_of(models, source, settings, [*range(8)])
  assert backwards == [r for r in rows if 8 <= r["index"] < 16] + [r for r in rows if r["index"] < 8]
  larger = replace(models, settings)
  larger.batch = 24
  [(_, columns)] = Stage(larger, source).run([("all", range(WEB))])
  assert columns["text"] == [row["text"] for row in rows] and columns["kept"] == [row["kept"] for row in rows]
  for name in sidecars.SCORES:
    scores = [[np.nan if x is None else x for x in values] for values in (columns[name], [r[name] for r in rows])]
    np.testing.assert_allclose(*scores, atol=2e-6)


def test_human_texts_are_kept_and_nothing_is_written_beside_them(models, folders):
  source = Source(kind="folder", path=str(folders / "human"), origin="human")
  settings = settings_of(folders, source=source, min_matching=0.999)
  found = rows_of(models, open_source(source), settings, range(5))
  assert len(found) == 7 and {row["origin"] for row in found} == {"human"}
  assert all(row["kept"] for row in found) and min(row["matching"] for row in found) < 0.999


def test_images_without_texts_get_one_written(models, folders):
  settings = settings_of(folders, source=Source(kind="folder", path=str(folders / "human"), text_key=""))
  rows = rows_of(models, open_source(settings.source), settings, range(5))
  assert [row["index"] for row in rows] == [0, 1, 2, 3, 4] and not any(row["problem"] for row in rows)
  assert {row["origin"] for row in rows} == {"synthetic"} and all(row["text"] and row["matching"] for row in rows)
  captioner_only = dataclasses.replace(settings, captioner="")
  silent = replace(models, captioner_only)
  silent.captioner = None
  rows = rows_of(silent, open_source(settings.source), captioner_only, range(5))
  assert [(row["text"], row["problem"], row["kept"]) for row in rows] == [(None, "no text", False)] * 5


def test_both_scores_may_decide(models, rows, folders):
  median = float(np.median([row["contrastive"] for row in rows if row["matching"] is not None]))
  settings = settings_of(folders, min_contrastive=median)
  found = rows_of(models, open_source(settings.source), settings, range(WEB))
  expected = [
    row["matching"] is not None and row["matching"] >= LEAST and row["contrastive"] >= np.float32(median)
    for row in rows
  ]
  assert [row["kept"] for row in found] == expected != [row["kept"] for row in rows]


def test_the_best_of_several_is_the_filters_choice(models, folders):
  source = open_source(settings_of(folders).source)
  several = dataclasses.replace(NUCLEUS, n=3)
  every = rows_of(models, source, settings_of(folders, decoding=several, best=3), range(8))
  best = rows_of(models, source, settings_of(folders, decoding=several), range(8))
  for n in range(8):
    scores = [row["matching"] for row in every if row["index"] == n and row["origin"] == "synthetic"]
    assert len(scores) in (2, 3)  # one may be no word
    (chosen,) = (row for row in best if row["index"] == n and row["origin"] == "synthetic")
    assert chosen["matching"] == pytest.approx(max(scores), abs=2e-6)


def test_one_model_alone(folders):
  source = open_source(settings_of(folders).source)
  only_filter = Stage(Models(settings_of(folders, captioner="")), source)
  [(_, columns)] = only_filter.run([("a", range(8))])
  assert set(columns["origin"]) == {"web"} and all(score is not None for score in columns["matching"])
  only_captioner = Stage(Models(settings_of(folders, filter="")), source)
  [(_, columns)] = only_captioner.run([("a", range(8))])
  assert set(columns["origin"]) == {"web", "synthetic"} and all(columns["kept"]) and set(columns["matching"]) == {None}


def test_a_score_that_is_not_finite_is_a_problem_and_no_text_kept(models, folders):
  broken = replace(models, settings_of(folders))
  scores = models.score

  def score(encoded, texts):
    out = scores(encoded, texts)
    return out._replace(matching=out.matching.at[2].set(np.nan))

  broken.score = score
  [(_, columns)] = Stage(broken, open_source(settings_of(folders).source)).run([("a", range(4))])
  of_third = [n for n, index in enumerate(columns["index"]) if index == 2]
  assert [columns["kept"][n] for n in of_third] == [False] * 2
  assert {columns["problem"][n] for n in of_third} == {"the filter's matching score is not finite"}
  assert all(columns["problem"][n] is None for n in range(len(columns["index"])) if n not in of_third)


# --- The job ---


def run_job(out, settings, models, source):
  shards = job.begin(str(out), settings, source, models.identities)
  job.run_local(str(out), settings, replace(models, settings), source, job.unfinished(str(out), shards))
  job.decide(str(out), settings, shards)
  return shards


def sidecar_bytes(out):
  return {path.name: path.read_bytes() for path in sorted((out / "texts").iterdir())}


@pytest.fixture(scope="module")
def done(models, folders, tmp_path_factory):
  out = tmp_path_factory.mktemp("done")
  settings = settings_of(folders)
  run_job(out, settings, models, open_source(settings.source))
  return out


def test_a_job_makes_what_training_reads(done, rows, folders):
  assert len(sidecar_bytes(done)) == 3
  source = open_source(Source(kind="folder", path=str(folders / "web"), origin="web", sidecars=str(done)))
  texts = sorted(t.text for n in range(len(source)) for t in source[n].texts)
  assert texts == sorted(row["text"] for row in rows if row["kept"])


def test_a_job_goes_on_only_with_the_same_settings_models_and_source(done, models, folders, tmp_path):
  settings = settings_of(folders)
  source = open_source(settings.source)
  shards = job.begin(str(done), dataclasses.replace(settings, threads=7, max_failed=1.0), source, models.identities)
  assert job.unfinished(str(done), shards) == []
  with pytest.raises(ValueError, match=r"config\.min_matching: 0\.958 before, 0\.7 now\n.*min_matching in training"):
    job.begin(str(done), dataclasses.replace(settings, min_matching=0.7), source, models.identities)
  with pytest.raises(ValueError, match=r"filter: sha256:.* before, sha256:x now"):
    job.begin(str(done), settings, source, models.identities | {"filter": "sha256:x"})
  manifest = done / "manifest.json"
  now = f'"coca {coca.__version__}"'
  whole = manifest.read_text()
  manifest.write_text(whole.replace(now, '"coca 0.0"'))
  with pytest.raises(ValueError, match=f"version: coca 0.0 before, coca {coca.__version__} now"):
    job.begin(str(done), settings, source, models.identities)
  manifest.write_text(whole.replace(now, '"coca"'))  # as of a job before 0.2.0, in a checkout
  assert job.begin(str(done), settings, source, models.identities) == shards
  manifest.write_text(whole)
  shutil.copytree(folders / "web", tmp_path / "web")
  for path in (tmp_path / "web").glob("*.png"):
    path.write_bytes(path.read_bytes() + b"another")
  replaced = open_source(dataclasses.replace(settings.source, path=str(tmp_path / "web")))
  with pytest.raises(ValueError, match=r"the image of record \d+, '.*png', is not the one"):
    job.begin(str(done), settings, replaced, models.identities)


def test_a_damaged_sidecar_is_written_again(done, models, folders, tmp_path):
  before = sidecar_bytes(done)
  path = done / "texts" / next(iter(before))
  path.write_bytes(path.read_bytes()[:-100])
  settings = settings_of(folders)
  run_job(done, settings, models, open_source(settings.source))
  assert sidecar_bytes(done) == before


@pytest.mark.parametrize("rule", [{"top": 7}, {"share": 0.25, "rank_by": "contrastive"}])
def test_a_share_of_the_best_is_kept(rule, models, rows, folders, tmp_path):
  settings = settings_of(folders, **rule)
  source = open_source(settings.source)
  shards = run_job(tmp_path, settings, models, source)
  name = settings.rank_by
  scores = np.float32([row[name] for row in rows if row[name] is not None])
  count = rule.get("top") or round(0.25 * len(scores))
  table = [row for shard in shards for row in sidecars.read(sidecars.path_of(tmp_path, shard.name)).to_pylist()]
  kept = sorted(np.float32(row[name]) for row in table if row["kept"])
  assert kept == sorted(scores)[-count:]
  assert not any(row["kept"] is None for row in table)
  assert sidecars.read_manifest(tmp_path)["threshold"] == {name: float(min(kept))}
  before = sidecar_bytes(tmp_path)
  run_job(tmp_path, settings, models, source)
  assert sidecar_bytes(tmp_path) == before


def test_a_captioner_without_words_is_a_problem(models, folders):
  mute = replace(models, settings_of(folders))
  mute.read = lambda tokens: [[" "]] * mute.batch
  found = rows_of(mute, open_source(settings_of(folders).source), mute.settings, range(2))
  assert [(row["text"], row["kept"], row["problem"]) for row in found if row["origin"] != "web"] == [
    (None, False, "the captioner wrote no word")
  ] * 2
  assert [row["matching"] is None for row in found] == [row["origin"] is None for row in found]


def test_too_many_failures_end_the_job_and_say_why(models, folders, tmp_path, monkeypatch):
  monkeypatch.setattr(job, "ENOUGH", 10)
  settings = settings_of(folders, max_failed=0.02)
  with pytest.raises(TooManyFailed, match=r"1 of 20 images .*max_failed 0\.02 allows, such as: .*10\.png"):
    run_job(tmp_path, settings, models, open_source(settings.source))
  assert len(sidecar_bytes(tmp_path)) == 1  # the shard that went too far is made again


# --- The command ---


def arguments(folders, out, *more):
  return [
    f"--config={ROOT}/configs/capfilt.py",
    f"--config.captioner={folders}/captioner",
    f"--config.filter={folders}/filter",
    "--config.source.kind=folder",
    "--config.source.origin=web",
    f"--config.source.path={folders}/web",
    "--config.decoding.min_length=8",
    "--config.batch=8",
    "--config.shard=3",
    "--config.threads=1",
    f"--workdir={out}",
    *more,
  ]


def start(folders, out, *more, program=("-m", "coca.capfilt")):
  env = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
  }
  return subprocess.Popen(
    [forked.python(), *program, *arguments(folders, out, *more)],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    process_group=0,
  )


KILLED = """
import os, runpy, signal
from coca.data import sidecars

write_table, begun = sidecars.pq.write_table, 0

def write(table, file, **options):
  global begun
  begun += 1
  write_table(table, file, **options)
  if begun == {sidecar}:
    os.kill(os.getpid(), signal.SIGKILL)

sidecars.pq.write_table = write
runpy.run_module("coca.capfilt", run_name="__main__")
"""


def test_killed_in_the_middle_of_sidecars_it_goes_on_to_the_same_bytes(folders, tmp_path):
  whole = start(folders, tmp_path / "whole")
  out, error = whole.communicate(timeout=300)
  assert whole.returncode == 0, error
  assert "kept" in out and (tmp_path / "whole" / "report.html").exists()
  killed = tmp_path / "killed"
  for sidecar in (1, 5):
    process = start(folders, killed, program=("-c", KILLED.format(sidecar=sidecar)))
    _, error = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, error
  assert len(list((killed / "texts").glob("*.parquet"))) == 4
  last = start(folders, killed)
  out, error = last.communicate(timeout=300)
  assert last.returncode == 0, error
  assert "of 10 shards are finished" in out
  # A file that a kill left half written lies beside the sidecars, hidden.
  expected = sidecar_bytes(tmp_path / "whole")
  assert {k: v for k, v in sidecar_bytes(killed).items() if not k.startswith(".")} == expected
  assert (killed / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()


def from_file(folders, **changes):
  spec = importlib.util.spec_from_file_location("capfilt", ROOT / "configs" / "capfilt.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.update(captioner=str(folders / "captioner"), filter=str(folders / "filter"), batch=8)
  config.source.update(kind="folder", path=str(folders / "web"), split="", origin="web")
  config.update_from_flattened_dict(changes)
  return parse(config)


def test_the_default_is_the_papers(folders):
  settings = from_file(folders)
  assert settings.decoding == Decoding(strategy="sample", n=1, top_p=0.9)
  assert (settings.min_matching, settings.share, settings.top, settings.best) == (0.5, 0, 0, 1)


def test_a_preview_is_a_report_of_a_few(folders, tmp_path, capsys):
  command.run(str(tmp_path), from_file(folders), preview=6)
  page = (tmp_path / "preview" / "report.html").read_text()
  table = sidecars.read(sidecars.path_of(tmp_path / "preview", "preview"))
  assert sorted(set(table["index"].to_pylist())) == [2, 7, 12, 17, 22, 27]
  records = json.loads(re.search(r"<script[^>]*application/json[^>]*>(.*?)</script>", page, re.DOTALL)[1])["records"]
  assert [record["index"] for record in records] == [2, 7, 12, 17, 22, 27]
  assert all(record["image"].startswith("data:image/") and len(record["texts"]) >= 2 for record in records)
  assert not (tmp_path / "texts").exists()
  assert "look at" in capsys.readouterr().out


def test_one_model_for_both_is_warned_about_and_encodes_once(folders, tmp_path, capsys):
  both = str(folders / "filter")
  settings = from_file(folders, captioner=both, filter=both)
  models = Models(settings)
  assert models.captioner is models.filter and set(models.encode([models.blank()])) == {"captioner"}
  command.run(str(tmp_path), settings, preview=2)
  assert "confirmation bias" in capsys.readouterr().out


def test_a_folder_of_others_is_no_workdir(folders, tmp_path, monkeypatch):
  monkeypatch.setattr(job, "open_job_source", None)
  (tmp_path / "texts").mkdir()
  (tmp_path / "texts" / "0.parquet").write_bytes(b"mine")
  with pytest.raises(ValueError, match=r"neither empty nor the workdir of a CapFilt job .* it holds texts"):
    command.run(str(tmp_path), from_file(folders))
  assert (tmp_path / "texts" / "0.parquet").read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1
  with pytest.raises(ValueError, match=r"0\.parquet is a file; name a folder"):
    job.check_folder(str(tmp_path / "texts" / "0.parquet"))
  job.check_folder(str(tmp_path / "new"))


def test_two_jobs_in_one_workdir(folders, tmp_path, monkeypatch):
  monkeypatch.setattr(job, "begin", None)
  with locked(tmp_path), pytest.raises(Locked, match=f"process {os.getpid()} on "):
    command.run(str(tmp_path), from_file(folders))


def test_mistakes_are_told_before_any_work(folders, tmp_path, monkeypatch):
  for changes, message in (
    ({"captioner": "", "filter": ""}, "name at least one model"),
    ({"source.kind": "folders"}, r"config\.source\.kind is 'folders'"),
    ({"best": 2}, r"config\.best 2 is more than config\.decoding\.n 1"),
    ({"share": 0.5, "top": 3}, "both set"),
    ({"engine": "beam"}, "it may be 'local', 'ray'"),
    ({"min_matching": 50.0}, "it is a probability"),
    ({"min_contrastive": 30.0}, "it is a cosine"),
    ({"source.min_matching": 0.7}, r"config\.source\.min_matching chooses among"),
    ({"decoding.top_p": 0.0}, "top_p is 0.0"),
  ):
    with pytest.raises(ValueError, match=message):
      from_file(folders, **changes)
  monkeypatch.setattr("coca.inference.load", None)  # no weights are read
  with pytest.raises(ValueError, match=r"no matching head. Train one: .*capfilt_filter\.py"):
    Models(from_file(folders, filter=str(folders / "clip")))
  with pytest.raises(FileNotFoundError, match="nowhere"):
    command.run(str(tmp_path), from_file(folders, filter=str(tmp_path / "nowhere")))
  with pytest.raises(FileNotFoundError, match=r"config\.source\.path|nothing"):
    command.run(str(tmp_path), from_file(folders, **{"source.path": str(tmp_path / "nothing")}))
  assert to_dict(from_file(folders)).decoding.top_p == 0.9
