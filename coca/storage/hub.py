"""Model directories on the Hugging Face hub: `hf://org/name` or `hf://org/name@revision`."""

import importlib
import importlib.util
from pathlib import Path

from coca.files.retries import Unavailable

PREFIX = "hf://"
# Not everything: a repository often holds the same weights in several formats, and code.
FILES = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt", "bpe_simple_vocab_16e6.txt.gz")


def transport_errors() -> tuple[type[Exception], ...]:
  """The errors of a network, of the library below huggingface_hub: requests, from 1.0 on httpx, by now httpx2."""
  names = {"requests": ("ConnectionError", "Timeout"), "httpx": ("TransportError",), "httpx2": ("TransportError",)}
  found = [name for name in names if importlib.util.find_spec(name)]
  return tuple(getattr(importlib.import_module(name), error) for name in found for error in names[name])


def local_folder(path, torch: bool = False) -> Path | str:
  """`path` itself, or for `hf://...` the folder of the local cache that holds the repository's files.

  What is missing or has changed is downloaded; without a network the cache is used as it is. With `torch`, a repository
  without safetensors gives its .bin files.

  Raises:
    ImportError: huggingface_hub is not installed.
    FileNotFoundError: no such repository or revision, or neither a network nor a copy in the cache.
    coca.files.retries.Unavailable: the hub fails; it may pass.
    ValueError: not of the form above.
  """
  if not str(path).startswith(PREFIX):
    return path
  name, _, revision = str(path).removeprefix(PREFIX).partition("@")
  if len(name.split("/")) != 2 or not all(name.split("/")):
    raise ValueError(f"{path}: write hf://org/name or hf://org/name@revision")
  try:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
      HfHubHTTPError,
      LocalEntryNotFoundError,
      OfflineModeIsEnabled,
      RepositoryNotFoundError,
    )
  except ImportError:
    raise ImportError(f"{path} needs huggingface_hub: pip install -e '.[hub]'") from None

  def fetch(patterns):
    settings = {"revision": revision or None, "allow_patterns": patterns}
    try:
      return Path(snapshot_download(name, **settings))
    # For a commit it may want the list of files, though all are there.
    except (OfflineModeIsEnabled, *transport_errors()):
      return Path(snapshot_download(name, **settings, local_files_only=True))

  try:
    folder = fetch(list(FILES))
    if torch and not any(folder.glob("*.safetensors")):
      fetch("*.bin")
    return folder
  except RepositoryNotFoundError:
    raise FileNotFoundError(f"{path}: the hub has no such repository, or it is private (then: hf auth login)") from None
  except LocalEntryNotFoundError:
    raise FileNotFoundError(
      f"{path}: the hub can't be reached and {constants.HF_HUB_CACHE} holds no copy; download it "
      "where there is a network and give the folder"
    ) from None
  except (HfHubHTTPError, ValueError) as e:
    if getattr(getattr(e, "response", None), "status_code", 0) in (429, 500, 502, 503, 504):
      raise Unavailable(f"{path}: the hub fails at the moment: {str(e).splitlines()[0]}") from None
    raise FileNotFoundError(f"{path} can't be had from the hub: {str(e).splitlines()[0]}") from None
