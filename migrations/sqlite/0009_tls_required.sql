-- A message may say that arriving matters more to it than TLS does (RFC 8689 §4): known when it is released, asked at each
-- attempt, before the message itself is opened.
ALTER TABLE delivery ADD COLUMN tls_optional BIGINT NOT NULL DEFAULT 0;   -- 1: TLS-Required: No
