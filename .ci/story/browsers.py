"""What a page in a browser needs: gRPC-web, and leave to call."""

import http.client
import struct
from dataclasses import dataclass

import grpc

from clients import CONTACT_SERVICE, Api
from limits import CALL_LIMIT
from ports import HOST, PORTS

ORIGIN, FOREIGN_ORIGIN = "http://localhost:5173", "http://localhost:5174"


def tell_browsers(report, story):
    """What a page in a browser needs."""
    api = Api(PORTS.edge)
    kind, answer = api.types(CONTACT_SERVICE, "GetContact")
    body = kind(name=story.contact).SerializeToString()
    expected = api.send(CONTACT_SERVICE, "GetContact", body, story.token)
    reply = grpc_web(PORTS.edge, CONTACT_SERVICE, "GetContact", body, story.token)
    report.equal("browser: gRPC-web answers as gRPC does", reply.messages, [expected])
    report.equal("browser: its status is in the trailers", reply.status, "0")
    origin = reply.headers.get("access-control-allow-origin")
    report.equal("browser: the page may read it", origin, ORIGIN)
    shown = set(reply.headers.get("access-control-expose-headers", "").split(","))
    needed = {"grpc-status", "grpc-message", "grpc-status-details-bin"}
    report.check("browser: and an error's details", needed <= shown, shown)
    reply = grpc_web(PORTS.edge, CONTACT_SERVICE, "GetContact", body, story.foreign_token)
    seen = (reply.status, reply.messages)
    code = str(grpc.StatusCode.NOT_FOUND.value[0])
    report.equal("browser: another tenant finds nothing", seen, (code, []))

    status, headers = preflight(ORIGIN)
    report.check("browser: a preflight is answered", status in (200, 204), status)
    allowed = headers.get("access-control-allow-origin")
    report.equal("browser: a known origin may call", allowed, ORIGIN)
    allowed = set(headers.get("access-control-allow-headers", "").lower().split(","))
    needed = {"authorization", "content-type", "x-grpc-web"}
    report.check("browser: with a token", needed <= allowed, allowed)
    methods = headers.get("access-control-allow-methods", "").split(",")
    report.check("browser: by POST", "POST" in methods, methods)
    _, headers = preflight(FOREIGN_ORIGIN)
    allowed = headers.get("access-control-allow-origin")
    report.equal("browser: an unknown origin may not", allowed, None)


@dataclass
class WebReply:
    """The answer to a gRPC-web call."""

    headers: dict
    messages: list
    status: str

    @classmethod
    def read(cls, response):
        """Takes the frames apart; the status is in the last, or in the headers."""
        headers = {name.lower(): value for name, value in response.getheaders()}
        body, messages, trailers = response.read(), [], headers
        while body:
            flags, length = struct.unpack(">BI", body[:5])
            frame, body = body[5 : 5 + length], body[5 + length :]
            if flags & 0x80:
                lines = frame.decode().strip().splitlines()
                trailers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
            else:
                messages.append(frame)
        return cls(headers, messages, trailers.get("grpc-status", "none"))


def grpc_web(port, service, method, body, token):
    """A call as a browser makes it; None where the server does not speak HTTP/1.1."""
    connection = http.client.HTTPConnection(HOST, port, timeout=CALL_LIMIT)
    headers = {
        "content-type": "application/grpc-web+proto",
        "x-grpc-web": "1",
        "origin": ORIGIN,
    }
    if token:
        headers["authorization"] = f"Bearer {token}"
    try:
        connection.request("POST", f"/{service}/{method}", frame_of(body), headers)
        return WebReply.read(connection.getresponse())
    except (ConnectionError, http.client.BadStatusLine):
        return None
    finally:
        connection.close()


def frame_of(body):
    """A message as gRPC frames it."""
    return struct.pack(">BI", 0, len(body)) + body


def preflight(origin):
    """Asks the edge, as a browser does, whether a page of this origin may call it."""
    connection = http.client.HTTPConnection(HOST, PORTS.edge, timeout=CALL_LIMIT)
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-grpc-web",
    }
    try:
        connection.request("OPTIONS", f"/{CONTACT_SERVICE}/GetContact", headers=headers)
        response = connection.getresponse()
        response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()
