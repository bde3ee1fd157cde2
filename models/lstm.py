"""The network in NumPy: forward, back-propagation through time, Adam, and the export to ONNX."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpi_daemon.records import HORIZONS_S, QUANTILES

Array = NDArray[np.floating]
Params = dict[str, Array]

N_OUTPUTS = 2 * len(HORIZONS_S) * len(QUANTILES)  # value, then running maximum; each horizons x quantiles
OPSET = 17


def initial(
    n_inputs: int, hidden: int, rng: np.random.Generator, dtype: type = np.float32, planned: slice = slice(0)
) -> Params:
    """Small random weights; gates in ONNX order i, o, f, c, the forget gate open.

    The read-out begins as persistence plus the announced change, which the columns `planned` carry for each horizon.

    `W` [4H, F], `R` [4H, H], `b` [4H]; read-out of state and inputs side by side: `V` [O, H + F], `a` [O].
    """
    gates = 4 * hidden
    bias = np.zeros(gates)
    bias[2 * hidden : 3 * hidden] = 2.0
    read_out: Array = np.zeros((2, len(HORIZONS_S), len(QUANTILES), hidden + n_inputs), dtype)
    for horizon, column in enumerate(range(n_inputs)[planned]):
        read_out[:, horizon, :, hidden + column] = 1.0
    return {
        "W": (rng.standard_normal((gates, n_inputs)) / np.sqrt(n_inputs)).astype(dtype),
        "R": (rng.standard_normal((gates, hidden)) / np.sqrt(hidden)).astype(dtype),
        "b": bias.astype(dtype),
        "V": read_out.reshape(N_OUTPUTS, hidden + n_inputs),
        "a": np.zeros(N_OUTPUTS, dtype),
    }


@dataclass
class Tape:
    """What the backward pass needs of a forward pass over [T, B]."""

    x: Array  # [T, B, F]
    read: Array  # [T, B, H + F] state and inputs side by side
    gates: Array  # [T, B, 4H] after their non-linearities
    cells: Array  # [T + 1, B, H], the first carried in
    squashed: Array  # [T, B, H] tanh(cell)
    state: Array  # [T + 1, B, H]


def _sigmoid(x: Array) -> Array:
    squashed: Array = 0.5 * (1.0 + np.tanh(0.5 * x))
    return squashed


def forward(params: Params, x: Array, h: Array, c: Array) -> tuple[Array, Array, Array, Tape]:
    """Run x [T, B, F] from state h, c [B, H]. Returns outputs [T, B, O], the state after, and the tape."""
    steps, batch, _ = x.shape
    hidden = h.shape[1]
    gates = x @ params["W"].T + params["b"]
    cells = np.empty((steps + 1, batch, hidden), x.dtype)
    state = np.empty_like(cells)
    squashed = np.empty((steps, batch, hidden), x.dtype)
    cells[0], state[0] = c, h
    recurrent = np.ascontiguousarray(params["R"].T)
    for t in range(steps):
        z = gates[t]
        z += state[t] @ recurrent
        z[:, : 3 * hidden] = _sigmoid(z[:, : 3 * hidden])
        np.tanh(z[:, 3 * hidden :], out=z[:, 3 * hidden :])
        i, o, f, g = (z[:, k * hidden : (k + 1) * hidden] for k in range(4))
        np.multiply(f, cells[t], out=cells[t + 1])
        cells[t + 1] += i * g
        np.tanh(cells[t + 1], out=squashed[t])
        np.multiply(o, squashed[t], out=state[t + 1])
    read = np.concatenate([state[1:], x], axis=2)
    return read @ params["V"].T + params["a"], state[-1], cells[-1], Tape(x, read, gates, cells, squashed, state)


def backward(params: Params, tape: Tape, d_out: Array) -> Params:
    """Gradient of every parameter, given d loss / d outputs [T, B, O]; the carried-in state is a constant."""
    steps, batch, hidden = tape.squashed.shape
    flat = d_out.reshape(steps * batch, -1)
    d_read = d_out @ params["V"][:, :hidden]
    d_z = np.empty_like(tape.gates)
    d_h = np.zeros((batch, hidden), tape.x.dtype)
    d_c = np.zeros_like(d_h)
    for t in range(steps - 1, -1, -1):
        i, o, f, g = (tape.gates[t][:, k * hidden : (k + 1) * hidden] for k in range(4))
        d_h = d_h + d_read[t]
        d_c += d_h * o * (1.0 - tape.squashed[t] ** 2)
        z = d_z[t]
        z[:, :hidden] = d_c * g * i * (1.0 - i)
        z[:, hidden : 2 * hidden] = d_h * tape.squashed[t] * o * (1.0 - o)
        z[:, 2 * hidden : 3 * hidden] = d_c * tape.cells[t] * f * (1.0 - f)
        z[:, 3 * hidden :] = d_c * i * (1.0 - g**2)
        d_h = z @ params["R"]
        d_c *= f
    z = d_z.reshape(steps * batch, -1)
    return {
        "W": z.T @ tape.x.reshape(steps * batch, -1),
        "R": z.T @ tape.state[:-1].reshape(steps * batch, hidden),
        "b": z.sum(0),
        "V": flat.T @ tape.read.reshape(steps * batch, -1),
        "a": flat.sum(0),
    }


def pinball(outputs: Array, targets: Array, weight: Array) -> tuple[float, Array]:
    """Mean weighted pinball loss (Koenker and Bassett 1978) and its gradient.

    outputs [T, B, 2, horizons, quantiles] against targets [T, B, 2, horizons]; weight broadcasts to outputs, 0 = not scored.
    """
    quantiles = np.asarray(QUANTILES, outputs.dtype)
    error = targets[..., None] - outputs
    over = error > 0
    total = max(float(np.broadcast_to(weight, outputs.shape).sum()), 1.0)
    slope = np.where(over, quantiles, quantiles - 1.0).astype(outputs.dtype)
    return float((slope * error * weight).sum() / total), -slope * weight / outputs.dtype.type(total)


@dataclass
class Adam:
    """Adam (Kingma and Ba 2015) with the gradient's norm clipped."""

    params: Params
    clip: float = 1.0
    _m: Params = field(default_factory=dict)
    _v: Params = field(default_factory=dict)
    _steps: int = 0

    def step(self, grads: Params, rate: float) -> None:
        """Change the parameters in place."""
        norm = float(np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads.values())))
        shrink = min(1.0, self.clip / max(norm, 1e-12))
        self._steps += 1
        for name, grad in grads.items():
            g = grad * shrink
            m = self._m[name] = 0.9 * self._m.get(name, np.zeros_like(g)) + 0.1 * g
            v = self._v[name] = 0.999 * self._v.get(name, np.zeros_like(g)) + 0.001 * g * g
            step = rate * (m / (1 - 0.9**self._steps)) / (np.sqrt(v / (1 - 0.999**self._steps)) + 1e-8)
            self.params[name] -= step.astype(self.params[name].dtype)


def from_onnx(model: bytes) -> Params:
    """The parameters of a model made by `to_onnx`, to go on from. Needs the package `onnx` (extra `train`)."""
    import onnx

    graph = onnx.load_model_from_string(model).graph
    found = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in graph.initializer}
    gates = found["W"].shape[1]
    return {"W": found["W"][0], "R": found["R"][0], "b": found["B"][0, :gates], "V": found["V"], "a": found["a"]}


def to_onnx(params: Params) -> bytes:
    """One 100 ms step as a graph: x [N, F], h and c [1, N, H] in; y [N, O], h_out and c_out [1, N, H] out.

    Needs the package `onnx` (extra `train`).
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    gates, n_inputs = params["W"].shape
    hidden = gates // 4

    def constant(name: str, value: Array | NDArray[np.int64]) -> Any:
        return numpy_helper.from_array(np.ascontiguousarray(value), name)

    def tensor(name: str, shape: list[str | int]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    f32 = {name: value.astype(np.float32) for name, value in params.items()}
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["x", "axis"], ["sequence"]),
            helper.make_node(
                "LSTM", ["sequence", "W", "R", "B", "", "h", "c"], ["", "h_out", "c_out"], hidden_size=hidden
            ),
            helper.make_node("Squeeze", ["h_out", "axis"], ["state"]),
            helper.make_node("Concat", ["state", "x"], ["read"], axis=1),
            helper.make_node("Gemm", ["read", "V", "a"], ["y"], transB=1),
        ],
        "forecast_step",
        [tensor("x", ["N", n_inputs]), tensor("h", [1, "N", hidden]), tensor("c", [1, "N", hidden])],
        [tensor("y", ["N", N_OUTPUTS]), tensor("h_out", [1, "N", hidden]), tensor("c_out", [1, "N", hidden])],
        [
            constant("axis", np.array([0], np.int64)),
            constant("W", f32["W"][None]),
            constant("R", f32["R"][None]),
            constant("B", np.concatenate([f32["b"], np.zeros(gates, np.float32)])[None]),
            constant("V", f32["V"]),
            constant("a", f32["a"]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="rpi-daemon")
    model.ir_version = 8
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
