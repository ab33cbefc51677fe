"""CLIP's byte-pair encoding: 256 bytes, the same 256 at the end of a word, one piece a merge, BOS, EOS.

A text is cleaned as CLIP does it (ftfy, HTML entities twice, white space, lower case), cut into words, digits and runs
of signs, and merged within those. Ids are the places in that list, so the merges say everything: 48,894 of them in
CLIP's own file, hence BOS 49,406 and EOS 49,407. Id 0 is the sign "!" and the padding at once; only an exclamation mark
inside a run of other signs becomes it. The names of special tokens in a text are text and no special tokens.
"""

import gzip
import hashlib
import html
import zlib

import ftfy
import numpy as np
import tokenizers
from etils import epath
from tokenizers import models, normalizers, pre_tokenizers

from coca.config.typed import entry, read_object
from coca.data.texts import collapse, framed
from coca.files.retries import of_the_system
from coca.files.writing import write_atomic

FILE = "tokenizer.json"
SOURCES = ("tokenizer.json", "vocab.json and merges.txt", "bpe_simple_vocab_16e6.txt.gz")
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_END = "</w>"  # of a word
_MOST = 64 << 20  # bytes of a file of merges, unpacked


class ClipTokenizer:
  """CLIP's tokenizer.

  Args:
    merges: pairs of pieces, in the order of their ranks.

  Raises:
    ValueError: a merge of pieces that are not there.
  """

  unknown, blank, file = -1, -1, FILE  # every byte has an id

  def __init__(self, merges: list[tuple[str, str]]):
    vocab = _vocab(merges)
    try:
      bpe = models.BPE(vocab, merges, end_of_word_suffix=_END, continuing_subword_prefix="")
    except Exception as e:  # the library has no narrower one
      raise ValueError(f"these merges are no byte-pair encoding: {e}") from None
    pieces = tokenizers.Tokenizer(bpe)
    pieces.normalizer = normalizers.Lowercase()  # for readers other than this class, which cleans by itself
    pieces.pre_tokenizer = pre_tokenizers.Sequence(
      [
        pre_tokenizers.Split(tokenizers.Regex(_WORDS), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
      ]
    )
    pieces.add_special_tokens([_BOS, _EOS])
    pieces.encode_special_tokens = True  # their names in a text are text
    self._pieces = pieces
    self._bytes = {char: byte for byte, char in _byte_letters().items()}
    self.bos, self.eos, self.vocab = len(vocab), len(vocab) + 1, len(vocab) + 2
    self.model = pieces.to_str().encode()
    self.sha256 = hashlib.sha256(self.model).hexdigest()

  def tokens(self, text: str) -> list[int]:
    """The ids of the whole text, without BOS and EOS."""
    return self._pieces.encode(clean(text), add_special_tokens=False).ids

  def encode(self, text: str, length: int, ends: bool = True) -> np.ndarray:
    """BOS, the text's ids, EOS, then PAD: int32 [length]. A longer text is cut so that the last id is EOS.

    Without `ends` that is a word: a text that was cut does not end there.
    """
    return framed(self.tokens(text), self.bos, self.eos, length, ends)

  def decode(self, ids) -> str:
    """The text up to the first EOS, or up to the padding where there is none; words are separated by spaces."""
    ids = np.asarray(ids).tolist()
    ids = ids[: ids.index(self.eos)] if self.eos in ids else np.trim_zeros(ids, "b")
    letters = "".join(self._pieces.id_to_token(i) for i in ids if 0 <= i < self.bos)
    text = bytes(self._bytes[c] for c in letters).decode(errors="replace")
    return text.replace(_END, " ").strip()

  def exported(self) -> dict[str, dict]:
    """The files that transformers reads, by name; it cleans less: no HTML entities, no broken Unicode."""
    contents = read_object(self.model)
    contents["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    contents["post_processor"] = {
      "type": "RobertaProcessing",  # BOS before and EOS behind
      "cls": [_BOS, self.bos],
      "sep": [_EOS, self.eos],
      "trim_offsets": False,
      "add_prefix_space": False,
    }
    names = {"bos_token": _BOS, "eos_token": _EOS, "unk_token": _EOS, "pad_token": _EOS}
    return {FILE: contents, "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", **names}}

  def save(self, path) -> None:
    """Writes the file; a reader sees all of it or nothing."""
    write_atomic(path, self.model)


def clean(text: str) -> str:
  """CLIP's cleaning: repaired Unicode, HTML entities resolved twice, single spaces, lower case."""
  return repaired(text).lower()


def repaired(text: str) -> str:
  """`clean`, and the case as it is."""
  return collapse(html.unescape(html.unescape(ftfy.fix_text(text))))


def load(model: bytes) -> ClipTokenizer:
  """A tokenizer from the bytes of a tokenizer.json: its merges count, the cleaning is CLIP's.

  Raises:
    ValueError: damaged, or another kind of tokenizer.
  """
  try:
    saved = read_object(model)
    merges = entry(entry(saved, "model", dict), "model.merges", list)
    return _checked([m.split(" ") if isinstance(m, str) else m for m in merges], ids_of(saved))
  except ValueError as e:
    raise ValueError(f"not a tokenizer.json of CLIP's byte-pair encoding, or a damaged one: {e}") from None


def ids_of(saved: dict) -> dict[str, int]:
  """The ids by piece, added tokens included, of what a tokenizer.json holds. Raises ValueError."""
  ids = entry(entry(saved, "model", dict), "model.vocab", dict) | {
    entry(t, "added_tokens.content", str): entry(t, "added_tokens.id", int) for t in entry(saved, "added_tokens", [])
  }
  if odd := [piece for piece, i in ids.items() if type(i) is not int]:
    raise ValueError(f"the id of {odd[0]!r:.80} is {ids[odd[0]]!r:.80}; it has to be a whole number")
  return ids


def find(folder, vocab: int) -> ClipTokenizer:
  """CLIP's tokenizer from the files beside somebody's weights.

  Args:
    folder: with tokenizer.json, or vocab.json and merges.txt, or bpe_simple_vocab_16e6.txt.gz; or one of these files.
    vocab: the model's, special tokens included; it decides how many merges are taken from the .gz file, which has more.

  Raises:
    FileNotFoundError: none of these files is there.
    ValueError: damaged files, or another kind of tokenizer.
  """
  path = epath.Path(folder)
  folder, only = (path, None) if path.is_dir() else (path.parent, path.name)

  def wanted(name):
    return only in (None, name) and (folder / name).exists()

  try:
    if wanted("tokenizer.json"):
      path = folder / "tokenizer.json"
      found = load(path.read_bytes())
    elif wanted("merges.txt") or wanted("vocab.json"):
      path = folder / "merges.txt"
      merges = _lines(path.read_text(encoding="utf-8"))
      found = _checked(merges, read_object((folder / "vocab.json").read_bytes()))
    elif only is None or only.endswith(".gz"):
      path = folder / (only or "bpe_simple_vocab_16e6.txt.gz")
      with path.open("rb") as packed, gzip.open(packed) as file:
        text = file.read(_MOST + 1)
      if len(text) > _MOST:
        raise ValueError(f"it unpacks to more than {_MOST >> 20} MiB, and CLIP's to 3")
      merges = _lines(text.decode())
      if len(merges) < vocab - 514:
        raise ValueError(f"{len(merges)} merges make a vocabulary of {len(merges) + 514}, the model's is {vocab}")
      found = ClipTokenizer(merges[: vocab - 514])
    else:
      raise FileNotFoundError(only)
  except FileNotFoundError as e:
    raise FileNotFoundError(
      f"no tokenizer in {folder} ({e.filename or e}): it takes {', or '.join(SOURCES)}. They lie beside the weights "
      "where those were published, and the last one also in the package folder of an installed open_clip; copy them "
      "there, or name them with --tokenizer=PATH"
    ) from None
  except (ValueError, OSError, EOFError, zlib.error) as e:
    if of_the_system(e):
      raise
    raise ValueError(f"{path}: {e}") from None
  if found.vocab > vocab:
    raise ValueError(f"{path} has {found.vocab} tokens, the model only {vocab}: it belongs to another one")
  return found


def _lines(text: str) -> list[tuple[str, str]]:
  """The merges of a file whose first line is a heading."""
  merges = [tuple(line.split()) for line in text.splitlines()[1:] if line.strip()]
  if any(len(m) != 2 for m in merges):
    raise ValueError("not a list of merges: two pieces a line")
  return merges


def _checked(merges: list, vocab: dict) -> ClipTokenizer:
  """A tokenizer of these merges, whose ids are those of `vocab`."""
  if any(not isinstance(m, (list, tuple)) or [type(piece) for piece in m] != [str, str] for m in merges):
    raise ValueError("not a list of merges: two pieces each")
  merges = [tuple(m) for m in merges]
  plain = _vocab(merges)
  bos, eos = (
    next((vocab[n] for n in names if n in vocab), None)
    for names in ((_BOS, "<start_of_text>"), (_EOS, "<end_of_text>"))
  )
  pieces = {piece: i for piece, i in vocab.items() if type(i) is not int or i < len(plain)}
  if (bos, eos) != (len(plain), len(plain) + 1) or pieces != plain:
    raise ValueError("other tokens, or in another order")
  return ClipTokenizer(merges)


def _vocab(merges) -> dict[str, int]:
  letters = list(_byte_letters().values())
  pieces = [*letters, *(letter + _END for letter in letters), *("".join(pair) for pair in merges)]
  return {piece: i for i, piece in enumerate(pieces)}


def _byte_letters() -> dict[int, str]:
  """A visible letter for each byte, in the order of CLIP's ids: those that are one, then 256, 257, ... for the rest."""
  visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  rest = [b for b in range(256) if b not in visible]
  return {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(rest)}
