"""Importers and exporters: official, NeMo, diffusers and TorchScript forms of both networks."""
