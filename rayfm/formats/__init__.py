"""File formats: one format, one file."""
