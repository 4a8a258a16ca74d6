"""Texts of mosquitto's configuration and access lists; server/broker_settings.py fills them in.

What a line is for stands beside it in the text: operators read it there.
"""

BROKER = """\
# The broker of the federation "{federation}", for mosquitto 2.0.11 or newer.
# Written by `graftwork-server broker-config`, which overwrites it.

# Each listener has its own CA, its own rule for names and its own access list.
per_listener_settings true
pid_file {directory}/mosquitto.pid

# --- Devices --------------------------------------------------------------------------------------------
{devices_listener}
tls_version tlsv1.3
certfile {directory}/broker.crt
keyfile {directory}/broker.key
cafile {directory}/devices-ca.crt
# Read at the start: the server has the broker started anew for each new list. Do not send SIGHUP, with which
# mosquitto 2.0 uses memory that it has freed.
crlfile {directory}/devices.crl
require_certificate true
allow_anonymous false
# The certificate says who is there: its CN becomes the user name (for the access list) and that the client
# id (for the session). Without the last line one device could take over the session of another.
use_identity_as_username true
use_username_as_clientid true
allow_zero_length_clientid false
acl_file {directory}/acl-devices

# --- Server ---------------------------------------------------------------------------------------------
{services_listener}
tls_version tlsv1.3
certfile {directory}/broker.crt
keyfile {directory}/broker.key
cafile {directory}/services-ca.crt
require_certificate true
allow_anonymous false
# The client id is free here: by taking over a device's session the server ends it.
use_identity_as_username true
allow_zero_length_clientid false
acl_file {directory}/acl-services

# --- Memory of the broker -------------------------------------------------------------------------------
# By default mosquitto writes its state every 1,800 s only: after a power cut, queued and retained messages
# that it had already acknowledged are gone. These lines keep them. Each save rewrites the whole file, so the
# price grows with what is retained and queued. Graftwork survives the loss: updates stay in the devices'
# outboxes until their receipts, and retained messages are published again after a reconnect.
persistence true
persistence_location {directory}/state/
autosave_on_changes true
autosave_interval 1

# --- Limits ---------------------------------------------------------------------------------------------
# Largest payload and packet in bytes. The largest message is a release: the compressed float32 adapter, at
# most 32 MiB. Newer versions of mosquitto limit packets to 2,000,000 bytes unless told otherwise.
message_size_limit 41943040
max_packet_size 41944064

# For each client. Over these numbers mosquitto drops messages silently, although it acknowledged them.
max_queued_messages 10000
max_queued_bytes 268435456
max_inflight_messages 64

# The programs ask for sessions of 7 days; older ones of devices that are gone are forgotten.
persistent_client_expiration 30d

# Over this number of bytes the broker refuses what would need more. Choose it by the machine.
# memory_limit 2147483648

# --- Log ------------------------------------------------------------------------------------------------
{log}"""

ENROLMENT = """\
# The enrolment broker of the federation "{federation}", for mosquitto 2.0.11 or newer: another process than
# that of mosquitto.conf. Written by `graftwork-server broker-config`, which overwrites it.
#
# Anybody may connect here, so nothing here matters to a device that is enrolled: client ids and limits are
# shared by all listeners of a process, and an anonymous client that took a device's name as client id would
# throw that device off. Requests reach the server through a bridge.

per_listener_settings true
pid_file {directory}/enrolment.pid

# --- Devices without a certificate ----------------------------------------------------------------------
{listener}
tls_version tlsv1.3
certfile {directory}/broker.crt
keyfile {directory}/broker.key
cafile {directory}/claims-ca.crt
require_certificate {require}
allow_anonymous true
allow_zero_length_clientid false
acl_file {directory}/acl-enrolment
max_connections 100

# --- Bridge to the broker of the fleet ------------------------------------------------------------------
connection {bridge}
address {address}
bridge_cafile {directory}/services-ca.crt
bridge_certfile {directory}/bridge.crt
bridge_keyfile {directory}/bridge.key
bridge_tls_version tlsv1.3
bridge_protocol_version mqttv50
remote_clientid {bridge}
# Drawn at random, and secret: a client that took this id would throw the bridge off.
local_clientid {bridge_id}
cleansession true
notifications false
try_private false
restart_timeout 1 10
# What a client asks to be kept is kept here at most.
bridge_outgoing_retain false
topic enroll/+/request out 1 {prefix}/ {prefix}/
topic enroll/+/response in 1 {prefix}/ {prefix}/
topic all/trust in 1 {prefix}/ {prefix}/

# --- Limits ---------------------------------------------------------------------------------------------
# A restart clears all that clients left behind.
persistence false
message_size_limit 65536
max_packet_size 66560
max_queued_messages 100
max_queued_bytes 1048576
max_inflight_messages 20
persistent_client_expiration 1h
# Over this number of bytes the broker takes no more; then restart it. The fleet does not notice.
memory_limit 134217728

# --- Log ------------------------------------------------------------------------------------------------
{log}"""

LOG = """\
log_dest file {path}
log_timestamp_format %Y-%m-%dT%H:%M:%S
log_type error
log_type warning
log_type notice
log_type information
"""
AUDIT = """\
# For audits: "Denied PUBLISH" and the like are only here. Rotate the log, or leave these two lines out.
log_type debug
log_type subscribe
"""

ACL_HEAD = """\
# Written by `graftwork-server broker-config`, which overwrites it. Without a line that allows it, everything
# is denied. A client may still subscribe to "#": the broker grants the subscription, but delivers nothing
# that is denied here. With MQTT 3.1.1 a denied publication is acknowledged like any other; with MQTT 5 its
# reason is "Not authorized".
"""

ACL_DEVICES = (
    """\
# Who may use which topic on the listener for devices. %u is the CN of the client's certificate: one line
# covers all devices, because the direction stands before the device in every topic.
#
"""
    + ACL_HEAD
    + """\
#
# Do not use the dynamic security plugin of 2.0.11 for this: it takes %u literally.

pattern write {prefix}/up/%u/+
pattern read {prefix}/dn/%u/+
pattern read {prefix}/all/+
pattern read {prefix}/srv/state
"""
)

ACL_ENROLMENT = (
    """\
# Who may use which topic on the enrolment broker. %c is the client id, a random number that the device draws
# and that nobody else can guess. Ids with + or # are denied everything; a slash only leads to topics that
# the bridge does not hand on.
#
"""
    + ACL_HEAD
    + """\
#
# "pattern" and not "topic" in the last line, for "topic" would leave out those who send a user name.

pattern write {prefix}/enroll/%c/request
pattern read {prefix}/enroll/%c/response
pattern read {prefix}/all/trust
"""
)

ACL_SERVICES = (
    """\
# Who may use which topic on the listener for the server.
#
"""
    + ACL_HEAD
    + """\

user {server}
topic read {prefix}/up/#
topic read {prefix}/enroll/+/request
topic write {prefix}/dn/#
topic write {prefix}/all/#
topic write {prefix}/srv/#
topic write {prefix}/enroll/+/response

# The enrolment broker's bridge.
user {bridge}
topic write {prefix}/enroll/+/request
topic read {prefix}/enroll/+/response
topic read {prefix}/all/trust
"""
)
