"""Texts from the cache against plain loops over full forward passes, for every strategy; prompts, batches, devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coca.decoding.beam import beam_search
from coca.decoding.decode import prompts
from coca.decoding.sample import sample
from coca.decoding.settings import Decoding, answer_decoding, make_decoding
from coca.inference.forward import Forward
from coca.models.outputs import Encoded
from support.common import BOS, EOS, PAD, SPECIAL, make_mesh, pairs, tiny
from support.decoding import (
  IDS,
  LENGTH,
  VOCAB,
  N,
  assert_same,
  captioner,
  plain_beam,
  plain_sample,
  plain_whole,
  some_prompts,
  uncached,
  write,
)

# --- The cache ---

SAMPLING = (
  Decoding(),
  Decoding(repetition_penalty=1.6, min_length=4, max_length=10, length_penalty=0.0),
  Decoding(strategy="sample", n=3, temperature=1.5),
  Decoding(strategy="sample", n=3, top_p=0.7, repetition_penalty=1.3, seed=5),
  Decoding(strategy="sample", n=2, top_k=4, top_p=0.9, min_length=4),
  Decoding(no_repeat_ngram_size=2),
  Decoding(strategy="sample", n=3, no_repeat_ngram_size=1, repetition_penalty=0.5),
)
SEARCHES = (
  Decoding(strategy="beam", beams=3, n=3),
  Decoding(strategy="beam", beams=4, n=2, early_stop=True, length_penalty=0.5, min_length=4, max_length=9),
  Decoding(strategy="beam", beams=3, n=1, length_penalty=2.0, repetition_penalty=1.4),
  Decoding(strategy="beam", beams=3, n=2, no_repeat_ngram_size=3, repetition_penalty=0.7),
)
WHOLE = (
  Decoding(strategy="beam", beams=3, n=3, length_normalisation="whole"),
  Decoding(strategy="beam", beams=3, min_length=4, max_length=9, length_normalisation="whole"),
  Decoding(strategy="beam", beams=4, n=2, early_stop=True, length_penalty=0.5, length_normalisation="whole"),
  Decoding(strategy="beam", beams=2, n=2, length_penalty=3.0, max_length=8, length_normalisation="whole"),
)


@pytest.mark.slow
@pytest.mark.parametrize("d", SAMPLING, ids=range(len(SAMPLING)))
def test_cached_equals_uncached(d):
  assert_same(write(d), plain_sample(d))


@pytest.mark.slow
@pytest.mark.parametrize("d", SEARCHES, ids=range(len(SEARCHES)))
def test_beam_search_with_a_cache_equals_lists_and_full_passes(d):
  text, score = write(d)
  assert_same((text, score), plain_beam(d))
  assert (np.diff(score, axis=1) <= 0).all()
  if d.n > 1:
    assert (text[:, 0] != text[:, 1]).any(-1).all()


@pytest.mark.slow
@pytest.mark.parametrize("d", WHOLE, ids=range(len(WHOLE)))
@pytest.mark.parametrize("prompted", [False, True])
def test_beams_by_the_whole_length_are_those_of_blips_authors(d, prompted):
  """Their transformers divides by prompt and words, newer ones by words and EOS: with a prompt other captions win."""
  given = some_prompts() if prompted else ()
  text, score = write(d, **dict(zip(("prompt", "lengths"), given, strict=False)))
  assert_same((text, score), plain_whole(d, *given))
  if prompted:
    newer = dataclasses.replace(d, length_normalisation="generated")
    other = write(newer, prompt=given[0], lengths=given[1])
    assert_same(other, plain_beam(newer, *given))
    assert d.early_stop or (text[:, 0] != other[0][:, 0]).any()


@pytest.mark.slow
def test_no_ngram_comes_twice_the_prompt_included():
  prompt, lengths = some_prompts()
  for d in (
    Decoding(repetition_penalty=0.5, no_repeat_ngram_size=2),
    Decoding(strategy="sample", n=2, repetition_penalty=0.5, no_repeat_ngram_size=2),
    Decoding(strategy="beam", beams=2, n=2, repetition_penalty=0.5, no_repeat_ngram_size=2),
  ):
    text = write(d, prompt=prompt, lengths=lengths)[0].reshape(-1, LENGTH)
    free = write(dataclasses.replace(d, no_repeat_ngram_size=0), prompt=prompt, lengths=lengths)[0].reshape(-1, LENGTH)
    pairs_ = [[[tuple(row[i : i + 2]) for i in range((row != PAD).sum() - 1)] for row in rows] for rows in (text, free)]
    # A prompt itself may repeat one.
    assert all(len(set(p)) == len(p) for p in pairs_[0]) and any(len(set(p)) < len(p) for p in pairs_[1])


@pytest.mark.slow
def test_greedy_texts_begin_with_bos_and_end_at_eos_with_padding_after():
  text = write(Decoding())[0][:, 0]
  assert text.dtype == np.int32 and text.shape == (N, LENGTH)
  assert (text[:, 0] == BOS).all() and not (text[:, 1:] == BOS).any()
  lengths = []
  for row in text.tolist():
    end = row.index(EOS) if EOS in row else len(row) - 1
    assert PAD not in row[: end + 1]
    assert set(row[end + 1 :]) <= {PAD}
    lengths.append(end)
  assert len(set(lengths)) > 2 and max(lengths) == 11  # some end early, some are cut
  assert len(np.unique(text, axis=0)) > N / 2  # they depend on the pictures


@pytest.mark.slow
def test_lengths_are_limits():
  greedy = write(Decoding())[0]
  np.testing.assert_array_equal(write(Decoding(max_length=4))[0], greedy[..., :4])
  kinds = ({}, {"strategy": "sample", "n": 3}, {"strategy": "beam", "n": 3, "beams": 3})
  for kind in kinds:
    text = write(Decoding(min_length=6, max_length=8, **kind))[0]
    assert not (text[..., :6] == EOS).any() and (text[..., :6] != PAD).all() and text.shape[-1] == 8
    assert (text == EOS).any() or not kind  # greedy texts happen to be long


class Counted:
  """A model that says EOS at the position that the image token holds, and counts its steps on the host."""

  def __init__(self):
    self.steps = 0

  def start(self, image_tokens, length, rows, prefix):
    ends = image_tokens[:, :1, 0].astype(jnp.int32)

    def step(cache, ids, position, ancestors):
      jax.debug.callback(self.count)
      ids = jnp.where(position + 1 >= ends, EOS, 5)
      return jax.nn.one_hot(jnp.broadcast_to(ids, (len(ends), rows)), VOCAB) * 20, cache

    return step, ()

  def count(self):
    self.steps += 1


@pytest.mark.slow
def test_the_loop_stops_when_the_batch_has_ended():
  tokens = jnp.array([3.0, 5, 2])[:, None, None]
  prompt, lengths = jnp.full((3, 1), BOS), jnp.ones(3, jnp.int32)
  for d, run in ((Decoding(), functools.partial(sample, keys=None)), (Decoding(strategy="beam", beams=1), beam_search)):
    model = Counted()
    out = run(model.start, tokens, prompt, lengths, length=40, decoding=d, special=SPECIAL)
    jax.block_until_ready(out)
    jax.effects_barrier()
    assert model.steps == 5
    assert (np.asarray(out.text)[:, 0] == EOS).argmax(-1).tolist() == [3, 5, 2]


# --- Beams ---


@pytest.mark.slow
def test_one_beam_is_greedy():
  for penalty in (0.0, 1.0):
    d = Decoding(strategy="beam", beams=1, length_penalty=penalty, max_length=10)
    assert_same(write(d), write(Decoding(length_penalty=penalty, max_length=10)))


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beams_score_is_its_teacher_forced_log_probability(penalty):
  text, score = write(Decoding(strategy="beam", beams=3, n=3, length_penalty=penalty))
  logp = np.take_along_axis(uncached(text)[1][:, :, :-1], text[:, :, 1:, None], axis=-1)[..., 0]
  new = text[:, :, 1:] != PAD
  np.testing.assert_allclose(score, (logp * new).sum(-1) / new.sum(-1) ** penalty, rtol=1e-4)


@pytest.mark.slow
def test_enough_beams_find_what_exhaustive_search_finds():
  """Three words, EOS, three new tokens: 1 + 3 + 9 * 4 texts."""
  words, text = (3, 4, 5), [[EOS]]
  text += [[a, EOS] for a in words] + [[a, b, c] for a in words for b in words for c in (EOS, *words)]
  text = np.array([[BOS] + row + [PAD] * (3 - len(row)) for row in text], np.int32)
  every = np.broadcast_to(text, (N, 40, 4))
  logp = np.take_along_axis(uncached(every, 6, 4)[1][:, :, :-1], every[:, :, 1:, None], axis=-1)[..., 0]
  score = (logp * (every[:, :, 1:] != PAD)).sum(-1) / (every[:, :, 1:] != PAD).sum(-1)
  order = np.argsort(-score, axis=1)
  found, found_score = write(Decoding(strategy="beam", beams=40, n=40), vocab=6, length=4)
  np.testing.assert_array_equal(found, text[order])
  np.testing.assert_allclose(found_score, np.take_along_axis(score, order, 1), rtol=1e-4)


# --- Prompts, batches, devices ---

MIXED = (
  Decoding(repetition_penalty=1.2),
  Decoding(strategy="sample", n=2, top_p=0.9),
  Decoding(strategy="beam", beams=3, n=2),
)


@pytest.mark.slow
@pytest.mark.parametrize("d", MIXED, ids=lambda d: d.strategy)
def test_prompts_of_other_lengths_change_nothing(d):
  prompt, lengths = some_prompts()
  text, score = write(d, prompt=prompt, lengths=lengths)
  plain = plain_beam if d.strategy == "beam" else plain_sample
  assert_same((text, score), plain(d, prompt, lengths))
  for row in range(N):
    assert (text[row, :, : lengths[row]] == prompt[row, : lengths[row]]).all()
  without = write(d)
  bare = lengths == 1
  assert_same((text[bare], score[bare]), (without[0][bare], without[1][bare]))
  assert bare.any() and (text != without[0]).any()
  longest = lengths == lengths.max()  # all of one length: read at once, no token by token
  image = captioner()[2]
  alone = write(
    d,
    image[longest].repeat(4, 0),
    IDS[longest].repeat(4),
    prompt[longest].repeat(4, 0)[:, :5],
    lengths[longest].repeat(4),
  )
  assert_same((alone[0][::4], alone[1][::4]), (text[longest], score[longest]))


def test_prompts_are_texts_without_their_eos():
  class Letters:
    eos = EOS

    def encode(self, text, length):
      ids = [*[BOS, *(ord(c) - 90 for c in text)][: length - 1], EOS]
      return np.array(ids + [PAD] * (length - len(ids)), np.int32)

  ids, lengths = prompts(Letters(), ["", "abc", "abcdefg"], 12)
  assert ids.tolist() == [[1] + [0] * 7, [1, 7, 8, 9, 0, 0, 0, 0], [1, 7, 8, 9, 10, 11, 12, 13]]
  assert lengths.tolist() == [1, 4, 8]
  assert prompts(Letters(), ["", ""], 12)[0].shape == (2, 1)
  assert prompts(Letters(), ["abcde"], 7)[0].shape == (1, 7)
  with pytest.raises(ValueError, match=r"'abcdef' has 7 tokens.* texts have 7"):
    prompts(Letters(), ["a", "abcdef"], 7)


@pytest.mark.slow
@pytest.mark.parametrize("d", MIXED, ids=lambda d: d.strategy)
def test_a_text_does_not_depend_on_the_place_in_a_batch_nor_on_its_size(d):
  image = captioner()[2]
  text, score = write(d)
  backwards = write(d, image[::-1], IDS[::-1])
  assert_same((backwards[0][::-1], backwards[1][::-1]), (text, score))
  alone = write(d, image[5:6], IDS[5:6])
  assert_same((alone[0][0], alone[1][0]), (text[5], score[5]))
  other = write(d, ids=IDS + 1)[0]
  assert (other != text).any() == (d.strategy == "sample")
  if d.strategy == "sample":
    assert (text[:, 0] != text[:, 1]).any()
    again = Decoding(strategy="sample", n=2, top_p=0.9, seed=1)
    assert (write(again)[0] != text).any()
    forward = captioner()[0]
    assert forward._decoders.keys() >= {(d, SPECIAL)} and (again, SPECIAL) not in forward._decoders  # one program


@pytest.mark.slow
@pytest.mark.parametrize("d", [*MIXED[::2], Decoding(strategy="sample", n=3, rerank=True)], ids=lambda d: d.strategy)
def test_eight_devices_give_the_same(d):
  prompt, lengths = some_prompts()
  forward, params, image = captioner(mesh=(2, 2, 2))
  given = forward.put({"image": image, "ids": IDS, "prompt": prompt, "lengths": lengths})
  encoded = forward.encode(params, given.pop("image"))
  out = forward.caption(forward.writer(params), encoded, d, special=SPECIAL, **given)
  assert all(x.is_fully_replicated and len(x.sharding.device_set) == 8 for x in out)
  assert_same([np.asarray(x) for x in out], write(d, prompt=prompt, lengths=lengths))


@pytest.mark.slow
def test_a_models_functions_give_the_same_on_eight_devices_and_give_it_whole():
  batch, results = pairs(captioner()[0].config, 16), []
  for mesh in ((1, 1, 1), (2, 2, 2)):
    forward, params, _ = captioner(mesh=mesh)
    image, text, both = forward.put(batch["image"]), forward.put(batch["text"]), forward.put(batch)
    embedded = forward.embed_images(params, image), forward.embed_texts(params, text)
    result = (*embedded, *forward.caption_loss(params, both))
    assert all(x.is_fully_replicated and len(x.sharding.device_set) == np.prod(mesh) for x in result)
    results.append([np.asarray(x) for x in result])
  one, eight = results
  for a, b in zip(one, eight, strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
  targets = (batch["text"][:, 1:] != PAD) * batch["weight"][:, None]
  assert one[3] == targets.sum()
  np.testing.assert_allclose(np.linalg.norm(np.concatenate(one[:2]), axis=1), 1, atol=1e-6)


# --- Re-ranking ---


@pytest.mark.slow
def test_reranking_sorts_by_the_contrastive_head():
  forward, params, image = captioner()
  plain = write(Decoding(strategy="sample", n=3, max_length=9))[0]
  text, score = write(Decoding(strategy="sample", n=3, max_length=9, rerank=True))
  closed = np.pad(plain, ((0, 0), (0, 0), (0, LENGTH - 9)))
  for row in closed.reshape(-1, LENGTH):
    if EOS not in row:
      row[9] = EOS
  texts = np.asarray(forward.embed_texts(params, closed.reshape(-1, LENGTH))).reshape(N, 3, -1)
  cosine = np.einsum("be,bne->bn", np.asarray(forward.embed_images(params, image)), texts)
  order = np.argsort(-cosine, axis=1, kind="stable")
  np.testing.assert_array_equal(text, np.take_along_axis(plain, order[..., None], 1))
  np.testing.assert_allclose(score, np.take_along_axis(cosine, order, 1), atol=1e-5)
  assert (order != np.arange(3)).any() and not (plain == EOS).any(-1).all()


# --- Errors ---


def test_what_a_model_cannot_do_is_said_before_anything_is_compiled():
  def caption(settings, d, **inputs):
    forward = Forward(tiny(**settings), make_mesh())
    forward.caption(None, Encoded(None, None), d, special=SPECIAL, **inputs)

  mute = {"model__text__multimodal_layers": 0, "captioning__weight": 0.0}
  with pytest.raises(ValueError, match="no multimodal decoder"):
    caption(mute, Decoding())
  with pytest.raises(ValueError, match="max_length 9 is more than the 8"):
    caption({}, Decoding(max_length=9))
  with pytest.raises(ValueError, match="min_length 8 tokens"):
    caption({}, Decoding(min_length=8))
  with pytest.raises(ValueError, match="trained without one"):
    caption({"contrastive__weight": 0.0}, Decoding(strategy="sample", n=2, rerank=True))
  with pytest.raises(ValueError, match="sampling needs ids"):
    caption({}, Decoding(strategy="sample"))
  with pytest.raises(ValueError, match="a prompt needs its lengths"):
    caption({}, Decoding(), prompt=np.ones((1, 2), np.int32))


@pytest.mark.parametrize(
  ("name", "ours"),
  [
    ("num_beams", "beams, with strategy 'beam'"),
    ("max_new_tokens", "max_length, which counts BOS"),
    ("num_return_sequences", "is called n"),
    ("do_sample", "strategy 'sample'"),
    ("early_stopping", "early_stop"),
    ("generation_type", "strategy"),
    ("lenght_penalty", "did you mean length_penalty"),
    ("best_of", "known: strategy, n"),
  ],
)
def test_other_peoples_names_are_answered_with_ours(name, ours):
  with pytest.raises(TypeError, match=f"{name}.*{ours}"):
    make_decoding(**{name: 3})


def test_answers_are_written_as_blips_authors_write_them():
  assert answer_decoding(10) == Decoding(strategy="beam", beams=3, max_length=10, length_normalisation="whole")


@pytest.mark.parametrize(
  "values",
  [
    {"length_normalisation": "words", "strategy": "beam"},
    {"length_normalisation": "whole"},
    {"no_repeat_ngram_size": -1},
  ],
)
def test_settings_that_make_no_sense(values):
  with pytest.raises(ValueError, match=next(iter(values))):
    Decoding(**values)
