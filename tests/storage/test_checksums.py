import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from coca.storage import checksums as module
from coca.storage.checksums import checksums


@pytest.fixture(autouse=True, params=["XLA", "NumPy"])
def by(request, monkeypatch):
  """Small arrays are added up by NumPy, larger ones by XLA."""
  monkeypatch.setattr(module, "_SMALL", {"XLA": -1, "NumPy": 2**20}[request.param])


def mesh_of(a: int, b: int):
  return jax.make_mesh((a, b), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def reference_checksum(x: np.ndarray) -> str:
  """The same sums in NumPy, 64-bit integers reduced modulo 2^32."""
  width = {1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize]
  bits, mod = x.view(width).astype(np.uint64), 2**32

  def mix(v, m1, m2):
    v = (v ^ (v >> 16)) * m1 % mod
    v = (v ^ (v >> 15)) * m2 % mod
    return v ^ (v >> 16)

  text = ""
  for m1, m2 in ((0x85EBCA6B, 0xC2B2AE35), (0x7FEB352D, 0x846CA68B)):
    total = 0
    for index in np.ndindex(x.shape):
      place = 0
      for axis, i in enumerate(index):
        place = (place * m2 + mix((i + 0x9E3779B9 * (axis + 1)) % mod, m1, m2)) % mod
      total += mix(int(bits[index]) ^ place, m1, m2)
    text += f"{total % mod:08x}"
  return text


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32, np.uint32, bool, np.int8])
@pytest.mark.parametrize("shape", [(), (5,), (8, 6), (2, 3, 4)])
def test_checksum_is_the_formula(dtype, shape):
  x = np.asarray(np.random.default_rng(0).normal(size=shape) * 4).astype(dtype)
  assert checksums({"x": jnp.asarray(x)}) == {"x": reference_checksum(x)}


def test_checksum_does_not_depend_on_the_sharding():
  x = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
  found = {
    checksums({"x": jax.device_put(x, NamedSharding(mesh, spec))})["x"]
    for mesh in (mesh_of(2, 4), mesh_of(8, 1))
    for spec in (P(), P("a"), P("a", "b"), P(None, ("b", "a")))
  }
  assert found == {checksums({"x": jnp.asarray(x)})["x"]}


def test_checksum_changes_with_any_bit_any_swap_and_the_shape():
  x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
  variants = [x]
  for element in range(x.size):
    for bit in (0, 13, 31):
      y = x.copy()
      y.view(np.uint32).flat[element] ^= np.uint32(1 << bit)
      variants.append(y)
    y = x.copy()
    y.flat[element], y.flat[element - 1] = x.flat[element - 1], x.flat[element]
    variants.append(y)
  variants += [x[::-1].copy(), x[:, ::-1].copy(), np.roll(x, 1, 0), np.roll(x, 1, 1)]
  found = checksums({str(i): jnp.asarray(v) for i, v in enumerate(variants)})
  assert len(set(found.values())) == len(variants)
  flat = checksums({"flat": jnp.asarray(x.reshape(-1)), "transposed": jnp.asarray(x.T)})
  assert len({*flat.values(), found["0"]}) == 3
  zeros = checksums({str(n): jnp.zeros(n) for n in range(1, 5)})
  assert len(set(zeros.values())) == 4
