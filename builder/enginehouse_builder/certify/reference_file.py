"""The reference's own answers: a part of what is published, so the manifest's package has them."""

from enginehouse_builder.manifest import (
    ReferenceAnswer,
    ReferenceFile,
    read_reference,
    write_reference,
)

__all__ = ["ReferenceAnswer", "ReferenceFile", "read_reference", "write_reference"]
