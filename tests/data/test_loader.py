import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision import transforms

from resnet_bench.data import resize
from resnet_bench.data.augmentation import Draws, padded_orientations, reflect_by_index
from resnet_bench.data.dataset import Split
from resnet_bench.data.loader import ResidentLoader
from resnet_bench.data.normalization import Normalizer
from resnet_bench.recipe.settings import Augmentation, Jitter, ResizeStage
from tests.stub_cuda import needs_computing_gpu, needs_gpu

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SMALLEST_P_VALUE = 1e-3


def random_split(size: int) -> Split:
    """Noise images; the label of an image is its index."""
    images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(size))


def make_loader(split: Split, batch_size: int = 16, **options: object) -> ResidentLoader:
    return ResidentLoader(split, batch_size=batch_size, mean=MEAN, std=STD, **options)  # type: ignore[arg-type]


def as_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def torchvision_images(split: Split, draws: Draws, augmentation: Augmentation) -> list[Image.Image]:
    """What torchvision's transforms give for the same choices, in the order of the epoch."""
    padding_mode = {"zeros": "constant", "reflect": "reflect"}[augmentation.padding_mode]
    images = []
    for index, top, left, flip in zip(draws.order, draws.top, draws.left, draws.flip, strict=True):
        image = as_pillow(split.images[index])
        if augmentation.crop_padding:
            image = TF.pad(image, augmentation.crop_padding, fill=0, padding_mode=padding_mode)
            image = TF.crop(image, int(top), int(left), 32, 32)
        if flip:
            image = TF.hflip(image)
        if augmentation.resize:
            image = transforms.Resize(augmentation.resize)(image)
        images.append(image)
    return images


def as_tensor(images: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


# --- equal to torchvision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(flip=True),
        Augmentation(crop_padding=4),
        Augmentation(crop_padding=4, padding_mode="reflect"),
        Augmentation(crop_padding=4, flip=True),
        Augmentation(crop_padding=4, padding_mode="reflect", flip=True),
        Augmentation(crop_padding=1, flip=True, resize=64),
        Augmentation(crop_padding=31, padding_mode="reflect", flip=True),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equal_to_torchvision_to_the_last_bit(
    augmentation: Augmentation, shuffle: bool, memory_format: torch.memory_format
) -> None:
    split = random_split(200)
    resident = make_loader(split, augmentation=augmentation, shuffle=shuffle, memory_format=memory_format)
    draws = resident.draws(3)
    images = torchvision_images(split, draws, augmentation)
    raw = [resident.raw_batch(3, batch) for batch in range(len(resident))]
    assert torch.equal(torch.cat([batch for batch, _ in raw]), as_tensor(images))
    assert torch.equal(torch.cat([labels for _, labels in raw]), draws.order)

    normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    batches = list(resident.epoch(3))
    assert torch.equal(torch.cat([batch for batch, _ in batches]), torch.stack([normalise(i) for i in images]))
    assert all(batch.is_contiguous(memory_format=memory_format) for batch, _ in batches)
    assert torch.equal(torch.cat([labels for _, labels in batches]), draws.order)


def test_crops_flips_and_orders_all_occur() -> None:
    """The comparison with torchvision would be empty if nothing were drawn."""
    augmentation = Augmentation(crop_padding=4, flip=True)
    draws = make_loader(random_split(200), augmentation=augmentation, shuffle=True).draws(3)
    assert set(draws.top.tolist()) == set(draws.left.tolist()) == set(range(9))
    assert set(draws.flip.tolist()) == {0, 1}
    assert draws.order.tolist() != list(range(200))


@pytest.mark.parametrize("size", [16, 31, 33, 40, 64, 100, 224])
def test_resizing_equals_pillow(size: int) -> None:
    images = torch.cat((random_split(12).images, torch.zeros(2, 3, 32, 32, dtype=torch.uint8)))
    images[12] = torch.arange(32).mul(8)
    images[13, :, ::2] = 255
    split = Split(images, torch.arange(14))
    expected = as_tensor([as_pillow(image).resize((size, size), Image.Resampling.BILINEAR) for image in images])
    resized, _ = make_loader(split, augmentation=Augmentation(resize=size)).raw_batch(0, 0)
    assert torch.equal(resized, expected)
    # What other devices compute.
    assert torch.equal(resize.resize_by_gemm(images, size), expected)


@pytest.mark.parametrize("padding", [1, 4, 31])
def test_reflecting_on_a_gpu_is_reflecting(padding: int) -> None:
    images = random_split(3).images
    reflected = padded_orientations(
        images, Augmentation(crop_padding=padding, padding_mode="reflect"), interleaved=False
    )
    assert torch.equal(reflect_by_index(images, padding), reflected[:, 0])


def test_resizing_in_parts_gives_the_whole() -> None:
    images = random_split(7).images
    whole = resize.resize_by_gemm(images, 48)
    # Of three images at a time, the last part has one.
    assert torch.equal(resize.resize_by_gemm(images, 48, bytes_at_once=3 * 3 * 48 * 48 * 8), whole)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalising_in_one_pass_differs_by_rounding(memory_format: torch.memory_format) -> None:
    """What a GPU computes."""
    images = random_split(20).images
    normalize = Normalizer(MEAN, STD, device=torch.device("cpu"), memory_format=memory_format)
    in_one_pass, step_by_step = normalize.in_one_pass(images), normalize(images)
    assert in_one_pass.stride() == step_by_step.stride()
    assert in_one_pass.dtype == torch.float32
    torch.testing.assert_close(in_one_pass, step_by_step, rtol=0, atol=1e-6)


# --- what is drawn --------------------------------------------------------------------------------------------------


def test_crops_and_flips_are_uniform_and_independent() -> None:
    """Chi-square over the 9 x 9 x 2 windows that pad-4 crop and flip can give, as drawn over some epochs."""
    resident = make_loader(
        random_split(1000), augmentation=Augmentation(crop_padding=4, padding_mode="reflect", flip=True), shuffle=True
    )
    counts = np.zeros((9, 9, 2))
    for epoch in range(40):
        draws = resident.draws(epoch)
        np.add.at(counts, (draws.top.numpy(), draws.left.numpy(), draws.flip.numpy()), 1)
    assert stats.chisquare(counts.ravel()).pvalue > SMALLEST_P_VALUE


def test_windows_of_the_images_follow_the_draws() -> None:
    """The pixels themselves: where a lone white pixel ends up is uniform over the window's 9 x 9 places."""
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[..., 16, 16] = 255
    split = Split(image.repeat(8000, 1, 1, 1), torch.zeros(8000, dtype=torch.int64))
    resident = make_loader(split, batch_size=8000, augmentation=Augmentation(crop_padding=4, flip=True))
    images, _ = resident.raw_batch(0, 0)
    rows, columns = images[:, 0].nonzero()[:, 1:].T.numpy()
    # Unflipped it lies in columns 12 to 20, flipped in columns 11 to 19.
    column_counts = np.bincount(columns, minlength=32)[11:21]
    expected = np.array([1, *[2] * 8, 1]) * 8000 / 18
    assert stats.chisquare(np.bincount(rows, minlength=32)[12:21]).pvalue > SMALLEST_P_VALUE
    assert stats.chisquare(column_counts, expected).pvalue > SMALLEST_P_VALUE


def test_positions_of_an_image_are_uniform_over_epochs() -> None:
    resident = make_loader(random_split(10), batch_size=5, shuffle=True)
    counts = np.zeros((10, 10))
    for epoch in range(3000):
        counts[np.arange(10), resident.draws(epoch).order.numpy()] += 1
    assert stats.chisquare(counts.ravel(), ddof=19).pvalue > SMALLEST_P_VALUE


def test_golden_draws() -> None:
    """They decide which images published runs saw; a change needs a new RANDOM_STREAM_VERSION."""
    resident = make_loader(
        random_split(8),
        augmentation=Augmentation(crop_padding=4, padding_mode="zeros", flip=True),
        shuffle=True,
        seed=42,
    )
    draws = resident.draws(1)
    assert draws.order.tolist() == [2, 4, 7, 3, 5, 6, 1, 0]
    assert draws.top.tolist() == [3, 0, 3, 8, 3, 4, 6, 8]
    assert draws.left.tolist() == [0, 2, 4, 5, 2, 1, 3, 3]
    assert draws.flip.tolist() == [0, 0, 0, 1, 0, 0, 1, 0]


def test_seed_stream_and_epoch_each_change_the_epoch() -> None:
    split = random_split(50)
    orders = [
        tuple(make_loader(split, shuffle=True, seed=seed, stream=stream).draws(epoch).order.tolist())
        for seed, stream, epoch in itertools.product((0, 1), ("train", "other"), (0, 1))
    ]
    assert len(set(orders)) == len(orders)


# --- an epoch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "augmentation", [Augmentation(), Augmentation(crop_padding=4, padding_mode="zeros", flip=True)]
)
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_every_image_is_seen_once_an_epoch(augmentation: Augmentation, shuffle: bool, batch_size: int) -> None:
    resident = make_loader(random_split(50), batch_size, augmentation=augmentation, shuffle=shuffle)
    seen = [labels for _, labels in resident.epoch(0)]
    assert len(seen) == len(resident)
    assert all(len(labels) == batch_size for labels in seen[:-1])
    assert sorted(torch.cat(seen).tolist()) == list(range(50))
    assert resident.num_images == 50


def test_drop_last_leaves_out_the_batch_that_is_not_full() -> None:
    resident = make_loader(random_split(50), 16, shuffle=True, drop_last=True)
    whole = make_loader(random_split(50), 16, shuffle=True)
    assert (len(resident), len(whole)) == (3, 4)
    for (images, labels), (expected, expected_labels) in zip(resident.epoch(2), whole.epoch(2), strict=False):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)
    assert len(list(resident.epoch(2))) == 3


@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"augmentation": Augmentation(resize=40)}])
def test_shapes_of_batches_are_known_beforehand(options: dict[str, object]) -> None:
    resident = make_loader(random_split(50), 16, **options)
    batches = [(len(labels), images.shape[-1]) for images, labels in resident.epoch(1)]
    assert [resident.batch_shape(1, batch) for batch in range(len(resident))] == batches


def test_an_epoch_that_was_prepared_is_the_same() -> None:
    options = {"augmentation": Augmentation(crop_padding=4, padding_mode="reflect", flip=True), "shuffle": True}
    prepared, plain = make_loader(random_split(50), **options), make_loader(random_split(50), **options)
    prepared.prepare(3)
    # Another epoch may come in between.
    for epoch in (7, 3, 3):
        for (images, labels), (expected, expected_labels) in zip(
            prepared.epoch(epoch), plain.epoch(epoch), strict=True
        ):
            assert torch.equal(images, expected)
            assert torch.equal(labels, expected_labels)


@pytest.mark.parametrize("batches_at_once", [1, 3])
def test_resuming_anywhere_gives_the_rest_of_the_epoch(batches_at_once: int) -> None:
    options = {
        "augmentation": Augmentation(crop_padding=4, padding_mode="reflect", flip=True),
        "shuffle": True,
        "seed": 5,
    }
    whole = list(make_loader(random_split(50), 7, **options).epoch(4))
    for start in range(len(whole) + 1):
        fresh = make_loader(random_split(50), 7, **options, batches_at_once=batches_at_once)
        rest = list(fresh.epoch(4, start_batch=start))
        assert len(rest) == len(whole) - start
        for (images, labels), (expected, expected_labels) in zip(rest, whole[start:], strict=True):
            assert torch.equal(images, expected)
            assert torch.equal(labels, expected_labels)


def test_epochs_do_not_depend_on_what_ran_before() -> None:
    resident = make_loader(random_split(50), augmentation=Augmentation(crop_padding=4, flip=True), shuffle=True)
    first = [images for images, _ in resident.epoch(1)]
    interrupted = resident.epoch(0)
    next(interrupted)
    torch.manual_seed(123)
    again = [images for images, _ in resident.epoch(1)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_the_memory_layout_changes_nothing_but_strides() -> None:
    options = {"augmentation": Augmentation(crop_padding=4, padding_mode="reflect", flip=True), "shuffle": True}
    plain = make_loader(random_split(50), **options)
    other = make_loader(random_split(50), **options, memory_format=torch.channels_last)
    for (images, labels), (expected, expected_labels) in zip(other.epoch(0), plain.epoch(0), strict=True):
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_images_are_not_copied_where_nothing_is_done_to_them() -> None:
    split = random_split(50)
    resident = make_loader(split)
    assert resident.raw_batch(0, 0)[0].data_ptr() == split.images.data_ptr()
    before = split.images.clone()
    for images, _ in resident.epoch(0):
        images.zero_()
    assert torch.equal(split.images, before)


def test_impossible_settings_are_refused() -> None:
    split = random_split(8)
    with pytest.raises(ValueError, match="at least one image"):
        make_loader(split, 0)
    with pytest.raises(ValueError, match="cannot be padded by 32 reflected"):
        make_loader(split, augmentation=Augmentation(crop_padding=32, padding_mode="reflect"))
    with pytest.raises(ValueError, match="seed"):
        make_loader(split, seed=-1)
    with pytest.raises(ValueError, match="has 2 batches and cannot start at batch 3"):
        make_loader(split, 4).epoch(0, start_batch=3)
    with pytest.raises(ValueError, match="no batch 2"):
        make_loader(split, 4).raw_batch(0, 2)


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_computing_gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", ["reflect", "zeros"])
@pytest.mark.parametrize("resize", [None, 40, 224])
def test_gpu_gives_the_images_of_the_cpu(
    resize: int | None,
    mode: Literal["reflect", "zeros"],
    memory_format: torch.memory_format,
) -> None:
    augmentation = Augmentation(
        crop_padding=4, padding_mode=mode, flip=True, resize=resize, jitter=Jitter(brightness=0.1, contrast=0.1)
    )
    options = {"augmentation": augmentation, "shuffle": True, "memory_format": memory_format}
    on_cpu = make_loader(random_split(50), 8, **options)
    for batches_at_once in (1, 50):
        on_gpu = make_loader(random_split(50), 8, **options, device="cuda", batches_at_once=batches_at_once)
        for batch, ((images, labels), (expected, expected_labels)) in enumerate(
            zip(on_gpu.epoch(2), on_cpu.epoch(2), strict=True)
        ):
            raw, raw_expected = on_gpu.raw_batch(2, batch)[0].cpu(), on_cpu.raw_batch(2, batch)[0]
            assert torch.equal(raw, raw_expected)
            assert torch.equal(labels.cpu(), expected_labels)
            assert images.stride() == expected.stride()
            assert torch.allclose(images.cpu(), expected, rtol=0, atol=1e-6)


@pytest.mark.gpu
@needs_gpu
def test_gpu_is_not_waited_for_within_an_epoch() -> None:
    augmentation = Augmentation(
        crop_padding=4, padding_mode="reflect", flip=True, resize=40, jitter=Jitter(brightness=0.1, contrast=0.1)
    )
    resident = make_loader(
        random_split(50), 8, augmentation=augmentation, shuffle=True, device="cuda", batches_at_once=1
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        resident.prepare(0)
        assert len(list(resident.epoch(0))) == 7
        assert len(list(resident.epoch(1))) == 7
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- alternating flips and growing images ---------------------------------------------------------------------------


def test_alternating_flips_show_each_image_both_ways_in_turn() -> None:
    resident = make_loader(
        random_split(400), augmentation=Augmentation(flip=True, flip_mode="alternating"), shuffle=True
    )

    def by_image(epoch: int) -> Tensor:
        draws = resident.draws(epoch)
        return torch.zeros(400, dtype=torch.int64).scatter(0, draws.order, draws.flip)

    first = by_image(1)
    assert stats.binomtest(int(first.sum()), 400).pvalue > SMALLEST_P_VALUE
    for epoch in range(2, 6):
        assert torch.equal(by_image(epoch), first if epoch % 2 else 1 - first)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("padding", [0, 2])
def test_jitter_moves_and_stretches_the_values_of_whole_images(
    padding: int, memory_format: torch.memory_format
) -> None:
    split = random_split(200)
    plain, jittered = (
        make_loader(
            split,
            augmentation=Augmentation(crop_padding=padding, jitter=jitter),
            shuffle=True,
            memory_format=memory_format,
        )
        for jitter in (None, Jitter(brightness=0.3, contrast=0.2))
    )
    added, factors = [], []
    for epoch in (1, 2):
        for (images, labels), (expected, same_labels) in zip(jittered.epoch(epoch), plain.epoch(epoch), strict=True):
            assert torch.equal(labels, same_labels)
            assert images.is_contiguous(memory_format=memory_format)
            for image, original in zip(images.double(), expected.double(), strict=True):
                factor = (image.max() - image.min()) / (original.max() - original.min())
                brightness = image.mean() / factor - original.mean()
                assert torch.allclose(image, (original + brightness) * factor, atol=1e-5)
                factors.append(factor.item() - 1)
                added.append(brightness.item())
    for found, most in ((added, 0.3), (factors, 0.2)):
        assert stats.kstest(found, stats.uniform(-most, 2 * most).cdf).pvalue > SMALLEST_P_VALUE
    assert abs(np.corrcoef(added, factors)[0, 1]) < 0.2


def test_jitter_alone_needs_no_shuffle_or_crop_and_starts_anywhere() -> None:
    resident = make_loader(random_split(48), augmentation=Augmentation(jitter=Jitter(contrast=0.5)))
    whole = [images for images, _ in resident.epoch(1)]
    assert not torch.equal(whole[2], [images for images, _ in make_loader(random_split(48)).epoch(1)][2])
    (last,) = (images for images, _ in resident.epoch(1, start_batch=2))
    assert torch.equal(last, whole[2])


@pytest.mark.parametrize("start_batch", [0, 3])
def test_images_grow_within_an_epoch(start_batch: int) -> None:
    split = random_split(96)
    sizes = tuple(ResizeStage(pixels=size, epochs=epochs) for size, epochs in ((16, 1.5), (24, 0.5), (32, 1.0)))
    growing = make_loader(split, augmentation=Augmentation(crop_padding=2, flip=True, sizes=sizes), shuffle=True)
    plain = make_loader(split, augmentation=Augmentation(crop_padding=2, flip=True), shuffle=True)
    for epoch, expected in ((1, [16] * 6), (2, [16] * 3 + [24] * 3), (3, [32] * 6)):
        batches = list(growing.epoch(epoch, start_batch))
        assert [images.shape[-1] for images, _ in batches] == expected[start_batch:]
        assert [growing.batch_shape(epoch, batch) for batch in range(6)] == [(16, size) for size in expected]
        for batch, size in enumerate(expected):
            images, labels = growing.raw_batch(epoch, batch)
            originals, same_labels = plain.raw_batch(epoch, batch)
            assert torch.equal(labels, same_labels)
            small = [as_pillow(image).resize((size, size), Image.Resampling.BILINEAR) for image in originals]
            assert torch.equal(images, as_tensor(small))


def test_batches_that_are_made_together_are_of_one_size() -> None:
    sizes = (ResizeStage(pixels=16, epochs=1.5), ResizeStage(pixels=32, epochs=0.5))
    singly, together = (
        make_loader(random_split(96), augmentation=Augmentation(sizes=sizes), shuffle=True, batches_at_once=count)
        for count in (1, 4)
    )
    for epoch in (1, 2):
        for (images, labels), (expected, expected_labels) in zip(
            list(together.epoch(epoch)), singly.epoch(epoch), strict=True
        ):
            assert torch.equal(images, expected)
            assert torch.equal(labels, expected_labels)
