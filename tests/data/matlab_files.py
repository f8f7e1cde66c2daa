"""MATLAB files of version 7.3 as MATLAB lays them out: by columns, strings as 16-bit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np


def write_mat73(path: Path, fields: dict[str, Any]) -> None:
    """Matrices, and lists of strings as cells."""
    with h5py.File(path, "w", userblock_size=512) as file:
        cells = file.create_group("#refs#")
        for name, value in fields.items():
            if isinstance(value, list) and all(isinstance(text, str) for text in value):
                references = []
                for number, text in enumerate(value):
                    codes = np.frombuffer(text.encode("utf-16-le"), "<u2")[:, None]
                    cell = cells.create_dataset(f"{name}{number}", data=codes)
                    cell.attrs["MATLAB_class"] = np.bytes_("char")
                    cell.attrs["MATLAB_int_decode"] = np.int32(2)
                    references.append([cell.ref])
                rows = np.array(references, h5py.ref_dtype).T
                held = file.create_dataset(name, data=rows, dtype=h5py.ref_dtype)
                held.attrs["MATLAB_class"] = np.bytes_("cell")
                continue
            matrix = np.asarray(value)
            held = file.create_dataset(name, data=matrix.T, compression="gzip")
            kind = {"float64": "double", "float32": "single", "bool": "logical"}
            held.attrs["MATLAB_class"] = np.bytes_(kind.get(str(matrix.dtype), str(matrix.dtype)))
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    content = bytearray(path.read_bytes())
    content[: len(header)] = header
    path.write_bytes(bytes(content))
