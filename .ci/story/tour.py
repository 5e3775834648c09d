"""The README's tour, with grpcurl."""

import json
import re

from blocks import run_blocks, section_blocks
from report import Broken


def tell_tour(report, server, readme):
    """The README's tour, and what it promises."""
    blocks = section_blocks(readme, "A tour")
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
