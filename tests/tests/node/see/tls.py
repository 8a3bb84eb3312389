"""Asks the node's Hubble server for its status and its peers by TLS, as Relay does: with a client's certificate, and checking the
server's name. Usage: tls.py AUTHORITY CERTIFICATE KEY
"""

import pathlib
import sys

import grpc

NAME = "node-a.default.hubble-grpc.cilium.io"
authority, certificate, key = (pathlib.Path(path).read_bytes() for path in sys.argv[1:4])
credentials = grpc.ssl_channel_credentials(authority, key, certificate)


def raw(message):
    return message


with grpc.secure_channel("127.0.0.1:4244", credentials, [("grpc.ssl_target_name_override", NAME)]) as channel:
    status = channel.unary_unary("/observer.Observer/ServerStatus", raw, raw)(b"", timeout=10)
    assert b"sluice-policyd" in status, status
    peers = channel.unary_stream("/peer.Peer/Notify", raw, raw)(b"", timeout=10)
    peer = next(peers)
    peers.cancel()
    # ChangeNotification.tls.server_name.
    assert NAME.encode() in peer, peer
    print(NAME)
