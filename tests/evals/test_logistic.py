"""Logistic regression against the conditions of its optimum in float64, and CLIP's search for lambda."""

import numpy as np
import pytest

from coca.evals import logistic
from coca.evals.logistic import LAMBDAS, Logistic, sweep

N, F, C = 90, 7, 4


@pytest.fixture(scope="module")
def data():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, C, N)
  return 3 * rng.normal(size=(N, F)) + rng.normal(size=(C, F))[labels] * 2 + 1, labels


def gradient(features, labels, weights, biases, penalty):
  """Of the sum of the cross-entropies plus penalty / 2 |W|^2, in float64."""
  logits = features @ weights.astype(np.float64) + biases
  p = np.exp(logits - logits.max(1, keepdims=True))
  error = p / p.sum(1, keepdims=True) - np.eye(C)[labels]
  return features.T @ error + penalty * weights, error.sum(0)


@pytest.mark.parametrize("penalty", [1e-2, 1.0, 100.0])
def test_the_gradient_is_zero(data, penalty, monkeypatch):
  monkeypatch.setattr(logistic, "LOGITS", N * C // 2 - 1)  # three blocks, the last of which is padded
  model = Logistic(*data, C)
  assert model._data[0].shape == (3, 30, F)
  weights, biases = model.fit(penalty)
  for found in gradient(*data, weights, biases, penalty):
    assert np.abs(found).max() < 1e-2  # of the sum over the images
  # Weights that are a hundredth larger are no optimum.
  assert np.abs(gradient(*data, 1.01 * weights, biases, penalty)[0]).max() > 3e-2


def test_a_step_more_is_worse(data):
  """The problem is strictly convex in the weights: an optimum of 1 is none of 2."""
  weights, biases = Logistic(*data, C).fit(1.0)
  assert np.abs(gradient(*data, weights, biases, 2.0)[0]).max() > 0.1


def test_search():
  assert len(LAMBDAS) == 97 and LAMBDAS[0] == 1e-6 and LAMBDAS[-1] == 1e6
  target, asked = LAMBDAS[59], []

  def score(penalty):
    asked.append(penalty)
    return -abs(np.log10(penalty / target))

  best, scores = sweep(score)
  assert best == target and len(asked) == len(set(asked)) == len(scores) <= 7 + 2 * 4
  np.testing.assert_allclose(asked[:7], [1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])
  assert sweep(lambda penalty: 0.5)[0] == 1e6  # of equal ones the largest
  assert sweep(lambda penalty: -penalty)[0] == 1e-6
