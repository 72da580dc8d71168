"""Enginehouse's protocol, by version."""
