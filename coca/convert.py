r"""open_clip's weights as a model directory, and back.

    python -m coca.convert SOURCE OUT                      # a folder with open_clip_config.json, weights and tokenizer
    python -m coca.convert WEIGHTS OUT --model=coca_ViT-B-32           # a file of weights alone
    python -m coca.convert SOURCE OUT --to=open_clip       # a model directory or a workdir: a folder for open_clip

OUT then works wherever a workdir does: coca.load(OUT), config.init_from=OUT. What converts: open_clip's CoCa and its
CLIP models with ViTs (coca/interop/open_clip_config.py). Weights are read from .safetensors; from .bin, .pt and .pth
only where torch is installed, and never by running code that is in them. OUT appears as a whole or not at all.
"""

import argparse
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from coca import sharding, weights
from coca.checkpoint import CheckpointError
from coca.commands import one_line
from coca.data import clip_tokenizer
from coca.forward import Forward
from coca.interop import open_clip, open_clip_config
from coca.workdir import read_params, read_workdir, write_run

SETTINGS = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors",
           "open_clip_pytorch_model.bin", "pytorch_model.bin", "open_clip_model.bin", "open_clip_pytorch_model.pt",
           "pytorch_model.pt")
TORCH = (".bin", ".pt", ".pth")


def from_open_clip(source, out, model: str = "", config: str = "", tokenizer: str = "") -> None:
  """Writes a model directory.

  Args:
    source: a folder with open_clip_config.json, weights and tokenizer files; or a file of weights.
    out: the new directory.
    model: open_clip's name of the model, where there is no open_clip_config.json (`open_clip_config.MODELS`).
    config: a file like open_clip_config.json, instead.
    tokenizer: a folder with CLIP's tokenizer files, or one of them; empty: beside the weights.

  Raises:
    FileNotFoundError: a file that is missing, by name.
    ValueError: what cannot be read or converted, or a directory that is there already.
  """
  source, out = Path(source), Path(out)
  _check_new(out)
  if not source.exists():
    raise FileNotFoundError(f"no such file or folder: {source}")
  folder = source if source.is_dir() else source.parent
  path = _weights_in(folder) if source.is_dir() else source
  settings = open_clip_config.to_config(_settings(folder, model, config), model or source.resolve().stem)
  tokens = clip_tokenizer.find(tokenizer or folder, settings.model.text.vocab)
  try:
    params = open_clip.to_params(read_state_dict(path), settings)
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from None
  with _directory(out) as partial:
    sha256 = weights.write(partial / weights.FILE, params)
    tokens.save(partial / tokens.file)
    write_run(settings, tokens, partial, weights_sha256=sha256)  # last: without it, this is no model directory


def to_open_clip(source, out) -> None:
  """Writes a folder that `open_clip.create_model("local-dir:OUT")` loads.

  Args:
    source: a model directory or a workdir; of the latter, the moving average where the run kept one.
    out: the new folder.

  Raises:
    FileNotFoundError: no model there.
    ValueError: open_clip has no such model (what differs is listed), or `out` is there already.
    coca.checkpoint.CheckpointError: all checkpoints are damaged.
  """


  out = Path(out)
  _check_new(out)
  config, tokens = read_workdir(source)
  settings = open_clip_config.from_config(config)
  if tokens.file != clip_tokenizer.FILE:
    print(f"note: open_clip reads no {tokens.file}; its tokenizer gives other ids than this model's")
  forward = Forward(config, sharding.make_mesh(devices=jax.local_devices()[:1]))
  state_dict = open_clip.to_state_dict(read_params(source, forward.abstract_params), config)
  with _directory(out) as partial:
    weights.save(partial / WEIGHTS[0], state_dict)
    tokens.save(partial / tokens.file)
    (partial / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def read_state_dict(path) -> dict[str, np.ndarray]:
  """The tensors of a file by name.

  Raises:
    ValueError: a damaged file, one of another kind, or one that needs torch, which is not installed.
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
    raise ValueError("reading it takes torch, which is not installed: pip install torch, or take the .safetensors file "
                     "of these weights") from None
  try:
    saved = torch.load(path, map_location="cpu", weights_only=True)
    saved = saved.get("state_dict", saved)
    return {key: x.detach().float().numpy() for key, x in saved.items() if isinstance(x, torch.Tensor)}
  except Exception as e:  # it raises whatever pickle, zipfile and its own parts raise
    reason = str(e).partition("\n")[0].partition(". ")[0][:160]
    raise ValueError(f"no file of weights alone, or a damaged one ({type(e).__name__}: {reason}); archives of "
                     "TorchScript and files that hold code are not read: load such a file with open_clip and save its "
                     "state_dict as .safetensors") from None


def _weights_in(folder: Path) -> Path:
  for name in WEIGHTS:
    if (folder / name).exists():
      return folder / name
  raise FileNotFoundError(f"no weights in {folder}: looked for {', '.join(WEIGHTS)}; name another file instead of the "
                          "folder")


def _settings(folder: Path, model: str, config: str) -> dict:
  if model:
    if model not in open_clip_config.MODELS:
      raise ValueError(f"--model={model} is not known; these are: {', '.join(open_clip_config.MODELS)}. For others, "
                       "give open_clip's config with --config=FILE")
    return open_clip_config.MODELS[model]
  path = Path(config or folder / SETTINGS)
  if not path.exists():
    raise FileNotFoundError(f"no {path}: say which model this is, with --model=NAME "
                            f"({', '.join(open_clip_config.MODELS)}) or --config=FILE")
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as e:
    raise ValueError(f"{path} can't be read: {e}") from None


def _check_new(out: Path) -> None:
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(f"{out} is there already; name another place, or remove it")


@contextmanager
def _directory(out: Path):
  """A folder that takes the name `out` when the block has ended well, and is removed otherwise."""
  partial = out.parent / f"{out.name}.{os.getpid()}.partial"
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    yield partial
    os.replace(partial, out)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("source", help="a folder or a file of weights")
  parser.add_argument("out", help="the directory to write")
  parser.add_argument("--model", default="", help=f"one of {', '.join(open_clip_config.MODELS)}")
  parser.add_argument("--config", default="", help="a file like open_clip_config.json")
  parser.add_argument("--tokenizer", default="", help="CLIP's tokenizer files, if not beside the weights")
  parser.add_argument("--to", default="coca", choices=("coca", "open_clip"))
  args = parser.parse_args()
  with one_line(ValueError, OSError, CheckpointError):
    if args.to == "open_clip":
      to_open_clip(args.source, args.out)
      use = f'open_clip.create_model("local-dir:{args.out}")'
    else:
      from_open_clip(args.source, args.out, args.model, args.config, args.tokenizer)
      use = f'coca.load("{args.out}")'
  print(f"wrote {args.out}; use it with {use}")


if __name__ == "__main__":
  main()
