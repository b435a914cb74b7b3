"""The tables. What a name could be read from (labels, consents, voiceprints) is ciphertext under the voice's own key.

Instants are Unix seconds (`..._at_s`), except lease deadlines, which are on the database's lease clock (`..._lease_s`).
The migrations make these tables; a test holds the two to each other.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

ID = String(64)

tenants = Table(
    "tenants",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("created_at_s", Float, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", ID, primary_key=True),
    Column("tenant_id", ID, nullable=False),
    # SHA-256 of the whole key: a key is 256 random bits, so nothing slower is needed.
    Column("key_hash", LargeBinary, nullable=False),
    # Space-separated.
    Column("scopes", Text, nullable=False),
    Column("created_at_s", Float, nullable=False),
    Column("revoked_at_s", Float),
    ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="api_keys_tenant"),
)

voices = Table(
    "voices",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("voice_id", ID, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    # pending, ready, failed, erasing, erased
    Column("state", String(16), nullable=False),
    Column("state_reason", Text, nullable=False),
    # None once erased.
    Column("label_ciphertext", LargeBinary),
    Column("net_speech_ms", Integer, nullable=False),
    Column("model", Text, nullable=False),
    # Revision of the last change in the fleet log; 0 while there is none.
    Column("revision", BigInteger, nullable=False),
    Column("created_at_s", Float, nullable=False),
    Column("updated_at_s", Float, nullable=False),
    ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="voices_tenant"),
    Index("voices_by_state", "state"),
)


def _of_voice(name: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant_id", "voice_id"], ["voices.tenant_id", "voices.voice_id"], name=name)


# Apart from what it opens, so that it can be backed up, and forgotten, on its own terms.
data_keys = Table(
    "data_keys",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("voice_id", ID, primary_key=True),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created_at_s", Float, nullable=False),
    _of_voice("data_keys_voice"),
)

voiceprints = Table(
    "voiceprints",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("voice_id", ID, primary_key=True),
    Column("model", String(255), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("net_speech_ms", Integer, nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),
    _of_voice("voiceprints_voice"),
)

samples = Table(
    "samples",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("voice_id", ID, primary_key=True),
    Column("generation", BigInteger, primary_key=True),
    Column("clip", Integer, primary_key=True),
    Column("blob_key", String(255), nullable=False),
    # Bytes of the blob, which is ciphertext.
    Column("blob_bytes", BigInteger, nullable=False),
    # The AudioFormat of the clip; the encoding is the number of speakerd.v1.Encoding.
    Column("encoding", Integer, nullable=False),
    Column("sample_rate_hz", Integer, nullable=False),
    Column("channels", Integer, nullable=False),
    _of_voice("samples_voice"),
)

consents = Table(
    "consents",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("voice_id", ID, primary_key=True),
    Column("generation", BigInteger, primary_key=True),
    Column("ciphertext", LargeBinary, nullable=False),
    Column("created_at_s", Float, nullable=False),
    _of_voice("consents_voice"),
)

# One row: the heads of all that rises by one. Locking it orders the writers.
fleet_head = Table(
    "fleet_head",
    metadata,
    Column("head_id", Integer, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("incarnation", BigInteger, nullable=False),
)

fleet_log = Table(
    "fleet_log",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", ID, nullable=False),
    Column("voice_id", ID, nullable=False),
    Column("generation", BigInteger, nullable=False),
    # enroll, evict
    Column("kind", String(8), nullable=False),
    # On the lease clock: how long an eviction has been waiting decides whether leases are held.
    Column("at_lease_s", Float, nullable=False),
)

# One row an incarnation, never reused. A row counts as a holder until it is fenced.
node_leases = Table(
    "node_leases",
    metadata,
    Column("incarnation", BigInteger, primary_key=True, autoincrement=False),
    Column("node_id", ID, nullable=False),
    Column("process_id", String(128), nullable=False),
    Column("deadline_lease_s", Float, nullable=False),
    # Head when the incarnation was given out: the node held nothing then, so it has nothing of before to forget.
    Column("joined_revision", BigInteger, nullable=False),
    Column("cursor", BigInteger, nullable=False),
    Column("num_voices", BigInteger, nullable=False),
    Column("voices_digest", LargeBinary, nullable=False),
    Column("address", String(255), nullable=False),
    Column("model", String(255), nullable=False),
    # joining, serving, draining, fenced: as the node said last
    Column("state", String(16), nullable=False),
    # Another process took the node id: it may not renew, and still counts as a holder until its deadline.
    Column("superseded", Boolean, nullable=False),
    # It may never renew again, and names nobody.
    Column("fenced", Boolean, nullable=False),
    # It said that it forgot everything; a fenced one that did not may still hold voices in memory.
    Column("wiped", Boolean, nullable=False),
    Index("node_leases_by_node", "node_id"),
    Index("node_leases_by_fenced", "fenced"),
)

erasures = Table(
    "erasures",
    metadata,
    Column("audit_id", ID, primary_key=True),
    Column("tenant_id", ID, nullable=False),
    Column("voice_id", ID, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("trigger_kind", String(32), nullable=False),
    # erasing, erased
    Column("state", String(16), nullable=False),
    Column("requested_at_s", Float, nullable=False),
    Column("erased_at_s", Float),
    # JSON: [{"node_id", "ok", "error"}], and [node_id].
    Column("nodes", Text, nullable=False),
    Column("residual_node_ids", Text, nullable=False),
    Column("blob_bytes_deleted", BigInteger, nullable=False),
    Column("blobs_pending", Boolean, nullable=False),
    Index("erasures_by_voice", "tenant_id", "voice_id"),
    Index("erasures_by_state", "state"),
)

# Insert-only by triggers; each row's hash covers the row before it.
audit = Table(
    "audit",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
    Column("previous_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("idempotency_key", String(255), primary_key=True),
    Column("request_digest", LargeBinary, nullable=False),
    Column("voice_id", ID, nullable=False),
    Column("created_at_s", Float, nullable=False),
    Index("idempotency_by_age", "created_at_s"),
)
