"""Train any network on any images as one MLflow run, on a laptop or a SLURM cluster.

The public classes are imported when they are first used, so that `import pyclassify` loads neither
torch nor MLflow (PEP 562):

    >>> from pyclassify import AlexNet, CIFAR10DataModule, Classifier, Trainer
    >>> Trainer(max_epochs=1).fit(Classifier(AlexNet), CIFAR10DataModule())
"""

TYPE_CHECKING = False  # typing itself takes longer to import than all else here
if TYPE_CHECKING:
    from pyclassify.data.loaders import ImageDataModule
    from pyclassify.data.transforms import Preprocess
    from pyclassify.datamodule import (
        CIFAR10DataModule,
        ImageFolderDataModule,
        MNISTDataModule,
        SyntheticDataModule,
        TorchvisionDataModule,
    )
    from pyclassify.model import AlexNet, AlexNetBN
    from pyclassify.module import Classifier
    from pyclassify.registry.register import RegisterModel
    from pyclassify.registry.source import load
    from pyclassify.tracking.logger import RunLogger
    from pyclassify.training.optim import EMAWeights, WarmupCosine
    from pyclassify.training.trainer import Trainer
    from pyclassify.training.whitening import WhitenStem

__all__ = [
    "AlexNet",
    "AlexNetBN",
    "CIFAR10DataModule",
    "Classifier",
    "EMAWeights",
    "ImageDataModule",
    "ImageFolderDataModule",
    "MNISTDataModule",
    "Preprocess",
    "RegisterModel",
    "RunLogger",
    "SyntheticDataModule",
    "TorchvisionDataModule",
    "Trainer",
    "WarmupCosine",
    "WhitenStem",
    "load",
]

_MODULES = {
    "data.loaders": ("ImageDataModule",),
    "data.transforms": ("Preprocess",),
    "datamodule": (
        "CIFAR10DataModule",
        "ImageFolderDataModule",
        "MNISTDataModule",
        "SyntheticDataModule",
        "TorchvisionDataModule",
    ),
    "model": ("AlexNet", "AlexNetBN"),
    "module": ("Classifier",),
    "registry.register": ("RegisterModel",),
    "registry.source": ("load",),
    "tracking.logger": ("RunLogger",),
    "training.optim": ("EMAWeights", "WarmupCosine"),
    "training.trainer": ("Trainer",),
    "training.whitening": ("WhitenStem",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pyclassify' has no attribute {name!r}")
    return getattr(import_module(f"pyclassify.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
