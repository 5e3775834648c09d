"""Floods the suite, and measures what a bystander and the process notice.

    python3 bench/floods.py [--crm target/release/crm] [--seconds 12] [FLOOD ...]

Flood, bystander and `crm` are processes of their own; the flood comes from
another address (127.0.0.2) than the bystander. It needs Linux and nothing
beside Python. Standard output is one Markdown table. It tests nothing.
"""

import argparse
import multiprocessing
import resource
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ATTACKER, BYSTANDER = "127.0.0.2", "127.0.0.1"
# Frames of HTTP/2 (RFC 9113, section 6), and their flags.
DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
JWKS = "/crm.identity.v1.AuthService/GetJwks"
LIST = "/crm.contacts.v1.ContactService/ListContacts"
EMPTY = b"\0\0\0\0\0"
# How long a flood rises before anyone looks on.
RISE = 5
# How long a call of the bystander may take before it counts as failed.
PATIENCE = 6


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def integer(value, bits=7):
    """An integer with a prefix of so many bits (RFC 7541, section 5.1)."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    encoded, value = bytearray([most]), value - most
    while value >= 128:
        encoded.append(value % 128 + 128)
        value //= 128
    return bytes(encoded + bytes([value]))


def headers(pairs):
    """Literals that no table remembers."""
    text = lambda word: integer(len(word)) + word.encode()
    return b"".join(b"\0" + text(name) + text(value) for name, value in pairs)


def call(path, token=None, method="POST"):
    pairs = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "crm")]
    if method == "POST":
        pairs += [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "30S")]
    if token:
        pairs.append(("authorization", f"Bearer {token}"))
    return headers(pairs)


def connect(port, source, timeout=2):
    return socket.create_connection(("127.0.0.1", port), timeout, (source, 0))


class Bystander:
    """One connection of HTTP/2 with one call at a time."""

    def __init__(self, port):
        self.socket = connect(port, BYSTANDER, PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0))
        self.rest, self.stream = b"", 1

    def read(self, length):
        while len(self.rest) < length:
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionError("it was closed")
            self.rest += more
        part, self.rest = self.rest[:length], self.rest[length:]
        return part

    def call(self, head):
        """Whether it was answered with a message."""
        stream, self.stream = self.stream, self.stream + 2
        self.socket.sendall(
            frame(HEADERS, END_HEADERS, stream, head) + frame(DATA, END_STREAM, stream, EMPTY)
        )
        is_answered = False
        while True:
            head = self.read(9)
            payload = self.read(int.from_bytes(head[:3], "big"))
            kind, flags, of = head[3], head[4], int.from_bytes(head[5:], "big")
            if kind == GOAWAY:
                raise ConnectionError("it goes away")
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.socket.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            if of == stream and kind == DATA:
                is_answered |= len(payload) > 0
                # What was taken may be sent again: windows (section 6.9).
                if payload:
                    self.socket.sendall(frame(8, 0, 0, struct.pack(">I", len(payload))))
            if of == stream and (kind == 3 or flags & END_STREAM and kind in (DATA, HEADERS)):
                return is_answered


def look_on(port, path, token, seconds, results):
    """Calls for a time; each 5th call is on a new connection."""
    times, failures, connection, count = [], [], None, 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            if path == "/metrics":
                is_fine = scrape(port)
            else:
                if connection is None or count % 5 == 0:
                    connection = Bystander(port)
                is_fine = connection.call(call(path, token))
            if not is_fine:
                failures.append("refused")
        except OSError as error:
            failures.append(str(error))
            connection = None
        times.append(time.monotonic() - began)
        count += 1
        time.sleep(0.005)
    results.put((times, failures))


def scrape(port):
    with connect(port, BYSTANDER, PATIENCE) as http:
        http.sendall(b"GET /metrics HTTP/1.1\r\nhost: crm\r\nconnection: close\r\n\r\n")
        answer = b""
        while more := http.recv(65536):
            answer += more
    return answer.startswith(b"HTTP/1.1 200")


def flood(port, connections, streams, head, ends, seconds, every):
    """Opens connections with streams that nobody reads, again and again."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began, opened = time.monotonic(), []
        for _ in range(connections):
            try:
                one = connect(port, ATTACKER)
                opened.append(one)
                if head is None:
                    continue
                sent = PREFACE + frame(SETTINGS, 0, 0)
                for number in range(streams):
                    flags = END_HEADERS | (END_STREAM if ends == "head" else 0)
                    sent += frame(HEADERS, flags, 2 * number + 1, head)
                    if ends == "body":
                        sent += frame(DATA, END_STREAM, 2 * number + 1, EMPTY)
                one.sendall(sent)
            except OSError:
                pass
            if time.monotonic() > until:
                break
        time.sleep(max(0, min(until, began + every) - time.monotonic()))
        for one in opened:
            one.close()


class Crm:
    """The program on a folder and ports of its own."""

    def __init__(self, program, soft_limit):
        self.program = program
        self.folder = Path(tempfile.mkdtemp(prefix="crm-floods-"))
        self.folder.chmod(0o711)
        self.base = next(base for base in range(21_000, 32_000, 40) if self.is_free(base))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft_limit, hard), hard))
        log = (self.folder / "log").open("w")
        self.process = subprocess.Popen(
            [*self.command(), "--log", "warn", "start"], stdout=log, stderr=log, preexec_fn=limit
        )
        subprocess.run([*self.command(), "health"], check=True, stdout=subprocess.DEVNULL)

    @staticmethod
    def is_free(base):
        for port in range(base, base + 40):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return False
        return True

    def command(self):
        return [self.program, "--data-dir", self.folder / "data", "--port-base", str(self.base),
                "--edge-port", str(self.base + 30)]

    def token(self):
        printed = subprocess.run([*self.command(), "token", "--tenant", "demo"], check=True,
                                 capture_output=True, text=True)
        return printed.stdout.strip()

    def memory(self):
        """What it has in memory, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def p99(times):
    return statistics.quantiles(times, n=100)[98] * 1000 if len(times) > 1 else float("nan")


def longest(times):
    return max(times, default=float("nan")) * 1000


def watch(crm, port, path, token, seconds, attack):
    """The bystander's times and failures, and the greatest memory."""
    results = multiprocessing.Queue()
    bystander = multiprocessing.Process(target=look_on, args=(port, path, token, seconds, results))
    attackers = [multiprocessing.Process(target=flood, args=attack)] if attack else []
    for attacker in attackers:
        attacker.start()
    if attackers:
        time.sleep(RISE)
    bystander.start()
    most, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        most = max(most, crm.memory())
        time.sleep(0.1)
    times, failures = results.get(timeout=60)
    for process in [bystander, *attackers]:
        process.join(30)
    return times, failures, most


def floods(crm, seconds, token):
    """By name: the port, the bystander's call, and the flood."""
    registry, contacts, admin, leases, edge = (crm.base + offset for offset in (1, 2, 10, 21, 30))
    lasts = seconds + RISE
    endless = lambda port, head: (port, 11, 100, head, None, lasts, 4)
    unread = lambda port: (port, 1000, 100, call(WATCH), "body", lasts, lasts)
    silent = lambda port: (port, 1100, 0, None, None, lasts, lasts)
    seen = {registry: (JWKS, None), contacts: (LIST, token), leases: (CHECK, None), edge: (LIST, token)}
    ports = {"registry": registry, "contacts": contacts, "leases": leases, "edge": edge}
    for name, port in ports.items():
        yield f"endless-check:{name}", port, *seen[port], endless(port, call(CHECK))
        yield f"unread-watch:{name}", port, *seen[port], unread(port)
        yield f"silent:{name}", port, *seen[port], silent(port)
    for name in ("registry", "edge"):
        yield f"endless-jwks:{name}", ports[name], *seen[ports[name]], endless(ports[name], call(JWKS))
    yield "endless-list:edge", edge, JWKS, None, endless(edge, call(LIST, token))
    yield "silent:admin", admin, "/metrics", None, silent(admin)
    scrapes = (admin, 100, 100, call("/metrics", method="GET"), "head", lasts, lasts)
    yield "unread-metrics:admin", admin, "/metrics", None, scrapes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crm", default="target/release/crm")
    parser.add_argument("--seconds", type=int, default=12)
    parser.add_argument("--descriptors", type=int, default=1024, help="the soft limit of crm")
    parser.add_argument("floods", nargs="*", help="beginnings of names; all where none is given")
    options = parser.parse_args()
    print("| flood | bystander, ms, p99 and longest, alone : flooded | ratio of p99 | failed calls | RSS, MiB: before, most, 5 s after |")
    print("|---|---|---|---|---|", flush=True)
    crm = Crm(options.crm, options.descriptors)
    try:
        names = [row[0] for row in floods(crm, options.seconds, "")]
        for name in names:
            if options.floods and not name.startswith(tuple(options.floods)):
                continue
            if crm.process.poll() is not None:
                print(f"| {name} | it ended | | | |")
                break
            # A token lasts for 15 minutes.
            rows = {row[0]: row[1:] for row in floods(crm, options.seconds, crm.token())}
            port, path, token, attack = rows[name]
            before = crm.memory()
            alone, failed, _ = watch(crm, port, path, token, options.seconds / 2, None)
            times, failures, most = watch(crm, port, path, token, options.seconds, attack)
            time.sleep(5)
            words = f"{len(failures)} of {len(times)}" + (f": {max(set(failures), key=failures.count)}" if failures else "")
            print(f"| {name} | {p99(alone):.1f}, {longest(alone):.0f} : {p99(times):.1f}, {longest(times):.0f} | {p99(times) / p99(alone):.1f} | {words} "
                  f"| {before:.0f}, {most:.0f}, {crm.memory():.0f} |", flush=True)
            if failed:
                print(f"{name}: {len(failed)} calls failed without a flood", file=sys.stderr)
            if failures:
                # The next flood begins at rest.
                crm.stop()
                crm = Crm(options.crm, options.descriptors)
    finally:
        crm.stop()


if __name__ == "__main__":
    main()
