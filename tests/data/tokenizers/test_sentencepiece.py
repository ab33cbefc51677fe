import io
import os
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece

from coca.config import Source
from coca.config.data_checks import check_prompts
from coca.data import texts
from coca.data.records import BadRecord, Record, Text
from coca.data.tokenizers import load
from coca.data.tokenizers import sentencepiece as tokenizer
from coca.data.tokenizers.load import load as load_tokenizer
from support.processes import environment
from support.texts import Records, sentences


@pytest.fixture(scope="module")
def small():
  return tokenizer.train(sentences(500), 200)


def test_special_ids_and_padding(small):
  ids = small.encode("a red cat", 24)
  assert ids.dtype == np.int32 and ids.shape == (24,)
  end = int(np.flatnonzero(ids == tokenizer.EOS)[0])
  assert ids[0] == tokenizer.BOS and (ids[end + 1 :] == tokenizer.PAD).all()
  assert (ids[1:end] > tokenizer.UNK).all() and ids.max() < small.vocab
  assert (tokenizer.PAD, tokenizer.BOS, tokenizer.EOS, tokenizer.UNK) == (0, 1, 2, 3)


def test_decode_undoes_encode(small):
  for text in sentences(50, seed=1):
    assert small.decode(small.encode(text, 128)) == text
  assert small.decode(small.encode("  a \n red\tcat ", 32)) == "a red cat"
  assert small.decode(small.encode("\uff43at in Paris", 32)) == "cat in Paris"  # NFKC, and case is kept


def test_long_texts_end_with_eos(small):
  text = " ".join(sentences(20))
  whole, cut = small.encode(text, 2000), small.encode(text, 16)
  assert cut[-1] == tokenizer.EOS and (cut[:-1] == whole[:15]).all()
  exact = int((whole != tokenizer.PAD).sum())
  assert (small.encode(text, exact) == whole[:exact]).all()
  assert small.encode("", 3).tolist() == [tokenizer.BOS, tokenizer.EOS, tokenizer.PAD]


def test_cut_texts_without_an_end(small):
  text = " ".join(sentences(20))
  whole = small.encode(text, 2000)
  exact = len(small.tokens(text)) + 2
  assert (small.encode(text, 16, ends=False) == whole[:16]).all()  # a word more, and no EOS
  for length in (exact, exact + 1):
    assert (small.encode(text, length, ends=False) == small.encode(text, length)).all()
  assert small.encode(text, exact - 1, ends=False).tolist() == [tokenizer.BOS, *small.tokens(text)]


def test_texts_of_nothing_that_is_known(small):
  for text, unknown in (("猫", True), ("赤い 猫", True), ("a 猫", False), ("a cat", False), ("", False)):
    assert texts.all_unknown(small, small.encode(text, 8)) == unknown, text
  rows = np.stack([small.encode(text, 8) for text in ("猫", "cat")])
  assert texts.all_unknown(small, rows[None]).tolist() == [[True, False]]


def test_decode_takes_what_a_model_may_emit(small):
  ids = small.encode("a red cat", 24)
  end = int(np.flatnonzero(ids == tokenizer.EOS)[0])
  noisy = [*ids[:2], tokenizer.PAD, tokenizer.UNK, small.vocab, 10**6, -1, *ids[2:end], tokenizer.EOS, *ids[1:end]]
  assert small.decode(np.array(noisy)) == "a red cat"
  assert small.decode([]) == ""


def test_training_is_reproducible_to_the_byte_also_in_another_process(small):
  assert tokenizer.train(sentences(500), 200).model == small.model
  program = (
    "from support.texts import sentences; from coca.data.tokenizers import sentencepiece as tokenizer; "
    "print(tokenizer.train(sentences(500), 200).sha256)"
  )
  found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment())
  assert found.stdout.strip() == small.sha256
  assert found.stderr == ""  # SentencePiece's log is silenced
  assert tokenizer.train(sentences(500, seed=2), 200).sha256 != small.sha256


def test_few_texts_do_not_fill_a_large_vocabulary():
  few = tokenizer.train(["a cat", "a dog"], 64_000)
  assert 4 < few.vocab < 64_000 and few.decode(few.encode("a cat", 16)) == "a cat"


def test_byte_pairs_keep_words_whole():
  texts = [f"there is a small dog to the left of two big {thing}" for thing in ("cats", "birds")] * 50
  unigram, bpe = (tokenizer.train(texts, 80, pieces) for pieces in ("unigram", "bpe"))
  assert len(bpe.tokens(texts[0])) == len(texts[0].split()) < len(unigram.tokens(texts[0]))
  assert bpe.decode(bpe.encode(texts[0], 32)) == texts[0]
  few = tokenizer.train(["a cat", "a dog"], 64_000, "bpe")
  assert 4 < few.vocab < 64_000 and few.decode(few.encode("a cat", 16)) == "a cat"


def test_unknown_characters_are_bytes_in_a_large_vocabulary_only(small):
  large = tokenizer.train(sentences(500), 8192)
  assert large.decode(large.encode("a 猫 🎉", 64)) == "a 猫 🎉"
  assert tokenizer.UNK in small.encode("a 猫", 16) and small.decode(small.encode("a 猫", 16)).strip() == "a"


def test_more_characters_than_the_vocabulary_holds():
  many = ["".join(chr(0x4E00 + k) for k in range(i, i + 10)) for i in range(600)] + sentences(300)
  with pytest.raises(ValueError, match=r"config\.model\.text\.vocab 100 does not do for 900 texts"):
    tokenizer.train(many, 100)
  rare = [*sentences(3000), *many[:4]]  # rare enough to be left out
  assert tokenizer.train(rare, 80).vocab <= 80


def test_no_usable_texts():
  for nothing in ([], ["", " \n\t"]):
    with pytest.raises(ValueError, match="no texts to train the tokenizer on"):
      tokenizer.train(nothing, 100)


def test_save_and_load(small, tmp_path):
  path = tmp_path / "tokenizer.model"
  small.save(path)
  assert os.listdir(tmp_path) == ["tokenizer.model"]
  again = load_tokenizer(path, small.sha256)
  assert again.model == small.model and again.vocab == small.vocab
  assert load_tokenizer(path).sha256 == small.sha256


def test_missing_and_changed_files(small, tmp_path):
  with pytest.raises(FileNotFoundError, match="no tokenizer in"):
    load_tokenizer(tmp_path / "none.model")
  path = tmp_path / "tokenizer.model"
  for at in range(0, len(small.model), len(small.model) // 40):
    flipped = bytearray(small.model)
    flipped[at] ^= 4
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match="not the one this run was started with"):
      load_tokenizer(path, small.sha256)


def test_damaged_models(small, tmp_path):
  path = tmp_path / "tokenizer.model"
  for content in (b"", b"not a model", small.model[: len(small.model) // 2]):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.model: not a SentencePiece model, or a damaged one"):
      load_tokenizer(path)


def test_models_with_other_special_ids_are_refused(tmp_path):
  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences(200)), model_writer=out, vocab_size=50, minloglevel=2
  )
  with pytest.raises(ValueError, match=r"are \(-1, 1, 2, 0\); they have to be 0, 1, 2, 3"):
    tokenizer.SentencePiece(out.getvalue())


def test_texts_of_draws_the_same_texts_from_all_sources():
  sources = {
    "b": Records([[f"web {i}", " "] for i in range(3000)]),
    "a": Records([["cat", "animal"], None, ["  "], ["dog"]], "label"),
  }
  settings = {"a": Source(text="labels", prompts=("a photo of the {}",)), "b": Source()}
  drawn = [list(load.texts_of(sources, settings, 200, seed)) for seed in (0, 0, 1)]
  assert drawn[0] == drawn[1] != drawn[2]
  labels = [t for t in drawn[0] if t.startswith("a photo")]
  assert len(labels) == 2 and labels[1] == "a photo of the dog"
  assert labels[0] in ("a photo of the cat, animal", "a photo of the animal, cat")
  assert len(drawn[0]) == 102 and len(set(drawn[0])) == 102
  everything = list(load.texts_of(sources, settings, 10**6, 0))
  assert sorted(everything[2:]) == sorted(f"web {i}" for i in range(3000))


def test_texts_of_tells_why_there_are_none():
  sources = {"a": Records([None] * 9), "b": Records([[" "], [""]])}
  sources["b"].problems = ("1 files are missing",)
  with pytest.raises(ValueError, match=r"no record of a, b can be used\. The first reasons:\n") as e:
    list(load.texts_of(sources, {"a": Source(), "b": Source()}, 100, 0))
  assert str(e.value).splitlines()[1:] == ["  1 files are missing", *(f"  memory {i}: unreadable" for i in range(4))]
  with pytest.raises(ValueError, match="b 0: no caption\n  b 1: no caption"):
    list(load.texts_of({"b": Records([[" "], [""]])}, {"b": Source()}, 100, 0))


def test_rules_of_which_text_is_used():
  rng = np.random.default_rng(0)
  record = Record(
    "k", b"", (Text(" \n"), Text(" one  text\n"), Text("two"), Text("cat", "label"), Text("animal", "label"))
  )
  assert texts.choose(record, "first", (), rng) == "one text"
  assert {texts.choose(record, "random", (), rng) for _ in range(100)} == {"one text", "two", "cat", "animal"}
  seen = {texts.choose(record, "labels", ("a photo of the {}", "{}!"), rng) for _ in range(100)}
  assert seen == {"a photo of the cat, animal", "a photo of the animal, cat", "cat, animal!", "animal, cat!"}
  assert texts.choose(Record("k", b"", (Text("dog"),)), "labels", (), rng) == "dog"
  further = texts.draws(record, "first", (), rng)
  assert [next(further) for _ in range(6)] == ["one text", "two", "cat", "animal", "one text", "two"]
  labels = texts.draws(record, "labels", ("a photo of the {}", "{}!"), rng)
  assert {next(labels) for _ in range(100)} == seen


@pytest.mark.parametrize("rule", ["first", "random", "labels"])
def test_empty_captions_are_bad_records(rule):
  for nothing in ((), (Text(""),), (Text(" \t\n\u3000"), Text(""))):
    with pytest.raises(BadRecord, match="no caption"):
      texts.choose(Record("k", b"", nothing), rule, ("a {}",), np.random.default_rng(0))


def test_prompts_need_a_place_for_the_name():
  check_prompts(("a photo of the {}", "{}"), "here")
  for prompt in ("a photo", "{} and {}"):
    with pytest.raises(ValueError, match="here: the prompt"):
      check_prompts((prompt,), "here")
