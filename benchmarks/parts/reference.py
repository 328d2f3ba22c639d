"""Images as a first script has them: PIL's, made ready one by one by torchvision's transforms."""

from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms


class PILImages(Dataset):
    """Images in memory as torchvision's sets hand them out.

    Args:
        images: uint8 [n, 3, height, width].
        labels: int64 [n].
        prepare: What is done to each PIL image.
    """

    def __init__(self, images, labels, prepare):
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels, self.prepare = labels.tolist(), prepare

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, item):
        return self.prepare(Image.fromarray(self.images[item])), self.labels[item]


def prepare_as(preprocess, training=True):
    """The transforms that do what a `Preprocess` of ours does in training, or where it tests."""
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
