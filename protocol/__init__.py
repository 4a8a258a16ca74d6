"""What travels between devices and server, and how: messages, codecs, signatures. No I/O."""
