"""What is not for everyone: a tenant's texts, and the databases' logins."""

import grpc

from browsers import grpc_web
from canary import Canary
from clients import AUTH, CONTACT_SERVICE, CONVERSATIONS, LEASE_SERVICE, MESSAGES, Api, Refusal
from ports import PORTS


def tell_canary(report, story):
    """The other tenant writes a canary wherever there is room for a text."""
    contacts, messaging = Api(PORTS.contacts), Api(PORTS.messaging)
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
    names = [(PORTS.contacts, CONTACT_SERVICE, "GetContact", made[0].name)]
    names += [(PORTS.contacts, CONTACT_SERVICE, "DeleteContact", made[0].name)]
    names += [(PORTS.contacts, CONTACT_SERVICE, "UndeleteContact", made[1].name)]
    names += [(PORTS.messaging, CONVERSATIONS, "GetConversation", thread.name)]
    for port, service, method, name in names:
        refusal = Refusal.of(Api(port).call, service, method, {"name": name}, story.token)
        report.equal(f"canary: another tenant cannot {method}", refusal.reason, "RESOURCE_NOT_FOUND")


def tell_leases(report, server, story):
    """Database logins are for the services alone."""
    tokens = {"no": None, "an operator's": story.operator, "a tenant's": story.token}
    tokens["a service's"] = service_token(server)
    leases = Api(PORTS.leases)
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
    public = {"at the edge": PORTS.edge, "at the registry's public port": PORTS.registry}
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
    reply = grpc_web(PORTS.registry, LEASE_SERVICE, "AcquireLease", body, tokens["a service's"])
    report.equal("leases: no gRPC-web at the registry's public port", reply, None)
    if not PORTS.edge:
        return
    nothing = (str(grpc.StatusCode.UNIMPLEMENTED.value[0]), [])
    for method in ("AcquireLease", "RegisterSchema"):
        for whose, token in tokens.items():
            reply = grpc_web(PORTS.edge, LEASE_SERVICE, method, body, token)
            seen = reply and (reply.status, reply.messages)
            claim = f"leases: no {method} by gRPC-web at the edge, {whose} token"
            report.equal(claim, seen, nothing)


def service_token(server):
    """A token of the service contacts, for calls within the suite."""
    secret = (server.secrets / "contacts.secret").read_text().strip()
    request = {"client_id": "services/contacts", "client_secret": secret}
    return Api(PORTS.edge or PORTS.registry).call(AUTH, "IssueServiceToken", request).access_token
