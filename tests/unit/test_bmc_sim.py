"""The simulated BMC is a Redfish service: every link leads somewhere, and methods are what the Allow header says."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from rpi_daemon.drivers.caps.bmc_sim import (
    OPENBMC,
    BmcFaults,
    BmcShape,
    BmcSimulator,
    Certificate,
    _Refused,
    make_certificate,
)
from rpi_daemon.drivers.caps.documents import ENVIRONMENT_METRICS, POWER_CONTROL
from rpi_daemon.drivers.caps.session import RedfishEndpoint, RedfishSession

CERTIFICATE = make_certificate("127.0.0.1", "bmc.example.net")


def links_in(value: Any) -> Iterator[str]:
    """Every `@odata.id` of a document, without the place inside of it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "@odata.id":
                yield inner.partition("#")[0]
            else:
                yield from links_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from links_in(inner)


@pytest.mark.parametrize(
    "shape",
    [
        BmcShape(),
        BmcShape(dialect=OPENBMC, mechanisms=(ENVIRONMENT_METRICS,)),
        BmcShape(mechanisms=(POWER_CONTROL,), power_controls=3, capped_chassis=("A", "B"), other_chassis=()),
        BmcShape(mechanisms=(), capped_chassis=()),
    ],
    ids=["both", "openbmc", "nodes", "none"],
)
def test_every_link_leads_to_a_document_that_names_itself(shape: BmcShape) -> None:
    async def scene() -> None:
        async with BmcSimulator(shape=shape, certificate=CERTIFICATE) as simulator:
            simulator.faults = BmcFaults(task_s=60.0)
            fingerprint = CERTIFICATE.fingerprint
            session = RedfishSession(
                RedfishEndpoint("127.0.0.1", simulator.port, "root", "calvin", tls_fingerprint=fingerprint)
            )
            await session.open()
            capped = [path for path in simulator._documents() if path.endswith(("/EnvironmentMetrics", "/Power"))]
            for path in capped[:1]:
                properties = {"PowerLimitWatts": {"ControlMode": "Disabled"}}
                if path.endswith("/Power"):
                    properties = {"PowerControl": [{}, {"PowerLimit": {"LimitInWatts": 300}}, {}]}  # type: ignore[dict-item]
                assert (await session.patch(path, properties, None, lambda: True)).status == 202
            waiting, seen = ["/redfish/v1/"], set[str]()
            while waiting:
                path = waiting.pop()
                if path.rstrip("/") in seen:
                    continue
                seen.add(path.rstrip("/"))
                answer = await session.get(path)
                assert answer.document["@odata.id"] == path
                assert answer.document["@odata.type"].startswith("#")
                assert answer.document["Id"]
                assert answer.document["Name"]
                assert ("PATCH" in answer.headers["Allow"]) == (path in capped)
                if "Members" in answer.document:
                    assert answer.document["Members@odata.count"] == len(answer.document["Members"])
                waiting += links_in(answer.document)
            assert seen == set(simulator._documents())
            assert any("/TaskService/Tasks/" in path for path in seen) == bool(capped)
            await session.close()

    asyncio.run(asyncio.wait_for(scene(), 20.0))


def test_without_a_session_only_the_root_is_told() -> None:
    async def scene() -> None:
        async with BmcSimulator(certificate=CERTIFICATE) as simulator:
            for path in simulator._documents():
                status = 200 if path == "/redfish/v1" else 401
                try:
                    found, _, _ = simulator._answer("GET", path, {}, b"")
                except _Refused as refused:
                    found = refused.status
                assert found == status

    asyncio.run(asyncio.wait_for(scene(), 20.0))


def test_a_certificate_names_its_hosts_and_its_fingerprint() -> None:
    assert isinstance(CERTIFICATE, Certificate)
    assert len(CERTIFICATE.fingerprint.split(":")) == 32
    assert CERTIFICATE.fingerprint == CERTIFICATE.fingerprint.upper()
    assert CERTIFICATE.fingerprint != make_certificate("127.0.0.1").fingerprint


@pytest.mark.parametrize(
    "faults", [{"settle_s": "8"}, {"drop": True}, {"unlicensed": 1}, {"garbled": "xml"}, {"task_s": "x"}]
)
def test_a_fault_of_another_type_is_refused(faults: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed: "):
        BmcFaults(**faults)
