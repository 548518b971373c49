-- The queue: an inbox with a long queue does not delay another's mail, a person's answer leaves before a campaign,
-- what is planned waits for its time, what is held waits for somebody, and every attempt is on record.

-- `due` is what may leave now, found by turns: priority, inbox, destination. What waits for its time is `deferred`
-- (it was tried) or `scheduled` (not yet), and becomes due when its time has come; `held` waits for a person.
ALTER TABLE delivery ADD COLUMN priority BIGINT NOT NULL DEFAULT 1;  -- 0 bulk, 1 ordinary, 2 released by a person
ALTER TABLE delivery ADD COLUMN held_by TEXT;                        -- rule:<id> | operator | gate:<reason>
ALTER TABLE delivery ADD COLUMN notice_at BIGINT;                    -- the sender is told that it is late; NULL: told
ALTER TABLE delivery ADD COLUMN via TEXT;                            -- direct | smarthost: an operator's choice of way
UPDATE delivery SET state = 'deferred' WHERE state = 'due';
UPDATE delivery SET notice_at = created_at + 14400000 WHERE state IN ('deferred', 'attempting');
DROP INDEX delivery_due;
CREATE INDEX delivery_turn ON delivery (priority, pod_key, inbox_key, domain, delivery_key) WHERE state = 'due';
CREATE INDEX delivery_deferred ON delivery (next_attempt_at) WHERE state = 'deferred';
CREATE INDEX delivery_scheduled ON delivery (next_attempt_at) WHERE state = 'scheduled';
CREATE INDEX delivery_held ON delivery (held_by, pod_key, inbox_key, delivery_key) WHERE state = 'held';
CREATE INDEX delivery_late ON delivery (notice_at) WHERE state = 'deferred' AND notice_at IS NOT NULL;

-- Everything from an inbox, to a domain, or both waits until the rule is gone.
CREATE TABLE hold_rule (
    rule_key   INTEGER PRIMARY KEY AUTOINCREMENT,
    pod_key    BIGINT,                           -- of the inbox; NULL: every inbox
    inbox_key  BIGINT,
    domain     TEXT,                             -- A-labels; NULL: every domain
    reason     TEXT,
    actor      TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

-- What each attempt came to, in the order in which it was written: the oldest go first.
CREATE TABLE delivery_attempt (
    attempt_key  INTEGER PRIMARY KEY AUTOINCREMENT,
    pod_key      BIGINT NOT NULL,
    inbox_key    BIGINT NOT NULL,
    delivery_key BIGINT NOT NULL,
    attempt      BIGINT NOT NULL,
    node         TEXT NOT NULL,
    host         TEXT,
    address      TEXT,
    tls          TEXT,
    outcome      TEXT NOT NULL,                  -- delivered | deferred | failed | interrupted
    status       TEXT,
    reply        TEXT,                           -- the remote's words, or ours; bounded
    began_at     BIGINT NOT NULL,
    ended_at     BIGINT NOT NULL
);
CREATE INDEX delivery_attempt_row ON delivery_attempt (pod_key, inbox_key, delivery_key);
