"""A network that was exported with its preprocessing, as a LightningModule that predicts."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.export.passes import move_to_device_pass

from pyclassify.serving.export import load

# Of the images that are classified together: resized as floats they take about 1 GB.
PIXELS = 2**24


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
            self._exported, self.classes = load(program)
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
            most = max(1, PIXELS // size[1:].numel())
            for start in range(0, len(places), most):
                some = places[start : start + most]
                together = torch.stack([images[place] for place in some])
                answers.update(zip(some, self._classify(together), strict=True))
        return torch.stack([answers[place] for place in range(len(images))])

    def _classify(self, images: Tensor) -> Tensor:
        return self._program[0](images.expand(-1, 3, -1, -1).contiguous())
