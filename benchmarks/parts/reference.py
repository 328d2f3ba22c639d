"""The reference implementation: PIL images, each transformed by torchvision."""

from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms


class PILImages(Dataset):
    """A data set of PIL images in memory, as in torchvision.

    Args:
        images: uint8 [n, 3, height, width].
        labels: int64 [n].
        transform: Applied to each PIL image.
    """

    def __init__(self, images, labels, transform):
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels, self.transform = labels.tolist(), transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, item):
        return self.transform(Image.fromarray(self.images[item])), self.labels[item]


def make_transform(preprocess, training=True):
    """Make torchvision's transforms that correspond to a `Preprocess`, in training or testing."""
    crop = transforms.RandomCrop if training else transforms.CenterCrop
    return transforms.Compose(
        [
            transforms.Resize(preprocess.resize),
            crop(preprocess.crop),
            *([transforms.RandomHorizontalFlip()] if training else []),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.mean.flatten() / 255, preprocess.std.flatten() / 255),
        ]
    )
