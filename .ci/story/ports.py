"""The ports of what runs: the default ones, or others where one of them is taken."""

import socket

from report import Broken

HOST = "127.0.0.1"
DEFAULT_BASE, DEFAULT_EDGE = 50050, 8080
# The registry's, contacts', messaging's, PostgreSQL's and the leases' ports
# follow from the base; the edge's does where the default one is taken.
OFFSETS, EDGE_OFFSET = (1, 2, 3, 20, 21), 30
# The admin ports: of `crm`, and of three processes.
ADMIN_OFFSETS = (10, 11, 12, 13)


class Ports:
    """Where each listens, once `use` has said it."""

    def use(self, base, edge=None):
        """Has the story use these ports; without an edge where there is none."""
        of_base = tuple(base + offset for offset in OFFSETS)
        self.registry, self.contacts, self.messaging, self.postgres, self.leases = of_base
        self.edge, self.admin = edge, base + ADMIN_OFFSETS[0]
        self.doors = (self.contacts, edge) if edge else (self.contacts,)
        self.all = of_base + ((edge,) if edge else ())


# Those of the story that is told.
PORTS = Ports()


def choose_ports(with_edge):
    """Has the story use the default ports, or others where one of them is held."""
    PORTS.use(DEFAULT_BASE, DEFAULT_EDGE if with_edge else None)
    if any(held(port) for port in (*PORTS.all, *(DEFAULT_BASE + each for each in ADMIN_OFFSETS))):
        base = free_base()
        PORTS.use(base, base + EDGE_OFFSET if with_edge else None)


def free_base():
    """A port base none of whose ports is in use.

    It is below the ports that outgoing connections take for themselves.
    """
    offsets = [*OFFSETS, *ADMIN_OFFSETS, EDGE_OFFSET]
    for base in range(20_050, 32_000, 50):
        if not any(held(base + offset) for offset in offsets):
            return base
    raise Broken("no port base is free")


def held(port):
    """Whether nobody can listen on a port now: one who ended may hold it for a minute."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def listens(port):
    """Whether something listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
