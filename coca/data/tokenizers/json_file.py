"""Any tokenizer.json of the tokenizers library, with the cleaning and the ids round a text of one model (SigLIP, CLIPA,
MetaCLIP 2).

Text is cleaned and cut into pieces as the file says. How a row begins, ends and is filled up, and the cleaning, lie
under "coca" in the file that a model directory keeps: of such a file, this is the first entry.
"""

import dataclasses
import hashlib
import json
import re
import string

import numpy as np
import tokenizers
from etils import epath

from coca.config.special import PAD
from coca.config.typed import entry, from_plain, read_object
from coca.data.texts import collapse
from coca.data.tokenizers import clip
from coca.files.writing import write_atomic

FILE = "tokenizer.json"
START = b'{"coca":'
_SIGNS = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
  """The ids round the pieces of a text, and its cleaning."""

  # -1: none.
  bos: int
  eos: int
  # After EOS, up to the length.
  fill: int = PAD
  # Of the text: 'whitespace', 'lower', 'canonicalize' (`CLEANERS`), or '' for the file's own normalizer alone.
  clean: str = "whitespace"


def _replace(kind: str, pattern: str, content: str) -> dict:
  return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def canonical(text: str) -> str:
  """SigLIP's cleaning: a space for _, no other punctuation, lower case, single spaces."""
  return collapse(clip.repaired(text).replace("_", " ").translate(_SIGNS).lower())


CLEANERS = {"whitespace": clip.repaired, "lower": clip.clean, "canonicalize": canonical, "": str}
# The same as normalizers of the library, for those who read the file alone; they mend no Unicode or HTML.
_SPACES = (_replace("Regex", r"\s+", " "), {"type": "Strip", "strip_left": True, "strip_right": True})
_NORMALIZERS = {
  "whitespace": _SPACES,
  "lower": ({"type": "Lowercase"}, *_SPACES),
  "canonicalize": (
    _replace("String", "_", " "),
    _replace("Regex", f"[{re.escape(string.punctuation)}]", ""),
    {"type": "Lowercase"},
    *_SPACES,
  ),
  "": (),
}


class JsonTokenizer:
  """A tokenizer.json and its `Frame`.

  Args:
    model: the bytes of the file; with an entry "coca", or one without and a frame.
    frame: in its place.

  Raises:
    ValueError: damaged, or ids that are not in it.
  """

  file = FILE

  def __init__(self, model: bytes, frame: Frame | None = None):
    try:
      saved = read_object(model)
      frame = frame or from_plain(Frame, entry(saved, "coca", dict), "coca")
      saved = {"coca": dataclasses.asdict(frame)} | {k: v for k, v in saved.items() if k != "coca"}
      self.model = json.dumps(saved, ensure_ascii=False, separators=(",", ":")).encode()
      self._pieces = _pieces(saved)
    except Exception as e:  # the library has no narrower one
      raise ValueError(f"not a tokenizer.json, or a damaged one: {e}") from None
    self.frame, self.bos, self.eos = frame, frame.bos, frame.eos
    self.vocab = max(self._pieces.get_vocab().values(), default=-1) + 1
    fits = -1 <= frame.bos < self.vocab and all(0 <= i < self.vocab for i in (frame.eos, frame.fill))
    if not fits or frame.clean not in CLEANERS:
      raise ValueError(f"{frame} does not fit a tokenizer of {self.vocab} pieces")
    settings = entry(saved, "model", dict)
    unknown = settings.get("unk_id")
    name = settings.get("unk_token")
    self.unknown = unknown if isinstance(unknown, int) else self._id(name if isinstance(name, str) else "")
    self.blank = self._id("\u2581")
    self.sha256 = hashlib.sha256(self.model).hexdigest()

  def tokens(self, text: str) -> list[int]:
    """The ids of the whole text, without BOS and EOS."""
    ids = self._pieces.encode(CLEANERS[self.frame.clean](text), add_special_tokens=False).ids
    # To some models the names of special tokens are pieces, and one in a text would end it.
    return [i for i in ids if i not in (self.bos, self.eos)]

  def encode(self, text: str, length: int, ends: bool = True) -> np.ndarray:
    """BOS if there is one, the text's ids, EOS, then the filling: int32 [length]. Of a longer text the last id is EOS.

    Without `ends` that is a word: a text that was cut does not end there.
    """
    first, ids = [self.bos] * (self.bos >= 0), self.tokens(text)
    room = length - len(first)
    ids = [*first, *ids[: room - 1], self.eos] if ends else [*first, *[*ids, self.eos][:room]]
    out = np.full(length, self.frame.fill, np.int32)
    out[: len(ids)] = ids
    return out

  def decode(self, ids) -> str:
    """The text up to the first EOS, without BOS; ids that no piece has are left out."""
    ids = np.asarray(ids).tolist()
    ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
    return self._pieces.decode([i for i in ids if 0 <= i < self.vocab and i != self.bos])

  def exported(self, cleans: bool = False) -> dict[str, dict]:
    """The files that transformers reads, by name; with `cleans` they clean texts by themselves, as far as they can."""
    names = {"eos_token": self.frame.eos, "pad_token": self.frame.fill}
    settings: dict = {key: self._pieces.id_to_token(i) for key, i in names.items()}
    if self.eos == PAD:  # it takes the place of the file's own, which open_clip looks for by this name
      settings["sep_token"] = self._pieces.id_to_token(_round(self._pieces)[1])
    contents = {k: v for k, v in read_object(self.model).items() if k != "coca"}
    if cleans:
      normalizers = [*_NORMALIZERS[self.frame.clean], *filter(None, [contents.get("normalizer")])]
      contents["normalizer"] = {"type": "Sequence", "normalizers": normalizers}
    return {FILE: contents, "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **settings}}

  def save(self, path) -> None:
    """Writes the file; a reader sees all of it or nothing."""
    write_atomic(path, self.model)

  def _id(self, piece: str) -> int:
    found = self._pieces.token_to_id(piece)
    return -1 if found is None else found


def find(
  folder, vocab: int, clean: str, *, strip_eos: bool = False, fills: bool = False, eos: int = -1
) -> JsonTokenizer:
  """The tokenizer of the files beside somebody's weights; the ids round a text are those that its file puts there.

  Args:
    folder: with tokenizer.json, or that file.
    vocab: the model's.
    clean: of `Frame`.
    strip_eos: padding takes the place of EOS (CLIPA).
    fills: rows are filled up with the file's own padding (SigLIP: EOS), otherwise with 0.
    eos: the id that it has to have; -1: any.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a damaged one, or one of another model.
  """
  path = epath.Path(folder)
  path = path / FILE if path.is_dir() else path
  if not path.exists():
    raise FileNotFoundError(
      f"no {path}: this model's tokenizer is read from a {FILE}, which lies beside the weights where those were "
      "published; copy it there, or name it with --tokenizer=PATH"
    )
  try:
    model = path.read_bytes()
    saved = read_object(model)
    pieces = _pieces(saved)
    bos, ending = _round(pieces)
    if eos not in (-1, ending):
      raise ValueError(f"texts end with the id {ending}, the model's with {eos}: it belongs to another one")
    fill = _padding(path.parent, pieces, saved) if fills else PAD
    found = JsonTokenizer(model, Frame(bos=bos, eos=PAD if strip_eos else ending, fill=fill, clean=clean))
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from None
  if found.vocab > vocab:
    raise ValueError(f"{path} has {found.vocab} tokens, the model only {vocab}: it belongs to another one")
  return found


def _pieces(saved: dict) -> tokenizers.Tokenizer:
  try:
    found = tokenizers.Tokenizer.from_str(json.dumps({k: v for k, v in saved.items() if k != "coca"}))
  except Exception as e:  # the library has no narrower one
    raise ValueError(f"not a {FILE}, or a damaged one: {e}") from None
  found.no_truncation()
  found.no_padding()
  found.encode_special_tokens = True  # their names in a text are text
  return found


def _round(pieces: tokenizers.Tokenizer) -> tuple[int, int]:
  """The ids that the file puts before and behind a text; -1 for none before."""
  ids = pieces.encode("a").ids
  inner = pieces.encode("a", add_special_tokens=False).ids
  before = next(n for n in range(len(ids) + 1) if ids[n : n + len(inner)] == inner)
  if before > 1 or len(ids) - before - len(inner) != 1:
    raise ValueError("its post_processor does not put one EOS behind a text and at most one BOS before it")
  return (ids[0] if before else -1), ids[-1]


def _padding(folder, pieces: tokenizers.Tokenizer, saved: dict) -> int:
  """The id that transformers fills rows up with: of tokenizer_config.json, or of the tokenizer's own file."""
  path = folder / "tokenizer_config.json"
  token = read_object(path.read_bytes()).get("pad_token") if path.exists() else None
  token = token.get("content") if isinstance(token, dict) else token
  found = pieces.token_to_id(token) if isinstance(token, str) else entry(saved, "padding", {}).get("pad_id")
  if not isinstance(found, int):
    raise ValueError(f"what rows are filled up with is not said: no pad_token of this tokenizer in {path}")
  return found
