"""Multinomial logistic regression with an L2 penalty, as in CLIP's linear evaluation (arXiv 2103.00020, appendix A.3).

The loss is scikit-learn's, which CLIP's authors use: the sum of the images' cross-entropies plus lambda / 2 times the
sum of the squared weights; lambda is 1 / C there, and the biases have no penalty. It is computed in float64, as there:
with a small lambda, fp32 ends far from the optimum. TPUs do that in software, and slowly.

Shapes: N images, F features, C classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

# CLIP's 96 steps between 1e-6 and 1e6: eight a decade.
LAMBDAS = 10.0 ** (np.arange(97) / 8 - 6)
ITERATIONS = 1000  # of L-BFGS at most (CLIP)
TOLERANCE = 1e-4  # of the largest part of the gradient; scikit-learn's when the paper was written
LOGITS = 2**25  # that are held at once


class Logistic:
  """Features and classes on the device, to be fitted with any lambda.

  Args:
    features: of images, [N, F].
    labels: their classes, int [N], from 0.
    classes: there are.
  """

  def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int):
    self.classes, (images, self.width) = classes, features.shape
    blocks = max(-(-images * classes // LOGITS), 1)
    rows = -(-images // blocks)
    pad = blocks * rows - images  # rows of a label of -1 count nothing
    features = np.pad(features.astype(np.float32), ((0, pad), (0, 0)))
    labels = np.pad(labels.astype(np.int32), (0, pad), constant_values=-1)
    self._data = jnp.asarray(features.reshape(blocks, rows, -1)), jnp.asarray(labels.reshape(blocks, rows))

  def fit(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights float32 [F, C] and biases [C], from zeros, with `penalty` as lambda."""

    def loss(x):
      value, gradient = _loss(x.reshape(-1, self.classes), penalty, *self._data)
      return float(value), np.asarray(gradient).reshape(-1)

    options = {"maxiter": ITERATIONS, "gtol": TOLERANCE}
    with jax.enable_x64(True):
      found = minimize(loss, np.zeros((self.width + 1) * self.classes), jac=True, method="L-BFGS-B", options=options).x
    found = found.reshape(-1, self.classes).astype(np.float32)
    return found[:-1], found[-1]


@jax.jit
def _loss(weights, penalty, features, labels):
  """The loss and its gradient, float64; the last row of the weights [F + 1, C] are the biases."""

  def block(weights, x, label):
    logits = x.astype(weights.dtype) @ weights[:-1] + weights[-1]
    own = jnp.take_along_axis(logits, jnp.maximum(label, 0)[:, None], axis=1)[:, 0]
    return jnp.sum(jnp.where(label < 0, 0, jax.nn.logsumexp(logits, axis=1) - own))

  def add(total, data):
    return jax.tree.map(jnp.add, total, jax.value_and_grad(block)(weights, *data)), None

  first = jnp.zeros((), weights.dtype), jnp.zeros_like(weights)
  (value, gradient), _ = jax.lax.scan(add, first, (features, labels))
  shrink = penalty * weights.at[-1].set(0)
  return value + 0.5 * jnp.vdot(shrink, weights), gradient + shrink


def sweep(score: Callable[[float], float]) -> tuple[float, dict[float, float]]:
  """CLIP's search for lambda: 1e-6, 1e-4, ..., 1e6 first, then the halves of the interval around the best, down to an
  eighth of a decade.

  Args:
    score: of a lambda; the higher, the better. Of equal ones the largest lambda is taken, of which the paper says
      nothing.

  Returns:
    the best of `LAMBDAS`, and all scores by lambda.
  """
  found = {k: score(LAMBDAS[k]) for k in range(0, 97, 16)}

  def peak():
    return max(found, key=lambda k: (found[k], k))

  for step in (8, 4, 2, 1):
    best = peak()
    found |= {k: score(LAMBDAS[k]) for k in (best - step, best + step) if 0 <= k < len(LAMBDAS) and k not in found}
  return float(LAMBDAS[peak()]), {float(LAMBDAS[k]): found[k] for k in sorted(found)}
