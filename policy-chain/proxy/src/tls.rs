//! TLS: the ClientHello is read for its server name, and nothing is decrypted.
