"""Builds the example OCI images: Python 3.11's standard library and nothing else."""
