"""A network starts from weights that there are, and parts of it do not learn."""

import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchvision.models import alexnet

from pyclassify.model import AlexNet
from pyclassify.training import finetuning
from tests.support import tuned
from tests.support.phrases import mentions

HEAD = ("head.weight", "head.bias")


def copied(network):
    return {name: each.clone() for name, each in network.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_head_of_other_classes_is_reinitialized_and_reported(tmp_path):
    torch.manual_seed(0)
    network = tuned.Net(4)
    first, theirs = copied(network), tuned.state()

    message = finetuning.load_weights(network, 4, tuned.write(tmp_path / "w.pth"))

    assert changed(theirs, network.state_dict()) == {*HEAD}
    assert not {*HEAD} & changed(first, network.state_dict())
    # the form of this message
    assert message == (
        f"weights {tmp_path}/w.pth: loaded 9 of 11 tensors; re-initialized: "
        "head.weight 7x8 in the file, 4x8 in the network, head.bias 7 in the file, 4 in the network"
    )


def prefixed(prefix, state):
    return {f"{prefix}{name}": each for name, each in state.items()}


def changed_names(pattern, replacement, state):
    return {re.sub(pattern, replacement, name): each for name, each in state.items()}


WRAPS = {
    "torchvision": lambda state: state,
    "lightning": lambda state: {"state_dict": prefixed("model.", state)},
    "lightning of a compiled network": lambda state: {
        "state_dict": prefixed("model._orig_mod.", state)
    },
    "model_state_dict": lambda state: {
        "epoch": 3,
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []},
    },
    "net": lambda state: {"net": state, "acc": np.float64(93.5)},
    "model with arguments": lambda state: {
        "model": state,
        "args": Namespace(lr=0.1, output=Path("out")),
    },
    "nested": lambda state: {"trainer": {"state": {"network": state}}},
    "ddp": lambda state: {"model": prefixed("module.", state)},
    "compiled": lambda state: prefixed("_orig_mod.", state),
    "ddp of a compiled network": lambda state: prefixed("module._orig_mod.", state),
    "swa": lambda state: {"n_averaged": torch.tensor(3), **prefixed("module.", state)},
    "compiled part": lambda state: changed_names(r"^features", "features._orig_mod", state),
    "ddp of a part": lambda state: changed_names(r"^body", "body.module", state),
    "backbone": lambda state: {
        **prefixed("module.backbone.", state),
        "module.projector.weight": torch.ones(2),
    },
    "encoder": lambda state: {"state_dict": prefixed("encoder.", state)},
    "ema": lambda state: {"model": zeros(state), "model_ema": {"module": state}},
    "weight averaging of ours": lambda state: {
        "state_dict": prefixed("model.", state),
        "current_model_state": prefixed("model.", zeros(state)),
    },
    "half": lambda state: {name: each.half() for name, each in state.items()},
    "parameters": lambda state: {
        name: torch.nn.Parameter(each, each.is_floating_point()) for name, each in state.items()
    },
}


def zeros(state):
    return {name: torch.zeros_like(each) for name, each in state.items()}


@pytest.mark.parametrize("wrap", WRAPS)
def test_load_weights_finds_the_state_dict_of_other_projects(wrap, tmp_path):
    network = tuned.Net(7)
    file = tuned.write(tmp_path / "w.pth", WRAPS[wrap](tuned.state()))

    message = finetuning.load_weights(network, 7, file)

    assert mentions(message, "w.pth", "11 of 11")
    assert {each.dtype for each in network.parameters()} == {torch.float32}
    torch.testing.assert_close(network.state_dict(), tuned.state(), atol=1e-3, rtol=0)


def test_load_weights_reports_the_ema(tmp_path):
    state = tuned.state()
    file = tuned.write(tmp_path / "w.pth", {"model": zeros(state), "model_ema": state})

    assert mentions(finetuning.load_weights(tuned.Net(7), 7, file), "(model_ema)")


def test_ema_of_parameters_gets_the_buffers_of_the_weights(tmp_path):
    network, state = tuned.Net(7), tuned.state()
    average = {name: state[name] for name, _ in network.named_parameters()}
    plain = {**state, **zeros(average)}
    file = tuned.write(tmp_path / "w.pth", {"model": plain, "ema": average})

    assert mentions(finetuning.load_weights(network, 7, file), "(ema)", "11 of 11")
    torch.testing.assert_close(network.state_dict(), state)


def test_layer_with_as_many_channels_as_classes_is_not_taken_for_the_head(tmp_path):
    state = tuned.state(4)
    del state["features.1.weight"]  # 4x3x3x3, of a convolution
    file = tuned.write(tmp_path / "w.pth", state)

    with pytest.raises(MisconfigurationException, match=r"features\.1\.weight is not in the file"):
        finetuning.load_weights(tuned.Net(4), 4, file)


@pytest.mark.parametrize("name", ["w.safetensors", "pytorch_model.bin"])
def test_weights_are_read_from_safetensors_whatever_the_name(name, tmp_path):
    network, file = tuned.Net(7), str(tmp_path / name)
    safetensors.torch.save_file(prefixed("module.", tuned.state()), file, {"format": "pt"})

    message = finetuning.load_weights(network, 7, file)

    assert mentions(message, name, "11 of 11")
    torch.testing.assert_close(network.state_dict(), tuned.state())


def test_weights_of_a_part_are_loaded_into_a_network_that_wraps_it(tmp_path):
    class Wrapper(torch.nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.backbone, self.classifier = tuned.Net(7), torch.nn.Linear(7, num_classes)

    network = Wrapper(4)

    message = finetuning.load_weights(network, 4, tuned.write(tmp_path / "w.pth"))

    assert mentions(message, "11 of 13", "classifier.bias")
    torch.testing.assert_close(network.backbone.state_dict(), tuned.state())


def test_load_weights_reports_unused_and_missing_tensors(tmp_path):
    others = {name: each for name, each in tuned.state().items() if name not in HEAD}
    others.pop("features.2.num_batches_tracked")  # as torch before 0.4.1 had it
    file = tuned.write(tmp_path / "w.pth", {**others, "aux.weight": torch.ones(2)})

    message = finetuning.load_weights(tuned.Net(4), 4, file)

    assert mentions(message, "head.bias", "4 in the network", "not used: aux.weight")


def test_torchvisions_alexnet_fits_except_its_head(tmp_path):
    file = tuned.write(tmp_path / "w.pth", tuned.spread(alexnet))

    message = finetuning.load_weights(AlexNet(10), 10, file)

    assert mentions(message, "14 of 16", "classifier.6.weight 1000x")


@pytest.mark.parametrize("frozen", [["features", "body"], ["features.1", "features.2", "body"]])
def test_frozen_modules_stay_bitwise_identical_and_the_rest_learns(frozen, tmp_path):
    module = tuned.classifier(weights=tuned.write(tmp_path / "w.pth"), freeze=frozen)

    trainer = tuned.fit(module)

    after = module.model.state_dict()
    assert changed(tuned.state(), after) == {*HEAD}
    assert changed(tuned.classifier().model.state_dict(), after) >= {*HEAD}
    assert trainer.optimizers[0].param_groups[0]["params"] == [*module.model.head.parameters()]


def test_running_statistics_of_trainable_modules_change(tmp_path):
    module = tuned.classifier(weights=tuned.write(tmp_path / "w.pth"), freeze="body")

    tuned.fit(module)

    apart = changed(tuned.state(4), module.model.state_dict())
    assert {"features.2.running_mean", "features.2.num_batches_tracked"} <= apart
    assert not {"body.weight", "body.bias"} & apart


def test_frozen_modules_stay_in_evaluation_mode():
    module = tuned.classifier(freeze="features")

    for each in (module, module.eval().train()):
        assert each.training
        assert each.model.head.training
        assert not any(part.training for part in each.model.features.modules())


def test_weights_are_read_once_and_not_when_resumed_from_a_checkpoint(tmp_path):
    file = tmp_path / "w.pth"
    module = tuned.classifier(weights=tuned.write(file))
    tuned.fit(module).save_checkpoint(tmp_path / "of the first.ckpt")
    file.unlink()

    second = tuned.classifier(weights=str(file))
    trainer = tuned.trainer(max_steps=2)
    trainer.fit(second, tuned.images(), ckpt_path=tmp_path / "of the first.ckpt")
    tuned.fit(module)

    assert trainer.global_step == 2
    assert not changed(
        torch.load(tmp_path / "of the first.ckpt")["state_dict"], second.state_dict()
    )


def test_fine_tuned_checkpoint_can_be_fine_tuned(tmp_path):
    first = tuned.classifier(weights=tuned.write(tmp_path / "w.pth"), freeze="features")
    tuned.fit(first).save_checkpoint(tmp_path / "first.ckpt")

    second = tuned.classifier(weights=tmp_path / "first.ckpt", freeze=["features", "body"])
    tuned.fit(second)

    assert changed(first.model.state_dict(), second.model.state_dict()) == {*HEAD}


def test_weights_are_read_without_a_last_checkpoint(tmp_path):
    module = tuned.classifier(weights=tuned.write(tmp_path / "w.pth"), freeze="features")

    tuned.trainer(max_steps=1).fit(module, tuned.images(), ckpt_path="last")

    assert "head.bias" in changed(tuned.state(), module.model.state_dict())
    assert "features.1.bias" not in changed(tuned.state(), module.model.state_dict())


def test_learning_rate_finder_starts_from_the_weights(tmp_path):
    module = tuned.classifier(weights=tuned.write(tmp_path / "w.pth"), freeze="features")
    search = LearningRateFinder(num_training_steps=4)

    tuned.fit(module, callbacks=[search])

    theirs = tuned.state()
    assert torch.equal(module.model.features[1].weight, theirs["features.1.weight"])
    torch.testing.assert_close(module.model.body.weight, theirs["body.weight"], atol=0.01, rtol=0)
