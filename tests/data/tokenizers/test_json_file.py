"""Any tokenizer.json: ids as open_clip's, whose HFTokenizer made golden/json_file."""

import json
from pathlib import Path

import numpy as np
import pytest

from coca.data.tokenizers import json_file
from coca.data.tokenizers.load import load

GOLDEN = Path(__file__).parent / "golden" / "json_file"
LENGTH = 12
OPTIONS = {  # as `coca.interop.open_clip.settings.tokenizer` gives them
  "t5": {"clean": "canonicalize", "fills": True},
  "gemma": {"clean": "canonicalize", "fills": True},
  "xlm": {"clean": "whitespace", "eos": 2},
  "bert": {"clean": "whitespace", "fills": True, "strip_eos": True},
}


def found(name, folder=None):
  return json_file.find(folder or GOLDEN / name, 1000, **OPTIONS[name])


@pytest.mark.parametrize("name", OPTIONS)
def test_ids_are_those_of_open_clip(name, tmp_path):
  tokens = found(name)
  tokens.save(tmp_path / tokens.file)
  again = load(tmp_path / tokens.file, tokens.sha256)  # as a model directory keeps it
  for case in json.loads((GOLDEN / name / "cases.json").read_text())["cases"]:
    expected = case["ids"]
    if name == "xlm":  # rows are filled up with 0: no word sees what stands behind EOS
      ends = expected.index(tokens.eos) + 1
      expected = expected[:ends] + [0] * (LENGTH - ends)
    assert again.encode(case["text"], LENGTH).tolist() == expected, case["text"]


@pytest.mark.parametrize("name", OPTIONS)
def test_names_of_special_tokens_are_text(name):
  tokens = found(name)
  assert not np.isin(tokens.tokens("</s> <pad> <s> [CLS] [SEP] [PAD] <eos>"), (tokens.bos, tokens.eos)).any()


def test_rows_and_texts():
  tokens = found("bert")
  ids = tokens.tokens("a photo of the cat and dog")
  assert tokens.encode("a photo of the cat and dog", 4, ends=False).tolist() == [tokens.bos, *ids[:3]]
  assert tokens.decode([tokens.bos, *ids, 0, 0]) == "a photo of the cat and dog"
  tokens = found("t5")
  assert tokens.bos == -1
  assert tokens.decode(tokens.encode("A red boat!", LENGTH)) == "a red boat"
  assert tokens.encode("", 3).tolist() == [tokens.eos] * 3


@pytest.mark.parametrize("name", OPTIONS)
def test_exported_files_are_read_alike(name, tmp_path):
  tokens = found(name)
  for file, contents in tokens.exported().items():
    (tmp_path / file).write_text(json.dumps(contents))
  assert found(name, tmp_path).sha256 == tokens.sha256


def test_other_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"tokenizer.json: this model's tokenizer is read from"):
    json_file.find(tmp_path, 1000, "lower")
  (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
  with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer.json, or a damaged one"):
    json_file.find(tmp_path, 1000, "lower")
  with pytest.raises(ValueError, match="tokens, the model only 7: it belongs to another one"):
    json_file.find(GOLDEN / "bert", 7, "lower")
  with pytest.raises(ValueError, match="texts end with the id 2, the model's with 5"):
    json_file.find(GOLDEN / "xlm", 1000, "lower", eos=5)
  saved = json.loads((GOLDEN / "t5" / "tokenizer.json").read_text())
  (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
  with pytest.raises(ValueError, match=r"no pad_token of this tokenizer in .*tokenizer_config.json"):
    json_file.find(tmp_path, 1000, "canonicalize", fills=True)
  (tmp_path / "tokenizer.json").write_text(json.dumps(saved | {"post_processor": None}))
  with pytest.raises(ValueError, match="does not put one EOS behind a text"):
    json_file.find(tmp_path, 1000, "canonicalize")
  for frame in ({"bos": -1, "eos": 9999}, {"bos": -1, "eos": 1, "clean": "sponge"}):
    with pytest.raises(ValueError, match="does not fit a tokenizer of"):
      json_file.JsonTokenizer(json.dumps({"coca": frame} | saved).encode())


def test_unknown_and_blank():
  tokens = found("t5")
  assert tokens.unknown == 2
  ids = tokens.encode("\u65e5\u672c", LENGTH)
  assert np.isin(ids, (tokens.unknown, tokens.blank, tokens.eos)).all()
  assert found("bert").unknown == 3
