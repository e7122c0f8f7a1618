"""A trained network with its preprocessing, as it is served and loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_bench.data.dataset import Dataset, generate_dataset
from resnet_bench.data.of_recipe import evaluation_loader, splits_of
from resnet_bench.models.of_recipe import build_network
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.classifier import Classifier, classifier_of
from resnet_bench.tracking.model import PROGRAM, load_weights, save_model
from tests.training.conftest import PLAIN, tiny_recipe


@pytest.fixture(scope="module")
def images() -> Dataset:
    return generate_dataset("cifar10", train_size=64, test_size=32)


def built(recipe: Recipe) -> Classifier:
    torch.manual_seed(0)
    return classifier_of(recipe, build_network(recipe).state_dict())


@pytest.mark.parametrize("resize", [None, 40])
def test_classifier_predicts_what_a_run_predicts(images: Dataset, resize: int | None) -> None:
    recipe = tiny_recipe(augmentation={"resize": resize})
    classifier, test = built(recipe), splits_of(recipe, images)["test"]
    normalized, _ = next(evaluation_loader(recipe, test, PLAIN, batch_size=len(test)).epoch(0))
    assert torch.equal(classifier(test.images), classifier.network(normalized))
    assert classifier.class_names[0] == "airplane"


def test_classifier_takes_floats_from_zero_to_one(images: Dataset) -> None:
    classifier, pixels = built(tiny_recipe()), images.test.images
    torch.testing.assert_close(classifier(pixels.float() / 255), classifier(pixels))
    with pytest.raises(ValueError, match="uint8, or floats from 0 to 1"):
        classifier(pixels.float())
    for others in (pixels[0], pixels[:, :1], pixels.permute(0, 2, 3, 1)):
        with pytest.raises(ValueError, match=r"must be RGB, \[N, 3, H, W\]; these are \["):
            classifier(others)
    resized = built(tiny_recipe(augmentation={"resize": 40}))
    # Bytes are rounded after they are resized.
    torch.testing.assert_close(resized(pixels.float() / 255), resized(pixels), atol=0.5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("resize", [None, 40])
def test_served_model_takes_raw_images(images: Dataset, tmp_path: Path, resize: int | None) -> None:
    import mlflow

    classifier = built(tiny_recipe(augmentation={"resize": resize}))
    save_model(classifier, np.zeros((2, 3, 32, 32), dtype=np.uint8), tmp_path / "model")
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    (inputs,) = served.metadata.signature.inputs.inputs
    assert (inputs.type, inputs.shape) == (np.dtype("uint8"), (-1, 3, 32, 32))
    pixels = images.test.images
    for count in (1, 5):
        predicted = served.predict(pixels[:count].numpy())
        np.testing.assert_allclose(predicted, classifier(pixels[:count]).detach().numpy(), atol=1e-5)
    with pytest.raises(mlflow.exceptions.MlflowException, match="schema"):
        served.predict(pixels.float().numpy())


@pytest.mark.slow
def test_a_model_is_saved_without_a_look_at_all_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds at the end of each run."""
    from mlflow.utils import environment

    looked: list[object] = []
    monkeypatch.setattr(environment, "warn_dependency_requirement_mismatches", looked.append)
    network = built(tiny_recipe()).network
    save_model(network, np.zeros((2, 3, 32, 32), dtype=np.float32), tmp_path / "model")
    assert not looked
    environment.warn_dependency_requirement_mismatches(["numpy"])
    assert looked == [["numpy"]]


@pytest.mark.slow
def test_weights_of_served_models_are_read_by_the_names_of_the_network(tmp_path: Path) -> None:
    """Models of 0.1.0 are the network alone, which takes normalized images."""
    recipe = tiny_recipe(model={"name": "speedrun", "whitening": {"kernel_size": 2}})
    classifier = built(recipe)
    save_model(classifier, np.zeros((2, 3, 32, 32), dtype=np.uint8), tmp_path / "new")
    save_model(classifier.network, np.zeros((2, 3, 32, 32), dtype=np.float32), tmp_path / "old")
    expected = classifier.network.state_dict()
    for name in ("new", "old"):
        weights = load_weights(tmp_path / name / PROGRAM)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
