"""Parameters in one safetensors file: names with dots, as in 'unimodal.stack.layers.mlp.up.kernel'; fp32."""

import hashlib
import os
import tempfile
from collections.abc import Mapping

import jax
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from coca.config.differing import listed
from coca.devices.trees import path_name
from coca.files.retries import again, exists

FILE = "model.safetensors"
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")  # that are read


def write(path, params) -> str:
  """Writes a tree of arrays and returns the file's sha256."""
  save(path, {_name(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(params)})
  return sha256_of(path)


def save(path, tensors: dict[str, np.ndarray]) -> None:
  """Writes contiguous arrays by name."""
  safetensors.numpy.save_file(tensors, path, {"format": "pt"})  # some readers ask for a format
  with open(path, "rb+") as f:
    os.fsync(f.fileno())
  os.chmod(path, 0o644)  # the library makes it the owner's alone


def read(path, abstract_params, sha256: str = ""):
  """Arrays on the devices.

  Args:
    path: of the file.
    abstract_params: tree of `jax.ShapeDtypeStruct`s with shardings; what else is in the file is left there.
    sha256: what the file's must be; empty: any.

  Raises:
    ValueError: another file than `sha256` says, a damaged one, or other parameters than `abstract_params` (listed).
  """
  if sha256 and sha256_of(path) != sha256:
    raise ValueError(f"{path} is damaged: it is not what was written (sha256); convert the weights again")
  with Tensors(path) as tensors:
    wanted = {_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(abstract_params)}
    differing = [
      f"{name}: {list(tensors.shape(name)) if name in tensors else 'none'} in the file, {list(x.shape)} wanted"
      for name, x in wanted.items()
      if name not in tensors or tensors.shape(name) != x.shape
    ]
    if differing:
      raise ValueError(f"{path} holds other parameters:\n  {listed(differing)}")

    def load(path, like):
      value = tensors[_name(path)].astype(like.dtype)
      return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])

    return jax.tree_util.tree_map_with_path(load, abstract_params)


class Tensors(Mapping):
  """The tensors of a safetensors file by name, each read when it is asked for. To be used with `with`.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not a safetensors file, or a truncated one; a tensor of another type than `DTYPES`.
  """

  def __init__(self, path):
    self.path = epath.Path(path)
    if not exists(path) or self.path.is_dir():
      raise FileNotFoundError(f"no weights in {path}")
    again(lambda: self.path.open("rb").close(), str(path))  # the library calls any failure to open absence
    try:
      if "://" in str(path):  # the library maps local files only; mapped, it may lose its name
        with tempfile.NamedTemporaryFile() as copy:
          copy.write(self.path.read_bytes())
          copy.flush()
          self._file = safetensors.safe_open(copy.name, "numpy").__enter__()
      else:
        self._file = safetensors.safe_open(str(path), "numpy").__enter__()
    except safetensors.SafetensorError as e:
      raise ValueError(f"{path} is no safetensors file, or a damaged or truncated one ({e}); fetch it again") from None
    self._names = dict.fromkeys(self._file.keys())

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._file.__exit__(*error)

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self._names:
      raise KeyError(name)
    dtype = self._file.get_slice(name).get_dtype()
    if dtype not in DTYPES:
      raise ValueError(
        f"{self.path}: '{name}' is stored as {dtype}; {', '.join(DTYPES)} are read. Quantised weights "
        "mean nothing without their scales: take the file that they were made from, or save BF16"
      )
    return self._file.get_tensor(name)

  def __iter__(self):
    return iter(self._names)

  def __len__(self):
    return len(self._names)

  def shape(self, name: str) -> tuple[int, ...]:
    return tuple(self._file.get_slice(name).get_shape())


def sha256_of(path) -> str:
  def read():
    with epath.Path(path).open("rb") as f:
      return hashlib.file_digest(f, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]

  return again(read, str(path))


def _name(path) -> str:
  return path_name(path).replace("/", ".")
