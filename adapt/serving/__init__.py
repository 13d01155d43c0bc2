"""Adapters behind HTTP: the adapters that are served, the batches of requests, and the HTTP interface."""
