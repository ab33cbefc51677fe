"""The model against a float64 NumPy forward pass written from the paper, and who sees whom."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coca.config import Med
from coca.inference.forward import Forward
from coca.models import make_model
from coca.models.abstract import abstract_model
from coca.models.attention import dot_product_attention
from coca.models.layers import ACTIVATIONS, Layer
from coca.models.linear import spread
from coca.models.outputs import compute_dtype
from coca.models.rngs import Rngs
from coca.models.text_decoder import look_up, unimodal_mask
from coca.training.gradients import Gradients
from support.common import (
  BOS,
  EOS,
  PAD,
  assert_trees_close,
  equations,
  make_mesh,
  matmul_flops,
  pairs,
  random_params,
  shapes_in,
  sums_in_bfloat16,
  tiny,
)
from support.reference import GELU, encode, pool, reference

# --- Positions -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("class_token", [False, True])
def test_positions_begin_as_sines_and_cosines_of_column_and_row(class_token):
  width, side = 32, 3
  settings = tiny(
    model__image__position_init="sincos2d",
    model__image__position_scale=3.0,
    model__image__class_token=class_token,
    model__image__width=width,
    model__image__size=3 * 8,
    model__image__patch=8,
  )
  found = make_model(settings, jax.random.key(0)).image_encoder.positions[...]
  wanted = np.zeros((side**2 + class_token, width))
  for row in range(side):
    for column in range(side):
      for k in range(8):
        frequency = 1 / 10_000 ** (k / 7)
        for part, value in enumerate((np.sin(column * frequency), np.cos(column * frequency))):
          wanted[class_token + row * side + column, 8 * part + k] = value
        for part, value in enumerate((np.sin(row * frequency), np.cos(row * frequency)), 2):
          wanted[class_token + row * side + column, 8 * part + k] = value
  np.testing.assert_allclose(found, 3 * wanted, atol=1e-6)


@pytest.mark.slow
def test_patches_that_are_kept_turn_as_without_dropout_and_the_class_token_does_not():
  settings = tiny(model__image__class_token=True, model__image__rope=3)
  encoder = make_model(settings, jax.random.key(0)).image_encoder
  kept = jnp.array([[0, 5, 7], [2, 3, 8]])
  whole, some = encoder._turn(3, None), encoder._turn(3, kept)
  for turn in (whole, some):
    np.testing.assert_array_equal(turn[:, :, 0], np.broadcast_to([[[1]], [[0]]], turn[:, :, 0].shape))
  for example, patches in enumerate(kept):
    np.testing.assert_array_equal(some[:, example, 1:], whole[:, 0, 1 + patches])


# --- The model ------------------------------------------------------------------------------------------------------


def run(settings, **options):
  """The compiled model: (params, image, text) -> embeddings and logits, as `reference` has them."""
  graphdef, _ = abstract_model(settings)

  @jax.jit
  def forward(params, image, text):
    model = nnx.merge(graphdef, params)
    out = model(image, text, **options)
    return out.image, out.text, None if out.states is None else out.states @ model.softmax_kernel()

  return forward


@pytest.fixture(scope="module")
def small():
  """Settings, parameters, a batch and the compiled forward pass of the default wiring."""
  settings = tiny()
  return settings, random_params(settings), pairs(settings, 6), run(settings)


WIRINGS = [
  {},
  {"model__poolers__kind": "parallel", "model__poolers__norm": False, "model__activation": "gelu"},
  {"model__poolers__n_query": 0, "model__text__tied_softmax": True, "model__activation": "quick_gelu"},
]


@pytest.mark.parametrize("changes", WIRINGS, ids=["cascade", "parallel", "all image tokens"])
def test_forward_pass_equals_the_paper(changes):
  settings = tiny(**changes)
  params, batch = random_params(settings, 1), pairs(settings, 4, 1)
  actual = run(settings)(params, batch["image"], batch["text"])
  for name, a, b in zip(
    ("image", "text", "logits"), actual, reference(params, settings, batch["image"], batch["text"]), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
  x = np.linspace(-6, 6, 101)
  np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), GELU[name](x), atol=2e-6)


def test_poolers_are_one_attention_layer_each(small):
  settings, params, _, _ = small
  for pooler in (params["generative_pooler"], params["contrastive_pooler"]):
    assert set(pooler) == {"queries", "attention", "norm"}  # no feed-forward
  assert params["generative_pooler"]["queries"].shape == (5, settings.model.text.width)
  assert params["contrastive_pooler"]["queries"].shape == (1, settings.model.text.width)


@pytest.mark.slow
def test_on_one_cpu_device_pictures_take_turns(monkeypatch):
  settings = tiny()
  params, image = random_params(settings), pairs(settings, 6)["image"]
  whole = Forward(settings, make_mesh())
  monkeypatch.setattr("coca.inference.forward.GROUP", 2 * settings.model.image.tokens)
  turns = Forward(settings, make_mesh())
  for name in ("_encode", "_embed_images"):
    expected, actual = getattr(whole, name)(params, image), getattr(turns, name)(params, image)
    assert_trees_close(actual, expected, 1e-6)
    shapes = shapes_in(jax.make_jaxpr(getattr(turns, name))(params, image).jaxpr)
    assert (2, 16, 32) in shapes and (6, 16, 32) not in shapes
  odd = turns.embed_images(params, image[:5])  # five don't make groups of two, and go one by one
  np.testing.assert_allclose(odd, whole.embed_images(params, image)[:5], atol=1e-6)


@pytest.mark.parametrize("kind", ["cascade", "parallel", "openclip"])
def test_attention_maps_are_the_poolers_weights(kind):
  settings = tiny(model__poolers__kind=kind)
  params, image = random_params(settings, 3), pairs(settings, 2, 3)["image"]
  forward = Forward(settings, make_mesh(2, 1, 1))
  contrastive, generative = forward.attention_maps(jax.device_put(params, forward.params_shardings), image)
  side, heads = settings.model.image.size // settings.model.image.patch, settings.model.image.heads
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  for i, pixels in enumerate(image):
    weights = []

    def look(pooler, tokens, weights=weights):
      return pool(p[pooler], tokens, heads, change=lambda w: weights.append(w.mean(0)) or w)

    encoded = encode(p["image_encoder"], pixels, settings.model)
    tokens = look("generative_pooler", encoded)
    if kind != "openclip":
      look("contrastive_pooler", tokens if kind == "cascade" else encoded)
    expected = {
      "cascade": lambda many, one: (one[0] @ many, many),
      "parallel": lambda many, one: (one[0], many),
      "openclip": lambda many: (many[0], many[1:]),
    }[kind](*weights)
    for actual, map_ in zip((contrastive[i], generative[i]), expected, strict=True):
      np.testing.assert_allclose(actual, map_.reshape(*map_.shape[:-1], side, side), rtol=1e-5, atol=1e-7)


def test_cascade_reads_the_generative_pooler_and_parallel_does_not():
  for kind in ("cascade", "parallel"):
    settings = tiny(model__poolers__kind=kind)
    params, batch, forward = random_params(settings), pairs(settings, 2), run(settings, caption=False)
    before = forward(params, batch["image"], batch["text"])[0]
    params["generative_pooler"]["queries"] = params["generative_pooler"]["queries"] + 1
    moved = np.abs(forward(params, batch["image"], batch["text"])[0] - before).max()
    assert (moved > 1e-3) == (kind == "cascade")


def test_queries_shared_by_the_batch_attend_like_copied_ones():
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.normal(size=(b, t, 2, 4)), jnp.float32) for b, t in ((1, 3), (5, 7), (5, 7)))
  copied = dot_product_attention(jnp.repeat(q, 5, 0), k, v)
  np.testing.assert_allclose(dot_product_attention(q, k, v), copied, atol=1e-6)


# --- Who sees whom --------------------------------------------------------------------------------------------------


def test_unimodal_mask_row_by_row():
  mask = np.asarray(unimodal_mask(jnp.array([[BOS, 7, EOS, PAD, PAD], [BOS, 7, 8, 9, EOS]])))
  assert mask.shape == (2, 1, 6, 6)
  padded, full = mask[:, 0].astype(int)
  assert padded[0].tolist() == [1, 0, 0, 0, 0, 0]  # BOS
  assert padded[1].tolist() == [1, 1, 0, 0, 0, 0]  # a word
  assert padded[2].tolist() == [1, 1, 1, 0, 0, 0]  # EOS
  assert padded[3].tolist() == [1, 1, 1, 1, 0, 0]  # padding
  assert padded[4].tolist() == [1, 1, 1, 1, 1, 0]
  assert padded[5].tolist() == [1, 1, 1, 0, 0, 1]  # [CLS]: the words and itself, no padding
  assert full[5].tolist() == [1, 1, 1, 1, 1, 1]
  assert full[:5].tolist() == padded[:5].tolist()


def test_padding_does_not_change_a_text_embedding(small):
  settings, params, _, _ = small
  graphdef, _ = abstract_model(settings)
  embed = jax.jit(lambda params, text: nnx.merge(graphdef, params).embed_text(text))
  words = [BOS, 11, 12, 13, EOS]
  unpadded, once, thrice = (embed(params, np.array([words + [PAD] * n], np.int32)) for n in (0, 1, 3))
  np.testing.assert_allclose(once, unpadded, atol=1e-6)
  np.testing.assert_allclose(thrice, unpadded, atol=1e-6)
  other = embed(params, np.array([[BOS, 11, 12, EOS, PAD]], np.int32))
  assert np.abs(other - unpadded).max() > 1e-2


def test_a_token_changes_nothing_before_it(small):
  settings, params, batch, forward = small
  graphdef, _ = abstract_model(settings)

  @jax.jit
  def unimodal(params, text):
    model = nnx.merge(graphdef, params)
    return model.unimodal(model.embedding(text), text)[0]

  length = settings.model.text.length
  text = np.full((1, length), 9, np.int32)
  changed = np.repeat(text, length, 0)
  changed[np.arange(length), np.arange(length)] = 10  # row t differs at token t
  image = np.repeat(batch["image"][:1], length, 0)
  for states in (lambda text: unimodal(params, text), lambda text: forward(params, image, text)[2]):
    before, after = np.asarray(states(np.repeat(text, length, 0))), np.asarray(states(changed))
    for t in range(length):
      np.testing.assert_array_equal(after[t, :t], before[t, :t])
      assert np.abs(after[t, t:] - before[t, t:]).max(-1).min() > 1e-4  # and everything from it on


@pytest.mark.slow
def test_words_never_see_cls(small):
  settings, params, batch, forward = small
  _, text, logits = forward(params, batch["image"], batch["text"])
  moved = {**params, "unimodal": {**params["unimodal"], "cls": params["unimodal"]["cls"][::-1]}}
  _, moved_text, moved_logits = forward(moved, batch["image"], batch["text"])
  np.testing.assert_array_equal(moved_logits, logits)
  assert np.abs(moved_text - text).max() > 1e-2
  without = run(settings, contrast=False)(params, batch["image"], batch["text"])
  assert without[:2] == (None, None)
  np.testing.assert_allclose(without[2], logits, atol=1e-5)


# --- Precision, memory, dropped patches -----------------------------------------------------------------------------


def test_auto_is_float32_on_cpu():
  assert compute_dtype(tiny()) == jnp.float32
  assert compute_dtype(tiny(model__dtype="bfloat16")) == jnp.bfloat16


@pytest.mark.slow
def test_bfloat16_keeps_float32_where_it_matters(small):
  _, params, batch, forward = small
  settings = tiny(model__dtype="bfloat16")
  assert {x.dtype for x in jax.tree.leaves(abstract_model(settings)[1])} == {jnp.dtype(jnp.float32)}
  actual, expected = (f(params, batch["image"], batch["text"]) for f in (run(settings), forward))
  for x in actual[:2]:
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
  for a, b in zip(actual, expected, strict=True):
    difference = np.abs(a - b).max() / np.abs(b).max()
    assert 1e-5 < difference < 0.1  # another precision, the same numbers

  def nll(logits):
    return -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch["text"][..., None], -1).mean()

  np.testing.assert_allclose(nll(actual[2]), nll(expected[2]), rtol=0.01)


@pytest.mark.slow
def test_remat_and_unroll_change_neither_values_nor_gradients():
  rng = np.random.default_rng(3)
  states, tokens = (rng.normal(size=s).astype(np.float32) for s in ((3, 8, 48), (3, 5, 48)))
  results = []
  for remat, unroll in (("none", 1), ("dots", 1), ("lean", 1), ("full", 2)):
    settings = tiny(model__remat=remat, model__unroll=unroll)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda s=settings: make_model(s, jax.random.key(0)).multimodal))
    params = random_params(settings)["multimodal"]

    def loss(params, states, tokens, graphdef=graphdef):
      return jnp.mean(jnp.sin(nnx.merge(graphdef, params)(states, tokens)))

    traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).trace(params, states, tokens)
    assert ("remat" in str(traced.jaxpr)) == (remat != "none")
    results.append(traced.lower().compile()(params, states, tokens))
  for value, gradient in results[1:]:
    np.testing.assert_allclose(value, results[0][0], atol=1e-6)
    assert_trees_close(gradient, results[0][1], 2e-5)


def test_patch_dropout_keeps_the_patches_of_smallest_noise_in_order():
  settings = tiny(model__image__patch_dropout=0.4)
  params, batch = random_params(settings), pairs(settings, 3)
  noise = np.random.default_rng(5).random((3, 16)).astype(np.float32)
  graphdef, _ = abstract_model(settings)
  encode_image = jax.jit(lambda params, image, noise: nnx.merge(graphdef, params).image_encoder(image, noise))
  tokens = encode_image(params, batch["image"], noise)
  assert tokens.shape == (3, 10, 32)  # round(16 x 0.6)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["image_encoder"])
  for i in range(3):
    kept = sorted(sorted(range(16), key=lambda j: noise[i, j])[:10])
    np.testing.assert_allclose(tokens[i], encode(p, batch["image"][i], settings.model, kept), atol=2e-5)


def test_evaluation_drops_no_patches(small):
  _, params, batch, forward = small
  dropping = Forward(tiny(model__image__patch_dropout=0.5), make_mesh())
  image = forward(params, batch["image"], batch["text"])[0]
  np.testing.assert_allclose(dropping.embed_images(params, batch["image"]), image, atol=1e-6)


# --- Only what the losses need --------------------------------------------------------------------------------------


def parts(settings):
  return set(abstract_model(settings)[1])


def test_parts_that_no_loss_needs_are_not_built():
  both = {
    "image_encoder",
    "generative_pooler",
    "contrastive_pooler",
    "embedding",
    "unimodal",
    "multimodal",
    "softmax",
    "temperature",
  }
  assert parts(tiny()) == both
  dual = tiny(captioning__weight=0.0, model__text__multimodal_layers=0)
  assert parts(dual) == both - {"generative_pooler", "multimodal", "softmax"}
  captioner = tiny(contrastive__weight=0.0)
  assert parts(captioner) == both - {"contrastive_pooler", "temperature"}
  assert set(abstract_model(captioner)[1]["unimodal"]) == {"stack"}  # no [CLS], no projection
  tied = tiny(model__text__tied_softmax=True, model__poolers__n_query=0)
  assert parts(tied) == both - {"softmax", "generative_pooler"}


def gradient_jaxpr(settings):
  params, batch = random_params(settings), pairs(settings, 12)
  with jax.set_mesh(make_mesh()):
    return jax.make_jaxpr(Gradients(settings))(params, batch, None).jaxpr


@pytest.fixture(scope="module")
def both_losses():
  return gradient_jaxpr(tiny(model__poolers__kind="parallel"))


EVERY_PART = {
  "cascade": {"matching__weight": 1.0},
  "parallel": {
    "model__poolers__kind": "parallel",
    "model__poolers__norm_inputs": True,
    "model__poolers__mlp": 40,
    "model__text__cls_position": True,
    "model__image__class_token": True,
    "model__image__norm_pre": True,
  },
  "openclip": {"model__poolers__kind": "openclip", "model__text__feedforwards": 2, "model__text__norm_context": True},
  "full mask": {
    "model__text__multimodal_layers": 0,
    "captioning__weight": 0.0,
    "model__text__mask": "full",
    "model__text__pool": "last",
    "model__text__projection_bias": True,
  },
  "cappa": {"contrastive__weight": 0.0, "model__text__unimodal_layers": 0, "captioning__parallel": 0.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", EVERY_PART.values(), ids=EVERY_PART.keys())
def test_no_parameter_has_a_gradient_that_is_summed_in_bfloat16(changes):
  assert not sums_in_bfloat16(tiny(model__dtype="bfloat16", **changes))


def test_word_embeddings_and_biases_of_many_rows():
  """In bfloat16 the first is 0.5: from there on, 0.001 is less than half of what can be added."""
  rows, bf16 = 4096, jnp.bfloat16
  ids, pull = jnp.ones(rows, int), jnp.full((rows, 2), 0.001, bf16)
  pulled = float(pull[0, 0]) * rows
  (table,) = jax.vjp(lambda table: look_up(table, ids), jnp.zeros((3, 2), bf16))[1](pull)
  np.testing.assert_allclose(np.asarray(table, np.float64), [[0, 0], [pulled, pulled], [0, 0]], rtol=2**-8)
  (row,) = jax.vjp(lambda row: spread(row, (rows, 2), bf16), jnp.zeros(2))[1](pull)
  np.testing.assert_allclose(row, np.full(2, pulled), rtol=1e-5)


@pytest.mark.slow
def test_contrastive_alone_pays_for_no_decoder(both_losses):
  changes = {"captioning__weight": 0.0, "model__poolers__kind": "parallel"}
  unused = gradient_jaxpr(tiny(**changes))
  absent = gradient_jaxpr(tiny(**changes, model__text__multimodal_layers=0))
  assert matmul_flops(unused) == matmul_flops(absent) < 0.7 * matmul_flops(both_losses)

  def vocabulary(jaxpr):  # but for parameters and their gradients
    return {s for s in shapes_in(jaxpr) if 88 in s and s not in ((88, 48), (48, 88))}

  assert vocabulary(both_losses) and not vocabulary(unused)


@pytest.mark.slow
def test_captioning_alone_pays_for_no_embeddings(both_losses):
  alone = gradient_jaxpr(tiny(contrastive__weight=0.0, model__poolers__kind="parallel"))
  for shape in ((12, 9, 48), (12, 12)):  # words and [CLS]; pictures x texts
    assert shape in shapes_in(both_losses) and shape not in shapes_in(alone)
  assert matmul_flops(alone) < matmul_flops(both_losses)


@pytest.mark.slow
@pytest.mark.parametrize("norms", ["before", "after the sum", "before the sum"])
def test_on_tpus_the_feed_forward_is_of_a_matrix(norms, monkeypatch):
  """By a barrier that its gradient meets, too; values and gradients stay as they are, dropped ones among them."""
  settings = tiny(model__image__norm_after=norms == "before the sum")
  med = Med(dropout=0.5) if norms == "after the sum" else None
  layer = Layer(settings.model.image, settings.model, jnp.float32, Rngs(jax.random.key(0)), bert=med)
  layer.mlp.down.bias[...] = jnp.linspace(0, 1, 32)

  def gradients(x):
    return jax.value_and_grad(lambda x: (layer(x, key=jax.random.key(2)) ** 2).sum())(x)

  x = jax.random.normal(jax.random.key(1), (2, 5, 32))
  here = jax.jit(gradients)(x)
  monkeypatch.setattr("coca.models.layers.platform", lambda: "tpu")
  on_tpus = jax.jit(lambda x: gradients(x))  # a function of its own is traced anew
  jaxpr = jax.make_jaxpr(on_tpus)(x)
  assert [eqn.outvars[0].aval.shape for eqn, _ in equations(jaxpr.jaxpr) if "barrier" in str(eqn.primitive)] == 2 * [
    (10, 32)
  ]
  for a, b in zip(on_tpus(x), here, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_on_tpus_gelu_is_exact_but_for_what_bfloat16_rounds_off(monkeypatch, name):
  """For every number of bfloat16: it rounds by a 256th at most, and gelu's polynomial adds a tenth of that."""
  monkeypatch.setattr("coca.models.layers.platform", lambda: "tpu")
  numbers = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), jnp.bfloat16)
  x = numbers[jnp.isfinite(numbers)]
  y, slope = jax.jit(jax.vmap(jax.value_and_grad(ACTIVATIONS[name])))(x)
  z = np.clip(np.asarray(x, np.float64), -1e4, 1e4)  # beyond, it is 0 or x
  if name == "gelu":
    normal = np.vectorize(math.erfc)(-z / math.sqrt(2)) / 2
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
  else:
    p = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    normal = 1 / (1 + np.exp(-2 * np.clip(p, -300, 300)))
    density = normal * (1 - normal) * 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z * z)
  near = np.abs(z) < 1e4
  np.testing.assert_allclose(np.asarray(y, np.float64)[near], (z * normal)[near], rtol=1.1 * 2**-8, atol=1e-5)
  np.testing.assert_array_equal(y[~near], np.maximum(x, 0)[~near])
  np.testing.assert_allclose(np.asarray(slope, np.float64), normal + z * density, atol=1.1 * 2**-8)
  single = jnp.float32(-3.0)
  assert ACTIVATIONS[name](single) == jax.nn.gelu(single, approximate=name == "gelu_tanh")
