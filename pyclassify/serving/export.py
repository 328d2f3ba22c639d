"""From a trained network to one file that classifies bytes, with no Python class behind it."""

import copy
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.export import Dim
from torch.export.passes import move_to_device_pass

PROGRAM_PATH = "artifacts/program.pt2"  # where a model of MLflow's has it
_CLASSES_FILE = "classes.json"  # among the program's extra files
_EXAMPLE_SHAPE = (
    2,
    3,
    40,
    50,
)  # two images, as torch.export takes a batch of one for the only size
# Of the images that are classified together: resized as floats they take about 1 GB.
MAX_BATCH_PIXELS = 2**24


class ProbabilityNetwork(nn.Module):
    """A network with its preprocessing: bytes in, probabilities out.

    Args:
        network: Takes float [batch, 3, height, width], gives logits [batch, classes].
        preprocess: Takes uint8 [batch, 3, height, width] of any size to what the network takes.
    """

    def __init__(self, network: nn.Module, preprocess: nn.Module) -> None:
        super().__init__()
        self.network, self.preprocess = network, preprocess
        kinds = (each.dtype for each in network.parameters() if each.is_floating_point())
        self.dtype = next(kinds, torch.float32)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images, uint8 [batch, 3, height, width]: float32 [batch, classes]."""
        prepared = self.preprocess(images).to(self.dtype)
        return self.network(prepared).float().softmax(dim=1)


def export_program(
    network: nn.Module, preprocess: nn.Module, classes: Sequence[str], path: str | Path
) -> list[str]:
    """Write a network with its preprocessing as a program of torch.export.

    The file (PyTorch's PT2 archive) holds no pickle, and the names of the classes in
    `extra/classes.json`. Whatever the network was trained on, it runs on the CPU.

    Args:
        network: As `ProbabilityNetwork` takes it; it stays as it is.
        preprocess: Likewise.
        classes: The classes' names, by label; if there are none, their numbers.
        path: The file, which ends in .pt2.

    Returns:
        The names.

    Raises:
        ValueError: There are not as many names as the network has classes.
    """
    whole = copy.deepcopy(ProbabilityNetwork(network, preprocess)).cpu().eval()
    images = torch.zeros(_EXAMPLE_SHAPE, dtype=torch.uint8)
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.no_grad():
        outputs = whole(images).shape[1]
        names = list(classes) or [str(label) for label in range(outputs)]
        if outputs != len(names):
            raise ValueError(
                f"the network has {outputs} classes and {len(names)} names were given; name each"
            )
        program = torch.export.export(whole, (images,), dynamic_shapes={"images": sizes})
    program.example_inputs = None  # the one thing in the file that would be pickled
    torch.export.save(program, path, extra_files={_CLASSES_FILE: json.dumps(names)})
    return names


def load_program(path: str | Path) -> tuple[torch.export.ExportedProgram, list[str]]:
    """Read what `export_program` wrote: the program, and the classes' names by label."""
    kept = {_CLASSES_FILE: ""}
    program = torch.export.load(path, extra_files=kept)
    return program, json.loads(kept[_CLASSES_FILE])


class ExportedClassifier(LightningModule):
    """Classify with a program that `pyclassify.serving.export` has written.

    Args:
        program: The file, which ends in .pt2.

    Attributes:
        classes: The names of its classes, by label.
    """

    takes_bytes = True  # which a data module hands out as they are

    def __init__(self, program: str) -> None:
        super().__init__()
        try:
            self._exported, self.classes = load_program(program)
        except Exception as error:  # torch's reader raises whatever another file leads it to
            raise MisconfigurationException(
                f"{program} is no exported classifier ({error}); give the program.pt2 of a model "
                "that was registered here"
            ) from error

    def setup(self, stage: str) -> None:
        moved = move_to_device_pass(self._exported, self.trainer.strategy.root_device)
        # No submodule, as the program of torch.export can't be told to train or to evaluate.
        self._program = (moved.module(),)

    def predict_step(self, batch: Sequence[Sequence[Tensor]], batch_idx: int) -> Tensor:
        """Class probabilities of uint8 images, each [1 or 3, height, width]; [batch, classes]."""
        images = batch[0]
        groups: dict[torch.Size, list[int]] = defaultdict(list)
        for place, image in enumerate(images):
            if image.dtype != torch.uint8:
                raise MisconfigurationException(
                    f"the data module's images are {image.dtype}; an exported network takes "
                    "uint8, for it prepares them by itself: use a data module of pyclassify's"
                )
            groups[image.shape].append(place)
        answers: dict[int, Tensor] = {}
        for size, places in groups.items():
            most = max(1, MAX_BATCH_PIXELS // size[1:].numel())
            for start in range(0, len(places), most):
                some = places[start : start + most]
                together = torch.stack([images[place] for place in some])
                answers.update(zip(some, self._classify(together), strict=True))
        return torch.stack([answers[place] for place in range(len(images))])

    def _classify(self, images: Tensor) -> Tensor:
        return self._program[0](images.expand(-1, 3, -1, -1).contiguous())
