"""Adapter training in PyTorch, by itself (network, training) and under Flower (client_app, server_app)."""
