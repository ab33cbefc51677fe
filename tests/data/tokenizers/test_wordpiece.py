"""BLIP's tokenizer: the ids of transformers', from any of the files in which BERT's pieces come, or trained here."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coca import config as settings
from coca.data import texts
from coca.data.records import Record, Text
from coca.data.tokenizers import sentencepiece, wordpiece
from coca.data.tokenizers.load import load as load_tokenizer
from coca.storage import workdir
from coca.training.begin import begin

GOLDEN = Path(__file__).parent / "golden" / "wordpiece"
CASES = json.loads((GOLDEN / "cases.json").read_text())
VOCAB = CASES["special"]["vocab"]
SMALL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "##s"]


def sentences(n, seed=0):
  """Made-up words, and so many ties among their counts."""
  draw = random.Random(seed)
  words = [
    "".join(draw.choices(["ba", "ke", "lo", "mi", "sen", "dor", "qua", "ing", "er", "\u00e9l"], k=draw.randint(1, 4)))
    for _ in range(300)
  ]
  return [" ".join(draw.choices(words, k=8)).capitalize() + "." for _ in range(n)]


@pytest.fixture(scope="module")
def blip():
  return wordpiece.find(GOLDEN, VOCAB)


@pytest.fixture(scope="module")
def trained():
  return wordpiece.train(sentences(500), 300)


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda c: ascii(c["text"])[:20])
def test_ids_are_those_of_transformers(blip, case):
  ids = blip.encode(case["text"], CASES["length"])
  assert ids.dtype == np.int32
  assert ids.tolist() == case["ids"]
  words = " ".join(wordpiece.clean(case["text"]).split(" ")[:50])  # as many as BLIP keeps
  assert blip.decode(blip.encode(words, 300)) == case["decoded"]


def test_special_ids(blip):
  assert {name: getattr(blip, name) for name in CASES["special"]} == CASES["special"]
  assert blip.encode("", 4).tolist() == [blip.bos, blip.eos, 0, 0]
  long = blip.encode("cat " * 50, 8)
  assert long[0] == blip.bos and long[-1] == blip.eos and len(long) == 8
  injected = blip.encode("a [SEP] [DEC] [ENC] [CLS] [PAD] b", 60)
  assert [(injected == i).sum() for i in (blip.eos, blip.bos, blip.enc, blip.cls)] == [1, 1, 0, 0]


def test_cut_and_unknown_texts(blip):
  whole = blip.encode("cat cat cat", 5)
  assert blip.encode("cat cat cat", 4, ends=False).tolist() == whole[:4].tolist() and whole[3] != blip.eos
  assert blip.encode("cat cat cat", 5, ends=False).tolist() == whole.tolist()
  rows = np.stack([blip.encode(text, 6) for text in ("\ua66e", "a \ua66e", "cat")])
  found = texts.all_unknown(blip, rows)
  assert found.tolist() == [True, False, False]


def test_berts_own_list_gives_blips_ids():
  bert = wordpiece.WordPiece([*SMALL, *(f"[unused{i}]" for i in range(30_522 - len(SMALL)))])
  assert (bert.bos, bert.enc, bert.vocab) == (30_522, 30_523, 30_524)


def test_cleaning():
  assert wordpiece.clean(' A "red"  cat: (on #1)*; ~the \n mat!!  ') == "a red cat on 1 the mat"
  assert wordpiece.clean("it's a red-hot cat, isn't it?") == "it's a red-hot cat, isn't it?"
  assert wordpiece.clean("w " * 70) == " ".join(["w"] * 70)  # which the length in tokens cuts, with no [SEP] to learn


def test_decode_takes_what_a_model_may_emit(blip):
  ids = blip.encode("the cat's telephone", 24).tolist()
  end = ids.index(blip.eos)
  noisy = [*ids[:2], 0, blip.cls, blip.enc, blip.vocab, 10**6, -1, *ids[2:end], blip.eos, *ids[1:end]]
  assert blip.decode(np.array(noisy)) == blip.decode(ids[:end]) == "the cat ' s telephone"
  assert blip.decode([]) == blip.decode([blip.bos, blip.eos]) == ""


def test_every_source_gives_the_same_tokenizer(blip, tmp_path):
  shutil.copy(GOLDEN / "tokenizer.json", tmp_path)
  path = tmp_path / "vocab.txt"
  assert wordpiece.find(tmp_path, VOCAB).model == load_tokenizer(tmp_path / "tokenizer.json").model == blip.model
  path.write_bytes((GOLDEN / "vocab.txt").read_bytes().replace(b"\n", b"\r\n"))
  assert wordpiece.find(path, VOCAB).model == blip.model
  (tmp_path / "tokenizer.json").unlink()
  blip.save(path)
  again = load_tokenizer(path, blip.sha256)
  assert [p.name for p in tmp_path.iterdir()] == [blip.file]
  assert all(getattr(again, name) == getattr(blip, name) for name in ("model", "file", "bos", "eos", "cls", "enc"))
  with pytest.raises(ValueError, match="is not the one this run was started with"):
    load_tokenizer(path, "0" * 64)


def test_files_that_do_not_fit(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"it takes vocab\.txt or tokenizer\.json of uncased BERT"):
    wordpiece.find(tmp_path, VOCAB)
  with pytest.raises(ValueError, match=f"vocab.txt has {VOCAB} tokens, the model only {VOCAB - 1}"):
    wordpiece.find(GOLDEN, VOCAB - 1)


@pytest.mark.parametrize(
  "pieces, message",
  [
    (["[UNK]", "[PAD]", *SMALL[2:]], r"the id of \[PAD\] is 1; it has to be 0"),
    (["a", "b"], r"it has no \[PAD\], \[UNK\], \[CLS\], \[SEP\]"),
    ([*SMALL, "cat"], "the piece 'cat' is there twice"),
    ([*SMALL, "", "dog"], "the piece with id 7 is empty"),
  ],
)
def test_a_list_that_is_none_of_bert(pieces, message, tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
  for load in (load_tokenizer, lambda path: wordpiece.find(path, 100)):
    with pytest.raises(ValueError, match=rf"vocab\.txt: .*{message}"):
      load(tmp_path / "vocab.txt")


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"\xff\xfe[PAD]",
    b"{",
    b"{}",
    b'{"model": [], "normalizer": null}',
    b'{"model":' + b"[" * 100_000,
    b'{"model": {"vocab": {"a": "b"}}, "normalizer": {}}',
  ],
)
def test_damaged_files(content, tmp_path):
  (tmp_path / "vocab.txt").write_bytes(content)
  with pytest.raises(ValueError, match=r"vocab\.txt: not "):
    wordpiece.find(tmp_path, VOCAB)


def test_a_piece_that_is_no_unicode(tmp_path):
  saved = json.loads((GOLDEN / "tokenizer.json").read_text())
  saved["model"]["vocab"]["\ud800"] = VOCAB
  (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
  with pytest.raises(ValueError, match=r"tokenizer\.json: .*surrogates not allowed"):
    wordpiece.find(tmp_path, VOCAB + 1)


@pytest.mark.parametrize(
  "part, name, value, message",
  [
    ("normalizer", "lowercase", False, "lowercase is False, not True"),
    ("normalizer", "strip_accents", False, "it keeps accents"),
    ("normalizer", "type", "NFC", "type is 'NFC'"),
    ("model", "max_input_chars_per_word", 200, "max_input_chars_per_word is 200, not 100"),
    ("model", "vocab", {"[PAD]": 0, "a": 7}, "ids are missing"),
  ],
)
def test_another_kind_of_bert_is_refused(part, name, value, message, tmp_path):
  saved = json.loads((GOLDEN / "tokenizer.json").read_text())
  saved[part][name] = value
  (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
  with pytest.raises(ValueError, match=rf"tokenizer\.json: not uncased BERT's tokenizer: {message}"):
    load_tokenizer(tmp_path / "tokenizer.json")


def test_a_trained_vocabulary(trained):
  pieces = trained.model.decode().split("\n")[:-1]
  assert pieces[:7] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
  assert (trained.bos, trained.eos, trained.cls, trained.enc, trained.vocab) == (5, 3, 2, 6, 300)
  assert max(map(len, pieces[7:])) > 6  # words, not letters alone
  for text in sentences(20):
    plain = wordpiece.clean(text).replace("\u00e9", "e")
    ids = trained.encode(text, 64)
    assert 1 not in ids and trained.decode(ids) == plain
    assert (ids > 6).sum() < 0.6 * len(plain)
  assert trained.encode("\u732b", 4).tolist() == [5, 1, 3, 0]


@pytest.mark.slow
def test_training_is_reproducible_to_the_byte_also_in_other_processes(trained):
  assert wordpiece.train(reversed(sentences(500)), 300).model == trained.model
  assert wordpiece.train(sentences(500, seed=1), 300).model != trained.model
  program = (
    "import json, sys; from coca.data.tokenizers import wordpiece; "
    "print(wordpiece.train(json.load(sys.stdin), 300).sha256)"
  )
  for i in (1, 2, 5):
    found = subprocess.run(
      [sys.executable, "-c", program],
      input=json.dumps(sentences(500)),
      capture_output=True,
      text=True,
      check=True,
      cwd=Path(__file__).parents[3],
      env=os.environ | {"PYTHONHASHSEED": str(i), "RAYON_NUM_THREADS": str(i)},
    )
    assert (found.stdout.strip(), found.stderr) == (trained.sha256, "")


def test_rare_characters_and_small_vocabularies():
  rare = [*sentences(100), *(chr(0x4E00 + i) for i in range(500))]
  assert wordpiece.train(rare, 120).vocab <= 120
  few = wordpiece.train(["a cat", "a dog", "x" * 200], 30_522)
  assert few.decode(few.encode("A dog!", 16)) == "a dog" and few.vocab < 40
  for too_few in (3, 10):  # ids in all, and for the characters of even one word
    with pytest.raises(ValueError, match=rf"config\.model\.text\.vocab {too_few} does not do for these texts"):
      wordpiece.train(["quadoring"] * 3, too_few)
  for nothing in ([], ["", " \n", "!!"]):
    with pytest.raises(ValueError, match="no texts to train the tokenizer on"):
      wordpiece.train(nothing, 100)


class Records:
  """A source in memory."""

  name, problems, label_names = "memory", (), ()

  def __len__(self):
    return 200

  def __getitem__(self, i):
    return Record(str(i), b"", (Text(f"{sentences(1, seed=i)[0]} number {i}"),))


@pytest.mark.parametrize("kind, file", [("blip", "vocab.txt"), ("coca", "tokenizer.model")])
def test_the_kind_of_model_decides_what_is_trained(kind, file, tmp_path):
  config = settings.Config(
    model=settings.Model(
      kind=kind,
      text=settings.TextDecoder(vocab=200),
      med=settings.Med(cls=2, encode=6),
      embed_dim=8,
      image=settings.ImageEncoder(class_token=True),
    ),
    data=settings.Data(sources={"memory": settings.Source()}),
  )
  found, _ = begin(config, {"memory": Records()}, tmp_path)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", found.file] and found.file == file
  assert workdir.read_workdir(tmp_path)[1].sha256 == found.sha256


def test_berts_list_for_a_run_is_kept_with_blips_tokens(tmp_path):
  (tmp_path / "bert.txt").write_text("\n".join(SMALL) + "\n")
  config = settings.Config(
    model=settings.Model(kind="blip", med=settings.Med(cls=2, encode=8)),
    data=settings.Data(tokenizer=str(tmp_path / "bert.txt")),
  )
  found, _ = begin(config, {}, tmp_path / "run")
  assert (found.bos, found.enc) == (7, 8)
  assert (tmp_path / "run" / "vocab.txt").read_text().splitlines() == [*SMALL, "[DEC]", "[ENC]"]


def test_a_tokenizer_that_does_not_fit_the_settings(tmp_path):
  """Named with the numbers that would: of [CLS] and [ENC], and of the prompt's tokens."""
  (tmp_path / "bert.txt").write_text("\n".join(SMALL) + "\n")
  sentencepiece.train(["some words to learn"] * 9, 40).save(tmp_path / "words.model")

  def find(file, prompt_tokens=0, **med):
    config = settings.Config(
      model=settings.Model(kind="blip", med=settings.Med(**med)),
      captioning=settings.Captioning(prompt_tokens=prompt_tokens),
      data=settings.Data(tokenizer=str(tmp_path / file), prompt=SMALL[5] + " "),
    )
    begin(config, {}, tmp_path / "run" / f"{len(med)}{prompt_tokens}{med.get('encode')}")

  fits = {"cls": 2, "encode": 8}
  with pytest.raises(ValueError, match=r"med\.cls 101 and encode 30523 are not those of .*: set them to 2 and 8"):
    find("bert.txt")
  with pytest.raises(ValueError, match=r"prompt_tokens is 3, and config\.data\.prompt .* has 1 tokens in .*: set it"):
    find("bert.txt", prompt_tokens=3, **fits)
  with pytest.raises(ValueError, match=r"a model of kind 'blip' takes BERT's vocab\.txt or tokenizer\.json"):
    find("words.model", **fits)
  find("bert.txt", prompt_tokens=1, **fits)
  find("bert.txt", prompt_tokens=1, cls=2, encode=2)  # as transformers has it
