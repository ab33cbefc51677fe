"""SimVLM against float64 NumPy: its masks, its stem, a forward pass with all kinds of prefixes, and what it writes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coca.decoding.settings import Decoding
from coca.devices.host import put_batch
from coca.inference.forward import Forward
from coca.models.abstract import abstract_model
from coca.models.simvlm import prefix_mask, suffix_mask
from coca.objectives.captioning import next_tokens, prefix_lengths
from support.common import PAD, SPECIAL, make_mesh, pairs, random_params, tiny
from support.reference import GELU, attend, linear, norm

SIMVLM = {
  "model__kind": "simvlm",
  "model__image__size": 32,
  "model__image__patch": 16,
  "model__image__width": 48,
  "model__stem__blocks": (1, 1, 2),
  "model__stem__width": 4,
  "model__text__unimodal_layers": 0,
  "contrastive__weight": 0.0,
}
PREFIX, HAS_IMAGE = np.array([0, 2, 1, 0]), np.array([1, 1, 0, 0])


@pytest.fixture(scope="module", params=[False, True], ids=["", "distances"])
def simvlm(request):
  settings = tiny(**SIMVLM, model__stem__distances=request.param)
  return settings, random_params(settings), pairs(settings, 4)


def windows(x, side, stride, fill):
  """The windows [h, w, side, side, C] of a map [H, W, C], filled up evenly, with the odd one behind."""
  out = -(-len(x) // stride)
  pad = max((out - 1) * stride + side - len(x), 0)
  x = np.pad(x, ((pad // 2, pad - pad // 2),) * 2 + ((0, 0),), constant_values=fill)
  rows = [[x[r * stride :, c * stride :][:side, :side] for c in range(out)] for r in range(out)]
  return np.array(rows)


def conv(p, x, stride=1):
  """A convolution, and group norm: 32 groups, or of no more than 32 channels two in each group."""
  kernel = p["conv"]["kernel"]
  y = np.einsum("hwabc,abcd->hwd", windows(x, len(kernel), stride, 0), kernel)
  groups = min(32, y.shape[2] // 2)
  y = y.reshape(-1, groups, y.shape[2] // groups)
  spread = np.sqrt(y.var((0, 2), keepdims=True) + 1e-6)
  return ((y - y.mean((0, 2), keepdims=True)) / spread).reshape(-1, y.shape[1] * y.shape[2]).reshape(
    -(-len(x) // stride), -(-len(x) // stride), -1
  ) * p["norm"]["scale"] + p["norm"]["bias"]


def bottleneck(p, x, stride=1):
  relu = GELU["relu"]
  y = conv(p["expand"], relu(conv(p["middle"], relu(conv(p["reduce"], x)), stride)))
  return relu(y + (conv(p["shortcut"], x, stride) if "shortcut" in p else x))


def stem(p, image):
  x = GELU["relu"](conv(p["first"], image.astype(np.float64) / 255 * 2 - 1, 2))
  x = windows(x, 3, 2, -np.inf).max((2, 3))
  for i in range(3):
    x = bottleneck(p["heads"][i], x, 1 if i == 0 else 2)
    if i == 2:
      x = bottleneck(jax.tree.map(lambda leaf: leaf[0], p["rests"][2]["layers"]), x)
  return linear(p["projection"], x.reshape(-1, x.shape[2]))


def distances(table, side, length):
  """The bias of each head, from the first side^2 of some tokens to one another: [H, length, length]."""
  bias, table = np.zeros((table.shape[-1], length, length)), table.reshape(2 * side - 1, 2 * side - 1, -1)
  for (row, column), (to_row, to_column) in itertools.product(itertools.product(range(side), repeat=2), repeat=2):
    number = table[row - to_row + side - 1, column - to_column + side - 1]
    bias[:, row * side + column, to_row * side + to_column] = number
  return bias


def layers(p, x, heads, mask, context=None, seen=None, side=0):
  for i in range(2):
    layer = jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])
    y = norm(layer["norm_self"], x)
    bias = distances(layer["patch_distances"], side, len(x)) if side and "patch_distances" in layer else None
    x = x + attend(layer["self_attention"], y, y, heads, mask, bias=bias)
    if context is not None:
      x = x + attend(layer["cross_attention"], norm(layer["norm_cross"], x), context, heads, [seen] * len(x))
    x = x + linear(layer["mlp"]["down"], GELU["gelu_tanh"](linear(layer["mlp"]["up"], norm(layer["norm_mlp"], x))))
  return x


def reference(settings, params, image, ids, prefix, has_image):
  """Logits of the positions from `prefix` on."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  tokens = stem(p["stem"], image) + p["positions"]
  words = p["embedding"]["tokens"][ids] + p["embedding"]["positions"][: len(ids)]
  # What is not seen is not there at all.
  given = words[: prefix + 1]
  read = np.vstack([tokens, given]) if has_image else given
  context = norm(p["norm"], layers(p["encoder"], read, settings.model.image.heads, None, side=2 * has_image))
  rest = words[prefix:]
  causal = np.tril(np.ones((len(rest), len(rest)), bool))
  seen = np.ones(len(context), bool)
  states = layers(p["decoder"]["stack"], rest, settings.model.text.heads, causal, context, seen)
  return norm(p["decoder"]["norm"], states) @ p["softmax"]["kernel"]


def test_masks():
  found = prefix_mask(jnp.array([True, False]), 2, jnp.array([3, 1]), 4)
  np.testing.assert_array_equal(found[:, 0, 0], [[1, 1, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0]])
  found = suffix_mask(jnp.array([0, 2]), 4)
  np.testing.assert_array_equal(found[0, 0], np.tril(np.ones((4, 4))))
  np.testing.assert_array_equal(found[1, 0], [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]])


def test_prefixes_leave_a_label_and_are_no_labels():
  """n labels have 0 to n - 1 words in front, each number as often."""
  text = np.array([[1, 5, 6, 2, PAD], [1, 2, PAD, PAD, PAD], [PAD] * 5])
  drawn = [prefix_lengths(jnp.asarray(text), jnp.full(3, u)).tolist() for u in (0.0, 0.34, 0.67, 0.99)]
  assert drawn == [[0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 0, 0]]
  _, weights = next_tokens(jnp.asarray(text), jnp.array([1.0, 1.0, 0.0]), jnp.array([2, 0, 0]))
  np.testing.assert_array_equal(weights, [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0] * 5])


@pytest.mark.slow
def test_forward(simvlm):
  """Pairs and texts alone, with and without given words, in one batch."""
  settings, params, batch = simvlm
  graphdef, _ = abstract_model(settings)

  @jax.jit
  def forward(params, image, text, prefix, has_image):
    model = nnx.merge(graphdef, params)
    return model(image, text, prefix=prefix, has_image=has_image).states @ model.softmax_kernel()

  given = batch["text"], PREFIX, HAS_IMAGE.astype(np.float32)
  found = np.asarray(forward(params, batch["image"], *given))
  for row, prefix in enumerate(PREFIX):
    wanted = reference(settings, params, batch["image"][row], batch["text"][row], prefix, HAS_IMAGE[row])
    np.testing.assert_allclose(found[row, prefix:], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
  changed = np.asarray(forward(params, 255 - batch["image"], *given))
  np.testing.assert_array_equal(changed[2:], found[2:])  # no image
  assert np.abs(changed[:2] - found[:2]).max() > 1e-3


@pytest.mark.slow
def test_it_writes_what_it_was_trained_to(simvlm):
  """Prompts of several lengths are read by the encoder; the decoder's cache says what a forward pass does."""
  settings, params, batch = simvlm
  mesh = make_mesh()
  forward = Forward(settings, mesh)
  lengths = np.array([1, 3, 2, 1], np.int32)
  prompt = np.where(np.arange(4) < lengths[:, None], [[1, 9, 23, 5]], PAD).astype(np.int32)
  given = put_batch({"image": batch["image"], "prompt": prompt, "lengths": lengths}, mesh)
  encoded = forward.encode(params, given.pop("image"))
  text = np.asarray(forward.caption(forward.writer(params), encoded, Decoding(), special=SPECIAL, **given).text)[:, 0]
  for image, ids, n, start in zip(batch["image"], text, lengths, prompt, strict=True):
    np.testing.assert_array_equal(ids[:n], start[:n])
    end = np.flatnonzero(ids)[-1]
    logits = reference(settings, params, image, ids, n - 1, True)[: end - n + 1]
    logits[:, [0, 1]] = -np.inf
    np.testing.assert_array_equal(logits.argmax(1), ids[n : end + 1])


def test_settings_that_do_not_fit_say_which():
  for changes, said in (
    ({"model__image__width": 32}, r"one width for both, not 32 and 48"),
    ({"model__image__patch": 8}, r"config\.model\.image\.patch 8"),
    ({"contrastive__keep": True}, r"config\.contrastive\.keep to False"),
    ({"captioning__prompt_tokens": 1}, r"draws the words that are given"),
    ({"model__stem__blocks": (1, 0, 2)}, r"config\.model\.stem\.blocks \(1, 0, 2\)"),
    ({"matching__weight": 1.0}, r"config\.matching\.weight needs"),
    ({"stages": {"small": {"size": 16}}}, r"config\.stages needs another"),
  ):
    with pytest.raises(ValueError, match=said):
      tiny(**{**SIMVLM, **changes})
