"""`python -m coca.search`: an index that grows, what is found in it, and the page."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import coca
from coca import inference, search
from coca.inference import search_index
from coca.inference.search_index import SearchIndex, make_index
from support.tars import tar
from support.workdirs import make_workdir, small_config


def save(folder, names):
  folder.mkdir(exist_ok=True)
  for name in names:
    rng = np.random.default_rng(len(name) + ord(name[-1]))
    Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((24, 20)).save(folder / f"{name}.png")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  make_workdir(folder / "tiny", small_config(folder))
  return coca.load(folder / "tiny")


@pytest.fixture
def run(model, monkeypatch, tmp_path, capsys):
  """A command line -> what it prints, and what it says beside."""
  monkeypatch.setattr(inference, "load", lambda path: {str(tmp_path / "runs/tiny"): model}[path])
  monkeypatch.setattr(search_index, "BATCH", 2)
  monkeypatch.setattr(search_index, "PART", 4)
  monkeypatch.chdir(tmp_path)

  def run(*args):
    search.main(["found", *args])
    return capsys.readouterr()

  return run


@pytest.fixture
def photos(tmp_path):
  save(tmp_path / "photos", "abcdefghi")
  (tmp_path / "photos/broken.jpg").write_bytes(b"\xff\xd8\xff no image")
  return tmp_path / "photos"


@pytest.mark.slow
def test_the_closest_by_cosine_and_a_page_of_them(run, model, photos, tmp_path):
  said = run("--data=photos", "--model=runs/tiny", "green pear", "--k=3", "--html=page.html")
  assert "9 images embedded, 0 were there, 1 can't be read" in said.err
  paths = [photos / f"{name}.png" for name in "abcdefghi"]
  cosines = model.score(paths, "green pear")[:, 0]
  expected = [(paths[i], cosines[i]) for i in np.argsort(-cosines)[:3]]
  lines = [line.split("\t") for line in said.out.splitlines()]
  assert [path for _, path in lines] == [str(path) for path, _ in expected]
  np.testing.assert_allclose([float(c) for c, _ in lines], [c for _, c in expected], atol=2e-3)
  page = (tmp_path / "page.html").read_text(encoding="utf-8")
  assert len(re.findall('src="data:image/jpeg;base64,', page)) == len(re.findall("src=|href=|url", page)) == 3

  # Both an image, which finds itself, and a text; from another folder than the index was made in.
  (photos / "c.png").rename(tmp_path / "c.png")
  said = run("green pear", "--image=c.png", "--k=1", "--html=page.html").out.splitlines()
  assert said[:2] == ["green pear:", "\t".join(lines[0])] and said[2:] == ["c.png:", f"1.000\t{photos / 'c.png'}"]
  page = (tmp_path / "page.html").read_text(encoding="utf-8")
  assert page.count('class="error"') == 1 + (lines[0][1] == str(photos / "c.png")) and "looked for" in page


def test_a_killed_run_goes_on_and_only_what_is_new_is_embedded(run, model, photos, tmp_path, monkeypatch):
  embed, seen = model.embed_images, []

  def counted(images):
    seen.append(len(images))
    if sum(seen) > 6:
      raise KeyboardInterrupt
    return embed(images)

  monkeypatch.setattr(model, "embed_images", counted)
  with pytest.raises(SystemExit):
    run("--data=photos", "--model=runs/tiny")
  assert len(SearchIndex("found")) == 3  # one part: one of its images is broken
  seen.clear()
  assert "6 images embedded, 3 were there" in run("--data=photos", "--model=runs/tiny").err
  save(photos, ("new",))
  seen.clear()
  # A folder above it names the same files. The model is known by now.
  assert "1 images embedded, 9 were there" in run(f"--data={tmp_path}").err and sum(seen) == 1
  assert sorted(one.key for one in SearchIndex("found").search(np.zeros((1, 16), np.float32), 99)[0]) == sorted(
    str(path) for path in photos.glob("*.png")
  )


def test_records_of_tars(run, model, tmp_path):
  def member(name):
    out = io.BytesIO()
    Image.open(tmp_path / "images" / f"{name}.png").save(out, "PNG")
    return {f"{name}.png": out.getvalue(), f"{name}.txt": b"red apple"}

  save(tmp_path / "images", "abcd")
  (tmp_path / "tars").mkdir()
  (tmp_path / "tars/1.tar").write_bytes(tar(member("c") | member("d")))
  assert "2 images embedded" in run("--data=tars", "--model=runs/tiny").err
  # Before the other, whose records have other numbers now.
  (tmp_path / "tars/0.tar").write_bytes(tar(member("a") | member("b")))
  assert "2 images embedded, 2 were there" in run("--data=tars").err
  said = run("--image=images/c.png", "--k=1", "--html=page.html").out
  assert re.fullmatch(r"1\.000\t.*c\n", said)
  assert 'class="error"' not in (tmp_path / "page.html").read_text(encoding="utf-8")
  (tmp_path / "tars/1.tar").write_bytes(tar(member("a") | member("b")))
  run("--image=images/c.png", "--k=1", "--html=page.html")
  assert 'class="error"' in (tmp_path / "page.html").read_text(encoding="utf-8")
  (tmp_path / "tars/2.tar").write_bytes(tar(member("c") | member("d"))[:2100])
  assert "2.tar: truncated at byte" in run("--data=tars").err


def test_an_index_is_of_one_model_and_opens_nothing_far_away_by_itself(run, model, photos, tmp_path):
  run("--data=photos", "--model=runs/tiny")
  about, part = tmp_path / "found/index.json", tmp_path / "found/parts/000000000000.json"
  names = json.loads(part.read_text())
  part.write_text(json.dumps(names | {"places": ["https://example.invalid/a.png"] * len(names["places"])}))
  run("red apple", "--html=page.html", "--k=9")
  assert (tmp_path / "page.html").read_text(encoding="utf-8").count("--allow_urls") == len(names["places"])

  with pytest.raises(SystemExit, match="photso: no such file or directory"):
    run("--data=photso", "--model=runs/tiny")
  was = json.loads(about.read_text())
  for change, said in ({"identity": "sha256:0"}, "of another model"), ({"model": "hf://a/b"}, "--model=hf://a/b"):
    about.write_text(json.dumps(was | change))
    with pytest.raises(SystemExit, match=said):
      run("red apple")
  with pytest.raises(SystemExit, match="is no search index"):
    about.unlink()
    run("red apple")


def test_the_graph_finds_what_all_comparisons_find(model, tmp_path, monkeypatch):
  pytest.importorskip("usearch", reason="pip install -e '.[search]'")
  monkeypatch.setattr(search_index, "PART", 512)
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(40, 16))

  def unit(n):
    vectors = centres[rng.integers(0, 40, n)] + 0.5 * rng.normal(size=(n, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

  index = make_index(tmp_path, model, "tiny")

  def write(start, stop, vectors):
    index._write("photos", [(f"{i}", f"{i}") for i in range(start, stop)], vectors[start:stop].astype(np.float16))

  vectors, queries = unit(3000), unit(50)
  for start in range(0, 2000, 500):
    write(start, start + 500, vectors)
  index.build_graph()
  write(2000, 2600, vectors)
  index.build_graph()  # more of the same graph
  write(2600, 3000, vectors)  # rows that it lacks are compared one by one
  exact, fast = (index.search(queries, 10, exact) for exact in (True, False))

  cosines = queries @ vectors.astype(np.float16).astype(np.float32).T
  best = np.argsort(-cosines, axis=1)[:, :10]
  assert [[int(one.key) for one in each] for each in exact] == best.tolist()
  np.testing.assert_allclose(
    [[one.cosine for one in each] for each in exact], np.take_along_axis(cosines, best, 1), atol=1e-6
  )
  recall = np.mean([len({a.key for a in x} & {b.key for b in y}) / 10 for x, y in zip(exact, fast, strict=True)])
  assert recall >= 0.98
  of = {one.key: one.cosine for each in exact[:1] for one in each}
  np.testing.assert_allclose(
    [of.get(one.key, one.cosine) for one in fast[0]], [one.cosine for one in fast[0]], atol=1e-6
  )
