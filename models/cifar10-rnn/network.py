"""The two networks in torch: one reads a picture row by row, the other looks at it whole. About as many weights each.

Tensor letters: N pictures, C channels, H rows, W columns, F features, K classes.

References:
    Schuster, Paliwal, "Bidirectional recurrent neural networks" (1997): both ways over a sequence.
    Cho et al., "Learning phrase representations using RNN encoder-decoder" (2014), arXiv:1406.1078: the GRU.
    Visin et al., "ReNet: A Recurrent Neural Network Based Alternative to Convolutional Networks" (2015), arXiv:1505.00393:
        pictures as sequences of rows and columns.
    Ioffe, Szegedy, "Batch Normalization" (2015), arXiv:1502.03167.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 32


class RowByRow(nn.Module):
    """Pictures float (N, 3, 32, 32), normalised -> class scores at each row (N, K, H, 1); their mean is the logits.

    A row is one step: its 96 numbers. Two layers of GRU, each both ways, so that a row is seen with all above and below it.
    """

    def __init__(self, classes: int, hidden: int = 128) -> None:
        super().__init__()
        self.gru = nn.GRU(3 * SIDE, hidden, num_layers=2, bidirectional=True)
        self.classifier = nn.Linear(2 * hidden, classes)

    def states(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> hidden units of the second layer after each row, both ways: (H, N, F)."""
        rows = x.permute(2, 0, 1, 3).flatten(2)  # (N, C, H, W) -> (H, N, C * W)
        return self.gru(rows)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.states(x)).permute(1, 2, 0)[..., None]


class Whole(nn.Module):
    """Pictures float (N, 3, 32, 32), normalised -> class scores at each place (N, K, h, w); their mean is the logits.

    Six 3x3 convolutions with two halvings between them: the plainest CNN there is.
    """

    widths = (32, 48, 96, 96, 160, 160)
    halved = (1, 3)
    """After these layers the map is half as high and wide."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        ends = zip((3, *self.widths), self.widths, strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in ends)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in self.widths)
        self.classifier = nn.Conv2d(self.widths[-1], classes, 1)

    def features(self, x: Tensor) -> list[Tensor]:
        """The maps after each layer, the first as large as the picture."""
        maps = []
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            maps.append(x)
            x = F.max_pool2d(x, 2) if k in self.halved else x
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)[-1])


NETWORKS: dict[str, type[nn.Module]] = {"rnn": RowByRow, "cnn": Whole}


def macs(network: nn.Module) -> int:
    """Multiplications of one picture, counted by running it: of convolutions, of linear layers, of the GRU."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            assert isinstance(output, Tensor)
            total += module.weight.numel() * output.shape[-1] * output.shape[-2]
        elif isinstance(module, nn.GRU):
            matrices = [w for name, w in module.named_parameters() if name.startswith("weight")]
            total += len(inputs[0]) * sum(w.numel() for w in matrices)
        elif isinstance(module, nn.Linear):
            total += module.weight.numel() * inputs[0].shape[0]

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, SIDE, SIDE))
    for hook in hooks:
        hook.remove()
    return total
