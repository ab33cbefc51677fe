"""A folder with which a model runs where there is no coca: programs, weights, tokenizer and what to know of them.

    embed_images.jax, embed_texts.jax, caption.jax    StableHLO, as `jax.export.deserialize` reads it
    embed_images.onnx, embed_texts.onnx               where asked for (coca/interop/onnx_files.py)
    model.safetensors                                 the weights of all programs, each tensor once
    tokenizer.model, tokenizer.json or vocab.txt      the model's own
    manifest.json                                     what the programs take and give, and how images are prepared

The weights lie beside the programs: towers and captioner share most of them, each program takes those that it needs,
and what `jax.export` writes ends at 2 GiB, with weights inside at 0.5 billion parameters.

Shapes: B batch.
"""

import dataclasses
import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from tqdm import tqdm

from coca import __version__
from coca.config.special import PAD
from coca.data.images import colour
from coca.data.tokenizers.json_file import JsonTokenizer
from coca.decoding.decode import own_prompt
from coca.decoding.settings import Decoding
from coca.devices.sharding import absent_device
from coca.files.writing import write_atomic
from coca.inference.captioner import ContrastiveCaptioner
from coca.inference.identity import identity
from coca.interop import files, onnx_files
from coca.interop.programs import Program, programs, tensors_of
from coca.storage import weights

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_model(
  model: ContrastiveCaptioner, out, decoding: Decoding | None = None, dtype: str = "", onnx: bool = False
) -> dict:
  """Writes the folder.

  Args:
    model: from `coca.load`.
    out: the new folder; it is there as a whole or not at all.
    decoding: of captions; None: greedy.
    dtype: see `programs`.
    onnx: whether the towers are written as ONNX too.

  Returns:
    the manifest.

  Raises:
    ValueError: as `programs`; `out` is there already; or what `onnx_files.write` can't convert.
    ImportError: a package of the extras 'export' or 'onnx' is missing.
  """
  out, decoding = files.check_new(out), decoding or Decoding()
  for name in ("flatbuffers", *(onnx_files.NEEDS if onnx else ())):
    if importlib.util.find_spec(name) is None:
      extra = "export" if name == "flatbuffers" else "onnx"
      raise ImportError(f"to export takes {name}: pip install -e '.[{extra}]'")
  found, lacking = programs(model, decoding, dtype)
  tensors, used = {name: np.asarray(x) for name, x in tensors_of(model.params).items()}, set()
  manifest = about(model) | {"programs": {}, "lacks": lacking, "files": {}}
  if "caption" in found:
    _, begin = own_prompt(model.config, model.tokenizer, 1, decoding.max_length)
    manifest["caption"] = {"begins_at": begin, **dataclasses.asdict(decoding)}
  with files.directory(out) as partial:
    for name, program in tqdm(found.items(), unit=" programs", disable=None):
      written, taken = exported(program, tensors)
      write_atomic(partial / f"{name}.jax", bytes(written.serialize()))
      manifest["programs"][name] = {"file": f"{name}.jax", **described(program, written), "tensors": taken}
      used |= set(taken)
      if onnx and name in onnx_files.TOWERS:
        program = programs(model, dtype="float32")[0][name]
        manifest["programs"][name]["onnx"] = onnx_files.write(partial, name, program, tensors)
    weights.save(partial / weights.FILE, {name: tensors[name] for name in sorted(used)})
    model.tokenizer.save(partial / model.tokenizer.file)
    manifest["files"] = {path.name: weights.sha256_of(path) for path in sorted(partial.iterdir())}
    files.write_json(partial / "manifest.json", manifest)
  return manifest


def exported(program: Program, tensors: dict[str, np.ndarray]) -> tuple[export.Exported, list[str]]:
  """The program for any batch and all of `PLATFORMS`, and the names of the tensors that it takes."""
  (batch,) = export.symbolic_shape("batch")
  example, whole = (jax.ShapeDtypeStruct((n, *program.shape), jnp.dtype(program.dtype)) for n in (2, batch))
  shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in sorted(tensors.items())}
  with jax.sharding.use_abstract_mesh(absent_device("any")):
    # jax tells what a program looks at of a batch of a fixed size alone.
    first = export.export(jax.jit(program.function), platforms=("cpu",))(shapes, example)
    taken = {name: like for i, (name, like) in enumerate(shapes.items()) if i in first.module_kept_var_idx}
    function = functools.partial(_with_zeros, program.function, {n: x for n, x in shapes.items() if n not in taken})
    return export.export(jax.jit(function), platforms=PLATFORMS)(taken, whole), list(taken)


def _with_zeros(function, unused, tensors, x):
  return function(tensors | {name: jnp.zeros(like.shape, like.dtype) for name, like in unused.items()}, x)


def described(program: Program, written: export.Exported) -> dict:
  """The program's input and output: names, shapes and dtypes; 'batch' is any number from 1 on."""
  (out,) = written.out_avals
  return {
    "input": {"name": program.input, "shape": ["batch", *program.shape], "dtype": program.dtype},
    "output": {"name": program.output, "shape": ["batch", *out.shape[1:]], "dtype": str(out.dtype)},
  }


def about(model: ContrastiveCaptioner) -> dict:
  """The part of the manifest that is the model's: where it is from, images, texts, scores."""
  config, data, image, tokens = model.config, model.config.data, model.config.model.image, model.tokenizer
  found = {
    "model": config.name,
    "identity": identity(model),
    "coca": __version__,
    "jax": jax.__version__,
    "platforms": PLATFORMS,
    "image": {
      "size": image.size,  # pixels a side
      "fit": "squash" if data.squash else "central square",
      "resize": data.resize or image.size,  # what the square is resized to, before `size` of it is cut out
      "filter": data.filter,
      "background": colour(data.background),
      # The programs do this: (image / 255 - mean) / std.
      "mean": image.mean,
      "std": image.std,
    },
    "text": {
      "tokenizer": tokens.file,
      "length": config.model.text.length,
      "bos": tokens.bos,  # -1: nothing is put in front
      "eos": tokens.eos,
      "pad": tokens.frame.fill if isinstance(tokens, JsonTokenizer) else PAD,  # what rows are filled up with
    },
  }
  for name, value in model.params.get("temperature", {}).items():  # cosine * logit_scale + logit_bias
    value = float(value)
    found |= {"logit_scale": math.exp(value)} if name == "log_scale" else {name: value}
  return found
