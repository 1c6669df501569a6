"""Codecs keep the error that their format promises; what they leave out is kept, and comes with the next step."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minidl.errors import ArgumentError, ConfigError, DtypeError, ExchangeError, ShapeError
from minidl.parallel.codecs import BLOCK, TopK
from minidl.parallel.compression import Changes, Codec, Feedback, codec

CODECS = ("none", "fp16", "int8", "topk:0.01", "topk:0.3", "topk:1")
LOSSY = CODECS[1:]
SIZES = (0, 1, 2, 3, 255, 256, 257, 1000, 70_000)
FLOATS = (np.float32, np.float64, np.float16)


def normal(n, dtype=np.float32, scale=1e-3, seed=0):
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(dtype)


def there_and_back(text, x):
    """What arrives of x."""
    out = np.full_like(x, 7)
    codec(text).decode(codec(text).encode(x), out)
    return out


def numbers(dtype=np.float32, finite=True):
    """Runs of drawn numbers, of which many are zeros, equal, huge or subnormal."""
    info = np.finfo(dtype)
    width = 8 * np.dtype(dtype).itemsize
    special = [0.0, -0.0, 1.0, -1.0, 127.0, float(info.max), -float(info.max), float(info.tiny), float(info.smallest_subnormal),
               -3 * float(info.smallest_subnormal)]
    plain = st.floats(width=width, allow_nan=not finite, allow_infinity=not finite)
    length = st.one_of(st.integers(0, 6), st.sampled_from([255, 256, 257, 600]))
    return length.flatmap(lambda n: arrays(dtype, n, elements=st.one_of(st.sampled_from(special), plain), fill=st.sampled_from(special)))


# The formats


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("text", CODECS)
def test_a_parcel_has_the_room_that_was_foretold(text, n, dtype):
    x = normal(n, dtype)
    parcel = codec(text).encode(x)
    assert parcel.dtype == np.uint8 and parcel.shape == (codec(text).room(n, dtype),)
    out = np.full(len(parcel), 9, np.uint8)
    assert codec(text).encode(x, out) is out and out.tobytes() == parcel.tobytes()


@pytest.mark.parametrize("n", [1000, 1001, 1023, 1045, 65_536, 65_537, 131_073, 262_144, 1_000_001])
@pytest.mark.parametrize("text, most", [("fp16", 0.5006), ("int8", 0.26), ("topk:0.01", 0.0075)])
def test_bytes_over_those_of_float32(text, most, n):
    assert codec(text).room(n) / (4 * n) <= most
    assert codec(text).down.room(n) / (4 * n) <= max(most, 0.025)


def test_more_comes_down_than_goes_up():
    assert TopK(0.01).down.count(1000) == 45 and TopK(0.6).down.count(1000) == 1000
    assert all(codec(text).down.name == text for text in ("none", "fp16", "int8"))


def test_none_is_a_view():
    x = normal(10)
    assert np.shares_memory(codec("none").encode(x), x)
    assert not codec("none").lossy and all(codec(text).lossy for text in LOSSY)


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_sent_as_it_is_comes_as_it_is(dtype):
    for n in SIZES:
        x = normal(n, dtype)
        np.testing.assert_array_equal(there_and_back("none", x), x)
        np.testing.assert_array_equal(there_and_back("topk:1", x), there_and_back("int8", x))


@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1e-30, 1e-3, 1.0, 1e4, 1e30, 3e38])
@pytest.mark.parametrize("n", [1, 2, 255, 1000])
def test_halves_are_those_of_numpy(n, scale):
    """After the run was scaled so that its largest number lies in [2^14, 2^15)."""
    x = (np.random.default_rng(n).uniform(-1, 1, n) * scale * 10.0 ** np.random.default_rng(n).uniform(-14, 0, n)).astype(np.float32)
    x[0] = scale
    power = 15 - math.frexp(float(x[0]))[1]
    expected = np.ldexp(x.astype(np.float64), power).astype(np.float16)
    parcel = codec("fp16").encode(x)
    assert parcel[-2:].view(np.int16)[0] == power
    np.testing.assert_array_equal(parcel[:-2].view(np.uint16), expected.view(np.uint16))


def test_a_half_rounds_to_nearest_and_ties_to_even():
    one = 2.0 ** 14
    x = np.array([one, one + 7, one + 8, one + 9, one + 24, -one - 8, -one - 24], np.float32)          # neighbours are 16 apart
    np.testing.assert_array_equal(there_and_back("fp16", x), [one, one, one, one + 16, one + 32, -one, -one - 32])


@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_error_of_fp16(dtype, data):
    x = data.draw(numbers(dtype))
    y = there_and_back("fp16", x)
    m = float(np.abs(x).max(initial=0))
    top = float(np.finfo(dtype).max)
    with np.errstate(over="ignore"):
        error = np.abs(x.astype(np.longdouble) - y)
    least = max(m * 2.0 ** -39, float(np.finfo(dtype).smallest_subnormal) / 2)
    slack = 2 if m > top * (1 - 2.0 ** -12) else 1 + 1e-9           # the very largest are not rounded up to infinity, but down
    assert np.isfinite(y).all()
    assert (error <= np.maximum(np.abs(x).astype(np.longdouble) * 2.0 ** -11, least) * slack).all()


@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_error_of_int8(dtype, data):
    x = data.draw(numbers(dtype))
    y = there_and_back("int8", x)
    info = np.finfo(np.promote_types(dtype, np.float32))
    rounded = 0 if dtype != np.float16 else np.abs(x).astype(np.float64) * 2.0 ** -10 + 2.0 ** -25           # what comes is one again
    assert np.isfinite(y).all()
    for first in range(0, len(x), BLOCK):
        block = x[first:first + BLOCK].astype(np.longdouble)
        scale = max(np.abs(block).max() / 127, info.smallest_normal)
        here = rounded if np.isscalar(rounded) else rounded[first:first + BLOCK]
        assert (np.abs(block - y[first:first + BLOCK]) <= scale / 2 * (1 + 600 * info.eps) + here).all()


def test_an_int8_rounds_ties_to_even():
    x = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, 3.49], np.float32)
    np.testing.assert_array_equal(there_and_back("int8", x), [127, 0, 2, 2, 0, -2, 3])


def test_blocks_of_int8_have_scales_of_their_own():
    x = np.concatenate([np.full(BLOCK, 1e6), np.full(BLOCK, 1e-6), np.zeros(BLOCK), np.full(3, -5e-3)]).astype(np.float32)
    np.testing.assert_allclose(there_and_back("int8", x), x, rtol=1e-6)


def largest(x, k):
    """Where the k largest magnitudes are, the first of equal ones first: the plainest way."""
    return sorted(sorted(range(len(x)), key=lambda i: (-abs(float(x[i])), i))[:k])


@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_topk_takes_the_largest_and_the_first_of_equal_ones(dtype, data):
    x = data.draw(numbers(dtype))
    for text, fraction in [("topk:0.01", 0.01), ("topk:0.3", 0.3)]:
        expected = np.zeros_like(x)
        chosen = largest(x, max(1, math.ceil(fraction * len(x))))
        expected[chosen] = there_and_back("int8", x[chosen])
        np.testing.assert_array_equal(there_and_back(text, x), expected)


@pytest.mark.parametrize("n", [254, 255, 256, 257, 510, 511, 512, 1000, 70_000])
def test_topk_finds_its_numbers_however_far_apart(n):
    """A byte tells of up to 254 numbers in between, or of 255."""
    for apart in (1, 2, 254, 255, 256, 257, 509, 510, 511, 512, 700, n):
        for first in {0, 253, 254, 255, 256, n - 1} & set(range(n)):
            where = np.arange(first, n, apart)
            x = np.zeros(n, np.float32)
            x[where] = -3
            np.testing.assert_array_equal(there_and_back(f"topk:{len(where) / n}", x), x)


@pytest.mark.parametrize("fraction, n, k", [(0.01, 100, 1), (0.01, 101, 2), (0.07, 100, 7), (0.01, 1, 1), (0.01, 0, 0), (0.5, 3, 2),
                                            (1, 3, 3), (1e-9, 5, 1)])
def test_how_many_topk_sends(fraction, n, k):
    assert TopK(fraction).count(n) == k


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 300, 699])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", LOSSY)
def test_what_is_not_finite_arrives_as_nan(text, dtype, at, bad):
    x = normal(700, dtype)
    x[at] = bad
    y = there_and_back(text, x)
    first = at // BLOCK * BLOCK if text == "int8" else 0
    touched = slice(first, first + BLOCK if text == "int8" else None)
    assert np.isnan(y[touched]).all()
    if text == "int8":
        assert np.isfinite(np.delete(y, np.arange(700)[touched])).all()
    total = np.ones(700, dtype)
    codec(text).add(codec(text).encode(x), total)
    assert np.isnan(total[at])


@pytest.mark.parametrize("text", LOSSY)
@given(x=numbers(finite=False))
@settings(max_examples=60, deadline=None)
def test_nothing_that_is_not_finite_looks_sound(text, x):
    with np.errstate(over="raise", invalid="raise", divide="raise"):            # it is said elsewhere, and not once a rank and chunk
        y = there_and_back(text, x)
    assert np.isnan(y[~np.isfinite(x)]).all() and not np.isinf(y).any()


@pytest.mark.parametrize("text", CODECS)
def test_add_is_decode_and_add(text):
    x, total = normal(1000), normal(1000, seed=1)
    parcel = codec(text).encode(x)
    sent, expected = np.empty_like(x), total.copy()
    codec(text).decode(parcel, sent)
    codec(text).add(parcel, total)
    np.testing.assert_array_equal(total, expected + sent)


@pytest.mark.parametrize("text", CODECS)
def test_parcels_do_not_depend_on_what_was_sent_before_or_on_threads(text):
    runs = [normal(n, dtype, seed=n) for n in (1000, 3, 700, 1, 300) for dtype in (np.float32, np.float64)]
    shared, expected = codec(text), [codec(text).encode(x).tobytes() for x in runs]
    seen = []

    def work():
        seen.append(all(shared.encode(x).tobytes() == parcel for _ in range(30) for x, parcel in zip(runs, expected)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [True] * 3


@pytest.mark.parametrize("text", CODECS)
def test_encoding_leaves_the_numbers_alone(text):
    x = normal(1000)
    x[::7] = 0
    before = x.copy()
    codec(text).encode(x)
    np.testing.assert_array_equal(x, before)


# By name, and errors


@pytest.mark.parametrize("text", ["none", "fp16", "int8", "topk:0.01", "topk:1.0", "topk:1e-05"])
def test_names(text):
    assert isinstance(codec(text), Codec) and codec(text).name == text and text in repr(codec(text))


@pytest.mark.parametrize("text, says", [
    ("in8", "nearest: 'int8'"), ("top:0.1", "nearest: 'topk'"), ("FP16", "Known are"), ("", "Known are"), ("int8:4", "takes no number"),
    ("topk", "fraction"), ("topk:", "fraction"), ("topk:0", "fraction"), ("topk:1.5", "fraction"), ("topk:-1", "fraction"),
    ("topk:nan", "fraction"), ("topk:a", "fraction")])
def test_names_that_mean_nothing(text, says):
    with pytest.raises(ConfigError, match=f"--compress {text}(.|\n)*{says}"):
        codec(text)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, math.nan])
def test_fractions_that_mean_nothing(fraction):
    with pytest.raises(ArgumentError, match="fraction"):
        TopK(fraction)


@pytest.mark.parametrize("text", LOSSY)
def test_runs_that_cannot_be_compressed(text):
    for x, error in [(np.zeros(3, int), DtypeError), (np.zeros(3, complex), DtypeError), (np.zeros((2, 2)), ShapeError),
                     (np.zeros(6)[::2], ShapeError)]:
        with pytest.raises(error, match=f"{codec(text).name}: "):
            codec(text).encode(x)
    with pytest.raises(ExchangeError, match="a parcel of 4 numbers"):
        codec(text).decode(np.zeros(5, np.uint8), np.zeros(4, np.float32))
    with pytest.raises(ExchangeError, match="a parcel of 4 numbers"):
        codec(text).encode(np.zeros(4, np.float32), np.zeros(3, np.uint8))
    with pytest.raises(ExchangeError, match="a parcel of 4 numbers"):
        codec(text).add(np.zeros(3, np.uint8), np.zeros(4, np.float32))


# Error feedback


@pytest.mark.parametrize("text", LOSSY)
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-13)])
def test_all_that_came_in_has_gone_out_but_for_the_residual(text, dtype, tolerance):
    feedback, by = Feedback(1000, dtype), codec(text)
    into, sent, out = np.zeros(1000), np.zeros(1000), np.empty(1000, dtype)
    for step in range(40):
        x = normal(1000, dtype, 1, seed=step)
        into += x
        for where in (slice(300, 1000), slice(0, 300)):
            by.decode(feedback.encode(by, x[where], where), out[where])
        feedback.commit()
        sent += out
    np.testing.assert_allclose(sent, into - feedback.residual, atol=tolerance * 40)


@pytest.mark.parametrize("text, steps", [("topk:0.01", 110), ("int8", 300)])
def test_a_small_gradient_comes_late_and_not_never(text, steps):
    """Beside numbers that are sent at every step, and among which it would be rounded to nothing."""
    x = np.full(100, 1e-3, np.float32)
    x[0] = 1
    arrived = {}
    for on in (True, False):
        feedback, total, out = Feedback(100, on=on), np.zeros(100), np.empty(100, np.float32)
        for step in range(10 * steps):
            y = x if text == "int8" or step % 10 == 0 else x * (np.arange(100) > 0)     # topk sends one number a step: not always the 1
            codec(text).decode(feedback.encode(codec(text), y, slice(0, 100)), out)
            feedback.commit()
            total += out
        arrived[on] = total[1:] / (10 * steps * 1e-3)
    assert arrived[True].min() > 0.8
    assert np.median(arrived[False]) == 0


@pytest.mark.parametrize("text", LOSSY)
def test_a_step_can_be_made_again(text):
    by, feedback = codec(text), Feedback(600)
    ranges = [slice(0, 256), slice(256, 600)]
    first, second = normal(600, seed=1), normal(600, seed=2)

    def step(x):
        return [feedback.encode(by, x[where], where).tobytes() for where in ranges]

    step(first)
    feedback.commit()
    before = feedback.residual.copy()
    once = step(second)
    np.testing.assert_array_equal(feedback.residual, before)           # still pending
    assert step(second) == once                                       # even without a rollback
    feedback.rollback()
    feedback.commit()                                                   # of nothing
    np.testing.assert_array_equal(feedback.residual, before)
    assert step(second) == once
    feedback.commit()
    assert (feedback.residual != before).any()


def test_ranges_that_were_not_encoded_keep_what_they_had():
    feedback, by = Feedback(20), codec("topk:0.1")
    feedback.encode(by, np.arange(1, 21, dtype=np.float32), slice(0, 20))
    feedback.commit()
    before = feedback.residual.copy()
    feedback.encode(by, np.ones(10, np.float32), slice(10, 20))
    feedback.commit()
    np.testing.assert_array_equal(feedback.residual[:10], before[:10])
    assert (feedback.residual[10:] != before[10:]).any()


def test_a_residual_goes_through_a_checkpoint():
    by, one = codec("int8"), Feedback(300)
    assert one.residual is None
    one.encode(by, normal(300), slice(0, 300))
    assert one.residual is None                                         # not before it counts
    one.commit()
    other = Feedback(300)
    other.residual = one.residual
    x = normal(300, seed=1)
    assert other.encode(by, x, slice(0, 300)).tobytes() == one.encode(by, x, slice(0, 300)).tobytes()
    other.commit()
    assert (other.residual != one.residual).any()                       # a copy
    other.residual = None
    assert other.encode(by, x, slice(0, 300)).tobytes() == by.encode(x).tobytes()
    with pytest.raises(ShapeError, match="300 numbers"):
        other.residual = np.zeros(301, np.float32)


def test_a_residual_is_paid_by_a_codec_that_loses_nothing():
    feedback = Feedback(3)
    feedback.residual = np.array([1, 2, 3], np.float32)
    parcels = [feedback.encode(codec("none"), np.ones(3, np.float32) * k, slice(0, 3)) for k in (1, 10)]
    assert [parcel.view(np.float32).tolist() for parcel in parcels] == [[2, 3, 4], [11, 12, 13]]
    feedback.commit()
    assert not feedback.residual.any()


@pytest.mark.parametrize("text", LOSSY)
def test_without_feedback_nothing_is_kept(text):
    feedback = Feedback(300, on=False)
    for step in range(3):
        x = normal(300, seed=step)
        assert feedback.encode(codec(text), x, slice(0, 300)).tobytes() == codec(text).encode(x).tobytes()
        feedback.commit()
    assert feedback.residual is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("text", LOSSY)
def test_a_nan_is_not_kept(text, bad):
    feedback = Feedback(700)
    for x in (normal(700), np.where(np.arange(700) % 300 == 0, bad, normal(700, seed=1)).astype(np.float32)):
        feedback.encode(codec(text), x, slice(0, 700))
        feedback.commit()
    assert np.isfinite(feedback.residual).all()


# Weights on their way down


@pytest.mark.parametrize("text", CODECS)
def test_weights_come_down_and_are_the_same_everywhere(text):
    by, changes = codec(text), Changes(1000)
    known = {rank: normal(1000, scale=1, seed=9) for rank in range(3)}
    goal = normal(1000, scale=1, seed=10)
    for step in range(2000):                                            # slowly: of topk's each weight comes about every 100 steps
        new = known[0] + (goal - known[0]) * np.float32(0.005 if step < 1800 else 0)
        for where in (slice(0, 600), slice(600, 1000)):
            parcel = changes.encode(by, new[where], known[0][where], where)
            for weights in known.values():
                changes.apply(by, parcel, weights[where])
        changes.commit()
    assert known[0].tobytes() == known[1].tobytes() == known[2].tobytes()
    np.testing.assert_allclose(known[0], goal, atol=0.01)


def test_topk_touches_nothing_else():
    by, changes, known = codec("topk:0.01"), Changes(1000), normal(1000)
    new, before = known + normal(1000, seed=1), known.copy()
    changes.apply(by, changes.encode(by, new, known, slice(0, 1000)), known)
    assert np.count_nonzero(known != before) == 10


def test_under_none_they_are_the_new_ones():
    new, known = normal(10), normal(10, seed=1)
    Changes.apply(codec("none"), Changes(10).encode(codec("none"), new, known, slice(0, 10)), known)
    assert known.tobytes() == new.tobytes()


# What it is for


def descent(text, on=True, steps=4000, ranks=3, size=200):
    """SGD on a quadratic whose parts have optima of their own, as ranks have data of their own; how far it ends from the best weights."""
    draw = np.random.default_rng(0)
    curvature = 10.0 ** draw.uniform(-1, 0, size)
    optima = draw.standard_normal((ranks, size)) * 10
    best, by = optima.mean(axis=0), codec(text)
    memory = [Feedback(size, np.float64, on) for _ in range(ranks)]
    w, sent = np.zeros(size), np.empty(size)
    for _ in range(steps):
        total = np.zeros(size)
        for rank in range(ranks):
            by.decode(memory[rank].encode(by, curvature * (w - optima[rank]), slice(0, size)), sent)
            memory[rank].commit()
            total += sent
        w -= 0.01 / ranks * total
    return np.linalg.norm(w - best) / np.linalg.norm(best)


def test_descent_with_little_error():
    plain = descent("none")
    assert descent("fp16") == pytest.approx(plain, abs=1e-4)
    assert descent("int8") == pytest.approx(plain, abs=1e-4)
    assert descent("int8", on=False) > 2 * plain


def test_descent_with_topk_needs_feedback():
    """Without it each rank pulls at a few weights of its own for ever, and the mean of the optima is never found."""
    assert descent("none") < 0.01
    assert descent("topk:0.01") < 0.15
    assert descent("topk:0.01", on=False) > 0.5
