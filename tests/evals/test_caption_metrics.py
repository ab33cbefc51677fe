"""Scores of captions against those of pycocoevalcap and its Java tokenizer (golden/make_captions.py), and by hand."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coca.evals import caption_metrics
from coca.evals.caption_metrics import bleu, cider_d, clip_scores, rouge_l, scores
from coca.evals.ptb import tokens

GOLDEN = json.loads((Path(__file__).parent / "golden" / "captions.json").read_text())
SAID = [tokens(text) for text in GOLDEN["captions"]]
TRUE = [[tokens(text) for text in texts] for texts in GOLDEN["references"]]


def test_words_are_those_of_the_java_tokenizer():
  assert [tokens(text) for text, _ in GOLDEN["words"]] == [words for _, words in GOLDEN["words"]]


def test_words_that_one_would_not_guess():
  assert tokens("(a) cannot -- 'don't'") == ["-lrb-", "a", "-rrb-", "can", "not", "do", "n't"]
  assert tokens("What?! No... 1,000.5 x 2.") == ["what", "?!", "no", "1,000.5", "x", "2"]
  assert tokens("yes!no St. Miss. miss. U.S. ok.") == ["yes!no", "st.", "miss.", "miss", "u.s.", "ok"]
  assert tokens("a \U0001f600 b\n") == ["a", "b"] and tokens("...") == tokens("") == []


def test_scores_are_those_of_pycocoevalcap():
  np.testing.assert_allclose(bleu(SAID, TRUE), GOLDEN["bleu"], rtol=1e-12)
  np.testing.assert_allclose(rouge_l(SAID, TRUE), GOLDEN["rouge_l"], rtol=1e-12)
  np.testing.assert_allclose(cider_d(SAID, TRUE), GOLDEN["cider"], rtol=1e-9, atol=1e-12)
  found = dict(scores(GOLDEN["captions"], GOLDEN["references"]))
  assert list(found) == ["bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"]
  assert found["cider"] == pytest.approx(np.mean(GOLDEN["cider"])) and 1 < found["cider"] < 5
  assert all(math.isnan(value) for value in dict(scores([], [])).values())


def test_bleu_is_of_the_corpus_and_its_length_that_of_the_closest_reference():
  # Papineni et al.'s example: 'the' counts twice at most. Seven words written, the closest reference has seven.
  true = [tokens("The cat is on the mat."), tokens("There is a cat on the mat.")]
  assert bleu([["the"] * 7], [true])[0] == pytest.approx(2 / 7)
  # Two of two words are right, but three were wanted; then one of two where two were; of three and five it is three.
  for said, texts, wanted in (
    (["a cat"], [["a fat cat"]], math.exp(1 - 3 / 2)),
    (["a cat", "a dog"], [["a fat cat"], ["a cow"]], 3 / 4 * math.exp(1 - 5 / 4)),
    (["a b c d"], [["a b c", "a b c d e"]], 1),
  ):
    assert bleu([x.split() for x in said], [[x.split() for x in y] for y in texts])[0] == pytest.approx(wanted)


def test_cider_goes_by_the_evaluated_set():
  """One image has no idf. A word of all images counts nothing. A caption that is its reference has 10."""
  one, two, three = ["a", "red", "dog", "runs"], ["a", "blue", "cat", "sits"], ["a", "red", "bird", "sings", "loudly"]
  assert cider_d([one], [[one]]).tolist() == [0]
  pair, more = cider_d([one, two], [[one], [two]]), cider_d([one, two, three], [[one], [two], [three]])
  np.testing.assert_allclose(pair, 10)
  np.testing.assert_allclose(more, 10)
  assert cider_d([["a"], two], [[one], [two]])[0] == 0
  # Weights of one word (1, 1) and (1, 2), of two words 1 and (1, 1); one pair of words more in the reference.
  found = cider_d([["red", "dog"], ["x"]], [[["red", "dog", "dog"]], [["y"]]])[0]
  assert found == pytest.approx(10 / 4 * math.exp(-1 / 72) * (3 / np.sqrt(2 * 5) + 1 / np.sqrt(2)))
  # Clipped: what is said twice counts as in the reference. Two references count as their mean.
  found = cider_d([["red", "dog", "dog"], ["x"]], [[["red", "dog"], ["z"]], [["y"]]])[0]
  assert found == pytest.approx(10 / 4 * math.exp(-1 / 72) * (2 / np.sqrt(2 * 5) + 1 / np.sqrt(2)) / 2)


def test_clip_scores_are_those_of_the_paper():
  image, caption = np.array([[1.0, 0], [1, 0], [0, 1]]), np.array([[0.6, 0.8], [-1, 0], [0, 1]])
  references = np.array([[0.8, 0.6], [0, -1], [0, 1], [-1, 0]])
  score, both = clip_scores(image, caption, references, np.array([0, 0, 1, 1]))
  np.testing.assert_allclose(score, [1.5, 0, 2.5])
  best = [0.6 * 0.8 + 0.8 * 0.6, 1.0]
  np.testing.assert_allclose(both, [2 * 1.5 * best[0] / (1.5 + best[0]), 0, np.nan])


SCORER = """
class {name}:
  def compute_score(self, true, said):
    assert true["1"] == ["a cat", "two cats"] and said == {{"0": ["a dog"], "1": ["a cat"]}}
    return 0.25, [0.5, 0.0]
"""


def failing(self, true, said):
  raise subprocess.CalledProcessError(1, "java")


@pytest.fixture
def fresh():
  """Without any pycocoevalcap that was imported, before and after."""

  def forget():
    for module in [m for m in sys.modules if m.partition(".")[0] == "pycocoevalcap"]:
      del sys.modules[module]

  forget()
  yield
  forget()


def test_java_programs_are_asked_where_they_are_there(tmp_path, monkeypatch, caplog, fresh):
  caption_metrics._say_once.cache_clear()
  monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
  folder = tmp_path / "pycocoevalcap"
  for name in ("meteor", "spice"):
    (folder / name / "lib").mkdir(parents=True)
    (folder / name / f"{name}.py").write_text(SCORER.format(name=name.title()))
  (folder / "__init__.py").touch()
  monkeypatch.syspath_prepend(tmp_path)
  asked = ["A dog."], ["A cat."]
  given = [*asked[0], *asked[1]], [["The dog."], ["A cat.", "Two cats."]]
  assert "meteor" not in dict(scores(*given, java=True))
  assert "meteor" not in dict(scores(*given, java=True))
  assert caplog.text.count("METEOR is not available: pycocoevalcap's meteor/meteor-1.5.jar is missing") == 1
  for file in ("meteor/meteor-1.5.jar", "spice/lib/stanford-corenlp-3.6.0.jar"):
    (folder / file).touch()
  found = dict(scores(*given, java=True))
  assert found["meteor"] == 0.25 and "spice" not in found  # its models are missing
  (folder / "spice/lib/stanford-corenlp-3.6.0-models.jar").touch()
  assert dict(scores(*given, java=True))["spice"] == 0.25
  caption_metrics.importlib.import_module("pycocoevalcap.spice.spice").Spice.compute_score = failing
  found = dict(scores(*given, java=True))
  assert found["meteor"] == 0.25 and "spice" not in found  # an evaluation of hours does not end with it
  assert "SPICE is not available: its program failed (Command 'java' returned non-zero" in caplog.text
  monkeypatch.setattr(shutil, "which", lambda name: None)
  assert not dict(caption_metrics.java_scores(SAID, TRUE))


@pytest.mark.skipif(
  not (shutil.which("java") and importlib.util.find_spec("pycocoevalcap")), reason="needs Java and pycocoevalcap"
)
def test_meteor_is_that_of_the_java_program():
  found = dict(caption_metrics.java_scores(SAID, TRUE))
  assert found["meteor"] == pytest.approx(GOLDEN["meteor"], abs=1e-12)
