"""Multinomial logistic regression with an L2 penalty, as in CLIP's linear evaluation (arXiv 2103.00020, appendix A.3).

The loss is scikit-learn's, which CLIP's authors use: the sum of the images' cross-entropies plus lambda / 2 times the
sum of the squared weights; lambda is 1 / C there, and the biases have no penalty. It is convex, so where L-BFGS ends
before its 1,000 iterations, the result does not depend on how it was found.

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
# Of the largest part of the gradient of the loss an image, where fp32 has little more to tell. scikit-learn has 1e-4.
TOLERANCE = 1e-5
LOGITS = 2**26  # that are held at once


class Logistic:
  """Features and classes on the device, to be fitted with any lambda.

  Args:
    features: of images, [N, F].
    labels: their classes, int [N], from 0.
    classes: there are.
  """

  def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int):
    self.classes, (self.images, self.width) = classes, features.shape
    blocks = max(-(-self.images * classes // LOGITS), 1)
    rows = -(-self.images // blocks)
    pad = blocks * rows - self.images  # rows of a label of -1 count nothing
    features = np.pad(features.astype(np.float32), ((0, pad), (0, 0)))
    labels = np.pad(labels.astype(np.int32), (0, pad), constant_values=-1)
    self._data = jnp.asarray(features.reshape(blocks, rows, -1)), jnp.asarray(labels.reshape(blocks, rows))

  def fit(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights float32 [F, C] and biases [C], from zeros, with `penalty` as lambda."""

    def loss(x):
      """An image, added up in float64: the search along a line goes by the last digits."""
      x = x.reshape(-1, self.classes).astype(np.float32)
      losses, gradient = _losses(x, *self._data)
      shrink = penalty * x.astype(np.float64)
      shrink[-1] = 0
      value = np.asarray(losses, np.float64).sum() + 0.5 * np.vdot(shrink, x)
      return value / self.images, (np.asarray(gradient, np.float64) + shrink).reshape(-1) / self.images

    options = {"maxiter": ITERATIONS, "maxfun": 10 * ITERATIONS, "gtol": TOLERANCE, "ftol": 1e-14}
    start = np.zeros((self.width + 1) * self.classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    found = found.reshape(-1, self.classes).astype(np.float32)
    return found[:-1], found[-1]


@jax.jit
def _losses(weights, features, labels):
  """The cross-entropies, and the gradient of their sum; the last row of the weights [F + 1, C] are the biases."""

  def block(weights, x, label):
    logits = jnp.matmul(x, weights[:-1], precision="highest") + weights[-1]
    own = jnp.take_along_axis(logits, jnp.maximum(label, 0)[:, None], axis=1)[:, 0]
    losses = jnp.where(label < 0, 0, jax.nn.logsumexp(logits, axis=1) - own)
    return losses.sum(), losses

  def add(total, data):
    gradient, losses = jax.grad(block, has_aux=True)(weights, *data)
    return total + gradient, losses

  gradient, losses = jax.lax.scan(add, jnp.zeros_like(weights), (features, labels))
  return losses, gradient


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
