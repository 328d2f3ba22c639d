"""Pictures of a test: readable with ten classes and a hundred, small, and of the right images."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch.utils.data import TensorDataset

from pyclassify.tracking.figures import (
    MAX_BYTES,
    plot_class_accuracy,
    plot_confident_errors,
    plot_confusion_matrix,
    save_figure,
    to_displayed_rgb,
)
from pyclassify.tracking.prediction_table import Predictions
from pyclassify.utils.text import shorten


def predictions(num_classes, count=1000):
    """Predictions of which a quarter are wrong, with falling probabilities."""
    labels = np.arange(count) % num_classes
    wrong = np.random.default_rng(0).random(count) < 0.25
    predicted = np.where(wrong, (labels + 1) % num_classes, labels)
    probabilities = np.linspace(0.99, 0.2, count, dtype=np.float32)
    return Predictions(np.arange(count), labels, predicted, probabilities, num_classes)


def noise(tested, side=32):
    generator = torch.Generator().manual_seed(0)
    shape = (len(tested.labels), 3, side, side)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return TensorDataset(images, torch.from_numpy(tested.labels))


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("num_classes", [2, 10, 100, 150])
def test_figures_are_small_and_leave_none_open(num_classes, tmp_path):
    tested = predictions(num_classes)
    names = [f"class number {number}, a long name" for number in range(num_classes)]
    figures = [
        plot_confusion_matrix(tested, names),
        plot_class_accuracy(tested, names),
        plot_confident_errors(tested, names, noise(tested)),
    ]

    for number, figure in enumerate(figures):
        path = tmp_path / f"{number}.png"
        save_figure(figure, path)
        assert path.stat().st_size <= MAX_BYTES
        assert min(Image.open(path).size) > 200
    assert plt.get_fignums() == []


def test_save_figure_of_photos_fits_the_limit(tmp_path):
    tested = predictions(10, count=100)
    path = tmp_path / "mistakes.png"

    save_figure(plot_confident_errors(tested, "abcdefghij", noise(tested, side=256)), path)

    assert path.stat().st_size <= MAX_BYTES


def test_confusion_matrix_counts_predictions_of_each_class():
    labels, predicted = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 2, 1, 1])
    tested = Predictions(np.arange(5), labels, predicted, np.ones(5, np.float32), num_classes=3)

    axes = plot_confusion_matrix(tested, ["cat", "dog", "cow"]).axes[0]

    found = {tuple(reversed(text.get_position())): text.get_text() for text in axes.texts}
    assert found == {(0, 0): "2", (0, 2): "1", (1, 1): "1", (2, 1): "1"}  # (true, predicted)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "cow"]
    assert axes.get_title(loc="left") == "Test accuracy 60.00% (5 images)"


def test_class_accuracy_shows_tested_classes_the_best_first():
    labels, predicted = np.array([0, 0, 1, 1, 1]), np.array([0, 3, 1, 1, 0])
    tested = Predictions(np.arange(5), labels, predicted, np.ones(5, np.float32), num_classes=4)

    axes = plot_class_accuracy(tested, ["cat", "dog", "cow", "pig"]).axes[0]

    assert [label.get_text() for label in axes.get_yticklabels()] == ["dog", "cat"]
    assert [text.get_text() for text in axes.texts] == ["66.7", "50.0"]


def test_confident_errors_show_both_labels_and_the_right_image():
    labels, predicted = np.array([0, 1, 1, 0]), np.array([1, 1, 0, 1])
    probabilities = np.array([0.6, 0.99, 0.9, 0.3], dtype=np.float32)
    # In another order than the set's: indices say which image is whose.
    tested = Predictions(np.array([2, 0, 1, 3]), labels, predicted, probabilities, num_classes=2)
    shades = torch.arange(4).mul(60).to(torch.uint8).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    dataset = TensorDataset(shades, torch.tensor([1, 1, 0, 0]))

    figure = plot_confident_errors(tested, ["cat", "dog"], dataset)

    assert texts(figure) == ["cat 90.0%", "dog", "dog 60.0%", "cat", "dog 30.0%", "cat"]
    shown = [image.get_array().mean() * 255 for image in figure.axes[0].images]
    assert shown == pytest.approx([60, 120, 180])
    assert figure.texts[0].get_text().startswith("3 of 4 ")


def test_confident_errors_without_errors_say_so():
    tested = predictions(2, count=4)
    tested.predicted = tested.labels

    figure = plot_confident_errors(tested, ["cat", "dog"], noise(tested))

    assert figure.texts[0].get_text() == "0 of 4 test images are misclassified"


def test_confident_errors_of_a_set_with_other_labels_raise():
    tested = predictions(10)
    shuffled = TensorDataset(noise(tested).tensors[0], torch.from_numpy((tested.labels + 5) % 10))

    with pytest.raises(MisconfigurationException, match="not in the loader's order"):
        plot_confident_errors(tested, "abcdefghij", shuffled)


@pytest.mark.parametrize(
    "image",
    [
        torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 3),
        torch.tensor([0, 51, 255.0]).view(1, 1, 3),
        torch.tensor([0, 0.2, 1.0]).view(1, 1, 3),
        torch.tensor([-1, -0.6, 1.0]).view(1, 1, 3).expand(3, 1, 3),
        Image.fromarray(np.array([[0, 51, 255]], dtype=np.uint8)),
    ],
    ids=["bytes", "floats of bytes", "of 0 to 1", "normalised", "Pillow's"],
)
def test_to_displayed_rgb_of_any_image_keeps_its_colors(image):
    shown = to_displayed_rgb(image)

    assert shown.shape == (1, 3, 3)
    assert shown[0, :, 0] == pytest.approx([0, 0.2, 1])


def test_long_names_are_cut():
    assert shorten("automobile", 8) == "automob…"
    assert shorten("cat", 8) == "cat"
