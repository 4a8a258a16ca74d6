"""Room for building, provisioning and flashing device images; so far it trims environments."""
