"""The contrastive losses and their gradients against float64 NumPy, on one device and on several."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coca.config import Contrastive
from coca.devices.host import put_batch
from coca.devices.sharding import batch_sharding
from coca.inference.forward import Forward
from coca.objectives.contrastive import contrastive_loss
from coca.training.gradients import Gradients
from support.blip_reference import tiny_blip
from support.common import assert_trees_close, hashes, make_mesh, numeric_gradient, pairs, random_params, tiny

N, E = 16, 5
LOG_SCALE, BIAS = 1.3, -2.0


def reference(image, text, log_scale, bias, ids, weight, settings):
  """Equation 2 of CoCa, or the pairwise sigmoid of SigLIP, one query and one pair at a time."""
  scale = np.exp(log_scale)
  total = 0.0
  for i in range(len(image)):
    equal = (ids == ids[i]).all(1)
    columns, matches = [], []
    for j in range(len(image)):
      if j != i and (weight[j] == 0 or (settings.equal_texts == "mask" and equal[j])):
        continue
      columns.append(j)
      matches.append(j == i or (settings.equal_texts == "positives" and equal[j]))
    matches = np.array(matches)
    if settings.loss == "softmax":
      for query, keys in ((image[i], text), (text[i], image)):
        logits = scale * keys[columns] @ query
        log_p = logits - np.log(np.exp(logits).sum())
        smoothing = settings.label_smoothing
        targeted = (1 - smoothing) * log_p[matches].mean() + smoothing * log_p.mean()
        total -= weight[i] * targeted / (2 if settings.directions == "mean" else 1)
    else:
      logits = scale * text[columns] @ image[i] + bias
      total += weight[i] * np.log1p(np.exp(np.where(matches, -logits, logits))).sum()
  return total / weight.sum()


@pytest.fixture(scope="module")
def batch():
  """Embeddings, texts of which many are equal, and weights of which two are 0."""
  rng = np.random.default_rng(0)
  image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, N, E)))
  weight = np.ones(N)
  weight[[3, 10]], weight[5] = 0, 0.5
  ids = rng.integers(3, 6, (N, 2)).astype(np.int32)
  assert 4 < len(np.unique(ids, axis=0)) < N
  return image.astype(np.float32), text.astype(np.float32), ids, weight.astype(np.float32)


def loss_and_gradients(settings, batch, mesh, log_scale=LOG_SCALE):
  """The loss and its gradients with respect to both embeddings, log_scale and bias."""
  image, text, ids, weight = batch

  @jax.jit
  @jax.value_and_grad
  def loss(arguments, equality, weight):
    image, text, log_scale, bias = arguments
    return contrastive_loss(image, text, equality, weight, {"log_scale": log_scale, "logit_bias": bias}, settings)

  with jax.set_mesh(mesh):
    image, text, equality, weight = jax.device_put((image, text, hashes(ids), weight), batch_sharding(mesh))
    return loss((image, text, jnp.float32(log_scale), jnp.float32(BIAS)), equality, weight)


def check(settings, batch, mesh):
  image, text, ids, weight = batch
  value, gradients = loss_and_gradients(settings, batch, mesh)
  at = [image.astype(np.float64), text.astype(np.float64), np.array(LOG_SCALE), np.array(BIAS)]
  np.testing.assert_allclose(value, reference(*at, ids, weight, settings), rtol=1e-5)
  for i, gradient in enumerate(gradients):

    def f(x, i=i):
      return reference(*at[:i], x, *at[i + 1 :], ids, weight, settings)

    np.testing.assert_allclose(gradient, numeric_gradient(f, at[i]), atol=2e-6)


@pytest.mark.parametrize("equal_texts", ["negatives", "mask", "positives"])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "sigmoid_ring"])
def test_loss_and_gradients_on_one_device(loss, equal_texts, batch):
  check(Contrastive(loss=loss, equal_texts=equal_texts), batch, make_mesh())


@pytest.mark.parametrize("equal_texts", ["mask", "positives"])
def test_smoothed_targets_lie_on_all_that_counts(equal_texts, batch):
  check(Contrastive(label_smoothing=0.1, equal_texts=equal_texts), batch, make_mesh(2, 2, 2))


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "sigmoid_ring"])
def test_devices_compare_with_the_global_batch(loss, mesh, batch):
  equal_texts = "mask" if mesh == (2, 2, 2) else "positives"
  check(Contrastive(loss=loss, equal_texts=equal_texts), batch, make_mesh(*mesh))


def test_devices_send_no_gradients_of_embeddings(batch):
  """Of the softmax each makes its own rows' by itself: what is summed are numbers."""
  image, text, ids, weight = batch

  def loss(image, text, equality, weight):
    return contrastive_loss(image, text, equality, weight, {"log_scale": jnp.float32(0)}, Contrastive())

  with jax.set_mesh(make_mesh(2, 2, 2)):
    program = jax.jit(jax.grad(loss, (0, 1))).lower(image, text, hashes(ids), weight).as_text()
  assert "all_gather" in program and "reduce_scatter" not in program
  assert {*re.findall(r'"stablehlo.all_reduce".*?-> (tensor<.*?>)', program, re.DOTALL)} == {"tensor<f32>"}


def test_directions(batch):
  """'sum' is the formula as printed; 'mean' is half of it."""
  (summed, summed_gradients), (mean, mean_gradients) = (
    loss_and_gradients(Contrastive(directions=d), batch, make_mesh()) for d in ("sum", "mean")
  )
  image, text, ids, weight = batch
  np.testing.assert_allclose(
    mean, reference(image, text, LOG_SCALE, 0, ids, weight, Contrastive(directions="mean")), rtol=1e-5
  )
  np.testing.assert_allclose(mean, summed / 2, rtol=1e-6)
  np.testing.assert_allclose(mean_gradients[0], summed_gradients[0] / 2, atol=1e-7)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "sigmoid_ring"])
def test_a_pair_of_weight_0_is_no_query_and_no_negative(loss, batch):
  image, text, ids, weight = batch
  moved = image.copy()
  moved[3], moved[10] = text[4], -image[10]  # text 4's best match by far, at CLIP's highest scale

  def run(image):
    return loss_and_gradients(Contrastive(loss=loss), (image, text, ids, weight), make_mesh(), log_scale=np.log(100))

  (value, gradients), (moved_value, moved_gradients) = run(image), run(moved)
  np.testing.assert_array_equal(moved_value, value)
  np.testing.assert_array_equal(moved_gradients[0], gradients[0])
  for gradient in gradients[:2]:
    assert not np.any(gradient[jnp.array([3, 10])])


def test_one_pair_alone_costs_nothing_but_its_bias(batch):
  """With every other pair of weight 0, softmax has one column, and the loss is that of one pair for the sigmoid."""
  image, text, ids, _ = batch
  weight = np.zeros(N, np.float32)
  weight[7] = 1
  value, _ = loss_and_gradients(Contrastive(), (image, text, ids, weight), make_mesh())
  np.testing.assert_allclose(value, 0, atol=1e-6)
  value, _ = loss_and_gradients(Contrastive(loss="sigmoid"), (image, text, ids, weight), make_mesh())
  logit = np.exp(LOG_SCALE) * image[7] @ text[7] + BIAS
  np.testing.assert_allclose(value, np.log1p(np.exp(-logit)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("make", "mesh", "changes"),
  [
    (tiny, (8, 1, 1), {}),
    (tiny_blip, (2, 2, 2), {"optim__accumulate": 2, "contrastive__loss": "sigmoid", "matching__weight": 0.0}),
  ],
  ids=["coca, devices", "blip, micro-batches, sigmoid"],
)
def test_two_texts_of_an_image(make, mesh, changes):
  """The loss is the mean of both texts', the gradient that of steps with one of them; other losses see the first."""
  one, two = make(**changes | {"optim__accumulate": 1}), make(contrastive__texts=2, **changes)
  params, batch = random_params(one), pairs(one)
  # The rows of equal texts are not the same ones.
  first, second = (
    {name: np.roll(pairs(one, seed=k)[name], 3 * k, axis=0) for name in ("text", "last", "hashes")} for k in (0, 1)
  )

  def run(settings, mesh, batches):
    with jax.set_mesh(mesh):
      step = jax.jit(Gradients(settings))
      return [step(params, put_batch(batch | more, mesh), None, jax.random.key(0)) for more in batches]

  def both(given, more):
    return given | {"more_texts": more["text"][:, None], "more_hashes": more["hashes"][:, None]}

  alone = run(one, make_mesh(), [first, second])
  together = run(two, make_mesh(*mesh), [both(first, second), both(second, first)])
  forward = Forward(one, make_mesh())
  image, *texts = (
    np.asarray(x, np.float64)
    for x in (
      forward.embed_images(params, batch["image"]),
      *(forward.embed_texts(params, of["text"]) for of in (first, second)),
    )
  )
  temperature = [float(params["temperature"].get(name, 0)) for name in ("log_scale", "logit_bias")]
  losses = [
    reference(image, text, *temperature, of["hashes"], batch["weight"], one.contrastive)
    for text, of in zip(texts, (first, second), strict=True)
  ]
  assert abs(losses[0] - losses[1]) > 1e-3
  for (_, metrics), (_, single), loss in zip(together, alone, losses, strict=True):
    np.testing.assert_allclose(single["contrastive"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["contrastive"], np.mean(losses), rtol=1e-5)
    for name in {*single} - {"contrastive", "loss"}:
      np.testing.assert_allclose(metrics[name], single[name], rtol=1e-5, err_msg=name)
  added = [jax.tree.map(np.add, *(gradients for gradients, _ in runs)) for runs in (together, alone)]
  assert_trees_close(*added, 1e-5)
