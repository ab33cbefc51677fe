"""SentencePiece, trained in memory on the run's own texts (CoCa section 4.1: one model, 64k pieces).

The paper does not say more; SentencePiece's defaults are unigram pieces and the normalisation `nmt_nfkc`.
Case is kept, so that captions come out written as people write them. Training twice on the same texts gives the same
bytes. Two thirds of all one-bit flips in a model file load without complaint, so a model is known by its sha256.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable

import numpy as np
import sentencepiece

from coca.config.special import PAD
from coca.data.texts import collapse, framed
from coca.files.writing import write_atomic

BOS, EOS, UNK = 1, 2, 3  # of a SentencePiece model
FILE = "tokenizer.model"

_BYTE_PIECES = 8192  # from this vocabulary on, 256 pieces are spent on the bytes of characters without a piece
_LONGEST = 1000  # characters of a text that training looks at; SentencePiece would drop texts above 4192 bytes


class SentencePiece:
  """A SentencePiece model.

  Args:
    model: the bytes of a model file with the ids pad 0, bos 1, eos 2, unk 3.

  Raises:
    ValueError: damaged bytes, or other special ids.
  """

  bos, eos, unknown, file = BOS, EOS, UNK, FILE

  def __init__(self, model: bytes):
    self.model = model
    self.sha256 = hashlib.sha256(model).hexdigest()
    self._pieces = sentencepiece.SentencePieceProcessor()
    try:
      if not model or not self._pieces.LoadFromSerializedProto(model):
        raise RuntimeError("empty")
      ids = tuple(f() for f in (self._pieces.pad_id, self._pieces.bos_id, self._pieces.eos_id, self._pieces.unk_id))
    except RuntimeError as e:
      raise ValueError(f"not a SentencePiece model, or a damaged one: {e}") from None
    if ids != (PAD, BOS, EOS, UNK):
      raise ValueError(
        f"the SentencePiece model's pad, bos, eos, unk are {ids}; they have to be 0, 1, 2, 3: train it "
        "with pad_id=0, bos_id=1, eos_id=2, unk_id=3"
      )
    self.vocab: int = self._pieces.get_piece_size()
    self.blank: int = self._pieces.piece_to_id("\u2581")  # of a space alone; UNK where no piece is

  def tokens(self, text: str) -> list[int]:
    """The ids of the whole text, without BOS and EOS."""
    return self._pieces.encode(text)

  def encode(self, text: str, length: int, ends: bool = True) -> np.ndarray:
    """BOS, the text's ids, EOS, then PAD: int32 [length]. A longer text is cut so that the last id is EOS.

    Without `ends` that is a word: a text that was cut does not end there.
    """
    return framed(self.tokens(text), BOS, EOS, length, ends)

  def decode(self, ids) -> str:
    """The text up to the first EOS; special ids and those that no piece has are left out."""
    kept = []
    for i in np.asarray(ids).tolist():
      if i == EOS:
        break
      if UNK < i < self.vocab:
        kept.append(i)
    return self._pieces.decode(kept)

  def save(self, path) -> None:
    """Writes the model file; a reader sees all of it or nothing."""
    write_atomic(path, self.model)


def train(texts: Iterable[str], vocab: int, pieces: str = "unigram") -> SentencePiece:
  """Trains a model; the same texts in the same order give the same bytes.

  Args:
    texts: what to learn from; white space is collapsed, empty ones are left out.
    vocab: pieces at most. Few texts do not fill a large vocabulary: `SentencePiece.vocab` is what came out.
    pieces: how they are chosen, 'unigram' or 'bpe'.

  Raises:
    ValueError: no usable texts, or a vocabulary too small for them.
  """
  texts = [t for t in (collapse(text)[:_LONGEST] for text in texts) if t]
  if not texts:
    raise ValueError(
      "no texts to train the tokenizer on: every caption of config.data.sources is empty or unreadable; "
      "check text_key and split, or give a model in config.data.tokenizer"
    )
  with_bytes = vocab >= _BYTE_PIECES
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      vocab_size=vocab,
      model_type=pieces,
      hard_vocab_limit=False,
      normalization_rule_name="nmt_nfkc",
      byte_fallback=with_bytes,
      character_coverage=_coverage(texts, vocab, with_bytes),
      pad_id=PAD,
      bos_id=BOS,
      eos_id=EOS,
      unk_id=UNK,
      num_threads=16,  # fixed: it decides the order in which floats are summed
      minloglevel=2,
    )
  except RuntimeError as e:
    raise ValueError(f"config.model.text.vocab {vocab} does not do for {len(texts)} texts: {e}") from None
  return SentencePiece(model.getvalue())


def _coverage(texts: list[str], vocab: int, with_bytes: bool) -> float:
  """Share of the characters that get a piece: as many as fill a quarter of the vocabulary; bytes do for the rarest."""
  counts = Counter()
  for text in texts:
    counts.update(text)
  common = sum(n for _, n in counts.most_common(max(vocab // 4, 1)))
  return min(0.9995 if with_bytes else 1.0, max(common / counts.total(), 0.98))  # SentencePiece takes 0.98 to 1
