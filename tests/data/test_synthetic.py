"""The synthetic data set: ten classes that single pixels do not predict."""

import pytest
import torch
import torch.nn.functional as F

from pyclassify.data import synthetic


def test_generated_images_are_rgb_bytes_with_labels():
    images, labels = synthetic.generate_images(25, seed=0)

    assert (images.dtype, images.shape) == (torch.uint8, (25, 3, 32, 32))
    assert (labels.dtype, labels.shape) == (torch.int64, (25,))


def test_classes_are_balanced():
    _, labels = synthetic.generate_images(1000, seed=0)

    assert labels.bincount().tolist() == [100] * len(synthetic.CLASSES)


def test_same_seed_generates_the_same_images():
    torch.manual_seed(1)
    before, _ = synthetic.generate_images(20, seed=7)
    torch.manual_seed(2)
    after, _ = synthetic.generate_images(20, seed=7)

    assert torch.equal(before, after)


def test_another_seed_generates_other_images():
    one, other = (synthetic.generate_images(50, seed)[0] for seed in (0, 1))

    assert not any(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_images_of_a_class_differ():
    images, labels = synthetic.generate_images(200, seed=0)

    for label in range(len(synthetic.CLASSES)):
        assert len(images[labels == label].unique(dim=0)) == 20


@pytest.fixture(scope="module")
def splits():
    return synthetic.generate_images(4000, seed=0), synthetic.generate_images(1000, seed=1)


def test_linear_model_of_pixels_learns_little(splits):
    # 0.1 is chance; 0.31 is the best of penalties 1 to 1000
    assert 0.15 < ridge_accuracy(*splits, pixels, penalty=1000) < 0.4


def test_linear_model_of_absolute_contrast_learns(splits):
    assert ridge_accuracy(*splits, difference_from_ground, penalty=100) > 0.75


def ridge_accuracy(train, test, features, penalty):
    """Fit one linear regression a class, with an L2 penalty, and score the largest output."""
    inputs, others = features(train[0]), features(test[0])
    middle = inputs.mean(dim=0)
    inputs, others = inputs - middle, others - middle
    targets = F.one_hot(train[1]).float() - 1 / len(synthetic.CLASSES)
    gram = inputs.T @ inputs + penalty * torch.eye(inputs.shape[1])
    weights = torch.linalg.solve(gram, inputs.T @ targets)
    return ((others @ weights).argmax(dim=1) == test[1]).float().mean()


def pixels(images):
    return images.flatten(1) / 255


def difference_from_ground(images):
    """The absolute difference of each pixel from the color of the corners, 1 at most."""
    images = images.float()
    corners = torch.cat([images[..., :4, :4], images[..., -4:, -4:]], dim=-1)
    ground = corners.flatten(2).median(dim=-1).values[..., None, None]
    difference = (images - ground).abs().mean(dim=1)
    return (difference / difference.amax(dim=(1, 2), keepdim=True)).flatten(1)
