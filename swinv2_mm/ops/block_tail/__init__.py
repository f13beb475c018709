"""What follows the attention in a block, in one kernel: inference in half precision on NVIDIA GPUs."""

from swinv2_mm.ops.block_tail.triton_backend import TailWeights, block_tail, why_not_fused

__all__ = ['TailWeights', 'block_tail', 'why_not_fused']
