"""graftwork-simulate: real agents, a real server and a real broker on one machine."""
