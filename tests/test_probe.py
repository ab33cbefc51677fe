"""`python -m coca.probe`: what it writes, that nothing is embedded twice, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image

import coca
from coca import inference, probe
from coca.evals import logistic
from coca.evals.folders import split_of
from support.workdirs import make_workdir, small_config

COLOURS = {"blue": (30, 40, 220), "green": (20, 200, 60), "red": (220, 30, 20)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  make_workdir(folder / "tiny", small_config(folder))
  return coca.load(folder / "tiny")


def save(folder, per_class, seed):
  rng = np.random.default_rng(seed)
  for name, colour in COLOURS.items():
    (folder / name).mkdir(parents=True)
    for i in range(per_class):
      pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
      Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.mark.slow
def test_all_images_and_a_few(model, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(inference, "load", lambda path, ema: model)
  monkeypatch.setattr(logistic, "ITERATIONS", 50)
  save(tmp_path / "train", 6, seed=0)
  save(tmp_path / "test", 2, seed=1)
  (tmp_path / "test/red/0.png").write_bytes(b"no image")
  line = ["--model=tiny", *(f"--{x}={tmp_path / x}" for x in ("train", "test", "out"))]
  probe.main(line)
  said = capsys.readouterr().out
  assert "24 images were embedded" in said and "1 can't be read, such as: " in said
  assert "test test: 1 of 6 images are left out" in said
  written = json.loads((tmp_path / "out/linear.json").read_text())
  assert written["train"] == {"images": 18, "classes": 3}
  assert written["results"]["tests"] == {"test": {"top1": 1.0, "mean_per_class_recall": 1.0}}  # colours are easy

  probe.main([*line, "--shots=1,2", "--seeds=2", "--lambda=0.1"])
  assert "embedded" not in capsys.readouterr().out
  written = json.loads((tmp_path / "out/few_shot.json").read_text())["results"]
  assert list(written) == ["1", "2"] and written["2"]["lambda"] == [0.1, 0.1]
  assert len(written["2"]["tests"]["test"]["top1"]["seeds"]) == 2

  # The features are those of the call.
  found = model.features(tmp_path / "train" / "red" / "3.png")
  (kept,) = (np.load(path) for path in (tmp_path / "out/features").glob("train*/*.npy"))
  assert np.isclose(kept["state"], found, rtol=1e-4, atol=1e-5).all(axis=1).any()


@pytest.mark.parametrize(
  "args, said",
  [
    (["--train=a"], "give --train and --test, or --config"),
    (["--train=a", "--test=b", "--shots=1;2"], "--shots=1;2: numbers of images with commas"),
    (["--train=a", "--test=b", "--config=c"], "give --train and --test, or --config"),
  ],
)
def test_a_wrong_line(args, said, capsys):
  with pytest.raises(SystemExit):
    probe.main(["--model=tiny", *args])
  assert said in capsys.readouterr().err


def test_a_data_set_has_splits(tmp_path):
  for split, tars in {"train": 3, "test": 1}.items():
    (tmp_path / "wds_cars" / split).mkdir(parents=True)
    (tmp_path / "wds_cars" / split / "nshards.txt").write_text(f"{tars}\n")
  path = str(tmp_path / "wds_cars")
  assert split_of(path, "train").path == f"{path}/train/{{0..2}}.tar"
  assert split_of(path, "test").path == f"{path}/test/{{0..0}}.tar"
  with pytest.raises(FileNotFoundError, match=r"wds_cars has no split 'val'; it has test, train"):
    split_of(path, "val")
  assert split_of("builtin:twemoji", "train").split == "twemoji"


def test_folders_of_features_are_called_differently():
  names = ["train-wds/cars", "train-wds_cars x", "train-猫", "train-犬", "a" * 120, "b" + "a" * 120]
  assert len({probe._folder_name(name) for name in names}) == len(names)
  assert probe._folder_name(names[0]) == "train-wds_cars"


def test_data_without_labels(model, monkeypatch, tmp_path):
  monkeypatch.setattr(inference, "load", lambda path, ema: model)
  save(tmp_path / "train", 1, seed=0)
  (tmp_path / "plain").mkdir()
  Image.new("RGB", (8, 8)).save(tmp_path / "plain/a.png")
  (tmp_path / "plain/a.txt").write_text("a caption")
  with pytest.raises(SystemExit, match=r"--test: .*plain.* has no labels; docs/own-data.md says"):
    probe.main(["--model=tiny", f"--train={tmp_path / 'train'}", f"--test={tmp_path / 'plain'}", "--out=out"])
