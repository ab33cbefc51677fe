"""Videos as models see them: frames encoded one by one, and one pooler or decoder over the tokens of all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coca.models.abstract import abstract_model
from support import reference
from support.blip_reference import Reference, tiny_blip
from support.common import classifier, make_mesh, pairs, random_params, tiny

B, F = 2, 3


def films(config, seed=0):
  """uint8 [B, F, S, S, 3], and a text for each."""
  found = pairs(config, B * F, seed)
  return found["image"].reshape(B, F, *found["image"].shape[1:]), found["text"][:B]


def run(config, params, function, *args):
  with jax.set_mesh(make_mesh()):
    graphdef = abstract_model(config)[0]
    return jax.jit(lambda p, *x: function(nnx.merge(graphdef, p), *x))(
      jax.tree.map(jnp.asarray, params), *map(jnp.asarray, args)
    )


def float64(params):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


@pytest.mark.parametrize("positions", [False, True])
def test_one_query_attends_to_the_tokens_of_all_frames(positions):
  """CoCa section 4.2.1, in float64. Without positions frames are a set; with them their order counts."""
  config = classifier(images=F, frame_positions=positions)
  params, (image, text) = random_params(config), films(config)
  p, heads, wanted = float64(params), config.model.image.heads, []
  assert ("frame_positions" in params) == positions
  for film in image:
    tokens = [reference.encode(p["image_encoder"], frame, config.model) for frame in film]
    if positions:
      tokens = [x + at for x, at in zip(tokens, p["frame_positions"], strict=True)]
    pooled = reference.pool(p["class_pooler"], np.concatenate(tokens), heads)[0]
    wanted.append(pooled @ p["class_head"]["kernel"] + p["class_head"]["bias"])

  def classes(model, image, text):
    trained = model(image, text, contrast=False, caption=False, classify=True).classes
    return trained, model.classify(image), model.classify(image[:, ::-1])

  trained, found, backwards = run(config, params, classes, image, text)
  np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(trained, found, rtol=1e-5, atol=1e-5)
  assert (np.abs(np.asarray(found) - backwards).max() > 1e-2) == positions


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cascade", "class_token"])
def test_cocas_decoder_looks_at_all_frames_and_the_embedding_is_their_mean(kind):
  config = tiny(model__poolers__kind=kind, model__image__class_token=kind == "class_token")
  params, (image, text) = random_params(config), films(config)

  def encode(model, image, text):
    first, patches = model.encode(image[:, 0]), model.image_encoder(image.reshape(-1, *image.shape[2:]))
    out = model(image, text, contrast=False)
    words = model._read(text, False)[0]
    each = model.embed_image(image.reshape(-1, *image.shape[2:]))
    encoded = model.encode(image)
    return encoded, each, patches, out.states, model.multimodal(words, encoded.tokens), first.tokens

  encoded, each, patches, states, over, first = run(config, params, encode, image, text)
  p, heads = float64(params), config.model.image.heads
  skip = int(kind == "class_token")
  patches = np.asarray(patches, np.float64)[:, skip:].reshape(B, -1, patches.shape[-1])
  assert patches.shape[1] == F * 16
  wanted = [reference.pool(p["generative_pooler"], tokens, heads) for tokens in patches]
  np.testing.assert_allclose(encoded.tokens, wanted, rtol=1e-3, atol=1e-4)
  assert np.abs(encoded.tokens - first).max() > 1e-2
  np.testing.assert_allclose(states, over, rtol=1e-4, atol=1e-5)
  mean = np.asarray(each, np.float64).reshape(B, F, -1).mean(1)
  np.testing.assert_allclose(encoded.embedding, reference.unit(mean), atol=1e-5)


@pytest.mark.slow
def test_blips_decoder_looks_at_the_tokens_of_all_frames():
  config = tiny_blip()
  params, (image, text) = random_params(config), films(config)
  plain = Reference(params, config)

  def logits(model, image, text):
    encoded = model.encode(image)
    return encoded, model.logits(model(image, text, contrast=False).states), model.score(encoded, text[:, None])

  encoded, found, score = run(config, params, logits, image, text)
  for row in range(B):
    tokens = [plain.image(frame) for frame in image[row]]
    np.testing.assert_allclose(encoded.tokens[row], np.concatenate(tokens), rtol=1e-3, atol=2e-4)
    mean = np.mean([plain.embed_image(x) for x in tokens], axis=0)
    np.testing.assert_allclose(encoded.embedding[row], reference.unit(mean), atol=1e-5)
    np.testing.assert_allclose(found[row], plain.logits(np.concatenate(tokens), text[row]), rtol=2e-3, atol=2e-3)
    match = plain.match(np.concatenate(tokens), text[row])
    np.testing.assert_allclose(score.match_logit[row, 0], match[1], rtol=2e-3, atol=1e-3)
