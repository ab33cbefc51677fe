"""The policy gradient against float64 NumPy, and captions that are read as the model reads a text of its own."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coca.devices.sharding import batch_sharding
from coca.models.abstract import abstract_model
from coca.objectives.self_critical import SelfCritical
from coca.objectives.term import Pass
from support.blip_reference import tiny_blip
from support.common import BOS, EOS, PAD, make_mesh, random_params, tiny

B, N, T, D, V, PROMPT = 8, 3, 6, 8, 24, 1


def drawn(rng, vocab, length=T):
  """Captions of all lengths, among them one that was cut and one that ends at once."""
  text = rng.integers(4, vocab, (B, N, length)).astype(np.int32)
  text[..., 0] = BOS
  for i, row in enumerate(text.reshape(-1, length)):
    end = i % (length - 1 - PROMPT) + 1 + PROMPT
    if i % 7:  # else it was cut
      row[end], row[end + 1 :] = EOS, PAD
  return text


def policy_gradient(states, kernel, text, advantage):
  """d/d(states, kernel) of -sum over captions of (r - b) * log p(caption), divided by B' N, in float64."""
  d_states, d_kernel, value = np.zeros(states.shape), np.zeros(kernel.shape), 0.0
  for index in np.ndindex(*text.shape[:2]):
    for t in range(PROMPT, T - 1):
      word = text[index][t + 1]
      if word == PAD:
        continue
      logits = states[index][t] @ kernel
      p = np.exp(logits - logits.max())
      p /= p.sum()
      value -= advantage[index] * np.log(p[word])
      score = -p  # of log p in the logits
      score[word] += 1
      d_states[index][t] -= advantage[index] * (kernel @ score)
      d_kernel -= advantage[index] * np.outer(states[index][t], score)
  return value, d_states, d_kernel


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_the_gradient_is_that_of_reinforce_with_a_baseline(mesh):
  rng = np.random.default_rng(0)
  text, states, kernel = drawn(rng, V), rng.normal(size=(B, N, T, D)), rng.normal(size=(D, V))
  reward, baseline, weight = rng.uniform(0, 10, (B, N)), rng.uniform(0, 10, (B, N)), np.ones(B)
  weight[3] = 0
  term = SelfCritical(
    tiny(self_critical__weight=1.0, self_critical__samples=N, captioning__prompt_tokens=PROMPT, captioning__chunk=7,
         captioning__label_smoothing=0.1, captioning__tokens="per_text")
  )  # fmt: skip
  arrays = {"samples": text, "reward": reward, "baseline": baseline, "weight": weight}

  @jax.jit
  def gradient(states, kernel, batch):
    def loss(states, kernel):
      model = SimpleNamespace(
        read_captions=lambda tokens, text, key: tokens.reshape(-1, T, D),
        softmax_kernel=lambda: kernel,
        softmax_bias=None,
      )
      values = term.value(Pass(tokens=states, model=model), batch)
      values = {name: x / term.divisor(batch) for name, x in values.items()}
      return values["self_critical"], values

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(states, kernel)

  mesh = make_mesh(*mesh)
  with jax.set_mesh(mesh):
    put = jax.device_put(
      jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == float else x, (states, arrays)), batch_sharding(mesh)
    )
    (d_states, d_kernel), values = gradient(put[0], kernel.astype(np.float32), put[1])
  value, *expected = policy_gradient(states, kernel, text, weight[:, None] * (reward - baseline))
  count = N * weight.sum()
  np.testing.assert_allclose(values["self_critical"], value / count, rtol=1e-5)
  np.testing.assert_allclose(d_states, expected[0] / count, atol=2e-6)
  np.testing.assert_allclose(d_kernel, expected[1] / count, atol=1e-5)
  for name in ("reward", "baseline"):
    np.testing.assert_allclose(values[name], arrays[name][weight > 0].mean(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny, tiny_blip])
def test_captions_are_read_as_a_text_of_the_image(make):
  settings = make(contrastive__weight=0.0, matching__weight=0.0)
  params, rng = random_params(settings), np.random.default_rng(1)
  text = drawn(rng, settings.model.text.vocab, settings.model.text.length)[:2]
  image = rng.integers(0, 256, (2, settings.model.image.size, settings.model.image.size, 3)).astype(np.uint8)

  @jax.jit
  def both(params, image, text):
    model = nnx.merge(abstract_model(settings)[0], params)
    asked = {"contrast": False, "caption": False, "match": True}
    tokens = model(image, text[:, 0], **asked).tokens
    one_by_one = model(jnp.repeat(image, N, axis=0), text.reshape(-1, text.shape[2]), contrast=False).states
    return model.read_captions(tokens, text), one_by_one

  with jax.set_mesh(make_mesh()):
    found, expected = both(params, image, text)
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
