-- Trust on the way out: what domains promised about TLS, and what their hosts did.
-- It is kept so that a promise outlives a restart, a downgrade is noticed, and domains can be told (RFC 8460).

-- Sessions by their result, a UTC day at a time. result_key is a hash over everything but day and count: policies
-- are longer than an index takes.
CREATE TABLE tls_result (
    day            BIGINT NOT NULL,     -- days since 1970-01-01, UTC
    policy_domain  TEXT NOT NULL,       -- the recipients' domain, in lower-case A-labels
    result_key     TEXT NOT NULL,
    policy_type    TEXT NOT NULL,       -- sts | tlsa | no-policy-found
    policy_strings TEXT NOT NULL,       -- JSON array
    policy_mx      TEXT NOT NULL,       -- JSON array
    result_type    TEXT NOT NULL,       -- success, or a name of RFC 8460 §4.3
    receiving_mx   TEXT NOT NULL,       -- '' where no host was reached
    receiving_ip   TEXT NOT NULL,
    sending_ip     TEXT NOT NULL,
    sessions       BIGINT NOT NULL,
    PRIMARY KEY (day, policy_domain, result_key)
);

-- RFC 8461 §5.1: a policy holds until its max_age has passed, whether or not it can be fetched again.
CREATE TABLE mta_sts_policy (
    domain     TEXT PRIMARY KEY,
    policy_id  TEXT NOT NULL,           -- of the TXT record under which it was fetched
    policy     TEXT NOT NULL,           -- as it was served
    fetched_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX mta_sts_policy_expires ON mta_sts_policy (expires_at);

-- How well connections to a domain's hosts were secured when mail was last delivered there.
CREATE TABLE tls_seen (
    domain       TEXT PRIMARY KEY,
    deliveries   BIGINT NOT NULL,       -- in TLS, one after the other
    seen_at      BIGINT NOT NULL,
    weaker_since BIGINT                 -- when a host first offered less; NULL while all is well
);
CREATE INDEX tls_seen_at ON tls_seen (seen_at);
