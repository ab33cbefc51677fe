"""Training from a source and sidecars: which texts, how often, and what is wrong with either."""

import dataclasses
import itertools
import json
import shutil
import sys
import tracemalloc
from collections import Counter

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import flags
from ml_collections import config_flags

from coca import config
from coca.config import SceneNoise, Scenes, Source
from coca.data import pipeline, sidecars, texts
from coca.data.records import BadRecord, Record, Shard, Text
from coca.data.sidecars import SidecarError
from coca.data.sources import open_source
from coca.data.tokenizers import load, sentencepiece
from support.bootstrap import bootstrap, rows_of
from support.tars import picture, shard


def web(folder, counts=(7, 6)):
  """Tars of web texts; in the second, one record can't be used."""
  folder.mkdir(parents=True, exist_ok=True)
  for n, count in enumerate(counts):
    (folder / f"{n}.tar").write_bytes(shard(100 * n, count))
  return Source(kind="webdataset", path=f"{folder}/*.tar", split="")


def human(folder):
  folder.mkdir(parents=True)
  for n in range(6):
    (folder / f"{n}.png").write_bytes(picture(n, "PNG"))
  rows = [f"{n}.png,by hand {n} {k}" for n in range(6) for k in range(2)]
  (folder / "captions.csv").write_text("\n".join(["file_name,caption", *rows]))
  return Source(kind="folder", path=str(folder), split="", origin="human")


def parquet(folder):
  folder.mkdir(parents=True)
  for n in range(2):
    rows = {
      "image": [picture(n * 5 + k) for k in range(5)],
      "caption": ["x", None, "y", "", "z"],
      "key": [f"{n}{k}" for k in range(5)],
    }
    pq.write_table(pa.table(rows), folder / f"{n}.parquet", row_group_size=2)
  return Source(kind="parquet", path=str(folder), split="")


SOURCES = {
  "webdataset": web,
  "folder": human,
  "parquet": parquet,
  "builtin": lambda folder: Source(kind="builtin", split="train[:20]+openclipart[:20]"),
  "scenes": lambda folder: Source(
    kind="builtin", split="scenes", scenes=Scenes(count=40, texts=2, noise=SceneNoise(other=0.3, title=0.1))
  ),
}


def opened(settings, out, **changes):
  return open_source(dataclasses.replace(settings, sidecars=str(out), **changes))


def kept_rows(settings, keep=lambda row: row["kept"]):
  source = open_source(settings)
  return [row for row in rows_of(source, Shard("", 0, len(source))) if row.get("text") and keep(row)]


@pytest.mark.parametrize("kind", SOURCES)
def test_kept_texts_with_their_images(tmp_path, kind):
  settings = SOURCES[kind](tmp_path / "in")
  bootstrap(tmp_path / "out", settings)
  plain, rows = open_source(settings), kept_rows(settings)
  source = opened(settings, tmp_path / "out")
  expected = [dataclasses.replace(plain[row["index"]], texts=(Text(row["text"], row["origin"]),)) for row in rows]
  assert [source[i] for i in range(len(source))] == expected
  by_image = opened(settings, tmp_path / "out", sample="image")
  numbers = sorted({row["index"] for row in rows})
  assert 0 < len(numbers) < len(rows)
  assert [by_image[i] for i in range(len(by_image))] == [
    dataclasses.replace(plain[n], texts=tuple(Text(row["text"], row["origin"]) for row in rows if row["index"] == n))
    for n in numbers
  ]
  for i in (-1, len(source)):
    with pytest.raises(IndexError):
      source[i]
  for one, of in ((source, [row["index"] for row in rows]), (by_image, numbers)):
    assert one.label_names == plain.label_names
    manifest = sidecars.read_manifest(tmp_path / "out")["shards"]
    assert one.shards == [
      s
      for s in (Shard(m.name, sum(n < m.start for n in of), sum(n < m.stop for n in of)) for m in manifest)
      if s.start < s.stop
    ]


def test_counts_are_shown(tmp_path):
  settings = web(tmp_path / "in")
  (tmp_path / "in" / "9.tar").write_bytes(b"")
  bootstrap(tmp_path / "out", settings)
  source = opened(settings, tmp_path / "out")
  rows = kept_rows(settings)
  kept = Counter(row["origin"] for row in rows)
  images = len({row["index"] for row in rows})
  assert source.problems == [
    f"{tmp_path}/out: {len(rows)} texts for {images} of 13 images (web {kept['web']} of 13, "
    f"synthetic {kept['synthetic']} of 26)",
    "9.tar: the file is empty; no records",
  ]


def test_other_thresholds_and_origins(tmp_path):
  settings, people = web(tmp_path / "in"), human(tmp_path / "people")
  bootstrap(tmp_path / "out", settings)
  bootstrap(tmp_path / "out2", people)

  def texts_of(settings, **changes):
    source = opened(settings, tmp_path / ("out2" if settings is people else "out"), **changes)
    return [text for i in range(len(source)) for text in source[i].texts]

  def expected(settings, keep):
    return [Text(row["text"], row["origin"]) for row in kept_rows(settings, keep)]

  every = {"min_matching": 0.0}
  assert texts_of(settings, **every) == expected(settings, lambda row: True)
  for sample in ("text", "image"):
    assert texts_of(settings, min_matching=0.75, sample=sample) == expected(
      settings, lambda row: row["matching"] >= 0.75
    )
  assert texts_of(settings, min_contrastive=0.25) == expected(settings, lambda row: row["contrastive"] >= 0.25)
  assert texts_of(settings, origins={"synthetic": 1.0}) == expected(
    settings, lambda row: row["kept"] and row["origin"] == "synthetic"
  )
  found = texts_of(people, min_matching=1.0, min_contrastive=1.0)
  assert found == expected(people, lambda row: row["origin"] == "human")
  assert len(texts_of(people, min_matching=1.0)) == 13  # and one with the score 1
  assert sum(text.origin == "human" for text in found) == 12  # all of them
  assert [text for text in found if text.origin == "human"] == texts_of(
    people, min_matching=1.0, min_contrastive=1.0, origins={"web": 1.0, "human": 1.0}, sample="image"
  )


def test_what_is_missing_is_said(tmp_path):
  settings = web(tmp_path / "in")
  with pytest.raises(SidecarError, match=r"is no CapFilt workdir: it has no manifest\.json"):
    opened(settings, tmp_path / "out")
  out = tmp_path / "out"
  bootstrap(out, settings)
  with pytest.raises(SidecarError, match=r"0 texts for 0 of 13 images.*nothing is left to train on.*report\.html"):
    opened(settings, out, origins={"human": 1.0})
  sidecar = out / "texts" / "1-00001.parquet"
  data = sidecar.read_bytes()
  sidecar.write_bytes(data[:-10])
  with pytest.raises(SidecarError, match=r"1-00001\.parquet is damaged or no sidecar .*delete it"):
    opened(settings, out)
  sidecar.write_bytes((out / "texts" / "0-00001.parquet").read_bytes())
  with pytest.raises(SidecarError, match=r"1-00001\.parquet has records 3 to 6, and its shard 10 to 13; delete it"):
    opened(settings, out)
  sidecar.unlink()
  with pytest.raises(SidecarError, match=r"1 of 4 shards are not finished, such as '1-00001'.*--workdir"):
    opened(settings, out)
  bootstrap(out, settings, change=lambda rows: [{**row, "kept": None} for row in rows])
  with pytest.raises(SidecarError, match=r"0-00000\.parquet: 9 of 9 texts are not decided on.*min_matching"):
    opened(settings, out)
  assert len(opened(settings, out, min_matching=0.5)) == len(kept_rows(settings))
  bootstrap(out, settings, change=lambda rows: [{**row, "matching": None} for row in rows])
  with pytest.raises(SidecarError, match=r"min_matching is 0\.5: no text in .* has this score"):
    opened(settings, out, min_matching=0.5)


def test_a_changed_source(tmp_path):
  settings = web(tmp_path / "in")
  bootstrap(tmp_path / "out", settings)
  source = opened(settings, tmp_path / "out")
  (tmp_path / "in" / "1.tar").write_bytes(shard(200, 6))  # as many records, but others
  with pytest.raises(SidecarError, match=r"in/\*\.tar, 1: record 7 is '000000200', which it was not .* has changed"):
    opened(settings, tmp_path / "out")
  source._source = open_source(settings)  # changed after it was opened
  numbers = [row["index"] for row in kept_rows(settings)]
  assert source[0].key == "000000001"
  with pytest.raises(BadRecord, match=r"record 12 is '000000205', which it was not .* has changed since"):
    source[len(source) - 1]
  assert numbers[-1] == 12
  (tmp_path / "in" / "1.tar").write_bytes(shard(100, 5))
  with pytest.raises(SidecarError, match="'1' was records 7 to 13 and is now 7 to 12"):
    opened(settings, tmp_path / "out")


@pytest.mark.parametrize("kind", ["webdataset", "folder", "parquet"])
def test_other_pictures_under_the_same_names(tmp_path, kind):
  settings = SOURCES[kind](tmp_path / "in")
  bootstrap(tmp_path / "out", settings)
  shutil.copytree(tmp_path / "in", tmp_path / "copy")  # elsewhere, with other times: the same content
  copied = dataclasses.replace(settings, path=settings.path.replace("/in", "/copy"))
  source = opened(copied, tmp_path / "out")
  assert all(source[i].texts for i in range(len(source)))
  for path in (tmp_path / "copy").iterdir():
    data = path.read_bytes()
    for n in range(13):
      for old in (picture(n, "PNG"), picture(n), picture(100 + n)):
        data = data.replace(old, old[:-1] + b"?")
    path.write_bytes(data)
    if kind == "parquet":
      table = pq.read_table(path)
      other = pa.array([image.as_py()[:-1] + b"?" for image in table["image"]])
      pq.write_table(table.set_column(0, "image", other), path, row_group_size=2)
  with pytest.raises(SidecarError, match=r"the image of record \d+, '.*', is not the one that its texts"):
    opened(copied, tmp_path / "out")
  source._source = open_source(copied)  # replaced while the run goes on
  with pytest.raises(BadRecord, match="is not the one that its texts were made for: the source has changed since"):
    source[0]


def test_sidecars_without_checksums_are_read(tmp_path):
  settings = web(tmp_path / "in")
  bootstrap(tmp_path / "out", settings)
  new = opened(settings, tmp_path / "out")
  for path in (tmp_path / "out" / "texts").iterdir():
    pq.write_table(pq.read_table(path).drop_columns("image"), path)
    assert sidecars.is_complete(path) and sidecars.read(path)["image"].null_count == len(sidecars.read(path))
  old = opened(settings, tmp_path / "out")
  assert [old[i] for i in range(len(old))] == [new[i] for i in range(len(new))]


def test_keys_that_are_not_known_are_not_compared(tmp_path):
  settings = web(tmp_path / "in")
  bootstrap(tmp_path / "out", settings, change=lambda rows: [{**row, "key": ""} for row in rows])
  assert opened(settings, tmp_path / "out")[0].key == "000000001"


def test_from_a_bucket(tmp_path):
  settings = web(tmp_path / "in")
  bootstrap(tmp_path / "out", settings)
  fs = fsspec.filesystem("memory")
  for path in (tmp_path / "out").rglob("*.*"):
    fs.pipe_file(f"/boot/{path.relative_to(tmp_path / 'out')}", path.read_bytes())
  local, remote = opened(settings, tmp_path / "out"), opened(settings, "memory://boot")
  assert [local[i] for i in range(len(local))] == [remote[i] for i in range(len(remote))]
  fs.rm("/boot/texts/0-00000.parquet")
  with pytest.raises(SidecarError, match="1 of 4 shards are not finished"):
    opened(settings, "memory://boot")


class Blank:
  """A source of records without pictures."""

  name, problems, label_names = "blank", (), ()

  def __init__(self, count):
    self.shards = [Shard("x", 0, count)]

  def __len__(self):
    return self.shards[0].stop

  def __getitem__(self, i):
    return Record("", b"", ())


@pytest.mark.slow
def test_memory(tmp_path):
  from coca.data.sources.bootstrapped import Bootstrapped

  images, length = 100_000, 30
  index = np.repeat(np.arange(images), 2)
  sidecars.write(
    sidecars.path_of(tmp_path, "x"),
    {
      "index": index,
      "text": [f"{n:0{length}d}" for n in range(2 * images)],
      "origin": ["web", "synthetic"] * images,
      "kept": np.ones(2 * images, bool),
    },
  )
  (tmp_path / "manifest.json").write_text(json.dumps({"shards": [["x", 0, images]]}))
  for sample, limit in (("text", 22), ("image", 26)):
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    source = Bootstrapped(Blank(images), Source(sidecars=str(tmp_path), sample=sample))
    used = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
    tracemalloc.stop()
    assert used / (2 * images) < length + limit
    assert source[4].texts[0].text == f"{4 if sample == 'text' else 8:0{length}d}"
    del source


# --- Which text is drawn ---


def chi_square(counts, expected):
  return sum((counts.get(name, 0) - n) ** 2 / n for name, n in expected.items())


def test_weighted_draw():
  record = Record(
    "", b"", (Text("a", "web"), Text(" ", "human"), Text("b", "synthetic"), Text("c", "synthetic"), Text("d", "human"))
  )
  rng = np.random.default_rng(0)

  def draws(origins):
    return Counter(texts.choose(record, "random", (), rng, origins) for _ in range(6000))

  # 16.27: what chi-square with 3 degrees of freedom exceeds once in a thousand
  assert chi_square(draws({}), dict.fromkeys("abcd", 1500)) < 16.27
  found = draws({"web": 1.0, "synthetic": 0.5, "human": 4.0})
  assert chi_square(found, {"a": 1000, "b": 500, "c": 500, "d": 4000}) < 16.27
  assert draws({"web": 1.0, "synthetic": 1.0}).keys() == {"a", "b", "c"}
  assert draws({"human": 0.1}).keys() == {"d"}
  # The first two by their weights among those that are left, then the others, and all again; 31.26: 11 degrees of
  # freedom.
  weights = {"web": 1.0, "synthetic": 0.5, "human": 4.0}
  rounds = [list(itertools.islice(texts.draws(record, "random", (), rng, weights), 8)) for _ in range(6000)]
  assert all(sorted(r[:4]) == sorted(r[4:]) == list("abcd") for r in rounds)
  of = {"a": 1, "b": 0.5, "c": 0.5, "d": 4}
  first_two = {(a, b): 6000 * of[a] / 6 * of[b] / (6 - of[a]) for a, b in itertools.permutations("abcd", 2)}
  assert chi_square(Counter((r[0], r[1]) for r in rounds), first_two) < 31.26
  once = itertools.islice(texts.draws(record, "random", (), rng, {"web": 1.0, "synthetic": 1.0}), 300)
  assert set(once) == {"a", "b", "c"}
  seeded = [
    [texts.choose(record, "random", (), r, {"web": 1.0, "human": 2.0}) for _ in range(50)]
    for r in (np.random.default_rng(1), np.random.default_rng(1), np.random.default_rng(2))
  ]
  assert seeded[0] == seeded[1] != seeded[2]
  rng = np.random.default_rng(0)
  expected = np.random.default_rng(0).integers(4, size=20)  # a source without weights draws as it always has
  assert [texts.choose(record, "random", (), rng) for _ in range(20)] == ["abcd"[i] for i in expected]


LENGTH = 32


def pipeline_config(settings, batch, **source):
  settings = dataclasses.replace(settings, **source)
  return config.Config(
    model=config.Model(image=config.ImageEncoder(size=8, patch=8), text=config.TextDecoder(length=LENGTH, vocab=140)),
    data=config.Data(sources={"boot": settings}, batch=batch, threads=2),
  )


def drawn(settings, words, batch, rows, steps, start=0, **source):
  """The texts of a training stream, by its global rows."""
  c = pipeline_config(settings, batch, **source)
  batches = pipeline.train_batches(c, {"boot": open_source(c.data.sources["boot"])}, words, rows, start)
  try:
    taken = [next(batches) for _ in range(steps)]
  finally:
    batches.close()
  assert not any(problems for _, problems in taken) and all(b["weight"].all() for b, _ in taken)
  assert all(b["image"].shape == (len(rows), 8, 8, 3) for b, _ in taken)
  return [[words.decode(ids) for ids in b["text"]] for b, _ in taken]


@pytest.fixture(scope="module")
def words():
  kinds = ("pair", "synthetic", "by hand")
  return sentencepiece.train([f"{kind} {n} {k}" for kind in kinds for n in range(120) for k in range(2)], 140)


def test_batches_of_texts(tmp_path, words):
  """Every kept text once an epoch, as in BLIP's D'."""
  settings = web(tmp_path / "in")
  bootstrap(tmp_path / "out", settings)
  rows = kept_rows(settings)
  epoch = drawn(settings, words, len(rows), range(len(rows)), 2, sidecars=str(tmp_path / "out"))
  assert [sorted(batch) for batch in epoch] == [sorted(row["text"] for row in rows)] * 2
  some = drawn(settings, words, len(rows), range(2, 5), 1, 1, sidecars=str(tmp_path / "out"))
  assert some == [epoch[1][2:5]]  # another host's rows, started anew
  # A source an origin and weights make another mixture.
  c = pipeline_config(settings, 12, sidecars=str(tmp_path / "out"))
  base = c.data.sources["boot"]
  mixture = {
    name: dataclasses.replace(base, origins={name: 1.0}, weight=weight)
    for name, weight in (("web", 3.0), ("synthetic", 1.0))
  }
  c = dataclasses.replace(c, data=dataclasses.replace(c.data, sources=mixture))
  batches = pipeline.train_batches(c, {k: open_source(s) for k, s in mixture.items()}, words, range(12))
  texts = [words.decode(ids) for ids in next(batches)[0]["text"]]
  batches.close()
  assert sum(t.startswith("pair") for t in texts) == 9


@pytest.mark.slow
def test_batches_of_images(tmp_path, words):
  """Every image once an epoch; its texts as often as the weights of their origins say."""
  settings = human(tmp_path / "in")
  bootstrap(tmp_path / "out", settings, change=lambda rows: [{**row, "kept": True} for row in rows])
  chosen = {"sidecars": str(tmp_path / "out"), "sample": "image", "origins": {"human": 3.0, "synthetic": 1.0}}
  epochs = drawn(settings, words, 6, range(6), 100, **chosen)
  for epoch in epochs:
    assert sorted({t.split()[-2] for t in epoch}) == list("012345")
  counts = Counter(" ".join([t.split()[0], t.split()[-1]]) for epoch in epochs for t in epoch)
  expected = {"by 0": 225, "by 1": 225, "synthetic 0": 75, "synthetic 1": 75}
  assert sum(counts.values()) == 600 and chi_square(counts, expected) < 16.27
  assert drawn(settings, words, 6, [1, 4], 5, 7, **chosen) == [[e[1], e[4]] for e in epochs[7:12]]
  found = set(drawn(settings, words, 6, range(6), 1, **chosen | {"origins": {"human": 1.0, "synthetic": 0.0}})[0])
  assert len(found) == 6 and all(t.startswith("by hand") for t in found)
  with_weights = pipeline_config(settings, 6, **chosen).data.sources
  opened = {"boot": open_source(with_weights["boot"])}
  drawn_for_tokenizer = [list(load.texts_of(opened, with_weights, 100, seed)) for seed in range(40)]
  assert all(len(d) == 6 for d in drawn_for_tokenizer)
  counts = Counter(t.split()[0] for d in drawn_for_tokenizer for t in d)
  assert chi_square(counts, {"by": 180, "synthetic": 60}) < 10.83


# --- Settings ---


@pytest.mark.parametrize(("changes", "message"), [
  ({"origins": {"web": 1.0}}, r"<name>\.origins chooses among .* set config.data.sources.<name>\.sidecars"),
  ({"min_matching": 0.5}, r"min_matching chooses among"),
  ({"sidecars": "x", "origins": {"webb": 1.0}}, r"origins\.webb: no such origin; known: web, synthetic, human, label"),
  ({"sidecars": "x", "origins": {"web": 0.0}}, "one has to be above 0"),
  ({"sidecars": "x", "origins": {"web": -1.0}, "sample": "image"}, "weights are 0 or above"),
  ({"sidecars": "x", "origins": {"web": 2.0}}, "list a source for each"),
  ({"sidecars": "x", "origins": {"web": 2.0, "human": 1.0}, "sample": "image", "text": "first"}, "say text 'random'"),
  ({"sidecars": "x", "min_matching": 50.0}, "min_matching 50.0 is no probability"),
  ({"sidecars": "x", "min_contrastive": 1.5}, "is no cosine"),
])  # fmt: skip
def test_settings_that_make_no_sense(changes, message):
  with pytest.raises(ValueError, match=message):
    open_source(Source(kind="builtin", **changes))


def test_choices():
  for name, value in (("origin", "martian"), ("sample", "texts")):
    c = config.default()
    c.data.sources.x = config.to_dict(Source(**{name: value}))
    with pytest.raises(ValueError, match=rf"config\.data\.sources\.x\.{name} is '{value}'; it may be"):
      config.parse(c)


def test_origins_on_the_command_line(tmp_path):
  (tmp_path / "c.py").write_text(
    "from coca.config import Source, default, to_dict\n"
    "def get_config():\n"
    "  config = default()\n"
    "  config.data.sources.x = to_dict(Source(sidecars='out', sample='image', origins={'human': 1.0, 'web': 1}))\n"
    "  return config\n"
  )
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values)
  argv = [
    "x",
    f"--config={tmp_path / 'c.py'}",
    "--config.data.sources.x.origins.human=2.5",
    "--config.data.sources.x.min_matching=0.7",
  ]
  before, sys.argv = sys.argv, argv
  try:
    values(argv)
  finally:
    sys.argv = before
  source = config.parse(values.config).data.sources["x"]
  assert source.origins == {"human": 2.5, "web": 1.0} and source.min_matching == 0.7
  assert isinstance(source.origins["web"], float)
  saved = json.dumps(config.to_dict(config.parse(values.config)).to_dict())
  assert config.parse(json.loads(saved)).data.sources["x"] == source
