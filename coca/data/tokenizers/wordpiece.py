"""BERT's WordPiece with BLIP's cleaning and special tokens (BLIP: `pre_caption` in data/utils.py, models/blip.py).

A text is cleaned as all of BLIP's training texts were, normalised and cut into words and signs as uncased BERT does it,
and each word into the longest pieces that the vocabulary has; a word that has none, or more than 100 characters, is
[UNK]. Ids are the lines of BERT's vocab.txt (30,522 of them), then [DEC] and [ENC] unless it has them: 30522 and 30523.
The names of special tokens in a text are text: BERT cuts off their brackets.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import tokenizers
from etils import epath
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from coca.config.special import PAD
from coca.config.typed import entry, read_object
from coca.data.texts import framed
from coca.data.tokenizers.clip import ids_of
from coca.files.writing import write_atomic

FILE = "vocab.txt"
SOURCES = (FILE, "tokenizer.json")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")

_SIGNS = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
_SPACES = re.compile(r"\s{2,}")
_INSIDE = "##"  # in front of a piece that does not begin a word
_LONGEST = 100  # characters of a word
# What a tokenizer.json of uncased BERT says of its model and its normalizer.
_BERT = {
  "unk_token": "[UNK]",
  "continuing_subword_prefix": _INSIDE,
  "max_input_chars_per_word": _LONGEST,
  "type": "BertNormalizer",
  "clean_text": True,
  "handle_chinese_chars": True,
  "lowercase": True,
}
_normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True)
_words = pre_tokenizers.BertPreTokenizer()


class WordPiece:
  """BLIP's tokenizer: `bos` is [DEC], `eos` is [SEP]; `cls` and `enc` are the other first ids that BLIP has.

  `mask` is [MASK], -1 for none.

  Args:
    pieces: in the order of their ids. [DEC] and [ENC] are put at the end where they are missing.

  Raises:
    ValueError: another id of [PAD] than 0, a special token that is missing, a piece that is there twice or empty.
  """

  blank, file = -1, FILE

  def __init__(self, pieces: Iterable[str]):
    pieces = list(pieces)
    pieces += [name for name in ("[DEC]", "[ENC]") if name not in pieces]
    ids = {piece: i for i, piece in enumerate(pieces)}
    if missing := [name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if name not in ids]:
      raise ValueError(f"not BERT's list of pieces: it has no {', '.join(missing)}")
    if ids["[PAD]"] != PAD:
      raise ValueError(f"the id of [PAD] is {ids['[PAD]']}; it has to be 0: put it on the first line")
    if len(ids) < len(pieces):
      raise ValueError(f"the piece {Counter(pieces).most_common(1)[0][0]!r} is there twice")
    if bad := [i for piece, i in ids.items() if not piece or "\n" in piece]:
      raise ValueError(f"the piece with id {bad[0]} is empty, or has a line break")
    self.model = "".join(f"{piece}\n" for piece in pieces).encode()
    self._pieces = tokenizers.Tokenizer(
      models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=_LONGEST, continuing_subword_prefix=_INSIDE)
    )
    self._pieces.normalizer, self._pieces.pre_tokenizer = _normalizer, _words
    self._pieces.decoder = decoders.WordPiece(_INSIDE, cleanup=True)
    self._special = {ids[name] for name in SPECIAL if name in ids}
    self.bos, self.eos, self.cls, self.enc = (ids[name] for name in ("[DEC]", "[SEP]", "[CLS]", "[ENC]"))
    self.mask = ids.get("[MASK]", -1)
    self.unknown = ids["[UNK]"]
    self.vocab = len(pieces)
    self.sha256 = hashlib.sha256(self.model).hexdigest()

  def tokens(self, text: str) -> list[int]:
    """The ids of the cleaned text, all of them, without [DEC] and [SEP]."""
    return self._pieces.encode(clean(text)).ids

  def encode(self, text: str, length: int, ends: bool = True) -> np.ndarray:
    """[DEC], the cleaned text's ids, [SEP], then PAD: int32 [length]. A longer text is cut so that [SEP] is last.

    Without `ends` that is a word: a text that was cut does not end there.
    """
    return framed(self.tokens(text), self.bos, self.eos, length, ends)

  def decode(self, ids) -> str:
    """The text up to the first [SEP]; special ids, [UNK] among them, and those that no piece has are left out.

    Spaces are as transformers 5 leaves them for BERT: none before . ? ! and comma, one on both sides of other signs
    ("a man ' s hat, red"). BLIP itself ran on a transformers 4, which also closed up " ' " and so gave "man's".
    """
    ids = np.asarray(ids).tolist()
    ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
    return self._pieces.decode([i for i in ids if 0 <= i < self.vocab and i not in self._special])

  def save(self, path) -> None:
    """Writes vocab.txt, [DEC] and [ENC] included; a reader sees all of it or nothing."""
    write_atomic(path, self.model)


def clean(text: str) -> str:
  """BLIP's cleaning: lower case, a space for each of . ! " ( ) * # : ; ~, single spaces.

  BLIP also cuts at 30 words in pre-training, at 50 elsewhere. Here a text's length in tokens alone cuts it: as early
  with the lengths that BLIP has, and said at the start of a run (coca/data/survey.py).
  """
  return _SPACES.sub(" ", text.lower().translate(_SIGNS)).strip()


def load(model: bytes) -> WordPiece:
  """A tokenizer from the bytes of a vocab.txt (a piece a line) or of uncased BERT's tokenizer.json.

  Raises:
    ValueError: damaged, or another kind of tokenizer.
  """
  try:
    text = model.decode().replace("\r\n", "\n")
  except UnicodeDecodeError as e:
    raise ValueError(f"not a vocab.txt of BERT: {e}") from None
  return WordPiece(_from_json(text) if text.startswith("{") else text.removesuffix("\n").split("\n"))


def is_json(model: bytes) -> bool:
  """True if this is a tokenizer.json of WordPiece, and not one of byte-pair encoding."""
  try:
    return entry(read_object(model), "model", {}).get("continuing_subword_prefix") == _INSIDE
  except ValueError:
    return False


def find(folder, vocab: int) -> WordPiece:
  """BERT's tokenizer from the files beside somebody's weights.

  Args:
    folder: with vocab.txt or tokenizer.json; or one of these files.
    vocab: the model's, [DEC] and [ENC] included.

  Raises:
    FileNotFoundError: neither of these files is there.
    ValueError: a damaged file, another kind of tokenizer, or one with more ids than the model.
  """
  path = epath.Path(folder)
  path = next((p for p in ([path / name for name in SOURCES] if path.is_dir() else [path]) if p.exists()), None)
  if path is None:
    raise FileNotFoundError(
      f"no tokenizer in {folder}: it takes {' or '.join(SOURCES)} of uncased BERT. They lie "
      "beside BLIP's and BERT's weights where those were published; copy one there, or name it "
      "with --tokenizer=PATH"
    )
  try:
    found = load(path.read_bytes())
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from None
  if found.vocab > vocab:
    raise ValueError(f"{path} has {found.vocab} tokens, the model only {vocab}: it belongs to another one")
  return found


def train(texts: Iterable[str], vocab: int) -> WordPiece:
  """Trains a vocabulary; the same texts, in any order, give the same bytes.

  Special tokens come first, then the characters inside words, those alone, and the merged pieces. A character that is
  too rare (a quarter of the vocabulary is for characters) has no piece: words that hold it are [UNK].

  Args:
    texts: what to learn from.
    vocab: pieces at most. Few texts do not fill a large vocabulary: `WordPiece.vocab` is what came out.

  Raises:
    ValueError: no usable texts, or a vocabulary too small for the special tokens and characters.
  """
  spaced, words, chars = Counter(), Counter(), Counter()
  for text in texts:
    spaced.update(clean(text).split(" "))
  for word, n in spaced.items():  # each once: that is much faster than each text
    for part, _ in _words.pre_tokenize_str(_normalizer.normalize_str(word)):
      words[part] += n
  for word, n in words.items():
    chars.update({char: n * word.count(char) for char in set(word)})
  if not words:
    raise ValueError(
      "no texts to train the tokenizer on: every caption of config.data.sources is empty or unreadable; "
      "check text_key and split, or give BERT's vocab.txt in config.data.tokenizer"
    )
  kept = set(sorted(chars, key=lambda char: (-chars[char], char))[: max(vocab // 4, 1)])
  words = {word: n for word, n in words.items() if len(word) <= _LONGEST and kept.issuperset(word)}
  # The library numbers the pieces inside words as it meets them, in an order that differs from run to run, and settles
  # ties by those numbers. Named as special tokens, they are numbered in this order.
  inside = sorted({_INSIDE + char for word in words for char in word[1:]})
  pieces = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  pieces.train_from_iterator(
    _repeated(words),
    trainers.WordPieceTrainer(
      vocab_size=vocab,
      min_frequency=2,
      limit_alphabet=vocab,
      special_tokens=[*SPECIAL, *inside],
      continuing_subword_prefix=_INSIDE,
      show_progress=False,
    ),
  )
  ids = pieces.get_vocab()
  if len(ids) > vocab or not words:
    raise ValueError(
      f"config.model.text.vocab {vocab} does not do for these texts: the {len(SPECIAL)} special tokens "
      f"and their {len(chars)} characters alone are more"
    )
  return WordPiece(sorted(ids, key=ids.get))


def _repeated(words: dict[str, int]) -> Iterator[str]:
  """Texts that hold each word as often as counted; the library's trainer takes no counts."""
  for word, n in words.items():
    for done in range(0, n, 1000):
      yield " ".join([word] * min(n - done, 1000))


def _from_json(text: str) -> list[str]:
  try:
    saved = read_object(text)
    found = entry(saved, "model", dict) | entry(saved, "normalizer", dict)
    ids = ids_of(saved)
  except ValueError as e:
    raise ValueError(f"not a tokenizer.json of BERT, or a damaged one: {e}") from None
  pieces = sorted(ids, key=ids.get)
  in_order = [ids[piece] for piece in pieces] == list(range(len(ids)))
  if differing := [name for name, value in _BERT.items() if found.get(name) != value]:
    raise ValueError(
      f"not uncased BERT's tokenizer: {differing[0]} is {found.get(differing[0])!r}, not {_BERT[differing[0]]!r}"
    )
  if found.get("strip_accents") is False or not in_order:
    raise ValueError(f"not uncased BERT's tokenizer: {'it keeps accents' if in_order else 'ids are missing'}")
  return pieces
