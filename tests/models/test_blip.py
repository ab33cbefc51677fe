"""BLIP: parameters and who shares them, the forward pass against float64 NumPy, decoding, dropout, answers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coca.config import ImageEncoder, Med, TextDecoder, default, parse
from coca.decoding.rank import rank_answers
from coca.decoding.settings import Decoding
from coca.devices.trees import flat, nested
from coca.inference.forward import Forward
from coca.models import attention, bert, layers
from coca.models.abstract import abstract_model
from coca.objectives.momentum import momentum_params
from coca.planning import arithmetic
from coca.training.gradients import Gradients
from support.blip_reference import ANSWERS, CLS, ENCODE, SHARED, Reference, log_softmax, tiny_blip
from support.common import BOS, EOS, PAD, SPECIAL, assert_trees_close, make_mesh, pairs, random_params, sums_in_bfloat16
from support.decoding import LENGTH, VOCAB, N, assert_same, plain_beam, plain_sample, some_prompts


def batch_of(settings, n):
  return jax.tree.map(jnp.asarray, pairs(settings, n))


B = 6


# --- Parameters -----------------------------------------------------------------------------------------------------


def base(sharing):
  """BLIP with ViT-B/16 and BERT-base, at 224 pixels."""
  c = default()
  c.model.update({"kind": "blip", "embed_dim": 256, "activation": "gelu"})
  c.model.image.update({"size": 224, "patch": 16, "class_token": True})
  c.model.text.vocab, c.model.med.sharing, c.matching.weight = 30_524, sharing, 1.0
  return parse(c)


@pytest.mark.parametrize(
  ("sharing", "printed"),
  [("all", 224), ("all_but_cross_attention", 252), ("all_but_self_attention", 252), ("none", 361)],
)
def test_parameter_counts_are_those_of_table_3(sharing, printed):
  d, m, vocab = 768, 3072, 30_524
  linear, norm = lambda n, k: n * k + k, 2 * d
  attention, mlp = 4 * linear(d, d), linear(d, m) + linear(m, d)
  vit = linear(16 * 16 * 3, d) + d + (14 * 14 + 1) * d + 12 * (attention + mlp + 2 * norm) + norm
  embedding = (vocab + 512) * d + norm
  block = {"self": attention + norm, "cross": attention + norm, "mlp": mlp + norm}
  heads = 2 * linear(d, 256) + linear(d, 2) + 1 + linear(d, d) + norm + vocab  # and the temperature
  once = vit + embedding + 12 * sum(block.values()) + heads
  twice = {
    "all": 0,
    "all_but_cross_attention": 12 * block["cross"],
    "all_but_self_attention": 12 * block["self"],
    "none": embedding + 12 * sum(block.values()),
  }
  total = dict(arithmetic.parameter_table(base(sharing)))["total"]
  assert total == once + twice[sharing]
  assert round(total / 1e6) == printed


def test_defaults_are_those_of_berts_config():
  med, text = Med(), TextDecoder()
  assert (med.norm_eps, med.dropout, med.positions, med.cls, med.encode) == (1e-12, 0.1, 512, 101, 30_523)
  assert (text.unimodal_layers, text.multimodal_layers, text.width, text.heads, text.mlp) == (12, 12, 768, 12, 3072)
  assert med.sharing == "all_but_self_attention" and ImageEncoder().norm_post


@functools.cache
def model(sharing="all_but_self_attention"):
  """Settings, parameters, a batch, and the model's four results, of pictures with their own and the next one's text."""
  settings = tiny_blip(model__med__sharing=sharing)
  graphdef, _ = abstract_model(settings)

  @jax.jit
  def run(params, image, text):
    model = nnx.merge(graphdef, params)
    out, two = model(image, text), jnp.stack([text, jnp.roll(text, -1, axis=0)], axis=1)
    match = model.match(model.ground(None, two, out.tokens), two)
    return {"image": out.image, "text": out.text, "match": match, "logits": model.logits(out.states)}

  return settings, random_params(settings), pairs(settings, B), run


@pytest.mark.slow
@pytest.mark.parametrize("sharing", SHARED)
def test_what_depends_on_which_parameter(sharing):
  """And the momentum encoders have those that the embeddings depend on."""
  _, params, batch, run = model(sharing)
  before, leaves = run(params, batch["image"], batch["text"]), flat(params)

  def changes(name):
    """Which results move with a parameter. A key's bias moves none: it adds the same to all logits of a query."""
    moved = leaves | {name: leaves[name] * np.float32(0.5) + np.float32(0.1)}
    after = run(nested(moved), batch["image"], batch["text"])
    return {out for out in after if np.any(np.asarray(after[out]) != before[out])}

  def expected(name):
    part, _, rest = name.partition("/")
    heads = {
      "image_encoder": {"image", "match", "logits"},
      "image_projection": {"image"},
      "text_projection": {"text"},
      "matching_head": {"match"},
      "caption_head": {"logits"},
      "temperature": set(),
    }
    if part in heads:
      return heads[part]
    module = rest.split("/")[2] if rest.startswith("stack") else ""
    encodes = {"match"} if "cross" in module else {"text", "match"}
    shared = module in SHARED[sharing] if module else sharing != "none"
    assert part == "text_decoder" or not shared, f"{name} is not shared"
    return encodes if part == "text_encoder" else {"logits"} | (encodes if shared else set())

  names = [name for name in leaves if not name.endswith("key/bias")]
  assert {name: changes(name) for name in names} == {name: expected(name) for name in names}
  assert set(flat(momentum_params(params))) == {name for name in leaves if {"image", "text"} & expected(name)}


# --- The forward pass -----------------------------------------------------------------------------------------------


def test_forward_pass_is_the_formula():
  settings, params, batch, run = model()
  out = jax.tree.map(np.asarray, run(params, batch["image"], batch["text"]))
  expected = Reference(params, settings)
  for i, ids in enumerate(batch["text"]):
    tokens = expected.image(batch["image"][i])
    np.testing.assert_allclose(out["image"][i], expected.embed_image(tokens), atol=3e-6)
    np.testing.assert_allclose(out["text"][i], expected.embed_text(ids), atol=3e-6)
    for k, other in enumerate((ids, batch["text"][(i + 1) % B])):
      np.testing.assert_allclose(out["match"][i, k], expected.match(tokens, other), atol=2e-5)
    np.testing.assert_allclose(out["logits"][i], expected.logits(tokens, ids), atol=3e-5)


def test_the_first_token_is_the_decoders_alone():
  """The encoders put [CLS] or [ENC] in its place; each reads its own."""
  settings, params, batch, run = model()
  one = run(params, batch["image"], batch["text"])
  text = batch["text"].copy()
  text[:, 0] = 77
  two = run(params, batch["image"], text)
  for name in ("image", "text", "match"):
    np.testing.assert_array_equal(one[name], two[name])
  assert np.abs(one["logits"] - two["logits"]).max(axis=(1, 2)).min() > 1e-3
  for row, changed in ((CLS, {"text"}), (ENCODE, {"match"}), (BOS, {"logits"})):
    assert settings.model.med.cls == CLS and settings.model.med.encode == ENCODE
    tokens = np.array(params["text_decoder"]["embedding"]["tokens"])
    tokens[row] *= -1
    moved = {
      **params,
      "text_decoder": {
        **params["text_decoder"],
        "embedding": {**params["text_decoder"]["embedding"], "tokens": tokens},
      },
    }
    used = np.where(np.isin(batch["text"][:, 1:], (CLS, ENCODE)), 5, batch["text"][:, 1:])
    used = np.concatenate([batch["text"][:, :1], used], axis=1)
    a, b = run(params, batch["image"], used), run(moved, batch["image"], used)
    a, b = ({**x, "logits": np.delete(x["logits"], (CLS, ENCODE, BOS), axis=2)} for x in (a, b))  # the tied head
    assert {name for name in a if np.abs(a[name] - b[name]).max() > 1e-4} == changed


def test_padding_does_not_matter():
  _, params, batch, run = model()
  short, longer = batch["text"], np.pad(batch["text"], ((0, 0), (0, 3)))
  one, two = (run(params, batch["image"], text) for text in (short, longer))
  for name in ("text", "match"):
    np.testing.assert_allclose(one[name], two[name], atol=5e-6)
  np.testing.assert_allclose(one["logits"], two["logits"][:, :-3], atol=3e-5)


@pytest.mark.slow
def test_several_texts_a_picture_are_one_at_a_time():
  settings, params, batch, run = model()
  forward = Forward(settings, make_mesh())
  encoded = forward.encode(params, batch["image"])
  texts = np.stack([np.roll(batch["text"], -k, axis=0) for k in range(3)], axis=1)
  scores = forward.score(params, encoded, texts)
  out = [run(params, batch["image"], texts[:, k]) for k in range(3)]
  embedded = np.stack([x["text"] for x in out], axis=1)
  np.testing.assert_allclose(scores.contrastive, (np.asarray(out[0]["image"])[:, None] * embedded).sum(-1), atol=1e-5)
  logits = np.stack([x["match"][:, 0] for x in out], axis=1)
  np.testing.assert_allclose(scores.match_logit, logits[..., 1], atol=1e-5)
  np.testing.assert_allclose(scores.matching, np.exp(log_softmax(logits))[..., 1], atol=1e-5)
  assert forward.score(params, encoded._replace(embedding=None), texts[:, :1]).contrastive is None


# --- Decoding -------------------------------------------------------------------------------------------------------


@functools.cache
def writer(answers):
  """What captions or answers are decoded with, and the same logits by a full forward pass."""
  settings = tiny_blip(
    model__text__vocab=VOCAB, model__text__length=LENGTH, model__med__positions=13, **(ANSWERS if answers else {})
  )
  forward, params, batch = Forward(settings, make_mesh()), random_params(settings, 51), pairs(settings, N)

  @jax.jit
  def full(params, image, question, text):
    model = nnx.merge(forward.graphdef, params)
    if answers:
      return model.logits(model.answer(model.ask(model.encode(image).tokens, question), text))
    states = model(jnp.repeat(image, text.shape[1], 0), text.reshape(-1, text.shape[2]), contrast=False).states
    return model.logits(states)

  def uncached(text, vocab=None, length=None):
    logits = np.array(full(params, batch["image"], batch["text"], text)).reshape(*text.shape, -1)
    return logits, log_softmax(logits)

  def write(decoding, prompt=None, lengths=None):
    encoded, ready = forward.encode(params, batch["image"]), forward.writer(params)
    if answers:
      return forward.answer(ready, encoded, batch["text"], decoding, special=SPECIAL)
    return forward.caption(ready, encoded, decoding, special=SPECIAL, prompt=prompt, lengths=lengths)

  return write, uncached


BEAMS = Decoding(strategy="beam", beams=3, n=2, length_penalty=0.5, min_length=4)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("answers", "decoding", "prompted"),
  [
    (False, Decoding(), False),
    (False, BEAMS, False),
    (False, BEAMS, True),
    (True, Decoding(), False),
    (True, BEAMS, False),
  ],
  ids=["captions", "captions, beams", "captions, beams, prompts", "answers", "answers, beams"],
)
def test_cached_decoding_is_that_of_full_forward_passes(answers, decoding, prompted):
  write, uncached = writer(answers)
  plain = plain_beam if decoding.strategy == "beam" else plain_sample
  given = some_prompts() if prompted else ()
  out = write(decoding, *given)
  assert_same((np.asarray(out.text), np.asarray(out.score)), plain(decoding, *given, uncached=uncached))
  assert len(np.unique(out.text[:, 0], axis=0)) > 3


# --- Dropout --------------------------------------------------------------------------------------------------------


def test_dropout_keeps_the_expectation():
  x = jnp.broadcast_to(jnp.array([[1.0, -3.0]]), (500_000, 2))
  for rate in (0.1, 0.5):
    out = np.asarray(attention.dropout(x, rate, jax.random.key(2)))
    dropped = out == 0
    deviation = math.sqrt(rate * (1 - rate) / dropped.size)
    assert abs(dropped.mean() - rate) < 4 * deviation
    np.testing.assert_allclose(out[~dropped], np.broadcast_to(x, out.shape)[~dropped] / (1 - rate), rtol=1e-6)
    np.testing.assert_allclose(out.mean(0), x[0], rtol=0.01)
    both = (dropped[:, 0] & dropped[:, 1]).mean()  # each value by itself
    assert abs(both - rate**2) < 4 * math.sqrt(rate**2 * (1 - rate**2) / len(out))
  assert attention.dropout(jnp.ones(9, jnp.bfloat16), 0.5, jax.random.key(0)).dtype == jnp.bfloat16


def test_what_is_dropped_is_independent_of_other_keys_and_places():
  """All pairs of masks, and of places up to 64 apart or in other rows, agree as often as coins do."""
  keys = [*jax.random.split(jax.random.key(0), 3), *(jax.random.fold_in(jax.random.key(1), i) for i in range(3))]
  masks = [np.asarray(attention.dropout(jnp.ones((512, 768)), 0.5, key)) == 0 for key in keys]
  four = 4 * math.sqrt(0.25 / masks[0].size)
  for i, mask in enumerate(masks):
    assert abs(mask.mean() - 0.5) < four and mask.mean(0).std() < 1.2 * math.sqrt(0.25 / 512)
    for other in masks[:i]:
      assert abs((mask == other).mean() - 0.5) < four
    for apart in (1, 2, 3, 8, 16, 64):
      assert abs((mask[:, apart:] == mask[:, :-apart]).mean() - 0.5) < 1.1 * four
      assert abs((mask[apart:] == mask[:-apart]).mean() - 0.5) < 1.1 * four


PLACES = ("weights", "self", "cross_weights", "cross", "mlp")


@pytest.mark.slow
def test_dropout_is_in_all_the_places_of_bert(monkeypatch):
  """In place of it, known factors: the same in each layer, and in NumPy."""
  settings = tiny_blip(model__med__dropout=0.1)
  params, batch = random_params(settings), batch_of(settings, 3)
  rng, factors, calls = np.random.default_rng(0), {}, []

  def factor(place, shape):
    return factors.setdefault(place, rng.uniform(0.5, 1.5, shape))

  def in_layer(x, rate, key):
    assert rate == 0.1
    place = PLACES[len(calls) % len(PLACES)]
    calls.append(place)
    return x * factor(place, x.shape).astype(np.float32)

  monkeypatch.setattr(layers, "dropout", in_layer)
  monkeypatch.setattr(attention, "dropout", in_layer)
  monkeypatch.setattr(bert, "dropout", lambda x, rate, key: x * factor("embedding", x.shape).astype(np.float32))
  model = nnx.merge(abstract_model(settings)[0], jax.tree.map(jnp.asarray, params))
  tokens = model.image_encoder(batch["image"])
  found = {
    True: model.logits(
      model.caption_head(model.text_decoder(batch["text"], tokens, causal=True, key=jax.random.key(0)))
    )
  }
  assert calls and len(calls) % len(PLACES) == 0 and len(factors) == 6
  found[False] = model.ground(None, batch["text"], tokens, jax.random.key(0))
  for i, ids in enumerate(batch["text"]):
    expected = Reference(params, settings, lambda place, x, i=i: x * factors[place][i])
    tokens = expected.image(batch["image"][i])
    np.testing.assert_allclose(found[True][i], expected.logits(tokens, ids), atol=3e-5)
    np.testing.assert_allclose(found[False][i], expected.encode(ids, ENCODE, tokens), atol=1e-5)


@pytest.mark.slow
def test_dropout_needs_a_key_and_is_another_with_another():
  settings = tiny_blip(model__med__dropout=0.1)
  params, batch = random_params(settings), jax.tree.map(jnp.asarray, model()[2])
  graphdef, _ = abstract_model(settings)

  @jax.jit
  def run(params, key):
    model = nnx.merge(graphdef, params)
    out = model(batch["image"], batch["text"], key=key)
    return out.image, out.text, out.states, model.ground(None, batch["text"], out.tokens, key)

  plain = run(params, None)
  off = model()
  np.testing.assert_allclose(plain[1], off[3](params, *(off[2][x] for x in ("image", "text")))["text"], atol=1e-6)
  one, again, other = (run(params, jax.random.key(n)) for n in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, one, again)
  jax.tree.map(np.testing.assert_array_equal, one[0], other[0])  # none in the image encoder
  for a, b, c in zip(one[1:], other[1:], plain[1:], strict=True):
    for x, y in ((a, b), (a, c)):  # in every row
      assert np.abs(x - y).reshape(len(x), -1).max(axis=1).min() > 1e-3


@pytest.mark.slow
def test_no_parameter_has_a_gradient_that_is_summed_in_bfloat16():
  assert not sums_in_bfloat16(tiny_blip(model__dtype="bfloat16"))


@pytest.mark.slow
def test_remat_and_unrolling_drop_the_same():
  batch, slopes = batch_of(tiny_blip(), 4), []
  for remat, unroll in (("none", 1), ("full", 2)):
    settings = tiny_blip(model__med__dropout=0.2, model__remat=remat, model__unroll=unroll)
    graphdef, _ = abstract_model(settings)

    def loss(params, graphdef=graphdef):
      embedded = nnx.merge(graphdef, params).embed_text(batch["text"], jax.random.key(0))
      return jnp.sum(embedded * jax.random.normal(jax.random.key(1), embedded.shape))

    slopes.append(jax.jit(jax.grad(loss))(random_params(settings))["text_decoder"])
  assert_trees_close(*slopes, 1e-5)


# --- Answers --------------------------------------------------------------------------------------------------------


def answers_of(settings, n=B, seed=5):
  """Answers int32 [n, K, A] of all lengths, with weights; the last answer of some questions is none."""
  rng = np.random.default_rng(seed)
  k, length = settings.answering.answers, settings.answering.length
  text = rng.integers(5, settings.model.text.vocab, (n, k, length)).astype(np.int32)
  text[..., 0] = BOS
  for i in np.ndindex(n, k):
    end = rng.integers(2, length)
    text[(*i, end)], text[(*i, slice(end + 1, None))] = EOS, PAD
  weight = rng.uniform(0.1, 1, (n, k)).astype(np.float32)
  weight[::2, -1] = 0
  return text, weight


@functools.cache
def answering():
  settings = tiny_blip(**ANSWERS)
  batch = batch_of(settings, B)
  text, weight = answers_of(settings)
  return settings, random_params(settings), batch | {"answers": text, "answer_weight": weight}


def test_a_model_that_answers_shares_nothing():
  """The decoder looks at states of the text's width, not at the image."""
  _, params, _ = answering()
  key = params["text_decoder"]["stack"]["layers"]["cross_attention"]["key"]["kernel"]
  assert key.shape == (2, 48, 48) and set(flat(params["text_encoder"])) == set(flat(params["text_decoder"]))


@pytest.mark.slow
def test_answering_loss_is_the_formula():
  """Weighted sums over tokens, a mean over questions; label smoothing; and accumulated, the same with its gradient."""
  settings, params, batch = answering()
  expected, total = Reference(params, settings), 0.0
  for i in np.flatnonzero(batch["weight"]):
    tokens = expected.image(batch["image"][i])
    for answer, weight in zip(batch["answers"][i], batch["answer_weight"][i], strict=True):
      log_p = log_softmax(expected.answer(tokens, batch["text"][i], answer))
      for t, label in enumerate(answer[1:]):
        if label != PAD:
          total -= batch["weight"][i] * weight * (0.9 * log_p[t, label] + 0.1 * log_p[t].mean())
  with jax.set_mesh(make_mesh()):
    (one, metrics), (several, more) = (
      jax.jit(Gradients(tiny_blip(optim__accumulate=k, **ANSWERS)))(params, batch, None) for k in (1, 2)
    )
  np.testing.assert_allclose(metrics["answering"], total / batch["weight"].sum(), rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"], metrics["answering"], rtol=1e-6)
  np.testing.assert_allclose(more["answering"], metrics["answering"], rtol=1e-5)
  assert_trees_close(several, one, 1e-5)


@pytest.mark.slow
def test_captioning_accumulated_is_one_batch():
  settings = {"matching__weight": 0.0, "captioning__label_smoothing": 0.1}
  params, batch = random_params(tiny_blip(**settings)), pairs(tiny_blip(), B)
  with jax.set_mesh(make_mesh()):
    (one, metrics), (several, more) = (
      jax.jit(Gradients(tiny_blip(optim__accumulate=k, **settings)))(params, batch, None) for k in (1, 2)
    )
  for name in ("loss", "captioning", "contrastive"):
    np.testing.assert_allclose(more[name], metrics[name], rtol=1e-5)
  assert_trees_close(several, one, 1e-5)
  assert np.any(one["caption_head"]["bias"])


@pytest.mark.slow
def test_the_best_of_given_answers_is_that_of_brute_force():
  settings, params, batch = answering()
  candidates = answers_of(settings, 5, seed=8)[0].reshape(-1, settings.answering.length)
  candidates[7, 1] = candidates[3, 1]  # two that begin alike
  candidates = jnp.asarray(candidates)
  k = 4
  graphdef, _ = abstract_model(settings)

  @jax.jit
  def rank(params):
    model = nnx.merge(graphdef, params)
    asked = model.ask(model.encode(batch["image"]).tokens, batch["text"])
    return asked, rank_answers(model, asked, candidates, k, 0.1)

  asked, (best, chosen, scores) = rank(params)
  np.testing.assert_array_equal(asked.mask[:, 0, 0], np.where(np.arange(8) == 0, True, batch["text"] != PAD))
  expected = Reference(params, settings)
  for i in range(B):
    tokens = expected.image(batch["image"][i])
    np.testing.assert_allclose(asked.tokens[i], expected.encode(batch["text"][i], ENCODE, tokens), atol=1e-5)
    log_p = [log_softmax(expected.answer(tokens, batch["text"][i], c)) for c in candidates]
    first = [p[0, c[1]] for p, c in zip(log_p, candidates, strict=True)]
    likely = np.argsort(-np.array(first), kind="stable")[:k]
    total = {
      j: sum(0.9 * log_p[j][t, label] + 0.1 * log_p[j][t].mean() for t, label in enumerate(candidates[j][1:]) if label)
      for j in likely
    }
    assert list(chosen[i]) == list(likely)
    np.testing.assert_allclose(scores[i], [total[j] for j in likely], rtol=1e-5)
    assert best[i] == max(total, key=total.get)
  assert any(best != chosen[:, 0])  # the first word alone would choose others
  forward = Forward(settings, make_mesh())
  ranked = forward.rank_answers(params, forward.encode(params, batch["image"]), batch["text"], candidates, k)
  np.testing.assert_array_equal(ranked, best)
