"""Registers a model as a version and makes it production when the gate lets it through."""
