"""The link to the MQTT broker that agent and server share."""
