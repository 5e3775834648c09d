"""What the listeners say of themselves, and each process to those who look after it."""

import http.client
import json

from clients import Api
from limits import CALL_LIMIT
from ports import HOST, PORTS


def tell_health(report):
    """Every listener says that it serves."""
    ports = [port for port in PORTS.all if port != PORTS.postgres]
    seen = {port: Api(port).health() for port in ports}
    report.equal("start: every listener serves", seen, dict.fromkeys(ports, "SERVING"))


def tell_admin(report, ports):
    """What each process says to those who look after it."""
    for port in ports:
        code, text = get(port, "/readyz")
        report.equal(f"admin: port {port} is ready", (code, json.loads(text)["ready"]), (200, True))
    metrics = "".join(get(port, "/metrics")[1] for port in ports)
    for metric in ("rpc_server_duration_seconds", "crm_sessions", "crm_spares", "crm_leases", "crm_log_revision"):
        report.check(f"admin: there is {metric}", f"\n{metric}" in metrics, metrics[:400])
    report.check("admin: nothing of a tenant is there", "story" not in metrics)


def get(port, path):
    """The status and the text of a page."""
    connection = http.client.HTTPConnection(HOST, port, timeout=CALL_LIMIT)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read().decode()
