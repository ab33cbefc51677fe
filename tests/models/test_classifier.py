"""Class heads, of images and of questions about them: what they read, what trains, and classes of a loaded model."""

import io
import json
from dataclasses import replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import coca
from coca.config import Eval, Scenes, Source
from coca.config.data_checks import check_evaluator
from coca.data import questions
from coca.data.labels import class_names
from coca.data.pipeline import open_sources, train_batches
from coca.data.records import Record, Text
from coca.data.sources import open_source
from coca.data.texts import sides_exchanged
from coca.data.tokenizers.sentencepiece import train
from coca.devices.trees import flat
from coca.evals import build, folders
from coca.evals.sheet_cells import held_out_cells
from coca.evals.vqa_accuracy import vqa_accuracy
from coca.models.abstract import abstract_model
from coca.training.flops import flops_per_pair
from coca.training.gradients import Gradients
from coca.training.init_from import compare
from support.common import BOS, EOS, PAD, classifier, make_mesh, pairs, random_params, tiny
from support.workdirs import make_workdir

BLIP = {"model__kind": "blip", "model__text__unimodal_layers": 1, "model__image__class_token": True}


def batch(config, n=8):
  found = {name: jnp.asarray(x[:n]) for name, x in pairs(config).items()}
  return found | {"label": jnp.array([0, 1, 2, -1, 2, 1, 0, 0][:n], jnp.int32)}


def gradients(config, micro=1):
  config = replace(config, optim=replace(config.optim, accumulate=micro))
  with jax.set_mesh(make_mesh()):
    return jax.jit(Gradients(config))(random_params(config), batch(config), None)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["attention", "class_token", "mean"])
def test_logits_are_those_of_the_pooled_tokens(pool):
  config = classifier(pool=pool, others={"model__image__class_token": True})
  graphdef, shapes = abstract_model(config)
  params = jax.tree.map(jnp.asarray, random_params(config))
  assert set(shapes) == {"image_encoder", "class_head", *(["class_pooler"] if pool == "attention" else [])}
  model, image = nnx.merge(graphdef, params), batch(config)["image"]
  tokens = np.asarray(model.image_encoder(image), np.float64)
  assert tokens.shape[1] == 17
  if pool == "attention":
    pooled = np.asarray(model.class_pooler(jnp.asarray(tokens, jnp.float32)))[:, 0]
  else:
    pooled = tokens[:, 0] if pool == "class_token" else tokens[:, 1:].mean(1)
  head = params["class_head"]
  np.testing.assert_allclose(model.classify(image), pooled @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)
  out = model(image, batch(config)["text"], contrast=False, caption=False, classify=True)
  np.testing.assert_allclose(out.classes, model.classify(image), rtol=1e-5)
  assert all(x is None for x in out._replace(classes=None))


@pytest.mark.slow
def test_micro_batches_are_one_batch_and_unlabelled_rows_have_no_gradient():
  config = classifier(label_smoothing=0.1)
  whole, parts = gradients(config), gradients(config, micro=4)
  for name in ("classification", "classification_accuracy", "loss"):
    np.testing.assert_allclose(whole[1][name], parts[1][name], rtol=1e-5)
  for name, x in flat(whole[0]).items():
    np.testing.assert_allclose(x, flat(parts[0])[name], rtol=1e-3, atol=1e-5, err_msg=name)
  assert "embedding" not in whole[0] and np.abs(whole[0]["image_encoder"]["patches"]["kernel"]).max() > 0


@pytest.mark.slow
def test_beside_other_losses():
  """They are as without it, and it as without them."""
  both = tiny(classification__weight=2.0, classification__classes=3)
  grads, metrics = gradients(both)
  assert {"contrastive", "captioning", "classification"} <= set(metrics)
  total = metrics["contrastive"] + 2 * metrics["captioning"] + 2 * metrics["classification"]
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
  assert np.abs(grads["class_pooler"]["queries"]).max() > 0


@pytest.mark.slow
def test_a_frozen_encoder_costs_its_forward_pass():
  frozen = classifier(others={"optim__lr_scale": {"image_encoder": 0.0}})
  grads, _ = gradients(frozen)
  assert not any(np.abs(x).max() for x in jax.tree.leaves(grads["image_encoder"]))
  whole, part = (flops_per_pair(c) for c in (classifier(), frozen))
  assert part["image_encoder"] == pytest.approx(whole["image_encoder"] / 2.95, rel=0.02)
  # Keys and values of 16 tokens, without their input's gradient; a query's weights, values and projection; the head.
  pooler = 2 * 2 * (2 * 16 * 32 * 32) + 3 * 2 * 32 * 32 + 3 * 2 * 2 * 16 * 32
  assert part["class_head"] == pytest.approx(3 * 2 * 32 * 3 + pooler, rel=0.01)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"classes": 1}, "classes is 1"),
    ({"others": {"data__swap": True}}, "swap needs config.classification.images 2"),
    ({"others": BLIP}, "two images: set config.classification.images to 2"),
    ({"images": 3, "pool": "mean"}, "images is 3; an example has 1 image, or 2"),
    ({"images": 2, "pool": "mean"}, "images 2 needs config.classification.pool 'text' or, of videos, 'attention'"),
    ({"images": 3, "cutmix": 1.0}, "cutmix 1.0 need all other losses' weights to be 0, and single images"),
    ({"frame_positions": True}, "frame_positions tells frames of videos apart"),
    ({"pool": "class_token"}, "class_token"),
    ({"mixup": 0.2, "others": {"contrastive__weight": 1.0, "model__text__unimodal_layers": 1}}, "mixup 0.2 and cutmix"),
  ],
)
def test_what_does_not_go_together_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    classifier(**changes)


@pytest.mark.slow
def test_a_loaded_model_names_its_classes(tmp_path):
  config = classifier()
  make_workdir(tmp_path / "run", config)
  path = tmp_path / "run" / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": ["ant", "bee", "cow"]}))
  model = coca.load(tmp_path / "run")
  images = np.asarray(batch(config)["image"])
  found = model.classify(images)
  assert model.labels == ("ant", "bee", "cow") and found.dtype == np.float32
  module = nnx.merge(model.forward.graphdef, jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), model.params))
  np.testing.assert_allclose(found, jax.nn.softmax(module.classify(jnp.asarray(images))), rtol=1e-4, atol=1e-6)
  with pytest.raises(ValueError, match="makes no embeddings"):
    model.classify(images, ["ant", "bee"])


def test_a_model_without_a_head_wants_labels(tmp_path):
  make_workdir(tmp_path / "run", tiny())
  with pytest.raises(ValueError, match=r"no class head .*name the labels .*finetune_classify"):
    coca.load(tmp_path / "run").classify(np.zeros((8, 8, 3), np.uint8))
  common = compare(tmp_path / "run", classifier())  # which leaves the text side out
  assert set(common.new) == {"class_pooler", "class_head"} and "embedding" in common.skipped and not common.resized


def answering(classes=3, **settings):
  """A head that reads questions, beside a decoder that writes them and their answers."""
  head = {"weight": 1.0, "classes": classes, "pool": "text"}
  c = tiny(contrastive__weight=0.0, **{f"classification__{name}": x for name, x in head.items()}, **settings)
  asked = {"q": Source(kind="builtin", split="scenes_questions", question_key="question")}
  return replace(c, data=replace(c.data, sources=asked, tokenizer_texts=300), answering=replace(c.answering, answers=2))


@pytest.mark.slow
def test_a_head_of_texts_reads_the_question_and_not_the_answer():
  """One query over the decoder's states of the question, as attention in float64 has it, whatever stands behind."""
  config = answering()
  params, given = random_params(config), np.array([4, 6, 1, 7], np.int32)
  images = jnp.asarray(np.asarray(batch(config)["image"][:4]))
  rng = np.random.default_rng(2)
  with_answer = rng.integers(4, 80, (4, config.model.text.length)).astype(np.int32)
  with_answer[:, 0] = BOS
  question = np.where(np.arange(with_answer.shape[1]) < given[:, None], with_answer, PAD)
  question[np.arange(4), given] = EOS
  model = nnx.merge(abstract_model(config)[0], jax.tree.map(jnp.asarray, params))
  with_answer, question = jnp.asarray(with_answer), jnp.asarray(question)
  with jax.set_mesh(make_mesh()):
    ask = {"contrast": False, "caption": False, "classify": True, "given": jnp.asarray(given)}
    trained = model(images, with_answer, **ask).classes
    states = np.asarray(model(images, question, contrast=False).states, np.float64)
    found = model.classify(images, question)
  np.testing.assert_allclose(trained, found, rtol=1e-4, atol=1e-5)

  flat_ = {name: np.asarray(x, np.float64) for name, x in flat(params["class_pooler"]).items()}
  heads, width = config.model.image.heads, config.model.text.width

  def norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.model.norm_eps)
    return x * flat_[f"{name}/scale"] + flat_[f"{name}/bias"]

  def linear(x, name):
    kernel = flat_[f"{name}/kernel"]
    return x @ kernel.reshape(-1, kernel.shape[-1]) + flat_[f"{name}/bias"]

  for row in range(4):
    seen = states[row, : given[row]]
    q = linear(flat_["queries"], "attention/query").reshape(heads, -1)
    k, v = (linear(seen, f"attention/{name}").reshape(len(seen), heads, -1) for name in ("key", "value"))
    logits = np.einsum("hd,thd->ht", q, k) / np.sqrt(width / heads)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    pooled = norm(linear(np.einsum("ht,thd->hd", weights, v).reshape(1, -1), "attention/out"), "norm")
    expected = pooled @ np.float64(params["class_head"]["kernel"]) + np.float64(params["class_head"]["bias"])
    np.testing.assert_allclose(found[row], expected[0], rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_what_a_batch_of_questions_holds():
  config = answering(model__text__length=24)
  sources = open_sources(config)
  names = class_names(config, sources)
  assert set(names) >= {"yes", "no"} and len(names) == 3
  words = train([f"{q.question} {q.texts[0].text}" for q in map(sources["q"].__getitem__, range(300))], 200)
  found, problems = next(train_batches(config, sources, words, range(16), 0, names))
  assert not problems and found["label"].shape == found["share"].shape == (16, 2)
  assert 4 < (found["share"][:, 0] == 1).sum() < 16 and not found["share"][:, 1].any()  # all annotators agree
  for row, (text, given) in enumerate(zip(found["text"], found["given"], strict=True)):
    answer = words.decode(text[given:])
    assert words.decode(text[:given]).split()[0] in ("is", "are", "how", "what", "where", "which")
    if found["share"][row, 0]:
      assert names[found["label"][row, 0]] == answer
    else:
      assert answer not in names
  silent = replace(config, captioning=replace(config.captioning, weight=0.0))
  found, _ = next(train_batches(silent, sources, words, range(16), 0, names))
  assert (found["text"] != PAD).sum(axis=1).tolist() == (found["given"] + 1).tolist()  # and EOS


class Listed(list):
  """Records as a source."""

  problems: ClassVar[list] = []


def test_classes_are_the_most_frequent_answers_or_those_of_a_file(tmp_path):
  config = answering()
  answers = [["no", "no", "a  cat"], ["two"], ["two", "no"], [" ", "red"]]
  records = [Record("", b"", tuple(Text(a, "human") for a in given), question="q") for given in answers]
  source = {"q": Listed(records)}
  assert class_names(config, source) == ("no", "two", "a cat")
  with pytest.raises(ValueError, match=r"classes is 9, and config\.data\.sources has 4 answers; set it to 4"):
    class_names(replace(config, classification=replace(config.classification, classes=9)), source)
  # Visual Genome's count as little as they weigh: three 'blue' are less than one 'two' and one 'red'.
  more = {**config.data.sources, "vg": Source(question_key="q", answer_weight=0.2)}
  both = source | {"vg": Listed([Record("", b"", (Text("blue", "human"),), question="q")] * 3)}
  weighed = replace(config, data=replace(config.data, sources=more))
  assert class_names(weighed, both) == ("no", "two", "a cat")
  path = tmp_path / "answers.txt"
  path.write_text("red\nno\nblue\n")
  named = replace(config, classification=replace(config.classification, answers=str(path)))
  assert class_names(named, source) == ("red", "no", "blue")
  found = questions.encode_classes(records[0], {"no": 7}, 3, 0.2)
  np.testing.assert_array_equal(found[0], [7, -1, -1])
  np.testing.assert_allclose(found[1], [0.4 / 3, 0, 0])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  """The settings of a head that reads texts, and the loaded model."""
  config, run = answering(model__text__length=24), tmp_path_factory.mktemp("model") / "run"
  make_workdir(run, config)
  path = run / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": ["ant", "bee", "cow"]}))
  return config, coca.load(run)


@pytest.mark.slow
def test_a_loaded_model_answers_and_is_evaluated(loaded):
  config, model = loaded
  model.labels = ("ant", "bee", "cow")
  images = np.asarray(batch(config)["image"])[:4]
  p = model.classify(images, texts="green pear?")
  assert p.shape == (4, 3) and np.allclose(p.sum(axis=1), 1)
  assert model.answer(images, "green pear?") == [model.labels[i] for i in p.argmax(axis=1)]
  assert set(model.answer(images, "green pear?", ["cow", "ant"])) <= {"cow", "ant"}
  with pytest.raises(ValueError, match="'dog' is none of the model's 3 classes"):
    model.answer(images, "green pear?", ["dog"])
  with pytest.raises(ValueError, match="reads an image and a text"):
    model.classify(images)
  model.labels = ("yes", "no", "2")
  asked = Eval(kind="vqa", batch=8, limit=8, source=replace(config.data.sources["q"], split="scenes_questions_val"))
  config = replace(config, evals={"vqa": asked})
  elsewhere = replace(config, data=replace(config.data, sources={}))  # the evaluators of another config file
  check_evaluator(elsewhere, asked, "vqa")
  sources = build.open_sources(config)
  evaluators = build.make_evaluators(config, model.forward, model.tokenizer, *sources, labels=model.labels)
  records = [sources[0]["vqa"][i] for i in range(8)]
  scenes = [Image.open(io.BytesIO(record.image)) for record in records]
  said = model.answer(scenes, [record.question for record in records])
  right = [vqa_accuracy(a, [t.text for t in record.texts]) for a, record in zip(said, records, strict=True)]
  assert dict(evaluators["vqa"].run(model.params)) == {"accuracy": pytest.approx(np.mean(right)), "examples": 8.0}


@pytest.mark.slow
def test_a_loaded_model_judges_hypotheses_and_is_evaluated(loaded, tmp_path):
  """By SNLI-VE's file, whose labels are numbered in another way than the model's classes."""
  config, model = loaded
  split = Source(kind="builtin", split="scenes_hypotheses", text="first")
  config = replace(config, data=replace(config.data, sources={"h": split}))
  source = open_source(split)
  records, rows = [source[i] for i in range(8)], []
  labels = [source.label_names[record.label] for record in records]
  for i, record in enumerate(records):
    Image.open(io.BytesIO(record.image)).save(tmp_path / f"{i}.jpg")
    row = {"Flickr30K_ID": str(i), "sentence2": record.texts[0].text, "gold_label": labels[i]}
    rows.append(f"{json.dumps(row)}\n")
  (tmp_path / "snli_ve_dev.jsonl").write_text("".join(rows))
  model.labels = ("neutral", "entailment", "contradiction")
  p = model.classify([tmp_path / f"{i}.jpg" for i in range(8)], texts=[record.texts[0].text for record in records])
  right = np.mean([model.labels[row.argmax()] == label for row, label in zip(p, labels, strict=True)])
  sets, _ = folders.data_sets(config, [str(tmp_path)], batch=8)
  ((name, (settings, opened, _)),) = sets.items()
  assert settings.kind == "classification" and settings.source.split == "dev"
  config = replace(config, evals={name: settings})
  made = build.make_evaluators(config, model.forward, model.tokenizer, {name: opened}, labels=model.labels)
  assert dict(made[name].run(model.params)) == {"top1": pytest.approx(right), "top5": 1.0, "examples": 8.0}
  cells = held_out_cells(made[name], model.params, 8)  # of the contact sheet
  assert [(cell.truth, cell.labels[0]) for cell in cells] == [
    ((label,), model.labels[row.argmax()]) for label, row in zip(labels, p, strict=True)
  ]
  said = [model.tokenizer.decode(model.tokenizer.encode(record.texts[0].text, 24)) for record in records]
  assert [cell.question for cell in cells] == said and not any(cell.caption for cell in cells)


def test_what_a_batch_of_hypotheses_holds():
  """Each record's text with its label: two texts, each with an image for each of the three."""
  config, split = answering(model__text__length=24, captioning__weight=0.0), "scenes_hypotheses"
  few = Source(kind="builtin", split=split, text="first", scenes=Scenes(count=6))
  config = replace(config, data=replace(config.data, sources={"h": few}, batch=6))
  sources = open_sources(config)
  records = [sources["h"][i] for i in range(6)]
  words = train([record.texts[0].text for record in records] * 4, 80)
  found, problems = next(train_batches(config, sources, words, range(6), 0, class_names(config, sources)))
  assert not problems and not {"given", "share"} & set(found)
  expected = {(words.encode(record.texts[0].text, 24).tobytes(), record.label) for record in records}
  rows = zip(found["text"], found["label"], strict=True)
  assert {(text.tobytes(), label) for text, label in rows} == expected and len(expected) == 6


def test_two_images_change_places_in_half_of_the_examples():
  """And 'left' and 'right' in the text, as words, with them."""
  head = {"weight": 1.0, "classes": 2, "pool": "text", "images": 2}
  head = {f"classification__{name}": x for name, x in head.items()}
  config = tiny(contrastive__weight=0.0, captioning__weight=0.0, model__text__length=48, **head)
  split = Source(kind="builtin", split="scenes_statements", text="first", scenes=Scenes(count=64))
  config = replace(config, data=replace(config.data, sources={"s": split}, batch=64))
  sources = open_sources(config)
  said = {sources["s"][i].texts[0].text for i in range(64)}
  words = train([*said, "left right"] * 4, 120)

  def rows(swap):
    given = replace(config, data=replace(config.data, swap=swap))
    return next(train_batches(given, sources, words, range(64), 0, class_names(config, sources)))[0]

  (plain, swapped), turned = (rows(False), rows(True)), 0
  other = {"left": "right", "right": "left"}
  for i in range(64):
    text = words.decode(plain["text"][i])
    if (swapped["image"][i] == plain["image"][i]).all():
      assert (swapped["text"][i] == plain["text"][i]).all()
      continue
    turned += 1
    assert (swapped["image"][i] == plain["image"][i][::-1]).all()
    assert words.decode(swapped["text"][i]) == " ".join(other.get(word, word) for word in text.split())
  assert 16 < turned < 48 and any("left" in text for text in said)
  assert (swapped["label"] == plain["label"]).all()
  assert sides_exchanged("Right of the left-hand leftovers") == "Left of the right-hand leftovers"


@pytest.mark.slow
def test_a_head_of_two_images_reads_both_outputs_and_is_evaluated(tmp_path):
  """What the pooler has of each image, one behind the other, times the head: NLVR2's pairs, as CoCa has them."""
  head = {"weight": 1.0, "classes": 2, "pool": "text", "images": 2}
  head = {f"classification__{name}": x for name, x in head.items()}
  config = tiny(contrastive__weight=0.0, captioning__weight=0.0, model__text__length=24, **head)
  split = Source(kind="builtin", split="scenes_statements", text="first", scenes=Scenes(count=8))
  config = replace(config, data=replace(config.data, sources={"s": split}, batch=8))
  make_workdir(tmp_path / "run", config)
  path = tmp_path / "run" / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": ["True", "False"]}))
  model = coca.load(tmp_path / "run")
  sources = open_sources(config)
  records = [sources["s"][i] for i in range(8)]
  texts = [record.texts[0].text for record in records]
  pairs_ = [tuple(Image.open(io.BytesIO(x)) for x in (record.image, record.second)) for record in records]
  p = model.classify(pairs_, texts=texts)

  module = nnx.merge(model.forward.graphdef, jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), model.params))
  ids = jnp.asarray(np.stack([model.tokenizer.encode(text, 24) for text in texts]))
  both = np.stack([np.stack([model.prepare(image) for image in pair]) for pair in pairs_])
  pooled = []
  for side in (0, 1):
    states = module(jnp.asarray(both[:, side]), ids, contrast=False).states
    read = jnp.arange(24) < ((ids != PAD).sum(axis=1) - 1)[:, None]
    pooled.append(np.asarray(module.class_pooler(states, mask=read[:, None, None])[:, 0], np.float64))
  kernel, bias = (np.asarray(model.params["class_head"][name], np.float64) for name in ("kernel", "bias"))
  logits = np.concatenate(pooled, axis=1) @ kernel + bias
  np.testing.assert_allclose(p, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=2e-3, atol=1e-4)
  assert np.abs(p - model.classify([pair[::-1] for pair in pairs_], texts=texts)).max() > 1e-3
  assert np.isnan(model.classify([pairs_[0], ("gone.png", "gone.png")], texts=texts[:2], skip_broken=True)[1]).all()
  with pytest.raises(ValueError, match="example 1: this model's class head reads two images"):
    model.classify([pair[0] for pair in pairs_], texts=texts)

  found, problems = next(train_batches(config, sources, model.tokenizer, range(8), 0, class_names(config, sources)))
  far = np.abs(found["image"][:, None].astype(int) - both).mean(axis=(2, 3, 4, 5))  # two ways to make them smaller
  order = far.argmin(axis=1).tolist()
  assert not problems and far.min(axis=1).max() < 5 and sorted(order) == list(range(8))
  assert found["label"].tolist() == [records[i].label for i in order]
  with jax.set_mesh(make_mesh()):
    passed = module(jnp.asarray(both), ids, contrast=False, caption=False, classify=True).classes
  np.testing.assert_allclose(passed, logits, rtol=2e-3, atol=1e-4)

  evals = {"s": Eval(kind="classification", source=split, batch=8)}
  made = build.make_evaluators(
    replace(config, evals=evals), model.forward, model.tokenizer, sources, labels=model.labels
  )
  right = np.mean([model.labels[row.argmax()] == str(bool(r.label)) for row, r in zip(p, records, strict=True)])
  assert dict(made["s"].run(model.params)) == {"top1": pytest.approx(right), "top5": 1.0, "examples": 8.0}
  one = replace(config, data=replace(config.data, sources={"s": replace(split, split="scenes_hypotheses")}))
  few = open_sources(one)
  _, problems = next(train_batches(one, few, model.tokenizer, range(8), 0, ("a", "b")))
  assert len(problems) == 8 and "no second image, which config.classification.images 2 asks for" in problems[0]
