"""Calls with what the servers say of themselves, without generated code."""

import sys
from dataclasses import dataclass, field

from canary import Canary
from limits import CALL_LIMIT
from ports import HOST

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

TENANTS = "crm.registry.v1.TenantService"
CLUSTERS = "crm.registry.v1.ClusterService"
LEASE_SERVICE = "crm.registry.v1.LeaseService"
AUTH = "crm.identity.v1.AuthService"
CONTACT_SERVICE = "crm.contacts.v1.ContactService"
CONVERSATIONS = "crm.messaging.v1.ConversationService"
MESSAGES = "crm.messaging.v1.MessageService"


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
