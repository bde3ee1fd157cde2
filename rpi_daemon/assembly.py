"""From configuration to pipeline: the one place where stages get their settings, for the daemon, dry runs and replays."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from rpi_daemon.actuator import Actuator, ActuatorConfig
from rpi_daemon.allocator import AllocatorConfig
from rpi_daemon.clock import Clock
from rpi_daemon.config.schema import Config, Section
from rpi_daemon.corrector import Corrector, CorrectorConfig
from rpi_daemon.features import BoardSetup, Features, MeterSetup
from rpi_daemon.guard import GuardConfig, at_start
from rpi_daemon.pipeline import Pipeline, Tuning
from rpi_daemon.plans import PlannedWork
from rpi_daemon.records import IntArray, RackModel
from rpi_daemon.telemetry import HostTelemetry

if TYPE_CHECKING:
    from rpi_daemon.models.mixture import Mixture

T = TypeVar("T")


def build_pipeline(
    config: Config,
    rack: RackModel,
    boards: Sequence[BoardSetup],
    clock: Clock,
    *,
    writes_per_day: IntArray | None = None,
    without_model: bool = False,
) -> Pipeline:
    """A fresh pipeline in STATIC_SAFE. Raises ModelError for a refused model; `without_model` the other experts forecast."""
    features = Features(
        rack,
        boards,
        meters(config),
        lowest_voltage=config.allocator.lowest_voltage,
        noise_w=config.corrector.meter_noise_w,
        alternating=config.rack.supply == "ac",
    )
    return Pipeline(
        rack,
        features,
        build_forecaster(config, rack.n, clock, without_model=without_model),
        Corrector(settings(CorrectorConfig, config.corrector), rack),
        Actuator(settings(ActuatorConfig, config.actuator), rack, writes_per_day=writes_per_day),
        PlannedWork(rack, config.schedule),
        HostTelemetry(rack, {item.load: item.poll_s for item in config.telemetry}),
        at_start(clock.mono_ns()),
        allocator=settings(AllocatorConfig, config.allocator),
        guard=settings(GuardConfig, config.guard),
        model_expected=needs_model(config),
    )


def tuning(config: Config, writes_per_day: IntArray) -> Tuning:
    """What a running pipeline may take over from another configuration of the same rack. Raises ConfigError."""
    return Tuning(
        corrector=settings(CorrectorConfig, config.corrector),
        allocator=settings(AllocatorConfig, config.allocator),
        guard=settings(GuardConfig, config.guard),
        actuator=settings(ActuatorConfig, config.actuator),
        writes_per_day=writes_per_day,
        schedule=config.schedule,
    )


def needs_model(config: Config) -> bool:
    """Whether the configured forecaster has a network."""
    return config.forecast.primary in ("mixture", "lstm")


def meters(config: Config) -> tuple[MeterSetup, ...]:
    """The PDU or meter that tells of each outlet, whether a board measures it too or not."""
    poll_s = {pdu.id: pdu.poll_s for pdu in config.pdu}
    named = [row.meter.partition("/") for row in config.outlets()]
    return tuple(MeterSetup(i, pdu, int(number), poll_s[pdu]) for i, (pdu, _, number) in enumerate(named))


def settings(kind: type[T], section: Section) -> T:
    """A stage's settings from the configuration section of the same fields."""
    return kind(**section.model_dump())


def build_forecaster(config: Config, n: int, clock: Clock, *, without_model: bool = False) -> "Mixture":
    """The configured forecaster: the mixture, or one of its experts alone. Raises ModelError for a refused model."""
    # onnxruntime takes 0.3 s to import: only once STATIC_SAFE is verified
    from rpi_daemon.models.forecaster import SHIPPED
    from rpi_daemon.models.mixture import MIXTURE, Mixture
    from rpi_daemon.models.network import LstmForecaster

    name, model = config.forecast.primary, config.forecast.model
    network = None
    if needs_model(config) and not without_model:
        network = LstmForecaster(SHIPPED if model == "shipped" else config.path(model), n)
    return Mixture(n, network, clock, alone=None if name == MIXTURE else name)
