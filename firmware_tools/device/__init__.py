"""What runs on a device beside the agent: its boot environment, its health gate, its updates."""
