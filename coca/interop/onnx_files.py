"""Towers as ONNX, by jax2onnx: for onnxruntime, in whatever language.

What is written runs once in onnxruntime, beside jax, before anybody relies on it.
"""

import functools
import importlib
import logging
from pathlib import Path

import jax
import numpy as np

from coca.devices.sharding import absent_device
from coca.interop.programs import Program

NEEDS = ("jax2onnx", "onnxruntime")  # packages, of the extra 'onnx'
TOWERS = ("embed_images", "embed_texts")
TOLERANCE = 1e-5  # of the numbers of embeddings of unit length, between onnxruntime and jax
BATCH = 3  # examples of the comparison


def write(folder: Path, name: str, program: Program, tensors: dict[str, np.ndarray]) -> dict:
  """Writes NAME.onnx into a folder; large weights beside it, as NAME.onnx.data.

  Args:
    folder: that is there.
    name: of the program.
    program: of `coca.interop.programs`, in float32.
    tensors: all that it takes.

  Returns:
    'file', and 'difference', the largest between onnxruntime's numbers and jax', for a batch of random inputs.

  Raises:
    ValueError: jax2onnx can't convert it, or it gives other numbers.
  """
  for noisy in ("jax2onnx", "onnx_ir"):
    logging.getLogger(noisy).setLevel(logging.ERROR)
  to_onnx, runtime = importlib.import_module("jax2onnx").to_onnx, importlib.import_module("onnxruntime")
  function, path = functools.partial(_unrolled, program.function, tensors), folder / f"{name}.onnx"
  given = jax.ShapeDtypeStruct(("batch", *program.shape), np.dtype(program.dtype))  # pyright: ignore[reportArgumentType]
  names = {"input_names": [program.input], "output_names": [program.output]}
  example = np.random.default_rng(0).integers(0, program.below, (BATCH, *program.shape)).astype(program.dtype)
  with jax.sharding.use_abstract_mesh(absent_device("any")):
    try:
      to_onnx(function, [given], model_name=name, return_mode="file", output_path=str(path), **names)
      found = runtime.InferenceSession(str(path)).run(None, {program.input: example})[0]
    except Exception as e:  # either raises whatever its parts raise
      raise ValueError(
        f"{name} can't be had as ONNX ({type(e).__name__}: {str(e).splitlines()[0][:200]}); leave out --onnx: "
        f"{name}.jax holds the same"
      ) from e
  for written in folder.glob(f"{name}.onnx*"):
    written.chmod(0o644)  # onnx makes the weights' file the owner's alone
  wanted = jax.jit(function)(example)
  difference = float(np.abs(found - wanted).max())
  if not difference <= TOLERANCE:
    raise ValueError(
      f"{name}.onnx gives numbers that are {difference:.1e} from jax', more than {TOLERANCE:.0e}: leave out --onnx, "
      "or install the version of jax2onnx in docs/export.md"
    )
  return {"file": path.name, "difference": difference}


def _unrolled(function, tensors, x):
  """Layers one by one in place of a loop over them, which other runtimes optimise less, or lack."""
  with jax.disable_jit():
    return function(tensors, x)
