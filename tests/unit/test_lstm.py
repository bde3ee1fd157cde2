"""The network in NumPy against finite differences, onnxruntime and itself in pieces."""

import numpy as np
import pytest
from numpy.typing import NDArray

from rpi_daemon.models import lstm
from rpi_daemon.models.manifest import open_session

F, H = 7, 12


def _params(dtype: type) -> lstm.Params:
    rng = np.random.default_rng(5)
    params = lstm.initial(F, H, rng, dtype)
    params["V"] += rng.normal(0.0, 0.3, params["V"].shape).astype(dtype)
    params["a"] += rng.normal(0.0, 0.3, params["a"].shape).astype(dtype)
    return params


def _inputs(steps: int, batch: int, dtype: type) -> NDArray[np.floating]:
    return np.random.default_rng(6).normal(size=(steps, batch, F)).astype(dtype)


@pytest.mark.parametrize("name", ["W", "R", "b", "V", "a"])
def test_gradient_matches_finite_differences(name: str) -> None:
    params, x = _params(np.float64), _inputs(6, 3, np.float64)
    rng = np.random.default_rng(7)
    wanted = rng.normal(size=(6, 3, 2, 5))
    h0, c0 = rng.normal(size=(2, 3, H)) * 0.5
    weight = np.array([1.0, 1.5, 4.0])

    def loss() -> float:
        out = lstm.forward(params, x, h0, c0)[0]
        return lstm.pinball(out.reshape(6, 3, 2, 5, 3), wanted, weight)[0]

    out, _, _, tape = lstm.forward(params, x, h0, c0)
    slope = lstm.pinball(out.reshape(6, 3, 2, 5, 3), wanted, weight)[1]
    grad = lstm.backward(params, tape, slope.reshape(out.shape))[name].ravel()
    flat = params[name].reshape(-1)
    assert np.shares_memory(flat, params[name])
    for k in rng.choice(flat.size, min(25, flat.size), replace=False):
        kept = flat[k]
        flat[k] = kept + 1e-6
        above = loss()
        flat[k] = kept - 1e-6
        below = loss()
        flat[k] = kept
        assert grad[k] == pytest.approx((above - below) / 2e-6, rel=1e-5, abs=1e-8)


def test_onnxruntime_equals_numpy_and_streaming_equals_one_window() -> None:
    params, x = _params(np.float32), _inputs(200, 5, np.float32)
    zero = np.zeros((5, H), np.float32)
    window, h_end, c_end, _ = lstm.forward(params, x, zero, zero)
    session = open_session(lstm.to_onnx(params))
    h = c = zero[None]
    streamed = np.empty_like(window)
    for t in range(200):
        streamed[t], h, c = session.run(None, {"x": x[t], "h": h, "c": c})
    np.testing.assert_allclose(streamed, window, rtol=0.0, atol=1e-5)
    np.testing.assert_allclose(h[0], h_end, rtol=0.0, atol=1e-5)
    np.testing.assert_allclose(c[0], c_end, rtol=0.0, atol=1e-5)
    assert np.abs(window[-1] - window[0]).max() > 0.1


def test_carried_state_makes_pieces_equal_to_the_whole() -> None:
    params, x = _params(np.float64), _inputs(40, 2, np.float64)
    zero = np.zeros((2, H))
    whole = lstm.forward(params, x, zero, zero)[0]
    first, h, c, _ = lstm.forward(params, x[:15], zero, zero)
    second = lstm.forward(params, x[15:], h, c)[0]
    np.testing.assert_allclose(np.concatenate([first, second]), whole, rtol=0.0, atol=1e-12)


def test_pinball_is_least_at_the_quantile() -> None:
    sample = np.random.default_rng(8).normal(size=20_001)
    wanted = np.broadcast_to(sample[:, None, None, None], (20_001, 1, 2, 5))

    def loss(at: float) -> float:
        out = np.zeros((20_001, 1, 2, 5, 3))
        out[..., 1] = at
        return lstm.pinball(out, wanted, np.array([0.0, 1.0, 0.0]))[0]

    best = float(np.quantile(sample, 0.9))
    assert loss(best) < loss(best - 0.1)
    assert loss(best) < loss(best + 0.1)


def test_adam_finds_a_minimum_and_clips() -> None:
    params: lstm.Params = {"p": np.array([3.0, -2.0])}
    adam = lstm.Adam(params)
    for _ in range(3000):
        adam.step({"p": 2.0e6 * params["p"]}, 1e-2)
    assert np.abs(params["p"]).max() < 1e-2
