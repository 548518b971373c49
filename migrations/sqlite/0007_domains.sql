-- Domains that are added while the server runs, beside those of the configuration, and DKIM keys that change.
-- A domain is used only while it is verified: its owner has published the keys that were made for this claim.
-- Configured domains have a row too, for their keys, dates and findings; they need no verification.

CREATE TABLE domain (
    domain_key         INTEGER PRIMARY KEY AUTOINCREMENT,
    domain             TEXT NOT NULL UNIQUE,     -- lower case, A-labels: the domain_id
    pod_key            BIGINT,                   -- NULL: the organization's, for the inboxes of every pod
    configured         BIGINT NOT NULL DEFAULT 0,
    status             TEXT NOT NULL,            -- NOT_STARTED | PENDING | INVALID | FAILED | VERIFYING | VERIFIED
    reason             TEXT,
    feedback_enabled   BIGINT NOT NULL DEFAULT 0,
    inbound_enabled    BIGINT NOT NULL DEFAULT 1,
    subdomains_enabled BIGINT NOT NULL DEFAULT 0,
    tracking_enabled   BIGINT NOT NULL DEFAULT 0,
    findings           TEXT NOT NULL DEFAULT '[]', -- JSON: each record as the last check found it
    checked_at         BIGINT,
    next_check_at      BIGINT,                   -- NULL: not looked at by itself any more
    failing_since      BIGINT,                   -- verified, and since then the DNS says otherwise
    verified_at        BIGINT,
    created_at         BIGINT NOT NULL,
    updated_at         BIGINT NOT NULL
);
CREATE INDEX domain_pod ON domain (pod_key, domain_key);
CREATE INDEX domain_check ON domain (next_check_at) WHERE next_check_at IS NOT NULL;

CREATE UNIQUE INDEX pod_client ON pod (client_id) WHERE client_id IS NOT NULL;
CREATE INDEX inbox_domain ON inbox (domain) WHERE deleted_at IS NULL;

-- next: to be published, does not sign yet | active: signs | retiring: signs no more, its record still has to
-- stand | retired: its record may go; the private half is erased.
ALTER TABLE dkim_key ADD COLUMN state TEXT NOT NULL DEFAULT 'active';
ALTER TABLE dkim_key ADD COLUMN state_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE dkim_key DROP COLUMN active;
