"""Label ids: the names of a run's classes, and the labels of its batches."""

import dataclasses

import numpy as np
import pytest

from coca.config import Classification, Scenes, Source
from coca.data import pipeline
from coca.data.labels import class_names
from coca.data.sources import open_source
from support.common import classifier
from support.pipeline import Records, make_config, take, trained_words

NAMES = ("ant", "bee", "cow")


def labelled(config, classes=3):
  return dataclasses.replace(config, classification=Classification(weight=1.0, classes=classes))


def test_names_are_those_of_all_sources_that_have_labels():
  config, web = classifier(), Records("web", 4)
  sources = {"web": web, "label": Records("label", 4, labels=NAMES), "more": Records("more", 9, labels=NAMES)}
  assert class_names(config, sources) == NAMES
  assert class_names(dataclasses.replace(config, classification=Classification()), sources) == ()
  with pytest.raises(ValueError, match=r"none of config\.data\.sources has any: web"):
    class_names(config, {"web": web})
  with pytest.raises(ValueError, match=r"sources\.label and more have labels of other names \(3 and 2\)"):
    class_names(config, sources | {"more": Records("more", 9, labels=NAMES[1:])})
  with pytest.raises(ValueError, match=r"classes is 5, .* has 3 classes; set it to 3"):
    class_names(classifier(classes=5), sources)


def test_batches_have_labels_and_none_where_there_is_none():
  config, words = labelled(make_config(threads=1)), trained_words()
  sources = {"web": Records("web", 67), "label": Records("label", 40, bad={1: "truncated"}, labels=NAMES)}
  for batch, _ in take(pipeline.train_batches(config, sources, words, range(8)), 6):
    for text, label, weight in zip(batch["text"], batch["label"], batch["weight"], strict=True):
      said = words.decode(text[1:])
      number = [int(word) for word in said.split() if word.isdigit()]
      assert label == (number[0] % 3 if "label" in said and weight else -1)
  assert "label" not in next(pipeline.train_batches(make_config(), sources, words, range(8)))[0]


def test_a_model_that_reads_no_texts_has_use_for_labelled_images_alone():
  config = labelled(make_config(threads=1, weights={"label": 1.0}), classes=2)  # the third class is beyond them
  text = dataclasses.replace(config.model.text, unimodal_layers=0, multimodal_layers=0)
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))
  sources = {"label": Records("label", 40, bad={4: "empty"}, labels=NAMES)}  # a record without texts is as good
  taken = take(pipeline.train_batches(config, sources, trained_words(), range(8)), 5)
  problems = [problem for _, found in taken for problem in found]
  labels = np.concatenate([batch["label"] for batch, _ in taken])
  weights = np.concatenate([batch["weight"] for batch, _ in taken])
  assert problems and all(problem.endswith("no label") for problem in problems)
  np.testing.assert_array_equal(weights, labels >= 0)
  assert set(labels.tolist()) == {-1, 0, 1} and len(problems) == 13


def test_a_scene_of_a_single_thing_has_its_object_as_label():
  source = open_source(Source(kind="builtin", split="scenes", scenes=Scenes(vocabulary=5, count=40)))
  assert source.label_names == ("dog", "cat", "horse", "cow", "pig")
  labels = [source[i].label for i in range(40)]
  for i, label in enumerate(labels):
    things = source.scene(i).things
    assert label == (source.label_names.index(things[0].name) if len(things) == 1 else -1)
  assert len(set(labels)) > 3
