import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_db import codec
from mrr.errors import CorruptEntry

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "float16", "float32"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    )
)
META = st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans()), max_size=3)


@given(st.dictionaries(st.text(), ARRAYS, max_size=5), META, st.text())
@settings(max_examples=200, deadline=None)
def test_what_is_encoded_is_decoded_and_safetensors_agrees(tensors, meta, key):
    tensors.pop("__metadata__", None)
    data = codec.encode(key, tensors, meta)
    entry = codec.decode(data.copy(), key, "disk")
    witness = safetensors.numpy.load(data.tobytes())
    assert dict(entry.meta) == meta
    assert entry.tensors.keys() == tensors.keys() == witness.keys()
    for name, tensor in tensors.items():
        for other in (entry.tensors[name], witness[name]):
            assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
            assert other.tobytes() == tensor.tobytes()


def test_arrays_are_read_only_views_of_one_buffer_aligned_to_their_items():
    tensors = {"a": np.ones(3, np.int8), "b": np.ones(5, np.float32), "c": np.ones(7, np.uint16)}
    data = codec.encode("key", tensors, {})
    entry = codec.decode(data, "key", "disk")
    for array in entry.tensors.values():
        assert np.shares_memory(array, data)
        assert array.flags.aligned
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_arrays_in_any_memory_order_are_stored_in_row_major_order():
    tensor = np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(2, 0, 1)
    swapped = tensor.astype(">i2")
    entry = codec.decode(codec.encode("key", {"a": tensor, "b": swapped}, {}), "key", "disk")
    assert np.array_equal(entry.tensors["a"], tensor)
    assert np.array_equal(entry.tensors["b"], tensor)


def test_an_entry_is_refused_under_another_key():
    data = codec.encode("key", {"a": np.ones(3)}, {})
    with pytest.raises(CorruptEntry):
        codec.decode(data, "other", "disk")


@pytest.mark.parametrize("version", ["0", "2"])
def test_an_entry_of_another_format_version_is_refused(monkeypatch, version):
    monkeypatch.setattr(codec, "FORMAT", version)
    data = codec.encode("key", {"a": np.ones(3)}, {})
    monkeypatch.undo()
    with pytest.raises(CorruptEntry):
        codec.decode(data, "key", "disk")


@given(st.binary(max_size=300))
def test_bytes_that_are_no_entry_are_refused(junk):
    with pytest.raises(CorruptEntry):
        codec.decode(np.frombuffer(junk, np.uint8), "key", "disk")


def test_a_dtype_the_format_lacks_is_refused_by_name():
    with pytest.raises(ValueError, match="'x' of complex64"):
        codec.encode("key", {"x": np.ones(3, np.complex64)}, {})


def test_any_flipped_bit_of_a_sealed_column_is_found():
    vector = np.arange(6, dtype=np.float32)
    blob = codec.seal(vector)
    assert np.array_equal(codec.unseal(blob), vector)
    for bit in range(len(blob) * 8):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptEntry):
            codec.unseal(bytes(damaged))
