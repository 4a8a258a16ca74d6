"""What the long-running programs share: the broker link, key files, configuration files."""
