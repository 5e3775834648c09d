#!/usr/bin/env python3
"""Asks protovalidate what it says of the requests that the tests wrote down.

The field rules of the protos are checked by generated code (ADR 8). The test
program `proof` writes down what that says of every hostile value; here
protovalidate, which others wrote, says what the same rules mean to it.

    cargo test --workspace --test proof every_field_rule
    pip install -r .ci/requirements.txt
    python3 .ci/rules.py

What differs on purpose: we refuse NUL in any text and times out of their
bounds without a rule, and look neither at messages that only answers have nor
at items of a list that is too long.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

from google.api import field_behavior_pb2
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from protovalidate import Validator

from api import descriptors

VERDICTS = Path(__file__).resolve().parent.parent / "target/tmp/field-rules.jsonl"
# Rules that are not in the protos.
OURS = {"NO_NUL", "TIMESTAMP"}
# What protovalidate calls our rules, where the names differ.
NAMES = {
    "MAP_MAX_PAIRS": {"MAX_ITEMS"},
    "REPEATED_MAX_ITEMS": {"MAX_ITEMS"},
    "REPEATED_MIN_ITEMS": {"MIN_ITEMS"},
    "STRING_UUID_EMPTY": {"STRING_UUID"},
}
MANY = 1000


def reasons(rule_id):
    """What we call a rule of protovalidate. Bounds that it has in one rule are two."""
    name = rule_id.upper().replace(".", "_")
    number = re.fullmatch(r"U?INT(?:32|64)_(GTE|LTE|GTE_LTE)", name)
    if number:
        return {f"NUMBER_{bound}" for bound in number[1].split("_")}
    return NAMES.get(name, {name})


def is_output_only(field):
    return field_behavior_pb2.OUTPUT_ONLY in field.GetOptions().Extensions[
        field_behavior_pb2.field_behavior
    ]


def path_of(message, violation):
    """The path of a violation, and whether it is within what only answers have."""
    path, ignored, descriptor = "", False, message.DESCRIPTOR
    elements = violation.proto.field.elements
    for place, element in enumerate(elements):
        field = descriptor.fields_by_name[element.field_name]
        path += f"{'.' if path else ''}{element.field_name}"
        if element.subscript is not None:
            kind, value = element.subscript.field, element.subscript.value
            path += f"[{value}]" if kind == "index" else "[key]"
        descriptor = field.message_type
        is_entered = place + 1 < len(elements) and descriptor is not None
        ignored |= is_entered and is_output_only(field)
    return path, ignored


def theirs(validator, message):
    """What protovalidate finds, as sets of what we may call it."""
    found = []
    for violation in validator.collect_violations(message):
        path, ignored = path_of(message, violation)
        item = re.search(r"\[(\d+)\]", path)
        if not ignored and not (item and int(item[1]) >= MANY):
            found.append((path, reasons(violation.proto.rule_id)))
    return found


def compare(ours, found):
    """What one says and the other does not."""
    for path, names in found:
        if not any((path, name) in ours for name in names):
            yield f"only protovalidate says {sorted(names)} of {path}"
    for path, name in sorted(ours):
        if not any(path == there and name in names for there, names in found):
            yield f"only we say {name} of {path}"


def main():
    pool, _ = descriptors()
    validator, counts, faults = Validator(), Counter(), []
    for line in VERDICTS.read_text().splitlines():
        verdict = json.loads(line)
        if verdict["faults"] is None:
            counts["no message"] += 1
            continue
        message = GetMessageClass(pool.FindMessageTypeByName(verdict["message"]))()
        case = f"{verdict['message']}, {verdict['case']}"
        try:
            message.ParseFromString(bytes.fromhex(verdict["bytes"]))
        except DecodeError as error:
            faults.append(f"{case}: we read it, and it is malformed: {error}")
            continue
        ours = {
            (re.sub(r'\[".*', "[key]", path, flags=re.DOTALL), name)
            for path, name in verdict["faults"]
            if name not in OURS
        }
        found = theirs(validator, message)
        faults += [f"{case}: {fault}" for fault in compare(ours, found)]
        counts["refused" if ours else "accepted"] += 1
    print("\n".join(faults[:50]))
    print(f"protovalidate agrees on {counts}; {len(faults)} differ")
    if faults or not counts["refused"] or not counts["accepted"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
