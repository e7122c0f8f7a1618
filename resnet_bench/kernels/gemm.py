"""Matrix products, by whichever library multiplies faster here.

torch leaves products of float32 to the BLAS that it was built with. That is MKL for most, which uses no AVX-512 on
processors that Intel did not make: 105 GFLOP/s on one core of a Zen 5. oneDNN, which torch brings for convolutions and
bfloat16, looks at what a processor can: 240 GFLOP/s there. The right one is a question of measurement.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]
"""Of matrices `[M, K]` and `[N, K]`, the first by the second's transpose: `[M, N]`."""


def multiply_by_onednn(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices of float32; see :data:`Product`. It has no gradient."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return found


PRODUCTS: Mapping[str, Product] = {"gemm": F.linear, "gemm_onednn": multiply_by_onednn}


@functools.cache
def products(dtype: torch.dtype) -> Sequence[str]:
    """List the names of those that there are for a type, torch's own first. It multiplies bfloat16 by oneDNN anyway."""
    has_another = (
        dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
    return list(PRODUCTS) if has_another else ["gemm"]
