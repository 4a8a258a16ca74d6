"""Images that boot: `make test-firmware`."""
