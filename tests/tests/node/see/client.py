"""Asks a node's observer as Hubble's clients do, by Python's gRPC, and reads the answers octet by octet.

Nothing here is made from the product's .proto files: methods, field numbers and kinds are those that Hubble publishes
(packages observer, flow and peer), written down once more. Usage: client.py SERVER
"""

import struct
import sys

import grpc

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(octets):
    """Number -> list of (wire type, value)."""
    at, found = 0, {}

    def varint():
        nonlocal at
        shift = value = 0
        while True:
            octet = octets[at]
            at += 1
            value |= (octet & 0x7F) << shift
            if octet < 0x80:
                return value
            shift += 7

    while at < len(octets):
        tag = varint()
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value = varint()
        elif kind == BYTES:
            length = varint()
            value, at = octets[at : at + length], at + length
        elif kind == FIXED64:
            value, at = struct.unpack("<d", octets[at : at + 8])[0], at + 8
        else:
            raise ValueError(f"wire type {kind} of field {number}")
        found.setdefault(number, []).append((kind, value))
    return found


def one(message, number, kind):
    wire, value = message[number][0]
    assert wire == kind, f"field {number} has wire type {wire}, not {kind}"
    return value


def text(message, number):
    return one(message, number, BYTES).decode()


def inner(message, number):
    return fields(one(message, number, BYTES))


def put(number, value):
    """A field of a request: a string or message, or a small number."""
    if isinstance(value, int):
        assert value < 128
        return encode(number << 3) + bytes([value])
    value = value.encode() if isinstance(value, str) else value
    return encode(number << 3 | 2) + encode(len(value)) + value


def encode(value):
    octets = b""
    while value > 127:
        octets += bytes([value & 0x7F | 0x80])
        value >>= 7
    return octets + bytes([value])


def raw(value):
    return value


def main():
    server = sys.argv[1]
    with grpc.insecure_channel(server) as channel:

        def flows(*filters, number=100):
            ask = channel.unary_stream("/observer.Observer/GetFlows", raw, raw)
            request = put(1, number) + b"".join(put(6, one_filter) for one_filter in filters)
            return [fields(answer) for answer in ask(request, timeout=10)]

        # FlowFilter.verdict = 5: DROPPED = 2; .destination_pod = 4.
        dropped = flows(put(5, 2) + put(4, "shop/db"))
        assert dropped, "no dropped flow to shop/db"
        response = dropped[-1]
        assert text(response, 1000) == "node-a", "GetFlowsResponse.node_name"
        seconds = one(inner(response, 1001), 1, VARINT)
        flow = inner(response, 1)
        assert one(inner(flow, 1), 1, VARINT) == seconds, "Flow.time"
        assert one(flow, 2, VARINT) == 2, "Flow.verdict"
        assert one(flow, 3, VARINT) == 133, "Flow.drop_reason"
        ip = inner(flow, 5)
        assert text(ip, 1).count(".") == 3 and text(ip, 2).count(".") == 3, "Flow.IP.source, .destination"
        assert one(ip, 3, VARINT) == 1, "Flow.IP.ipVersion"
        tcp = inner(inner(flow, 6), 1)
        assert one(tcp, 1, VARINT) > 1023 and one(tcp, 2, VARINT) > 0, "Flow.l4.TCP.source_port, .destination_port"
        assert one(inner(tcp, 3), 2, VARINT) == 1, "Flow.l4.TCP.flags.SYN"
        source, destination = inner(flow, 8), inner(flow, 9)
        assert one(source, 1, VARINT) > 0 and one(source, 2, VARINT) > 0, "Endpoint.ID, .identity"
        assert (text(source, 3), text(source, 5)) == ("shop", "web"), "Endpoint.namespace, .pod_name"
        assert (text(destination, 3), text(destination, 5)) == ("shop", "db"), "Endpoint.namespace, .pod_name"
        labels = [value.decode() for _, value in source[4]]
        assert "k8s:app=web" in labels and "k8s:io.kubernetes.pod.namespace=shop" in labels, "Endpoint.labels"
        assert one(flow, 10, VARINT) == 1, "Flow.Type: L3_L4"
        assert text(flow, 11) == "node-a", "Flow.node_name"
        event = inner(flow, 19)
        assert (one(event, 1, VARINT), one(event, 2, VARINT)) == (1, 133), "Flow.event_type"
        assert one(flow, 22, VARINT) == 1, "Flow.traffic_direction: INGRESS"
        assert one(flow, 25, VARINT) == 133, "Flow.drop_reason_desc: POLICY_DENIED"
        assert one(flow, 26, BYTES) == b"", "Flow.is_reply: BoolValue of false"
        assert text(inner(flow, 28), 2).startswith("eni"), "Flow.interface.name"
        assert len(text(flow, 34)) == 36, "Flow.uuid"
        assert "NetworkPolicy shop/db" in text(flow, 100000), "Flow.Summary"
        policy = inner(flow, 21005)
        assert (text(policy, 1), text(policy, 2), text(policy, 5)) == ("db", "shop", "NetworkPolicy"), "ingress_denied_by"

        # FlowFilter.http_status_code = 9.
        flow = inner(flows(put(9, "200"))[-1], 1)
        assert one(flow, 10, VARINT) == 2, "Flow.Type: L7"
        layer7 = inner(flow, 15)
        assert one(layer7, 1, VARINT) == 1 and one(layer7, 2, VARINT) > 0, "Layer7.type, .latency_ns"
        http = inner(layer7, 101)
        assert one(http, 1, VARINT) == 200, "HTTP.code"
        assert (text(http, 2), text(http, 4)) == ("GET", "HTTP/1.1"), "HTTP.method, .protocol"
        assert text(http, 3).endswith("/public"), "HTTP.url"
        assert text(inner(flow, 21002), 1) == "api", "ingress_allowed_by"

        def unary(method):
            return fields(channel.unary_unary(method, raw, raw)(b"", timeout=10))

        status = unary("/observer.Observer/ServerStatus")
        assert one(status, 1, VARINT) > 0 and one(status, 2, VARINT) == 16384, "num_flows, max_flows"
        assert one(status, 3, VARINT) >= one(status, 1, VARINT), "seen_flows"
        assert one(status, 4, VARINT) > 0 and text(status, 8).startswith("sluice"), "uptime_ns, version"
        node = inner(unary("/observer.Observer/GetNodes"), 1)
        assert text(node, 1) == "node-a" and one(node, 4, VARINT) == 1, "Node.name, .state"
        spaces = unary("/observer.Observer/GetNamespaces")
        assert "shop" in [text(fields(value), 2) for _, value in spaces[1]], "Namespace.namespace"

        peers = channel.unary_stream("/peer.Peer/Notify", raw, raw)(b"", timeout=10)
        peer = fields(next(peers))
        peers.cancel()
        assert text(peer, 1) == "node-a" and text(peer, 2).endswith(":4244"), "ChangeNotification.name, .address"
        assert one(peer, 3, VARINT) == 1, "ChangeNotification.type: PEER_ADDED"

        for wrong, code in (
            (put(6, put(1, "10.0.0")), grpc.StatusCode.INVALID_ARGUMENT),
            (put(6, put(999, put(1, "true"))), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            try:
                list(channel.unary_stream("/observer.Observer/GetFlows", raw, raw)(wrong, timeout=10))
                raise AssertionError(f"{wrong} was served")
            except grpc.RpcError as error:
                assert error.code() == code, error
        try:
            list(channel.unary_stream("/observer.Observer/GetAgentEvents", raw, raw)(b"", timeout=10))
            raise AssertionError("agent events were served")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
    print("all fields are where Hubble has them")


main()
