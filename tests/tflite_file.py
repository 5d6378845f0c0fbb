"""Writes .tflite files that hold constants alone, as MediaPipe's do among the rest."""

import struct
import zipfile

import numpy as np
import torch


class FlatBuffer:
    """Writes tables front to back: every reference points to what is written after it."""

    def __init__(self, root):
        self.data = bytearray(4)
        struct.pack_into("<I", self.data, 0, self.table(root))

    def table(self, fields):
        """Fields by number: an int is stored in place, anything else behind a reference."""
        start = len(self.data)
        n = max(fields) + 1
        places = [4 * (sorted(fields).index(i) + 1) if i in fields else 0 for i in range(n)]
        self.data += struct.pack(f"<HH{n}H", 4 + 2 * n, 4 + 4 * len(fields), *places)
        table = len(self.data)
        self.data += struct.pack("<i", table - start) + bytes(4 * len(fields))
        for i, value in fields.items():
            here = table + places[i]
            number = value if isinstance(value, int) else self.write(value) - here
            struct.pack_into("<I", self.data, here, number)
        return table

    def write(self, value):
        if isinstance(value, list):  # of tables
            start = len(self.data)
            self.data += struct.pack("<I", len(value)) + bytes(4 * len(value))
            for i, fields in enumerate(value):
                here = start + 4 + 4 * i
                struct.pack_into("<I", self.data, here, self.table(fields) - here)
            return start
        start = len(self.data)
        array = np.frombuffer(value.encode(), "u1") if isinstance(value, str) else value
        self.data += struct.pack("<I", len(array)) + array.tobytes()
        return start


def tflite(constants):
    """The bytes of a file with these tensors, in half precision, and an input."""
    buffers, tensors = [{0: np.empty(0, "u1")}], [{0: np.array([1, 192, 192, 3], "<i4"), 2: 0, 3: "input_1"}]
    for name, tensor in constants.items():
        tensors.append({0: np.array(tensor.shape, "<i4"), 1: 1, 2: len(buffers), 3: name})
        buffers.append({0: np.frombuffer(tensor.contiguous().half().numpy().tobytes(), "u1")})
    return bytes(FlatBuffer({0: 3, 2: [{0: tensors}], 4: buffers}).data)


def check_reading(convert, constants, state, name, folder):
    """That a converter finds a state dict in a file with these constants, and in a wheel that has it by this name."""
    path = folder / name.rpartition("/")[2]
    path.write_bytes(tflite(constants))
    with zipfile.ZipFile(folder / "some.whl", "w") as wheel:
        wheel.write(path, name)
    for source in (path, folder / "some.whl"):
        read = convert(source)
        assert read.keys() == state.keys()
        for key, value in state.items():
            assert torch.equal(read[key], value), key
