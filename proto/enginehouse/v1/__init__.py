"""Messages and stubs of the protocol, generated from the .proto files beside them."""
