"""Files of tensors in the safetensors format (github.com/huggingface/safetensors): a header in JSON, then raw bytes."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import write_atomically

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8
_LENGTH = struct.Struct("<Q")


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors atomically.

    Args:
        path: The file.
        tensors: Of any shape and device, by name.
        metadata: Texts to keep beside them.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    parts, offset = [], 0
    # The widest numbers come first, so that all are aligned.
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name].detach().cpu().contiguous()
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(content)],
        }
        parts.append(content)
        offset += len(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    write_atomically(path, b"".join([_LENGTH.pack(len(text)), text, *parts]))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file.

    Raises:
        UserError: It cannot be read, or is not such a file.
    """
    dtypes = {name: dtype for dtype, name in DTYPES.items()}
    try:
        content = path.read_bytes()
        (length,) = _LENGTH.unpack_from(content)
        header = json.loads(content[_LENGTH.size : _LENGTH.size + length])
        data = memoryview(content)[_LENGTH.size + length :]
        tensors = {}
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                dtype = dtypes[entry["dtype"]]
                # A copy, because bytes cannot be written to; torch makes nothing of no bytes.
                part = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype) if end > begin else torch.empty(0)
                tensors[name] = part.to(dtype).reshape(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, struct.error) as error:
        raise UserError(f"{path}: is not a readable safetensors file ({error})") from None
    return tensors
