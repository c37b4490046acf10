"""What a user would write or pick instead of rtseg, each in its best plain formulation.

A peer is made once, outside the clock, and called with a video file. It yields each frame, (H, W,
3) uint8 BGR, with its labels, (H, W) uint8, from the same network at the same input size. The
labels may be overwritten by the next ones.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from kernels import running_maximum
from numpy.typing import NDArray

from rtseg.artifact import ModelFile

Labels = NDArray[np.uint8]
Results = Iterator[tuple[NDArray[np.uint8], Labels]]
Peer = Callable[[Path, int], Results]


def read(video: Path) -> Iterator[NDArray[np.uint8]]:
    """Frames (H, W, 3) uint8 BGR of a file, by OpenCV."""
    capture = cv2.VideoCapture(str(video))
    try:
        while True:
            ok, bgr = capture.read()
            if not ok:
                return
            yield bgr  # type: ignore[misc]  # cv2 declares no dtype
    finally:
        capture.release()


def torch_loop(model: ModelFile, input_hw: tuple[int, int], frame_hw: tuple[int, int]) -> Peer:
    """PyTorch, fp32: OpenCV reads and resizes, `F.interpolate` and `argmax` make the labels.

    The norms are folded into the convolutions, which is to the peer's advantage.
    """
    import torch
    import torch.nn.functional as F

    from rtseg.engine.eager import build_network

    network: torch.nn.Module = build_network(model).eval()
    mean = np.array(model.contract.mean, np.float32)
    std = np.array(model.contract.std, np.float32)

    def run(video: Path, frames: int) -> Results:
        for bgr in islice(read(video), frames):
            resized = cv2.resize(bgr, input_hw[::-1])
            rgb = cv2.cvtColor(resized, cv2.COLOR_BGR2RGB).astype(np.float32) / 255
            images = torch.from_numpy((rgb - mean) / std).permute(2, 0, 1)[None]
            with torch.inference_mode():
                logits = F.interpolate(
                    network(images.contiguous()),
                    bgr.shape[:2],
                    mode="bilinear",
                    align_corners=model.contract.align_corners,
                )
                labels: Labels = logits[0].argmax(0).to(torch.uint8).numpy()
            yield bgr, labels

    return run


def onnxruntime_loop(
    model: ModelFile, input_hw: tuple[int, int], frame_hw: tuple[int, int]
) -> Peer:
    """ONNX Runtime with its default options; OpenCV's blob before it, a running maximum after.

    OpenCV resizes with half-pixel centres only. Where the contract says align_corners, nothing in
    OpenCV does that as fast: the peer keeps its resize, and up to a percent of its pixels differ.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    contract = model.contract
    mean, scale = 255 * np.array(contract.mean), 1 / (255 * np.array(contract.std))
    params = cv2.dnn.Image2BlobParams()
    params.size, params.swapRB = input_hw[::-1], True
    params.mean, params.scalefactor = (*mean, 0.0), (*scale, 0.0)
    warm = session.run(["logits"], {"image": np.zeros((1, 3, *input_hw), np.float32)})[0]
    logits = np.empty(warm.shape[1:], np.float32)
    argmax = running_maximum(logits, frame_hw)

    def run(video: Path, frames: int) -> Results:
        for bgr in islice(read(video), frames):
            images = cv2.dnn.blobFromImageWithParams(bgr, params)
            np.copyto(logits, session.run(["logits"], {"image": images})[0][0])
            yield bgr, argmax()

    return run


def model_api(model: ModelFile, input_hw: tuple[int, int], frame_hw: tuple[int, int]) -> Peer:
    """OpenVINO Model API: SegmentationModel in its AsyncPipeline, as it is.

    The wrapper takes the argmax of what the graph gives and enlarges labels by nearest neighbour.
    For the same labels as ours the graph must give logits of the frame's size.
    """

    def put_upsampling(graph: Any) -> Any:
        return _with_output(graph, _upsample(model, graph, frame_hw))

    return _model_api(model, input_hw, frame_hw, _wrapper(), put_upsampling)


def model_api_argmax(
    model: ModelFile, input_hw: tuple[int, int], frame_hw: tuple[int, int]
) -> Peer:
    """As before, tuned by hand: the argmax too is in the graph.

    The wrapper cannot take such labels (`np.argmax(..., axis=2)` of two dimensions raises), hence
    the subclass.
    """
    ops = importlib.import_module("openvino.opset13")

    class LabelModel(_wrapper()):  # type: ignore[misc]
        __model__ = "Labels"

        def postprocess(self, outputs: dict[str, Any], meta: dict[str, Any]) -> Labels:
            labels: Labels = outputs[self.output_blob_name].reshape(meta["original_shape"][:2])
            return labels

    def put_argmax(graph: Any) -> Any:
        full, one = _upsample(model, graph, frame_hw), ops.constant(np.int64(1))
        top = ops.topk(full, one, 1, "max", "none", index_element_type="i32")
        return _with_output(graph, ops.convert(top.output(1), "u8").output(0))

    return _model_api(model, input_hw, frame_hw, LabelModel, put_argmax)


def model_api_opencv(
    model: ModelFile, input_hw: tuple[int, int], frame_hw: tuple[int, int]
) -> Peer:
    """As before, but the tail is OpenCV's running maximum in place of the wrapper's own."""

    class RunningMaximumModel(_wrapper()):  # type: ignore[misc]
        __model__ = "RunningMaximum"
        tail: tuple[NDArray[np.float32], Callable[[], Labels]] | None = None

        def postprocess(self, outputs: dict[str, Any], meta: dict[str, Any]) -> Labels:
            logits = outputs[self.output_blob_name][0]
            if self.tail is None:
                buffer = np.empty(logits.shape, np.float32)
                self.tail = buffer, running_maximum(buffer, meta["original_shape"][:2])
            buffer, argmax = self.tail
            np.copyto(buffer, logits)
            return argmax()

    return _model_api(model, input_hw, frame_hw, RunningMaximumModel, lambda graph: graph)


def model_api_coarse(
    model: ModelFile, input_hw: tuple[int, int], frame_hw: tuple[int, int]
) -> Peer:
    """Model API on the graph as it is, its fastest way. Not the same result: labels in blocks."""
    return _model_api(model, input_hw, frame_hw, _wrapper(), lambda graph: graph)


def _wrapper() -> Any:
    return importlib.import_module("model_api.models").SegmentationModel


def _upsample(model: ModelFile, graph: Any, frame_hw: tuple[int, int]) -> Any:
    """The logits of a graph, interpolated bilinearly inside it."""
    return importlib.import_module("openvino.opset13").interpolate(
        graph.outputs[0].node.input_value(0),
        np.array(frame_hw, np.int64),
        "linear_onnx",
        "sizes",
        axes=np.array([2, 3], np.int64),
        coordinate_transformation_mode="align_corners"
        if model.contract.align_corners
        else "half_pixel",
    )


def _with_output(graph: Any, node: Any) -> Any:
    openvino = importlib.import_module("openvino")
    output = node.output(0) if hasattr(node, "output") else node
    output.get_tensor().set_names({"labels"})
    result = importlib.import_module("openvino.opset13").result(output)
    return openvino.Model([result], graph.get_parameters(), "segmentation")


def _model_api(
    model: ModelFile,
    input_hw: tuple[int, int],
    frame_hw: tuple[int, int],
    wrapper: Any,
    rebuild: Callable[[Any], Any],
) -> Peer:
    """Its best configuration: preprocessing in the graph for a fixed frame size, throughput."""
    adapters = importlib.import_module("model_api.adapters")
    pipelines = importlib.import_module("model_api.pipelines")
    adapter = adapters.OpenvinoAdapter(
        adapters.create_core(),
        str(model.path),
        device="CPU",
        # bf16 is the runtime's own default where the CPU has it. Of LATENCY, THROUGHPUT and
        # NUM_STREAMS=1, THROUGHPUT was the fastest here (46 frames per second, 40, 39).
        plugin_config={"PERFORMANCE_HINT": "THROUGHPUT"},
    )
    adapter.reshape_model({"image": [1, 3, *input_hw]})
    adapter.model = rebuild(adapter.model)
    network = wrapper(
        adapter,
        {
            "mean_values": [255 * value for value in model.contract.mean],
            "scale_values": [255 * value for value in model.contract.std],
            "reverse_input_channels": True,
            "resize_type": "standard",
            "return_soft_prediction": False,
            "input_frame_height": frame_hw[0],
            "input_frame_width": frame_hw[1],
        },
    )

    def run(video: Path, frames: int) -> Results:
        """The loop of the package's own demos."""
        pipeline = pipelines.AsyncPipeline(network)
        source = islice(read(video), frames)
        submitted = shown = 0
        ended = False
        while not ended or shown < submitted:
            if pipeline.callback_exceptions:
                raise pipeline.callback_exceptions[0]
            result = pipeline.get_result(shown)
            if result is not None:
                shown += 1
                labels, meta = result
                yield meta["bgr"], labels.astype(np.uint8, copy=False)
            elif ended:
                pipeline.await_all()
            elif not pipeline.is_ready():
                pipeline.await_any()
            else:
                bgr = next(source, None)
                if bgr is None:
                    ended = True
                else:
                    pipeline.submit_data(bgr, submitted, {"bgr": bgr})
                    submitted += 1

    return run
