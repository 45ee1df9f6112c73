from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from pcm_rl.algos.augment import augment_images, relight

ROWS = 3


@pytest.fixture
def batch() -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    return TensorDict(
        {
            ("observation", "image"): pixels(ROWS, 3, 6, 6, generator=generator),
            ("observation", "wrist_image"): pixels(ROWS, 3, 4, 4, generator=generator),
            ("observation", "mask"): pixels(ROWS, 1, 6, 6, generator=generator),
            ("observation", "codes"): pixels(ROWS, 3, generator=generator),
            ("observation", "features"): torch.rand(ROWS, 3, 6, 6, generator=generator),
            "frames": pixels(ROWS, 3, 6, 6, generator=generator),
        },
        batch_size=[ROWS],
    )


def pixels(*shape, generator):
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def augmented(batch, seed=0, **options):
    return augment_images(batch, generator=torch.Generator().manual_seed(seed), **options)


def test_zero_leaves_the_batch_itself(batch):
    assert augment_images(batch, brightness=0.0, jitter=0.0) is batch


def test_only_images_change_and_the_original_does_not(batch):
    before = batch.clone()
    changed = augmented(batch, brightness=0.3, jitter=0.3)
    assert (batch == before).all()
    images = {("observation", "image"), ("observation", "wrist_image")}
    for key in batch.keys(True, True):
        assert torch.equal(changed[key], batch[key]) == (key not in images), key
        assert changed[key].dtype == batch[key].dtype and changed[key].shape == batch[key].shape


def test_the_generator_decides(batch):
    first, again, other = (augmented(batch, seed, brightness=0.2, jitter=0.2) for seed in (1, 1, 2))
    assert (first == again).all() and not (first == other).all()


def test_factors_of_one_leave_every_pixel():
    image = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    image = torch.cat([image, pixels(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))])
    one = torch.ones(2)
    assert torch.equal(relight(image, one, one, one), image)


def test_brightness_scales_a_constant_image_and_clips():
    image = torch.tensor([100, 200, 7], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    one = torch.ones(3)
    got = relight(image, torch.tensor([1.2, 1.5, 0.5]), one, one)
    assert got[:, 0, 0, 0].tolist() == [120, 255, 4]  # 300 is clipped; 3.5 rounds to even
    assert torch.equal(got, got[:, :1, :1, :1].expand_as(got))


def test_contrast_scales_the_distance_from_the_mean_grey():
    image = torch.tensor([[50, 150]], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)  # mean 100
    one = torch.ones(1)
    assert relight(image, one, torch.tensor([0.5]), one)[0, 0, 0].tolist() == [75, 125]
    assert relight(image, one, torch.tensor([1.5]), one)[0, 0, 0].tolist() == [25, 175]
    assert relight(image, one, torch.tensor([0.0]), one)[0, 0, 0].tolist() == [100, 100]


def test_saturation_scales_the_distance_from_grey():
    image = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1)  # grey 0.299 200 + 0.587 100 + 0.114 50
    one = torch.ones(1)
    assert relight(image, one, one, torch.tensor([0.0])).flatten().tolist() == [124, 124, 124]  # 124.2
    assert relight(image, one, one, torch.tensor([0.5])).flatten().tolist() == [162, 112, 87]
    grey = torch.full((1, 3, 2, 2), 77, dtype=torch.uint8)
    assert torch.equal(relight(grey, one, one, torch.tensor([1.9])), grey)


def test_images_of_a_row_share_their_light_and_rows_do_not():
    grey = torch.full((ROWS, 3, 2, 2), 100, dtype=torch.uint8)
    batch = TensorDict({("observation", name): grey for name in ("image", "wrist_image")}, batch_size=[ROWS])
    changed = augmented(batch, brightness=0.4, jitter=0.4)["observation"]
    assert torch.equal(changed["image"], changed["wrist_image"])
    light = changed["image"][:, 0, 0, 0]
    assert light.unique().numel() == ROWS and light.min() >= 60 and light.max() <= 140
    alone = augmented(batch, brightness=0.0, jitter=0.4)["observation"]
    assert torch.equal(alone["image"], grey), "contrast and saturation of a grey image are nothing"


def test_rows_without_entries_to_change_are_refused(batch):
    with pytest.raises(ValueError, match="among the entries of 'observation', got a NoneType"):
        augmented(batch.exclude("observation"), brightness=0.1, jitter=0.0)
    with pytest.raises(ValueError, match="got a Tensor"):
        augmented(TensorDict({"observation": torch.rand(3, 6)}, [3]), brightness=0.1, jitter=0.0)
