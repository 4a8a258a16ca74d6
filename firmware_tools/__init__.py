"""Room for building, provisioning and flashing device images; nothing here yet."""
