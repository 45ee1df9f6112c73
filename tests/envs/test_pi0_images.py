"""pi0's image processing: against transformers' processor, against Pillow, by hand, and as a wrapper."""

import types

import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

from pcm_rl.config import ConfigError, EnvConfig
from pcm_rl.envs import ChunkedEnv, Pi0Images, pi0_image
from pcm_rl.rollouts.environments import make_env

from .test_openvla_images import Camera, noise

PROCESSOR = pytest.importorskip("transformers.models.pi0.image_processing_pi0")
BACKENDS = pytest.importorskip("transformers.image_processing_backends")


@pytest.fixture
def processor(monkeypatch):
    """transformers' own, with torchvision's three functions in torch: that package is not installed."""

    def resize(image, size, interpolation, antialias):
        assert interpolation == 3  # Pillow's name of bicubic
        return torch.nn.functional.interpolate(image, size, mode="bicubic", align_corners=False, antialias=antialias)

    def pad(image, padding, fill, padding_mode):
        left, top, right, bottom = padding
        return torch.nn.functional.pad(image, (left, right, top, bottom), padding_mode, fill)

    def normalize(image, mean, std, inplace=False):
        return (image - torch.as_tensor(mean)[:, None, None]) / torch.as_tensor(std)[:, None, None]

    functions = types.SimpleNamespace(
        resize=resize, pad=pad, normalize=normalize, grayscale_to_rgb=lambda image: image,
        InterpolationMode=types.SimpleNamespace(LANCZOS="lanczos"),
    )  # fmt: skip
    monkeypatch.setattr(BACKENDS, "tvF", functions, raising=False)
    monkeypatch.setattr(BACKENDS, "pil_torch_interpolation_mapping", {3: 3}, raising=False)
    return PROCESSOR.PI0ImageProcessor()


@pytest.mark.parametrize("shape", [(256, 256), (112, 112), (224, 224), (128, 256), (250, 100)])
def test_it_is_transformers_processor(processor, shape):
    image = noise(*shape, 3)
    values = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    expected = ((values * 0.5 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pi0_image(image, rotate=False), expected)


def test_the_processor_leaves_a_prepared_image_as_it_is(processor):
    image = pi0_image(noise(256, 256, 3))
    values = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    np.testing.assert_array_equal(((values * 0.5 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy(), image)


def test_bilinear_is_openpis():
    image = noise(256, 256, 3)
    expected = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pi0_image(image, resample="bilinear", rotate=False), expected)


@pytest.mark.parametrize(("resample", "first", "fill"), [("bicubic", 0, 128), ("bilinear", 2, 0)])
def test_a_wide_image_is_padded(resample, first, fill):
    padded = pi0_image(np.full((8, 16, 3), 200, np.uint8), size=8, resample=resample, rotate=False)
    expected = np.full((8, 8, 3), fill, np.uint8)
    expected[first : first + 4] = 200
    np.testing.assert_array_equal(padded, expected)


def test_an_upright_image_becomes_the_raw_one_rotated():
    raw = noise(16, 16, 3)
    np.testing.assert_array_equal(pi0_image(raw[::-1], size=16), raw[::-1, ::-1])


def test_a_chunk_holds_the_named_images_and_all_that_is_no_image():
    wrapped = Pi0Images(Camera(), size=16)
    observation, _ = wrapped.reset()
    assert observation in wrapped.observation_space
    assert set(observation) == {"image", "proprio"}
    env = ChunkedEnv(Pi0Images(Camera(), keys=("image", "wrist_image"), size=16), chunk_length=4)
    env.reset()
    for _ in range(2):
        *_, info = env.step(np.zeros((4, 2), np.float32))
    episode = info["trajectory"]
    wrist = pi0_image(noise(32, 32, 3, seed=2 * 4 + 1), size=16)
    np.testing.assert_array_equal(episode["observation", "wrist_image"][1].numpy(), wrist.transpose(2, 0, 1))
    assert episode["observation", "state"].shape == (2, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"size": 0}, "size is 0; expected pixels"), ({"resample": "lanczos"}, "resample is 'lanczos'; expected bicubic")],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        pi0_image(noise(8, 8, 3), **settings)
    with pytest.raises(ValueError, match=message):
        Pi0Images(Camera(), **settings)


def test_the_configuration_names_the_preparation(monkeypatch):
    monkeypatch.setattr("gymnasium.make", lambda *_, **__: Camera())
    for images, kind in (({"size": 16}, "OpenVLAImages"), ({"prepare": "pi0", "size": 16}, "Pi0Images")):
        env = make_env(EnvConfig(images=images))
        assert type(env).__name__ == kind
        assert env.observation_space["image"] == spaces.Box(0, 255, (16, 16, 3), np.uint8)
    with pytest.raises(ConfigError, match="crop_area"):
        make_env(EnvConfig(images={"prepare": "pi0", "crop_area": 0.9}))
    with pytest.raises(ConfigError, match="prepare must be one of openvla, pi0, got 'smolvla'"):
        EnvConfig(images={"prepare": "smolvla"})
