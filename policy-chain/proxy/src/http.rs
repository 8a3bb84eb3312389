//! HTTP/1 and HTTP/2: each request is judged before its first octet is forwarded.
