"""`coca.evaluate` on CLIP_benchmark's folders, against its formulas in float64; over a model of known embeddings."""

import io
import json
import re
import types

import numpy as np
import pytest

from coca import evaluate
from coca.config import Eval, Source
from coca.data.prompts import CLIP_IMAGENET
from coca.data.sources import open_source
from coca.data.tokenizers.sentencepiece import train
from coca.evals import datacomp, folders, suite
from coca.evals.zero_shot import Answers
from support.evals import CONFIG, NAMES, FakeForward, Source_, embeddings, png, record
from support.tars import clip_benchmark, tar

TEMPLATES = ("{c}", "a photo of {c}")
COUNT = 43


@pytest.fixture(scope="module")
def tokenizer():
  return train([f"a photo of {name}" for name in NAMES] * 4, 100)


@pytest.fixture
def model(tokenizer, monkeypatch):
  """What `coca.load` gives, without anything to compile."""
  said = [template.replace("{c}", name) for template in TEMPLATES for name in NAMES]
  table = dict(zip(said, embeddings(1, len(said), 6), strict=True))
  forward = FakeForward(tokenizer, embeddings(2, COUNT, 6), table)
  monkeypatch.setattr(forward, "writer", lambda params: None)
  config = CONFIG
  made = types.SimpleNamespace(config=config, tokenizer=tokenizer, forward=forward, labels=(), params={"w": np.ones(2)})
  monkeypatch.setattr(evaluate.inference, "load", lambda *_: made)
  monkeypatch.setattr(type(config.model), "writes", False)
  return made


@pytest.fixture
def tree(tmp_path):
  images = [png((i, 0, 7)) for i in range(COUNT)]
  images[5] = b"no image"
  labels = np.random.default_rng(3).integers(0, len(NAMES), COUNT)
  captions = [[NAMES[(i + j) % len(NAMES)] for j in range(1 + i % 3)] for i in range(COUNT)]
  folder = tmp_path / "tree"
  clip_benchmark(folder / "wds_vtab-pets_test", images, labels, NAMES, TEMPLATES, shards=3)
  clip_benchmark(folder / "wds_<odd>", images, labels, NAMES, TEMPLATES[:1], shards=1)
  clip_benchmark(folder / "more" / "wds_flickr30k", images, captions=captions)
  kept = [i for i in range(COUNT) if i != 5]
  return types.SimpleNamespace(folder=folder, labels=labels, captions=captions, kept=kept)


def run(tree, out, *more):
  evaluate.main(["--model=model", f"--data={tree.folder}", "--batch=16", f"--out={out}", *more])
  return json.loads((out / "results.json").read_text())


def classification64(model, tree, templates):
  """CLIP_benchmark's zero_shot_classifier, accuracy and scikit-learn's balanced accuracy."""
  texts = {name: vector.astype(np.float64) for name, vector in model.forward.text_table.items()}
  classes = np.array([np.mean([texts[t.replace("{c}", name)] for t in templates], 0) for name in NAMES])
  classes /= np.linalg.norm(classes, axis=1, keepdims=True)
  scores = model.forward.image_table[tree.kept].astype(np.float64) @ classes.T
  labels, order = tree.labels[tree.kept], np.argsort(-scores, axis=1)
  recalls = [np.mean(order[labels == k, 0] == k) for k in np.unique(labels)]
  return np.mean(order[:, 0] == labels), np.mean((order[:, :5] == labels[:, None]).any(1)), np.mean(recalls)


def retrieval64(model, tree):
  """CLIP_benchmark's recall_at_k of both directions, where any right answer among the first k counts."""
  texts = [(text, row) for row, i in enumerate(tree.kept) for text in tree.captions[i]]
  embedded = np.stack([model.forward.text_table[text] for text, _ in texts]).astype(np.float64)
  right = np.array([[owner == row for row in range(len(tree.kept))] for _, owner in texts])
  scores = embedded @ model.forward.image_table[tree.kept].astype(np.float64).T

  def recall(scores, right, k):
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.mean(np.take_along_axis(right, order, axis=1).any(1))

  return {
    f"{name}_retrieval_recall@{k}": recall(*pair, k)
    for name, pair in (("image", (scores, right)), ("text", (scores.T, right.T)))
    for k in (1, 5, 10)
  }


def test_a_tree_gives_the_numbers_of_clip_benchmark(model, tree, tmp_path, capsys):
  results = run(tree, tmp_path / "out")["results"]
  said = capsys.readouterr().out
  assert list(results) == ["wds_<odd>", "wds_vtab-pets_test", "wds_flickr30k"]
  assert re.search(r"\naverage .* 2 of DataComp's 38 tasks\n", said) and "[2/3] wds_vtab-pets_test: mean_per" in said
  lines = [json.loads(line) for line in (tmp_path / "out" / "eval_results.jsonl").read_text().splitlines()]
  lines = {line["key"]: line for line in lines}
  pets = lines["vtab/pets"]
  acc1, acc5, recall = classification64(model, tree, TEMPLATES)
  want = {"acc1": acc1, "acc5": acc5, "mean_per_class_recall": recall, "main_metric": recall}
  assert pets["dataset"] == "Oxford-IIIT Pet" and pets["metrics"] == pytest.approx(want, rel=1e-12)
  assert 0 < acc1 < acc5 < 1 and recall != acc1
  assert results["wds_<odd>"]["main"] == ["top1", pytest.approx(classification64(model, tree, TEMPLATES[:1])[0])]

  flickr = lines["retrieval/flickr_1k_test_image_text_retrieval"]["metrics"]
  want = retrieval64(model, tree)
  want["mean_recall@1"] = (want["image_retrieval_recall@1"] + want["text_retrieval_recall@1"]) / 2
  assert flickr == pytest.approx(want | {"main_metric": want["mean_recall@1"]}, rel=1e-12)
  for result in results.values():
    assert result["numbers"]["examples"] == COUNT - 1  # the broken one counts against nothing
    assert len(result["problems"]) == 1 and "s0000005" in result["problems"][0]

  shown = (tmp_path / "out" / "results.html").read_text()
  assert "wds_&lt;odd&gt;" in shown and "<odd>" not in shown and not re.search('(src|href)="(?!data:)', shown)
  assert "8 classes, the worst first" in shown and "A text and the nearest images" in shown
  assert shown.count("data:image/jpeg") > 2 * 12


def test_what_is_there_is_not_measured_again_unless_model_or_data_changed(model, tree, tmp_path, capsys):
  out, calls = tmp_path / "out", model.forward.calls
  first = run(tree, out)
  calls.clear()
  assert run(tree, out) == first and not calls and "measured before" in capsys.readouterr().out
  other = tree.labels[::-1]
  clip_benchmark(tmp_path / "new", [png((i, 0, 7)) for i in range(COUNT)], other, NAMES, TEMPLATES, shards=3)
  for number in range(3):
    (tmp_path / "new" / "test" / f"{number}.tar").replace(tree.folder / f"wds_vtab-pets_test/test/{number}.tar")
  capsys.readouterr()
  run(tree, out)
  assert capsys.readouterr().out.count("measured before") == 2 and calls
  model.params = {"w": np.zeros(2)}
  tree.folder = tree.folder / "more"
  assert len(run(tree, out)["results"]) == 1  # those of the other parameters are gone
  assert "measured before" not in capsys.readouterr().out
  assert len((out / "eval_results.jsonl").read_text().splitlines()) == 1
  model.params = {"w": np.ones(2)}
  with pytest.raises(SystemExit, match=r"results\.json is of another model, model: delete it, or take another folder"):
    run(tree, out, "--model=other")


def test_imagenet_a_as_folders_is_scored_over_its_classes_by_clips_names(model, tmp_path):
  ids = {"n01498041": "stingray", "n01531178": "goldfinch", "n01534433": "junco"}
  names = [template.replace("{}", name) for template in CLIP_IMAGENET for name in ids.values()]
  model.tokenizer = train(names * 4, 300)
  model.forward.tokenizer = model.tokenizer
  classes = dict(zip(ids.values(), np.eye(3, 6, dtype=np.float32), strict=True))
  model.forward.text_table = {name: classes[next(n for n in classes if n in name)] for name in names}
  (tmp_path / "imagenet-a").mkdir()
  (tmp_path / "imagenet-a" / "README.txt").write_text("as its tar has it")
  for i, folder in enumerate(list(ids) * 4):
    (tmp_path / "imagenet-a" / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "imagenet-a" / folder / f"{i}.png").write_bytes(png((i, 0, 7)))
  evaluate.main(["--model=model", f"--data={tmp_path}/imagenet-a", f"--out={tmp_path}/o"])
  (line,) = map(json.loads, (tmp_path / "o" / "eval_results.jsonl").read_text().splitlines())
  right = model.forward.image_table[:12, :3].argmax(1) == np.arange(12) % 3
  assert (
    line["dataset"] == "ImageNet-A" and line["metrics"]["acc1"] == np.mean(right) and line["metrics"]["acc5"] is None
  )


def test_sources_are_told_by_their_files(tmp_path):
  for name in (
    "tars/0.tar",
    "hub/data/train-0.parquet",
    "hub/data/test-0.parquet",
    "tfds/dataset_info.json",
    "x/a.jpg",
  ):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  found = {name: folders.source_of(f"{tmp_path}/{name}") for name in ("tars", "hub", "tfds", "x", "tars/*.tar")}
  assert [s.kind for s in found.values()] == ["webdataset", "parquet", "tfds", "folder", "webdataset"]
  assert found["hub"].path == f"{tmp_path}/hub/data/test-*.parquet"
  assert folders.source_of("builtin:twemoji") == Source(kind="builtin", split="twemoji")


@pytest.mark.parametrize(("split", "kept"), [("train", ["0.jpg", "1.jpg"]), ("val", ["2.jpg"]), ("test", ["3.jpg"])])
def test_of_karpathys_annotations_the_split_is_read(tmp_path, split, kept):
  images = [
    {"filename": f"{i}.jpg", "split": of, "sentences": [{"raw": f"number {i}"}]}
    for i, of in enumerate(("train", "restval", "val", "test"))
  ]
  (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
  for i in range(4):
    (tmp_path / f"{i}.jpg").touch()
  source = folders.source_of(str(tmp_path), split)
  assert list(open_source(source).ids("")) == kept
  assert folders.source_of(str(tmp_path)).split == "test"


def test_data_of_other_kinds(model, tree, tmp_path):
  folder = tmp_path / "pairs"
  folder.mkdir()
  for i in range(8):
    (folder / f"{i}.png").write_bytes(png((i, 0, 7)))
    (folder / f"{i}.txt").write_text(NAMES[i])
  (tmp_path / "templates").write_text("a photo of {c}\n\n")
  kinds = ("--kind=retrieval", "--kind=zero_shot", f"--templates={tmp_path}/templates")
  evaluate.main(["--model=model", f"--data={folder}", *kinds, f"--out={tmp_path}/o"])
  results = json.loads((tmp_path / "o" / "results.json").read_text())["results"]
  assert {name: r["kind"] for name, r in results.items()} == {
    "pairs-retrieval": "retrieval",
    "pairs-zero_shot": "zero_shot",
  }
  (tmp_path / "evals.py").write_text(
    "from coca.config import Eval, Source, default, to_dict\n\n"
    "def get_config(arg=None):\n  config = default()\n"
    f"  config.evals.mine = to_dict(Eval(kind='retrieval', source=Source(kind='folder', path={str(folder)!r})))\n"
    "  return config\n"
  )
  evaluate.main(["--model=model", f"--config={tmp_path}/evals.py", f"--out={tmp_path}/o"])
  results = json.loads((tmp_path / "o" / "results.json").read_text())["results"]
  assert results["mine"]["numbers"] == results["pairs-retrieval"]["numbers"] and len(results) == 3


def test_what_datacomp_does_not_measure_has_the_evaluators_number():
  task = folders.datacomp.task_of("flickr30k")
  data_set = folders.DataSet(Eval(kind="captions", source=Source(text="first")), Source_([]), task)
  names = suite.MAIN["captions"][0]
  assert task and suite._main(data_set, dict.fromkeys(names, 0.5), {}) == (" and ".join(names), 0.5)


def test_splits_of_the_hubs_parquet(tmp_path):
  for name in ("train-00000-of-00002", "train-00001-of-00002", "valid-00000-of-00001-9f1c"):
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / f"{name}.parquet").touch()
  assert folders.source_of(str(tmp_path)).path.endswith("data/valid-*.parquet")
  assert folders.source_of(str(tmp_path), "train").path.endswith("data/train-*.parquet")
  (tmp_path / "data" / "valid-00000-of-00001-9f1c.parquet").rename(tmp_path / "data" / "extra-00000-of-00001.parquet")
  with pytest.raises(FileNotFoundError, match="has no split 'test'; it has extra, train"):
    folders.source_of(str(tmp_path))
  (tmp_path / "data" / "extra-00000-of-00001.parquet").unlink()
  assert folders.source_of(str(tmp_path)).path.endswith("data/*.parquet")  # there is one split


def test_texts_that_are_cut_are_told(tokenizer):
  source = Source_([record(0, NAMES[0], " ".join(NAMES * 4)), record(1, " ".join(NAMES * 4))])
  for kind, lines in (("retrieval", 1), ("zero_shot", 0)):
    found = suite._lost(
      CONFIG, "mine", folders.DataSet(Eval(kind=kind, source=Source(text="first")), source), tokenizer
    )
    assert len(found) == lines and all("mine: 1 of 2 texts that were looked at are cut" in line for line in found)


@pytest.mark.parametrize(
  ("file", "text", "message"),
  [
    (
      "classnames.txt",
      None,
      r"pets_test/classnames.txt: no such file. Write the names .* one a line.*'retrieval' into",
    ),
    ("zeroshot_classification_templates.txt", None, r"templates.txt: no such file. Write one a line, such as: a photo"),
    ("zeroshot_classification_templates.txt", "a photo", r"pets_test.*the prompt 'a photo' has to hold {} once"),
    ("dataset_type.txt", "pairs", r"dataset_type.txt holds 'pairs'; it may be"),
    ("test/nshards.txt", "4", r"test/nshards.txt says 4, and 1 are missing: .*3.tar: no such file"),
    ("test/nshards.txt", "x", r"test/nshards.txt holds 'x': write the number of the tars"),
    ("classnames.txt", "one\ntwo\n", r"pets_test: .* has 2 class names and an image with label [2-7].*write a name"),
  ],
)
def test_bad_folders_are_told_by_file_and_fix(model, tree, tmp_path, file, text, message):
  path = tree.folder / "wds_vtab-pets_test" / file
  path.unlink(missing_ok=True)
  if text:
    path.write_text(text)
  model.forward.text_table |= {name: model.forward.text_table[NAMES[0]] for name in ("one", "two", "a photo of one")}
  model.forward.text_table["a photo of two"] = model.forward.text_table[NAMES[1]]
  with pytest.raises(SystemExit, match=f"error: .*{message}"):
    run(tree, tmp_path / "out")


def test_folders_without_data_and_sets_with_several_labels(model, tree, tmp_path, capsys):
  for name, text in (("wds_fairness-utkface_test", None), ("wds_voc2007_multilabel", "multilabel")):
    clip_benchmark(tree.folder / name, [png(0)], [0], ["race:x"], ["race:a {c}"], shards=1)
    if text:
      (tree.folder / name / "dataset_type.txt").write_text(text)
  assert len(run(tree, tmp_path / "out")["results"]) == 3
  said = capsys.readouterr().out
  assert "utkface_test is left out: it has several labels" in said and "voc2007_multilabel is left out" in said
  assert list(run(tree, tmp_path / "other", "--kind=retrieval")["results"]) == ["wds_flickr30k"]
  assert "pets_test is left out: it is not measured by retrieval" in capsys.readouterr().out
  with pytest.raises(SystemExit, match="no such"):
    evaluate.main(["--model=model", f"--data={tmp_path}/nothing", f"--out={tmp_path}/out"])


def test_worst_groups_and_f1(tmp_path):
  rng = np.random.default_rng(0)
  label, best, groups = rng.integers(0, 4, 200), rng.integers(0, 6, (200, 5)), rng.integers(3, 6, 200)
  rank = np.where(best[:, 0] == label, 0, rng.integers(1, 9, 200))
  answers = Answers(np.arange(200), label, rank, best, best.astype(np.float32), 6)
  numbers = {"top1": 0.1, "top5": 0.2, "mean_per_class_recall": 0.3}
  found = datacomp.metrics("wilds/iwildcam", numbers, answers, None)
  f1 = []
  for k in range(4):
    hits = sum(a == b == k for a, b in zip(label, best[:, 0], strict=True))
    precision, recall = hits / sum(best[:, 0] == k), hits / sum(label == k)
    f1.append(2 * precision * recall / (precision + recall))
  assert found["main_metric"] == found["F1-macro_all"] == pytest.approx(np.mean(f1), rel=1e-12)
  for key, depth in (("wilds/fmow", 1), ("fairness/geode", 1), ("fairness/dollar_street", 5)):
    worst = min(np.mean(rank[groups == g] < depth) for g in (3, 4, 5))
    assert datacomp.metrics(key, numbers, answers, groups)["main_metric"] == worst
  assert len(datacomp.TASKS) == 40 == datacomp.OF_ALL + len(datacomp.UNMEASURED)


def test_worst_groups_of_a_folder(model, tree, tmp_path):
  """GeoDE's: the first number of each .npy is the region."""
  folder, regions = tmp_path / "geode" / "wds_geode_test", np.arange(COUNT) % 3
  clip_benchmark(folder, [png(0)], [0], NAMES, TEMPLATES, shards=1)
  members = {}
  for i in range(COUNT):
    group = io.BytesIO()
    np.save(group, np.array([regions[i], 7]))
    members |= {f"s{i}.png": png((i, 0, 7)), f"s{i}.cls": str(tree.labels[i]).encode(), f"s{i}.npy": group.getvalue()}
  (folder / "test" / "0.tar").write_bytes(tar(members))
  tree.folder, tree.kept = tmp_path / "geode", list(range(COUNT))
  result = run(tree, tmp_path / "out")["results"]["wds_geode_test"]
  worst = []
  for region in range(3):
    tree.kept = np.flatnonzero(regions == region)
    worst.append(classification64(model, tree, TEMPLATES)[0])
  assert result["main"] == ["acc_wg", min(worst)] and min(worst) < max(worst)


def test_names_of_tasks():
  names = ("wds_vtab-caltech101_test", "wds_imagenet-a", "wds_dollar_street_test", "wds_mscoco_captions", "wds_x")
  keys = ("vtab/caltech101", "imagenet-a", "fairness/dollar_street")
  assert [datacomp.task_of(n) for n in names] == [*keys, "retrieval/mscoco_2014_5k_test_image_text_retrieval", ""]


def test_embeddings_alone(tmp_path, capsys):
  images, texts = embeddings(5, 12, 8), embeddings(6, 24, 8)
  own = np.arange(24) // 2
  shuffled = np.random.default_rng(1).permutation(24)
  for name, array in {"i": images * 3, "t": texts.astype(np.float16), "s": texts[shuffled], "o": own[shuffled]}.items():
    np.save(tmp_path / f"{name}.npy", array)
  evaluate.main([f"--images={tmp_path}/i.npy", f"--texts={tmp_path}/t.npy"])
  said = capsys.readouterr().out
  scores = images.astype(np.float64) @ texts.T.astype(np.float64)
  best = np.argsort(-scores, axis=1)
  assert f"i2t_r1 {np.mean(own[best[:, 0]] == np.arange(12)):52.4f}".split() == said.splitlines()[0].split()
  evaluate.main([f"--images={tmp_path}/i.npy", f"--texts={tmp_path}/s.npy", f"--owners={tmp_path}/o.npy"])
  assert capsys.readouterr().out == said
  np.save(tmp_path / "t.npy", texts[:23])
  with pytest.raises(SystemExit, match=r"t.npy has 23 rows for 12 images.*--owners"):
    evaluate.main([f"--images={tmp_path}/i.npy", f"--texts={tmp_path}/t.npy"])
  (tmp_path / "t.npy").write_text("x")
  with pytest.raises(SystemExit, match=r"t.npy is no NumPy file"):
    evaluate.main([f"--images={tmp_path}/i.npy", f"--texts={tmp_path}/t.npy"])
  np.savez(tmp_path / "o.npz", own)
  with pytest.raises(SystemExit, match=r"o.npz is an archive of arrays"):
    evaluate.main([f"--images={tmp_path}/i.npy", f"--texts={tmp_path}/s.npy", f"--owners={tmp_path}/o.npz"])


@pytest.mark.parametrize("flag", ["--batch=0", "--limit=-1", "--frames=-1"])
def test_numbers_out_of_range(flag, capsys):
  with pytest.raises(SystemExit):
    evaluate.main(["--model=runs/tiny", "--data=x", flag])
  assert f"error: {flag}: it takes" in capsys.readouterr().err
