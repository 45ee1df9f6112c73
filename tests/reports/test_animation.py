import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from pcm_rl.phases import Phase
from pcm_rl.reports.animation import annotate, cursor_x, encode_webp
from pcm_rl.reports.colors import CURSOR_COLOR, NO_PHASE_COLOR, PHASE_COLORS


def episode(count, height=20, width=30):
    frames = np.full((count, height, width, 3), 128, np.uint8)
    phase = np.resize(np.array([3, 1, 0, 2, 4, -1]), count)
    return frames, phase


def marks(picture):
    """Columns with a dark mark below the time line."""
    pixels = np.asarray(picture).astype(int)
    top = pixels.shape[0] - 2 - 26 + 4  # the legend has 26 rows
    dark = np.array(ImageColor.getrgb(CURSOR_COLOR))
    return set(np.flatnonzero(np.abs(pixels[top] - dark).sum(-1) == 0).tolist())


def bar_row(picture):
    """The row of the time line's middle: the cursor's halo and the legend are above and below it."""
    pixels = np.asarray(picture).astype(int)
    wanted = np.array(ImageColor.getrgb(PHASE_COLORS[Phase.APPROACH]))
    rows = np.flatnonzero((np.abs(pixels[:, 12:40] - wanted).sum(-1) == 0).mean(1) > 0.5)
    return pixels[rows[len(rows) // 2]]


def test_one_picture_a_frame_all_of_one_size():
    pictures = annotate(*episode(13), title="success")
    assert len(pictures) == 13
    assert len({picture.size for picture in pictures}) == 1
    assert annotate(*episode(0), title="") == []


def test_the_cursor_stands_in_the_middle_of_its_cell():
    count = 6
    pictures = annotate(*episode(count), title="t")
    dark = np.array(ImageColor.getrgb(CURSOR_COLOR))
    for index, picture in enumerate(pictures):
        if index:  # on the first picture the cursor covers the cell that finds the row
            top = np.flatnonzero(np.asarray(pictures[1])[:, cursor_x(1, count)].sum(-1) == dark.sum())
            row = np.asarray(picture).astype(int)[top[len(top) // 2]]
            columns = np.flatnonzero(np.abs(row - dark).sum(-1) == 0)
            assert columns.mean() == cursor_x(index, count)
    positions = [cursor_x(index, count) for index in range(count)]
    gaps = np.diff(positions)
    assert gaps.min() > 0 and gaps.max() - gaps.min() <= 1
    assert positions[0] + positions[-1] == pictures[0].width  # symmetric


def test_every_cell_has_the_colour_of_its_phase():
    count = 6
    frames, phase = episode(count)
    row = bar_row(annotate(frames, phase, title="t")[-1])
    for index, value in enumerate(phase[:-1].tolist()):  # the last one is under the cursor
        expected = ImageColor.getrgb(PHASE_COLORS[Phase(value)] if value >= 0 else NO_PHASE_COLOR)
        assert tuple(row[cursor_x(index, count)]) == expected


def test_each_phase_has_a_colour_of_its_own():
    assert set(PHASE_COLORS) == set(Phase)
    assert len({*PHASE_COLORS.values(), NO_PHASE_COLOR}) == len(Phase) + 1


def test_a_title_of_any_length_and_more_frames_than_pixels():
    frames, phase = episode(600, 2, 40)
    assert len(annotate(frames, phase, title="word " * 100)) == 600
    assert len(annotate(frames[:1], phase[:1], title="")) == 1


@pytest.mark.parametrize(
    ("frames", "phase", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), np.zeros(2, int), "uint8"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, int), "uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, int), r"\[2\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2), "integers"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 5]), "-1..4"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([-2, 0]), "-1..4"),
    ],
)
def test_wrong_input_is_named(frames, phase, message):
    with pytest.raises(ValueError, match=message):
        annotate(frames, phase, title="t")


def durations(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.format == "WEBP"
        result = []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            result.append(image.info["duration"])
        return result, image.size


def test_encoded_frames_and_speed():
    pictures = annotate(*episode(7), title="t")
    times, size = durations(encode_webp(pictures, 10))
    assert times == [100] * 7
    assert size == pictures[0].size


def test_a_small_limit_drops_frames_and_halves_the_size_but_keeps_the_duration():
    noise = np.random.default_rng(0).integers(0, 256, (10, 60, 60, 3), dtype=np.uint8)
    pictures = annotate(noise, np.zeros(10, int), title="t")
    times, size = durations(encode_webp(pictures, 10, max_bytes=1))
    assert sum(times) == 1000
    assert len(times) < 10 and size[0] < pictures[0].width
    limit = len(encode_webp(pictures, 10)) // 2
    assert len(encode_webp(pictures, 10, max_bytes=limit)) <= limit


def test_nothing_to_encode():
    with pytest.raises(ValueError, match="no picture"):
        encode_webp([], 10)
    with pytest.raises(ValueError, match="fps"):
        encode_webp(annotate(*episode(1), title="t"), 0)


def test_what_is_kept_has_a_mark_below_its_cell():
    count = 6
    frames, phase = episode(count)
    kept = np.array([False, True, False, False, True, False])
    picture = annotate(frames, phase, title="t", kept=kept)[-1]
    found = {index for index in range(count - 1) if cursor_x(index, count) in marks(picture)}
    assert found == {1, 4}
    assert not marks(annotate(frames, phase, title="t")[0])
    with pytest.raises(ValueError, match="kept"):
        annotate(frames, phase, title="t", kept=kept[:-1])
