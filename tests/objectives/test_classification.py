"""Classification against NumPy in float64, written from the formulas of mixup, cutmix and label smoothing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coca.devices import sharding
from coca.objectives import classification
from coca.objectives.classification import Classification, blended, classification_loss, pasted
from coca.objectives.term import Pass
from support.common import classifier

CLASSES = 7
mix = jax.jit(classification.mix, static_argnums=2)


def reference(logits, targets, weight):
  """Cross-entropy with whole distributions as targets, as timm's SoftTargetCrossEntropy, over rows with a weight."""
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  return -(weight * (targets * log_p).sum(1)).sum() / weight.sum()


def smooth(labels, smoothing):
  """timm's one_hot: off-values of smoothing / C, and what is left on the label beside its own."""
  return np.full((len(labels), CLASSES), smoothing / CLASSES) + (1 - smoothing) * np.eye(CLASSES)[labels]


def term(**settings):
  return Classification(classifier(classes=CLASSES, **settings))


def value(logits, batch, **settings):
  loss = term(**settings)
  found = loss.value(Pass(classes=jnp.asarray(logits, jnp.float32)), batch)
  return {name: float(x / loss.divisor(batch)) for name, x in found.items()}


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_smoothing_and_records_without_a_label(rng, smoothing):
  logits, labels = rng.normal(size=(6, CLASSES)) * 3, np.array([0, 3, -1, 6, 2, 2], np.int32)
  weight = np.array([1, 1, 1, 1, 0, 1], np.float32)
  found = value(logits, {"label": jnp.asarray(labels), "weight": jnp.asarray(weight)}, label_smoothing=smoothing)
  counts = weight * (labels >= 0)
  want = reference(logits, smooth(np.maximum(labels, 0), smoothing), counts)
  np.testing.assert_allclose(found["classification"], want, rtol=1e-5)
  hits = counts * (logits.argmax(1) == labels)
  np.testing.assert_allclose(found["classification_accuracy"], hits.sum() / counts.sum(), rtol=1e-6)


def test_nothing_is_labelled(rng):
  batch = {"label": jnp.full(3, -1), "weight": jnp.ones(3)}
  assert value(rng.normal(size=(3, CLASSES)), batch) == {"classification": 0, "classification_accuracy": 0}


@pytest.mark.slow
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixed_labels_are_those_of_the_mixed_pixels(rng, mixup, cutmix):
  """The share is read off the pixels: of images of one colour each, 0 to 255 by their places."""
  colours = np.array([10, 200, 90, 250], np.uint8)
  images = jnp.asarray(np.broadcast_to(colours[:, None, None, None], (4, 16, 16, 3)))
  labels = np.array([1, 4, 0, 5], np.int32)
  batch = {"image": images, "label": jnp.asarray(labels), "weight": jnp.ones(4)}
  settings = term(mixup=mixup, cutmix=cutmix, label_smoothing=0.1).settings
  shares = []
  for seed in range(4):
    mixed = mix(batch, jax.random.key(seed), settings)
    assert mixed["image"].dtype == jnp.uint8
    mean = np.asarray(mixed["image"], np.float64).mean((1, 2, 3))
    share = (mean - colours[::-1]) / (colours.astype(float) - colours[::-1])
    np.testing.assert_allclose(mixed["share"][:, 0], share, atol=1e-2 if mixup else 1e-6)
    assert len(np.unique(mixed["image"][0])) <= (2 if cutmix else 1)
    logits = rng.normal(size=(4, CLASSES))
    own = float(mixed["share"][0, 0])
    targets = own * smooth(labels, 0.1) + (1 - own) * smooth(labels[::-1], 0.1)
    np.testing.assert_allclose(
      value(logits, mixed, label_smoothing=0.1)["classification"], reference(logits, targets, np.ones(4)), rtol=1e-5
    )
    shares.append(own)
  assert len(set(shares)) == 4


def test_a_box_is_cut_off_at_the_edges_and_its_share_is_that_of_its_pixels():
  """timm's `rand_bbox`: sides of sqrt(1 - share), half of them in whole pixels on either side of the centre."""
  images = jnp.stack([jnp.zeros((20, 20, 3), jnp.uint8), jnp.ones((20, 20, 3), jnp.uint8)])
  for share, (row, column) in ((0.51, (10, 10)), (0.51, (0, 19)), (1.0, (5, 5)), (0.0, (10, 10))):
    half = int(20 * math.sqrt(1 - share)) // 2
    want = np.zeros((20, 20))
    want[max(row - half, 0) : row + half, max(column - half, 0) : column + half] = 1
    image, left = pasted(images, jnp.float32(share), jnp.array([row, column]))
    np.testing.assert_array_equal(image[0, ..., 0], want)
    np.testing.assert_array_equal(image[1], 1 - np.asarray(image[0]))
    np.testing.assert_allclose(left, 1 - want.mean(), atol=1e-6)


def test_a_partner_that_could_not_be_read_has_no_share(rng):
  batch = {"image": jnp.zeros((4, 8, 8, 3), jnp.uint8), "label": jnp.array([1, 2, -1, 3]), "weight": jnp.ones(4)}
  batch["weight"] = jnp.array([1.0, 1, 1, 0])
  mixed = mix(batch, jax.random.key(1), term(mixup=1.0).settings)
  np.testing.assert_array_equal(mixed["label"], [[1, -1], [2, -1], [-1, 2], [-1, 1]])
  share, logits = np.asarray(mixed["share"], np.float64), rng.normal(size=(4, CLASSES))
  rows, labels = np.array([0, 1, 2, 3]), np.array([1, 2, 2, 1])
  weight = np.array([share[0, 0], share[1, 0], share[2, 1], share[3, 1]])
  want = reference(logits[rows], smooth(labels, 0), weight)
  np.testing.assert_allclose(value(logits, mixed)["classification"], want, rtol=1e-5)


def test_both_take_turns():
  images = jnp.asarray(np.random.default_rng(0).integers(256, size=(2, 16, 16, 3)), jnp.uint8)
  batch = {"image": images, "label": jnp.array([0, 1]), "weight": jnp.ones(2)}
  settings = term(mixup=1.0, cutmix=1.0).settings

  def is_pasted(seed):
    mixed = mix(batch, jax.random.key(seed), settings)["image"]
    return bool(((mixed == images) | (mixed == images[::-1])).all())

  assert 0 < sum(is_pasted(seed) for seed in range(12)) < 12


def test_blending_rounds_as_whole_numbers():
  images = jnp.stack([jnp.full((2, 2, 3), 10, jnp.uint8), jnp.full((2, 2, 3), 13, jnp.uint8)])
  np.testing.assert_array_equal(blended(images, jnp.float32(0.5))[:, 0, 0, 0], [12, 12])  # 11.5, to even
  np.testing.assert_array_equal(blended(images, jnp.float32(0.9))[:, 0, 0, 0], [10, 13])


@pytest.mark.slow
def test_gradients_of_smoothed_and_mixed_labels(rng):
  logits = jnp.asarray(rng.normal(size=(3, CLASSES)), jnp.float32)
  labels, shares = jnp.array([[0, 1], [2, 2], [5, -1]]), jnp.array([[0.3, 0.7], [0.5, 0.5], [1.0, 0.0]])
  found = jax.grad(lambda x: classification_loss(x, labels, shares, 0.1)[0])(logits)
  targets = sum(np.asarray(shares)[:, [k]] * smooth(np.maximum(labels[:, k], 0), 0.1) for k in (0, 1))
  np.testing.assert_allclose(found, np.asarray(jax.nn.softmax(logits)) - targets, atol=1e-6)


@pytest.mark.slow
def test_mixing_over_devices_moves_no_more_than_the_partners(rng):
  """Each device sends its rows to the one that mirrors it; nothing is gathered."""
  mesh = sharding.make_mesh()
  batch = {"image": jnp.zeros((16, 8, 8, 3), jnp.uint8), "label": jnp.zeros(16, jnp.int32), "weight": jnp.ones(16)}
  split = sharding.batch_sharding(mesh)
  program = jax.jit(lambda b, k: mix(b, k, term(mixup=1.0).settings), in_shardings=(split, None))
  text = program.lower(batch, jax.random.key(0)).compile().as_text()
  assert "collective-permute" in text and "u8[16,8,8,3]" not in text
  alone = mix(batch, jax.random.key(0), term(mixup=1.0).settings)
  np.testing.assert_allclose(program(batch, jax.random.key(0))["share"], alone["share"])


def test_it_begins_with_the_logarithm_of_the_classes():
  assert term().at_start() == (math.log(CLASSES), "ln 7")
  assert classification.Classification.metrics[0] == "classification"
