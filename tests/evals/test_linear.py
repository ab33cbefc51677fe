"""Linear and few-shot evaluation: which images are learned from and which choose lambda, and how it is measured."""

import dataclasses

import numpy as np
import pytest

from coca.evals import linear as linear_
from coca.evals import logistic
from coca.evals.linear import Features, drawn, few_shot, halves, interval, linear, measure, numbered_as

NAMES = ("ant", "bee", "cow")
COUNTS = 12, 5, 1


@pytest.fixture
def train():
  """Classes of 12, 5 and 1 images in any order; a feature says which image it is."""
  label = np.random.default_rng(0).permutation(np.repeat(np.arange(3), COUNTS))
  return Features(np.arange(len(label), dtype=np.float32)[:, None], label, NAMES)


def counts(features):
  return np.bincount(features.label, minlength=3).tolist()


def test_a_fifth_of_each_class_chooses(train):
  first, second = halves(train, seed=0)
  assert counts(second) == [2, 1, 0] and counts(first) == [10, 4, 1]
  assert sorted((first + second).x[:, 0]) == sorted(train.x[:, 0])
  assert halves(train, seed=1)[1].x.tolist() != second.x.tolist()


def test_a_few_of_each_class(train):
  one, _ = drawn(train, 1, seed=3)
  assert counts(one) == [1, 1, 1]
  two = train.at(train.label < 2)
  few, further = drawn(two, 4, seed=3)
  assert counts(few) == [4, 4, 0] and counts(further) == [4, 1, 0]
  assert set(one.x[one.label < 2, 0]) <= set(drawn(two, 4, seed=3)[0].x[:, 0]) | set(further.x[:, 0])
  assert not set(few.x[:, 0]) & set(further.x[:, 0])
  with pytest.raises(ValueError, match="--shots=2: 1 classes have fewer training images, such as 'cow' with 1"):
    drawn(train, 2, seed=0)


def test_classes_go_by_their_names(train):
  other = Features(np.zeros((3, 1), np.float32), np.array([0, 1, 1]), ("cow", "ant", "gnu"))
  assert numbered_as(train, other, "--test").label.tolist() == [2, 0, 0]
  with pytest.raises(ValueError, match="--test has images of 1 classes that the training data lack, such as 'gnu'"):
    numbered_as(train, dataclasses.replace(other, label=np.array([0, 2, 1])), "--test")


def test_shares_of_right_answers():
  x, label = np.float32([[1, 0], [1, 0], [0, 1], [0, 1]]), np.array([0, 0, 0, 1])
  found = measure(Features(x, label, NAMES), np.eye(2, 3, dtype=np.float32), np.zeros(3, np.float32))
  assert found == {"top1": 3 / 4, "mean_per_class_recall": (2 / 3 + 1) / 2}


def test_lambda_is_chosen_on_validation_and_fitted_with_it(monkeypatch):
  calls = []

  class Seen:
    def __init__(self, x, label, classes):
      self.images = len(label)

    def fit(self, penalty):
      calls.append((self.images, penalty))
      return np.eye(2, dtype=np.float32), np.float32([np.log10(penalty) + 1.5, 0])

  monkeypatch.setattr(linear_, "Logistic", Seen)
  rng = np.random.default_rng(0)

  def features(n):
    x = rng.normal(size=(n, 2)).astype(np.float32)
    return Features(x, (x[:, 1] > x[:, 0]).astype(int), ("a", "b"))  # right with a bias of 0: lambda 10^-1.5

  found = linear(features(20), {"new": features(30)}, features(400), "top1", seed=0)
  assert found["lambda"] == pytest.approx(10**-1.5) and calls[-1] == (420, found["lambda"])
  assert all(images == 20 for images, _ in calls[:-1]) and len(calls) == len(found["sweep"]) + 1
  assert found["tests"]["new"]["top1"] == 1.0
  calls.clear()
  assert linear(features(20), {"new": features(30)}, None, "top1", seed=0, penalty=2.0)["lambda"] == 2.0
  assert calls == [(20, 2.0)]


@pytest.mark.slow
def test_few_images_with_their_interval(monkeypatch):
  monkeypatch.setattr(logistic, "ITERATIONS", 50)
  rng = np.random.default_rng(0)
  label = np.repeat([0, 1], 30)
  centres = np.float32([[2, 0, 0], [-2, 0, 0]])
  data = Features(centres[label] + rng.normal(size=(60, 3)).astype(np.float32), label, ("a", "b"))
  found = few_shot(data, {"same": data}, None, "top1", [8], 3)["8"]
  of = found["tests"]["same"]["top1"]
  assert len(found["lambda"]) == len(of["seeds"]) == 3 and of["mean"] > 0.9
  with pytest.raises(ValueError, match="--shots=30 leaves no image of any class to choose lambda by"):
    few_shot(data, {"same": data}, None, "top1", [30], 1)


def test_interval():
  found = interval([0.5, 0.6, 0.7])
  assert found["mean"] == pytest.approx(0.6)
  assert found["half_width"] == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)  # Student's t of 2 degrees, tabulated
  assert interval([0.5]) == {"mean": 0.5, "half_width": None, "seeds": [0.5]}
