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
    # Its keys open nothing any more; the row stays, for what outlives a tenant names it.
    Column("closed_at_s", Float),
    # Quotas; None: no limit.
    Column("voices_max", BigInteger),
    Column("streams_max", BigInteger),
    Column("jobs_max", BigInteger),
    Column("storage_bytes_max", BigInteger),
)

# Whom a tenant's keys stand for. The id is the tenant's own choice and must not be a name.
users = Table(
    "users",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("user_id", ID, primary_key=True),
    Column("created_at_s", Float, nullable=False),
    Column("closed_at_s", Float),
    ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="users_tenant"),
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
    # The user that it stands for; None: the tenant's services.
    Column("user_id", ID),
    # What it is for, in the words of whoever made it.
    Column("purpose", String(100), nullable=False, server_default=""),
    Column("expires_at_s", Float),
    # Written now and then, so it may be a minute old.
    Column("last_used_at_s", Float),
    # The key that took its place.
    Column("replaced_by", ID),
    ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="api_keys_tenant"),
    Index("api_keys_by_tenant", "tenant_id"),
)

voices = Table(
    "voices",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("voice_id", ID, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    # pending, ready, failed, frozen (consent withdrawn or licence lapsed: held by nobody), erasing, erased
    Column("state", String(16), nullable=False),
    Column("state_reason", Text, nullable=False),
    # The same as a word, where the voice failed or is frozen (controlplane.failures); "": nothing is wrong with it.
    Column("state_code", String(64), nullable=False, server_default=""),
    # None once erased.
    Column("label_ciphertext", LargeBinary),
    Column("net_speech_ms", Integer, nullable=False),
    Column("model", Text, nullable=False),
    # Revision of the last change in the fleet log; 0 while there is none.
    Column("revision", BigInteger, nullable=False),
    Column("created_at_s", Float, nullable=False),
    Column("updated_at_s", Float, nullable=False),
    # user, tenant, global (controlplane.policy)
    Column("scope", String(8), nullable=False, server_default="tenant"),
    Column("owner_user_id", ID),
    # The normalised label under the tenant's own key; None once erased. Finds a label without opening every voice.
    Column("label_index", LargeBinary),
    Column("language", String(35), nullable=False, server_default=""),
    Column("gender", String(16), nullable=False, server_default=""),
    # JSON of what a library shows beside the label; None: nothing.
    Column("details_ciphertext", LargeBinary),
    # What the log told nodes of the voice last: its generation (0: to hold nothing), and the models, a line each,
    # whose voiceprints were there. And where, and when (lease clock), it told of the voice first; 0: never.
    Column("told_generation", BigInteger, nullable=False, server_default="0"),
    Column("told_models", Text, nullable=False, server_default=""),
    Column("first_revision", BigInteger, nullable=False, server_default="0"),
    Column("first_at_lease_s", Float, nullable=False, server_default="0"),
    ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="voices_tenant"),
    Index("voices_by_state", "state"),
    Index("voices_by_id", "voice_id"),
    Index("voices_by_label", "tenant_id", "label_index"),
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
    # Which key-encryption key wrapped it; "": one of before they were told apart.
    Column("kek_id", String(16), nullable=False, server_default=""),
    _of_voice("data_keys_voice"),
)

# Keys of the deployment ("audit") and of tenants ("labels:<tenant>"), wrapped as data keys are.
wrapped_secrets = Table(
    "wrapped_secrets",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created_at_s", Float, nullable=False),
    Column("kek_id", String(16), nullable=False, server_default=""),
)

voiceprints = Table(
    "voiceprints",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("voice_id", ID, primary_key=True),
    Column("model", String(255), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("net_speech_ms", Integer, nullable=False),
    # The centroid of the members that were not left out.
    Column("ciphertext", LargeBinary, nullable=False),
    # Mean cosine of the kept members to the centroid; None: of one clip.
    Column("quality", Float),
    Column("num_members", Integer, nullable=False, server_default="1"),
    _of_voice("voiceprints_voice"),
)

# What each clip gave a voiceprint, so that one may be added, or left out, later.
voiceprint_members = Table(
    "voiceprint_members",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("voice_id", ID, primary_key=True),
    Column("model", String(255), primary_key=True),
    # The sample's: the generation in which it came, and its number in it.
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("clip", Integer, primary_key=True, autoincrement=False),
    Column("net_speech_ms", Integer, nullable=False),
    # Cosine to the centroid of the others; None: it is the only one.
    Column("cohesion", Float),
    # Kept out of the centroid, being too far from the others.
    Column("left_out", Boolean, nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),
    _of_voice("voiceprint_members_voice"),
)

samples = Table(
    "samples",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("voice_id", ID, primary_key=True),
    # In which it came: a voice that is added to keeps what it had.
    Column("generation", BigInteger, primary_key=True),
    Column("clip", Integer, primary_key=True),
    Column("blob_key", String(255), nullable=False),
    # Bytes of the blob, which is ciphertext.
    Column("blob_bytes", BigInteger, nullable=False),
    # The AudioFormat of the clip; the encoding is the number of speakerd.v1.Encoding.
    Column("encoding", Integer, nullable=False),
    Column("sample_rate_hz", Integer, nullable=False),
    Column("channels", Integer, nullable=False),
    # reference, or consent: the person agreeing aloud
    Column("purpose", String(16), nullable=False, server_default="reference"),
    _of_voice("samples_voice"),
)

# Never changed, never deleted, by triggers: not even when the voice is erased. What it says is under the voice's key,
# so that it becomes unreadable with it; there is no reference to the voice, whose row is purged one day.
consents = Table(
    "consents",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("voice_id", ID, primary_key=True),
    Column("generation", BigInteger, primary_key=True),
    # JSON: full_name, purpose, text, subject, and SHA-256 of the text and of each recording.
    Column("ciphertext", LargeBinary, nullable=False),
    Column("created_at_s", Float, nullable=False),
    # When the person agreed, as the caller says.
    Column("given_at_s", Float),
    # Which wording it was, in the caller's count.
    Column("version", String(64), nullable=False, server_default=""),
    # The person, in the caller's words, under the tenant's key. None: not said.
    Column("subject_index", LargeBinary),
    # Keyed digest of all that the ciphertext says; the audit has the same one. None: of before it was kept.
    Column("evidence", LargeBinary),
    Column("key_id", ID),
    Index("consents_by_subject", "tenant_id", "subject_index"),
)

# Of global voices. As immutable as consents.
licences = Table(
    "licences",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("voice_id", ID, primary_key=True),
    Column("generation", BigInteger, primary_key=True),
    # perpetual, time_bound, usage_bound
    Column("kind", String(16), nullable=False),
    Column("expires_at_s", Float),
    # What is counted (characters, seconds, matches), and how much of it may be used.
    Column("unit", String(16), nullable=False),
    Column("usage_max", BigInteger),
    # JSON: licensor, terms.
    Column("ciphertext", LargeBinary, nullable=False),
    Column("created_at_s", Float, nullable=False),
    Column("evidence", LargeBinary, nullable=False),
    Column("key_id", ID),
)

# What became of consents and licences: appended, never changed.
agreement_events = Table(
    "agreement_events",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", ID, nullable=False),
    # "": of the person, whatever the voice.
    Column("voice_id", ID, nullable=False),
    Column("generation", BigInteger, nullable=False),
    # consent_given, consent_withdrawn, opted_out, licence_granted, licence_revoked, licence_expired, licence_used_up
    Column("kind", String(24), nullable=False),
    Column("subject_index", LargeBinary),
    Column("at_s", Float, nullable=False),
    Column("key_id", ID),
    Index("agreement_events_by_voice", "tenant_id", "voice_id"),
    Index("agreement_events_by_subject", "tenant_id", "subject_index"),
)

# What was used, for billing and for licences: it outlives what it records, and names a voice by its keyed hash alone.
usage_records = Table(
    "usage_records",
    metadata,
    Column("record_id", ID, primary_key=True),
    Column("tenant_id", ID, nullable=False),
    # As the audit names the voice; "": no voice.
    Column("subject", String(64), nullable=False),
    # voiceprints, characters, seconds, matches
    Column("unit", String(16), nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("at_s", Float, nullable=False),
    Index("usage_records_by_tenant", "tenant_id", "at_s"),
    Index("usage_records_by_subject", "subject", "unit"),
)

# Which control plane does a chore that one at a time may do.
leaders = Table(
    "leaders",
    metadata,
    Column("chore", String(64), primary_key=True),
    Column("holder_id", String(64), nullable=False),
    # On the lease clock.
    Column("until_lease_s", Float, nullable=False),
)

# One row: the heads of all that rises by one. Locking it orders the writers.
fleet_head = Table(
    "fleet_head",
    metadata,
    Column("head_id", Integer, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("incarnation", BigInteger, nullable=False),
    # Random. Another one after a restore: what nodes hold under an earlier one is of another history.
    Column("epoch", String(64), nullable=False),
    # Random, another one at every start of a control plane: tells the database of this run from a copy of an earlier.
    Column("run", String(64), nullable=False),
    # Which erasure journal belongs to this database; empty until there is one.
    Column("journal_id", String(64), nullable=False),
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
    # The models, a line each, whose nodes hold the voice from here on; and what they held before. So each entry is
    # the whole of a change, and what a node of any model should hold at a revision is a sum over entries.
    Column("models", Text, nullable=False, server_default=""),
    Column("was_generation", BigInteger, nullable=False, server_default="0"),
    Column("was_models", Text, nullable=False, server_default=""),
)

# One row an incarnation, never reused. A row counts as a holder until it is fenced.
node_leases = Table(
    "node_leases",
    metadata,
    Column("incarnation", BigInteger, primary_key=True, autoincrement=False),
    # node; relay: a control plane through which results leave, which holds no voices.
    Column("kind", String(8), nullable=False),
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
    # How often it was prolonged: a control plane that has seen no other number for longer than a lease lasts, on its
    # own clock, takes the holder for silent.
    Column("renewals", BigInteger, nullable=False),
    # The longest that its holder was told to rely on it: control planes may have been configured otherwise before.
    Column("relied_s", Float, nullable=False, server_default="0"),
    # Head when it was last left unprolonged over an eviction: it stays so until it has applied all up to there.
    Column("held_revision", BigInteger, nullable=False, server_default="0"),
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
    # Where it was asked for: api, cli, worker, journal.
    Column("source", String(32), nullable=False),
    # Who asked, as the caller calls them; no free text.
    Column("trigger_user", String(128), nullable=False),
    # Why, in the caller's words, sealed with the deployment's key.
    Column("reason_ciphertext", LargeBinary),
    # The API key that asked; empty for workers.
    Column("key_id", ID, nullable=False),
    Column("replicas_evicted", Integer, nullable=False),
    # The erasure journal has it: a restore cannot bring the voice back.
    Column("journaled", Boolean, nullable=False),
    # Something is left to do: proof, recordings, journal, residual nodes.
    Column("is_open", Boolean, nullable=False),
    Index("erasures_by_open", "is_open"),
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

# Answers to requests that carried an Idempotency-Key. The name is a keyed digest; the answer is ciphertext.
kept_answers = Table(
    "kept_answers",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("tenant_id", ID, nullable=False),
    Column("request_digest", LargeBinary, nullable=False),
    Column("began_at_s", Float, nullable=False),
    # Absent while the request is under way.
    Column("status", Integer),
    Column("ciphertext", LargeBinary),
    # Whose answer it is, where it tells of a voice: sealed with that voice's own key then, which an erasure destroys.
    Column("voice_tenant_id", ID),
    Column("voice_id", ID),
    Index("kept_answers_by_age", "began_at_s"),
)

# Recordings that were uploaded, or fetched for a job. What lies in the store is ciphertext under a key of the tenant's.
media = Table(
    "media",
    metadata,
    Column("media_id", ID, primary_key=True),
    Column("tenant_id", ID, nullable=False),
    # The caller's key, under the tenant's own; None: fetched for a job, or another was put in its place.
    Column("key_index", LargeBinary),
    # arriving, kept, going (its blob is to be deleted)
    Column("state", String(16), nullable=False),
    Column("size_bytes", BigInteger, nullable=False, server_default="0"),
    # Sent straight to the object store, and therefore as it came.
    Column("is_plain", Boolean, nullable=False),
    Column("created_at_s", Float, nullable=False),
    Column("expires_at_s", Float, nullable=False),
    ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="media_tenant"),
    Index("media_by_key", "tenant_id", "key_index"),
    Index("media_by_state", "state", "expires_at_s"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", ID, primary_key=True),
    Column("tenant_id", ID, nullable=False),
    # Who asked: its results are matched, and told, by what this caller may use.
    Column("user_id", ID),
    Column("key_id", ID, nullable=False),
    # diarize, identify, voiceprint
    Column("kind", String(16), nullable=False),
    # pending, created, running, succeeded, failed, canceled
    Column("state", String(16), nullable=False),
    # Among the tenant's own, lower first.
    Column("priority", Integer, nullable=False),
    # JSON of the request, under a key of the tenant's; None once it has been deleted.
    Column("spec_ciphertext", LargeBinary),
    Column("media_id", ID),
    Column("idempotency_index", LargeBinary),
    Column("request_digest", LargeBinary, nullable=False),
    # Grows with each claim: what an earlier claimer writes changes nothing.
    Column("attempt", BigInteger, nullable=False, server_default="0"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("worker_id", String(64), nullable=False, server_default=""),
    # On the lease clock: a running job whose worker has not been heard for so long may be claimed by another.
    Column("until_lease_s", Float, nullable=False, server_default="0"),
    # On the lease clock: it is not claimed before.
    Column("not_before_lease_s", Float, nullable=False, server_default="0"),
    Column("processed_ms", BigInteger, nullable=False, server_default="0"),
    Column("duration_ms", BigInteger, nullable=False, server_default="0"),
    # What to mend; no names.
    Column("error", Text),
    Column("warning", Text),
    Column("created_at_s", Float, nullable=False),
    Column("updated_at_s", Float, nullable=False),
    Column("ended_at_s", Float),
    Column("expires_at_s", Float),
    ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="jobs_tenant"),
    Index("jobs_by_tenant", "tenant_id", "created_at_s"),
    Index("jobs_by_state", "state", "tenant_id"),
    Index("jobs_by_media", "media_id"),
    Index("jobs_by_end", "ended_at_s"),
    Index("jobs_by_request", "tenant_id", "idempotency_index", unique=True),
)

# What jobs gave, until it expires: under a key of the tenant's, and without anybody's name.
job_results = Table(
    "job_results",
    metadata,
    Column("job_id", ID, primary_key=True),
    Column("ciphertext", LargeBinary, nullable=False),
    ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name="job_results_job"),
)

# What a tenant's webhooks are signed with, under the tenant's own key.
webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("ciphertext", LargeBinary, nullable=False),
    Column("created_at_s", Float, nullable=False),
    ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="webhook_secrets_tenant"),
)

# Whom to tell of a job's end, one row a job, written with it. What is told is made at each attempt, never kept.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("job_id", ID, primary_key=True),
    Column("tenant_id", ID, nullable=False),
    # The url, under the tenant's own key: it may hold a secret of the receiver's.
    Column("url_ciphertext", LargeBinary, nullable=False),
    Column("status_only", Boolean, nullable=False),
    # waiting, delivered, given_up
    Column("state", String(16), nullable=False),
    # Attempts that have begun, and why the last one failed, in the words of x-retry-reason; "": none has.
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("reason", String(32), nullable=False, server_default=""),
    # On the lease clock: when the next attempt is due, and up to when the one under way is somebody's.
    Column("due_lease_s", Float, nullable=False),
    Column("claimed_until_lease_s", Float, nullable=False, server_default="0"),
    Column("created_at_s", Float, nullable=False),
    Column("ended_at_s", Float),
    Index("webhook_deliveries_by_due", "state", "due_lease_s"),
)

# Live streams over a WebSocket that are asked for first and connected to once.
live_sessions = Table(
    "live_sessions",
    metadata,
    Column("session_id", ID, primary_key=True),
    Column("tenant_id", ID, nullable=False),
    # Whose it is: asked for again as the WebSocket connects, so that a revoked key opens nothing.
    Column("key_id", ID, nullable=False),
    # SHA-256 of the word in the url.
    Column("token_hash", LargeBinary, nullable=False),
    # created, running, succeeded, failed, canceled
    Column("state", String(16), nullable=False),
    Column("created_at_s", Float, nullable=False),
    Column("started_at_s", Float),
    Column("completed_at_s", Float),
    # On the lease clock: a running one that has not been heard of for long has died with its control plane.
    Column("seen_lease_s", Float, nullable=False, server_default="0"),
    Index("live_sessions_by_age", "created_at_s"),
)
