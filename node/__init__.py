"""The node: one device, the voices that it holds, and the streams and files that it hears.

From the top: shell (`commands`, `app`, `config`) → wire (`rpc_node`, `wire`) → flow (`streams`, `session`, `files`,
`enrolment`, `fleet_client`) → resource (`device_thread`, `batcher`, `voice_store`) → pure decisions (`lease`, `slots`,
`access`). A node with the null engine never imports torch.
"""
