"""Files of other people's weights: which of them are read, and how; and folders that appear as a whole."""

import json
import os
import re
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from coca.config.typed import entry, read_object
from coca.files.retries import of_the_system
from coca.storage import weights

WEIGHTS = (
  "open_clip_model.safetensors",
  "open_clip_pytorch_model.safetensors",
  "model.safetensors",
  "open_clip_pytorch_model.bin",
  "pytorch_model.bin",
  "open_clip_model.bin",
  "open_clip_pytorch_model.pt",
  "pytorch_model.pt",
)
TORCH = (".bin", ".pt", ".pth")
OLDEST_TORCH = (2, 10)  # before, a file could run code in spite of `weights_only`, or write beyond its memory


def read_state_dict(path) -> dict[str, np.ndarray]:
  """The tensors of a file by name.

  Raises:
    ValueError: a damaged file, one of another kind, or one that needs torch, which is not installed or too old.
  """
  path = Path(path)
  if path.suffix == ".safetensors":
    with weights.Tensors(path) as tensors:
      return dict(tensors)
  if path.suffix not in TORCH:
    raise ValueError(f"weights are read from .safetensors, {', '.join(TORCH)} files")
  try:
    import torch
  except ImportError:
    raise ValueError(
      "reading it takes torch, which is not installed: pip install torch, or take the .safetensors file "
      "of these weights"
    ) from None
  version = re.match(r"(\d+)\.(\d+)", torch.__version__)
  if not version or tuple(map(int, version.groups())) < OLDEST_TORCH:
    raise ValueError(
      f"torch {torch.__version__} is installed, and a file of weights can run code in it: pip install "
      "'torch>=2.10', or take the .safetensors file of these weights"
    )
  try:
    saved = torch.load(path, map_location="cpu", weights_only=True)
    saved = saved.get("state_dict", saved.get("model", saved))  # of open_clip's training; of BLIP's
    return {key: x.detach().float().numpy() for key, x in saved.items() if isinstance(x, torch.Tensor)}
  except Exception as e:  # it raises whatever pickle, zipfile and its own parts raise
    if of_the_system(e):
      raise
    reason = str(e).partition("\n")[0].partition(". ")[0][:160]
    raise ValueError(
      f"no file of weights alone, or a damaged one ({type(e).__name__}: {reason}); archives of "
      "TorchScript and files that hold code are not read: load such a file with what wrote it and save "
      "its state_dict as .safetensors"
    ) from None


def names(path) -> list[str]:
  """The names of the tensors of a file; raises as `read_state_dict`."""
  if Path(path).suffix == ".safetensors":
    with weights.Tensors(path) as tensors:
      return list(tensors)
  return list(read_state_dict(path))


def weights_in(folder: Path) -> Path:
  for name in WEIGHTS:
    if (folder / name).exists():
      return folder / name
  raise FileNotFoundError(
    f"no weights in {folder}: looked for {', '.join(WEIGHTS)}; name another file instead of the folder"
  )


def read_json(path) -> dict:
  """A JSON object. Raises ValueError: a damaged file, or another value."""
  try:
    return read_object(Path(path).read_bytes())
  except ValueError as e:
    raise ValueError(f"{path} can't be read: {e}") from None


def write_json(path, contents: dict) -> None:
  Path(path).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def image_processor(folder: Path) -> dict:
  """The settings of images that transformers keeps, in the file of its version 4 or 5; empty: none."""
  if (folder / "preprocessor_config.json").exists():
    return read_json(folder / "preprocessor_config.json")
  path = folder / "processor_config.json"
  return entry(read_json(path), f"{path}: image_processor", {}) if path.exists() else {}


def check_new(out) -> Path:
  """A folder that is to be written, before the work: `directory` could not give it its name in the end.

  Raises:
    ValueError: it is there already, a URL, or can't be replaced.
    OSError: its parent can't be made.
  """
  out = Path(out).expanduser()
  if re.match(r"\w{2,}:/", str(out)):
    raise ValueError(f"{out} is a URL; name a folder of this machine, and copy it there")
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(f"{out} is there already; name another place, or remove it")
  if out.is_symlink() or os.path.ismount(out) or out.resolve() == Path.cwd():
    raise ValueError(f"{out} is a link, a mount or where you are, and can't be replaced; name {out / 'model'}")
  out.parent.mkdir(parents=True, exist_ok=True)
  return out


@contextmanager
def directory(out: Path):
  """A folder that takes the name `out` when the block has ended well, and is removed otherwise."""
  partial = out.parent / f".{out.name}.{uuid.uuid4().hex}"  # which nobody else has
  partial.mkdir(parents=True)
  try:
    yield partial
    os.replace(partial, out)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
