"""Reading an archive of arrays (.npz) without running code from it and without more memory than it says."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_ARRAYS = 1000
MAX_ARRAY_BYTES = 1 << 28  # of all arrays together, unpacked
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(data: bytes) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of an .npz archive by name.

    Raises `ValueError`, and what `zipfile` raises, if it is not an archive of plain numeric arrays, or a larger one
    than `MAX_ARRAY_BYTES`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) > MAX_ARRAYS or sum(member.file_size for member in members) > MAX_ARRAY_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_ARRAYS} arrays or {MAX_ARRAY_BYTES:,} bytes")
        return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}


def _array(data: bytes) -> NDArray[Any]:
    stream = io.BytesIO(data)
    read_header = _HEADERS.get(np.lib.format.read_magic(stream))
    if read_header is None:
        raise ValueError("an array has an unknown format")
    shape, fortran, dtype = read_header(stream)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"an array holds {dtype}, not numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError("an array has another size than its header says")
    values = np.frombuffer(data, dtype, offset=stream.tell())
    return values.reshape(shape, order="F" if fortran else "C").copy()
