-- The front door: what is known of mail from strangers beyond its octets, and what is done about it.

-- Reading: what kind of message it is, and the codes in it.
ALTER TABLE message ADD COLUMN kind TEXT;              -- screen::kind::Kind; NULL on what we send
ALTER TABLE message ADD COLUMN codes TEXT;             -- JSON array of screen::codes::Code; NULL for none

-- Policy for each domain and inbox, and what is held.
-- One JSON object at each scope, read with the inbox's row; NULL and absent fields: what is set further out counts.
ALTER TABLE inbox ADD COLUMN receive_policy TEXT;
UPDATE inbox SET receive_policy = '{"unauthenticated":"' || unauthenticated || '"}' WHERE unauthenticated <> 'accept';
ALTER TABLE inbox DROP COLUMN unauthenticated;
CREATE TABLE domain_policy (
    domain         TEXT PRIMARY KEY,
    receive_policy TEXT NOT NULL,
    updated_at     BIGINT NOT NULL
);
ALTER TABLE message ADD COLUMN policy TEXT;      -- store::held::PolicyNote
ALTER TABLE message ADD COLUMN held TEXT;        -- held | blocked | discarded; NULL: ordinary
CREATE INDEX message_held ON message (created_at, pod_key, inbox_key, message_key) WHERE held IN ('held', 'blocked');
CREATE INDEX message_held_inbox ON message (pod_key, inbox_key, message_key) WHERE held IN ('held', 'blocked');
UPDATE message SET held = CASE WHEN labels LIKE '%"blocked"%' THEN 'blocked' ELSE 'held' END
 WHERE direction = 'in' AND (labels LIKE '%"blocked"%'
    OR (labels LIKE '%"spam"%' AND verdict LIKE '%"dmarc":{"result":"fail"%'));

-- Threading. A thread has names beside the Message-IDs of its messages: those that are cited and not here (`<…>`),
-- an Outlook conversation (`index:`), an invitation (`event:`), the print of a message without Message-ID (`print:`).
ALTER TABLE missing_parent RENAME TO thread_name;
ALTER TABLE thread_name RENAME COLUMN rfc_message_id TO name;
ALTER TABLE thread_name ADD COLUMN message_key BIGINT;  -- the message that brought the name
-- 1: its mail was verified. A subject alone then leads no mail into a thread that is not.
ALTER TABLE participant ADD COLUMN verified BIGINT NOT NULL DEFAULT 0;
-- What a claim hands out and a completion covers: without it both walk through all messages of the thread.
CREATE INDEX message_unhandled ON message (pod_key, inbox_key, thread_key, message_key) WHERE handled <> 1;

-- Bounces and reports that arrive.
-- DMARC and TLS reports, beside the message that each came by. `identity` is a hash of kind, org, report_id,
-- domains and verified sender: the same report again is not filed twice, a forged one takes no other's place.
CREATE TABLE report (
    pod_key         BIGINT NOT NULL,
    inbox_key       BIGINT NOT NULL,
    message_key     BIGINT NOT NULL,
    identity        BYTEA NOT NULL,
    kind            TEXT NOT NULL,               -- dmarc | tls
    org             TEXT NOT NULL,
    report_id       TEXT NOT NULL,               -- the reporter's
    domains         TEXT NOT NULL,               -- ,a.example,b.example,
    verified_sender TEXT,
    begins_at       BIGINT NOT NULL,
    ends_at         BIGINT NOT NULL,
    total           BIGINT NOT NULL,             -- messages, or sessions
    failed          BIGINT NOT NULL,
    content         TEXT NOT NULL,               -- JSON, as it is served
    received_at     BIGINT NOT NULL,
    PRIMARY KEY (pod_key, inbox_key, message_key)
);
CREATE UNIQUE INDEX report_once ON report (pod_key, identity);
CREATE INDEX report_newest ON report (received_at, pod_key, inbox_key, message_key);

-- Greylisting.
-- First attempts of networks that are new here, by a hash of sender and recipient; an empty hash is a network
-- that came again and passes.
CREATE TABLE greylist (
    network         TEXT NOT NULL,               -- the address of the /24 or /48
    triple          TEXT NOT NULL,
    at              BIGINT NOT NULL,             -- first made, or last renewed
    PRIMARY KEY (network, triple)
);
CREATE INDEX greylist_attempt ON greylist (at) WHERE triple <> '';
CREATE INDEX greylist_known ON greylist (at) WHERE triple = '';
