#!/usr/bin/env python3
"""Writes the API reference from the protos: a page in docs/api for each package.

    pip install -r .ci/requirements.txt
    .ci/api.py            # writes the pages
    .ci/api.py --check    # exits with 1 where they are not what the protos say

All of it comes from the descriptors, as buf builds them: comments, access rules
(crm.options.v1.rule), limits (buf.validate) and paths (google.api.http). The
generators that are published leave out what options say, and so who may call
and what is refused. A rule that this one has no words for ends it: a page that
leaves a limit out would be wrong.
"""

import subprocess
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "api"
HEAD = "<!-- Written by .ci/api.py from proto/. Do not edit. -->\n"
HOW_TO_READ = """\
Limits are checked before anything is done, and `INVALID_FIELDS` names every field that breaks one.
Lengths are in characters. Beside the [errors](../errors.md) that a method names, any call can end
with those of the way to it."""
# Where a thing stands in its file: field numbers of descriptor.proto.
MESSAGES, ENUMS, SERVICES, FIELDS_OR_METHODS, NESTED, NESTED_ENUMS, SYNTAX = 4, 5, 6, 2, 3, 4, 12
TOKENS = {
    "SCOPE_TENANT": "a token of a tenant",
    "SCOPE_PLATFORM": "a token of the platform",
    "SCOPE_INTERNAL": "a token of a service of this suite",
}
BEHAVIORS = {
    "REQUIRED": "required",
    "OUTPUT_ONLY": "output only",
    "IDENTIFIER": "identifier",
    "IMMUTABLE": "immutable",
    "INPUT_ONLY": "input only",
}
WORDS = {
    "required": "required",
    "min_len": "length ≥ {}",
    "max_len": "length ≤ {}",
    "uuid": "a UUID",
    "gte": "≥ {}",
    "lte": "≤ {}",
    "defined_only": "a defined value",
    "not_in": "not unspecified",
    "min_items": "entries ≥ {}",
    "max_items": "entries ≤ {}",
    "max_pairs": "entries ≤ {}",
    "ignore": "or empty",
}


def descriptors():
    """The files of proto/ with their comments, and their options understood."""
    build = ["buf", "build", "--as-file-descriptor-set", "-o", "-"]
    image = subprocess.run(build, cwd=ROOT, check=True, capture_output=True).stdout
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(image).file:
        pool.AddSerializedFile(file.SerializeToString())
    # Read again with the pool's own classes: those know the extensions.
    known = GetMessageClass(pool.FindMessageTypeByName("google.protobuf.FileDescriptorSet"))
    return pool, known.FromString(image).file


class Page:
    """The reference of one package."""

    def __init__(self, pool, package):
        self.pool = pool
        self.package = package
        self.services, self.types, self.about = [], [], []

    def add(self, file):
        """Takes in a file of the package."""
        locations = file.source_code_info.location
        comments = {tuple(at.path): at.leading_comments for at in locations if at.leading_comments}
        if comments.get((SYNTAX,)):
            self.about.append(prose(comments[(SYNTAX,)]))
        for number, service in enumerate(file.service):
            self.add_service(service, comments, (SERVICES, number))
        for number, enum in enumerate(file.enum_type):
            self.add_enum(enum, enum.name, comments, (ENUMS, number))
        for number, message in enumerate(file.message_type):
            self.add_message(message, message.name, comments, (MESSAGES, number))

    def add_service(self, service, comments, path):
        text = [f"## {service.name}\n\n{prose(comments[path])}\n"]
        for number, method in enumerate(service.method):
            comment = prose(comments[(*path, FIELDS_OR_METHODS, number)])
            comment = comment.replace("\nErrors: ", "\n[Errors](../errors.md): ")
            request, answer = map(self.type_link, (method.input_type, method.output_type))
            many = ", one after the other" if method.server_streaming else ""
            facts = [f"- Takes {request}, answers {answer}{many}."]
            facts += [f"- {self.access(method.options)}", *self.http(method.options)]
            if method.options.idempotency_level == 1:
                facts.append("- It changes nothing.")
            text.append(f"### {method.name}\n\n{comment}\n\n" + "\n".join(facts) + "\n")
        self.services.append("\n".join(text))

    def access(self, options):
        """Who may call."""
        rule = options.Extensions[self.pool.FindExtensionByName("crm.options.v1.rule")]
        if rule.WhichOneof("access") == "public":
            return "Anyone may call it, without a token."
        guarded = rule.guarded
        permissions = " and ".join(
            f"`{self.value_name('crm.options.v1.Permission', number).removeprefix('PERMISSION_')}`"
            for number in guarded.permissions
        )
        token = TOKENS[self.value_name("crm.options.v1.Scope", guarded.scope)]
        return f"It needs {token} with {permissions}."

    def http(self, options):
        """Its path in HTTP, where it has one."""
        extension = self.pool.FindExtensionByName("google.api.http")
        if not options.HasExtension(extension):
            return []
        http = options.Extensions[extension]
        verb = http.WhichOneof("pattern")
        body = f", body `{http.body}`" if http.body else ""
        return [f"- HTTP: `{verb.upper()} {getattr(http, verb)}`{body}."]

    def add_message(self, message, name, comments, path):
        if message.options.map_entry:
            return
        rows = []
        maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        for number, field in enumerate(message.field):
            comment = cell(comments[(*path, FIELDS_OR_METHODS, number)])
            entry = maps.get(field.type_name.split(".")[-1])
            if entry:
                kind = f"map of {self.type_of(entry.field[0])} to {self.type_of(entry.field[1])}"
            else:
                kind = ("repeated " if field.label == 3 else "") + self.type_of(field)
            if field.HasField("oneof_index") and not field.proto3_optional:
                kind += f", one of `{message.oneof_decl[field.oneof_index].name}`"
            rows.append(f"| `{field.name}` | {kind} | {comment} | {self.limits(field.options)} |")
        table = "\n".join(["| field | type | | limits |", "|---|---|---|---|", *rows])
        fields = table if rows else "It has no fields."
        self.types.append(f"### {name}\n\n{prose(comments[path])}\n\n{fields}\n")
        for number, enum in enumerate(message.enum_type):
            self.add_enum(enum, f"{name}.{enum.name}", comments, (*path, NESTED_ENUMS, number))
        for number, nested in enumerate(message.nested_type):
            self.add_message(nested, f"{name}.{nested.name}", comments, (*path, NESTED, number))

    def add_enum(self, enum, name, comments, path):
        rows = [
            f"| `{value.name}` | {value.number} | {cell(comments[(*path, FIELDS_OR_METHODS, at)])} |"
            for at, value in enumerate(enum.value)
        ]
        values = "\n".join(["| value | number | |", "|---|---|---|", *rows])
        self.types.append(f"### {name}\n\n{prose(comments[path])}\n\n{values}\n")

    def limits(self, options):
        """What buf.validate and google.api.field_behavior say, in words."""
        behavior = self.pool.FindExtensionByName("google.api.field_behavior")
        words = [
            BEHAVIORS[self.value_name("google.api.FieldBehavior", number)]
            for number in options.Extensions[behavior]
        ]
        rules = self.pool.FindExtensionByName("buf.validate.field")
        if options.HasExtension(rules):
            words += rules_in_words(options.Extensions[rules])
        return ", ".join(dict.fromkeys(words))

    def value_name(self, enum, number):
        return self.pool.FindEnumTypeByName(enum).values_by_number[number].name

    def type_of(self, field):
        """The type of a field, with a link where it is one of these pages'."""
        if field.type_name:
            return self.type_link(field.type_name)
        kind = self.value_name("google.protobuf.FieldDescriptorProto.Type", field.type)
        return kind.removeprefix("TYPE_").lower()

    def type_link(self, name):
        name = name.removeprefix(".")
        if not name.startswith("crm."):
            return f"`{name}`"
        file = self.pool.FindFileContainingSymbol(name)
        local = name.removeprefix(f"{file.package}.")
        anchor = local.lower().replace(".", "")
        page = "" if file.package == self.package else f"{file.package}.md"
        return f"[{local}]({page}#{anchor})"

    def text(self):
        """The whole page."""
        about = "\n\n".join([*self.about, HOW_TO_READ])
        types = "## Messages and enums\n\n" + "\n".join(self.types)
        return "\n".join([HEAD, f"# {self.package}\n\n{about}\n", *self.services, types])


def rules_in_words(rules, of=""):
    """The rules of one field, and of the keys and values of a map."""
    words = []
    for rule, value in rules.ListFields():
        if rule.name in ("keys", "values"):
            words += rules_in_words(value, of=f"{rule.name} of ")
        elif rule.message_type:
            words += rules_in_words(value, of)
        else:
            words.append(of + WORDS[rule.name].format(value))
    return words


def prose(comment):
    """A comment without the space that its lines begin with."""
    return "\n".join(line.removeprefix(" ").rstrip() for line in comment.splitlines()).strip()


def cell(comment):
    """A comment as a cell of a table."""
    return prose(comment).replace("\n", " ").replace("|", "\\|")


def pages():
    """The text of every page, by its path."""
    pool, files = descriptors()
    found = {}
    for file in files:
        if file.package.startswith("crm."):
            found.setdefault(file.package, Page(pool, file.package)).add(file)
    return {PAGES / f"{package}.md": page.text() for package, page in sorted(found.items())}


def main():
    """Writes the pages, or says which are not what the protos say."""
    wanted = pages()
    there = {path: path.read_text() for path in PAGES.glob("*.md")}
    if "--check" in sys.argv[1:]:
        both = sorted(wanted.keys() | there.keys())
        stale = [path for path in both if wanted.get(path) != there.get(path)]
        for path in stale:
            page = path.relative_to(ROOT)
            print(f"{page} is not what the protos say: run .ci/api.py", file=sys.stderr)
        return 1 if stale else 0
    PAGES.mkdir(exist_ok=True)
    for path in there.keys() - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
