"""CapFilt's report: its numbers against plain loops over the rows, and the page in a real browser."""

import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coca.capfilt import report
from coca.capfilt.tally import Tally, repeats
from coca.data.records import BadRecord, Record
from coca.data.sidecars import SidecarError
from support.browser import CHROMIUM, Browser

CODED = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
  [
    ("index", pa.int64()),
    ("key", pa.string()),
    ("text", pa.string()),
    ("origin", CODED),
    ("matching", pa.float32()),
    ("contrastive", pa.float32()),
    ("kept", pa.bool_()),
    ("problem", pa.string()),
    ("decoding", CODED),
    ("captioner", CODED),
    ("filter", CODED),
    ("version", CODED),
  ]
)
BROKEN = {7: "disk is on fire", 60: "not decodable: 17 bytes are missing"}
SCRIPT = "<script>document.title = 'pwned'</script><img src=x onerror=\"document.title='pwned'\"></script><!--"


def write_report(*args, **options):
  """The page's path."""
  return report.write_report(*args, **options)[0]


class Pictures:
  """90 plain squares; those in BROKEN can't be read."""

  def __len__(self):
    return 90

  def __getitem__(self, index):
    if index in BROKEN:
      raise BadRecord(f"shard-{index}.tar: record 'key/{index}': {BROKEN[index]}")
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (index, 200 - index, 99)).save(out, "PNG")
    return Record(f"key/{index}", out.getvalue(), ())


def make_rows(rng) -> list[dict]:
  rows = []
  for i in range(90):
    base = {"index": i, "key": f"key/{i}", "filter": "sha256:f", "version": "1.2.3"}
    if i in BROKEN:
      rows.append(
        base
        | {"kept": False, "problem": f"shard-{i}.tar: record 'key/{i}': {BROKEN[i]}", "text": "lost", "origin": "web"}
      )
      continue
    for origin in ("human",) if i % 10 == 0 else ("web", "synthetic", "synthetic")[: 1 + i % 3]:
      matching, contrastive = np.float32(rng.integers(0, 101) / 100), np.float32(rng.normal(0.2, 0.1))
      if i == 31:
        matching = np.float32("nan")
      row = base | {
        "text": f"{origin} text {i}",
        "origin": origin,
        "matching": matching,
        "contrastive": contrastive,
        "kept": bool(matching >= 0.5) or origin == "human",
      }
      if i == 33:
        row["kept"] = None
      if origin == "synthetic":
        row |= {"captioner": "sha256:c", "decoding": json.dumps({"strategy": "sample", "top_p": 0.9})}
      rows.append(row)
  rows[2]["text"] = SCRIPT
  for row in rows[60:80:3]:
    row["text"] = "2 2 2 2 2"
  return rows


@pytest.fixture(scope="module")
def rows():
  return make_rows(np.random.default_rng(0))


@pytest.fixture(scope="module")
def out(tmp_path_factory, rows):
  """A run of three shards of 30 records, the last of which is not finished."""
  out = tmp_path_factory.mktemp("runs") / "a <run>"
  (out / "texts").mkdir(parents=True)
  shards = [[f"s-{k}", 30 * k, 30 * k + 30] for k in range(3)]
  for name, start, stop in shards[:2]:
    mine = [row for row in rows if start <= row["index"] < stop]
    pq.write_table(pa.Table.from_pylist(mine, SCHEMA), out / "texts" / f"{name}.parquet", row_group_size=7)
  (out / "manifest.json").write_text(
    json.dumps(
      {
        "settings": {"captioner": "runs/c", "note": "</script>"},
        "captioner": "sha256:c",
        "filter": "sha256:f",
        "version": "1.2.3",
        "source": {"kind": "folder", "path": "pics"},
        "shards": shards,
        "threshold": {"matching": 0.5},
      }
    )
  )
  write_report(out, Pictures())
  return out


def data_of(path) -> dict:
  page = path.read_text(encoding="utf-8")
  return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_counts_are_those_of_the_rows(out, rows):
  data, rows = data_of(out / "report.html"), [r for r in rows if r["index"] < 60]
  for name in ("web", "synthetic", "human"):
    mine, found = [r for r in rows if r["origin"] == name], data["origins"][name]
    states = {
      "kept": sum(r["kept"] is True for r in mine),
      "dropped": sum(r["kept"] is False and "problem" not in r for r in mine),
      "failed": sum(r["kept"] is False and "problem" in r for r in mine),
      "undecided": sum(r["kept"] is None for r in mine),
      "repeating": sum(plain_repeats(r["text"]) for r in mine),
      "repeating_kept": sum(plain_repeats(r["text"]) and r["kept"] is True for r in mine),
    }
    assert {k: found[k] for k in states} == states
    # The histogram gives what any threshold in hundredths keeps, edges included.
    for cut in range(101):
      expected = sum(bool(r.get("matching", -1) >= np.float32(cut / 100)) for r in mine)
      last = [n for m, _, n in found["joint"] if cut <= min(m, 99) and m < 100]
      assert sum(last) == expected or cut == 100, (name, cut)
    scores = [r["contrastive"] for r in mine if "contrastive" in r]
    for cut in (0.1, 0.2, 0.3):
      assert sum(n for _, c, n in found["joint"] if round((cut + 1) * 100) <= c < 200) == sum(s >= cut for s in scores)
  kept = [sum(r["kept"] is True for r in rows if r["index"] == i) for i in range(60)]
  assert data["images"] == [kept.count(0), kept.count(1), sum(k > 1 for k in kept)]
  assert data["shards"] == {"finished": 2, "all": 3}
  assert data["failures"] == [
    ["shard-….tar: record …: disk is on fire", 1, 1, "shard-7.tar: record 'key/7': disk is on fire"]
  ]
  assert data["identities"]["decoding"] == [
    ['{"strategy": "sample", "top_p": 0.9}', sum(r["origin"] == "synthetic" for r in rows)]
  ]


def test_it_does_not_matter_how_the_rows_are_cut(rows):
  def tally(size):
    t = Tally()
    table = pa.Table.from_pylist(rows, SCHEMA)
    for start in range(0, len(rows), size):
      t.add(table.slice(start, size).combine_chunks().to_batches()[0])
    return t

  whole = tally(len(rows))
  assert sum(whole.images) == 90 and len(whole.failures) == 2
  for size in (1, 2, 7):
    part = tally(size)
    assert (part.images, part.failures, part.identities) == (whole.images, whole.failures, whole.identities)
    for name, origin in whole.origins.items():
      assert np.array_equal(part.origins[name].joint, origin.joint)
    assert str(part) == str(whole)


def test_the_counts_for_the_terminal():
  rows = [
    {"index": i, "key": "k", "text": "t", "origin": origin, "kept": kept, "problem": problem}
    for i, (origin, kept, problem) in enumerate(
      [
        ("web", True, None),
        ("web", False, None),
        ("web", False, "x"),
        ("synthetic", True, None),
        (None, False, "broken"),
      ]
    )
  ]
  rows[-1]["text"] = None
  tally = Tally()
  tally.add(pa.Table.from_pylist(rows, SCHEMA).to_batches()[0])
  assert re.sub(" +", " ", str(tally)).splitlines() == [
    " web 1 of 3 kept (33.3%)",
    " synthetic 1 of 1 kept (100.0%)",
    " without a text 1",
  ]


def plain_repeats(text):
  """A word or a phrase of up to four words three times in a row, word by word."""
  words = re.findall(r"[^\W_]+", (text or "").lower())
  return any(
    words[i : i + n] == words[i + n : i + 2 * n] == words[i + 2 * n : i + 3 * n]
    for n in range(1, 5)
    for i in range(len(words) - 3 * n + 1)
  )


def test_texts_that_repeat_themselves_are_counted():
  rng = np.random.default_rng(0)
  texts = [
    "2 2 2 2",
    "A dog, a dog; a DOG!",
    "a b c d a b c d a b c d",
    "a b c d e a b c d e a b c d e",
    "2 2",
    "very very",
    "no",
    "no no",
    "no",
    "",
    None,
    "ein Hund ein Hund ein Hund im Gras",
    "der der",
    "der Hund",
    "hot hot  hot",
  ]
  texts += [" ".join(rng.choice(["a", "b", "c."], rng.integers(0, 12))) for _ in range(500)]
  found = repeats(pa.array(texts))
  assert found.tolist() == [plain_repeats(text) for text in texts]
  assert found[:15].tolist() == [True, True, True, *[False] * 8, True, False, False, True]
  assert 20 < found[15:].sum() < 480
  assert not repeats(pa.array([None, ""], pa.string())).any() and len(repeats(pa.array([], pa.string()))) == 0

  rows = [
    {"index": i, "key": "k", "text": text, "origin": origin, "kept": kept, "problem": None}
    for i, (text, origin, kept) in enumerate(
      [
        ("2 2 2", "synthetic", True),
        ("2 2 2", "synthetic", False),
        ("a dog", "synthetic", True),
        ("no no no", "web", False),
      ]
    )
  ]
  tally = Tally()
  tally.add(pa.Table.from_pylist(rows, SCHEMA).to_batches()[0])
  counts = {name: (o.repeating, o.repeating_kept) for name, o in tally.origins.items() if o.texts}
  assert counts == {"web": (1, 0), "synthetic": (2, 1)}
  assert "synthetic       2 of 3 kept (66.7%), 1 of them repeat themselves" in str(tally)


def test_reasons_are_counted_by_image_and_their_number_is_bounded(monkeypatch):
  monkeypatch.setattr("coca.capfilt.tally.MOST_REASONS", 3)
  problems = ["a 1"] * 2 + ["b of 'x y'"] + ["key5: c"] + ["d", "e"]
  rows = [
    {"index": i // 2 + 5, "key": f"key{i // 2 + 5}", "text": "t", "origin": "web", "kept": False, "problem": p}
    for i, p in enumerate(["key5: c", *problems])
  ]
  rows.append({"index": 99, "key": "", "problem": "a 2"})  # no text
  tally = Tally()
  tally.add(pa.Table.from_pylist(rows, SCHEMA).to_batches()[0])
  assert {k: v[:2] for k, v in tally.failures.items()} == {
    "…: c": [1, 1],
    "a …": [3, 2],
    "b of …": [1, 1],
    "other reasons": [2, 3],
  }


def test_agreement_is_that_of_the_decisions():
  rng = np.random.default_rng(1)
  n = 5000
  matching = rng.random(n).astype(np.float32)
  contrastive = (0.2 * matching + rng.normal(0, 0.1, n)).astype(np.float32)
  rows = [
    {
      "index": i,
      "key": "k",
      "text": "t",
      "origin": "web" if i % 2 else "synthetic",
      "matching": m,
      "contrastive": c,
      "kept": True,
    }
    for i, (m, c) in enumerate(zip(matching, contrastive, strict=True))
  ]
  rows += [
    {"index": n, "key": "k", "text": "t", "origin": "human", "matching": 0.9, "contrastive": 0.1, "kept": True},
    {"index": n + 1, "key": "k", "text": "t", "origin": "web", "matching": 0.9, "kept": True},
  ]
  tally = Tally()
  tally.add(pa.Table.from_pylist(rows, SCHEMA).to_batches()[0])
  found = tally.agreement((0.25, 0.5))
  assert [row["of"] for row in found] == [n, n]
  for row in found:
    a, b = matching >= np.float32(row["matching"]), contrastive >= np.float32(row["contrastive"])
    assert (row["matching_keeps"], row["contrastive_keeps"]) == (a.sum(), b.sum())
    assert abs(int(a.sum()) - int(b.sum())) < 0.01 * n  # the same share, to a thousandth of cosine
    assert row["agree"] == pytest.approx((a == b).mean())
    p, q = a.mean(), b.mean()
    assert row["chance"] == pytest.approx(p * q + (1 - p) * (1 - q))
  assert Tally().agreement() == []


def test_the_sample_is_even_and_the_same_each_time(out, tmp_path, monkeypatch):
  page = (out / "report.html").read_bytes()
  monkeypatch.setattr(report, "ROWS", 3)
  assert write_report(str(out), Pictures()).read_bytes() == page
  assert [r["index"] for r in data_of(out / "report.html")["records"]] == list(range(60))
  try:
    write_report(out, Pictures(), limit=6)
    records = data_of(out / "report.html")["records"]
    assert [r["index"] for r in records] == [5, 15, 25, 35, 45, 55]
    assert [t["text"] for t in records[1]["texts"]] == ["web text 15"]
    assert [t["origin"] for t in records[0]["texts"]] == ["web", "synthetic", "synthetic"]
  finally:
    write_report(out, Pictures())
  assert {p.name for p in out.iterdir()} == {"manifest.json", "texts", "report.html"}


def test_a_source_that_is_not_the_one_of_the_run(out):
  class Other(Pictures):
    def __getitem__(self, index):
      if index == 30:
        raise OSError("gone")
      record = super().__getitem__(index)
      return Record(f"another/{index}", record.image, ()) if index == 10 else record

  try:
    records = data_of(write_report(out, Other(), limit=3))["records"]
  finally:
    write_report(out, Pictures())
  assert records[0]["problem"] == "the source has another record here: another/10" and "image" not in records[0]
  assert records[1]["problem"] == "OSError: gone" and records[2]["image"].startswith("data:image/jpeg;base64,")


def test_mistakes_are_named(tmp_path, out):
  with pytest.raises(SidecarError, match=r"is no CapFilt workdir: it has no manifest\.json"):
    write_report(tmp_path, Pictures())
  (tmp_path / "manifest.json").write_text('{"shards": [["a", 4]]}')
  with pytest.raises(SidecarError, match=r"manifest\.json can't be read"):
    write_report(tmp_path, Pictures())
  (tmp_path / "manifest.json").write_text('{"shards": [["a", 0, 2]]}')
  data = data_of(write_report(tmp_path, Pictures()))  # nothing is finished yet
  assert data["records"] == [] and data["images"] == [0, 0, 0]
  (tmp_path / "texts").mkdir()
  (tmp_path / "texts" / "a.parquet").write_bytes(b"no parquet")
  (tmp_path / "report.html").unlink()
  with pytest.raises(SidecarError, match=r"a\.parquet is damaged or no sidecar"):
    write_report(tmp_path, Pictures())
  assert not (tmp_path / "report.html").exists()


# ---- In a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  if not CHROMIUM:
    pytest.skip("no Chromium is installed (apt-get install chromium)")
  with Browser(tmp_path_factory.mktemp("profile")) as browser:
    yield browser


@pytest.fixture
def visit(browser, out):
  """Opens the page with a view; afterwards nothing may have gone wrong or been asked for from elsewhere."""
  browser.problems.clear()
  browser.requests.clear()
  browser.resize(1300, 900)

  def visit(view=""):
    browser.open(out / "report.html", view)
    return browser

  yield visit
  assert browser.problems == []
  asked = {url.split("#")[0] for url in browser.requests if not url.startswith("data:")}
  assert asked <= {(out / "report.html").as_uri(), "about:blank"}


CARDS = "[...document.querySelectorAll('.card')].map(card => Number(card.dataset.index))"
TEXTS = """[...document.querySelectorAll('.card')].flatMap(card => [...card.querySelectorAll('li:not(.aside)')].map(
  li => [Number(card.dataset.index), li.querySelector('.tag').textContent, li.classList.contains('dropped')]))"""


def all_texts(visit, view) -> list:
  """[index, origin, struck through] of the texts that fit a view, on all its pages."""
  pages = [visit(f"{view}&page={k}").evaluate(TEXTS) for k in (1, 2)]
  last = int(visit(view).evaluate("document.getElementById('page').textContent").split("/")[1])
  return [text for page in pages[:last] for text in page]


def test_the_address_filters(visit, rows):
  rows = [r for r in rows if r["index"] < 60]
  expected = [
    [r["index"], "web", True] for r in rows if r["origin"] == "web" and r["kept"] is False and "problem" not in r
  ]
  assert all_texts(visit, "origin=web&kept=0") == expected
  expected = [[r["index"], r["origin"], False] for r in rows if r["kept"] and r["matching"] >= 0.8]
  assert all_texts(visit, "kept=1&score=matching&min=0.8") == expected
  assert all_texts(visit, "kept=failed") == [[7, "web", False]]
  assert "disk is on fire" in visit("kept=failed").evaluate("document.querySelector('.hole').textContent")
  assert all_texts(visit, "q=TEXT+4") == [
    [r["index"], r["origin"], r["kept"] is False] for r in rows if " text 4" in r.get("text", "")
  ]
  assert visit("q=no+such+words").evaluate("document.querySelector('#grid p').textContent").startswith("No image")


def test_it_sorts(visit, rows):
  rows = [r for r in rows if r["index"] < 60 and r["index"] != 31 and "contrastive" in r]
  first = visit("sort=-contrastive").evaluate(CARDS)[0]
  assert first == max((r for r in rows), key=lambda r: r["contrastive"])["index"]
  first = visit("sort=contrastive&origin=synthetic").evaluate(CARDS)[0]
  assert first == min((r for r in rows if r["origin"] == "synthetic"), key=lambda r: r["contrastive"])["index"]
  # The largest difference of ranks, up to the width of a bin.
  matching, contrastive = (np.array([r[k] for r in rows]) for k in ("matching", "contrastive"))
  rank = lambda x: np.array([(x < v).mean() + (x == v).mean() / 2 for v in x])  # noqa: E731
  apart = np.abs(rank(matching) - rank(contrastive))
  first = visit("sort=disagreement").evaluate(CARDS)[0]
  assert apart[[r["index"] == first for r in rows]].max() > apart.max() - 0.05


def test_another_threshold(visit, rows):
  rows = [r for r in rows if r["index"] < 60]
  browser = visit()
  kept = "document.getElementById('kept-{}').textContent"
  now = sum(r["origin"] == "web" and r["kept"] is True for r in rows)
  assert browser.evaluate(kept.format("web")).startswith(f"{now} (")
  browser.evaluate("""(() => { const slider = document.querySelector('#plot-matching input'); slider.value = 0.8;
                      slider.dispatchEvent(new Event('input')) })()""")
  for name in ("web", "synthetic"):
    now = sum(r["origin"] == name and r.get("matching", 0) >= np.float32(0.8) for r in rows)
    assert browser.evaluate(kept.format(name)).startswith(f"{now} (")
  assert browser.evaluate(kept.format("human")).endswith("(100%)")
  said = browser.evaluate("document.getElementById('cuts').textContent")
  assert "--config.data.sources.<name>.min_matching=0.8" in said
  assert browser.evaluate("location.hash") == "#min_matching=0.80"
  changed = [
    [r["index"], r["origin"], True]
    for r in rows
    if r["kept"] is not False and r["origin"] != "human" and r["matching"] < np.float32(0.8)
  ]
  assert [t for t in all_texts(visit, "min_matching=0.8&kept=changed") if t[2]] == changed
  anything = visit("min_matching=any").evaluate(kept.format("web"))
  assert anything.startswith(f"{sum(r['origin'] == 'web' and r.get('matching', -1) >= 0 for r in rows)} (")
  both = visit("min_matching=0.3&min_contrastive=0.2").evaluate(kept.format("web"))
  now = sum(
    r["origin"] == "web" and r.get("matching", 0) >= np.float32(0.3) and r["contrastive"] >= np.float32(0.2)
    for r in rows
  )
  assert both.startswith(f"{now} (")


def test_keys_turn_pages(visit):
  browser = visit()
  assert browser.evaluate(CARDS) == list(range(30))
  for key, page in (("ArrowRight", 2), ("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowLeft", 1), ("ArrowRight", 2)):
    browser.key(key)
    assert browser.evaluate("document.getElementById('page').textContent") == f"{page} / 2"
  browser.key("/", "/")
  browser.call("Input.insertText", text="synthetic")
  assert browser.evaluate("location.hash") == "#q=synthetic"
  browser.key("ArrowRight")  # moves the cursor in the field
  assert browser.evaluate("location.hash") == "#q=synthetic"


def test_texts_that_repeat_themselves_are_shown_by_origin(visit, out):
  browser, origins = visit(), data_of(out / "report.html")["origins"]
  head, *body = browser.evaluate(
    "[...document.querySelectorAll('#origins tr')].map(row => [...row.children].map(cell => cell.textContent))"
  )
  assert head[-2:] == ["repeating", "repeating, kept"]
  for name, *cells in body:
    assert cells[-2].startswith(str(origins[name]["repeating"]))
    assert cells[-1].startswith(str(origins[name]["repeating_kept"]))
  assert any(o["repeating_kept"] for o in origins.values())
  assert "a word, or a phrase of up to 4 words, stands three times in a row" in browser.evaluate(
    "document.getElementById('origins').textContent"
  )


def test_text_of_the_data_stays_text(visit, rows):
  browser = visit()
  assert browser.evaluate("document.title") == "CapFilt: a <run>"
  where = next(r["index"] for r in rows if r.get("text") == SCRIPT)
  card = f"document.querySelector('[data-index=\"{where}\"]')"
  assert SCRIPT in browser.evaluate(f"[...{card}.querySelectorAll('.words')].map(x => x.textContent)")
  assert browser.evaluate(f"{card}.querySelectorAll('script, ul img').length") == 0
  assert browser.evaluate("document.scripts.length") == 2
  pictures = "[...document.querySelectorAll('.card img')]"
  assert browser.evaluate(f"Promise.all({pictures}.map(i => i.decode())).then(() => {pictures}.length)") == 29
  assert browser.evaluate("JSON.parse(document.getElementById('settings').textContent).settings.note") == "</script>"


def test_it_fits_a_phone_and_the_dark(visit):
  browser = visit("min_matching=0.6")
  light = browser.evaluate("getComputedStyle(document.body).backgroundColor")
  browser.resize(390, 800)
  assert browser.evaluate("document.documentElement.scrollWidth") == 390
  scheme = "prefers-color-scheme"
  try:
    browser.call("Emulation.setEmulatedMedia", features=[{"name": scheme, "value": "dark"}])
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") != light
  finally:
    browser.call("Emulation.setEmulatedMedia", features=[])


@pytest.mark.slow
@pytest.mark.parametrize("scores", [("matching",), ("contrastive",), ()])
def test_a_run_with_fewer_scores(browser, tmp_path, rows, scores):
  (tmp_path / "texts").mkdir()
  mine = [{k: v for k, v in r.items() if k in scores or k not in ("matching", "contrastive")} for r in rows]
  pq.write_table(pa.Table.from_pylist(mine, SCHEMA), tmp_path / "texts" / "all.parquet")
  least = {"matching": 0.5, "contrastive": None}  # null: set later
  (tmp_path / "manifest.json").write_text(json.dumps({"shards": [["all", 0, 90]], "threshold": least}))
  write_report(tmp_path, Pictures())
  browser.problems.clear()
  browser.open(tmp_path / "report.html", "sort=disagreement&min_contrastive=0.2&log=1")
  assert browser.evaluate("document.querySelectorAll('svg').length") == len(scores)
  assert browser.evaluate("document.querySelectorAll('[value=disagreement]').length") == 0
  assert browser.evaluate(f"{CARDS}.length") == 30
  assert browser.problems == []


@pytest.mark.slow
def test_a_run_with_nothing_finished(browser, tmp_path):
  (tmp_path / "manifest.json").write_text('{"shards": [["a", 0, 2]]}')
  write_report(tmp_path, Pictures())
  browser.problems.clear()
  browser.open(tmp_path / "report.html", "sort=disagreement&origin=web")
  assert browser.evaluate("document.getElementById('lede').textContent") == "None of 1 shard is finished yet."
  assert browser.problems == []
