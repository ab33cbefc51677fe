"""`python -m coca.caption`: its files, and what it does with pictures that are none."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image
from test_inference import make_workdir, small_config

import coca
from coca import caption, inference
from coca.page import MOST, Page


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
  monkeypatch.setattr(caption, "BATCH", 4)

  def run(*args):
    caption.main([*map(str, args), "--model=runs/tiny"])

  return run


def test_a_line_for_each_picture_and_a_bad_one_does_not_stop_it(run, model, pictures, tmp_path, capsys):
  out, page = tmp_path / "captions.jsonl", tmp_path / "page.html"
  run(pictures, f"--out={out}", f"--html={page}")
  lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
  paths = inference.images_in(pictures)
  assert [line["image"] for line in lines] == [str(p) for p in paths]
  good = [line for line in lines if "caption" in line]
  assert [line["caption"] for line in good] == model.caption([line["image"] for line in good])
  bad, = (line for line in lines if "error" in line)
  assert bad["image"].endswith("2-broken.jpg") and "2-broken.jpg" in bad["error"]
  assert "1 of 6 pictures could not be read" in capsys.readouterr().err

  html = page.read_text(encoding="utf-8")
  assert [html.count(x) for x in ("<figure>", "data:image/jpeg;base64,", "class=\"error\"")] == [6, 5, 1]
  assert len(re.findall("src=|href=|url", html)) == 5  # nothing but the pictures' own data
  assert not list(tmp_path.glob("*.partial"))


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


def test_samples_are_the_same_in_any_batch(run, pictures, tmp_path):
  together, alone = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
  sampled = ("--strategy=sample", "--n=3", "--rerank", "--seed=7")
  run(pictures, f"--out={together}", *sampled)
  run(pictures / "4-yellow.png", f"--out={alone}", *sampled)
  line = json.loads(alone.read_text(encoding="utf-8"))
  assert len(line["captions"]) == 3 and line["caption"] == line["captions"][0]
  assert line in [json.loads(text) for text in together.read_text(encoding="utf-8").splitlines()]


def test_mistakes_are_one_line(run, tmp_path, pictures, capsys):
  (tmp_path / "empty").mkdir()
  with pytest.raises(SystemExit, match=r"error: no pictures in .*empty"):
    run(tmp_path / "empty")
  with pytest.raises(SystemExit) as stop:
    run(pictures / "2-broken.jpg")
  assert stop.value.code == 1 and "error: can't read the picture" in capsys.readouterr().out
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
