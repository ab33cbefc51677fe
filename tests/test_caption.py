"""`python -m coca.caption`: its files, and what it does with pictures that are none."""

import json
import os
import re

import fsspec
import numpy as np
import pytest
from PIL import Image

import coca
from coca import caption, inference
from coca.inference import caption_files
from coca.inference.images import images_in
from coca.inference.json_lines import JsonLines
from coca.inference.page import MOST, Page
from support.workdirs import make_workdir, small_config


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pictures")
  for i, colour in enumerate(("red", "green", "blue", "black", "yellow")):
    Image.new("RGB", (20 + i, 24), colour).save(folder / f"{i}-{colour}.png")
  (folder / "2-broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
  return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory, pictures):
  workdir = tmp_path_factory.mktemp("runs") / "tiny"
  make_workdir(workdir, small_config(pictures))
  return coca.load(workdir)


@pytest.fixture
def run(model, monkeypatch):
  monkeypatch.setattr(inference, "load", lambda path: {"runs/tiny": model}[path])
  monkeypatch.setattr(caption_files, "BATCH", 4)

  def run(*args):
    caption.main([*map(str, args), "--model=runs/tiny"])

  return run


@pytest.mark.slow
def test_a_line_for_each_picture_and_a_bad_one_does_not_stop_it(run, model, pictures, tmp_path, capsys):
  out, page = tmp_path / "captions.jsonl", tmp_path / "page.html"
  run(pictures, f"--out={out}", f"--html={page}")
  lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
  paths = images_in(pictures)
  assert [line["image"] for line in lines] == [str(p) for p in paths]
  good = [line for line in lines if "caption" in line]
  assert [line["caption"] for line in good] == model.caption([line["image"] for line in good])
  (bad,) = (line for line in lines if "error" in line)
  assert bad["image"].endswith("2-broken.jpg") and "2-broken.jpg" in bad["error"]
  assert "1 of 6 images could not be read" in capsys.readouterr().err

  html = page.read_text(encoding="utf-8")
  assert [html.count(x) for x in ("<figure>", "data:image/jpeg;base64,", 'class="error"')] == [6, 5, 1]
  assert len(re.findall("src=|href=|url", html)) == 5  # nothing but the pictures' own data
  assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_a_name_that_is_not_utf8(run, tmp_path, capsys):
  folder = tmp_path / "pictures"
  folder.mkdir()
  path = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")
  Image.new("RGB", (20, 24), "red").save(path)
  run(folder, f"--out={tmp_path / 'captions.jsonl'}", f"--html={tmp_path / 'page.html'}")
  assert json.loads((tmp_path / "captions.jsonl").read_text(encoding="utf-8"))["image"] == path
  run(folder)
  assert "caf\ufffd.png\t" in capsys.readouterr().out


def test_without_files_they_are_printed(run, model, pictures, capsys):
  path = pictures / "0-red.png"
  run(path, path)
  assert capsys.readouterr().out == f"{path}\t{model.caption(path)[0]}\n"


@pytest.mark.slow
def test_samples_are_the_same_in_any_batch(run, pictures, tmp_path):
  together, alone = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
  sampled = ("--strategy=sample", "--n=3", "--rerank", "--seed=7")
  run(pictures, f"--out={together}", *sampled)
  run(pictures / "4-yellow.png", f"--out={alone}", *sampled)
  line = json.loads(alone.read_text(encoding="utf-8"))
  assert len(line["captions"]) == 3 and line["caption"] == line["captions"][0]
  assert line in [json.loads(text) for text in together.read_text(encoding="utf-8").splitlines()]


class Killed(BaseException):
  """As SIGKILL: nothing of ours is run behind it."""


@pytest.mark.slow
@pytest.mark.parametrize("torn", [b"", b'{"image": "/half', b"\x00" * 40 + b"\n"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(run, pictures, tmp_path, monkeypatch, torn):
  sampled = (pictures, "--strategy=sample", "--n=2", "--seed=3", f"--html={tmp_path / 'page.html'}")
  monkeypatch.setattr(caption_files, "BATCH", 2)
  run(*sampled, f"--out={tmp_path / 'whole.jsonl'}")
  page = (tmp_path / "page.html").read_bytes()

  out, add, calls = tmp_path / "captions.jsonl", JsonLines.add, []

  def killed(self, lines):
    calls.append(len(lines))
    add(self, lines)
    if len(calls) == 2:
      with open(f"{out}.partial", "ab") as file:
        file.write(torn)
      raise Killed

  monkeypatch.setattr(JsonLines, "add", killed)
  with pytest.raises(Killed):
    run(*sampled, f"--out={out}")
  assert not out.exists()
  (tmp_path / "page.html").unlink()
  with pytest.raises(SystemExit, match=r"captions\.jsonl\.partial was begun otherwise:\n  seed: 3 before, 4 now\n"):
    run(pictures, "--strategy=sample", "--n=2", "--seed=4", f"--out={out}")
  with pytest.raises(SystemExit, match=r"line 1 is of .*0-red\.png, which is .*4-yellow\.png now\nGo on.*or delete"):
    run(pictures / "4-yellow.png", *sampled[1:], f"--out={out}")
  run(*sampled, f"--out={out}")
  assert calls == [2, 2, 2]  # what was there is not made again
  assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
  assert (tmp_path / "page.html").read_bytes() == page
  assert {p.name for p in tmp_path.iterdir()} == {"captions.jsonl", "whole.jsonl", "page.html"}


def test_lines_of_half_a_batch_are_made_again(tmp_path):
  """In another batch a caption may come out otherwise, by the rounding."""

  def lines(names="abcde"):
    return JsonLines(tmp_path / "x", {"seed": 1}, "k", names, 2)

  first = lines()
  first.add([{"k": "a"}, {"k": "b"}])
  first.add([{"k": "c"}])
  first.close()
  second = lines()
  assert second.done == [b'{"k": "a"}', b'{"k": "b"}']
  second.add([{"k": "c"}, {"k": "d"}])
  second.add([{"k": "e"}])
  second.close()  # killed before it got its name
  third = lines()
  assert len(third.done) == 5
  third.finish()
  assert [json.loads(line)["k"] for line in (tmp_path / "x").read_text().splitlines()] == list("abcde")
  assert lines().done == []  # a new run
  (tmp_path / "x.partial.json").write_text("{")
  with pytest.raises(ValueError, match=r"x\.partial\.json is damaged.*delete both"):
    lines()


def test_texts_beside_the_pictures(run, model, pictures, tmp_path, capsys):
  for path in pictures.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  (tmp_path / "0-red.txt").write_text("my own work")
  run(tmp_path, "--txt", f"--out={tmp_path / 'captions.jsonl'}")
  captions = {p: model.caption(p)[0] for p in images_in(tmp_path) if "broken" not in p.name}
  texts = {p: p.with_suffix(".txt").read_text() for p in captions}
  assert texts == captions | {tmp_path / "0-red.png": "my own work"}
  assert not (tmp_path / "2-broken.txt").exists()
  assert "1 text files beside the images say something else" in capsys.readouterr().err
  run(tmp_path, "--txt", "--overwrite")
  assert (tmp_path / "0-red.txt").read_text() == captions[tmp_path / "0-red.png"]
  assert "say something else" not in capsys.readouterr().err
  (tmp_path / "0-red.jpeg").write_bytes((tmp_path / "0-red.png").read_bytes())
  with pytest.raises(SystemExit, match=r"0-red\.jpeg and .*0-red\.png would both have .*0-red\.txt"):
    run(tmp_path, "--txt")


def test_urls_and_buckets(run, model, pictures, capsys):
  store = fsspec.filesystem("memory")
  for path in pictures.iterdir():
    store.pipe(f"/photos/{path.name}", path.read_bytes())
  run("memory://photos/0-red.png", "memory://photos", "--txt")
  written = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
  assert next(iter(written)) == "memory://photos/0-red.png" and len(written) == 7
  assert written["memory:///photos/4-yellow.png"] == model.caption(pictures / "4-yellow.png")[0]
  assert store.cat("/photos/4-yellow.txt").decode() == model.caption(pictures / "4-yellow.png")[0]
  with pytest.raises(SystemExit, match=r"--out gs://bucket/x\.jsonl is a URL; it takes a local path"):
    run(pictures, "--out=gs://bucket/x.jsonl")
  for flag in ("out", "html"):  # before anything is written or captioned
    with pytest.raises(SystemExit, match="is a folder: name a file"):
      run(pictures, f"--{flag}={pictures}")
  with pytest.raises(SystemExit, match=r"--txt writes beside the images, which https://example\.org/a\.png does not"):
    run("https://example.org/a.png", "--txt")


@pytest.mark.parametrize(
  ("flag", "ours"),
  [
    ("--num_beams=3", "num_beams is called beams, with strategy 'beam'"),
    ("--do-sample", "strategy 'sample'"),
    ("--max_new_tokens=20", "max_length, which counts BOS"),
    ("--length-penalty=2", "did you mean length_penalty"),
  ],
)
def test_other_peoples_flags_are_answered_with_ours(run, pictures, capsys, flag, ours):
  with pytest.raises(SystemExit):
    run(pictures, flag)
  assert ours in capsys.readouterr().err


def test_settings_are_judged_before_the_model_is_loaded(pictures):
  with pytest.raises(SystemExit, match=r"error: decoding: temperature 2\.0 has no effect with strategy 'greedy'"):
    caption.main([str(pictures), "--model=nowhere", "--temperature=2"])


def test_mistakes_are_one_line(run, tmp_path, pictures, capsys):
  (tmp_path / "empty").mkdir()
  with pytest.raises(SystemExit, match=r"error: no images in .*empty"):
    run(tmp_path / "empty")
  with pytest.raises(SystemExit) as stop:
    run(pictures / "2-broken.jpg")
  assert stop.value.code == 1 and "error: can't read the image" in capsys.readouterr().out
  with pytest.raises(SystemExit, match="strategy is 'best'"):
    run(pictures, "--strategy=best")


def test_a_page_shows_text_as_text_and_is_whole_or_not_there(tmp_path):
  path = tmp_path / "page.html"
  with Page(path, "a & b") as page:
    page.add("<x>.png", np.zeros((8, 400, 3), np.uint8), ["<script>alert(1)</script>", "two"])
    for _ in range(MOST):
      page.add("same", None, ["text"])
  html = path.read_text()
  assert "<script" not in html and "&lt;script&gt;" in html and "a &amp; b" in html and "<li>two</li>" in html
  assert "and 1 more" in html and html.count("<figure>") == MOST
  with pytest.raises(KeyError), Page(tmp_path / "other.html", ""):
    raise KeyError
  assert not (tmp_path / "other.html").exists()
