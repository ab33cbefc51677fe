"""CLIP's tokenizer: the ids of open_clip's, from any of the files in which its merges come."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from coca.data import texts
from coca.data.tokenizers import clip as clip_tokenizer
from coca.data.tokenizers.load import load as load_tokenizer

GOLDEN = Path(__file__).parent / "golden" / "tokenizer"
CASES = json.loads((GOLDEN / "cases.json").read_text())


@pytest.fixture(scope="module")
def clip():
  return clip_tokenizer.find(GOLDEN, CASES["vocab"])


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda c: ascii(c["text"])[:20])
def test_ids_are_those_of_open_clip(clip, case):
  ids = clip.encode(case["text"], 20)
  assert ids.dtype == np.int32
  assert ids.tolist() == case["ids"]
  assert clip.decode(clip.encode(case["text"], 300)) == case["decoded"]


def test_special_ids(clip):
  assert (clip.bos, clip.eos, clip.vocab) == (CASES["vocab"] - 2, CASES["vocab"] - 1, CASES["vocab"])
  long = clip.encode("cat " * 50, 8)
  assert long[0] == clip.bos and long[-1] == clip.eos and len(long) == 8
  assert clip.encode("", 4).tolist() == [clip.bos, clip.eos, 0, 0]
  injected = clip.encode("a <|endoftext|> <start_of_text> b", 60)
  assert (injected == clip.eos).sum() == (injected == clip.bos).sum() == 1  # names in a text are text


def test_cut_texts_may_be_without_an_end_and_nothing_is_unknown(clip):
  ids = clip.tokens("two cats, 3 dogs")
  assert clip.encode("two cats, 3 dogs", len(ids) + 1, ends=False).tolist() == [clip.bos, *ids]
  assert clip.encode("two cats, 3 dogs", len(ids) + 2, ends=False).tolist() == [clip.bos, *ids, clip.eos]
  assert not texts.all_unknown(clip, clip.encode("\u732b !", 12))


def test_decoding_ends_at_eos_or_at_the_padding(clip):
  ids = clip.encode("the cat !?", 12).tolist()
  end = ids.index(clip.eos)
  assert clip.decode(ids) == clip.decode([*ids[:end], 0, 0]) == clip.decode([*ids, *ids]) == "the cat !?"
  assert ids[:end].count(0) == 1  # "!" before another sign has the id of padding
  assert clip.decode([clip.bos, 10**6, -1, *ids[1:]]) == "the cat !?"


def hugging_face(clip, folder, **changes):
  """vocab.json and merges.txt, and the tokenizer.json made of them, as they lie beside published weights."""
  saved = json.loads(clip.model)["model"]
  vocab = saved["vocab"] | {"<|startoftext|>": clip.bos, "<|endoftext|>": clip.eos} | changes
  merges = [" ".join(m) for m in saved["merges"]]
  (folder / "vocab.json").write_text(json.dumps(vocab))
  (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
  return {"added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": merges}}


def test_every_source_gives_the_same_tokenizer(clip, tmp_path):
  as_json = hugging_face(clip, tmp_path)
  assert clip_tokenizer.find(tmp_path, clip.vocab).sha256 == clip.sha256
  assert clip_tokenizer.find(tmp_path / "merges.txt", clip.vocab).sha256 == clip.sha256
  (tmp_path / "tokenizer.json").write_text(json.dumps(as_json))
  (tmp_path / "merges.txt").unlink()
  assert clip_tokenizer.find(tmp_path, clip.vocab).sha256 == clip.sha256
  assert clip_tokenizer.find(GOLDEN / "bpe_simple_vocab_16e6.txt.gz", clip.vocab).sha256 == clip.sha256


def test_saved_and_opened_again(clip, tmp_path):
  path = tmp_path / clip.file
  clip.save(path)
  again = load_tokenizer(path, clip.sha256)
  assert (again.sha256, again.model, again.bos, again.eos) == (clip.sha256, clip.model, clip.bos, clip.eos)
  assert again.encode("a photo of the cat", 12).tolist() == clip.encode("a photo of the cat", 12).tolist()
  assert [p.name for p in tmp_path.iterdir()] == [clip.file]
  with pytest.raises(ValueError, match="is not the one this run was started with"):
    load_tokenizer(path, "0" * 64)


def test_missing_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"tokenizer.json, or vocab.json and merges.txt, or bpe_simple_vocab"):
    clip_tokenizer.find(tmp_path, 560)
  (tmp_path / "merges.txt").write_text("#version\n")
  with pytest.raises(FileNotFoundError, match=r"vocab\.json"):
    clip_tokenizer.find(tmp_path, 560)


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"{",
    b"[]",
    b'{"model": {"vocab": {}, "merges": []}, "added_tokens": []}',
    b'{"model": {"vocab": [["a", 0.5]]}}',
    b"[" * 100_000,
    b'{"model": []}',
    b'{"model": {"vocab": {"a": null}, "merges": []}}',
    b'{"model": {"vocab": {}, "merges": []}, "added_tokens": [3]}',
    b'{"model": {"vocab": {}, "merges": [["a", 3]]}}',
    b'{"model": {"vocab": {}, "merges": [3]}}',
  ],
)
def test_a_file_that_is_no_clip_tokenizer(content, tmp_path):
  (tmp_path / "tokenizer.json").write_bytes(content)
  with pytest.raises(ValueError, match=r"tokenizer\.json: not "):
    clip_tokenizer.find(tmp_path, 560)


def test_another_order_of_ids_is_refused(clip, tmp_path):
  hugging_face(clip, tmp_path, **{"cat</w>": 3, "dog</w>": 4})
  with pytest.raises(ValueError, match="other tokens, or in another order"):
    clip_tokenizer.find(tmp_path, clip.vocab)


def test_damaged_merges(clip, tmp_path):
  path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
  shutil.copy(GOLDEN / path.name, path)
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(ValueError, match=str(path)):
    clip_tokenizer.find(tmp_path, clip.vocab)
  path.write_bytes(gzip.compress(b"heading\nc a t\n"))
  with pytest.raises(ValueError, match="two pieces a line"):
    clip_tokenizer.find(tmp_path, clip.vocab)
  path.write_bytes(gzip.compress(b"\n" * ((64 << 20) + 1)))
  with pytest.raises(ValueError, match="unpacks to more than 64 MiB"):
    clip_tokenizer.find(tmp_path, clip.vocab)
  path.write_bytes(gzip.compress(b"heading\nca t\n"))
  with pytest.raises(ValueError, match="no byte-pair encoding"):
    clip_tokenizer.find(tmp_path, 515)


def test_a_tokenizer_of_another_size(clip):
  with pytest.raises(ValueError, match="merges make a vocabulary of"):
    clip_tokenizer.find(GOLDEN, clip.vocab + 1)
