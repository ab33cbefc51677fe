"""Evaluators against float64 formulas, over a model whose embeddings are known."""

import io
import typing
import warnings

import numpy as np
import pytest
from PIL import Image

from coca.config import Config, Data, Eval, Source
from coca.data.pipeline import Wants
from coca.data.records import BadRecord, Record, Text
from coca.data.scenes.judge import judge
from coca.data.scenes.scene import Scene, Thing
from coca.data.tokenizers.sentencepiece import train
from coca.decoding.settings import Decoding
from coca.evals import build, caption_metrics, captions, contact_sheet, fonts, ranking, retrieval, suite, zero_shot
from coca.evals.contact_sheet import RIGHT, UNTOLD, WRONG
from coca.evals.evaluator import Evaluator
from coca.evals.sheet_cells import Cell, attention_cells, held_out_cells, retrieval_cells
from coca.evals.stream import Stream
from support.evals import CONFIG, NAMES, FakeForward, Source_, embeddings, green, png, rank64, recalls64, record, unit


@pytest.fixture(scope="module")
def tokenizer():
  return train([f"a photo of {name}" for name in NAMES] * 4, 100)


# --- Ranks ---


def test_ranks_do_not_depend_on_the_block():
  queries, candidates = embeddings(0, 37, 8), embeddings(1, 23, 8)
  right = np.random.default_rng(2).random((37, 23)) < 0.1
  right[:, 0] |= ~right.any(1)
  want = rank64(queries.astype(np.float64) @ candidates.T.astype(np.float64), right)
  for block in (1, 10, 1000):
    assert (ranking.ranks(queries, candidates, lambda a, b: right[a:b], block) == want).all()
  assert want.max() > 5  # the test distinguishes ranks


def test_ranks_of_ties_nan_and_queries_without_a_right_answer():
  queries = np.array([[1, 0], [1, 0], [np.nan, 0], [1, 0]], np.float32)
  candidates = np.array([[0.6, 0.8], [0.6, -0.8], [-1, 0], [1, 0]], np.float32)
  right = np.array([[1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
  found = ranking.ranks(queries, candidates, lambda a, b: right[a:b])
  assert found.tolist() == [2, 0, 3, 4]  # the tie and the better one; nothing; all others; all


# --- Zero-shot ---


def zero_shot_case(tokenizer, templates, n=43, seed=0):
  """Pictures with labels, some without one, one broken, two classes of one name (2 and the last)."""
  rng = np.random.default_rng(seed)
  names = (*NAMES, NAMES[2])
  labels = rng.integers(0, len(names), n)
  labels[[3, 11]] = -1
  records = [record(i, label=int(k)) for i, k in enumerate(labels)]
  records[5], labels[5] = None, -1
  table = {
    template.replace("{}", name): embeddings([seed, i, j], 6)
    for i, name in enumerate(NAMES)
    for j, template in enumerate(templates)
  }
  forward = FakeForward(tokenizer, embeddings([seed, 99], n, 6), table)
  return Source_(records, names), labels, forward


def test_zero_shot_is_the_float64_formula(tokenizer):
  templates = ("{}", "a photo of {}")
  source, labels, forward = zero_shot_case(tokenizer, templates)
  evaluator = zero_shot.ZeroShot(CONFIG, Eval(templates=templates, batch=16), forward, tokenizer, source)
  found = dict(evaluator.run(None))

  table = forward.text_table
  names = source.label_names
  classes = np.array([np.mean([table[t.replace("{}", n)].astype(np.float64) for t in templates], 0) for n in names])
  classes /= np.linalg.norm(classes, axis=1, keepdims=True)
  kept = np.flatnonzero(labels >= 0)
  right = labels[kept, None] == np.arange(len(names))
  rank = rank64(forward.image_table[kept].astype(np.float64) @ classes.T, right, [*range(len(NAMES)), 2])
  recall = np.mean([np.mean(rank[labels[kept] == c] < 1) for c in np.unique(labels[kept])])
  want = {"top1": np.mean(rank < 1), "top5": np.mean(rank < 5), "mean_per_class_recall": recall, "examples": 40}
  assert found == pytest.approx(want, rel=1e-12)
  assert 0 < found["top1"] < found["top5"] < 1
  assert {shape[0] for _, shape in forward.calls} == {16}  # every call is a whole batch, on every host
  np.testing.assert_allclose(evaluator.classes(None), classes, atol=1e-6)


def test_classes_of_one_name_are_two_and_the_first_is_taken(tokenizer):
  """Pictures that are all recognised: of ten classes two have one name, so the second of them is never found first."""
  names = (*NAMES, "a photo", NAMES[3])
  table = dict(zip(names, np.eye(9, dtype=np.float32), strict=False))
  records = [record(i, label=i % 10) for i in range(50)]
  images = np.stack([table[names[i % 10]] for i in range(50)])
  evaluator = zero_shot.ZeroShot(
    CONFIG, Eval(), FakeForward(tokenizer, images, table), tokenizer, Source_(records, names)
  )
  assert evaluator.names == names and len(evaluator.classes(None)) == 10
  published = np.mean((images @ np.stack([table[n] for n in names]).T).argmax(1) == np.arange(50) % 10)
  want = {"top1": published, "top5": 0.9 + 0.1, "mean_per_class_recall": 0.9, "examples": 50}
  assert dict(evaluator.run(None)) == pytest.approx(want) and published == 0.9


@pytest.mark.parametrize("constant", [1.0, np.nan])
def test_zero_shot_of_constant_embeddings_is_not_above_chance(tokenizer, constant):
  source, _, forward = zero_shot_case(tokenizer, ("{}",))
  forward.image_table = np.full_like(forward.image_table, constant) / np.float32(np.sqrt(6))
  forward.text_table = dict.fromkeys(forward.text_table, forward.image_table[0])
  found = dict(zero_shot.ZeroShot(CONFIG, Eval(batch=16), forward, tokenizer, source).run(None))
  assert found["top1"] == found["top5"] == 0


def test_zero_shot_takes_first_texts_where_a_source_has_no_label_names(tokenizer):
  records = [record(i, NAMES[i % 3], "some other text") for i in range(12)] + [None]
  table = dict(zip(NAMES[:3], np.eye(3, dtype=np.float32), strict=True))
  images = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0, 1, 2, 1, 1, 1]]  # the last three: one of them right
  forward = FakeForward(tokenizer, images, table)
  evaluator = zero_shot.ZeroShot(CONFIG, Eval(), forward, tokenizer, Source_(records))
  assert evaluator.names == NAMES[:3]
  found = dict(evaluator.run(None))
  assert (found["top1"], found["top5"], found["examples"]) == (10 / 12, 1, 12)


def test_zero_shot_limit_is_spread_over_the_source(tokenizer):
  records = [record(i, NAMES[0]) for i in range(20)]
  forward = FakeForward(tokenizer, np.ones((20, 1), np.float32), {NAMES[0]: np.ones(1, np.float32)})
  evaluator = zero_shot.ZeroShot(CONFIG, Eval(limit=4), forward, tokenizer, Source_(records))
  assert [evaluator.stream.source[i].key for i in range(len(evaluator.stream.source))] == ["0", "5", "10", "15"]
  assert dict(evaluator.run(None))["examples"] == 4


def test_pixel_baseline_names_what_the_nearest_training_picture_is_called(tokenizer):
  rng = np.random.default_rng(0)

  def noisy(pixels, noise):
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels + rng.integers(-noise, noise + 1, pixels.shape), 0, 255).astype(np.uint8)).save(
      out, "PNG"
    )
    return out.getvalue()

  drawings = rng.integers(0, 256, (8, 16, 16, 3))
  train_set = Source_([Record(n, noisy(d, 9), (Text(n),)) for n, d in zip(NAMES, drawings, strict=True)] + [None])
  tests = [
    Record(n, noisy(d, 9), (Text(n if i else "another name"),))
    for i, (n, d) in enumerate(zip(NAMES, drawings, strict=True))
  ]
  assert zero_shot.pixel_top1(Source_(tests), train_set) == 7 / 8
  evaluator = zero_shot.ZeroShot(
    CONFIG,
    Eval(pixel_neighbours="train"),
    FakeForward(tokenizer, np.ones((1, 1)), {n: np.ones(1, np.float32) for n in ("another name", *NAMES)}),
    tokenizer,
    Source_(tests),
    train_set,
  )
  assert dict(evaluator.run(None))["pixel_top1"] == 7 / 8
  evaluator.neighbours = Source_([None])  # computed once: the source is not looked at again
  assert dict(evaluator.run(None))["pixel_top1"] == 7 / 8


def test_pixel_baseline_puts_transparent_pictures_on_white():
  train_set = Source_([Record("w", png("white"), (Text("white"),)), Record("b", png("black"), (Text("black"),))])
  clear = Record("c", png((0, 0, 0, 0), "RGBA"), (Text("white"),))
  assert zero_shot.pixel_top1(Source_([clear]), train_set) == 1
  with pytest.raises(ValueError, match="no readable image"):
    zero_shot.pixel_top1(Source_([None]), train_set)


# --- Retrieval ---


@pytest.mark.parametrize("equal_texts", [False, True])
@pytest.mark.parametrize("block", [7, 1024])
def test_recalls_are_the_float64_brute_force(block, equal_texts):
  rng = np.random.default_rng(0)
  n = 60
  counts = rng.integers(0, 6, n)
  counts[4] = 0  # only a candidate
  owners = np.repeat(np.arange(n), counts)
  words = rng.integers(0, 100, len(owners))  # many are equal, within a picture and across
  texts = embeddings(1, 100, 12)[words]
  images = unit(embeddings(2, n, 12) + 0.8 * np.array([texts[owners == i].sum(0) for i in range(n)]))
  found = dict(retrieval.recalls(images, texts, words, owners, equal_texts, block))
  assert found == recalls64(images, texts, words, owners, equal_texts)
  assert 0 < found["i2t_r1"] < found["i2t_r5"] < 1 and 0 < found["t2i_r1"] < found["t2i_r5"] < 1


def test_only_a_texts_own_picture_is_right_unless_equal_texts_count():
  """1,000 pictures, a text each; 4 % have another one's caption. The reference: CLIP_benchmark's matrix of owners."""
  rng = np.random.default_rng(0)
  kind = np.arange(1000)
  kind[rng.choice(1000, 40, replace=False)] = rng.choice(1000, 40)
  texts = embeddings(1, 1000, 48)[kind]
  images = unit(texts + 1.2 * embeddings(2, 1000, 48))
  own, equal = (dict(retrieval.recalls(images, texts, kind, np.arange(1000), option)) for option in (False, True))
  scores = texts.astype(np.float64) @ images.T.astype(np.float64)
  first = scores.argmax(1)
  assert own["t2i_r1"] == np.mean(first == np.arange(1000))
  assert equal["t2i_r1"] == np.mean(kind[first] == kind)
  # Equal texts tie: each of two owners is in front of the other half the time, as in a random order.
  assert own["i2t_r1"] == np.mean(scores.T.argmax(1) == np.arange(1000))
  assert equal["i2t_r1"] == np.mean(kind[scores.T.argmax(1)] == kind)
  assert own["t2i_r1"] < equal["t2i_r1"] - 0.02 and own["i2t_r1"] < equal["i2t_r1"] - 0.02
  halved = 1 - np.mean([(kind == k).sum() > 1 for k in kind]) / 2  # were all captions found
  found = dict(retrieval.recalls(texts, texts, kind, np.arange(1000)))
  np.testing.assert_allclose(found["i2t_r1"], halved, atol=0.004)  # a few stand under three pictures
  assert found["t2i_r1"] == np.mean([(kind == k).sum() == 1 for k in kind])  # two equal pictures: a tie that counts


def test_texts_of_unknown_tokens_are_equal_to_none(tokenizer):
  names = ["red apple", "猫", "犬", "red apple", "猫 犬", "  ", "red 猫"]
  source = Source_([record(0, "red apple")])
  stream = retrieval.Retrieval(CONFIG, Eval(kind="retrieval"), FakeForward(tokenizer, None), tokenizer, source).stream
  ids = np.stack([tokenizer.encode(name, 32) for name in names])
  assert (ids[1] == ids[2]).all() and 3 in ids[1]  # as far as the tokens say
  kind = stream.kinds(ids)
  assert kind[0] == kind[3] and len(set(kind.tolist())) == 6


def test_recalls_of_constant_embeddings_are_zero():
  one = np.full((30, 4), 0.5, np.float32)
  assert set(dict(retrieval.recalls(one, one, np.arange(30), np.arange(30))).values()) == {0}


@pytest.mark.parametrize("equal_texts", [False, True])
def test_retrieval_runs_over_batches_broken_records_and_several_texts(tokenizer, equal_texts):
  rng = np.random.default_rng(0)
  captions_of = [[NAMES[k] for k in rng.choice(8, rng.integers(1, 4), replace=False)] for _ in range(21)]
  records = [record(i, *texts) for i, texts in enumerate(captions_of)]
  records[2], records[20] = None, record(20, "  ")
  forward = FakeForward(tokenizer, embeddings(3, 21, 4), dict(zip(NAMES, embeddings(4, 8, 4), strict=True)))
  settings = Eval(kind="retrieval", batch=8, texts_per_image=2, equal_texts=equal_texts)
  found = dict(retrieval.Retrieval(CONFIG, settings, forward, tokenizer, Source_(records)).run(None))

  kept = [i for i in range(21) if i not in (2, 20)]
  owners = np.array([new for new, i in enumerate(kept) for _ in captions_of[i][:2]])
  words = [text for i in kept for text in captions_of[i][:2]]
  want = recalls64(
    forward.image_table[kept], np.stack([forward.text_table[w] for w in words]), words, owners, equal_texts
  )
  assert found == want | {"examples": 19}
  assert {shape[0] for _, shape in forward.calls} == {8}


# --- Captions ---


def test_captions_weigh_tokens_and_leave_out_broken_records(tokenizer):
  records = [record(i, NAMES[i % 8] if i % 4 else "Old, OLD quince!") for i in range(19)]
  records[3] = None
  forward = FakeForward(tokenizer, None)
  evaluator = captions.Captions(CONFIG, Eval(kind="captions", batch=8), forward, tokenizer, Source_(records))
  found = dict(evaluator.run(None))
  kept = [i for i in range(19) if i != 3]
  texts = [records[i].texts[0].text for i in kept]
  tokens = np.array([(tokenizer.encode(t, 32)[1:] > 0).sum() for t in texts], np.float64)
  nll = (tokens * [1 + 0.5 * (i % 2) for i in kept]).sum() / tokens.sum()
  written = [NAMES[i % 8] for i in kept]
  np.testing.assert_allclose(found["nll"], nll, rtol=1e-6)
  np.testing.assert_allclose(found["perplexity"], np.exp(nll), rtol=1e-6)
  assert found["exact_match"] == np.mean([i % 4 > 0 for i in kept]) and found["examples"] == 18
  assert found["bleu1"] == dict(caption_metrics.scores(written, [[t] for t in texts]))["bleu1"] < 1
  assert dict(evaluator.run(None)) == found
  assert forward.decoding == Decoding()
  searching = Eval(kind="captions", batch=8, beams=3)
  assert dict(captions.Captions(CONFIG, searching, forward, tokenizer, Source_(records)).run(None)) == found
  assert forward.decoding == Decoding(strategy="beam", beams=3, length_normalisation="whole")


def test_a_match_has_the_words_of_a_reference_in_order():
  assert captions.matches("a cat", ["A dog.", "A cat."])
  assert not captions.matches("cat a", ["a cat"])
  assert not captions.matches("", ["!?"]) and captions.matches("!?", ["!?"])


# --- All together ---


def make(tokenizer, evals_, sources, config=CONFIG, **kwargs):
  config = Config(model=config.model, contrastive=config.contrastive, evals=evals_)
  return build.make_evaluators(config, FakeForward(tokenizer, None), tokenizer, sources, **kwargs)


def test_make_evaluators_says_what_is_wrong_and_where(tokenizer):
  for first in ([record(0)], []):
    with pytest.raises(ValueError, match=r"config\.evals\.x: .*no classes"):
      make(tokenizer, {"x": Eval()}, {"x": Source_(first)})


@pytest.mark.parametrize(
  ("source", "settings", "message"),
  [
    (Source_([]), Eval(kind="retrieval"), "no records"),
    (
      Source_([record(0, NAMES[0])], label_names=("n01440764", "n00000001")),
      Eval(),
      r"WordNet ids.* n00000001 is none of ImageNet's.*label.labels.txt",
    ),
    (Source_([record(0, NAMES[0])] * (zero_shot.MAX_NEIGHBOURS + 1)), Eval(pixel_neighbours="many"), "200001 records"),
    (Source_([record(0, NAMES[0])]), Eval(kind="vqa", answers="/nowhere/answers.txt"), "answers.txt' can't be read"),
  ],
)
def test_opened_sources_are_judged_before_anything_is_read(monkeypatch, source, settings, message):
  monkeypatch.setattr(type(source), "__getitem__", None)
  monkeypatch.setattr(build, "open_source", lambda *_: source)
  config = Config(evals={"x": settings}, data=Data(sources={"many": Source()}))
  with pytest.raises(ValueError, match=rf"config\.evals\.x: .*{message}"):
    build.open_sources(config)


def test_an_unknown_evaluator_is_named():
  with pytest.raises(ValueError, match="no evaluator 'y'; it has: x"):
    build.open_sources(Config(evals={"x": Eval()}), ["y"])


def test_every_kind_of_the_config_is_there():
  assert set(build.KINDS) == set(typing.get_args(typing.get_type_hints(Eval)["kind"]))
  assert set(suite.MAIN) == set(build.KINDS)


@pytest.mark.parametrize(
  ("kind", "rule", "texts"),
  [
    ("captions", "first", [[f"a photo of {NAMES[i]}" for i in (0, 6, 3)], ["a photo of old quince"]]),
    ("captions", "labels", [["a photo of the red apple"], ["a photo of the old quince"]]),
    ("retrieval", "first", [["red apple", "wild grape"], ["old quince"]]),
    ("retrieval", "labels", [["the red apple"], ["the old quince"]]),
    ("matching", "first", [["red apple"], ["old quince"]]),
    ("matching", "labels", [["the red apple"], ["the old quince"]]),
    ("zero_shot", "first", [[], []]),
  ],
)
def test_each_kind_says_which_texts_it_wants(tokenizer, kind, rule, texts):
  """Its texts, or its label names in the first prompt; what is captioned has the model's own prompt before it."""
  records = [
    Record("0", png(0), (Text("red apple", "label"), Text("wild grape"), Text("dark fig")), label=0),
    Record("1", png(1), (Text("old quince"),), label=0),
    Record("2", png(2), ()),
  ]
  source = Source(text=rule, prompts=("the {}", "{} sweet"))
  config = Config(
    model=CONFIG.model, data=Data(prompt="a photo of "), evals={"x": Eval(kind=kind, source=source, texts_per_image=2)}
  )
  made = build.make_evaluators(config, FakeForward(tokenizer, None), tokenizer, {"x": Source_(records, NAMES)})
  rows = next(iter(made["x"].stream)).rows
  found = [
    [tokenizer.decode(ids) for ids in row[weight > 0]]
    for row, weight in zip(rows["text"], rows["text_weight"], strict=True)
  ]
  assert found[:3] == [*texts, []] and rows["weight"][:3].tolist() == [1, 1, 0]


class Brightness(Evaluator):
  """An evaluator as somebody may add one: how bright the images of the second class are."""

  def __init__(self, config, settings, forward, tokenizer, source):
    self.stream = Stream(config, settings, forward, tokenizer, source, Wants(self.second))

  @staticmethod
  def check(settings, source, neighbours):
    if len(source.label_names) < 2:
      raise ValueError("there is no second class")

  @staticmethod
  def places(settings):
    return {"answers": "gs://bucket/bulb"}

  @staticmethod
  def second(record):
    if record.label != 1:
      raise BadRecord("another class")
    return [record.key]

  def run(self, params):
    yield "brightness", float(np.mean([batch.local["image"][batch.rows["weight"] > 0] for batch in self.stream]))


def test_a_new_evaluator_is_a_class_and_a_line(tokenizer, monkeypatch):
  monkeypatch.setitem(build.KINDS, "brightness", Brightness)
  config = Config(model=CONFIG.model, evals={"x": Eval(kind="brightness", source=Source(path="there"))})
  assert build.places(config) == {"config.evals.x.source.path": "there", "config.evals.x.answers": "gs://bucket/bulb"}
  records = [Record(str(n), png((n, n, n)), (), label=n % 2) for n in range(8)]
  for names, source in (((), Source_(records)), (("a", "b"), Source_(records, ("a", "b")))):
    monkeypatch.setattr(build, "open_source", lambda *_, source=source: source)
    if not names:
      with pytest.raises(ValueError, match=r"config\.evals\.x: there is no second class"):
        build.open_sources(config)
  made = build.make_evaluators(config, FakeForward(tokenizer, None), tokenizer, *build.open_sources(config))
  assert dict(build.run_all(made, None)) == {"eval/x/brightness": 4.0}


def test_run_all_prefixes_names(tokenizer):
  source = Source_([record(0, NAMES[0])])
  made = make(tokenizer, {"a": Eval(kind="captions"), "b": Eval(kind="captions")}, {"a": source, "b": source})
  names = [name for name, _ in build.run_all(made, None)]
  assert names[0] == "eval/a/nll" and names[-1] == "eval/b/examples" and len(names) == 24


# --- Pictures ---


GREY = np.full((8, 8, 3), 128, np.uint8)


def test_contact_sheet_marks_right_captions(tmp_path):
  right = Cell(GREY, ("a cat",), "A cat.", ("dog", "cow", "pig"))
  wrong = Cell(GREY, ("a cat",), "a $dog$ _^ \\frac", ("dog", "cow", "pig"))
  found = {}
  for name, cells in (("right", [right] * 7), ("wrong", [wrong] * 7), ("bare", [Cell(GREY, ("a cat",))])):
    contact_sheet.contact_sheet([contact_sheet.Band("twemoji", cells)], tmp_path / f"{name}.png", columns=3)
    found[name] = Image.open(tmp_path / f"{name}.png")
  assert found["right"].width == 660 and found["bare"].height < 400
  assert abs(found["right"].height - 938) < 2  # versions of matplotlib round differently
  assert green(found["right"]) > 0.005 and green(found["wrong"]) == green(found["bare"]) == 0
  for bands in ([], [contact_sheet.Band("twemoji", [])]):
    with pytest.raises(ValueError, match="at least one"):
      contact_sheet.contact_sheet(bands, tmp_path / "none.png")


def test_contact_sheet_colours_the_words_of_a_judged_caption(tmp_path):
  scene = Scene("beach", (Thing("dog", "noto", 0.2, 0.5, 0.38), Thing("cat", "noto", 0.7, 0.5, 0.38)))
  spans = {
    "a dog is left of a cat in the snow": [
      [("a dog", RIGHT), ("is", UNTOLD), ("left of a cat", RIGHT), ("in", WRONG)],
      [("the snow", WRONG)],
    ],
    "two dogs on the beach": [[("two", WRONG), ("dogs on the beach", RIGHT)]],
    "a dog, a dog": [[("a dog, a dog", UNTOLD)]],
    "a dog on the beach": [[("a dog on the beach", RIGHT)]],
  }
  shares = {}
  for text, wanted in spans.items():
    cell = Cell(GREY, ("a dog left of a cat",), text, judgement=judge(text, scene))
    lines = list(contact_sheet._lines(cell))
    true = [] if text == "a dog on the beach" else [([("a dog left of a cat", UNTOLD)], "normal")]
    assert lines == [(line, "bold") for line in wanted] + true
    contact_sheet.contact_sheet([contact_sheet.Band("", [cell])], tmp_path / "sheet.png")
    image = Image.open(tmp_path / "sheet.png")
    shares[text] = green(image), green(image, WRONG)
  assert [(g > 0, r > 0) for g, r in shares.values()] == [(True, True), (True, True), (False, False), (True, False)]
  assert shares["a dog on the beach"][0] > 2 * shares["two dogs on the beach"][0]  # a frame


@pytest.fixture
def kanji(tmp_path, monkeypatch):
  """A font that has U+8272 only, as if it had been installed just now."""
  from fontTools.fontBuilder import FontBuilder
  from fontTools.pens.ttGlyphPen import TTGlyphPen
  from matplotlib import font_manager

  pen = TTGlyphPen(None)
  pen.moveTo((0, 0)), pen.lineTo((0, 900)), pen.lineTo((900, 900)), pen.lineTo((900, 0)), pen.closePath()
  font = FontBuilder(1000, isTTF=True)
  font.setupGlyphOrder([".notdef", "all"])
  font.setupCharacterMap({0x8272: "all"})
  font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "all": pen.glyph()})
  font.setupHorizontalMetrics({".notdef": (1000, 0), "all": (1000, 0)})
  font.setupHorizontalHeader(ascent=900, descent=-100)
  font.setupNameTable({"familyName": "Kanji Test", "styleName": "Regular"})
  font.setupOS2(), font.setupPost()
  font.save(tmp_path / "kanji.ttf")
  own = [e for e in font_manager.fontManager.ttflist if "mpl-data" in e.fname]  # whatever else this machine has
  monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
  monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "kanji.ttf")])


def test_contact_sheet_has_a_font_for_every_script_or_says_so(tmp_path, monkeypatch, kanji):
  assert fonts.families_for(["a cat", "Ørsted"]) == (["DejaVu Sans"], "")
  assert fonts.families_for(["a 色\n\u732b"]) == (["DejaVu Sans", "Kanji Test"], "\u732b")
  titles = []
  monkeypatch.setattr(contact_sheet.Figure, "text", lambda self, x, y, text, **_: titles.append(text))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    for text in ("色", "猫"):
      bands = [contact_sheet.Band("held out", [Cell(GREY, (text,), "a cat")])]
      contact_sheet.contact_sheet(bands, tmp_path / f"{text}.png")
  assert titles[::2] == ["held out", titles[2]] and titles[-1] == "held out"
  assert titles[1].startswith("Boxes are characters that no font here has, as U+732B")


def test_write_contact_sheet_asks_the_model(tmp_path, tokenizer):
  records = [record(i, NAMES[i % 8]) for i in range(24)]
  records[8] = None
  table = dict(zip(NAMES, np.eye(8, dtype=np.float32), strict=True))
  forward = FakeForward(tokenizer, unit(np.eye(8) + 0.1 * np.roll(np.eye(8), 1, 1)), table)
  evaluator = zero_shot.ZeroShot(CONFIG, Eval(), forward, tokenizer, Source_(records))
  cells = held_out_cells(evaluator, None, 6)  # records 0, 4, 8 (broken), 12, 16, 20
  assert [cell.truth for cell in cells] == [(NAMES[i % 8],) for i in (0, 4, 12, 16, 20)]
  assert [cell.caption for cell in cells] == [cell.truth[0] for cell in cells]
  assert [cell.labels[:2] for cell in cells] == [(NAMES[i % 8], NAMES[(i + 1) % 8]) for i in (0, 4, 12, 16, 20)]
  assert [int(cell.image[0, 0, 0]) for cell in cells] == [0, 4, 12, 16, 20]
  contact_sheet.write_contact_sheet({"twemoji": evaluator}, None, tmp_path / "sheet.png", 6)
  assert green(Image.open(tmp_path / "sheet.png")) > 0.005
  contact_sheet.write_contact_sheet({}, None, tmp_path / "none.png")
  assert not (tmp_path / "none.png").exists()


class Looking(FakeForward):
  """Looks at the patch that is the image's number."""

  def attention_maps(self, params, image):
    one_hot = np.eye(4, dtype=np.float32)[self._numbers(image) % 4].reshape(-1, 2, 2)
    return one_hot, np.stack([one_hot, np.full_like(one_hot, 0.25)], 1)


def test_sheet_of_several_evaluators(tmp_path, tokenizer):
  """Captions with both maps, and both directions of retrieval, by the same images."""
  source = Source_([record(i, NAMES[i % 8]) if i != 8 else None for i in range(24)])
  table = dict(zip(NAMES, np.eye(8, dtype=np.float32), strict=True))
  images = np.eye(8)
  images[0, 3], images[4, 0] = 2, 0.9  # of a text 0, images 4 are the nearest
  forward = Looking(tokenizer, unit(images), table)
  evaluators = {
    "write": captions.Captions(CONFIG, Eval(kind="captions"), forward, tokenizer, source),
    "pairs": retrieval.Retrieval(CONFIG, Eval(kind="retrieval"), forward, tokenizer, source),
  }
  cells = held_out_cells(evaluators["write"], None, 6)
  contrastive, generative = attention_cells(cells)
  assert [c.maps[0].argmax() for c in contrastive] == [i % 4 for i in (0, 4, 12, 16, 20)]
  assert [c.maps[0].max() for c in generative] == [0.625] * 5
  assert attention_cells([Cell(GREY)]) == []

  texts, asked, searched = retrieval_cells(evaluators["pairs"], None, 3)
  assert searched == 23 and [c.truth for c in texts[::3]] == [(NAMES[0],), (NAMES[4],)]  # records 0 and 12
  assert [c.is_right for c in texts] == [False] * 4 + [True] * 2
  assert [c.image is None or c.image[0, 0, 0] % 8 for c in texts] == [True, 4, 4, True, 4, 4]
  assert len(asked) == 3 and all(c.truth[0] == NAMES[c.image[0, 0, 0] % 8] == c.labels[0] for c in asked)

  drawn = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(contact_sheet, "contact_sheet", lambda bands, path: drawn.extend(bands))
    contact_sheet.write_contact_sheet(evaluators, None, tmp_path / "sheet.png")
  assert [len(band.cells) for band in drawn] == [5, 5, 5, 12, 6]
  contact_sheet.contact_sheet(drawn, tmp_path / "sheet.png")
  assert Image.open(tmp_path / "sheet.png").width == 1320
