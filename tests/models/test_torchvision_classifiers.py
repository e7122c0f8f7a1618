"""torchvision's classifiers: their heads, their training outputs, and their downloaded weights."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision.models

from resnet_bench.base.errors import UserError
from resnet_bench.models.catalogue import build, validate
from resnet_bench.models.size import count_parameters
from resnet_bench.models.torchvision_classifiers import classifier_names, replace_head

ONE_OF_EACH_FAMILY = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
    "wide_resnet50_2",
]


def outline(name: str, num_classes: int) -> torch.nn.Module:
    """A classifier without storage, except RegNet, whose constructor computes with tensors."""
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return build(f"torchvision:{name}", num_classes=num_classes)


def test_classifiers_and_nothing_else_are_named() -> None:
    names = classifier_names()
    assert {"resnet18", "densenet201", "vit_b_16"} <= set(names)
    assert not any("rcnn" in name or "fcn" in name or "quantized" in name or "r3d" in name for name in names)
    for name in names:
        validate(f"torchvision:{name}", {"pretrained": True})
        assert torchvision.models.get_model_weights(name).DEFAULT.url


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_a_replaced_head_is_the_one_that_torchvision_would_have_built(name: str) -> None:
    replaced, built = outline(name, 1000), outline(name, 10)
    replace_head(replaced, 10)
    shapes = {key: value.shape for key, value in replaced.state_dict().items()}
    assert shapes == {key: value.shape for key, value in built.state_dict().items()}


@pytest.mark.parametrize(("name", "pixels"), [("googlenet", 64), ("inception_v3", 96)])
def test_networks_with_auxiliary_heads_give_one_output_in_training(name: str, pixels: int) -> None:
    model = outline(name, 10)
    assert model.training
    logits = model(torch.empty(2, 3, pixels, pixels, device="meta"))
    assert logits.shape == (2, 10)


def put_weights(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """Save weights under the name that torchvision downloads them to, as if it had."""
    options = {"init_weights": True} if name == "googlenet" else {}
    state = torchvision.models.get_model(name, weights=None, **options).state_dict()
    file = folder / "hub" / "checkpoints" / Path(torchvision.models.get_model_weights(name).DEFAULT.url).name
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    return state


@pytest.mark.parametrize("name", ["googlenet", "mobilenet_v3_small", "squeezenet1_1"])
def test_pretrained_weights_come_with_a_new_head(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    downloaded = put_weights(name, tmp_path)
    model = build(f"torchvision:{name}", num_classes=10, options={"pretrained": True})

    new = [key for key, value in model.state_dict().items() if not torch.equal(value, downloaded[key])]
    head_weight, head_bias = new
    assert model.state_dict()[head_weight].shape[0] == 10
    assert model.state_dict()[head_bias].shape == (10,)
    assert count_parameters(model) == count_parameters(outline(name, 10))


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(UserError, match="no route to host") as refusal:
        build("torchvision:resnet18", num_classes=10, options={"pretrained": True})
    message = str(refusal.value)
    assert torchvision.models.get_model_weights("resnet18").DEFAULT.url in message
    assert str(tmp_path / "hub" / "checkpoints") in message
    assert "pretrained = false" in message


def test_a_broken_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / Path(torchvision.models.ResNet18_Weights.DEFAULT.url).name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"<html>moved</html>")
    with pytest.raises(UserError, match="in place of a broken one"):
        build("torchvision:resnet18", num_classes=10, options={"pretrained": True})
