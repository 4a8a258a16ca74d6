"""One script per published figure; each prints a JSON object as its last line."""
