"""gRPC's own implementation on both sides of the proxy: `server` prints its port; `client PORT` exercises it."""

import sys
from concurrent import futures

import grpc


class Shop(grpc.GenericRpcHandler):
    """Unary and streaming calls of octets, by the method's name."""

    def service(self, details):
        name = details.method.rsplit("/", 1)[-1]
        if name == "Add":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"added " + request)
        if name == "Remove":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"removed")
        if name == "Chat":
            return grpc.stream_stream_rpc_method_handler(self.chat)
        if name == "Fail":
            return grpc.unary_unary_rpc_method_handler(self.fail)
        return None

    @staticmethod
    def chat(requests, context):
        for request in requests:
            yield b"echo " + request
        context.set_trailing_metadata((("x-end", "yes"),))

    @staticmethod
    def fail(request, context):
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "by the server")


def server():
    served = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Shop()])
    port = served.add_insecure_port("127.0.0.1:0")
    served.start()
    print(port, flush=True)
    served.wait_for_termination()


def client(port):
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    assert channel.unary_unary("/shop.Cart/Add")(b"bread", timeout=10) == b"added bread"
    large = b"x" * 3_000_000
    assert channel.unary_unary("/shop.Cart/Add")(large, timeout=10) == b"added " + large
    call = channel.stream_stream("/shop.Cart/Chat")(iter([b"a", b"b", b"c"]), timeout=10)
    assert list(call) == [b"echo a", b"echo b", b"echo c"]
    assert ("x-end", "yes") in [(item.key, item.value) for item in call.trailing_metadata()]
    for method, code, words in (
        ("Remove", grpc.StatusCode.PERMISSION_DENIED, "Access denied"),
        ("Fail", grpc.StatusCode.FAILED_PRECONDITION, "by the server"),
    ):
        try:
            channel.unary_unary(f"/shop.Cart/{method}")(b"bread", timeout=10)
        except grpc.RpcError as error:
            assert error.code() == code and error.details() == words, error
        else:
            raise AssertionError(method)
    print("well")


if sys.argv[1] == "server":
    server()
else:
    client(int(sys.argv[2]))
