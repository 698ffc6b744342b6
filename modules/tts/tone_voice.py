"""Makes a voice in Piper's format that says a tone for each phoneme: python3 tone_voice.py DIRECTORY [NAME]

A stand-in where no voice can be downloaded, and one whose every sample is known: loaded by Piper and run by
onnxruntime as any other, with espeak-ng's phonemes. A phoneme of id N is DURATION samples of a sine of `frequency(N)`,
times the length scale; what has no sound (pauses, and the marks of the beginning and the end) is as long a silence.
Needs the package onnx.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, save_model
from piper.phoneme_ids import DEFAULT_PHONEME_ID_MAP

RATE = 22_050
DURATION = 441
"""Samples of a phoneme at length scale 1: 20 ms."""
IDS = 256
SILENT = "_^$ .,:;!?-'\"()ˈˌː"


def frequency(number: int) -> float:
    """Hz; far enough from each other to be told apart in 20 ms."""
    return 400.0 + 50.0 * number


def make(
    directory: Path,
    name: str = "tone",
    *,
    rate: int = RATE,
    work: int = 0,
    ids: Mapping[str, list[int]] = DEFAULT_PHONEME_ID_MAP,
    config: Mapping[str, object] | None = None,
) -> Path:
    """Make a voice; returns its model. ``work`` is how many products of matrices of 512 by 512 each sentence costs as
    well, ``ids`` are its phonemes (an id that is not below `IDS` makes onnxruntime fail), ``config`` replaces settings.
    """
    directory.mkdir(parents=True, exist_ok=True)
    model = directory / f"{name}.onnx"
    silent = {number for phoneme in SILENT for number in ids.get(phoneme, [])}
    loud = np.array([0.0 if number in silent else 0.5 for number in range(IDS)], np.float32)
    omega = np.array([2 * np.pi * frequency(number) / rate for number in range(IDS)], np.float32)
    constants: dict[str, NDArray[np.generic]] = {
        "loud": loud.reshape(IDS, 1),
        "omega": omega.reshape(IDS, 1),
        "duration": np.array(DURATION * rate / RATE, np.float32),
        "zero": np.array(0.0, np.float32),
        "one": np.array(1.0, np.float32),
        "length_index": np.array(1, np.int64),
        "first": np.array(0, np.int64),
        "shape": np.array([1, 1, 1, -1], np.int64),
        "matrix": np.full((512, 512), 1 / 512, np.float32),
        "none": np.array(0.0, np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["scales", "length_index"], ["length"]),
        helper.make_node("Mul", ["length", "duration"], ["exact"]),
        helper.make_node("Round", ["exact"], ["samples"]),
        helper.make_node("Range", ["zero", "samples", "one"], ["time"]),
        helper.make_node("Gather", ["input", "first"], ["row"]),
        helper.make_node("Gather", ["omega", "row"], ["omegas"]),
        helper.make_node("Gather", ["loud", "row"], ["louds"]),
        helper.make_node("Mul", ["omegas", "time"], ["phase"]),
        helper.make_node("Sin", ["phase"], ["sine"]),
        helper.make_node("Mul", ["sine", "louds"], ["tones"]),
    ]
    # That depends on the input, or it would be done once and for all.
    before = "matrix_0"
    nodes.append(helper.make_node("Add", ["matrix", "length"], [before]))
    for number in range(1, work + 1):
        nodes.append(helper.make_node("MatMul", ["matrix", before], [before := f"matrix_{number}"]))
    nodes += [
        helper.make_node("ReduceMax", [before], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "none"], ["nothing"]),
        helper.make_node("Add", ["tones", "nothing"], ["sum"]),
        helper.make_node("Reshape", ["sum", "shape"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [
            helper.make_tensor_value_info("input", TensorProto.INT64, [1, "phonemes"]),
            helper.make_tensor_value_info("input_lengths", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 1, "time"])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(model))
    settings = {
        "audio": {"sample_rate": rate},
        "espeak": {"voice": "en-us"},
        "inference": {"noise_scale": 0.667, "length_scale": 1.0, "noise_w": 0.8},
        "num_symbols": IDS,
        "num_speakers": 1,
        "speaker_id_map": {},
        "phoneme_id_map": dict(ids),
    }
    model.with_name(f"{name}.onnx.json").write_text(json.dumps(settings | dict(config or {})))
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a voice that says a tone for each phoneme.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("name", nargs="?", default="tone")
    parser.add_argument("--work", type=int, default=0, help="products of matrices that each sentence costs as well")
    options = parser.parse_args()
    print(make(options.directory, options.name, work=options.work))
