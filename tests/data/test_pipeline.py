import dataclasses
import json
import re
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from coca import config as settings
from coca.data import feed, pipeline, texts
from coca.data.prompts import CLIP_IMAGENET
from coca.data.records import BadRecord, Text
from coca.data.tokenizers import sentencepiece
from support.pipeline import (
  LENGTH,
  SIZE,
  Records,
  digests,
  flat,
  global_digests,
  make_config,
  open_sources,
  take,
  trained_words,
)
from support.processes import environment

CAPTIONS = pipeline.Wants(texts.captions, ends=False)
MORE = ("more_texts", "more_hashes")


@pytest.fixture(scope="module")
def words():
  return trained_words()


@pytest.fixture(scope="module")
def reference(words):
  return global_digests(make_config(threads=1), words, range(8), steps=40)


def test_cut_texts_end_for_encoders_and_go_on_for_the_decoder(words):
  def batch(length):
    text = settings.TextDecoder(length=length)
    config = make_config(batch=64, weights={"web": 1.0})
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))
    ((training, _),) = take(pipeline.train_batches(config, open_sources(["web"]), words, range(64)), 1)
    ((evaluation, _),) = take(pipeline.eval_batches(config, Records("a web", 64), CAPTIONS, words, range(64), 64), 1)
    return training, evaluation["text"][:, 0]

  (whole, whole_captions), (cut, captions) = batch(24), batch(8)
  assert (cut["text"][:, :7] == whole["text"][:, :7]).all() and (cut["last"] == whole["text"][:, 7]).all()
  assert set(cut["text"][:, 7].tolist()) == {sentencepiece.PAD, sentencepiece.EOS}
  same = cut["last"] == cut["text"][:, 7]
  assert {bool(s) for s in same[cut["text"][:, 7] == sentencepiece.EOS]} == {True, False}  # one fits exactly
  assert (captions == whole_captions[:, :8]).all() and (captions[:, 7] > sentencepiece.UNK).any()


def test_batches_have_the_promised_arrays(words):
  ((batch, problems),) = take(pipeline.train_batches(make_config(), open_sources(), words, range(8)), 1)
  assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
    "image": ((8, SIZE, SIZE, 3), "uint8"),
    "text": ((8, LENGTH), "int32"),
    "last": ((8,), "int32"),
    "hashes": ((8, 2), "uint32"),
    "weight": ((8,), "float32"),
  }
  assert all(isinstance(p, str) for p in problems)


def test_texts_alone_are_marked_and_their_images_not_read(words):
  config = make_config(weights={"web": 1.0})
  alone = {"web": dataclasses.replace(config.data.sources["web"], text_only=True), "label": settings.Source()}
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, kind="simvlm"),
    data=dataclasses.replace(config.data, sources=alone),
  )
  taken = take(pipeline.train_batches(config, open_sources(), words, range(8)), 10)
  batch = {name: np.concatenate([b[name] for b, _ in taken]) for name in taken[0][0]}
  assert batch["has_image"].dtype == np.float32 and not any("truncated" in p for _, problems in taken for p in problems)
  for image, text, has_image, weight in zip(*(batch[k] for k in ("image", "text", "has_image", "weight")), strict=True):
    if weight:
      assert (image == 255).all() == (not has_image)
      assert ("web" in words.decode(text)) == (not has_image)
  assert {0.0, 1.0} == set(batch["has_image"][batch["weight"] > 0].tolist())


def test_every_row_differs_and_a_seed_decides_all(words, reference):
  rows = flat(reference)
  blank = max(rows, key=rows.count)
  assert all(rows.count(d) == 1 or d == blank for d in rows)
  assert set(flat(global_digests(make_config(seed=1), words, range(8)))) & set(rows) <= {blank}


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_threads_do_not_matter(words, reference, threads):
  assert global_digests(make_config(threads=threads, prefetch=threads), words, range(8), steps=40) == reference


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
@pytest.mark.parametrize("interleaved", [False, True])
def test_hosts_do_not_matter(words, reference, hosts, interleaved):
  for host in range(hosts):
    rows = list(range(host, 8, hosts)) if interleaved else list(range(8 // hosts * host, 8 // hosts * (host + 1)))
    found = global_digests(make_config(threads=1 + host % 3), words, rows)
    assert found == [[step[r] for r in rows] for step in reference[:6]]


@pytest.mark.parametrize("start", [1, 7, 16, 33])
def test_a_resumed_stream_goes_on_where_it_was(words, reference, start):
  assert global_digests(make_config(threads=3), words, range(8), start, 5) == reference[start : start + 5]
  assert global_digests(make_config(threads=1), words, [2, 5], start, 5) == [
    [step[2], step[5]] for step in reference[start : start + 5]
  ]


def test_parts_of_a_large_batch_are_in_order(words):
  config = make_config(batch=100, threads=4)
  whole = global_digests(config, words, range(100), steps=2)
  for r in (0, 31, 32, 50, 66, 67, 99):
    assert [s[0] for s in global_digests(config, words, [r], steps=2)] == [s[r] for s in whole]


def test_rand_augment_keeps_crops_and_texts_and_does_not_depend_on_threads_hosts_and_restarts(words, reference):
  def found(rows, start, steps, **settings):
    return global_digests(make_config(rand_augment=(2, 5), **settings), words, rows, start, steps)

  whole = found(range(8), 0, 10, threads=1)
  assert found([1, 2, 6], 3, 5, threads=3) == [[step[r] for r in (1, 2, 6)] for step in whole[3:8]]
  pairs = list(zip(flat(whole), flat(reference[:10]), strict=True))
  # Magnitude 5 leaves a picture alone in 0.65^2 = 42 %: then all of it is as without.
  assert 0.3 < np.mean([a == b for a, b in pairs]) < 0.6
  one = make_config(batch=1, weights={"web": 1.0}, rand_augment=(1, 9))
  taken = take(pipeline.train_batches(one, {"web": Records("web", 1)}, words, [0]), 20)
  assert len({b["image"].tobytes() for b, _ in taken}) > 10 and {b["image"].shape for b, _ in taken} == {(1, 16, 16, 3)}


PROGRAM = """
import json, sys
from support.pipeline import *
count, host, start = map(int, sys.argv[1:])
rows = list(range(8 // count * host, 8 // count * (host + 1)))
print(json.dumps(global_digests(make_config(threads=1 + host), trained_words(), rows, start, 4)))
"""


@pytest.mark.slow
def test_two_processes_see_the_halves_of_what_one_sees(reference):
  running = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, "2", str(host), "2"], stdout=subprocess.PIPE, text=True, env=environment()
    )
    for host in range(2)
  ]
  halves = [json.loads(p.communicate(timeout=120)[0]) for p in running]
  assert [a + b for a, b in zip(*halves, strict=True)] == reference[2:6]


def used(source, config, words, steps):
  """Which records a stream of one source shows: their numbers, from the first channel of the pictures."""
  (name,) = config.data.sources
  taken = take(pipeline.train_batches(config, {name: source}, words, range(config.data.batch)), steps)
  return np.concatenate([b["image"][:, 0, 0, 0] for b, _ in taken])


def test_every_epoch_shows_every_record_once_in_another_order(words):
  config = make_config(batch=10, weights={"web": 1.0}, crop=(1.0, 1.0), flip=False)
  numbers = used(Records("web", 50), config, words, 20).reshape(4, 50)
  for epoch in numbers:
    assert sorted(epoch.tolist()) == list(range(50))
  assert len({tuple(e) for e in numbers.tolist()} | {tuple(range(50))}) == 5


def test_epochs_draw_other_crops_and_texts(words):
  config = make_config(batch=1, weights={"web": 1.0})
  taken = take(pipeline.train_batches(config, {"web": Records("web", 1)}, words, [0]), 20)
  assert len({b["image"].tobytes() for b, _ in taken}) > 10
  assert {words.decode(b["text"][0]) for b, _ in taken} == {"web 0", "web number 0", "the 0 of web"}


@pytest.mark.parametrize(
  ("weights", "share"), [((1.0, 1.0), 8), ((3.0, 1.0), 12), ((0.25, 0.75), 4), ((0.9, 0.1), 14.4)]
)
def test_mixture_holds_within_each_batch(words, weights, share):
  config = make_config(batch=16, weights=dict(zip(("web", "label"), weights, strict=True)))
  sources = {"web": Records("web", 60), "label": Records("label", 60)}
  taken = take(pipeline.train_batches(config, sources, words, range(16)), 10)
  counts = [sum("web" in words.decode(ids) for ids in b["text"]) for b, _ in taken]
  assert all(abs(c - share) <= (0 if share == int(share) else 1) for c in counts)
  assert abs(np.mean(counts) - share) < 0.2


def test_without_weights_every_example_comes_as_often_as_another(words):
  config = make_config(batch=16, weights={"web": 0.0, "label": 0.0})
  sources = {"web": Records("web", 120), "label": Records("label", 40)}
  taken = take(pipeline.train_batches(config, sources, words, range(16)), 10)
  assert [sum("web" in words.decode(ids) for ids in b["text"]) for b, _ in taken] == [12] * 10


def test_a_source_keeps_its_order_beside_others(words):
  web, label = Records("web", 60), Records("label", 60)
  alone = pipeline.train_batches(make_config(weights={"web": 1.0}), {"web": web}, words, range(8))
  mixed = pipeline.train_batches(make_config(), {"label": label, "web": web}, words, range(8))
  alone, mixed = flat(digests(take(alone, 3))), flat(digests(take(mixed, 6)))
  assert [d for d in mixed if d in alone] == alone


def test_unusable_records_are_blank_and_say_why(words):
  config = make_config(batch=20, weights={"web": 1.0}, background="#0a141e")
  bad = {2: "unreadable", 5: "truncated", 11: "empty"}
  ((batch, problems),) = take(pipeline.train_batches(config, {"web": Records("web", 20, bad)}, words, range(20)), 1)
  blank = batch["weight"] == 0
  assert blank.sum() == 3 and set(batch["weight"].tolist()) == {0.0, 1.0}
  assert (batch["image"][blank] == (10, 20, 30)).all() and (batch["text"][blank] == sentencepiece.PAD).all()
  assert (batch["text"][~blank, 0] == sentencepiece.BOS).all()
  assert sorted(p.split(":")[0] for p in problems) == ["web", "web web-11", "web web-5"]
  assert any("record 2 is cut off" in p for p in problems) and any("web-11: no caption" in p for p in problems)


class Labels(Records):
  """Record i is of class i % classes, under two names in either order."""

  classes = 1000

  def __getitem__(self, i):
    names = f"web {i % self.classes}", f"number {i % self.classes % 10}"
    texts = tuple(Text(name, "label") for name in (names if i % 2 else names[::-1]))
    return dataclasses.replace(super().__getitem__(i), texts=texts, label=i % self.classes)


@pytest.mark.slow
def test_equal_labels_are_equal_whatever_prompt_and_order_say(words):
  config, rule = make_config(batch=2000), settings.Source(text="labels", prompts=CLIP_IMAGENET)
  config = dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, sources={"web": rule}),
    model=dataclasses.replace(config.model, text=settings.TextDecoder(length=128)),
  )
  ((batch, problems),) = take(pipeline.train_batches(config, {"web": Labels("web", 2000)}, words, range(2000)), 1)
  assert not problems and len(CLIP_IMAGENET) == 80
  said = [words.decode(ids) for ids in batch["text"]]
  names = np.array([int(re.search(r"web (\d+)", text)[1]) for text in said])
  equal = (batch["hashes"][:, None] == batch["hashes"]).all(-1)
  np.testing.assert_array_equal(equal, names[:, None] == names)
  assert equal.sum() == 2 * 2000  # each of 1,000 classes twice
  assert 2000 - len(set(said)) < 50  # by their words alone few of the 1,000 pairs are


def test_texts_without_labels_are_equal_by_their_words(words):
  """Not by what they leave unknown: these have no piece in common with the tokenizer's."""
  cat, dog = "\u732b", "\u72ac"
  said = ["the 1 of web", "the  1 of\nweb", "the 2 of web", cat, cat, f"{dog} {cat}", f"the {cat}", f"the {dog}"]
  rng = np.random.default_rng(0)
  found = [tuple(texts.equality((), words.encode(text, LENGTH), words, rng)) for text in said]
  assert found[0] == found[1] and len(set(found)) == len(found) - 2
  assert found[6] == found[7]  # "the" and something: the model sees the same


def test_the_prompt_is_in_front_of_what_is_trained(words):
  plain, prompted = (
    take(
      pipeline.train_batches(make_config(40, weights={"label": 1.0}, prompt=p), open_sources(), words, range(40)), 1
    )[0][0]
    for p in ("", "the ")
  )
  assert plain["weight"].sum() == 39  # one has no text: it gets no prompt
  for text, longer, weight in zip(plain["text"], prompted["text"], plain["weight"], strict=True):
    assert words.decode(longer) == ("the " + words.decode(text) if weight else "")


def test_further_texts_change_nothing_else(words):
  """Each text once before any comes again; the rest of the batch is as without, whatever the rows and the start."""
  config = make_config(batch=40, prompt="the ", rand_augment=(1, 5))
  more = dataclasses.replace(config, contrastive=settings.Contrastive(texts=5))

  def batches(config, rows, start, steps):
    return [b for b, _ in take(pipeline.train_batches(config, open_sources(), words, rows, start), steps)]

  found, without = batches(more, range(40), 0, 3), batches(config, range(40), 0, 3)
  for batch, one in zip(found, without, strict=True):
    assert all(np.array_equal(batch[name], one[name]) for name in one)
    assert batch["more_texts"].shape == (40, 4, LENGTH) and batch["more_texts"].dtype == np.int32
    assert batch["more_hashes"].shape == (40, 4, 2) and batch["more_hashes"].dtype == np.uint32
    for text, others, hashes, weight in zip(*(batch[n] for n in ("text", *MORE, "weight")), strict=True):
      if not weight:
        assert not others.any() and not hashes.any()
        continue
      first, second = (text, *others[:2]), others[2:]
      assert len({words.decode(ids) for ids in first}) == 3 and len({words.decode(ids) for ids in second}) == 2
      assert {words.decode(ids) for ids in second} < {words.decode(ids) for ids in first}
      assert all(words.decode(ids).startswith("the ") for ids in others)
      plain = [words.encode(words.decode(ids).removeprefix("the "), LENGTH) for ids in others]
      expected = [texts.equality((), ids, words, np.random.default_rng(0)) for ids in plain]
      assert np.array_equal(hashes, expected)
  assert any((batch["weight"] == 0).any() for batch in found)
  assert not np.array_equal(found[0]["more_texts"], found[1]["more_texts"])
  for part, whole in zip(batches(more, [3, 12], 1, 2), found[1:], strict=True):
    assert all(np.array_equal(part[name], whole[name][[3, 12]]) for name in whole)


def test_sources_are_judged_when_they_are_opened(words, monkeypatch):
  with pytest.raises(ValueError, match=r"config\.data\.sources is empty"):
    pipeline.open_sources(settings.Config())
  with pytest.raises(FileNotFoundError, match=r"config\.data\.sources\.web: source path"):
    pipeline.open_sources(make_config(weights={"web": 1.0}))
  monkeypatch.setattr(pipeline, "open_source", lambda *_: Records("web", 0))
  with pytest.raises(ValueError, match=r"config\.data\.sources\.web holds no records"):
    pipeline.open_sources(make_config(weights={"web": 1.0}))
  with pytest.raises(ValueError, match="none, or more than there are"):
    pipeline.train_batches(make_config(), open_sources(), words, [7, 8])


def test_closing_a_stream_stops_its_threads(words):
  before = set(threading.enumerate())
  take(pipeline.train_batches(make_config(threads=4), open_sources(), words, range(8)), 2)
  for _ in range(1200):
    if set(threading.enumerate()) <= before:
      return
    time.sleep(0.05)
  raise AssertionError(f"still running: {set(threading.enumerate()) - before}")


def test_rows_of_a_sharding():
  mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
  for spec in (P(("data", "fsdp")), P("data"), P()):
    np.testing.assert_array_equal(pipeline.rows_of(NamedSharding(mesh, spec), 16), np.arange(16))

  class OneHost:
    def addressable_devices_indices_map(self, shape):
      assert shape == (16,)
      return {"a": (slice(12, 16),), "b": (slice(4, 8),), "c": (slice(4, 8),)}

  np.testing.assert_array_equal(pipeline.rows_of(OneHost(), 16), [4, 5, 6, 7, 12, 13, 14, 15])


def evaluate(config, source, wants, words, rows=None, batch=8):
  rows = list(range(batch)) if rows is None else rows
  return list(pipeline.eval_batches(config, source, wants, words, rows, batch))


def test_evaluation_goes_through_a_source_once_in_its_order(words):
  source = Records("web", 21, labels=("a", "b", "c"))
  taken = evaluate(make_config(), source, CAPTIONS, words)
  assert {k: (v.shape, v.dtype.name) for k, v in taken[0][0].items()} == {
    "image": ((8, SIZE, SIZE, 3), "uint8"),
    "text": ((8, 1, LENGTH), "int32"),
    "text_weight": ((8, 1), "float32"),
    "label": ((8,), "int32"),
    "weight": ((8,), "float32"),
  }
  whole = {k: np.concatenate([b[k] for b, _ in taken]) for k in taken[0][0]}
  assert whole["weight"].tolist() == [1] * 21 + [0] * 3 and whole["text_weight"][:, 0].tolist() == [1] * 21 + [0] * 3
  assert whole["label"].tolist() == [i % 3 for i in range(21)] + [-1] * 3
  assert whole["image"][:21, 0, 0, 0].tolist() == list(range(21)) and (whole["image"][21:] == 255).all()
  assert [words.decode(t[0]) for t in whole["text"][:21]] == [f"web {i}" for i in range(21)]
  assert (whole["text"][21:] == sentencepiece.PAD).all()
  again = evaluate(make_config(threads=1, seed=5), source, CAPTIONS, words)
  assert all(np.array_equal(a[k], b[k]) for (a, _), (b, _) in zip(taken, again, strict=True) for k in a)


def test_hosts_share_an_evaluation(words):
  source = Records("web", 21)
  whole = evaluate(make_config(), source, CAPTIONS, words)
  for rows in ([0, 1, 2, 3], [4, 5, 6, 7]):
    part = evaluate(make_config(), source, CAPTIONS, words, rows)
    assert len(part) == len(whole) == 3  # also where one host has nothing but padding left
    assert all(np.array_equal(a[k][rows], b[k]) for (a, _), (b, _) in zip(whole, part, strict=True) for k in a)


def test_an_evaluation_may_want_several_texts_an_image(words):
  ((batch, _),) = evaluate(make_config(), Records("web", 2), CAPTIONS._replace(most=5), words)
  assert batch["text"].shape == (8, 5, LENGTH)
  assert batch["text_weight"][:3].tolist() == [[1, 1, 1, 0, 0]] * 2 + [[0] * 5]
  assert [words.decode(t) for t in batch["text"][1]] == ["web 1", "web number 1", "the 1 of web", "", ""]
  ((batch, _),) = evaluate(make_config(), Records("web", 2), CAPTIONS._replace(most=2), words)
  assert batch["text_weight"].tolist() == [[1, 1]] * 2 + [[0, 0]] * 6


def test_evaluation_passes_over_what_it_cannot_use(words):
  def third(record):
    if record.label < 2:
      raise BadRecord("not the third")
    return ()

  bad = {1: "unreadable", 2: "truncated", 4: "empty"}

  def weights(wants, labels):
    ((batch, problems),) = evaluate(make_config(), Records("web", 6, bad, labels), wants, words)
    return batch["weight"].tolist(), len(problems), batch["text_weight"][:, 0].tolist()

  assert weights(CAPTIONS, ()) == ([1, 0, 0, 1, 0, 1, 0, 0], 3, [1, 0, 0, 1, 0, 1, 0, 0])
  assert weights(pipeline.Wants(lambda _: ()), ()) == ([1, 0, 0, 1, 1, 1, 0, 0], 2, [0] * 8)
  assert weights(pipeline.Wants(third), ("a", "b", "c")) == ([0] * 5 + [1, 0, 0], 5, [0] * 8)
  assert evaluate(make_config(), Records("web", 0), CAPTIONS, words) == []


def test_stream_through_a_device_feed(words, reference):
  config = make_config()
  stream = pipeline.train_batches(config, open_sources(), words, range(8))
  with feed.DeviceFeed(stream, jax.device_put) as batches:
    taken = [next(batches)[:2] for _ in range(4)]
  assert digests([(jax.device_get(b), p) for b, p in taken]) == reference[:4]
