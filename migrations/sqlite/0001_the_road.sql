-- The road, end to end: what arrives, the work it makes, what leaves, and the log of it all.
-- Keys begin with (pod_key, inbox_key), so that no hot path joins across inboxes and tables can be distributed.
-- Rows of an inbox are numbered by its own counter (inbox.seq): gap-free, in the order of their commits. IMAP's
-- placements, UIDs and MODSEQs, the audit table and the parsed structure are here from the start, because they
-- cannot be made up afterwards. Times are milliseconds since 1970; booleans 0 and 1; JSON is text.

CREATE TABLE pod (
    pod_key    INTEGER PRIMARY KEY AUTOINCREMENT,
    pod_id     TEXT NOT NULL UNIQUE,
    name       TEXT NOT NULL,
    client_id  TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
INSERT INTO pod (pod_key, pod_id, name, created_at, updated_at) VALUES (1, 'pod_default', 'Default', 0, 0);

-- AUTOINCREMENT: a number is never used again, so an address created anew sees nothing of the old one.
CREATE TABLE inbox (
    inbox_key       INTEGER PRIMARY KEY AUTOINCREMENT,
    pod_key         BIGINT NOT NULL,
    address         TEXT NOT NULL,               -- lower case, domain in A-labels: the inbox_id
    domain          TEXT NOT NULL,
    display_name    TEXT,
    client_id       TEXT,
    status          TEXT NOT NULL,               -- active | paused
    operator        BIGINT NOT NULL DEFAULT 0,   -- 1: the postmaster's, not made over the API
    metadata        TEXT,
    unauthenticated TEXT NOT NULL DEFAULT 'accept',
    on_review       TEXT NOT NULL DEFAULT 'hold',
    per_minute      BIGINT,                      -- recipients; NULL: no limit
    per_hour        BIGINT,
    per_day         BIGINT,
    seq             BIGINT NOT NULL DEFAULT 0,   -- the inbox's counter: keys and MODSEQ
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL,
    deleted_at      BIGINT
);
CREATE UNIQUE INDEX inbox_address ON inbox (address) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX inbox_client ON inbox (pod_key, client_id) WHERE deleted_at IS NULL AND client_id IS NOT NULL;

CREATE TABLE mailbox (
    pod_key     BIGINT NOT NULL,
    inbox_key   BIGINT NOT NULL,
    mailbox_key BIGINT NOT NULL,                 -- 1 INBOX, 2 Sent, 3 Drafts, 4 Trash, 5 Junk, 6 Archive, 7 Review
    name        TEXT NOT NULL,
    special_use TEXT,
    uidvalidity BIGINT NOT NULL,
    uidnext     BIGINT NOT NULL DEFAULT 1,
    modseq      BIGINT NOT NULL DEFAULT 0,
    subscribed  BIGINT NOT NULL DEFAULT 1,
    PRIMARY KEY (pod_key, inbox_key, mailbox_key)
) WITHOUT ROWID;

CREATE TABLE placement (
    pod_key     BIGINT NOT NULL,
    inbox_key   BIGINT NOT NULL,
    mailbox_key BIGINT NOT NULL,
    uid         BIGINT NOT NULL,
    message_key BIGINT NOT NULL,
    modseq      BIGINT NOT NULL,
    flags       TEXT NOT NULL DEFAULT '[]',
    PRIMARY KEY (pod_key, inbox_key, mailbox_key, uid)
) WITHOUT ROWID;
CREATE INDEX placement_message ON placement (pod_key, inbox_key, message_key);

CREATE TABLE tombstone (
    pod_key     BIGINT NOT NULL,
    inbox_key   BIGINT NOT NULL,
    mailbox_key BIGINT NOT NULL,
    uid         BIGINT NOT NULL,
    modseq      BIGINT NOT NULL,
    PRIMARY KEY (pod_key, inbox_key, mailbox_key, uid)
) WITHOUT ROWID;

CREATE TABLE thread (
    pod_key         BIGINT NOT NULL,
    inbox_key       BIGINT NOT NULL,
    thread_key      BIGINT NOT NULL,
    subject         TEXT,
    base_subject    TEXT NOT NULL,               -- without Re:, Fwd: and list tags, in lower case
    preview         TEXT,
    labels          TEXT NOT NULL,               -- JSON array: the union over its messages
    senders         TEXT NOT NULL,               -- JSON arrays, in order of appearance, bounded
    recipients      TEXT NOT NULL,
    attachments     TEXT NOT NULL,
    message_count   BIGINT NOT NULL,
    size            BIGINT NOT NULL,
    last_message    BIGINT NOT NULL,
    context_version BIGINT NOT NULL,
    claims_thread   BIGINT,                      -- the thread whose references this one cites without being let in
    last_at         BIGINT NOT NULL,
    received_at     BIGINT,
    sent_at         BIGINT,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL,
    PRIMARY KEY (pod_key, inbox_key, thread_key)
);
CREATE INDEX thread_recent ON thread (pod_key, inbox_key, last_at, thread_key);
CREATE INDEX thread_recent_all ON thread (last_at, pod_key, inbox_key, thread_key);

-- Who took part: authors that did not fail DMARC, and those whom the inbox itself wrote to.
CREATE TABLE participant (
    pod_key    BIGINT NOT NULL,
    inbox_key  BIGINT NOT NULL,
    thread_key BIGINT NOT NULL,
    address    TEXT NOT NULL,
    last_at    BIGINT NOT NULL,
    PRIMARY KEY (pod_key, inbox_key, thread_key, address)
) WITHOUT ROWID;
CREATE INDEX participant_address ON participant (pod_key, inbox_key, address, last_at);

CREATE TABLE message (
    pod_key         BIGINT NOT NULL,
    inbox_key       BIGINT NOT NULL,
    message_key     BIGINT NOT NULL,
    thread_key      BIGINT NOT NULL,
    direction       TEXT NOT NULL,               -- in | out
    state           TEXT NOT NULL,               -- in: received; out: queued, and later the states of a proposal
    rfc_message_id  TEXT,                        -- with angle brackets
    duplicate_of    BIGINT,
    id_taken        BIGINT NOT NULL DEFAULT 0,   -- 1: an earlier message has the same Message-ID
    body_hash       BYTEA NOT NULL,              -- SHA-256 of the body, for duplicates
    reached_by      TEXT,                        -- the forward-path, tag included
    reverse_path    TEXT,
    from_address    TEXT,                        -- of the first From, normalised where it can be
    from_text       TEXT NOT NULL,
    to_text         TEXT NOT NULL,               -- JSON arrays of "Name <address>"
    cc_text         TEXT NOT NULL,
    bcc_text        TEXT NOT NULL,
    reply_to_text   TEXT NOT NULL,
    subject         TEXT,
    preview         TEXT,
    labels          TEXT NOT NULL,               -- JSON array
    structure       TEXT NOT NULL,               -- screen::Structure
    verdict         TEXT,                        -- verify::Verdict
    verified_sender TEXT,
    unparsed        BIGINT NOT NULL DEFAULT 0,
    size            BIGINT NOT NULL,
    run_id          TEXT,
    key_id          BIGINT,                      -- the API key that sent it
    handled         BIGINT NOT NULL DEFAULT 0,   -- 1 once the work item it raised was finished
    modseq          BIGINT NOT NULL,
    dated_at        BIGINT,                      -- the Date header
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL,
    PRIMARY KEY (pod_key, inbox_key, message_key)
);
CREATE INDEX message_rfc_id ON message (pod_key, inbox_key, rfc_message_id, message_key);
CREATE INDEX message_thread ON message (pod_key, inbox_key, thread_key, message_key);

-- Cited Message-IDs that are not in the inbox: their message may still arrive, or be cited by others too.
CREATE TABLE missing_parent (
    pod_key        BIGINT NOT NULL,
    inbox_key      BIGINT NOT NULL,
    rfc_message_id TEXT NOT NULL,
    thread_key     BIGINT NOT NULL,
    PRIMARY KEY (pod_key, inbox_key, rfc_message_id, thread_key)
) WITHOUT ROWID;

CREATE TABLE body (
    pod_key     BIGINT NOT NULL,
    inbox_key   BIGINT NOT NULL,
    message_key BIGINT NOT NULL,
    codec       TEXT NOT NULL,                   -- raw | zstd | object
    size        BIGINT NOT NULL,
    bytes       BYTEA,
    object      TEXT,                            -- name in the object store, where codec is object
    PRIMARY KEY (pod_key, inbox_key, message_key)
);
CREATE INDEX body_object ON body (object) WHERE object IS NOT NULL;

CREATE TABLE work_item (
    pod_key          BIGINT NOT NULL,
    inbox_key        BIGINT NOT NULL,
    item_key         BIGINT NOT NULL,
    thread_key       BIGINT NOT NULL,
    state            TEXT NOT NULL,              -- available | claimed | waiting | needs_human | held | dead | done
    open             BIGINT NOT NULL,            -- 0 once done
    reason           TEXT NOT NULL,
    priority         BIGINT NOT NULL DEFAULT 0,
    attempts         BIGINT NOT NULL DEFAULT 0,
    last_error       TEXT,
    fence            BIGINT NOT NULL DEFAULT 0,
    lease_key_id     BIGINT,
    worker           TEXT,
    lease_expires_at BIGINT,
    leased_at        BIGINT,
    available_at     BIGINT NOT NULL,
    waiting_for      TEXT,                       -- reply | review | time
    for_worker       TEXT,                       -- handed off to this worker alone
    parent_key       BIGINT,
    seen_message     BIGINT,                     -- the last message that its holder has been handed or has answered
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL,
    done_at          BIGINT,
    PRIMARY KEY (pod_key, inbox_key, item_key)
);
CREATE UNIQUE INDEX work_item_open ON work_item (pod_key, inbox_key, thread_key) WHERE open = 1;
CREATE INDEX work_item_ready ON work_item (pod_key, inbox_key, priority DESC, available_at, item_key) WHERE state = 'available';
CREATE INDEX work_item_ready_all ON work_item (priority DESC, available_at, pod_key, inbox_key, item_key) WHERE state = 'available';
CREATE INDEX work_item_lease ON work_item (lease_expires_at) WHERE state = 'claimed';
CREATE INDEX work_item_waiting ON work_item (available_at) WHERE state = 'waiting';
CREATE INDEX work_item_thread ON work_item (pod_key, inbox_key, thread_key, item_key);
CREATE INDEX work_item_recent ON work_item (created_at, pod_key, inbox_key, item_key);

-- Recipients released, with their running sum: what a sliding window holds is one subtraction.
CREATE TABLE release (
    pod_key     BIGINT NOT NULL,
    inbox_key   BIGINT NOT NULL,
    release_key BIGINT NOT NULL,                 -- the message's key
    released_at BIGINT NOT NULL,                 -- never falls within an inbox
    recipients  BIGINT NOT NULL,
    total       BIGINT NOT NULL,
    PRIMARY KEY (pod_key, inbox_key, release_key)
) WITHOUT ROWID;
CREATE INDEX release_time ON release (pod_key, inbox_key, released_at, release_key);

CREATE TABLE delivery (
    pod_key          BIGINT NOT NULL,
    inbox_key        BIGINT NOT NULL,
    delivery_key     BIGINT NOT NULL,
    message_key      BIGINT NOT NULL,
    recipient        TEXT NOT NULL,
    domain           TEXT NOT NULL,
    route            TEXT NOT NULL,              -- local | relay | capture
    state            TEXT NOT NULL,              -- due | attempting | delivered | deferred | failed | canceled
    next_attempt_at  BIGINT NOT NULL,
    attempts         BIGINT NOT NULL DEFAULT 0,
    node             TEXT,
    attempting_since BIGINT,
    maybe_duplicate  BIGINT NOT NULL DEFAULT 0,
    last_status      TEXT,                       -- enhanced status code
    last_reply       TEXT,
    expires_at       BIGINT NOT NULL,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL,
    PRIMARY KEY (pod_key, inbox_key, delivery_key)
);
CREATE INDEX delivery_due ON delivery (next_attempt_at, pod_key, inbox_key, delivery_key) WHERE state IN ('due', 'deferred');
CREATE INDEX delivery_attempting ON delivery (node) WHERE state = 'attempting';
CREATE INDEX delivery_message ON delivery (pod_key, inbox_key, message_key);

-- The processes that deliver: rows of one that is no longer seen go back to the queue.
CREATE TABLE node (
    node    TEXT PRIMARY KEY,
    seen_at BIGINT NOT NULL
);

CREATE TABLE dkim_key (
    domain      TEXT NOT NULL,
    selector    TEXT NOT NULL,
    algorithm   TEXT NOT NULL,                   -- rsa-sha256 | ed25519-sha256
    private_key BYTEA NOT NULL,                  -- PKCS #8, sealed under the master key
    public_key  TEXT NOT NULL,                   -- base64, as in p=
    active      BIGINT NOT NULL DEFAULT 1,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (domain, selector)
);

CREATE TABLE suppression (
    pod_key    BIGINT NOT NULL,
    address    TEXT NOT NULL,
    reason     TEXT NOT NULL,                    -- bounce | complaint | unsubscribe | manual
    source     TEXT NOT NULL,
    detail     TEXT,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (pod_key, address)
);

-- Organization scope has pod_key 0 and inbox_key 0.
CREATE TABLE list_entry (
    pod_key    BIGINT NOT NULL,
    inbox_key  BIGINT NOT NULL,
    direction  TEXT NOT NULL,                    -- send | receive | reply
    list_type  TEXT NOT NULL,                    -- allow | block
    entry      TEXT NOT NULL,
    entry_type TEXT NOT NULL,                    -- email | domain
    reason     TEXT,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (pod_key, inbox_key, direction, list_type, entry)
);

CREATE TABLE api_key (
    key_id      INTEGER PRIMARY KEY AUTOINCREMENT,
    api_key_id  TEXT NOT NULL UNIQUE,
    pod_key     BIGINT,                          -- NULL: organization
    inbox_key   BIGINT,                          -- NULL: pod or organization
    hash        BYTEA NOT NULL UNIQUE,           -- SHA-256: the key itself has 160 random bits
    prefix      TEXT NOT NULL,
    name        TEXT NOT NULL,
    permissions TEXT,                            -- JSON object; NULL: everything in its scope
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    expires_at  BIGINT,
    used_at     BIGINT
);
CREATE INDEX api_key_inbox ON api_key (pod_key, inbox_key);

-- The answer to a send, stored in the transaction that released it.
CREATE TABLE idempotency (
    name         TEXT PRIMARY KEY,               -- the Idempotency-Key; one name space for the organization
    request_hash BYTEA NOT NULL,
    answer       TEXT NOT NULL,
    created_at   BIGINT NOT NULL
);
CREATE INDEX idempotency_age ON idempotency (created_at);

-- One writer: the order of insertion is the order of commits, so the key is the cursor. PostgreSQL differs.
CREATE TABLE event (
    event_key   INTEGER PRIMARY KEY AUTOINCREMENT,
    cursor      BIGINT GENERATED ALWAYS AS (event_key) VIRTUAL,
    pod_key     BIGINT NOT NULL,
    inbox_key   BIGINT NOT NULL,
    event_type  TEXT NOT NULL,
    thread_key  BIGINT,
    message_key BIGINT,
    item_key    BIGINT,
    data        TEXT NOT NULL,                   -- JSON: what the event says beside the rows it names
    created_at  BIGINT NOT NULL
);
CREATE INDEX event_cursor ON event (cursor);
CREATE INDEX event_inbox ON event (pod_key, inbox_key, cursor);

-- Hashes and ids, never content, so that content can be erased.
CREATE TABLE audit (
    audit_key INTEGER PRIMARY KEY AUTOINCREMENT,
    at        BIGINT NOT NULL,
    actor     TEXT NOT NULL,                     -- key:…, smtp, system
    run_id    TEXT,
    action    TEXT NOT NULL,
    pod_key   BIGINT,
    inbox_key BIGINT,
    object    TEXT NOT NULL,
    detail    TEXT NOT NULL
);

CREATE TABLE setting (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
