"""One forecast tick, streamed, against the same network run over a 200-step window; and the whole way to the request."""

import time
from collections.abc import Callable

import numpy as np
import onnx
from common import median_ratio, parse_arguments, report
from onnx import helper, numpy_helper

from rpi_daemon.corrector import Corrector, CorrectorConfig
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.inputs import N_COLUMNS, InputStream
from rpi_daemon.models.manifest import LoadedModel, load_model, open_session
from rpi_daemon.models.mixture import Mixture
from rpi_daemon.models.network import LstmForecaster
from rpi_daemon.records import TICK_NS, ForecastInput, LimitKind, LimitsInForce, Load, RackModel, Readings, Request
from rpi_daemon.residual import ResidualMatcher

WINDOW = 200
SIZES = (8, 48, 256, 1024)
ROUNDS = 60  # interleaved: a slow moment of the machine hits both
TICKS_PER_ROUND = 10


def ticks_of(n: int, count: int) -> list[ForecastInput]:
    """Bursts of different period and phase with a little noise."""
    rng = np.random.default_rng(1)
    period = rng.integers(60, 300, n)
    made = []
    for k in range(count):
        power_w = 150.0 + 250.0 * (k % period < period // 3) + rng.normal(0.0, 2.0, n)
        nothing = np.zeros((n, 4))
        made.append(
            ForecastInput(
                t_mono_ns=k * TICK_NS,
                t_utc_s=1.7e9 + 0.1 * k,
                power_w=power_w,
                peak_w=np.full(n, np.nan),
                step_w=np.zeros(n),
                valid=np.ones(n, np.bool_),
                rating_w=np.full(n, 600.0),
                planned_w=np.zeros((n, 5)),
                telemetry=nothing,
                telemetry_mask=nothing,
            )
        )
    return made


def window_model(model: LoadedModel) -> bytes:
    """The same weights over a whole window: columns [200, N, F] in, the last step's outputs out."""
    graph = onnx.load_model_from_string((model.path / "model.onnx").read_bytes()).graph
    weights = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    last = numpy_helper.from_array(np.array([WINDOW - 1], np.int64), "last")
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "B"], ["", "h"], hidden_size=model.hidden),
        helper.make_node("Squeeze", ["h", "axis"], ["state"]),
        helper.make_node("Gather", ["x", "last"], ["newest"], axis=0),
        helper.make_node("Squeeze", ["newest", "axis"], ["columns"]),
        helper.make_node("Concat", ["state", "columns"], ["read"], axis=1),
        helper.make_node("Gemm", ["read", "V", "a"], ["y"], transB=1),
    ]
    value = helper.make_tensor_value_info
    window = helper.make_graph(
        nodes,
        "window",
        [value("x", onnx.TensorProto.FLOAT, [WINDOW, "N", N_COLUMNS])],
        [value("y", onnx.TensorProto.FLOAT, ["N", weights["a"].size])],
        [*graph.initializer, last],
    )
    made = helper.make_model(window, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return bytes(made.SerializeToString())


class Foresight:
    """What a tick does from the readings to the request: residual, mixture, corrector. Limits are alarms, all in force."""

    def __init__(self, n: int, model: LoadedModel) -> None:
        nothing = np.full(n, np.nan)
        rack = RackModel(
            rack="bench",
            outlet_ids=tuple(f"outlet{i}" for i in range(n)),
            pdu_of=("pdu",) * n,
            number_of=tuple(range(1, n + 1)),
            load_of=np.arange(n),
            rating_w=np.full(n, 600.0),
            static_safe_w=np.full(n, 300.0),
            nominal_v=np.full(n, 230.0),
            opted_in=np.ones(n, np.bool_),
            loads=tuple(Load(f"load{i}", (i,), 1, 0.0, 600.0, sheddable=False, critical=False) for i in range(n)),
            constraints=(),
        )
        self._in_force = LimitsInForce(
            limit_w=rack.rating_w, verified_ns=np.ones(n, np.int64), kind=(LimitKind.ALARM,) * n, open_w=nothing,
            open_low_w=nothing, pending=np.zeros(n, np.bool_), uncontrolled=np.zeros(n, np.bool_), step_w=np.ones(n),
            volts=nothing, disabled=np.zeros(n, np.bool_), last_w=nothing,
        )  # fmt: skip
        self._matcher, self._corrector = ResidualMatcher(n), Corrector(CorrectorConfig(), rack)
        self._mixture = Mixture(n, LstmForecaster(model, n))
        self._nothing, self._none = nothing, np.zeros(n, np.int64)

    def readings(self, x: ForecastInput) -> Readings:
        """What the forecast's inputs were made of: good readings of a board."""
        nothing = self._nothing
        return Readings(
            t_mono_ns=x.t_mono_ns, t_utc_ns=round(1e9 * x.t_utc_s), power_w=x.power_w, rms_a=x.power_w / 230.0,
            apparent_va=x.power_w, power_factor=np.ones(len(nothing)), peak_a=nothing, crest=nothing, min_a=nothing,
            max_a=nothing, step_w=x.step_w, voltage_v=np.full(len(nothing), 230.0), count=self._none + 100,
            missing=self._none, quality=self._none, valid=x.valid,
        )  # fmt: skip

    def step(self, x: ForecastInput, readings: Readings) -> Request:
        """One tick, in the order of the pipeline."""
        residual = self._matcher.match(readings)
        forecast = self._mixture.step(x)
        request = self._corrector.step(forecast, residual, readings, self._in_force)
        self._matcher.record(forecast, request.request_w)
        return request


def milliseconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


def measure(n: int, model: LoadedModel) -> tuple[dict[str, object], float]:
    """A row for n outlets, and window / streamed network step."""
    ticks = ticks_of(n, WINDOW + ROUNDS * TICKS_PER_ROUND)
    forecaster, stream = LstmForecaster(model, n), InputStream(n)
    mixture, experts = Mixture(n, LstmForecaster(model, n)), Mixture(n)
    foresight = Foresight(n, model)
    window = open_session(window_model(model))
    columns = np.zeros((WINDOW, n, N_COLUMNS), np.float32)
    h = c = np.zeros((1, n, model.hidden), np.float32)
    for k, x in enumerate(ticks[:WINDOW]):
        forecaster.step(x)
        mixture.step(x)
        experts.step(x)
        foresight.step(x, foresight.readings(x))
        columns[k] = stream.step(x).columns
        model.run(columns[k], h, c)
    took: dict[str, list[float]] = {name: [] for name in ("tick", "network", "experts", "mixture", "request", "window")}
    network_rounds = []
    steps = {"tick": forecaster, "experts": experts, "mixture": mixture}
    for begin in range(WINDOW, len(ticks), TICKS_PER_ROUND):
        block = ticks[begin : begin + TICKS_PER_ROUND]
        for name, step in steps.items():
            took[name].extend(milliseconds(lambda x=x, step=step: step.step(x)) for x in block)
        for x in block:
            readings = foresight.readings(x)
            took["request"].append(milliseconds(lambda x=x, readings=readings: foresight.step(x, readings)))
        alone = [milliseconds(lambda: model.run(columns[0], h, c)) for _ in block]
        took["network"].extend(alone)
        took["window"].append(milliseconds(lambda: window.run(None, {"x": columns})))
        network_rounds.append(float(np.median(alone)))
    ratio = median_ratio(took["window"], network_rounds)
    row: dict[str, object] = {"outlets": n}
    for name, values in took.items():
        row[f"{name}_ms_p50"] = round(float(np.percentile(values, 50)), 4)
    for name in ("tick", "request"):
        row[f"{name}_ms_p99"] = round(float(np.percentile(took[name], 99)), 4)
    row["window_per_network_step"] = round(ratio, 1)
    row["window_per_tick"] = round(float(row["window_ms_p50"]) / float(row["tick_ms_p50"]), 1)  # type: ignore[arg-type]
    return row, ratio


def main() -> None:
    """Measure each size; the ratio reported is that of 48 outlets."""
    arguments = parse_arguments(__doc__)
    model = load_model(SHIPPED)
    rows, ratios = [], {}
    for n in SIZES:
        row, ratio = measure(n, model)
        rows.append(row)
        ratios[n] = ratio
    report("forecast", rows, {"vs_window": ratios[48]}, arguments.json)


if __name__ == "__main__":
    main()
