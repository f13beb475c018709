"""The linear layer of the backbones."""

from torch import Tensor, nn

from swinv2_mm.ops.linear import linear


class Linear(nn.Linear):
    """`nn.Linear` in all but speed, see `swinv2_mm.ops.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
