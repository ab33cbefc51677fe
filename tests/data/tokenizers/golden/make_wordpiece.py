"""Makes the golden files of test_wordpiece.py: run it on a Python with torch, transformers and open_clip.

    PYTHONPATH=tests/benchmarks python tests/data/tokenizers/golden/make_wordpiece.py

In `wordpiece/`: a small vocab.txt made here, the tokenizer.json that transformers saves with it, and in cases.json the
ids and decoded texts of transformers' BlipProcessor. It does not clean texts as BLIP's data loaders do; that is done
here, in another way than in the package.
"""

import json
import shutil
import tempfile
from itertools import groupby
from pathlib import Path

from peer_open_clip import import_open_clip

import_open_clip()  # it makes torchvision importable beside a CPU torch
from transformers import BertTokenizerFast, BlipImageProcessor, BlipProcessor  # noqa: E402

HERE = Path(__file__).parent / "wordpiece"
LENGTH = 24
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCAB = [
  "[PAD]",
  "[unused0]",
  "[unused1]",
  "[UNK]",
  "[CLS]",
  "[SEP]",
  "[MASK]",
  *"!\"',-./?@[]&%_",
  *LETTERS,
  "\u65e5",
  "\u0131",
  "ß",
  "\u2013",
  "\u201c",
  "\u201d",
  "\U0001f600",
  *(f"##{c}" for c in LETTERS),
  "##ß",
  "##ing",
  "##s",
  "##ed",
  "##hed",
  "##phone",
  "cat",
  "dog",
  "picture",
  "of",
  "the",
  "man",
  "hat",
  "red",
  "photo",
  "istanbul",
  "cafe",
  "don",
  "stretch",
  "tele",
  "thing",
  "10",
  "##00",
  "se",
  "##p",
]
TEXTS = [
  "a picture of the cat and the dog",
  "  A  PHOTO\tof\n the Cat's   dog!!",
  "a picture of ",
  "Café cafe\u0301 CAFÉ naïve",
  "\u0130stanbul ISTANBUL \u0131 stra\u00dfe STRASSE",
  "日本語 cat日dog 한국어 हिन्दी",
  "\U0001f600 cat\U0001f600dog \U0001f468\u200d\U0001f469\u200d\U0001f467",
  "ca\x00t do\x07g\u200b the\u00ad hat\ufffd",
  "cat\u00a0dog\u3000hat\u2028man\x85red\x1cred",
  "man's don't 'tis \u2018cat\u2019 a man's hat, red",
  "t-shirt re--stretched cat\u2013dog - hat",
  "10 1000 10,000 3.14 10:30 50% \u00bd \u00b2 \u0664",
  "x" * 100,
  "x" * 101,
  "the " + "y" * 120 + " cat",
  "telephone telephoning stretching \u4e00\u4e8c",
  "",
  "   ",
  ".",
  '.!"()*#:;~',
  "?!, - ' [ ]",
  'the end. (of) a; b: c! #cat *dog* ~ "hat"',
  "a.b.c cat.dog e.g. U.S. u.s.",
  "[SEP] [CLS] [PAD] [DEC] [ENC] [MASK] [UNK]",
  "[sep][unused0] ##ing ##s [unused1]",
  "a [SEP] b</s> <|endoftext|>",
  "thing " * 60,
  "cat dog " * 40,
  "stretchings " * 20,
  "\u201ccurly\u201d \ufb01sh \uff26ull\uff0cwidth \u2026",
  "cat?dog,hat/man @me & you_too",
  "a\tb\nc\r\nd\ve\ff",
  "a. . .b  ..  c",
  "ΑΣ ΟΔΟΣ",
  "e" + "\u0301" * 20 + " cat",
]


def clean(text: str) -> str:
  text = "".join(" " if char in '.!"()*#:;~' else char for char in text.lower())
  runs = ("".join(run) for _, run in groupby(text, str.isspace))
  text = "".join(" " if run.isspace() and len(run) > 1 else run for run in runs)
  return " ".join(text.rstrip("\n").strip(" ").split(" ")[:50])


def main() -> None:
  HERE.mkdir(exist_ok=True)
  (HERE / "vocab.txt").write_text("\n".join(dict.fromkeys(VOCAB)) + "\n", encoding="utf-8")
  tokenizer = BertTokenizerFast.from_pretrained(HERE)
  tokenizer.add_special_tokens({"bos_token": "[DEC]"})
  tokenizer.add_special_tokens({"extra_special_tokens": ["[ENC]"]})
  processor = BlipProcessor(BlipImageProcessor(), tokenizer)
  with tempfile.TemporaryDirectory() as folder:
    tokenizer.save_pretrained(folder)
    shutil.copy(Path(folder) / "tokenizer.json", HERE)

  def ids_of(text, length):
    ids = processor(text=clean(text), padding="max_length", truncation=True, max_length=length).input_ids
    return [tokenizer.bos_token_id, *ids[1:]]

  cases = [
    {
      "text": text,
      "ids": ids_of(text, LENGTH),
      "decoded": processor.decode(ids_of(text, 300), skip_special_tokens=True),
    }
    for text in TEXTS
  ]
  special = {
    "bos": tokenizer.bos_token_id,
    "eos": tokenizer.sep_token_id,
    "cls": tokenizer.cls_token_id,
    "enc": tokenizer.convert_tokens_to_ids("[ENC]"),
    "vocab": len(tokenizer),
  }
  (HERE / "cases.json").write_text(json.dumps({"length": LENGTH, "special": special, "cases": cases}) + "\n")


if __name__ == "__main__":
  main()
