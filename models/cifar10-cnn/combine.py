"""Combine two networks into version 4: version 1, for things that fill the picture, and one for whole scenes.

    python models/cifar10-cnn/combine.py --data DIR --pretrained FILE --checkpoint CHECKPOINT

CHECKPOINT is what `finetune.py --photographs` wrote; FILE and DIR are as it says, with `flickr8k` and `camvid`, which are
for research and education only. Both networks are left as they are, but for the last layers of the second: without
these the two have fewer than five million parameters together, and a logistic regression on its 320 mean features takes
their place. Another one on the same features, the gate, says which of the two is believed, and how much.

The picture has 160x160 pixels. Version 1 sees the mean of each 5x5 of them, so with the filter `box` a picture of 32x32
comes to it exactly as it was.

Tensor letters: N pictures, C features, K classes.

References:
    Jacobs, Jordan, Nowlan, Hinton, "Adaptive Mixtures of Local Experts" (1991): two networks and a gate.
"""

from __future__ import annotations

import dataclasses

import finetune
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from efficientnet import Network, pretrained
from finetune import Photographs, add_network
from graph import Graph, Novelty
from onnx import compose, utils
from pictures import Pictures, read_train, resized
from publishing import (
    Version,
    answers,
    in_batches,
    publish,
    whole_photographs,
)
from torch import Tensor

from service.uncertainty.fitting import fit_temperature
from training.export import open_session
from training.flags import read_flags
from training.quantise import to_int8

BLOCK = 5
"""Pixels a side that version 1 sees as one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(finetune.Config):
    """Every knob; each becomes a command-line flag."""

    filter: str = "box"
    photographs: int = 96
    strangers: int = 32
    draws: int = 16
    """Times so many views are drawn for the regressions."""
    pictures: int = 3000
    """Pictures of CIFAR-10 beside them."""
    decay: float = 1e-3
    """Weight of the squares of the regressions' coefficients."""
    reserve: float = 1.0
    """Evidence for a scene (logit) that the gate asks for before it opens."""


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear layer (N, C) -> (N, K)."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, x: Tensor, targets: Tensor, decay: float) -> Linear:
        """Logistic regression of features (N, C) on probabilities (N, K), or on those of one event (N, 1)."""
        mean, spread = x.mean(0), x.std(0) + 1e-6
        z = (x - mean) / spread
        weight = torch.zeros(targets.shape[1], x.shape[1], requires_grad=True)
        bias = torch.zeros(targets.shape[1], requires_grad=True)
        optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            logits = F.linear(z, weight, bias)
            if targets.shape[1] > 1:
                error = F.cross_entropy(logits, targets)
            else:
                error = F.binary_cross_entropy_with_logits(logits, targets)
            total = error + decay * weight.square().sum()
            total.backward()
            return total

        optimiser.step(loss)
        found = weight.detach() / spread
        return cls(found, bias.detach() - found @ mean)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@torch.no_grad()
def features_of(network: Network, views: Tensor) -> Tensor:
    """Mean features (N, 320) of pictures (N, 3, H, W), 0..255."""
    return torch.cat(
        [network.body(rows.contiguous(memory_format=torch.channels_last)).mean((2, 3)) for rows in views.split(50)]
    )


def wanted(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Probabilities (N, K) to aim at; all alike for the label -1."""
    sure = F.one_hot(labels.clamp(min=0), classes) * (1 - smoothing) + smoothing / classes
    return torch.where((labels >= 0)[:, None], sure, torch.full((1, classes), 1 / classes))


def add_close(graph: Graph, model: onnx.ModelProto) -> str:
    """The nodes of version 1, which read the means of blocks of pixels; returns the name of its activation map."""
    x = graph("AveragePool", graph.pixels, kernel_shape=[BLOCK] * 2, strides=[BLOCK] * 2)
    part = utils.Extractor(model).extract_model(["image"], ["activation_map"])
    part = compose.add_prefix(part, "close.")
    _, transposed, *nodes = part.graph.node
    for node in nodes:
        node.input[:] = [x if name == transposed.output[0] else name for name in node.input]
    graph.take(nodes, part.graph.initializer)
    return str(part.graph.output[0].name)


def to_onnx(
    network: Network, classifier: Linear, gate: Linear, close: onnx.ModelProto, novelty: Novelty, temperature: float
) -> onnx.ModelProto:
    """The float32 graph: both maps are spread over a grid that both divide, so that their means stay, and blended."""
    graph = Graph(32 * BLOCK)
    x, cells = add_network(graph, network, head=False)
    features = graph.spatial_mean(x)
    weight, bias = classifier.weight[:, :, None, None], classifier.bias
    scene = graph(
        "Conv", x, graph.weight("classifier.weight", weight), graph.weight("classifier.bias", bias), kernel_shape=[1, 1]
    )
    near = add_close(graph, close)
    near_cells = 7

    def spread(map_: str, times: int) -> str:
        scales = graph.weight(f"times_{times}", np.array([1, 1, times, times], np.float32))
        mode = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return graph("Resize", map_, "", scales, **mode)

    share = graph("MatMul", features, graph.weight("gate.weight", gate.weight.T))
    share = graph("Sigmoid", graph("Add", share, graph.weight("gate.bias", gate.bias)))
    share = graph("Unsqueeze", share, graph.weight("last_two", np.array([2, 3])))
    near, scene = spread(near, cells), spread(scene, near_cells)
    blended = graph("Add", near, graph("Mul", share, graph("Sub", scene, near)))
    graph("Mul", blended, graph.weight("cold", np.array(1 / temperature, np.float32)), name="activation_map")
    return graph.finished(features, novelty, len(classifier.bias), cells * near_cells)


def main(config: Config) -> None:
    """Checkpoint -> features -> regressions -> graph -> calibrate -> evaluate."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    data, side = config.data, 32 * BLOCK
    training, names = read_train(data / "cifar10")
    training, held_out = training[: -config.held_out], training[-config.held_out :]
    network = pretrained(config.pretrained, names)
    network.load_state_dict(torch.load(config.checkpoint, weights_only=True)["network"])
    close = onnx.load(config.out / "1" / "model.onnx")

    def enlarged(pictures: Pictures) -> Pictures:
        return Pictures(resized(pictures.images, side, config.filter), pictures.labels)

    def seen_by(pictures: Pictures) -> tuple[Tensor, Tensor]:
        views = torch.from_numpy(pictures.images).permute(0, 3, 1, 2).float()
        return features_of(network, views), torch.from_numpy(pictures.labels)

    generator = torch.Generator().manual_seed(config.seed)
    random_views = Photographs(config, names, generator)
    shown = whole_photographs(data, "training", names, side, config.filter)
    scenes = [seen_by(shown)]
    for _ in range(config.draws):
        views, labels = random_views.draw(side)
        scenes.append((features_of(network, views), labels))
    x, y = (torch.cat(column) for column in zip(*scenes, strict=True))
    plain = enlarged(training[: config.pictures])
    near, near_labels = seen_by(plain)
    classifier = Linear.fit(
        torch.cat([x, near]), wanted(torch.cat([y, near_labels]), len(names), config.label_smoothing), config.decay
    )
    named = x[y >= 0]
    is_scene = torch.cat([torch.ones(len(named)), torch.zeros(len(near))])[:, None]
    gate = Linear.fit(torch.cat([named, near]), is_scene, config.decay)
    gate = Linear(gate.weight, gate.bias - config.reserve)

    tuning = whole_photographs(data, "tuning", names, side, config.filter)
    unseen = enlarged(held_out) + tuning
    some = slice(config.novelty_pictures)
    whole = plain[some] + shown
    blank = Novelty(torch.zeros(len(classifier.weight[0]), 1), torch.zeros(len(names), 1))
    first = open_session(to_onnx(network, classifier, gate, close, blank, 1.0))
    temperature = fit_temperature(answers(first, unseen.images)["logits"], unseen.labels)
    logits = torch.from_numpy(answers(first, whole.images)["logits"]) / temperature
    features, labels = torch.cat([near[some], scenes[0][0]]), torch.from_numpy(whole.labels)
    novelty = Novelty.fit(features, logits, labels, config.distance_weight, dimensions=config.distance_dimensions)
    model = to_onnx(network, classifier, gate, close, novelty, temperature)
    # version 1's stem and classifier have names that end alike, so they stay float32 as well
    quantised = to_int8(model, in_batches(whole.images[:: len(whole) // 100]), exact=finetune.EXACT)
    parts = [network.stem, network.blocks]
    count = sum(p.numel() for part in parts for p in part.parameters())
    count += sum(layer.weight.numel() + layer.bias.numel() for layer in (classifier, gate))
    theirs = ("stem", "groups", "classifier")
    count += sum(int(np.prod(weight.dims)) for weight in close.graph.initializer if weight.name.startswith(theirs))
    notes = [
        f"Version 4: {count:,} parameters, as many of version 1 as the graph has with BatchNorm folded; temperature "
        f"{temperature:.3f}; regressions on {len(x)} views of photographs and {len(near)} pictures"
    ]
    publish(config, names, held_out, {"4": Version(quantised, 0.03, config.filter, for_photographs=True)}, notes)


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
