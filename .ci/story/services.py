"""What the services do, whoever runs them: tenants, contacts, refusals and repeats."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from clients import CONTACT_SERVICE, CONVERSATIONS, MESSAGES, TENANTS, Api, Refusal
from ports import PORTS

AT_ONCE = 20


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
            (PORTS.contacts, CONTACT_SERVICE, "CreateContact", self.creation),
            (PORTS.contacts, CONTACT_SERVICE, "GetContact", {"name": self.contact}),
            (PORTS.messaging, CONVERSATIONS, "ListConversations", {"contact": self.contact}),
            (PORTS.messaging, MESSAGES, "ListMessages", conversation),
        ]

    def read(self):
        """The bytes that they answer."""
        return {
            f"{service}/{method}": Api(port).raw(service, method, request, self.token)
            for port, service, method, request in self.remembered()
        }


def tell_tenants(report, server, story):
    """Two tenants, with slugs of our choice."""
    api = Api(PORTS.registry)
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
    contacts, messaging = Api(PORTS.contacts), Api(PORTS.messaging)
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
    for port in PORTS.doors:
        api, at = Api(port), "at the edge" if port == PORTS.edge else "at the service"

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
    doors = [Api(port) for port in PORTS.doors]
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
    messaging = Api(PORTS.messaging)
    for whose, wanted, expected in (
        ("the contact has one conversation", {"contact": contact.name}, 1),
        ("the tenant has two, with the one before", {}, 2),
    ):
        listed = messaging.call(CONVERSATIONS, "ListConversations", wanted, story.token)
        report.equal(f"repeats: {whose}", len(listed.conversations), expected)
