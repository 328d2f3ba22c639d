"""Convert an exported program to ONNX, which ONNX Runtime serves faster and without torch.

ONNX (https://onnx.ai) is an open file format for networks. `model.onnx` has the operations alone.
Its weights are "external data": byte ranges of the program's own file, `model.pt2`, which is a ZIP
archive without compression. Both files must stay in one folder.
"""

import json
import struct
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyclassify.serving.export import load_program
from pyclassify.utils.files import is_disk_error
from pyclassify.utils.text import format_reason

if TYPE_CHECKING:
    from onnx_ir import Model, TensorProtocol

ONNX_FILE = "model.onnx"
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_CLASSES_KEY = "classes"  # of the file's metadata: a JSON list
_TOLERANCE = 1e-5  # of a probability; float32 sums in another order differ by about 1e-7
# One pixel, one image, and several images that are enlarged, reduced and of odd sizes.
_CHECKED_SHAPES = ((1, 3, 1, 1), (1, 3, 300, 200), (2, 3, 32, 32), (3, 3, 41, 57))
_MIN_SHARED_BYTES = 1024  # smaller tensors are copied into the ONNX file
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a ZIP entry, up to the lengths of name and extra field


class OnnxExportError(RuntimeError):
    """A program can't be converted to ONNX, or ONNX Runtime predicts something else with it.

    Args:
        reason: Why.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"ONNX Runtime can't serve this network: {reason}")


def list_missing_packages() -> list[str]:
    """List the packages of the extra `pyclassify[onnx]` that are not installed."""
    return [name for name in ONNX_PACKAGES if find_spec(name) is None]


def export_onnx(program: str | Path) -> Path:
    """Write an ONNX file beside an exported program, and check that both predict the same.

    The ONNX file maps `images`, uint8 [batch, 3, height, width], to probabilities, float32 [batch,
    classes]; batch, height and width are dynamic. Its metadata has the names of the classes.

    Args:
        program: A file that `serving.export.export_program` wrote, which ends in .pt2.

    Returns:
        The ONNX file.

    Raises:
        OnnxExportError: The program can't be converted, or the probabilities differ.
        OSError: The disk is full, or fails.
    """
    program = Path(program)
    path = program.with_name(ONNX_FILE)
    exported, classes, _ = load_program(program)
    try:
        import onnx_ir

        model = _convert(exported)
        _share_weights(model, program)
        model.metadata_props[_CLASSES_KEY] = json.dumps(classes)
        onnx_ir.save(model, path)
        difference = _measure_difference(path, exported)
    except Exception as error:  # the exporter and ONNX Runtime raise various types
        path.unlink(missing_ok=True)
        if is_disk_error(error):
            raise
        raise OnnxExportError(format_reason(error)) from error
    if not difference <= _TOLERANCE:  # NaN too
        path.unlink()
        raise OnnxExportError(
            f"its probabilities differ by {difference:.1e} (expected at most {_TOLERANCE:.0e})"
        )
    return path


def _convert(program: torch.export.ExportedProgram) -> "Model":
    converted: Any = torch.onnx.export(program, dynamo=True, verbose=False)
    model: Model = converted.model
    return model


def _share_weights(model: "Model", program: Path) -> None:
    """Replace tensors that have the bytes of a weight of the program by references to its file."""
    from onnx_ir import ExternalTensor, Shape

    content = np.memmap(program, dtype=np.uint8, mode="r")
    ranges = _find_weights(program)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < _MIN_SHARED_BYTES or name not in ranges:
            continue
        offset, length = ranges[name]
        if length == tensor.nbytes and np.array_equal(
            content[offset : offset + length], _view_bytes(tensor)
        ):
            value.const_value = ExternalTensor(
                program.name,
                offset,
                length,
                tensor.dtype,
                shape=Shape(tensor.numpy().shape),
                name=name,
                base_dir=program.parent,
            )


def _view_bytes(tensor: "TensorProtocol") -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)


def _find_weights(program: Path) -> dict[str, tuple[int, int]]:
    """Find the offset and length in bytes of each weight in the program's file, by its name."""
    ranges = {}
    with zipfile.ZipFile(program) as archive, program.open("rb") as file:
        (listing,) = (
            name for name in archive.namelist() if name.endswith("/model_weights_config.json")
        )
        for name, entry in json.loads(archive.read(listing))["config"].items():
            stored = archive.getinfo(f"{listing.rpartition('/')[0]}/{entry['path_name']}")
            if entry["use_pickle"] or stored.compress_type != zipfile.ZIP_STORED:
                continue
            file.seek(stored.header_offset)
            lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            offset = stored.header_offset + _LOCAL_HEADER.size + sum(lengths)
            ranges[name] = (offset, stored.file_size)
    return ranges


def _measure_difference(path: Path, program: torch.export.ExportedProgram) -> float:
    """Return the largest difference of a probability between ONNX Runtime and the program."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    random, network = np.random.default_rng(0), program.module()
    differences = []
    for shape in _CHECKED_SHAPES:
        images = random.integers(0, 256, shape, dtype=np.uint8)
        (found,) = session.run(None, {"images": images})
        with torch.inference_mode():
            expected = network(torch.from_numpy(images)).numpy()
        differences.append(np.abs(found - expected).max())
    return float(np.max(differences))
