"""Tokenizers of any kind: from a file, and texts to train one."""

import hashlib
from collections.abc import Iterator

from etils import epath

from coca.config import Source
from coca.config.special import Tokenizer
from coca.data.questions import clean
from coca.data.records import BadRecord, Records
from coca.data.sample import some_records
from coca.data.texts import choose
from coca.data.tokenizers import clip, json_file, wordpiece
from coca.data.tokenizers.sentencepiece import FILE, SentencePiece
from coca.files.retries import again

FILES = (FILE, clip.FILE, wordpiece.FILE)  # what the tokenizer of a working directory may be called
_REASONS = 5  # why records can't be used that are told where none can


def load(path, sha256: str = "") -> Tokenizer:
  """Reads a model file.

  Args:
    path: of the model: SentencePiece's, a .json file with CLIP's byte-pair encoding or BERT's WordPiece, or a .txt
      file with BERT's pieces.
    sha256: what the file's must be; empty: any.

  Raises:
    FileNotFoundError: no such file.
    ValueError: another model than `sha256` says, or a damaged one.
  """
  path = epath.Path(path)
  try:
    model = again(path.read_bytes, str(path))
  except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
    raise FileNotFoundError(
      f"no tokenizer in {path}; set config.data.tokenizer to a SentencePiece model, CLIP's "
      "tokenizer.json or BERT's vocab.txt, or leave it empty to train one"
    ) from None
  found = hashlib.sha256(model).hexdigest()
  if sha256 and found != sha256:
    raise ValueError(
      f"the tokenizer in {path} is not the one this run was started with (sha256 {found}, expected "
      f"{sha256}); restore it or start a new workdir"
    )
  try:
    if model.startswith(json_file.START):
      return json_file.JsonTokenizer(model)
    if path.suffix == ".txt" or (path.suffix == ".json" and wordpiece.is_json(model)):
      return wordpiece.load(model)
    return clip.load(model) if path.suffix == ".json" else SentencePiece(model)
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from None


def texts_of(sources: dict[str, Records], settings: dict[str, Source], limit: int, seed: int) -> Iterator[str]:
  """Draws texts for training, evenly from all sources, by the rule and the prompts that training uses.

  Args:
    sources: by name.
    settings: theirs, by name (`config.data.sources`).
    limit: texts at most.
    seed: decides which records, if there are more.

  Yields:
    Texts, the same ones in the same order for the same arguments; unreadable records are passed over. An answer comes
    behind its question.

  Raises:
    ValueError: there is none in any record; with what the sources say of it.
  """

  any_text = False
  reasons = [problem for source in sources.values() for problem in source.problems[:2]]
  for name, rng, record in some_records(sources, limit, seed, "texts for the tokenizer"):
    try:
      if isinstance(record, BadRecord):
        raise record
      rule = settings[name]
      text = choose(record, rule.text, rule.prompts, rng, rule.origins)
      any_text = True
      text = f"{clean(record.question)} {text}" if record.question else text
      yield f"{rule.task}: {text}" if rule.task else text
    except BadRecord as e:
      if len(reasons) < _REASONS:
        reasons.append(str(e) if e is record else f"{name} {record.key}: {e}")
  if not any_text:
    raise ValueError(
      f"no texts to train the tokenizer on: no record of {', '.join(sorted(sources))} can be used. "
      "The first reasons:\n" + "\n".join(f"  {reason}" for reason in reasons)
    )
