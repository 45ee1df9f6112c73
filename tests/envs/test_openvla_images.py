"""OpenVLA's image processing: against TorchRL's reference, against libjpeg, by hand, and as a wrapper."""

import functools
import io

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image, JpegImagePlugin
from torchrl.data.vla import preprocessing

from pcm_rl.envs import ChunkedEnv, OpenVLAImages, chunked_vector_env, openvla_images
from pcm_rl.envs.openvla_images import centre_crop, encode_jpeg, jpeg_round_trip, lanczos3_resize, openvla_image

SIDE = np.sqrt(0.9)  # of the default crop


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def enlarged(image, size, how=Image.Resampling.BICUBIC):
    return np.asarray(Image.fromarray(image).resize((size, size), how))


def planes_of(image):
    return np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)


class Camera(gym.Env):
    """Draws into the same arrays again, at every step or, like the simulators, only when it is told to."""

    def __init__(self, size=32, draws_on_demand=True):
        if draws_on_demand:
            self.draw_cameras = True
        frame = spaces.Box(0, 255, (size, size, 3), np.uint8)
        state = spaces.Box(-9, 999, (2,), np.float32)
        self.observation_space = spaces.Dict({"image": frame, "wrist_image": frame, "proprio": state})
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.frames = {key: np.zeros(frame.shape, np.uint8) for key in ("image", "wrist_image")}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.look(draw=True), {}

    def step(self, action):
        self.steps += 1
        return self.look(getattr(self, "draw_cameras", True)), 0.0, False, self.steps == 8, {"success": False}

    def look(self, draw):
        if draw:
            for index, frame in enumerate(self.frames.values()):
                frame[:] = noise(*frame.shape, seed=2 * self.steps + index)
        return {**self.frames, "proprio": np.full(2, self.steps, np.float32)}


@pytest.fixture
def processed(monkeypatch):
    """The first row's first pixel of every image that is processed."""
    seen = []

    def counted(image, **settings):
        seen.append(image[0, 0].tolist())
        return openvla_image(image, **settings)

    monkeypatch.setattr(openvla_images, "openvla_image", counted)
    return seen


# Against TorchRL: sums of products in another order move a value across a half now and then.
@pytest.mark.parametrize("size", [256, 128, 224, 300])
@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_resize_is_torchrls(size, kind):
    image = noise(size, size, 3) if kind == "noise" else enlarged(noise(16, 16, 3), size)
    expected = preprocessing._lanczos3_resize(torch.from_numpy(planes_of(image))[None], (224, 224))[0]
    difference = np.abs(lanczos3_resize(planes_of(image), 224) - expected.round().clamp(0, 255).numpy())
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-4


# TorchRL divides by 255 where TensorFlow multiplies by the reciprocal, and torch's square root of 0.9 can be one unit
# in the last place off: values within 1e-5 of an integer are truncated to either side.
@pytest.mark.parametrize("image", [noise(224, 224, 3), enlarged(noise(16, 16, 3), 224)], ids=["noise", "smooth"])
def test_crop_is_torchrls(image):
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    expected = preprocessing._fractional_center_crop(batch, (224, 224))[0].numpy()
    difference = np.abs(centre_crop(planes_of(image)).astype(np.uint8).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


@pytest.mark.parametrize(("source", "tolerance"), [(256, 0.55), (300, 0.55), (128, 0.6)])
def test_a_ramp_stays_a_ramp_but_at_the_borders(source, tolerance):
    ramp = np.broadcast_to(np.arange(source, dtype=np.float32) / 2, (3, 100, source))
    centres = (np.arange(224) + 0.5) * source / 224 - 0.5  # of the pixels, in the source's columns
    inner = np.broadcast_to(centres / 2, (3, 224, 224))[..., 6:-6]
    np.testing.assert_allclose(lanczos3_resize(ramp, 224)[..., 6:-6], inner, atol=tolerance)
    np.testing.assert_allclose(
        lanczos3_resize(ramp.transpose(0, 2, 1), 224)[:, 6:-6], inner.transpose(0, 2, 1), atol=tolerance
    )


def test_the_crop_of_a_ramp_by_hand():
    ramp = np.broadcast_to(np.arange(224, dtype=np.float32), (3, 224, 224))
    positions = 223 * ((1 - SIDE) / 2 + SIDE * np.arange(224) / 223)  # corners on corners: 5.72 to 217.28
    np.testing.assert_allclose(centre_crop(ramp)[0, 0], positions * 255.5 / 255, atol=1e-3)
    assert centre_crop(ramp)[0, :, [0, 1, 112, 223]].astype(np.uint8)[:, 0].tolist() == [5, 6, 112, 217]


def test_what_has_the_right_size_is_left_alone():
    planes = planes_of(noise(224, 224, 3))
    np.testing.assert_array_equal(lanczos3_resize(planes, 224), planes)
    np.testing.assert_array_equal(centre_crop(planes, 1.0).astype(np.uint8), planes)


@pytest.mark.parametrize("grey", [0, 1, 77, 128, 254, 255])
def test_a_constant_image_stays_constant(grey):
    np.testing.assert_array_equal(openvla_image(np.full((256, 200, 3), grey, np.uint8)), np.full((224, 224, 3), grey))


def test_jpeg_has_quality_95_and_half_the_chroma():
    with Image.open(io.BytesIO(encode_jpeg(noise(32, 48, 3)))) as picture:
        assert JpegImagePlugin.get_sampling(picture) == 2, "4:2:0"
        # The standard's tables begin with 16 and 17; quality 95 takes a tenth of them, rounded.
        assert [table[0] for table in picture.quantization.values()] == [2, 2]
        assert picture.size == (48, 32)


# A constant 16 x 16 block has nothing but its mean to transform, fast or accurate; its borders show the chroma's
# smoothing.
@pytest.mark.parametrize("shape", [(256, 256), (200, 184), (201, 187), (16, 16)])
def test_blocks_are_decoded_as_libjpeg_does(shape):
    image = enlarged(noise(16, 16, 3), 256, Image.Resampling.NEAREST)[: shape[0] // 16 * 16, : shape[1] // 16 * 16]
    image = np.pad(image, ((0, shape[0] - image.shape[0]), (0, shape[1] - image.shape[1]), (0, 0)), mode="edge")
    with Image.open(io.BytesIO(encode_jpeg(image))) as picture:
        expected = np.asarray(picture)
    assert expected.std() > 30
    np.testing.assert_array_equal(jpeg_round_trip(image).transpose(1, 2, 0), expected)


def test_the_transform_is_the_fast_one():
    image = enlarged(noise(16, 16), 256)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)  # grey: no chroma whose smoothing could differ
    fast, accurate = Image.open(file), np.asarray(Image.open(file)).astype(int)
    fast.decoderconfig = (1, 1)
    found = jpeg_round_trip(np.repeat(image[..., None], 3, axis=2))
    np.testing.assert_array_equal(found, np.broadcast_to(np.asarray(fast), (3, 256, 256)))
    assert 1.0 < np.sqrt(np.mean((found - accurate) ** 2)) < 3.0, "Pillow's own decoding is the accurate one"


def test_a_gradient_through_all_steps():
    rows, columns = np.mgrid[:256, :256]
    image = np.stack([columns, rows, np.full((256, 256), 128)], axis=-1).astype(np.uint8)
    found = openvla_image(image).astype(float)
    positions = 223 * ((1 - SIDE) / 2 + SIDE * np.arange(224) / 223)
    expected = (positions + 0.5) * 256 / 224 - 0.5
    np.testing.assert_allclose(found[..., 0], np.broadcast_to(255 - expected, (224, 224)), atol=8)  # mirrored
    np.testing.assert_allclose(found[..., 1], np.broadcast_to(expected[:, None], (224, 224)), atol=8)
    assert np.abs(found[..., 0] - (255 - expected)).mean() < 2
    np.testing.assert_array_equal(openvla_image(image[:, ::-1], rotate=False), found)


def test_an_upright_frame_becomes_the_raw_one_rotated():
    raw = noise(64, 64, 3)
    upright, rotated = raw[::-1], raw[::-1, ::-1]
    np.testing.assert_array_equal(openvla_image(upright), openvla_image(rotated, rotate=False))


def test_settings_reach_their_step():
    image = noise(64, 48, 3)
    jpeg = jpeg_round_trip(image, 30)
    expected = lanczos3_resize(jpeg, 20).astype(np.uint8).transpose(1, 2, 0)
    settings = dict(size=20, jpeg_quality=30, rotate=False)
    np.testing.assert_array_equal(openvla_image(image, crop_area=None, **settings), expected)
    cropped = centre_crop(lanczos3_resize(jpeg, 20), 0.5).astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(openvla_image(image, crop_area=0.5, **settings), cropped)
    assert openvla_image(image, size=1).shape == (1, 1, 3)


def test_the_observation_holds_the_named_images_and_all_that_is_no_image():
    env = OpenVLAImages(Camera(), size=16)
    observation, _ = env.reset()
    assert observation in env.observation_space
    assert set(observation) == {"image", "proprio"}
    np.testing.assert_array_equal(observation["image"], openvla_image(env.unwrapped.frames["image"], size=16))
    both = OpenVLAImages(Camera(), keys=("image", "wrist_image"), size=16, crop_area=None)
    observation, _ = both.reset()
    assert observation in both.observation_space
    for key, frame in both.unwrapped.frames.items():
        np.testing.assert_array_equal(observation[key], openvla_image(frame, size=16, crop_area=None))


def test_a_frame_is_processed_once_and_a_new_drawing_in_its_array_again(processed):
    env = OpenVLAImages(Camera(), size=16)
    first, _ = env.reset()
    env.unwrapped.draw_cameras = False
    repeated = [env.step(np.zeros(2))[0] for _ in range(3)]
    assert len(processed) == 1
    repeated[0]["image"][:] = 0  # whoever writes into an observation does not write into the next
    np.testing.assert_array_equal(repeated[2]["image"], first["image"])
    np.testing.assert_array_equal(env.step(np.zeros(2))[0]["image"], first["image"])
    env.unwrapped.draw_cameras = True
    drawn = env.step(np.zeros(2))[0]
    assert len(processed) == 2
    assert not np.array_equal(drawn["image"], first["image"])


def test_a_chunk_processes_its_last_frame_only(processed):
    env = ChunkedEnv(OpenVLAImages(Camera(), keys=("image", "wrist_image"), size=16), chunk_length=4)
    env.reset()
    for _ in range(2):
        _, _, _, truncated, info = env.step(np.zeros((4, 2), np.float32))
    assert truncated
    assert len(processed) == 6, "two cameras at the reset and at the end of two chunks"
    episode = info["trajectory"]
    assert episode["observation", "image"].shape == (2, 3, 16, 16)
    assert episode["observation", "image"].dtype == torch.uint8
    first = openvla_image(noise(32, 32, 3, seed=0), size=16)
    np.testing.assert_array_equal(episode["observation", "image"][0].numpy(), first.transpose(2, 0, 1))
    wrist = openvla_image(noise(32, 32, 3, seed=2 * 4 + 1), size=16)
    np.testing.assert_array_equal(episode["observation", "wrist_image"][1].numpy(), wrist.transpose(2, 0, 1))


def test_it_runs_inside_of_a_vector_environment():
    make = functools.partial(OpenVLAImages, Camera(draws_on_demand=False), size=16)
    envs = chunked_vector_env(make, 1, chunk_length=4, workers=False)
    observation, _ = envs.reset()
    np.testing.assert_array_equal(observation["image"][0], openvla_image(noise(32, 32, 3), size=16))
    observation, *_ = envs.step(np.zeros((1, 4, 2), np.float32))
    np.testing.assert_array_equal(observation["image"][0], openvla_image(noise(32, 32, 3, seed=8), size=16))
    envs.close()


def test_workers_prepare_their_images_themselves(monkeypatch):
    make = functools.partial(OpenVLAImages, Camera(draws_on_demand=False), size=16)
    envs = chunked_vector_env(make, 1, chunk_length=4, context="fork")
    monkeypatch.setattr(openvla_images, "openvla_image", None)  # here, not in the worker
    observation, _ = envs.reset()
    envs.close()
    assert envs._nothing["image"].shape == (16, 16, 3)  # of what is shared with the worker
    np.testing.assert_array_equal(observation["image"][0], openvla_image(noise(32, 32, 3), size=16))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("wrist",), r"keys has 'wrist', which the observation lacks; .*\['image', 'wrist_image'\]"),
        (("proprio",), r"'proprio' is .*expected \[H, W, 3\] uint8: name images only, \['image', 'wrist_image'\]"),
        ("image", r"keys is 'image'; expected a tuple .*\['image', 'wrist_image'\]"),
        ((), r"keys is \(\); expected a tuple of at least one image"),
    ],
)
def test_keys_that_name_no_image_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        OpenVLAImages(Camera(), keys=keys)


def test_channels_first_and_bare_images_are_refused():
    env = Camera()
    env.observation_space = spaces.Dict({"image": spaces.Box(0, 255, (3, 8, 8), np.uint8)})
    with pytest.raises(ValueError, match=r"'image' is .*move channels last"):
        OpenVLAImages(env)
    env.observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"the observation is .*expected a Dict with images"):
        OpenVLAImages(env)


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((8, 8, 3), np.float32), r"float32 \[8, 8, 3\]"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"uint8 \[2, 8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\]"),
        ([[1, 2, 3]], "list"),
    ],
)
def test_what_is_no_image_is_refused(image, got):
    with pytest.raises(ValueError, match=rf"the image is {got}; expected a NumPy array \[H, W, 3\] uint8: "):
        openvla_image(image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size is 0; expected pixels, at least 1"),
        ({"jpeg_quality": 101}, "jpeg_quality is 101; expected 1 to 100"),
        ({"crop_area": 0.0}, r"crop_area is 0.0; expected a share in \(0, 1\], or None"),
        ({"crop_area": 1.1}, r"crop_area is 1.1; expected a share in \(0, 1\], or None"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        openvla_image(noise(8, 8, 3), **settings)
    with pytest.raises(ValueError, match=message):
        OpenVLAImages(Camera(), **settings)
