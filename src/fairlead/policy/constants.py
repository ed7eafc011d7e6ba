"""The constants of an ONNX file, read without the `onnx` package, which only training installs.

An ONNX file is a protobuf message: a sequence of fields, each a number, a kind of encoding and a value
(https://protobuf.dev/programming-guides/encoding/). The numbers below are those of `onnx.proto`.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fairlead.errors import FairleadError

_GRAPH = 7  # of a ModelProto
_INITIALIZER = 5  # of a GraphProto
_DIMENSIONS, _TYPE, _NAME, _RAW = 1, 2, 8, 9  # of a TensorProto
_DTYPES = {1: np.float32, 7: np.int64}

_NUMBER, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # kinds of encoding


def read_constants(content: bytes) -> dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int64]]:
    """Every constant of the graph by name, as `export_onnx` writes them: float32 and int64, as raw bytes.

    Raises:
        FairleadError: if this is no ONNX file, or its constants are stored in another way.
    """
    try:
        return {
            name: value
            for graph in _values(memoryview(content), _GRAPH)
            for name, value in map(_tensor, _values(_bytes(graph), _INITIALIZER))
        }
    except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise FairleadError(
            f"the constants of the policy cannot be read ({error}): export it again"
        ) from error


def _tensor(value: int | memoryview) -> tuple[str, npt.NDArray[np.float32] | npt.NDArray[np.int64]]:
    message = _bytes(value)
    (kind,), (name,), (raw,) = (list(_values(message, each)) for each in (_TYPE, _NAME, _RAW))
    shape = [_number(each) for each in _values(message, _DIMENSIONS)]
    array = np.frombuffer(_bytes(raw), _DTYPES[_number(kind)]).reshape(shape)
    return bytes(_bytes(name)).decode(), array


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise TypeError("bytes where a number belongs")
    return value


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise TypeError("a number where bytes belong")
    return value


def _values(message: memoryview, wanted: int) -> Iterator[int | memoryview]:
    """The values of a message's fields of one number: whole numbers or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        value: int | memoryview
        if kind == _NUMBER:
            value, at = _varint(message, at)
        else:
            if kind == _BYTES:
                size, at = _varint(message, at)
            else:
                size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}[kind]
            value, at = message[at : at + size], at + size
        if tag >> 3 == wanted:
            yield value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A whole number, seven bits a byte, lowest first; and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
