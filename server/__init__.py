"""graftwork-server: opens rounds, aggregates updates, broadcasts releases; the operators' commands."""
