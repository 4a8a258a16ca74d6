"""From a target's description to an image: root file system, boot files, partitions."""
