"""Writes the files of this folder, each with the exporter that its name begins with.

    pip install torch onnx onnxscript onnxruntime scikit-learn skl2onnx sympy
    python tests/imports/make.py [NAME …]

They are what people bring: nothing here was written for this service. Weights are random, from a fixed seed, as what is
tested is how a file is read; `pixels()` calibrates what is quantised. `test_importing.py` needs nothing of this.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

HERE = Path(__file__).parent
OPSET = 17


def network(channels: int, classes: int, *, softmax: bool = False) -> Any:
    """A classifier as thousands are: convolutions, global pooling, one linear layer."""
    import torch
    from torch import nn

    torch.manual_seed(20)
    layers = [
        nn.Conv2d(channels, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, classes),
    ]  # fmt: skip
    if softmax:
        layers.append(nn.Softmax(1))
    made = nn.Sequential(*layers).eval()
    with torch.no_grad():
        made[6].weight *= 30  # so that the classes' scores are apart
    return made


def pixels(count: int, channels: int, side: int) -> np.ndarray[Any, Any]:
    """Smooth random pictures, float32 (count, channels, side, side), 0 to 1."""
    random = np.random.default_rng(7)
    coarse = random.random((count, channels, side // 4, side // 4))
    return coarse.repeat(4, axis=2).repeat(4, axis=3).astype(np.float32)


def _torch_script(path: Path, model: Any, example: Any, **options: Any) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, example, str(path), dynamo=False, opset_version=OPSET, **options)


def torch_dynamo(path: Path) -> None:
    """PyTorch's exporter of today: a colour classifier, free batch, its weights in a file beside it."""
    import torch

    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.onnx.export(
        network(3, 5), (torch.zeros(2, 3, 64, 64),), dynamo=True, opset_version=18, input_names=["x"],
        dynamic_shapes=({0: batch},), verbose=False,
    )  # fmt: skip
    program.save(str(path), external_data=True)
    model = onnx.load(path, load_external_data=False)
    for holder in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del holder.metadata_props[:]  # they hold paths of the machine that exports
    onnx.save(model, path)


def torch_script(path: Path) -> None:
    """PyTorch's exporter of old: grey pictures, a batch of exactly one, the softmax inside."""
    import torch

    _torch_script(path, network(1, 10, softmax=True), torch.zeros(1, 1, 28, 28))


def torch_float16(path: Path) -> None:
    """The same in float16, with names and a free batch."""
    import torch

    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"]}
    axes = {"input": {0: "N"}, "output": {0: "N"}}
    _torch_script(path, network(3, 4).half(), torch.zeros(1, 3, 32, 32).half(), dynamic_axes=axes, **names)


def torch_gru(path: Path) -> None:
    """A GRU whose state is called h0 and hn, with the batch on its second axis; and a layer on every step."""
    import torch
    from torch import nn

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(6, 8, num_layers=2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Any, h0: Any) -> Any:
            y, hn = self.rnn(x, h0)
            return self.head(y), hn

    torch.manual_seed(20)
    _torch_script(
        path, Steps().eval(), (torch.zeros(2, 5, 6), torch.zeros(2, 2, 8)),
        input_names=["x", "h0"], output_names=["y", "hn"],
        dynamic_axes={"x": {0: "batch", 1: "time"}, "y": {0: "batch", 1: "time"}, "h0": {1: "batch"}, "hn": {1: "batch"}},
    )  # fmt: skip


def torch_unet(path: Path) -> None:
    """A segmenter of three classes: scores as large as the picture."""
    import torch
    from torch import nn

    torch.manual_seed(20)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2.0, mode="bilinear"), nn.Conv2d(8, 3, 1)
    )  # fmt: skip
    with torch.no_grad():
        model[3].weight *= 20
    _torch_script(
        path, model.eval(), torch.zeros(1, 3, 64, 64), dynamic_axes={"input": {0: "b"}}, input_names=["input"]
    )


def ultralytics_yolov8(path: Path) -> None:
    """A detector's file as Ultralytics writes it: its metadata, its names and its head, (1, 4 + labels, anchors)."""
    import torch
    from torch import nn

    class Detector(nn.Module):
        """Boxes as offsets from the cells of one map; as good as no training has made it."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8, padding=1), nn.SiLU(), nn.Conv2d(8, 4 + 3, 1))

        def forward(self, x: Any) -> Any:
            maps = self.body(x)
            rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
            centres = (maps[:, :2].tanh() + 0.5 + torch.stack([columns, rows])) * 8
            sizes = (maps[:, 2:4].sigmoid() * 2) ** 2 * 12
            return torch.cat([centres, sizes, maps[:, 4:].mul(6).sigmoid()], 1).flatten(2)

    torch.manual_seed(20)
    _torch_script(path, Detector().eval(), torch.zeros(1, 3, 64, 64), input_names=["images"], output_names=["output0"])
    model = onnx.load(path)
    for key, value in {
        "description": "Ultralytics YOLOv8n model trained on coco8.yaml", "author": "Ultralytics", "version": "8.3.0",
        "stride": "32", "task": "detect", "batch": "1", "imgsz": "[64, 64]", "names": "{0: 'person', 1: \"rider's bicycle\", 2: 'car'}",
    }.items():  # fmt: skip
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)


def tf2onnx_nhwc(path: Path) -> None:
    """A Keras classifier as tf2onnx writes it: channels last, a Transpose first, names with colons, softmax at the end.

    Written with `onnx.helper`, in the operators and names of tf2onnx 1.16, which needs TensorFlow.
    """
    random = np.random.default_rng(20)
    weights = {
        "conv/W": random.normal(0, 0.4, (6, 3, 3, 3)).astype(np.float32),
        "conv/B": np.zeros(6, np.float32),
        "dense/W": random.normal(0, 4, (6, 4)).astype(np.float32),
        "dense/B": np.zeros(4, np.float32),
        "axes": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["input_1"], ["conv__6:0"], "conv__6", perm=[0, 3, 1, 2]),
        helper.make_node(
            "Conv", ["conv__6:0", "conv/W", "conv/B"], ["conv/BiasAdd:0"], strides=[2, 2], pads=[0, 0, 1, 1]
        ),
        helper.make_node("Relu", ["conv/BiasAdd:0"], ["conv/Relu:0"]),
        helper.make_node("ReduceMean", ["conv/Relu:0"], ["pool/Mean:0"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["pool/Mean:0", "dense/W"], ["dense/MatMul:0"]),
        helper.make_node("Add", ["dense/MatMul:0", "dense/B"], ["dense/BiasAdd:0"]),
        helper.make_node("Softmax", ["dense/BiasAdd:0"], ["predictions"], axis=-1),
    ]
    del weights["axes"]
    graph = helper.make_graph(
        nodes, "tf2onnx",
        [helper.make_tensor_value_info("input_1", T.FLOAT, ["unk__30", 32, 32, 3])],
        [helper.make_tensor_value_info("predictions", T.FLOAT, ["unk__31", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 2)]
    model = helper.make_model(
        graph, producer_name="tf2onnx", producer_version="1.16.1 15c810", opset_imports=opsets, ir_version=8
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)


def skl2onnx_forest(path: Path) -> None:
    """A random forest on four numbers, with skl2onnx's usual last operator, which makes a list of dictionaries."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])
    forest = RandomForestClassifier(8, max_depth=3, random_state=0).fit(x.astype(np.float32), names[y])
    onnx.save(to_onnx(forest, x[:1].astype(np.float32), target_opset={"": OPSET, "ai.onnx.ml": 3}), path)


def onnxruntime_qdq(path: Path) -> None:
    """8 bits by onnxruntime's static quantisation, calibrated on pictures of 0 to 1."""
    import torch
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter([{"image": picture[None]} for picture in pixels(16, 3, 32)])

        def get_next(self) -> Any:
            return next(self.rest, None)

    plain = path.with_suffix(".float")
    axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
    _torch_script(
        plain,
        network(3, 6),
        torch.zeros(1, 3, 32, 32),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes=axes,
    )
    quantize_static(
        plain, path, Pictures(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    plain.unlink()


def onnxruntime_dynamic(path: Path) -> None:
    """8 bits by onnxruntime's dynamic quantisation: the linear layers' inputs are quantised while they are computed."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = path.with_suffix(".float")
    axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
    _torch_script(
        plain,
        network(3, 6),
        torch.zeros(1, 3, 32, 32),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes=axes,
    )
    quantize_dynamic(plain, path, weight_type=QuantType.QUInt8, op_types_to_quantize=["MatMul", "Gemm"])
    plain.unlink()


MAKERS: dict[str, Callable[[Path], None]] = {
    "torch-dynamo": torch_dynamo,
    "torch-script": torch_script,
    "torch-float16": torch_float16,
    "torch-gru": torch_gru,
    "torch-unet": torch_unet,
    "ultralytics-yolov8": ultralytics_yolov8,
    "tf2onnx-nhwc": tf2onnx_nhwc,
    "skl2onnx-forest": skl2onnx_forest,
    "onnxruntime-qdq": onnxruntime_qdq,
    "onnxruntime-dynamic": onnxruntime_dynamic,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or MAKERS:
        MAKERS[name](HERE / f"{name}.onnx")
