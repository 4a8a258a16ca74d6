"""graftwork-agent: the daemon on a device, which trains the adapter on local data. Never imports torch."""
