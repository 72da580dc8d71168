"""Messages and stubs of the protocol enginehouse.v1, generated from the .proto files beside them."""
