-- Reports that we send (RFC 9990, RFC 8460): a day's mail from each domain that asks for reports, counted, and what
-- became of each report. Counts are best-effort and bounded; a report is made and sent once, by one node.

-- Messages that have everything in common but their number. record is the report's own row, as JSON.
CREATE TABLE dmarc_tally (
    day    BIGINT NOT NULL,              -- days since 1970-01-01, UTC
    domain TEXT NOT NULL,                -- whose DMARC record it is
    hash   BYTEA NOT NULL,                -- of record
    record TEXT NOT NULL,
    count  BIGINT NOT NULL,
    PRIMARY KEY (day, domain, hash)
);

CREATE TABLE report_out (
    kind          TEXT NOT NULL,         -- dmarc | tls
    day           BIGINT NOT NULL,
    domain        TEXT NOT NULL,
    state         TEXT NOT NULL,         -- due | sent | unwanted | failed
    due_at        BIGINT NOT NULL,       -- of the first or the next attempt
    attempts      BIGINT NOT NULL DEFAULT 0,
    claimed_until BIGINT NOT NULL DEFAULT 0,
    row_count     BIGINT NOT NULL DEFAULT 0,
    total         BIGINT NOT NULL DEFAULT 0,  -- messages or sessions
    left_out      BIGINT NOT NULL DEFAULT 0,  -- of them, those that found no row
    detail        TEXT NOT NULL DEFAULT '[]', -- JSON: whom it was sent to and why not
    updated_at    BIGINT NOT NULL,
    PRIMARY KEY (day, kind, domain)
);
CREATE INDEX report_out_due ON report_out (due_at) WHERE state = 'due';
