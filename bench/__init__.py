"""Measures the server: ratios against a floor or a peer, in interleaved pairs, in one run."""

__all__: list[str] = []
