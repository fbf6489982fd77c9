"""Decodes wal2json's messages into changes, with the catalogue queries that they need."""
