"""Rows that teach a model to write one answer from several of its own."""
