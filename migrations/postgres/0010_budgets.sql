-- What protects a name beyond the limits of one inbox: budgets that the inboxes of a domain or a pod share, warm-up of
-- what is new, limits on strangers and on one recipient, and refusals counted by whose they are.

-- One row for each budget that was used or set. It is the lock under which its recipients are counted.
CREATE TABLE budget (
    scope            TEXT PRIMARY KEY,           -- inbox:<key> | pod:<key> | domain:<name>
    per_day          BIGINT,                     -- set by an operator; 0: none; NULL: as configured
    warmup           BIGINT,                     -- 0: does not hold here; NULL: as configured
    made_at          BIGINT NOT NULL,            -- of the inbox, pod or domain: the warm-up's first day
    total            BIGINT NOT NULL DEFAULT 0,  -- recipients, ever
    latest_at        BIGINT NOT NULL DEFAULT 0,  -- never falls
    planned_bulk     BIGINT NOT NULL DEFAULT 0,  -- up to when waiting rows of each priority are planned
    planned_ordinary BIGINT NOT NULL DEFAULT 0,
    planned_approved BIGINT NOT NULL DEFAULT 0,
    waiting          BIGINT NOT NULL DEFAULT 0,  -- 1: rows may wait for it
    turn             BIGINT NOT NULL DEFAULT 0   -- the inbox that was let go last
);
CREATE INDEX budget_waiting ON budget (scope) WHERE waiting = 1;

-- Recipients by the second of their first attempt, with the running sum: any sliding day is one subtraction.
CREATE TABLE budget_spent (
    scope TEXT NOT NULL,
    at    BIGINT NOT NULL,                       -- whole seconds, in milliseconds
    spent BIGINT NOT NULL,
    total BIGINT NOT NULL,
    PRIMARY KEY (scope, at)
);

ALTER TABLE delivery ADD COLUMN waits_for TEXT;  -- the budget that has, or had, no room for it
CREATE INDEX delivery_waiting ON delivery (waits_for, priority, inbox_key, delivery_key)
    WHERE state = 'scheduled' AND waits_for IS NOT NULL;

ALTER TABLE inbox ADD COLUMN new_recipients_per_day BIGINT;  -- -1: no limit; NULL: as configured
ALTER TABLE inbox ADD COLUMN per_recipient_per_day BIGINT;

-- Whom an inbox wrote to for the first time, while that is limited.
CREATE TABLE new_recipient (
    pod_key     BIGINT NOT NULL,
    inbox_key   BIGINT NOT NULL,
    at          BIGINT NOT NULL,                 -- of the release
    message_key BIGINT NOT NULL,
    address     TEXT NOT NULL,                   -- Address::key
    PRIMARY KEY (pod_key, inbox_key, at, message_key, address)
);

-- Refusals and complaints by the domain of those who refuse, so that one of them alone stops nobody.
CREATE TABLE refusal_hour (
    scope      TEXT NOT NULL,                    -- as in outcome_hour
    hour       BIGINT NOT NULL,
    domain     TEXT NOT NULL,                    -- of the recipients: the registered one
    bounced    BIGINT NOT NULL DEFAULT 0,
    complained BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (scope, hour, domain)
);
