"""ALBEF against float64 NumPy: encoders, heads, what a step's momentum model says of hidden words, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coca.decoding.settings import Decoding, check_decoding_model
from coca.devices.host import put_batch
from coca.models.abstract import abstract_model
from coca.models.outputs import Encoded
from coca.objectives.masked import hide_words
from coca.training.state import Setup
from coca.training.step import Stream, make_step
from support.blip_reference import ALBEF, AlbefReference, log_softmax, tiny_blip
from support.common import make_mesh, new_state, pairs, random_params


def close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_embeddings_matching_and_hidden_words_are_those_of_the_formula():
  settings = tiny_blip(**ALBEF)
  params, batch, n = random_params(settings), pairs(settings, 4), 4
  places = np.array([[1, 0, 2], [3, 1, 1], [2, 2, 0], [1, 4, 5]], np.int32)
  texts = np.stack([batch["text"], batch["text"][::-1]], axis=1)
  graphdef, _ = abstract_model(settings)

  @jax.jit
  def run(params, image, text, texts):
    model = nnx.merge(graphdef, params)
    out = model(image, text, match=True)
    grounded = model.match(model.ground(out.words, text, out.tokens)[:, None], text[:, None])
    words = model.fill(out.tokens, text, jnp.array(places)) @ model.softmax_kernel() + model.softmax_bias
    scores = model.score(Encoded(out.image, out.tokens), texts)
    return out.image, out.text, grounded[:, 0], words, scores

  image, text, grounded, words, scores = run(params, batch["image"], batch["text"], texts)
  reference = AlbefReference(params, settings)
  tokens = [reference.image(pixels) for pixels in batch["image"]]
  close(image, [reference.embed_image(x) for x in tokens])
  close(text, [reference.embed_text(ids) for ids in batch["text"]])
  close(grounded, [reference.match(x, ids) for x, ids in zip(tokens, batch["text"], strict=True)])
  close(words, [reference.fill(tokens[i], batch["text"][i])[places[i]] for i in range(n)])
  logits = np.array([[reference.match(tokens[i], ids) for ids in texts[i]] for i in range(n)])
  close(scores.match_logit, logits[..., 1])
  close(scores.matching, np.exp(log_softmax(logits))[..., 1])
  close(scores.contrastive[:, 1], np.sum(image * text[::-1], axis=1))


@pytest.mark.slow
def test_a_step_learns_hidden_words_from_their_ids_and_from_the_momentum_model():
  """The momentum model is the whole one, moved on before it is asked; equation 7 with a share that grows."""
  settings = tiny_blip(
    **ALBEF,
    model__image__layers=1,
    model__text__unimodal_layers=1,
    model__text__multimodal_layers=1,
    matching__weight=0.0,
    contrastive__momentum=0.75,
    contrastive__queue=8,
    contrastive__soft_ramp="10",
  )
  params, slow, batch, mesh = random_params(settings), random_params(settings, 1), pairs(settings), make_mesh()
  setup = Setup(settings, mesh)
  state = new_state(settings, mesh, params)
  momentum = {part: slow[part] for part in state.momentum}
  assert set(params) - set(momentum) == {"temperature"}
  state = dataclasses.replace(state, momentum=momentum, step=jnp.int32(5))
  with jax.set_mesh(mesh):  # the loss alone: all of the step takes much longer to compile
    loss = jax.jit(lambda *args: make_step(setup)(*args)[1]["masked"])(state, put_batch(batch, mesh))

  moved = jax.tree.map(lambda m, p: 0.75 * m + 0.25 * p, momentum, {part: params[part] for part in momentum})
  fast, average = (AlbefReference(p, settings) for p in (params, moved))
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 5), Stream.MASKED)
  hidden = jax.tree.map(np.asarray, hide_words(jnp.array(batch["text"]), key, settings.masked, settings.model))
  total = count = 0.0
  for i in np.flatnonzero(batch["weight"] * (hidden["masked_words"] != 0).any(1)):
    chosen = hidden["masked_words"][i] != 0
    at, words, ids = hidden["masked_at"][i][chosen], hidden["masked_words"][i][chosen], hidden["masked"][i]
    log_p, log_q = (log_softmax(r.fill(r.image(batch["image"][i]), ids)[at]) for r in (fast, average))
    share = 0.4 * 5 / 10
    target = (1 - share) * np.eye(log_p.shape[1])[words] + share * np.exp(log_q)
    total, count = total - (target * log_p).sum(), count + len(words)
  assert count > 5
  np.testing.assert_allclose(loss, total / count, rtol=1e-5)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"captioning__weight": 1.0}, r"captioning\.weight needs a decoder, and config\.model\.kind 'albef' has none"),
    ({"answering__weight": 1.0}, r"answering\.weight needs config\.model\.kind 'blip'"),
    ({"model__kind": "blip"}, r"masked\.weight needs config\.model\.kind 'albef'"),
    ({"model__text__multimodal_layers": 0, "matching__weight": 0.0}, r"multimodal_layers above 0 with config\.masked"),
    ({"model__text__unimodal_layers": 0}, r"unimodal_layers above 0"),
    ({"model__image__class_token": False}, r"'albef' needs config\.model\.image\.class_token"),
    ({"model__med__mask": 88}, r"med\.mask 88 has to be below config\.model\.text\.vocab 88"),
    ({"masked__most": 9}, r"masked\.most 9 is more than config\.model\.text\.length 8"),
    ({"model__embed_dim": 0}, r"embed_dim is 0: for 'albef' it takes a number"),
  ],
)
def test_what_does_not_go_together_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    tiny_blip(**(ALBEF | changes))


def test_it_writes_no_texts():
  with pytest.raises(ValueError, match="has no decoder"):
    check_decoding_model(Decoding(), tiny_blip(**ALBEF))
