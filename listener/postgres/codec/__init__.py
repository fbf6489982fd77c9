"""Decodes pgoutput's bytes, rows and values into changes: pure, no I/O."""
