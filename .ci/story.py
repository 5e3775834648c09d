#!/usr/bin/env python3
"""Proves the whole story from outside, with real clients, on a `crm start` of its own.

The README's tour runs as it stands, with grpcurl, and so does every `sh` block
of the papers in docs. Then Python tells the same
story with what the servers say of themselves, without generated code, and
looks at what a tour does not show: repeats at the same moment, what the edge
must not answer, browsers, stopping, starting again, and what is left.

    pip install -r .ci/requirements.txt
    .ci/story.py --crm target/debug/crm
    .ci/story.py --processes

With `--processes` the same is told of the three programs that stand beside
`crm`, as `As processes` in docs/running.md starts them; they have no edge.

It uses the default ports, because the README does, and a temporary folder.
Where one of them is taken, it uses others, and so do the README's blocks.
The last line says how many checks passed and failed.
"""

import argparse
import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from processes import Processes

HOW_TO_INSTALL = "`pip install -r .ci/requirements.txt` installs it"
try:
    import grpc
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass
    from google.rpc import error_details_pb2
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )
    from grpc_status import rpc_status
except ImportError as missing:
    sys.exit(f"Python lacks {missing.name}: {HOW_TO_INSTALL}")

ROOT = Path(__file__).resolve().parent.parent
RUNNING = ROOT / "docs/running.md"
HOST = "127.0.0.1"
DEFAULT_BASE, DEFAULT_EDGE = 50050, 8080
# The registry's, contacts', messaging's, PostgreSQL's and the leases' ports
# follow from the base; the edge's does where the default one is taken.
OFFSETS, EDGE_OFFSET = (1, 2, 3, 20, 21), 30
# The admin ports: of `crm`, and of three processes.
ADMIN_OFFSETS = (10, 11, 12, 13)
ORIGIN, FOREIGN_ORIGIN = "http://localhost:5173", "http://localhost:5174"

START_LIMIT = 120
# How long the registry hangs, and is dead, in seconds each.
OUTAGE = 30
STOP_LIMIT = 10
CALL_LIMIT = 30
AT_ONCE = 20

TENANTS = "crm.registry.v1.TenantService"
LEASE_SERVICE = "crm.registry.v1.LeaseService"
AUTH = "crm.identity.v1.AuthService"
CONTACT_SERVICE = "crm.contacts.v1.ContactService"
CONVERSATIONS = "crm.messaging.v1.ConversationService"
MESSAGES = "crm.messaging.v1.MessageService"


class Broken(Exception):
    """Something without which the story cannot go on."""


class Report:
    """Counts checks, and says each as it is made."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def check(self, claim, holds, saw=""):
        """Counts one check; `saw` helps where it fails."""
        if holds:
            self.passed += 1
            print(f"ok    {claim}", flush=True)
        else:
            self.failed += 1
            print(f"FAIL  {claim}" + (f"\n      saw: {saw}" if saw != "" else ""), flush=True)

    def equal(self, claim, actual, expected):
        """Counts a check that two values are equal."""
        self.check(claim, actual == expected, f"{actual!r} instead of {expected!r}")


# --- The server ---


class Server:
    """The program `crm` with one data folder."""

    def __init__(self, program, folder):
        self.program = program
        self.folder = folder
        self.data = folder / "data"
        self.secrets = self.data / "secrets"
        self.log = folder / "crm.log"
        self.env = {name: value for name, value in os.environ.items() if not is_setting(name)}
        self.env["CRM_DATA_DIR"] = str(self.data)
        self.env["CRM_PORT_BASE"] = str(REGISTRY - OFFSETS[0])
        self.env["CRM_EDGE_PORT"] = str(EDGE)
        self.process = None
        self.postgres = None

    def start(self):
        """Starts, and waits until everything serves."""
        with self.log.open("ab") as log:
            self.process = self.spawn({}, log)
        until = time.monotonic() + START_LIMIT
        health = [self.program, "health", "--timeout", "1"]
        while subprocess.run(health, env=self.env, capture_output=True).returncode != 0:
            if self.process.poll() is not None:
                raise Broken(f"`crm start` ended with {self.process.returncode}")
            if time.monotonic() > until:
                raise Broken(f"`crm start` does not serve after {START_LIMIT} s")
        pid_file = self.data / "postgres" / "data" / "postmaster.pid"
        self.postgres = int(pid_file.read_text().split()[0])

    def stop(self, by=signal.SIGINT):
        """Stops, and answers the exit code and the seconds it took; no code where it hangs."""
        asked = time.monotonic()
        self.process.send_signal(by)
        try:
            code = self.process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            code = None
        return code, time.monotonic() - asked

    def end(self):
        """Ends what still runs, however the story went."""
        if self.process and self.process.poll() is None:
            self.stop()
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.postgres and is_alive(self.postgres):
            os.kill(self.postgres, signal.SIGQUIT)
            time.sleep(1)

    def spawn(self, settings, output):
        """Runs `crm start` with some more settings."""
        return subprocess.Popen(
            [self.program, "start"],
            env=self.env | settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def refused_start(self, settings):
        """Starts once more, which must not succeed; answers the exit code and the words."""
        second = self.spawn(settings, subprocess.PIPE)
        try:
            output, _ = second.communicate(timeout=CALL_LIMIT)
        except subprocess.TimeoutExpired:
            second.send_signal(signal.SIGINT)
            output, _ = second.communicate(timeout=CALL_LIMIT)
            return 0, "it started, and was stopped: " + output.decode(errors="replace")
        return second.returncode, output.decode(errors="replace")

    def token(self, tenant=None):
        """What `crm token` prints."""
        command = [self.program, "token"] + (["--tenant", tenant] if tenant else [])
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        if done.returncode != 0:
            raise Broken(f"{' '.join(command[1:])}: {done.stderr.strip()}")
        return done.stdout.strip()

    def log_text(self):
        """Everything it has said."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def postgres_log(self):
        """Everything its PostgreSQL has said."""
        return (self.data / "postgres" / "postgres.log").read_text(errors="replace")


def is_setting(name):
    """Whether a variable would change what `crm` does here; where PostgreSQL is may be told."""
    return name.startswith("CRM_") and name != "CRM_POSTGRES_BIN"


def is_alive(pid):
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def listens(port):
    """Whether something listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def held(port):
    """Whether nobody can listen on a port now: one who ended may hold it for a minute."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def free_base():
    """A port base none of whose ports is in use.

    It is below the ports that outgoing connections take for themselves.
    """
    offsets = [*OFFSETS, *ADMIN_OFFSETS, EDGE_OFFSET]
    for base in range(20_050, 32_000, 50):
        if not any(held(base + offset) for offset in offsets):
            return base
    raise Broken("no port base is free")


def use_base(base, edge=None):
    """Has the story use these ports; without an edge where there is none."""
    global REGISTRY, CONTACTS, MESSAGING, POSTGRES, LEASES, EDGE, PORTS, DOORS, ADMIN
    REGISTRY, CONTACTS, MESSAGING, POSTGRES, LEASES = (base + offset for offset in OFFSETS)
    EDGE, ADMIN = edge, base + ADMIN_OFFSETS[0]
    DOORS = (CONTACTS, EDGE) if EDGE else (CONTACTS,)
    PORTS = (REGISTRY, CONTACTS, MESSAGING, POSTGRES, LEASES) + ((EDGE,) if EDGE else ())


def processes_of(folder):
    """The command lines of all processes that name the folder."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,args="], capture_output=True, text=True)
    return [line.strip() for line in listed.stdout.splitlines() if str(folder) in line]


# --- Clients ---


class Canary:
    """A text that one tenant has everywhere, and nobody else may ever read."""

    text = f"canary-{uuid.uuid4().hex}"
    # Whose it is.
    token = None
    # How many replies to others were looked at, and those that have it.
    replies = 0
    leaks = []

    @classmethod
    def look(cls, call, told, token):
        """Looks at what a call told someone."""
        if cls.token and token != cls.token:
            cls.replies += 1
            if cls.text in told:
                cls.leaks.append(call)


class Api:
    """One server as it describes itself."""

    def __init__(self, port):
        options = [("grpc.enable_http_proxy", 0)]
        self.channel = grpc.insecure_channel(f"{HOST}:{port}", options)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = DescriptorPool(self.database)

    def types(self, service, method):
        """The classes of a method's request and response."""
        found = self.pool.FindServiceByName(service).FindMethodByName(method)
        return GetMessageClass(found.input_type), GetMessageClass(found.output_type)

    def send(self, service, method, body, token=None):
        """Calls with the bytes of a request, and answers the bytes of the reply."""
        metadata = [("authorization", f"Bearer {token}")] if token else []
        call = self.channel.unary_unary(f"/{service}/{method}")
        try:
            reply = call(body, metadata=metadata, timeout=CALL_LIMIT)
        except grpc.RpcError as error:
            Canary.look(method, f"{error.details()} {error.trailing_metadata()}", token)
            raise
        Canary.look(method, reply.decode(errors="replace"), token)
        return reply

    def raw(self, service, method, request, token=None):
        """Calls with fields, and answers the bytes of the reply."""
        kind, _ = self.types(service, method)
        return self.send(service, method, kind(**request).SerializeToString(), token)

    def call(self, service, method, request, token=None):
        """Calls with fields, and answers the reply."""
        _, kind = self.types(service, method)
        return kind.FromString(self.raw(service, method, request, token))

    def health(self):
        """What its health check says."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=CALL_LIMIT)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


@dataclass
class Refusal:
    """A status, and the details that every error of the API carries."""

    code: str
    reason: str = ""
    domain: str = ""
    fields: list = field(default_factory=list)

    @classmethod
    def of(cls, call, *arguments):
        """What a call is refused with."""
        try:
            call(*arguments)
        except grpc.RpcError as error:
            return cls.from_error(error)
        return cls("OK")

    @classmethod
    def from_error(cls, error):
        """Decodes the details of an error."""
        refusal = cls(error.code().name)
        status = rpc_status.from_call(error)
        for detail in status.details if status else []:
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                refusal.reason, refusal.domain = info.reason, info.domain
            elif detail.Unpack(bad):
                refusal.fields = [(v.field, v.reason) for v in bad.field_violations]
        return refusal


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
    connection = http.client.HTTPConnection(HOST, EDGE, timeout=CALL_LIMIT)
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


# --- The README's tour ---


def tour_blocks(readme):
    """The shell blocks of the README's section `A tour`, as they stand."""
    section = re.search(r"^## A tour\n(.*?)(?=^## |\Z)", readme.read_text(), re.S | re.M)
    if not section:
        raise Broken(f"{readme} has no section `A tour`")
    return shell_blocks(section[1])


def run_blocks(server, name, blocks):
    """Runs the blocks in one bash, and answers what each shows.

    The history is on, as it is for those who paste: it gives `!` a meaning.
    """
    place = server.folder / name
    (place / "target" / "debug").mkdir(parents=True)
    (place / "target" / "debug" / "crm").symlink_to(server.program)
    outputs = [place / f"{number}.out" for number in range(len(blocks))]
    ports = {DEFAULT_BASE + offset: port for offset, port in zip(OFFSETS, PORTS)}
    ports |= {DEFAULT_BASE + ADMIN_OFFSETS[0]: ADMIN, DEFAULT_EDGE: EDGE}
    script = ["set -euo pipefail\nset -o history -o histexpand\n"]
    for block, output in zip(blocks, outputs):
        block = re.sub(r"\b(500[567]\d|8080)\b", lambda at: str(ports[int(at[0])]), block)
        script.append(f"exec >'{output}' 2>&1\n{block}")
    (place / "blocks.sh").write_text("".join(script))
    done = subprocess.run(["bash", "blocks.sh"], cwd=place, env=server.env, timeout=START_LIMIT)
    shown = [output.read_text() for output in outputs if output.exists()]
    if done.returncode != 0:
        raise Broken(f"block {len(shown)} of the {name} ends with {done.returncode}:\n{shown[-1]}")
    return shown


def replies(output):
    """All JSON objects that a block shows."""
    found, decoder, at = [], json.JSONDecoder(), output.find("{\n")
    while at >= 0:
        reply, end = decoder.raw_decode(output, at)
        found.append(reply)
        at = output.find("{\n", end)
    return found


def without_type(resource):
    """A resource that stood in an Any."""
    return {field: value for field, value in resource.items() if field != "@type"}


def tell_tour(report, server, readme):
    """The README's tour, and what it promises."""
    blocks = tour_blocks(readme)
    shown = run_blocks(server, "tour", blocks)
    report.equal("tour: each of its ten blocks runs", len(shown), 10)
    if len(shown) != 10:
        raise Broken("the checks below need to know the blocks")
    _, tenants, tenant, created, repeated, found, said, fed, invalid, foreign = shown

    report.equal("tour: two tenants have slugs", tenants.split(), ["acme-corp", "globex"])
    tenant = replies(tenant)[0]
    report.equal("tour: a slug finds its tenant", tenant["slug"], "acme-corp")
    report.equal("tour: the tenant is active", tenant["state"], "STATE_ACTIVE")

    contact = replies(created)[0]
    report.equal("tour: a contact is created", contact["displayName"], "Ada Lovelace")
    report.equal("tour: the repeat answers the same", replies(repeated), [contact])
    listed = replies(found)[0]["conversations"]
    names = [(each["name"], each["contact"]) for each in listed]
    expected = [(contact["initialConversation"], contact["name"])]
    report.equal("tour: it has one conversation, its initial one", names, expected)

    message, listed = replies(said)
    report.equal("tour: the message sent is read back", listed["messages"], [message])
    report.equal("tour: it says what was sent", message["content"], "Welcome, Ada.")

    after = replies(fed)[0]["changes"][0]["after"]
    report.equal("tour: the feed shows it as it was sent", without_type(after), message)

    violations = re.findall(r'"field":"([^"]*)"', invalid)
    expected = ["contact.display_name", "contact.email", "contact.phone"]
    report.equal("tour: one answer names all three faults", violations, expected)
    report.check("tour: they are invalid fields", '"reason":"INVALID_FIELDS"' in invalid, invalid)
    report.check("tour: another tenant finds nothing", "Code: NotFound" in foreign, foreign)
    refused = [output.count("refused, with exit code 6") for output in (invalid, foreign)]
    report.equal("tour: grpcurl fails for both", refused, [1, 1])


# --- The same with Python ---


@dataclass
class Story:
    """What later parts need of the earlier ones."""

    operator: str = ""
    tenant: str = ""
    token: str = ""
    foreign_token: str = ""
    creation: dict = field(default_factory=dict)
    contact: str = ""

    def remembered(self):
        """The calls whose answers must outlive a restart."""
        conversation = {"parent": self.contact.replace("contacts/", "conversations/")}
        return [
            (CONTACTS, CONTACT_SERVICE, "CreateContact", self.creation),
            (CONTACTS, CONTACT_SERVICE, "GetContact", {"name": self.contact}),
            (MESSAGING, CONVERSATIONS, "ListConversations", {"contact": self.contact}),
            (MESSAGING, MESSAGES, "ListMessages", conversation),
        ]

    def read(self):
        """The bytes that they answer."""
        return {
            f"{service}/{method}": Api(port).raw(service, method, request, self.token)
            for port, service, method, request in self.remembered()
        }


def tell_tenants(report, server, story):
    """Two tenants, with slugs of our choice."""
    api = Api(REGISTRY)
    story.operator = server.token()
    request = {
        "tenant": {"slug": "story", "display_name": "Story Ltd", "labels": {"plan": "trial"}},
        "request_id": str(uuid.uuid4()),
    }
    tenant = api.call(TENANTS, "CreateTenant", request, story.operator)
    story.tenant = tenant.name
    report.equal("python: a tenant is created", tenant.slug, "story")
    again = api.call(TENANTS, "CreateTenant", request, story.operator)
    report.equal("python: the repeat answers the same tenant", again, tenant)
    for what, name in (("id", tenant.name), ("slug", "tenants/story")):
        got = api.call(TENANTS, "GetTenant", {"name": name}, story.operator)
        report.equal(f"python: its {what} finds it", got, tenant)

    other = {"tenant": {"slug": "story", "display_name": "Other Ltd"}}
    refusal = Refusal.of(api.call, TENANTS, "CreateTenant", other, story.operator)
    expected = Refusal("ALREADY_EXISTS", "SLUG_TAKEN", "crm")
    report.equal("python: a slug has one owner", refusal, expected)
    other["tenant"]["slug"] = "another-story"
    api.call(TENANTS, "CreateTenant", other, story.operator)

    story.token, story.foreign_token = server.token("story"), server.token("another-story")
    refusal = Refusal.of(api.call, TENANTS, "GetTenant", {"name": tenant.name}, story.token)
    report.equal("python: tenants are not for tenants", refusal.code, "PERMISSION_DENIED")


def tell_contacts(report, story):
    """A contact, its conversation and a message."""
    contacts, messaging = Api(CONTACTS), Api(MESSAGING)
    person = {
        "display_name": "Grace Hopper",
        "phone": "+1 555 0100",
        "metadata": {"rank": "Rear Admiral", "ships": [{"name": "Mark I", "year": 1944}]},
    }
    story.creation = {"contact": person, "request_id": str(uuid.uuid4())}
    create = (CONTACT_SERVICE, "CreateContact", story.creation, story.token)
    contact, first = contacts.call(*create), contacts.raw(*create)
    story.contact = contact.name
    report.equal("python: a contact is created", contact.display_name, "Grace Hopper")
    report.equal("python: its data is kept", contact.metadata["ships"][0]["year"], 1944)
    report.equal("python: the repeat has the same bytes", contacts.raw(*create), first)
    got = contacts.call(CONTACT_SERVICE, "GetContact", {"name": contact.name}, story.token)
    report.equal("python: it is read back", got, contact)

    listed = messaging.call(CONVERSATIONS, "ListConversations", {}, story.token)
    names = [conversation.name for conversation in listed.conversations]
    report.equal("python: its conversation is there", names, [contact.initial_conversation])
    for content, sender in (("Good morning", "SENDER_TYPE_USER"), ("Hello", "SENDER_TYPE_CONTACT")):
        message = {"content": content, "sender_type": sender}
        request = {"parent": contact.initial_conversation, "message": message}
        messaging.call(MESSAGES, "CreateMessage", request, story.token)
    request = {"parent": contact.initial_conversation}
    listed = messaging.call(MESSAGES, "ListMessages", request, story.token)
    contents = [message.content for message in listed.messages]
    report.equal("python: messages come in order", contents, ["Good morning", "Hello"])
    senders = listed.messages[1].sender_id
    report.equal("python: the contact said the second", senders, contact.name)


def tell_refusals(report, story):
    """Errors, with their details."""
    for port in DOORS:
        api, at = Api(port), "at the edge" if port == EDGE else "at the service"

        def refused(method, request, token, api=api):
            return Refusal.of(api.call, CONTACT_SERVICE, method, request, token)

        fields = [
            ("contact.display_name", "NOT_BLANK"),
            ("contact.email", "UNREACHABLE"),
            ("contact.phone", "UNREACHABLE"),
        ]
        expected = Refusal("INVALID_ARGUMENT", "INVALID_FIELDS", "crm", fields)
        refusal = refused("CreateContact", {"contact": {}}, story.token)
        report.equal(f"refusal {at}: every fault in one answer", refusal, expected)
        changed = story.creation["contact"] | {"company": "US Navy"}
        reused = story.creation | {"contact": changed}
        refusal = refused("CreateContact", reused, story.token)
        expected = Refusal("INVALID_ARGUMENT", "REQUEST_ID_REUSED", "crm")
        report.equal(f"refusal {at}: a request_id is for one request", refusal, expected)

        name = {"name": story.contact}
        unknown = Refusal("NOT_FOUND", "RESOURCE_NOT_FOUND", "crm")
        refusal = refused("GetContact", name, story.foreign_token)
        report.equal(f"refusal {at}: another tenant finds nothing", refusal, unknown)
        refusal = refused("GetContact", {"name": f"contacts/{uuid.uuid4()}"}, story.token)
        report.equal(f"refusal {at}: nor does anyone find nothing", refusal, unknown)

        refusal = refused("GetContact", name, None)
        expected = Refusal("UNAUTHENTICATED", "TOKEN_MISSING", "crm")
        report.equal(f"refusal {at}: a token is needed", refusal, expected)
        refusal = refused("GetContact", name, story.operator)
        report.equal(f"refusal {at}: the operator has no tenant", refusal.code, "PERMISSION_DENIED")


def tell_repeats(report, story):
    """The same request, many times at the same moment, through every door."""
    doors = [Api(port) for port in DOORS]
    person = {"display_name": "Alan Turing", "email": "alan@example.com"}
    request = {"contact": person, "request_id": str(uuid.uuid4())}
    ready = threading.Barrier(AT_ONCE)
    for door in doors:
        door.types(CONTACT_SERVICE, "CreateContact")

    def create(number):
        ready.wait()
        door = doors[number % len(doors)]
        return door.raw(CONTACT_SERVICE, "CreateContact", request, story.token)

    with ThreadPoolExecutor(AT_ONCE) as callers:
        answers = list(callers.map(create, range(AT_ONCE)))
    report.equal(f"repeats: {AT_ONCE} at once have the same bytes", len(set(answers)), 1)

    _, kind = doors[0].types(CONTACT_SERVICE, "CreateContact")
    contact = kind.FromString(answers[0])
    messaging = Api(MESSAGING)
    for whose, wanted, expected in (
        ("the contact has one conversation", {"contact": contact.name}, 1),
        ("the tenant has two, with the one before", {}, 2),
    ):
        listed = messaging.call(CONVERSATIONS, "ListConversations", wanted, story.token)
        report.equal(f"repeats: {whose}", len(listed.conversations), expected)


def tell_canary(report, story):
    """The other tenant writes a canary wherever there is room for a text."""
    contacts, messaging = Api(CONTACTS), Api(MESSAGING)
    text, token = Canary.text, story.foreign_token
    Canary.token = token
    person = {each: text for each in ("display_name", "company", "position", "source")}
    person |= {"email": f"{text}@example.com", "metadata": {text: text}}
    made = [
        contacts.call(CONTACT_SERVICE, "CreateContact", {"contact": person}, token)
        for _ in range(2)
    ]
    thread = {"conversation": {"contact": made[0].name, "display_name": text}}
    thread = messaging.call(CONVERSATIONS, "CreateConversation", thread, token)
    message = {"content": text, "sender_type": "SENDER_TYPE_USER"}
    request = {"parent": thread.name, "message": message}
    messaging.call(MESSAGES, "CreateMessage", request, token)
    contacts.call(CONTACT_SERVICE, "DeleteContact", {"name": made[1].name}, token)
    found = {"filter": f'email = "{text}@example.com"', "show_deleted": True}
    listed = contacts.call(CONTACT_SERVICE, "ListContacts", found, token)
    report.equal("canary: its own tenant reads it", len(listed.contacts), 2)

    wrong = person | {"email": f"{text}@@", "phone": text}
    for method, request in (
        ("CreateContact", {"contact": wrong}),
        ("GetContact", {"name": f"contacts/{text}"}),
        ("ListContacts", {"filter": f'{text} = "{text}"'}),
        ("ListContacts", {"page_token": text}),
    ):
        refusal = Refusal.of(contacts.call, CONTACT_SERVICE, method, request, token)
        report.equal(f"canary: {method} refuses it", refusal.reason, "INVALID_FIELDS")
    listed = contacts.call(CONTACT_SERVICE, "ListContacts", found, story.token)
    report.equal("canary: another tenant finds nothing by it", len(listed.contacts), 0)
    names = [(CONTACTS, CONTACT_SERVICE, "GetContact", made[0].name)]
    names += [(CONTACTS, CONTACT_SERVICE, "DeleteContact", made[0].name)]
    names += [(CONTACTS, CONTACT_SERVICE, "UndeleteContact", made[1].name)]
    names += [(MESSAGING, CONVERSATIONS, "GetConversation", thread.name)]
    for port, service, method, name in names:
        refusal = Refusal.of(Api(port).call, service, method, {"name": name}, story.token)
        report.equal(f"canary: another tenant cannot {method}", refusal.reason, "RESOURCE_NOT_FOUND")


# --- The edge ---


def service_token(server):
    """A token of the service contacts, for calls within the suite."""
    secret = (server.secrets / "contacts.secret").read_text().strip()
    request = {"client_id": "services/contacts", "client_secret": secret}
    return Api(EDGE or REGISTRY).call(AUTH, "IssueServiceToken", request).access_token


def tell_leases(report, server, story):
    """Database logins are for the services alone."""
    tokens = {"no": None, "an operator's": story.operator, "a tenant's": story.token}
    tokens["a service's"] = service_token(server)
    leases = Api(LEASES)
    request = {"tenant": story.tenant}
    kind, _ = leases.types(LEASE_SERVICE, "AcquireLease")
    body = kind(**request).SerializeToString()

    lease = leases.call(LEASE_SERVICE, "AcquireLease", request, tokens["a service's"])
    report.check("leases: a service's token has one, inside", lease.database and lease.secret)
    for whose in ("no", "an operator's", "a tenant's"):
        refusal = Refusal.of(leases.call, LEASE_SERVICE, "AcquireLease", request, tokens[whose])
        expected = "UNAUTHENTICATED"
        report.equal(f"leases: {whose} token has none, inside", refusal.code, expected)

    unknown = Refusal("UNIMPLEMENTED", "METHOD_UNKNOWN", "crm")
    public = {"at the edge": EDGE, "at the registry's public port": REGISTRY}
    for where, port in public.items():
        if not port:
            continue
        api = Api(port)
        listed = LEASE_SERVICE in api.database.get_services()
        report.equal(f"leases: not described {where}", listed, False)
        for method in ("AcquireLease", "RegisterSchema"):
            for whose, token in tokens.items():
                refusal = Refusal.of(api.send, LEASE_SERVICE, method, body, token)
                report.equal(f"leases: no {method} {where}, {whose} token", refusal, unknown)
    reply = grpc_web(REGISTRY, LEASE_SERVICE, "AcquireLease", body, tokens["a service's"])
    report.equal("leases: no gRPC-web at the registry's public port", reply, None)
    if not EDGE:
        return
    nothing = (str(grpc.StatusCode.UNIMPLEMENTED.value[0]), [])
    for method in ("AcquireLease", "RegisterSchema"):
        for whose, token in tokens.items():
            reply = grpc_web(EDGE, LEASE_SERVICE, method, body, token)
            seen = reply and (reply.status, reply.messages)
            claim = f"leases: no {method} by gRPC-web at the edge, {whose} token"
            report.equal(claim, seen, nothing)


def tell_browsers(report, story):
    """What a page in a browser needs."""
    api = Api(EDGE)
    kind, answer = api.types(CONTACT_SERVICE, "GetContact")
    body = kind(name=story.contact).SerializeToString()
    expected = api.send(CONTACT_SERVICE, "GetContact", body, story.token)
    reply = grpc_web(EDGE, CONTACT_SERVICE, "GetContact", body, story.token)
    report.equal("browser: gRPC-web answers as gRPC does", reply.messages, [expected])
    report.equal("browser: its status is in the trailers", reply.status, "0")
    origin = reply.headers.get("access-control-allow-origin")
    report.equal("browser: the page may read it", origin, ORIGIN)
    shown = set(reply.headers.get("access-control-expose-headers", "").split(","))
    needed = {"grpc-status", "grpc-message", "grpc-status-details-bin"}
    report.check("browser: and an error's details", needed <= shown, shown)
    reply = grpc_web(EDGE, CONTACT_SERVICE, "GetContact", body, story.foreign_token)
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


# --- The papers ---


def tell_papers(report, server):
    """Every block of the papers runs, and every public method is in one of operations.md.

    Those of the README and of docs/running.md run elsewhere: as the tour, and
    as the start of the processes.
    """
    for paper in sorted(ROOT.glob("docs/*.md")):
        blocks = shell_blocks(paper.read_text())
        if not blocks or paper.name == RUNNING.name:
            continue
        shown = run_blocks(server, paper.stem, blocks)
        report.equal(f"papers: every block of {paper.name} runs", len(shown), len(blocks))
    blocks = shell_blocks((ROOT / "docs/operations.md").read_text())
    listed = [f"{service.split('.')[-1]}/{method}" for service, method in public_methods()]
    report.check("papers: there are public methods", len(listed) > 30, listed)
    missing = [method for method in listed if not any(method in block for block in blocks)]
    report.equal("papers: every public method is in operations.md", missing, [])
    report.equal("papers: every link leads somewhere", list(dead_links()), [])
    readme = (ROOT / "README.md").read_text()
    papers = [f"docs/{paper.name}" for paper in ROOT.glob("docs/*.md")]
    unlinked = [paper for paper in papers if f"({paper})" not in readme]
    report.equal("papers: the README leads to each", unlinked, [])
    report.equal("papers: every test in ARCHITECTURE.md is there", list(unknown_tests()), [])


def shell_blocks(text):
    """The blocks of a paper that are to be run, as they stand."""
    return re.findall(r"^```sh\n(.*?)^```$", text, re.S | re.M)


def dead_links():
    """The links to files of this repository that are not there."""
    for paper in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "bench/README.md"]:
        for link in re.findall(r"\]\(([^)\s]+)\)", paper.read_text()):
            path = link.split("#")[0]
            if path and ":" not in path and not (paper.parent / path).exists():
                yield f"{paper.relative_to(ROOT)}: {link}"


def unknown_tests():
    """The tests that the invariants name and that are in no source."""
    _, invariants = (ROOT / "ARCHITECTURE.md").read_text().split("\n## Invariants\n")
    folders = ("services", "shared")
    sources = "".join(path.read_text() for each in folders for path in (ROOT / each).rglob("*.rs"))
    for name in re.findall(r"`([a-z]+(?:_[a-z0-9]+){3,})`", invariants):
        if f"fn {name}(" not in sources:
            yield name


def public_methods():
    """The methods that the edge lists of itself."""
    api = Api(EDGE)
    for service in api.database.get_services():
        if not service.startswith("grpc."):
            for method in api.pool.FindServiceByName(service).methods:
                yield service, method.name


# --- Without the registry ---


class Callers:
    """Two who call again and again until they are told to stop."""

    def __init__(self, calls):
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.call, args=(call,)) for call in calls]
        self.done = 0
        self.failures = []
        for thread in self.threads:
            thread.start()

    def call(self, call):
        """Until the end, with a moment between two calls."""
        while not self.over.wait(0.01):
            try:
                call()
                self.done += 1
            except grpc.RpcError as error:
                self.failures.append(str(error))

    def stop(self):
        """Answers how many calls were answered, and the failures."""
        self.over.set()
        for thread in self.threads:
            thread.join()
        return self.done, self.failures


def tell_outage(report, server, story):
    """The registry hangs, then is dead: who was served goes on to be."""
    request = {"tenant": {"slug": "late", "display_name": "Late Ltd"}}
    Api(REGISTRY).call(TENANTS, "CreateTenant", request, story.operator)
    unknown = server.token("late")
    read = (CONTACT_SERVICE, "GetContact", {"name": story.contact})
    talk = {"parent": story.contact.replace("contacts/", "conversations/")}
    contacts, messaging = Api(CONTACTS), Api(MESSAGING)
    contacts.raw(*read, story.token)
    messaging.raw(MESSAGES, "ListMessages", talk, story.token)
    callers = Callers([
        lambda: contacts.raw(*read, story.token),
        lambda: messaging.raw(MESSAGES, "ListMessages", talk, story.token),
    ])
    for what, by in (("hangs", signal.SIGSTOP), ("is dead", signal.SIGKILL)):
        server.signal("tenant-registry", by)
        until = time.monotonic() + OUTAGE
        asked, waits = [], []
        while time.monotonic() < until:
            began = time.monotonic()
            asked.append(Refusal.of(contacts.raw, *read, unknown).code)
            waits.append(time.monotonic() - began)
            time.sleep(1)
        report.equal(f"outage: it {what}: who is unknown gets", set(asked), {"UNAVAILABLE"})
        worst = max(waits)
        report.check(f"outage: it {what}: and that within {worst:.2f} s", worst < 1.1, waits)
    done, failures = callers.stop()
    claim = f"outage: of {done} calls in {2 * OUTAGE} s, for who is known, none fails"
    report.check(claim, done > OUTAGE and not failures, failures[:3])

    server.signal("contacts", signal.SIGKILL)
    while listens(CONTACTS):
        time.sleep(0.01)
    server.start_one("contacts")
    report.equal("outage: contacts starts, and says", wait_for_health(CONTACTS), "NOT_SERVING")
    server.start_one("tenant-registry")
    until = time.monotonic() + START_LIMIT
    while (health := wait_for_health(CONTACTS)) != "SERVING" and time.monotonic() < until:
        time.sleep(0.1)
    report.equal("outage: the registry is back, and contacts says", health, "SERVING")
    refusal = Refusal.of(Api(CONTACTS).raw, *read, unknown)
    report.equal("outage: who was unknown is served", refusal.code, "NOT_FOUND")


def wait_for_health(port):
    """What a listener says of itself, once there is one."""
    until = time.monotonic() + START_LIMIT
    while True:
        try:
            return Api(port).health()
        except grpc.RpcError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


# --- Stopping and starting ---


def tell_health(report):
    """Every listener says that it serves."""
    ports = [port for port in PORTS if port != POSTGRES]
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


def tell_stop(report, server, by):
    """A stop is clean and quick."""
    code, seconds = server.stop(by)
    took = f"{by.name}, after {seconds:.1f} s"
    report.equal(f"stop: exit code 0 by {took}", code, 0)
    if code is None:
        raise Broken(f"it does not stop within {STOP_LIMIT} s")
    ours = [port for port in PORTS if EDGE or port != POSTGRES]
    report.equal("stop: its ports are free", [port for port in ours if listens(port)], [])
    if server.postgres:
        gone = not is_alive(server.postgres)
        report.check("stop: PostgreSQL has gone with it", gone, server.postgres)


def tell_restart(report, server, story):
    """The data is there after a stop, and repeats are still repeats."""
    before = story.read()
    tell_stop(report, server, signal.SIGINT)
    server.start()
    after = story.read()
    for call, reply in before.items():
        report.equal(f"restart: {call.split('.')[-1]} has the same bytes", after[call], reply)
    fresh = server.token("story")
    contact = {"name": story.contact}
    got = Api(CONTACTS).raw(CONTACT_SERVICE, "GetContact", contact, fresh)
    report.equal("restart: and for a new token", got, before[f"{CONTACT_SERVICE}/GetContact"])


def tell_second_start(report, server):
    """One server per folder, and one per port."""
    elsewhere = {"CRM_DATA_DIR": str(server.folder / "second")}
    another_base = {"CRM_PORT_BASE": str(free_base())}
    starts = [
        ("the folder", another_base, str(server.data)),
        ("a port", elsewhere, str(REGISTRY)),
        ("the edge's port", elsewhere | another_base, str(EDGE)),
    ]
    for what, settings, named in starts:
        code, output = server.refused_start(settings)
        tail = output.strip().splitlines()[-1:]
        report.check(f"second start: refused, since {what} is in use", code != 0, output)
        report.check(f"second start: it names {what}", named in str(tail), tail)
    left = processes_of(elsewhere["CRM_DATA_DIR"])
    report.equal("second start: nothing of it is left", left, [])
    tell_health(report)


# --- The whole ---


def tell(report, server, readme):
    """The story of `crm`, in order."""
    story = Story()
    server.start()
    tell_health(report)
    tell_tour(report, server, readme)
    tell_papers(report, server)
    tell_services(report, server, story)
    tell_browsers(report, story)
    tell_admin(report, [ADMIN])
    tell_restart(report, server, story)
    tell_second_start(report, server)
    tell_end(report, server, story)


def tell_processes(report, server):
    """The same of three processes, as far as it is the same."""
    story = Story()
    server.start()
    report.check("start: a tenant is made", '"slug": "initech"' in server.log_text())
    tell_health(report)
    tell_services(report, server, story)
    tell_admin(report, [port + 10 for port in (REGISTRY, CONTACTS, MESSAGING)])
    tell_restart(report, server, story)
    tell_outage(report, server, story)
    tell_end(report, server, story)


def tell_services(report, server, story):
    """What the services do, whoever runs them."""
    tell_tenants(report, server, story)
    tell_contacts(report, story)
    tell_canary(report, story)
    tell_refusals(report, story)
    tell_repeats(report, story)
    tell_leases(report, server, story)


def tell_end(report, server, story):
    """What is left of it."""
    tell_stop(report, server, signal.SIGTERM)
    server.end()
    report.equal("end: no process of it is left", processes_of(server.folder), [])
    log = server.log_text()
    report.check("end: nothing in it panicked", "panicked" not in log)
    secrets = [file.read_text().strip() for file in server.secrets.iterdir()]
    secrets += [story.operator, story.token, story.foreign_token]
    report.check("end: no secret and no token is in its log", not any(s in log for s in secrets))
    lines = log + server.postgres_log()
    told = [line for line in lines.splitlines() if Canary.text in line]
    report.check(
        f"end: no canary is in {len(lines.splitlines())} lines of logs", lines and not told, told[:3]
    )
    report.check(
        f"end: no canary is in {Canary.replies} replies to others",
        Canary.replies and not Canary.leaks, Canary.leaks,
    )


def prepare(arguments):
    """Finds what the story needs, or says what is missing."""
    # A virtual environment's programs count, activated or not.
    beside = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([beside, os.environ.get("PATH", "")])
    if not shutil.which("grpcurl"):
        raise Broken(f"there is no grpcurl: {HOW_TO_INSTALL}")
    for program in ("bash", "curl", "ps", "psql"):
        if not shutil.which(program):
            raise Broken(f"there is no {program}: the system's packages have it")
    if not os.access(arguments.crm, os.X_OK):
        raise Broken(f"there is no {arguments.crm}: `cargo build --workspace` makes it")
    use_base(DEFAULT_BASE, None if arguments.processes else DEFAULT_EDGE)
    if any(held(port) for port in (*PORTS, *(DEFAULT_BASE + each for each in ADMIN_OFFSETS))):
        base = free_base()
        use_base(base, None if arguments.processes else base + EDGE_OFFSET)


def run(report, arguments):
    """Tells the story in a folder of its own, and leaves nothing behind."""
    prepare(arguments)
    folder = Path(tempfile.mkdtemp(prefix="crm-story-", dir="/tmp")).resolve()
    folder.chmod(0o755)  # PostgreSQL runs as another user where this is root.
    program = arguments.crm.resolve()
    if arguments.processes:
        server = Processes(program, folder, RUNNING, PORTS)
    else:
        server = Server(program, folder)
    try:
        if arguments.processes:
            tell_processes(report, server)
        else:
            tell(report, server, arguments.readme)
    except Broken as error:
        report.check("the story goes on", False, error)
    except Exception:  # What is left is ended and counted, whatever happened.
        report.check("the story goes on", False, traceback.format_exc())
    finally:
        server.end()
        if report.failed:
            print("", "The end of the log:", *server.log_text().splitlines()[-40:], "", sep="\n")
        shutil.rmtree(folder, ignore_errors=True)
    report.check("end: the temporary folder is removed", not folder.exists(), folder)


def main():
    """Reads the command line; exits with 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crm", type=Path, default=ROOT / "target/debug/crm", help="the program")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the README to run")
    parser.add_argument("--processes", action="store_true", help="the programs beside it instead")
    arguments = parser.parse_args()
    # Whoever stops the story stops what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    report = Report()
    try:
        run(report, arguments)
    except Broken as error:
        report.check("the story begins", False, error)
    print(f"{report.passed} passed, {report.failed} failed", flush=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
