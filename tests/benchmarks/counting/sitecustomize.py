"""Counts the operations of a kernel's matrix products; Python imports it at its start if the folder is on its path.

The file that ``COUNTED`` names holds one float64, the sum so far: 2 for each product of two entries, dense tensors
only, float32 and float64 alike. NumPy's own products are not counted.
"""

import os
import sys

if "ipykernel_launcher" in sys.orig_argv and "COUNTED" in os.environ:
    import numpy as np
    import torch

    _sum = np.memmap(os.environ["COUNTED"], np.float64, "r+", shape=1)

    def _counted(product):
        def counted(one, other, *args, **options):
            found = product(one, other, *args, **options)
            if isinstance(found, torch.Tensor) and {one.layout, other.layout} == {torch.strided}:
                _sum[0] += 2.0 * one.shape[-1] * found.numel()
            return found

        return counted

    torch.mm = _counted(torch.mm)
    torch.Tensor.__matmul__ = _counted(torch.Tensor.__matmul__)
