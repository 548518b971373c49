-- What protects a domain's name: stops that hold for an inbox, a pod, a domain or everything; and what remotes
-- answered, by the hour, so that a bad day slows down and stops by itself.

CREATE TABLE stop (
    stop_key   INTEGER PRIMARY KEY AUTOINCREMENT,
    stop_id    TEXT NOT NULL UNIQUE,
    scope      TEXT NOT NULL,                    -- inbox | pod | domain | organization
    pod_key    BIGINT NOT NULL DEFAULT 0,        -- of the pod or inbox; else 0
    inbox_key  BIGINT NOT NULL DEFAULT 0,
    domain     TEXT NOT NULL DEFAULT '',         -- of the sender, A-labels
    name       TEXT NOT NULL,                    -- as it was named: an address, a pod's id, a domain
    rule       TEXT NOT NULL,                    -- kill_switch | bounce_rate | complaint_rate
    reason     TEXT NOT NULL,
    queued     TEXT NOT NULL,                    -- hold | cancel
    made_by    TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    lifted_at  BIGINT,
    lifted_by  TEXT
);
CREATE INDEX stop_active ON stop (stop_key) WHERE lifted_at IS NULL;
-- The server stops a scope once, whichever node sees it first.
CREATE UNIQUE INDEX stop_by_rule ON stop (scope, name, rule) WHERE lifted_at IS NULL AND rule <> 'kill_switch';

-- An entry that blocks somebody is looked for when queued mail is asked about again, for many inboxes at once.
CREATE INDEX list_entry_block ON list_entry (entry, direction) WHERE list_type = 'block';

-- What remotes answered: `looked` 0 where something bad came that nobody has weighed yet.
CREATE TABLE outcome_hour (
    scope      TEXT NOT NULL,                    -- inbox:<key> | domain:<name>
    hour       BIGINT NOT NULL,                  -- hours since 1970
    pod_key    BIGINT NOT NULL,
    inbox_key  BIGINT NOT NULL,                  -- the last one that it came from
    thread_key BIGINT NOT NULL,
    delivered  BIGINT NOT NULL DEFAULT 0,
    bounced    BIGINT NOT NULL DEFAULT 0,
    complained BIGINT NOT NULL DEFAULT 0,
    looked     BIGINT NOT NULL DEFAULT 1,
    PRIMARY KEY (scope, hour)
) WITHOUT ROWID;
CREATE INDEX outcome_hour_new ON outcome_hour (scope) WHERE looked = 0;
