"""Files of tensors in the safetensors format, written atomically and read with one sentence for what is wrong."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import write_atomically


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors atomically.

    Args:
        path: The file.
        tensors: Of any shape and device, by name.
        metadata: Texts to keep beside them.
    """
    # The library refuses tensors that share their memory.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, save(own, dict(metadata)))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file.

    Raises:
        UserError: It cannot be read, or is not such a file.
    """
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: is not a readable safetensors file ({error})") from None
