"""Embeddings of a frozen image encoder: kept once, refused when they are another's, and the same losses by them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from coca.config import Config, Source, default, parse, to_dict
from coca.data import embeddings
from coca.data.embeddings import parts_of, path_of, states_of
from coca.data.sources import open_source
from coca.inference import embeddings as filling
from coca.training import loop
from coca.training.flops import flops_per_pair
from coca.training.metrics import read

RECORDS, WIDTH = 24, 32


@pytest.fixture
def images(tmp_path):
  """A folder of images, one of which is no image."""
  folder, rng = tmp_path / "images", np.random.default_rng(0)
  folder.mkdir()
  for i in range(RECORDS):
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{i:02d}.png")
    (folder / f"{i:02d}.txt").write_text(f"a thing of {i % 7} and {i}")
  (folder / "03.png").write_bytes((folder / "03.png").read_bytes()[:40])
  return folder


def lit(folder, **changes) -> Config:
  """A text tower beside a frozen image encoder of random weights."""
  c = default()
  c.model.image.update(size=16, patch=4, layers=2, width=WIDTH, mlp=64, heads=4, class_token=True)
  c.model.poolers.update(kind="class_token", n_query=0)
  c.model.text.update(vocab=48, length=12, width=48, mlp=80, heads=2, unimodal_layers=1, multimodal_layers=0)
  c.model.embed_dim, c.captioning.weight = 24, 0.0
  c.optim.update(name="adamw", lr=1e-2, lr_scale={"image_encoder": 0.0})
  c.update(steps="6", log_every="1")
  c.data.update(batch=8, threads=1, max_skipped=1.0, sources={"web": to_dict(Source(kind="folder", path=str(folder)))})
  c.mesh.fsdp = 1
  c.checkpoint.update(every="3", keep_every="3")
  for name, value in changes.items():
    c.update_from_flattened_dict({name.replace("__", "."): value})
  return parse(c)


def numbers(workdir):
  lines = read(workdir / "metrics.jsonl")
  return [line["train/loss"] for line in lines], [line["data/skipped"] for line in lines]


@pytest.mark.slow
def test_losses_are_those_of_images_and_a_killed_run_goes_on(images, tmp_path, monkeypatch):
  assert loop.run(lit(images), tmp_path / "plain") == 0
  plain = numbers(tmp_path / "plain")
  assert plain[1][-1] > 0  # the broken image

  monkeypatch.setattr(embeddings, "PART", 8)
  folder, written, write = tmp_path / "kept", [], filling.write_atomic

  def killed(path, data):
    if len(written) == 2:  # encoder.json, and the first of three parts
      raise KeyboardInterrupt
    written.append(path)
    write(path, data)

  config = lit(images, data__embeddings=str(folder))
  monkeypatch.setattr(filling, "write_atomic", killed)
  with pytest.raises(KeyboardInterrupt):
    loop.run(config, tmp_path / "run")
  parts = parts_of(open_source(config.data.sources["web"], ""), states_of(config))
  files = [path_of(folder, "web", part) for part in parts]
  assert [file.exists() for file in files] == [True, False, False]
  files[0].touch()
  before = files[0].stat().st_mtime_ns
  monkeypatch.setattr(filling, "write_atomic", write)
  assert loop.run(config, tmp_path / "run") == 0
  assert all(file.exists() for file in files) and files[0].stat().st_mtime_ns == before

  found = numbers(tmp_path / "run")
  np.testing.assert_allclose(found[0], plain[0], rtol=1e-5)
  assert found[1] == plain[1]
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
  assert loop.run(config, tmp_path / "run") == 0
  assert numbers(tmp_path / "run") == found

  with pytest.raises(ValueError, match="of another image encoder, or of images that were decoded in another way"):
    loop.run(lit(images, data__embeddings=str(folder), seed=1), tmp_path / "other")
  assert json.loads((folder / "encoder.json").read_text())["sha256"]


def test_a_step_without_images_has_no_image_encoder(images):
  flops = flops_per_pair(lit(images, data__embeddings="kept"))
  assert "image_encoder" not in flops and flops_per_pair(lit(images))["image_encoder"] > 0
